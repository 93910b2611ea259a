"""The oracle: a tabular world so small that every trajectory can be enumerated with its probability.

A Rollout usually holds samples; here its rows are *all* trajectories, each with its exact probability as weight, over
the randomness of policy and world. So an algorithm's own loss becomes an exact expectation, and its required value is
computed independently by `functional.dynamic_programming`.

Padding holds extreme numbers, so that an estimate that reads them is wrong by far.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pgcli.environments.tabular import Random, random_world
from pgcli.functional import dynamic_programming as dp
from pgcli.functional.distributions import Categorical, categorical
from pgcli.functional.dynamic_programming import MDP
from pgcli.types import Evaluation, PolicyFunction, Rollout, each_tensor

JUNK = 7.0
"""Values and log-probs on padding are plus or minus this, so that it does not cancel."""


class Table(nn.Module):
    """A softmax policy and a value per state, in float64: one logit per state and action."""

    unit, has_critic = "sequence", True

    def __init__(self, logits: Tensor, critic: Tensor) -> None:
        super().__init__()
        self.logits, self.critic = nn.Parameter(logits.clone()), nn.Parameter(critic.clone())

    def forward(self, observations: Tensor, actions: Tensor) -> Evaluation:
        """observations (..., S) one-hot, actions (...)."""
        return evaluate(observations @ self.logits, actions, observations @ self.critic)

    def once_differentiable(self) -> PolicyFunction:
        return self

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        return observations @ self.critic

    @property
    def probabilities(self) -> Tensor:
        """(S, A), without a gradient."""
        return self.logits.detach().softmax(-1)


def evaluate(logits: Tensor, actions: Tensor, values: Tensor) -> Evaluation:
    log_probs, entropy = categorical(logits, actions)
    return Evaluation(log_probs, entropy, values, Categorical(logits))


class Oracle:
    """A world, a horizon and a policy, and their exact quantities. At the horizon an episode terminates."""

    def __init__(self, mdp: MDP, horizon: int) -> None:
        self.mdp, self.horizon = mdp, horizon
        states, actions, _ = mdp.transitions.shape
        generator = np.random.Generator(np.random.PCG64(0))
        self.logits = torch.from_numpy(generator.standard_normal((states, actions)))
        self.guess = torch.from_numpy(0.5 * generator.standard_normal(states))
        """(S,): the values of a wrong critic."""
        self.policy = self.logits.softmax(-1)
        self.visits = dp.visits(mdp, self.policy, horizon)
        """(H, S)"""

    def table(self, moved: float = 0.0) -> Table:
        """The policy, or with `moved` one away from it, for losses that must also be right off-policy."""
        direction = torch.cos(torch.arange(self.logits.numel(), dtype=torch.float64)).view_as(self.logits)
        return Table(self.logits + moved * direction, self.guess)

    # -------------------------------------------------------- exact, by dynamic programming

    def solve(self, gamma: float = 1.0) -> dp.FiniteHorizon:
        return dp.backward_induction(self.mdp, self.horizon, gamma=gamma, policy=self.policy)

    def gradient(self, gamma: float = 1.0, *, discounted_states: bool = True) -> Tensor:
        """grad J, (S, A). Without the gamma^t of the states it is what most implementations compute, and not grad J."""
        discounts = gamma ** torch.arange(self.horizon, dtype=torch.float64)[:, None]
        weights = self.visits * discounts if discounted_states else self.visits
        return dp.softmax_gradient(weights, self.policy, self.solve(gamma).action_values)

    @property
    def mean_length(self) -> Tensor:
        return self.visits.sum()

    # -------------------------------------------------------- every trajectory

    def rollout(
        self, values: Tensor | None = None, *, behaviour: Tensor | None = None, cut: int | None = None
    ) -> Rollout:
        """All trajectories, each weighted by its probability.

        Args:
            values: (H + 1, S), the critic's values at each step; None: those of the wrong critic at every step.
            behaviour: (S, A), the behaviour policy; None: the policy.
            cut: truncate after this number of steps, with the true successor's value to bootstrap from.
        """
        mdp, acting = self.mdp, self.policy if behaviour is None else behaviour
        states, steps = len(mdp.start), cut or self.horizon
        values = self.guess.expand(self.horizon + 1, states) if values is None else values
        current = mdp.start.nonzero().squeeze(-1)
        weights = mdp.start[current]
        columns = {name: torch.zeros((len(current), 0), dtype=torch.int64) for name in ("s", "a", "next")}
        open_ = torch.ones(len(current), dtype=torch.bool)
        for _ in range(steps):
            # Each open row becomes one row per action and successor; a row that has ended stays one row.
            odds = acting[current, :, None] * mdp.transitions[current]
            odds[~open_] = 0
            odds[~open_, 0, 0] = 1
            parent, action, successor = odds.nonzero(as_tuple=True)
            weights = weights[parent] * odds[parent, action, successor]
            step = {"s": current[parent], "a": action, "next": successor}
            columns = {name: torch.cat([x[parent], step[name][:, None]], dim=1) for name, x in columns.items()}
            current, open_ = successor, open_[parent] & ~mdp.terminal[successor]
        s, a, following = columns["s"], columns["a"], columns["next"]
        entered = mdp.terminal[following].cumsum(1)
        ended = mdp.terminal[following] & (entered == 1)
        mask = (entered - ended.long()) == 0
        last = torch.zeros_like(mask)
        last[:, -1] = mask[:, -1]
        terminated = ended | last if steps == self.horizon else ended & mask
        truncated = mask & last & ~terminated
        t = torch.arange(steps)
        return Rollout(
            observations=nn.functional.one_hot(s, states).double(),
            actions=a,
            rewards=torch.where(mask, mdp.rewards[s, a, following], 0),
            terminated=terminated,
            truncated=truncated,
            mask=mask,
            log_probs=torch.where(mask, acting.log()[s, a], -JUNK),
            values=torch.where(mask, values[t, s], JUNK),
            next_values=torch.where(mask & ~terminated, values[t + 1, following], -JUNK),
            weights=weights,
        )

    def groups(self, size: int, **settings: Any) -> Rollout:
        """All groups of `size` trajectories with one initial state: their rows, each with its group's probability."""
        rollout = self.rollout(**settings)
        assert rollout.weights is not None
        first = rollout.observations[:, 0].argmax(-1)
        members, weights = [], []
        for s in first.unique():
            rows = (first == s).nonzero().squeeze(-1)
            chance = rollout.weights[rows] / rollout.weights[rows].sum()
            tuples = torch.cartesian_prod(*[torch.arange(len(rows))] * size)
            members.append(rows[tuples])
            weights.append(self.mdp.start[s] * chance[tuples].prod(1))
        indices = torch.cat(members)
        count = len(indices)
        return replace(
            rows_of(rollout, indices.flatten()),
            weights=(torch.cat(weights) / size).repeat_interleave(size),
            groups=torch.arange(count).repeat_interleave(size),
        )

    # -------------------------------------------------------- exact, by summation

    def expected_score(self, rollout: Rollout, credit: Tensor, *, at: Tensor | None = None) -> Tensor:
        """sum over rows of weight * sum_t credit_t grad log pi(a_t | s_t), (S, A), with the softmax's own derivative.

        Args:
            credit: (N, T).
            at: (S, A), the policy of the score; None: the oracle's.
        """
        assert rollout.weights is not None
        policy = self.policy if at is None else at
        s = rollout.observations.argmax(-1)
        score = nn.functional.one_hot(rollout.actions, policy.shape[1]) - policy[s]
        worth = torch.where(rollout.mask, rollout.weights[:, None] * credit, 0)[..., None] * score
        return torch.zeros_like(policy).index_put_((s,), worth, accumulate=True)


def rows_of(rollout: Rollout, indices: Tensor) -> Rollout:
    """The rows at `indices`, which may repeat."""
    return Rollout(**{
        k: each_tensor(v, lambda x: x[indices])
        for k, v in vars(rollout).items()
        if isinstance(v, Tensor) or k == "observations"
    })  # fmt: skip


def reward_to_go(rollout: Rollout, gamma: float = 1.0) -> Tensor:
    """(N, T), column by column from the end."""
    found = torch.zeros_like(rollout.rewards)
    ahead = torch.zeros_like(rollout.rewards[:, 0])
    for t in reversed(range(found.shape[1])):
        ahead = torch.where(rollout.mask[:, t], rollout.rewards[:, t] + gamma * ahead, 0)
        found[:, t] = ahead
    return found


def angle(a: Tensor, b: Tensor) -> float:
    """The angle between two directions, in degrees."""
    cosine = (a * b).sum() / (a.norm() * b.norm())
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def each_row_its_own(table: Table, rows: int) -> tuple[PolicyFunction, Tensor]:
    """A policy with separate logits for each row, (N, S, A): one backward pass gives every row's gradient."""
    leaf = table.logits.detach().expand(rows, -1, -1).clone().requires_grad_()

    def policy(observations: Tensor, actions: Tensor) -> Evaluation:
        return evaluate(observations @ leaf, actions, observations @ table.critic)

    return policy, leaf


# ---------------------------------------------------------------- the worlds


def _with_surprises(mdp: MDP) -> MDP:
    """Makes rewards depend also on the next state, so that returns are random."""
    return mdp._replace(rewards=mdp.rewards + torch.linspace(-1, 1, len(mdp.start), dtype=torch.float64))


def ending() -> Oracle:
    """Two start states, three non-terminal states, one terminal state: lengths differ. 222 trajectories."""
    world = random_world(Random(states=4, actions=3, branching=2, terminal=1, seed=4))
    return Oracle(_with_surprises(world)._replace(start=torch.tensor([0.6, 0.4, 0, 0], dtype=torch.float64)), 3)


def small() -> Oracle:
    """A similar world with two steps and two actions, small enough to enumerate groups of three."""
    world = random_world(Random(states=4, actions=2, branching=2, terminal=1, seed=37))
    return Oracle(_with_surprises(world)._replace(start=torch.tensor([0.7, 0.3, 0, 0], dtype=torch.float64)), 2)


def endless() -> Oracle:
    """No terminal state: every episode has three steps, so that a shift of rewards shifts every return equally."""
    return Oracle(_with_surprises(random_world(Random(states=2, actions=2, branching=2, terminal=0, seed=1))), 3)


def bandit(rewards: Tensor, policy: Tensor) -> Oracle:
    """One step, one state per row of `rewards`, (S, A), all equally likely; actions by `policy`, (S, A)."""
    count, actions = rewards.shape
    stay = torch.eye(count, dtype=torch.float64)[:, None].expand(count, actions, count)
    start = torch.full((count,), 1 / count, dtype=torch.float64)
    mdp = MDP(stay, rewards[..., None].expand(count, actions, count), start, torch.zeros(count, dtype=torch.bool))
    oracle = Oracle(mdp, 1)
    oracle.logits, oracle.policy = policy.log(), policy
    return oracle


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)
