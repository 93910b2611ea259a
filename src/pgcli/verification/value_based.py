"""DQN, Q-learning and SARSA: the mean of their updates over all transitions, against dynamic programming.

    -grad E[L] = T Q - Q        for each state and action, when each is tried once

T is the Bellman operator: of optimality for Q-learning and DQN, of the exploring policy for SARSA. So a step of size 1
is one sweep of value iteration, and the semi-gradient vanishes only at the fixed point of T. It is not the gradient of
any function: the target moves with Q, and is not differentiated.

Any other option whose method learns action values is held against the operator of optimality, or, if it declares
`expected_values`, against the operator with these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from pgcli.experiment.config import compose
from pgcli.functional import dynamic_programming as dp
from pgcli.functional.dynamic_programming import MDP
from pgcli.registry import complete, find
from pgcli.types import ActionTable, ActionValues, ControlSpec, Discrete, Transitions
from pgcli.verification.check import Check, along, equal, of_each
from pgcli.verification.method import Method

BUILT_IN = ("dqn", "q_learning", "sarsa")
GAMMA, EPSILON = 0.9, 0.3
JUNK = 7.0
"""Q at a terminal state, which must never be read."""


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    if not only or set(BUILT_IN) & set(only):
        yield from built_in()
    yield from of_each(only, Method, _topics, what="its update")


def _topics(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    if method.option not in BUILT_IN and isinstance(method.role, ActionValues | ActionTable):
        yield sweep_of_its_operator


def sweep_of_its_operator(method: Method) -> Iterator[Check]:
    """The mean step of another option's method, from its Q and at the fixed point of its operator."""
    mdp = world()
    settings = {"gamma": GAMMA, "epsilon_start": EPSILON, "epsilon_end": EPSILON, "loss": "squared"}
    config = method.with_those_of(settings)
    declared = getattr(method.algorithm, "expected_values", None)

    def swept(q: Tensor) -> Tensor:
        return sweep(mdp, q, declared(config, q) if declared else q.amax(-1))

    def moved(q: Tensor) -> Tensor:
        policy = table(method.role, q)
        learner = method.algorithm(policy, config, total_steps=1, seed=0)
        batch = transitions(mdp, explores(q))
        batch = learner.prepare(batch) if hasattr(learner, "prepare") else batch
        total, _ = learner.loss(policy, batch, None)
        [slope] = torch.autograd.grad(total, list(policy.parameters()))
        return -slope

    q = somewhere(mdp, 0)
    of = "its own expected_values" if declared else "the best next action"
    yield along(method.option, "mean step = sweep of its operator", swept(q) - q, moved(q), note=f"with {of}")
    fixed = torch.zeros_like(q)
    for _ in range(1_000):
        fixed = swept(fixed)
    if not torch.allclose(swept(fixed), fixed, rtol=0, atol=1e-12):
        raise ValueError("a thousand sweeps with its expected_values reach no fixed point")
    yield equal(method.option, "mean step at the fixed point", torch.zeros_like(q), moved(fixed))


def built_in() -> Iterator[Check]:
    mdp = world()
    q, still = somewhere(mdp, 0), somewhere(mdp, 3)
    best = dp.lookahead(mdp, dp.value_iteration(mdp, gamma=GAMMA).values, gamma=GAMMA)
    exploring = best_that_explores(mdp)
    zero = torch.zeros_like(q)

    yield equal(
        "q_learning", "mean step = sweep of value iteration", optimality(mdp, q), q + step("q_learning", mdp, q)
    )
    yield equal("q_learning", "mean step at Q*", zero, step("q_learning", mdp, best))

    for name, words in (("", ()), ("expected: ", ("algo.expected=true",))):
        moved = step("sarsa", mdp, q, *words)
        yield equal("sarsa", f"{name}mean step = sweep of policy evaluation", expectation(mdp, q), q + moved)
        yield equal("sarsa", f"{name}mean step at the best Q of exploring", zero, step("sarsa", mdp, exploring, *words))
    loss = expectation(mdp, best) - best
    yield equal(
        "sarsa", "mean step at Q*", loss, step("sarsa", mdp, best),
        note=f"no fixed point: acting with epsilon = {EPSILON} costs up to {float(-loss.min()):.2f}",
    )  # fmt: skip

    for name, words in (("", ()), ("double: ", ("algo.double=true",))):
        chosen = still.amax(-1) if not words else still.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1)
        exact = sweep(mdp, q, chosen)
        yield equal(
            "dqn", f"{name}mean step = sweep from Q_target", exact, q + step("dqn", mdp, q, *words, target=still)
        )
        yield equal("dqn", f"{name}mean step at Q* = Q_target", zero, step("dqn", mdp, best, *words, target=best))
    exact, share = clipped(mdp, q, still)
    yield equal(
        "dqn", "Huber: mean of the clipped errors", exact, step("dqn", mdp, q, "algo.loss=huber", target=still),
        note=f"{share:.0%} of the errors are beyond 1",
    )  # fmt: skip
    yield from overestimation()


# ---------------------------------------------------------------- the world and its exact quantities


def world() -> MDP:
    """Three non-terminal states and a terminal one; transitions are random, and rewards depend on the next state."""
    generator = torch.Generator().manual_seed(6)
    shape = (4, 3, 4)
    transitions = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(min=0.2) - 0.2
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64)
    start = torch.tensor([1, 0, 0, 0], dtype=torch.float64)
    terminal = torch.tensor([False, False, False, True])
    return MDP(transitions / transitions.sum(-1, keepdim=True), rewards, start, terminal)


def somewhere(mdp: MDP, seed: int) -> Tensor:
    """An arbitrary Q, (S, A)."""
    values = torch.randn(mdp.rewards.shape[:2], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.masked_fill(mdp.terminal[:, None], JUNK)


def explores(q: Tensor) -> Tensor:
    """Epsilon-greedy, (S, A), if no two values are equal."""
    greedy = torch.nn.functional.one_hot(q.argmax(-1), q.shape[1]).double()
    return (1 - EPSILON) * greedy + EPSILON / q.shape[1]


def sweep(mdp: MDP, q: Tensor, values: Tensor) -> Tensor:
    """r + gamma P values, (S, A); there are no actions in a terminal state, so its row stays Q's."""
    return dp.lookahead(mdp, values, gamma=GAMMA).where(~mdp.terminal[:, None], q)


def optimality(mdp: MDP, q: Tensor) -> Tensor:
    return sweep(mdp, q, q.amax(-1))


def expectation(mdp: MDP, q: Tensor) -> Tensor:
    return sweep(mdp, q, (explores(q) * q).sum(-1))


def best_that_explores(mdp: MDP) -> Tensor:
    """Q of the best exploring policy, by policy iteration among them (Sutton & Barto 2018, section 5.4)."""
    q, before = torch.zeros(mdp.rewards.shape[:2], dtype=torch.float64), None
    while before is None or not torch.equal(explores(q), before):
        before = explores(q)
        q = dp.lookahead(mdp, dp.policy_evaluation(mdp, before, gamma=GAMMA), gamma=GAMMA)
    return q


def clipped(mdp: MDP, q: Tensor, target: Tensor) -> tuple[Tensor, float]:
    """sum_s' p(s' | s, a) clip(r + gamma max Q_target(s') - Q(s, a), -1, 1), and the share of clipped errors."""
    following = target.amax(-1).masked_fill(mdp.terminal, 0)
    errors = mdp.rewards + GAMMA * following - q[..., None]
    acting = ~mdp.terminal[:, None, None] & (mdp.transitions > 0)
    mean = (mdp.transitions * errors.clamp(-1, 1)).sum(-1).masked_fill(mdp.terminal[:, None], 0)
    return mean, float((errors[acting].abs() > 1).double().mean())


# ---------------------------------------------------------------- the algorithms' own losses


def transitions(mdp: MDP, following: Tensor) -> Transitions:
    """All transitions from each state and action, with weights p(s' | s, a) times `following`(a' | s'), (S, A)."""
    odds = mdp.transitions[..., None] * following
    s, a, successor, next_action = odds.masked_fill(mdp.terminal[:, None, None, None], 0).nonzero(as_tuple=True)
    one_hot = torch.eye(len(mdp.start), dtype=torch.float64)
    return Transitions(
        observations=one_hot[s], actions=a, rewards=mdp.rewards[s, a, successor], next_observations=one_hot[successor],
        terminated=mdp.terminal[successor], next_actions=next_action, weights=odds[s, a, successor, next_action],
    )  # fmt: skip


def algorithm(name: str, states: int, actions: int, *words: str) -> Any:
    """The algorithm with a table in float64."""
    config = compose([
        f"algo={name}", "env=cartpole", "policy=tabular", "tuned=none", f"algo.epsilon_start={EPSILON}",
        f"algo.epsilon_end={EPSILON}", *words,
    ])  # fmt: skip
    chosen: Any = complete("algo", name)
    policy = table(chosen.needs(config.algo), torch.zeros(states, actions, dtype=torch.float64))
    return chosen(policy, config.algo, total_steps=1, seed=0)


def table(role: ActionValues | ActionTable, q: Tensor) -> Any:
    """A tabular policy with these values, (S, A)."""
    config = compose(["algo=dqn", "env=cartpole", "policy=tabular", "tuned=none"]).policy
    spec = ControlSpec((len(q),), Discrete(q.shape[1]), states=len(q))
    tabular: Any = find("policy", "tabular")
    policy = tabular.make(spec, config, role, torch.Generator()).double()
    [entries] = policy.parameters()
    entries.data.copy_(q)
    return policy


def gradient(learner: Any, batch: Transitions, q: Tensor, target: Tensor | None) -> Tensor:
    """The gradient of its loss at Q, (S, A)."""
    if target is not None:
        learner.target.flat.copy_(target.flatten())
        batch = learner.prepare(batch)
    leaf = q.clone().requires_grad_()
    total, _ = learner.loss(lambda observations: observations @ leaf, batch, None)
    return torch.autograd.grad(total, leaf)[0]


def step(name: str, mdp: MDP, q: Tensor, *words: str, target: Tensor | None = None) -> Tensor:
    """-grad E[L] at Q, (S, A): a step of size 1 with each state and action tried once."""
    squared = ("algo.loss=squared",) if name == "dqn" and "algo.loss=huber" not in words else ()
    learner = algorithm(name, *q.shape, f"algo.gamma={GAMMA}", *squared, *words)
    return -gradient(learner, transitions(mdp, explores(q)), q, target)


def overestimation() -> Iterator[Check]:
    """Three actions of value 0, each estimated at +1 or -1 with equal probability, by two networks independently.

    The largest of three is 1 except in one case of eight: 3/4 on average. The action that one network chooses has value
    0 on average for the other (van Hasselt et al. 2016).
    """
    values = torch.tensor(list(product((-1.0, 1.0), repeat=3)), dtype=torch.float64)
    online, target = values.repeat_interleave(8, 0), values.repeat(8, 1)
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    one_hot = torch.eye(65, dtype=torch.float64)
    batch = Transitions(
        observations=one_hot[:1].expand(64, -1), actions=torch.zeros(64, dtype=torch.int64),
        rewards=torch.zeros(64, dtype=torch.float64), next_observations=one_hot[1:],
        terminated=torch.zeros(64, dtype=torch.bool),
    )  # fmt: skip
    for name, words, exact in (("", (), 0.75), ("double: ", ("algo.double=true",), 0.0)):
        learner = algorithm("dqn", 65, 3, "algo.gamma=1", "algo.loss=squared", *words)
        found = gradient(learner, batch, torch.cat([nothing, online]), torch.cat([nothing, target]))
        yield equal(
            "dqn", f"{name}bias of the target", exact, -found[0, 0], note="three actions, each worth 0, valued at ±1"
        )
