"""Exact quantities of a finite Markov decision process, by linear algebra.

S states, A actions. A policy is a table of probabilities, (S, A); a softmax policy has one logit for each of them.

    what it is                            function                              Sutton & Barto 2018
    one step of looking ahead             lookahead                             eq. 4.6
    the Bellman equations, as backups     expectation_backup, optimality_backup eq. 4.5, 4.10
    v of a policy                         policy_evaluation                     eq. 4.4
    the best policy                       policy_iteration, value_iteration     sections 4.3, 4.4
    v and q with a finite horizon         backward_induction                    eq. 4.5, one backup for each step
    how often a policy visits a state     visits, discounted_visits             section 9.2, eq. 9.2
    J and its gradient                    expected_return, softmax_gradient     eq. 13.5
    the Fisher information                softmax_fisher                        Kakade 2001, section 3

An episode ends when it enters a terminal state: `MDP.continuing` has probability 0 of entering one. So the backups need
no special case, and the value of a terminal state is 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class MDP(NamedTuple):
    """A finite Markov decision process. Exact in float64."""

    transitions: Tensor
    """(S, A, S): p(s' | s, a). Rows of terminal states are ignored."""
    rewards: Tensor
    """(S, A, S): r(s, a, s'), the reward of the step from s by a to s'."""
    start: Tensor
    """(S,): probability that an episode begins in s; 0 at terminal states."""
    terminal: Tensor
    """(S,) bool."""

    @property
    def expected_rewards(self) -> Tensor:
        """(S, A): r(s, a) = sum_s' p(s' | s, a) r(s, a, s'). Sutton & Barto eq. 3.5."""
        return (self.transitions * self.rewards).sum(-1).masked_fill(self.terminal[:, None], 0)

    @property
    def continuing(self) -> Tensor:
        """(S, A, S): p(s' | s, a) where the episode goes on in s', else 0."""
        ended = self.terminal[:, None, None] | self.terminal
        return self.transitions.masked_fill(ended, 0)


# ---------------------------------------------------------------- the Bellman equations


def lookahead(mdp: MDP, values: Tensor, *, gamma: float) -> Tensor:
    """Action values of one step, if the states after it have the given `values`.

        q(s, a) = sum_s' p(s' | s, a) (r(s, a, s') + gamma v(s'))

    Args:
        values: (S,).

    Returns: (S, A). Source: Sutton & Barto 2018, eq. 4.6.
    """
    return mdp.expected_rewards + gamma * (mdp.continuing @ values)


def expectation_backup(mdp: MDP, policy: Tensor, values: Tensor, *, gamma: float) -> Tensor:
    """One sweep of the Bellman equation of a policy, of which v_pi is the fixed point.

        v'(s) = sum_a pi(a | s) q(s, a)

    Args:
        policy: (S, A).
        values: (S,).

    Returns: (S,). Source: Sutton & Barto 2018, eq. 4.5.
    """
    return (policy * lookahead(mdp, values, gamma=gamma)).sum(-1)


def optimality_backup(mdp: MDP, values: Tensor, *, gamma: float) -> Tensor:
    """One sweep of the Bellman optimality equation, of which v_* is the fixed point.

        v'(s) = max_a q(s, a)

    Args:
        values: (S,).

    Returns: (S,). Source: Sutton & Barto 2018, eq. 4.10.
    """
    return lookahead(mdp, values, gamma=gamma).amax(-1)


# ---------------------------------------------------------------- the value of a policy


def policy_evaluation(mdp: MDP, policy: Tensor, *, gamma: float) -> Tensor:
    """v_pi, from the Bellman equation as a system of S linear equations.

        v = r_pi + gamma P_pi v          P_pi(s, s') = sum_a pi(a | s) p(s' | s, a)

    Args:
        policy: (S, A), may carry a gradient. With gamma = 1 it must reach a terminal state from everywhere.

    Returns: (S,). Source: Sutton & Barto 2018, eq. 4.4.
    """
    rewards = (policy * mdp.expected_rewards).sum(-1)
    return torch.linalg.solve(_identity(mdp) - gamma * _chain(mdp, policy), rewards)


class FiniteHorizon(NamedTuple):
    """values: (H + 1, S), of being in s with H - t steps to go; the last row is 0. action_values: (H, S, A)."""

    values: Tensor
    action_values: Tensor


def backward_induction(mdp: MDP, horizon: int, *, gamma: float, policy: Tensor | None = None) -> FiniteHorizon:
    """Values with a fixed number of steps to go: one backup for each, from the last one back.

        q_t(s, a) = sum_s' p(s' | s, a) (r(s, a, s') + gamma v_{t+1}(s'))        v_H = 0
        v_t(s)    = sum_a pi(a | s) q_t(s, a),  or max_a q_t(s, a) without a policy

    Args:
        policy: (S, A), the same at every step, may carry a gradient; None: the best one, which changes with t.

    Returns: `FiniteHorizon`. Source: Bellman 1957, chapter 3; the backups are Sutton & Barto's eq. 4.5 and 4.10.
    """
    values, action_values = [torch.zeros_like(mdp.start)], []
    for _ in range(horizon):
        q = lookahead(mdp, values[-1], gamma=gamma)
        action_values.append(q)
        values.append(q.amax(-1) if policy is None else (policy * q).sum(-1))
    return FiniteHorizon(torch.stack(values[::-1]), torch.stack(action_values[::-1]))


def expected_return(mdp: MDP, values: Tensor) -> Tensor:
    """J = sum_s start(s) v(s): the expected return of an episode.

    Args:
        values: (S,), at the first step.

    Returns: a scalar. Source: Sutton & Barto 2018, eq. 13.4.
    """
    return mdp.start @ values


# ---------------------------------------------------------------- the best policy


class Solution(NamedTuple):
    """policy: (S, A), deterministic: 0 and 1. values: (S,)."""

    policy: Tensor
    values: Tensor


def greedy(action_values: Tensor, incumbent: Tensor | None = None) -> Tensor:
    """The policy that takes the best action; among equals the incumbent's, otherwise the first.

    Without that preference policy iteration could alternate for ever between equally good policies.

    Args:
        action_values: (S, A).
        incumbent: (S, A), deterministic.

    Returns: (S, A), 0 and 1. Source: Sutton & Barto 2018, eq. 4.9, and the remark to exercise 4.4.
    """
    best = action_values.argmax(-1)
    if incumbent is not None:
        held = incumbent.argmax(-1)
        gain = action_values.amax(-1) - action_values.gather(-1, held[:, None]).squeeze(-1)
        best = torch.where(gain > 1e-12, best, held)
    return torch.nn.functional.one_hot(best, action_values.shape[-1]).to(action_values.dtype)


def policy_iteration(mdp: MDP, *, gamma: float) -> Solution:
    """Evaluate the policy, make it greedy, repeat until it no longer changes: finitely many steps, exactly v_*.

    Args:
        gamma: below 1, unless every policy ends.

    Returns: `Solution`. Source: Howard 1960; Sutton & Barto 2018, section 4.3.
    """
    policy = greedy(mdp.expected_rewards)
    while True:
        values = policy_evaluation(mdp, policy, gamma=gamma)
        improved = greedy(lookahead(mdp, values, gamma=gamma), policy)
        if torch.equal(improved, policy):
            return Solution(policy, values)
        policy = improved


def value_iteration(mdp: MDP, *, gamma: float, tolerance: float = 1e-12) -> Solution:
    """Repeat the optimality backup from v = 0 until nothing moves by more than `tolerance`; then act greedily.

    Args:
        gamma: below 1, unless every policy ends or rewards on the way are negative.

    Returns: `Solution`. Source: Sutton & Barto 2018, section 4.4.
    """
    values, moved = torch.zeros_like(mdp.start), float("inf")
    while moved > tolerance:
        values, old = optimality_backup(mdp, values, gamma=gamma), values
        moved = float((values - old).abs().max())
    return Solution(greedy(lookahead(mdp, values, gamma=gamma)), values)


# ---------------------------------------------------------------- how often a policy visits a state


def visits(mdp: MDP, policy: Tensor, horizon: int) -> Tensor:
    """The probability that the episode has not ended and is in s, at each step.

        d_0 = start        d_{t+1}(s') = sum_s d_t(s) P_pi(s, s')

    Args:
        policy: (S, A).

    Returns: (H, S); a row sums to less than 1 where episodes may have ended.
    """
    chain, found = _chain(mdp, policy), [mdp.start]
    for _ in range(horizon - 1):
        found.append(found[-1] @ chain)
    return torch.stack(found)


def discounted_visits(mdp: MDP, policy: Tensor, *, gamma: float) -> Tensor:
    """How often s is visited in an episode, later visits counting less.

        d(s) = sum_t gamma^t P(s_t = s)        d = start + gamma P_pi^T d

    Times 1 - gamma it is a distribution where episodes never end: the discounted state distribution.

    Args:
        policy: (S, A).

    Returns: (S,). Source: Sutton et al. 2000, theorem 1; Sutton & Barto 2018, eq. 9.2.
    """
    return torch.linalg.solve(_identity(mdp) - gamma * _chain(mdp, policy).T, mdp.start)


def _chain(mdp: MDP, policy: Tensor) -> Tensor:
    """P_pi, (S, S)."""
    return torch.einsum("sa,sat->st", policy, mdp.continuing)


def _identity(mdp: MDP) -> Tensor:
    return torch.eye(len(mdp.start), dtype=mdp.start.dtype)


# ---------------------------------------------------------------- the gradient, and the Fisher information


def softmax_gradient(state_visits: Tensor, policy: Tensor, action_values: Tensor) -> Tensor:
    """The policy gradient theorem for one logit a state and action: the gradient of J with respect to all of them.

        grad J = sum_s d(s) sum_a grad pi(a | s) q(s, a)
        dJ / d theta(s, a) = d(s) pi(a | s) (q(s, a) - sum_b pi(b | s) q(s, b))

    Any function of the state may be taken from q. With a finite horizon, d and q have a leading axis of steps, and d
    carries gamma^t: the sum runs over them too.

    Args:
        state_visits: (S,), as of `discounted_visits`; or (H, S), `visits` times gamma^t.
        policy: (S, A).
        action_values: (S, A) or (H, S, A).

    Returns: (S, A). Source: Sutton et al. 2000, theorem 1; Sutton & Barto 2018, eq. 13.5; for the softmax, Agarwal et
    al. 2021, lemma C.1.
    """
    advantages = action_values - (policy * action_values).sum(-1, keepdim=True)
    return (state_visits[..., None] * policy * advantages).reshape(-1, *policy.shape).sum(0)


def softmax_fisher(state_visits: Tensor, policy: Tensor) -> Tensor:
    """The Fisher information of a tabular softmax, expected over the states that it visits.

        F = sum_s d(s) sum_a pi(a | s) grad log pi(a | s) grad log pi(a | s)^T
        block of s:  d(s) (diag(pi_s) - pi_s pi_s^T)

    Singular: a shift of all logits of a state changes nothing. So is every block that is never visited.

    Args:
        state_visits: (S,).
        policy: (S, A).

    Returns: (S * A, S * A), the logits in the order of `policy.flatten()`. Source: Kakade 2001, section 3.
    """
    blocks = torch.diag_embed(policy) - policy[:, :, None] * policy[:, None, :]
    return torch.block_diag(*(state_visits[:, None, None] * blocks))
