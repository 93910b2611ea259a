"""DDPG, TD3 and SAC on a linear-quadratic problem, where every value, gradient and optimum has a closed form.

    s' = A s + B u        r = -(s^T C s + u^T R u)        discount gamma; two states, two actions, nothing is clipped

Of a linear policy u = -K s + noise of covariance S, with M = R + gamma B^T P B:

    Q(s, u) = r(s, u) + gamma V(s'),   V(s) = -s^T P s + c
    P = C + K^T R K + gamma (A - B K)^T P (A - B K)                          linear in P
    c = (-tr(M S) + alpha H) / (1 - gamma)                                   alpha H: SAC's entropy bonus
The best gain solves the same with K = gamma M^-1 B^T P A; SAC's best covariance is alpha/2 M^-1 (its policy is the
softmax of its own Q). The critics are linear in all monomials of degree two, so that Q is one of them exactly; states
and actions come on a grid, noise by two-point or Gauss-Hermite rules, which are exact for quadratics.

Any other option whose method has such an actor is held against what this role promises: slopes of critics and actor,
each up to the size of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pgcli.algorithms.sac import Noise
from pgcli.experiment.config import compose
from pgcli.functional.distributions import gauss_hermite
from pgcli.functional.temporal_difference import soft_value
from pgcli.registry import complete
from pgcli.types import ABSENT, ActorCritics, ActorWithQ, Drawn, Transitions
from pgcli.verification.check import Check, along, equal, of_each
from pgcli.verification.method import Method

BUILT_IN = ("ddpg", "td3", "sac")


def matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


GAMMA = 0.9
A, B = matrix((1.0, 0.2), (-0.1, 0.9)), matrix((0.1, 0.0), (0.3, 0.5))
C, R = matrix((1.0, 0.2), (0.2, 0.5)), matrix((0.4, 0.1), (0.1, 0.6))
GAIN = matrix((0.3, -0.2), (0.1, 0.4))
"""A policy that is not the best one."""
START = matrix((1.0, 0.3), (0.3, 0.5))
"""E[s s^T] of the first state."""


# ---------------------------------------------------------------- exact values


def cost_to_go(gain: Tensor) -> Tensor:
    """P of a linear policy."""
    closed = A - B @ gain
    return discounted_sum(closed.T, C + gain.T @ R @ gain)


def discounted_sum(step: Tensor, first: Tensor) -> Tensor:
    """X = first + gamma step X step^T, as four linear equations."""
    system = torch.eye(4, dtype=torch.float64) - GAMMA * torch.kron(step.contiguous(), step.contiguous())
    return torch.linalg.solve(system, first.flatten()).view(2, 2)


def curvature(p: Tensor) -> Tensor:
    """M = R + gamma B^T P B."""
    return R + GAMMA * B.T @ p @ B


def best_gain() -> Tensor:
    """By policy iteration, which converges quadratically (Hewer 1971)."""
    gain = GAIN
    for _ in range(30):
        p = cost_to_go(gain)
        gain = GAMMA * torch.linalg.solve(curvature(p), B.T @ p @ A)
    return gain


def quadratic_value(p: Tensor, constant: Tensor | float) -> Tensor:
    """Coefficients of Q(s, u) = r + gamma (-s'^T P s' + c) over `features`."""
    both = torch.cat([A, B], 1)
    whole = -torch.block_diag(C, R) - GAMMA * both.T @ p @ both
    first, second = torch.triu_indices(4, 4)
    doubled = torch.where(first == second, 1.0, 2.0)
    return torch.cat([torch.as_tensor(GAMMA * constant, dtype=torch.float64).view(1), whole[first, second] * doubled])


def features(states: Tensor, actions: Tensor) -> Tensor:
    """1 and all products of two of (s, u): (B, 11)."""
    both = torch.cat([states, actions], 1)
    first, second = torch.triu_indices(4, 4)
    return torch.cat([torch.ones_like(both[:, :1]), both[:, first] * both[:, second]], 1)


# ---------------------------------------------------------------- a policy with exactly these parameters


class Weights(nn.Module):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__()
        self.tensors = nn.ParameterList([tensor.clone() for tensor in tensors])


class LinearQuadratic(nn.Module, ActorCritics):
    """u = -K s + L z and Q_k(s, u) = w_k . features. Deterministic without L."""

    actions = 2

    def __init__(self, gain: Tensor, critics: Tensor, deviation: Tensor | None = None) -> None:
        super().__init__()
        self.actor = Weights(gain) if deviation is None else Weights(gain, deviation)
        self.critics, self.target_critics = Weights(critics), Weights(critics)
        self.target_actor = Weights(gain)

    def actor_parameters(self) -> list[nn.Parameter]:
        return list(self.actor.parameters())

    def act(self, observations: Tensor, noise: Tensor) -> Drawn:
        gain, *deviation = self.actor.tensors
        mean = -observations @ gain.T
        if not deviation:
            return mean, ABSENT
        lower = deviation[0].tril()
        normal = -0.5 * noise.square().sum(1) - math.log(2 * math.pi)
        return mean + noise @ lower.T, normal - lower.diagonal().log().sum()

    @torch.no_grad()
    def target_act(self, observations: Tensor, noise: Tensor) -> Tensor:
        return -observations @ self.target_actor.tensors[0].T + noise

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.critics.tensors[0] @ features(observations, actions).T

    def fixed_values(self, observations: Tensor, actions: Tensor, first: int | None = None) -> Tensor:
        return self.critics.tensors[0][:first].detach() @ features(observations, actions).T

    @torch.no_grad()
    def target_values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self.target_critics.tensors[0] @ features(observations, actions).T


def make(algo: str, policy: LinearQuadratic, *words: str) -> Any:
    config = compose([f"algo={algo}", "env=pendulum", "tuned=none", f"algo.gamma={GAMMA}", *words])
    algorithm: Any = complete("algo", config.algo.name)
    return algorithm(policy, config.algo, total_steps=1, seed=0)


class Rule(NamedTuple):
    """Points of two independent standard normals, (n, 2), and their probabilities, (n,)."""

    points: Tensor
    weights: Tensor


def product_rule(points: Tensor, weights: Tensor) -> Rule:
    return Rule(torch.cartesian_prod(points, points), torch.cartesian_prod(weights, weights).prod(1))


SIGNS = product_rule(torch.tensor([-1.0, 1.0], dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64))
"""+1 or -1 with equal probability: it has a normal's first three moments, and its clipping is exact."""
NORMAL = product_rule(*gauss_hermite(4))


def transitions(rule: Rule, *, ends: bool = False) -> tuple[Transitions, Tensor]:
    """A grid of states and actions, each with every point of the noise: the rows and their noise, (B, 2)."""
    places = torch.tensor([-1.3, 0.4, 0.9], dtype=torch.float64)
    grid = torch.cartesian_prod(places, places - 0.2, 0.7 * places, places + 0.1)  # (81, 4)
    odds = torch.linspace(1, 2, len(grid), dtype=torch.float64)
    both, noise = grid.repeat_interleave(len(rule.points), 0), rule.points.repeat(len(grid), 1)
    states, actions = both[:, :2], both[:, 2:]
    rewards = -((states @ C) * states).sum(1) - ((actions @ R) * actions).sum(1)
    return Transitions(
        observations=states, actions=actions, rewards=rewards, next_observations=states @ A.T + actions @ B.T,
        terminated=torch.full((len(both),), ends),
        weights=(odds / odds.sum()).repeat_interleave(len(rule.points)) * rule.weights.repeat(len(grid)),
    ), noise  # fmt: skip


def with_moment(moment: Tensor, rule: Rule) -> tuple[Transitions, Tensor]:
    """Two states whose E[s s^T] is the given one, each with every point of the noise: enough for an actor."""
    roots = math.sqrt(2) * torch.linalg.cholesky(moment).T
    states, noise = roots.repeat_interleave(len(rule.points), 0), rule.points.repeat(2, 1)
    return Transitions(
        observations=states, actions=ABSENT, rewards=ABSENT, next_observations=ABSENT, terminated=ABSENT,
        weights=rule.weights.repeat(2) / 2,
    ), noise  # fmt: skip


def slopes(total: Tensor, module: nn.Module) -> list[Tensor]:
    """Gradients; zeros for parameters that the total does not depend on."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


# ---------------------------------------------------------------- the checks


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    if not only or set(BUILT_IN) & set(only):
        yield from deterministic("ddpg", critics=1)
        yield from deterministic("td3", critics=2)
        yield from smoothing()
        yield from soft()
        yield from temperature()
    yield from of_each(only, Method, _topics, what="its losses")


def _topics(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    if method.option not in BUILT_IN and isinstance(method.role, ActorWithQ):
        yield an_actor_with_critics


def an_actor_with_critics(method: Method) -> Iterator[Check]:
    """Slopes of another option's loss, on the grid: of the critics at and away from Q, and of the actor.

    A distribution draws with `sac.Noise`; without an `initial_temperature` its entropy counts nothing.
    """
    option, role = method.option, method.role
    alpha = 0.3 if role.stochastic and method.has("initial_temperature") else 0.0
    config = method.with_those_of({
        "gamma": GAMMA, "reward_scale": 1.0, "target_noise": 0.0, "initial_temperature": alpha, "target_entropy": -2.0,
    })  # fmt: skip
    lower = torch.linalg.cholesky(matrix((0.3, 0.1), (0.1, 0.2)))
    spread = lower if role.stochastic else torch.zeros_like(lower)
    p = cost_to_go(GAIN)
    m = curvature(p)
    entropy = math.log(2 * math.pi) + 1 + float(lower.diagonal().log().sum())
    constant = (-(m @ spread @ spread.T).trace() + alpha * entropy) / (1 - GAMMA)
    nothing = torch.zeros(role.critics, 11, dtype=torch.float64)

    batch, normal = transitions(NORMAL)

    def slopes_at(weights: Tensor, batch: Transitions, *, away: Tensor | float = 0.0) -> list[Tensor]:
        """Of critics that are `away` from these weights, which their targets have, and of the actor's parameters."""
        policy = LinearQuadratic(GAIN, weights.repeat(role.critics, 1), lower if role.stochastic else None)
        with torch.no_grad():
            policy.critics.tensors[0].add_(away)
        learner = method.algorithm(policy, config, total_steps=1, seed=0)
        total, _ = learner.loss(policy, batch, Noise(normal, normal) if role.stochastic else normal)
        return slopes(total, policy.critics) + slopes(total, policy.actor)

    value = quadratic_value(p, constant)
    of_critics, *of_actor = slopes_at(value, batch)
    yield equal(option, "critic's slope at its policy's Q", nothing, of_critics)
    shifted, *_ = slopes_at(value, batch, away=SHIFT)
    yield along(option, "critic's slope away from Q", pull(batch).repeat(role.critics, 1), shifted)
    ended = quadratic_value(torch.zeros_like(p), 0)
    of_ends, *_ = slopes_at(ended, transitions(NORMAL, ends=True)[0])
    yield equal(option, "critic's slope where every step ends", nothing, of_ends)

    # E[alpha log pi - Q] as in `soft`, with the grid's own E[s s^T].
    moment = (batch.weights[:, None] * batch.observations).T @ batch.observations
    greedy = GAMMA * torch.linalg.solve(m, B.T @ p @ A)
    exact = [2 * m @ (greedy - GAIN) @ moment]
    if role.stochastic:
        exact.append(-(2 * m @ lower - alpha * torch.linalg.inv(lower).T).tril())
    yield along(
        option, "actor's slope", torch.cat(exact), -torch.cat(of_actor), note="of its policy's Q, at the grid's states",
    )  # fmt: skip


def deterministic(algo: str, *, critics: int) -> Iterator[Check]:
    still = "algo.target_noise=0"
    for name, gain in (("a policy", GAIN), ("the best policy", best_gain())):
        policy = LinearQuadratic(gain, quadratic_value(cost_to_go(gain), 0).repeat(critics, 1))
        algorithm = make(algo, policy, still)
        batch, noise = transitions(SIGNS)
        total, _ = algorithm.loss(policy, batch, noise)
        yield equal(algo, f"critic's slope at Q of {name}", torch.zeros(critics, 11), *slopes(total, policy.critics))

        # J(K) = -tr(P_K E[s s^T]); the states as the policy visits them, each visit discounted.
        free = gain.clone().requires_grad_()
        (exact,) = torch.autograd.grad(-(cost_to_go(free) @ START).trace(), free)
        visits = discounted_sum(A - B @ gain, START)
        total, _ = algorithm.actor_loss(policy, *with_moment(visits, SIGNS))
        yield equal(
            algo, f"actor's slope at {name}", exact, -slopes(total, policy.actor)[0],
            note="of the return, by the deterministic policy gradient over discounted visits",
        )  # fmt: skip

    gain = GAIN
    policy = LinearQuadratic(gain, quadratic_value(cost_to_go(gain), 0).repeat(critics, 1))
    with torch.no_grad():
        policy.critics.tensors[0].add_(SHIFT)
    total, _ = make(algo, policy, still).loss(policy, batch, noise)
    yield equal(
        algo, "critic's slope away from Q", (2 * pull(batch)).repeat(critics, 1),
        *slopes(total, policy.critics), note="2 E[features features^T] (w - w*)",
    )  # fmt: skip

    ended = quadratic_value(torch.zeros(2, 2, dtype=torch.float64), 0)
    policy = LinearQuadratic(gain, ended.repeat(critics, 1))
    batch, noise = transitions(SIGNS, ends=True)
    total, _ = make(algo, policy, still).loss(policy, batch, noise)
    yield equal(algo, "critic's slope where every step ends", torch.zeros(critics, 11), *slopes(total, policy.critics))


SHIFT = torch.linspace(-1, 1, 11, dtype=torch.float64)


def pull(batch: Transitions) -> Tensor:
    """E[features features^T] SHIFT: half the gradient of a squared error whose critic is off by SHIFT."""
    seen = features(batch.observations, batch.actions)
    return (batch.weights[:, None] * seen).T @ seen @ SHIFT


def smoothing() -> Iterator[Check]:
    """TD3's two further repairs change the fixed point."""
    p = cost_to_go(GAIN)
    for sigma, clip, size in ((0.2, 0.5, 0.2), (0.2, 0.1, 0.1)):
        # Noise of +-size on each component of the next action: its covariance is size^2 I.
        constant = -(curvature(p).trace() * size**2) / (1 - GAMMA)
        policy = LinearQuadratic(GAIN, quadratic_value(p, constant).repeat(2, 1))
        algorithm = make("td3", policy, f"algo.target_noise={sigma}", f"algo.target_noise_clip={clip}")
        total, _ = algorithm.critic_loss(policy, *transitions(SIGNS))
        yield equal(
            "td3", f"critic's slope at Q smoothed by {size}", torch.zeros(2, 11),
            *slopes(total, policy.critics), note=f"smoothing costs {-float(constant):.4f}",
        )  # fmt: skip

    true = quadratic_value(p, 0)
    for k, which in enumerate(("first", "second")):
        policy = LinearQuadratic(GAIN, torch.stack([true, true]))
        with torch.no_grad():
            policy.target_critics.tensors[0][k, 0] += 1  # an overestimate, which the minimum ignores
        total, _ = make("td3", policy, "algo.target_noise=0").critic_loss(policy, *transitions(SIGNS))
        yield equal(
            "td3", f"critic's slope, {which} target too high", torch.zeros(2, 11), *slopes(total, policy.critics)
        )


def soft_critic_loss(sac: Any, policy: LinearQuadratic, batch: Transitions, z: Tensor) -> tuple[Tensor, Any]:
    values = policy.values(batch.observations, batch.actions)
    return sac.critic_loss(policy, batch, values, policy.act(batch.next_observations, z))


def soft_actor_loss(sac: Any, policy: LinearQuadratic, batch: Transitions, z: Tensor) -> tuple[Tensor, Any]:
    actions, log_probs = policy.act(batch.observations, z)
    return sac.actor_loss(batch, policy.fixed_values(batch.observations, actions), log_probs)


def soft() -> Iterator[Check]:
    alpha = 0.3
    words = (f"algo.initial_temperature={alpha}", "algo.target_entropy=-2")
    best = best_gain()
    best_covariance = alpha / 2 * torch.linalg.inv(curvature(cost_to_go(best)))
    some = torch.linalg.cholesky(matrix((0.3, 0.1), (0.1, 0.2)))
    policies = (("a policy", GAIN, some), ("the best policy", best, torch.linalg.cholesky(best_covariance)))
    zero = torch.zeros(len(NORMAL.points), 2, dtype=torch.float64)
    batch, normal = transitions(NORMAL)
    # The noise in s' runs through all its points for each row; that in s is not read by the critics.
    noise = Noise(normal, normal)
    for name, gain, lower in policies:
        p = cost_to_go(gain)
        entropy = math.log(2 * math.pi) + 1 + lower.diagonal().log().sum()
        constant = (-(curvature(p) @ lower @ lower.T).trace() + alpha * entropy) / (1 - GAMMA)
        policy = LinearQuadratic(gain, quadratic_value(p, constant).repeat(2, 1), lower)
        algorithm = make("sac", policy, *words)
        total, _ = algorithm.loss(policy, batch, noise)
        yield equal("sac", f"critic's slope at soft Q, {name}", torch.zeros(2, 11), *slopes(total, policy.critics))

        # E[alpha log pi - Q] = E[(K* - K) s]_M^2 + tr(M L L^T) - alpha log det L + terms independent of K and L,
        # with M and K* of this Q.
        m = curvature(p)
        greedy = GAMMA * torch.linalg.solve(m, B.T @ p @ A)
        of_gain = -2 * m @ (greedy - gain) @ START
        of_deviation = (2 * m @ lower - alpha * torch.linalg.inv(lower).T).tril()
        states, z = with_moment(START, NORMAL)
        total, _ = soft_actor_loss(algorithm, policy, states, z)
        for part, exact, ours in zip(
            ("mean", "deviation"), (of_gain, of_deviation), slopes(total, policy.actor), strict=True
        ):
            yield equal("sac", f"slope of the {part}, {name}", exact, ours)

    m = curvature(cost_to_go(best))
    value = alpha / 2 * torch.log((math.pi * alpha) ** 2 / torch.linalg.det(m)) / (1 - GAMMA)
    actions, log_probs = policy.act(zero, NORMAL.points)
    drawn = soft_value(policy.target_values(zero, actions), log_probs, torch.tensor(alpha, dtype=torch.float64))
    yield equal(
        "sac", "soft value of the best policy", value, torch.dot(drawn, NORMAL.weights),
        note="alpha log of the integral of exp(Q / alpha), by Gauss's integral",
    )  # fmt: skip
    with torch.no_grad():
        policy.critics.tensors[0].add_(SHIFT)
    total, _ = soft_critic_loss(algorithm, policy, batch, normal)
    yield equal(
        "sac", "critic's slope away from soft Q", pull(batch).repeat(2, 1), *slopes(total, policy.critics),
        note="E[features features^T] (w - w*)",
    )  # fmt: skip
    with torch.no_grad():
        policy.critics.tensors[0].sub_(SHIFT)
    for k, which in enumerate(("first", "second")):
        with torch.no_grad():
            policy.target_critics.tensors[0][k, 0] += 1
        total, _ = soft_critic_loss(algorithm, policy, batch, normal)
        yield equal(
            "sac", f"critic's slope, {which} target too high", torch.zeros(2, 11), *slopes(total, policy.critics)
        )
        with torch.no_grad():
            policy.target_critics.tensors[0][k, 0] -= 1


def temperature() -> Iterator[Check]:
    lower = torch.linalg.cholesky(matrix((0.3, 0.1), (0.1, 0.2)))
    entropy = float(math.log(2 * math.pi) + 1 + lower.diagonal().log().sum())
    for target in (-2.0, 3.0):
        policy = LinearQuadratic(GAIN, quadratic_value(cost_to_go(GAIN), 0).repeat(2, 1), lower)
        algorithm = make("sac", policy, f"algo.target_entropy={target}")
        states, z = with_moment(START, NORMAL)
        total, _ = soft_actor_loss(algorithm, policy, states, z)
        (ours,) = torch.autograd.grad(total, algorithm.log_temperature)
        yield equal(
            "sac", f"slope of log alpha, H_target {target:g}", entropy - target, ours.squeeze(),
            note="alpha falls" if entropy > target else "alpha rises",
        )  # fmt: skip
