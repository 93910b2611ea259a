"""The oracle in language: the text task `oracle`, whose completions can all be enumerated with their probabilities.

Each number is computed in two ways. A method uses completions, masks and log-probs in its own loss as usual, except
that the rows are *all* completions, each with its probability as weight. The exact number comes from the token-level
decision process, in which a prefix is a state and a token an action: it is solved by `functional.dynamic_programming`,
which uses no completions, masks or sums of log-probs. Gradients are those of a small transformer's parameters, or of a
table with one logit per prefix and token.

Padding is the end token, as in many tokenizers, and holds extreme numbers that would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pgcli.environments.text.oracle import END, LENGTH, VOCABULARY, Oracle
from pgcli.experiment.config import compose
from pgcli.functional import dynamic_programming as dp
from pgcli.functional.dynamic_programming import MDP
from pgcli.policies.transformer import Transformer
from pgcli.types import ABSENT, Evaluation, Observations, PolicyFunction, Rollout, Stochastic
from pgcli.verification.oracle import JUNK, evaluate, rows_of

WORDS = VOCABULARY - 1
"""Tokens after which a completion goes on; the last one, END, ends it."""
LEVELS = [sum(WORDS**k for k in range(t)) for t in range(LENGTH + 1)]
"""Index of the first prefix of t tokens among a prompt's prefixes; the last entry is their number."""
PREFIXES = LEVELS[-1]
SETTINGS = ("env=oracle", "policy=transformer", "tuned=none", "policy.width=8", "policy.layers=1", "policy.heads=2",
            "policy.hidden=8", "policy.temperature=0.8")  # fmt: skip
"""A temperature other than 1, to check that it is part of the policy wherever log-probs are computed."""


class Table(nn.Module):
    """A softmax policy over prefixes: one logit per prefix and token, and a value per prefix. float64."""

    unit, has_critic = "sequence", True

    def __init__(self, logits: Tensor, critic: Tensor | None = None) -> None:
        """logits (S, V), or (N, S, V): a separate table for each row."""
        super().__init__()
        self.logits = nn.Parameter(logits.detach().clone())
        self.critic = nn.Parameter(logits.new_zeros(logits.shape[-2]) if critic is None else critic.clone())

    def forward(self, observations: Observations, actions: Tensor) -> Evaluation:
        states = prefixes(observations["prompt"], actions)
        if self.logits.dim() == 2:
            logits = self.logits[states]
        else:
            logits = self.logits[torch.arange(len(states))[:, None], states]
        return evaluate(logits, actions, self.critic[states])

    def once_differentiable(self) -> PolicyFunction:
        return self


class Whole(nn.Module):
    """Any distribution over completions: one logit per prompt and completion, evaluated token by token."""

    unit, has_critic = "sequence", False

    def __init__(self, world: Language, log_probs: Tensor) -> None:
        """log_probs: (B, Y / B)."""
        super().__init__()
        self.world, self.logits = world, nn.Parameter(log_probs.detach().clone())

    def forward(self, observations: Observations, actions: Tensor) -> Evaluation:
        logits = self.world.policy_of(self.log_probs).log()[prefixes(observations["prompt"], actions)]
        return evaluate(logits, actions, torch.zeros_like(actions, dtype=logits.dtype))

    @property
    def log_probs(self) -> Tensor:
        """(B, Y / B)"""
        return self.logits.log_softmax(-1)

    def once_differentiable(self) -> PolicyFunction:
        return self


def prefixes(prompts: Tensor, actions: Tensor) -> Tensor:
    """(N, P), (N, T) -> (N, T): the number of the prefix that each token follows; after an end token, of no token."""
    root = PREFIXES * prompts[:, -1]
    alive, number = torch.ones_like(root, dtype=torch.bool), torch.zeros_like(root)
    found = []
    for t in range(actions.shape[1]):
        found.append(root + torch.where(alive, LEVELS[t] + number, 0))
        alive = alive & (actions[:, t] != END)
        number = WORDS * number + actions[:, t]
    return torch.stack(found, dim=1)


@cache
def settings() -> Any:
    return compose([*SETTINGS, "algo=reinforce"])


@cache
def language() -> Language:
    return Language()


class Language:
    """The task, policies and references for it, and their exact quantities."""

    def __init__(self) -> None:
        self.task = Oracle(settings().env)
        every = self.task.everything()
        self.observations, self.actions, self.mask = every.observations, every.actions, every.mask
        self.rewards = every.rewards.double()
        """(Y,), the completions of one prompt after the other, as in everything with a Y here."""
        self.prompts = self.task.config.prompts
        self.states = prefixes(every.observations["prompt"], every.actions)
        self.last = self.mask & (self.mask.cumsum(1) == self.mask.sum(1, keepdim=True))
        self.ended = self.last & (self.actions == END)
        self.mdp = self._process()

    def _process(self) -> MDP:
        """The token-level decision process. The reward is received at a completion's last token."""
        count = PREFIXES * self.prompts
        transitions = torch.zeros(count + 1, VOCABULARY, count + 1, dtype=torch.float64)
        rewards = torch.zeros_like(transitions)
        start = torch.zeros(count + 1, dtype=torch.float64)
        for prompt in range(self.prompts):
            root = PREFIXES * prompt
            start[root] = 1 / self.prompts
            for t in range(LENGTH):
                for number in range(WORDS**t):
                    s = root + LEVELS[t] + number
                    transitions[s, END, count] = 1
                    for word in range(WORDS):
                        further = root + LEVELS[t + 1] + WORDS * number + word if t + 1 < LENGTH else count
                        transitions[s, word, further] = 1
        s, a = self.states[self.last], self.actions[self.last]
        rewards[s, a, count] = self.rewards
        return MDP(transitions, rewards, start, torch.arange(count + 1) == count)

    # -------------------------------------------------------- policies

    def transformer(self, seed: int = 0, **changes: Any) -> Transformer:
        """A transformer in float64, initialised by the seed."""
        config: Any = settings().policy.model_copy(update=changes)
        generator = torch.Generator().manual_seed(seed)
        policy = Transformer.make(self.task.spec, config, Stochastic(critic=True), generator).double()
        assert isinstance(policy, Transformer)
        return policy

    def table(self, seed: int = 0, moved: float = 0.0) -> Table:
        """A table with a transformer's distribution at each prefix, or with `moved` one away from it, for losses that
        must also be right off-policy.
        """
        logits = self.probabilities(self.transformer(seed)).detach()[:-1].log()
        return Table(logits + moved * torch.cos(torch.arange(logits.numel(), dtype=logits.dtype)).view_as(logits))

    def probabilities(self, policy: Any) -> Tensor:
        """(S, V) of a policy at each prefix, with a gradient; the last row, of a finished text, is meaningless."""
        tokens = torch.full((PREFIXES, LENGTH), END)
        for t in range(1, LENGTH):
            level = torch.cartesian_prod(*[torch.arange(WORDS)] * t).view(-1, t)
            tokens[LEVELS[t] : LEVELS[t + 1], :t] = level
        place = torch.tensor([t for t in range(LENGTH) for _ in range(WORDS**t)]).repeat(self.prompts)
        tokens = tokens.repeat(self.prompts, 1)
        asked = {"prompt": torch.arange(self.prompts).repeat_interleave(PREFIXES)[:, None]}
        logits = policy(asked, tokens).distribution.logits[torch.arange(len(tokens)), place]
        pi = logits.softmax(-1)
        return torch.cat([pi, torch.full_like(pi[:1], 1 / VOCABULARY)])

    # -------------------------------------------------------- exact, of (S, V) tables of probabilities

    def solve(self, pi: Tensor, rewards: Tensor | None = None) -> dp.FiniteHorizon:
        """Values with `rewards` (S, V) in place of the task's."""
        mdp = self.mdp if rewards is None else self.mdp._replace(rewards=rewards[..., None].expand_as(self.mdp.rewards))
        return dp.backward_induction(mdp, LENGTH, gamma=1.0, policy=pi)

    def value(self, pi: Tensor, rewards: Tensor | None = None) -> Tensor:
        """J, or the expected sum of other `rewards`."""
        return dp.expected_return(self.mdp, self.solve(pi, rewards).values[0])

    def moments(self, pi: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the sum of `costs` (S, V) over a completion, by backward induction."""
        first = second = torch.zeros_like(self.mdp.start)
        for _ in range(LENGTH):
            ahead, ahead_square = self.mdp.continuing @ first, self.mdp.continuing @ second
            first, second = (
                (pi * x).sum(-1) for x in (costs + ahead, costs.square() + 2 * costs * ahead + ahead_square)
            )
        mean = self.mdp.start @ first
        return mean, self.mdp.start @ second - mean.square()

    def visits(self, pi: Tensor) -> Tensor:
        """(S,): the probability that a completion passes through each prefix."""
        return dp.visits(self.mdp, pi, LENGTH).sum(0)

    def divergence(self, pi: Tensor, reference: Tensor, visits: Tensor | None = None) -> Tensor:
        """KL(pi || reference) of completions: that of each prefix's next token, over the prefixes that pi visits; or
        over fixed `visits`.
        """
        per_prefix = (pi * (pi.log() - reference.log())).sum(-1)
        return (self.visits(pi) if visits is None else visits) @ per_prefix

    def chances(self, pi: Tensor) -> Tensor:
        """(Y,): the probability of each prompt and completion, token by token along the tree."""
        found = self.mdp.start[self.states[:, 0]]
        for t in range(LENGTH):
            found = found * torch.where(self.mask[:, t], pi[self.states[:, t], self.actions[:, t]], 1)
        return found

    @cached_property
    def scores(self) -> Tensor:
        """(Y, S, V): the tokens of a completion at its prefixes; minus pi there, it is the table's grad log pi(y)."""
        found = torch.zeros(len(self.actions), len(self.mdp.start) - 1, VOCABULARY, dtype=torch.float64)
        row, t = self.mask.nonzero(as_tuple=True)
        found[row, self.states[row, t], self.actions[row, t]] = 1
        return found

    def score(self, pi: Tensor) -> Tensor:
        """(Y, S * V): grad log pi(y | x) with respect to the table's logits."""
        passed = self.scores.sum(-1, keepdim=True)
        return (self.scores - passed * pi[:-1]).flatten(1)

    def likelihoods(self, rollout: Rollout, pi: Tensor) -> Tensor:
        """(N, T): the probability of each token of a rollout; 1 on padding."""
        states = prefixes(rollout.observations["prompt"], rollout.actions)
        return torch.where(rollout.mask, pi[states, rollout.actions], 1)

    def expected_score(self, rollout: Rollout, credit: Tensor, pi: Tensor) -> Tensor:
        """(S * V,): the sum of credit (N, T) times grad log pi of each token, with the softmax's own derivative."""
        states = prefixes(rollout.observations["prompt"], rollout.actions)
        score = nn.functional.one_hot(rollout.actions, VOCABULARY) - pi[states]
        worth = torch.where(rollout.mask, credit, 0)[..., None] * score
        return torch.zeros_like(pi[:-1]).index_put_((states,), worth, accumulate=True).flatten()

    def sequences(self, pi: Tensor) -> Tensor:
        """(B, Y / B): log pi(y | x)."""
        return (self.chances(pi) * self.prompts).log().view(self.prompts, -1)

    def policy_of(self, log_probs: Tensor) -> Tensor:
        """(B, Y / B), a distribution over each prompt's completions -> (S, V), that of the next token, by summation."""
        mass = torch.zeros(len(self.mdp.start), VOCABULARY, dtype=log_probs.dtype)
        each = log_probs.exp().flatten()[:, None].expand_as(self.mask)
        mass = mass.index_put((self.states[self.mask], self.actions[self.mask]), each[self.mask], accumulate=True)
        mass = torch.cat([mass[:-1], torch.ones_like(mass[:1])])
        return mass / mass.sum(-1, keepdim=True)

    # -------------------------------------------------------- every completion

    def rollout(self, pi: Tensor, reference: Tensor | None = None, *, replied: bool = False) -> Rollout:
        """All prompts and completions, each weighted by its probability under `pi`, the policy that wrote them.

        replied: the second token is the task's and not the policy's (`answered`): a hole in the mask.
        """
        pi, s, mask = pi.detach(), self.states, self.mask
        if replied:
            pi, mask = self.answered(pi), mask & (torch.arange(LENGTH) != 1)
        values = self.solve(pi).values[0][s]  # the horizon exceeds the longest completion
        following = values[:, [2, 2, 2]] if replied else values[:, [1, 2, 2]]  # of the policy's next token
        return Rollout(
            observations=self.observations, actions=self.actions, mask=mask,
            rewards=torch.where(self.last, self.rewards[:, None], 0),
            terminated=self.ended, truncated=self.last & ~self.ended,
            log_probs=self._at(pi, mask, -JUNK),
            values=torch.where(mask, values, JUNK),
            # A completion that the limit cut has value 0 after it; after an end token no value is read.
            next_values=torch.where(mask & ~self.ended, torch.where(self.last, 0, following), -JUNK),
            reference_log_probs=ABSENT if reference is None else self._at(reference.detach(), mask, JUNK),
            weights=self.chances(pi),
        )  # fmt: skip

    def answered(self, pi: Tensor) -> Tensor:
        """(S, V): after one token of the policy the task replies with a token, whatever the first was."""
        number = torch.arange(len(pi) - 1) % PREFIXES
        reply = (number >= LEVELS[1]) & (number < LEVELS[2])
        said = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=pi.dtype)
        return torch.cat([torch.where(reply[:, None], said, pi[:-1]), pi[-1:]])

    def groups(self, pi: Tensor, reference: Tensor | None = None, *, size: int = 2, replied: bool = False) -> Rollout:
        """All groups of `size` completions of one prompt: their rows, each with its group's probability."""
        rollout, each = self.rollout(pi, reference, replied=replied), len(self.actions) // self.prompts
        tuples = torch.cartesian_prod(*[torch.arange(each)] * size)
        members = torch.cat([tuples + prompt * each for prompt in range(self.prompts)])
        assert rollout.weights is not None
        weights = (rollout.weights * self.prompts)[members].prod(1) / self.prompts
        groups = torch.arange(len(members)).repeat_interleave(size)
        weights = (weights / size).repeat_interleave(size)
        return replace(rows_of(rollout, members.flatten()), weights=weights, groups=groups)

    def _at(self, table: Tensor, mask: Tensor, elsewhere: float) -> Tensor:
        """(Y, T): log-probs of the tokens that were chosen."""
        return torch.where(mask, table[self.states, self.actions].log(), elsewhere)


def slope(of: Tensor, policy: nn.Module, *, keep: bool = False) -> Tensor:
    """The gradient with respect to all parameters of a policy except its critic's, as one vector."""
    parameters = [p for name, p in policy.named_parameters() if name != "critic"]
    if not of.requires_grad:
        return torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    found = torch.autograd.grad(of, parameters, retain_graph=keep)
    return torch.cat([g.flatten() for g in found])


def minimise(loss: Callable[[], Tensor], x: Tensor, *, within: float = 1e-9) -> None:
    """Broyden, Fletcher, Goldfarb and Shanno's method on a leaf, in place, until its gradient is `within` 0."""

    def slope() -> tuple[float, Tensor]:
        value = loss()
        (gradient,) = torch.autograd.grad(value, [x])
        return float(value.detach()), gradient.flatten()

    identity = torch.eye(x.numel(), dtype=x.dtype)
    inverse, fresh = identity, True
    value, gradient = slope()
    for _ in range(300):  # a limit, because a loss without a minimum falls for ever
        if not float(gradient.abs().max()) > within:
            return
        direction, start, length = -(inverse @ gradient), x.detach().clone(), 1.0
        before, old, downhill = value, gradient, float(gradient @ direction)
        while True:
            x.data = start + length * direction.view_as(x)
            value, gradient = slope()
            if value <= before + 1e-4 * length * downhill or length < 1e-10:
                break
            length /= 2
        moved, bent = length * direction, gradient - old
        curvature = float(moved @ bent)
        if length < 1e-10 or curvature <= 0:
            inverse, fresh = identity, True
            if length < 1e-10:
                return
            continue
        if fresh:
            inverse, fresh = identity * curvature / float(bent @ bent), False
        half = identity - torch.outer(moved, bent) / curvature
        inverse = half @ inverse @ half.T + torch.outer(moved, moved) / curvature
