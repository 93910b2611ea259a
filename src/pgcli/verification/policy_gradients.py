"""The policy gradients: every method that follows one, through its own `prepare` and `loss`, against exact grad J.

The condition of most rows: horizon fixed, gamma 1, the policy term alone, advantages not whitened, summed over an
episode's steps and averaged over episodes, before any clip and before the optimiser. `NEUTRAL` is how a method's own
settings are brought there, wherever it has such a setting; so a plug-in is checked like a built-in. The rows after the
first then take one condition away at a time, and say what becomes of the gradient: the bias is predicted, not excused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cache, cached_property
from itertools import pairwise, product
from typing import Any, get_args

import torch
from pydantic import ValidationError
from torch import Tensor

from pgcli.experiment.config import compose
from pgcli.functional import dynamic_programming as dp
from pgcli.functional.kl import k1, k2, k3, k3_corrected
from pgcli.functional.masked import weighted_sum
from pgcli.functional.policy_loss import policy_gradient
from pgcli.registry import find
from pgcli.types import Batch, Rollout, Stochastic
from pgcli.verification import oracle as oracles
from pgcli.verification.check import Check, at_most, equal, of_each, safely
from pgcli.verification.oracle import Oracle, Table, angle, each_row_its_own, reward_to_go, rows_of

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "surrogate": ("clipped",),
    "dual_clip": (None,),
    "gamma": (1.0,),
    "gae_lambda": (1.0,),
    "normalise_advantages": ("none", False),
    "baseline": ("none",),
    "advantage": ("centred",),
    "aggregation": ("sequence_sum",),
    "aggregation_length": (None,),
    "entropy_coefficient": (0.0,),
    "clip_range_value": (None,),
    "kl_penalty": ({"coefficient": 0.0, "target": None},),
}
"""Setting -> the first of these values that it can have."""
LAMBDAS = (0.0, 0.5, 0.95, 1.0)
GROUP = 2
ODDS = (
    torch.tensor([[1.0, -0.5, 2.0], [0.3, 1.5, -1.0]], dtype=torch.float64),
    torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64),
)
"""Rewards and probabilities of a bandit with two states and three actions."""
EPSILON = 1e-6
"""What a group's deviation is increased by before it divides (`algorithms.grpo`)."""


@cache
def configured(option: str) -> Any:
    """A method's settings, of which the world decides none. Topics ask for them one after the other."""
    return compose([f"algo={option}", "env=garnet", "tuned=none"]).algo


class Method:
    """An algorithm as `conf/algo/<option>.yaml` has it, to be made with other settings."""

    def __init__(self, option: str) -> None:
        self.option = option
        self.config: Any = configured(option)
        self.algorithm: Any = find("algo", self.config.name)
        self.neutral = self.config
        for setting, values in NEUTRAL.items():
            fitting = [value for value in values if self.can(setting, value, self.neutral)]
            self.neutral = self.having(self.neutral, {setting: fitting[0]}) if fitting else self.neutral

    def having(self, config: Any, changes: dict[str, Any]) -> Any:
        return type(config).model_validate(config.model_dump() | changes)

    def can(self, setting: str, value: Any, config: Any = None) -> bool:
        """Whether there is such a setting, and it can have this value (in another config than its own)."""
        try:
            return self.having(config or self.config, {setting: value}).model_dump()[setting] == value
        except (ValidationError, KeyError):
            return False

    def has(self, setting: str) -> bool:
        return setting in type(self.config).model_fields

    def choices(self, setting: str) -> tuple[Any, ...]:
        """What a setting of a few words can be."""
        return get_args(type(self.config).model_fields[setting].annotation) if self.has(setting) else ()

    def collects(self, *ways: str) -> bool:
        return bool(set(ways) & set(self.algorithm.collects))

    @property
    def grouped(self) -> bool:
        return not self.collects("segments", "episodes", "gradients")

    @property
    def stochastic(self) -> bool:
        return isinstance(self.algorithm.needs(self.config), Stochastic)

    def critic(self, **settings: Any) -> bool:
        return self.algorithm.needs(self.having(self.neutral, settings)).critic

    def make(self, table: Any, **settings: Any) -> Any:
        return self.algorithm(table, self.having(self.neutral, settings), total_steps=1_000, seed=0)

    def loss(self, table: Any, rollout: Rollout, *, policy: Any = None, **settings: Any) -> Tensor:
        """What it minimises, prepared with `table` and taken at `policy` (the table itself, if None)."""
        one = self.make(table, **settings)
        return one.loss(policy or table, one.prepare(rollout), None)[0]

    def ascent(self, table: Table, rollout: Rollout, *, at: Table | None = None, **settings: Any) -> Tensor:
        """(S, A): where it moves the logits, minus the gradient of what it minimises, as a sum over an episode."""
        loss = self.loss(table, rollout, policy=at, **settings) * self.scale(rollout)
        (gradient,) = torch.autograd.grad(loss, [(at or table).logits], allow_unused=True)
        return torch.zeros_like(table.logits) if gradient is None else -gradient

    def scale(self, rollout: Rollout) -> Tensor | float:
        """What makes a mean over actions a sum over an episode; 1 if it is one."""
        return _mean_length(rollout) if self.per_action else 1.0

    @cached_property
    def per_action(self) -> bool:
        """Whether it takes the mean over actions, and has no setting to change that: the nearer of the two."""
        if self.has("aggregation"):
            return False
        oracle, rollout, exact = _case(self)
        table = oracle.table()
        (loss,) = torch.autograd.grad(self.loss(table, rollout), [table.logits])
        return bool((loss * oracle.mean_length + exact).norm() < (loss + exact).norm())


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    """Rows of the algorithms in `only`; of all and of what they share, if it is empty."""
    if not only:
        for shared in SHARED:
            yield from safely("", shared)
    yield from of_each(only, Method, _topics, what="its loss")


def _topics(method: Method) -> Iterator[Callable[[Method], Iterator[Check]]]:
    """What there is to say of a method, by what it collects and which settings it has."""
    if not method.stochastic:
        return
    if method.collects("demonstrations"):
        yield maximum_likelihood
    if not method.collects("segments", "episodes", "groups", "gradients") or method.has("selection"):
        return  # the topics `language` and `preferences` speak of these
    yield gradient_of_the_return
    yield from (group_statistics, a_shift_of_the_reward) if method.grouped else (discounting, a_wrong_critic)
    if method.collects("segments", "gradients"):
        yield truncation
    if method.has("gae_lambda"):
        yield trading_bias_for_variance
    if method.has("baseline"):
        yield baselines
    yield off_the_behaviour_policy
    if method.has("clip") or method.has("clip_range"):
        yield four_corners
    if method.has("surrogate"):
        yield its_own_surrogate
    if method.has("advantage") and method.config.advantage == "maxrl":
        yield likelihood_of_success
    if method.has("clip_range_value"):
        yield value_clipping
    yield adding_up
    if method.has("entropy_coefficient"):
        yield entropy_bonus
    if method.has("value_coefficient") or hasattr(method.algorithm, "value_loss"):
        yield fitting_the_values


# ---------------------------------------------------------------- one method at a time


def _case(method: Method) -> tuple[Oracle, Rollout, Tensor]:
    """What the method learns from, enumerated, and the gradient that it must have."""
    if not method.grouped:
        oracle = oracles.ending()
        return oracle, oracle.rollout(oracle.solve().values), oracle.gradient()
    oracle = oracles.small()
    # A group's mean contains the episode's own return: a share 1/K of the gradient cancels itself.
    share = (GROUP - 1) / GROUP if method.can("advantage", "centred") else 1.0
    return oracle, oracle.groups(GROUP), oracle.gradient() * share


def gradient_of_the_return(method: Method) -> Iterator[Check]:
    """The first condition of all: at the behaviour parameters, E[-grad L] = grad J."""
    oracle, rollout, exact = _case(method)
    quantity = note = ""
    if method.grouped:
        note = f"over all groups of K = {GROUP} with one initial state"
    if method.can("advantage", "centred"):
        quantity, note = "(K-1)/K ", f"{note}: the mean contains its own return"
    elif method.has("clip_range"):
        note = "of the surrogate, at ratio 1"
    if method.per_action:
        note = f"a mean over actions: times the mean length{'; ' * bool(note)}{note}"
    yield equal(method.option, f"{quantity}grad J", exact, method.ascent(oracle.table(), rollout), note=note)


def discounting(method: Method) -> Iterator[Check]:
    """With gamma < 1, reward-to-go forgets gamma^t: that is the gradient of no objective, and known."""
    if not method.has("gamma"):
        return
    gamma, oracle = 0.8, oracles.ending()
    ours = method.ascent(oracle.table(), oracle.rollout(oracle.solve(gamma).values), gamma=gamma)
    exact, usual = oracle.gradient(gamma), oracle.gradient(gamma, discounted_states=False)
    bias, turned = float((usual - exact).norm()), angle(usual, exact)
    kept = (ours - exact).norm() < (ours - usual).norm()
    if kept:
        yield equal(method.option, f"grad J, gamma {gamma}", exact, ours, note="unbiased: gamma^t is kept")
    else:
        note = f"drops gamma^t: predicted bias {bias:.3g}, {turned:.1f} degrees from grad J"
        yield equal(method.option, f"biased grad J, gamma {gamma}", usual, ours, note=note)


def a_wrong_critic(method: Method) -> Iterator[Check]:
    """A critic that is only a baseline may be as wrong as it likes; one that is bootstrapped from may not."""
    if not method.critic():
        return
    oracle = oracles.ending()
    ours = method.ascent(oracle.table(), oracle.rollout())
    exact, biased = oracle.gradient(), _gae_gradient(oracle, 0.0)
    if (ours - exact).norm() < (ours - biased).norm():
        yield equal(method.option, "grad J, wrong V", exact, ours, note="V is a baseline only")
    else:
        bias = float((biased - exact).norm())
        note = f"bootstraps from V after one step: predicted bias {bias:.3g}"
        yield equal(method.option, "biased grad J, wrong V", biased, ours, note=note)


def truncation(method: Method) -> Iterator[Check]:
    """A segment that is cut goes on in V: with the exact one, the gradient is that of the steps it has."""
    if not method.critic():
        return
    oracle, cut = oracles.ending(), 2
    solved = oracle.solve()
    exact = dp.softmax_gradient(oracle.visits[:cut], oracle.policy, solved.action_values[:cut])
    ours = method.ascent(oracle.table(), oracle.rollout(solved.values, cut=cut))
    yield equal(
        method.option, "grad J, cut segments", exact, ours, note="the first 2 of 3 steps, bootstrapped from exact V"
    )


def trading_bias_for_variance(method: Method) -> Iterator[Check]:
    """lambda: without effect on the expectation where V is exact, and the price of variance where it is not."""
    oracle = oracles.ending()
    table, solved = oracle.table(), oracle.solve()
    right, wrong = oracle.rollout(solved.values), oracle.rollout()

    unbiased = torch.stack([method.ascent(table, right, gae_lambda=lam) for lam in LAMBDAS])
    exact = oracle.gradient().expand_as(unbiased)
    several = ", ".join(f"{lam:g}" for lam in LAMBDAS)
    yield equal(method.option, "grad J, exact V, any lambda", exact, unbiased, note=f"lambda {several}")

    predicted = torch.stack([_gae_gradient(oracle, lam) for lam in LAMBDAS])
    ours = torch.stack([method.ascent(table, wrong, gae_lambda=lam) for lam in LAMBDAS])
    biases = (predicted - exact).flatten(1).norm(dim=1)
    note = f"lambda {several}: predicted bias {_list(biases)}"
    yield equal(method.option, "biased grad J, wrong V, any lambda", predicted, ours, note=note)

    variances = torch.stack([_gae_variance(oracle, lam) for lam in LAMBDAS])
    found = []
    for lam in LAMBDAS:
        batch = method.make(table, gae_lambda=lam).prepare(wrong)
        found.append(_variance_of_estimates(oracle, wrong, batch.advantages))
    note = f"lambda {several}: predicted variance {_list(variances)}"
    yield equal(method.option, "variance of A, wrong V", variances, torch.stack(found), note=note)


def baselines(method: Method) -> Iterator[Check]:
    """What is subtracted from the return changes no expectation; what it does to the variance depends."""
    choices = method.choices("baseline")
    oracle = oracles.ending()
    for choice in choices:
        ours = method.ascent(oracle.table(), oracle.rollout(), baseline=choice)
        note = "a constant here; in a batch, see the next" if choice == "mean" else ""
        if choice != "none":
            yield equal(method.option, f"grad J, baseline {choice}", oracle.gradient(), ours, note=note)
    if "mean" in choices:
        yield from _batch_mean(method)
    if not {"none", "value"} <= set(choices):
        return

    level, shift = oracles.endless(), 5.0
    shifted = oracles.endless()
    shifted.mdp = shifted.mdp._replace(rewards=shifted.mdp.rewards + shift)
    variances = {}
    for name, world in (("r", level), (f"r + {shift:g}", shifted)):
        values = world.solve().values
        for choice, subtracted in (("none", torch.zeros_like(values)), ("value", values)):
            rollout = world.rollout(values)
            exact = _gradient_variance(world, rollout, subtracted)
            ours = _variance_through(method, world, rollout, baseline=choice)
            variances[choice, name] = float(exact)
            note = ""
            if choice == "none" and name != "r":
                note = f"{variances[choice, name] / variances[choice, 'r']:.0f} times that without the shift"
            if choice == "value":
                note = "the shift changes nothing: that is a baseline's gift" if name != "r" else "with exact V"
            yield equal(method.option, f"variance, baseline {choice}, {name}", exact, ours, note=note)
    gift = [variances["value", name] for name in ("r", f"r + {shift:g}")]
    yield equal(method.option, "variance, baseline value: both", gift[0], gift[1], note="shift-invariant")

    rare = oracles.bandit(_row(1.0, 0.0), _row(0.9, 0.1))  # the good action is the common one
    values = rare.solve().values
    rollout = rare.rollout(values)
    without = _gradient_variance(rare, rollout, torch.zeros_like(values))
    exact = _gradient_variance(rare, rollout, values)
    note = f"of a rare action, {float(exact / without):.1f} times that without: a baseline does not always lower it"
    ours = _variance_through(method, rare, rollout, baseline="value")
    yield equal(method.option, "variance, baseline value, bandit", exact, ours, note=note)


def _batch_mean(method: Method) -> Iterator[Check]:
    """A batch's mean contains each episode's own return. In one-step episodes: (N-1)/N of the gradient is left."""
    oracle = oracles.bandit(*ODDS)
    every, table = oracle.rollout(), oracle.table()
    assert every.weights is not None
    rows = len(every.weights)
    total = torch.zeros_like(oracle.policy)
    for pair in product(range(rows), repeat=2):
        drawn = torch.tensor(pair)
        batch = replace(rows_of(every, drawn), weights=None)
        total += every.weights[drawn].prod() * method.ascent(table, batch, baseline="mean")
    note = "the mean of a batch of 2: predicted (N-1)/N grad J"
    yield equal(method.option, "biased grad J, baseline mean", oracle.gradient() / 2, total, note=note)


def group_statistics(method: Method) -> Iterator[Check]:
    """Divided by its group's deviation, a return is no longer that of J: another direction, enumerated by itself."""
    if not method.can("advantage", "standardised"):
        return
    oracle = oracles.small()
    for size in (2, 3):
        rollout = oracle.groups(size)
        returns = reward_to_go(rollout)[:, 0].view(-1, size)
        deviation = (returns - returns.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        credit = ((returns - returns.mean(1, keepdim=True)) / (deviation + EPSILON)).view(-1, 1)
        exact = oracle.expected_score(rollout, credit.expand_as(rollout.rewards))
        ours = method.ascent(oracle.table(), rollout, advantage="standardised")
        note = f"{angle(exact, oracle.gradient()):.1f} degrees from grad J: dividing by the deviation turns it"
        yield equal(method.option, f"standardised, groups of {size}", exact, ours, note=note)


def a_shift_of_the_reward(method: Method) -> Iterator[Check]:
    """A baseline's gift: a constant that is added to every return changes no episode's gradient, in any sample."""
    oracle = oracles.bandit(*ODDS)
    rollout, shift = oracle.groups(GROUP), 5.0
    table = oracle.table()
    policy, leaf = each_row_its_own(table, len(rollout.rewards))

    def each(rewards: Tensor) -> Tensor:
        loss = method.loss(table, replace(rollout, rewards=rewards), policy=policy)
        return torch.autograd.grad(loss, [leaf])[0]

    level, shifted = each(rollout.rewards), each(rollout.rewards + shift)
    if (level - shifted).norm() < level.norm():  # there is a baseline
        yield equal(method.option, f"each gradient, r and r + {shift:g}", level, shifted, note="shift-invariant")


def off_the_behaviour_policy(method: Method) -> Iterator[Check]:
    """A surrogate, its clip opened wide, at parameters that have moved: importance weights make up for it."""
    opened: dict[str, Any] = {}
    if method.has("clip_range") and method.config.clip_range is not None:
        opened["clip_range"] = 1e9
    if method.has("clip"):
        opened["clip"] = {"low": 1.0, "high": 1e9}
    oracle, rollout, _ = _case(method)
    table, moved = oracle.table(), oracle.table(moved=0.5)
    likelier = replace(rollout, log_probs=rollout.log_probs - 1.0)
    ours = method.ascent(table, rollout, at=moved, **opened)
    if torch.equal(ours, method.ascent(table, likelier, at=moved, **opened)):
        return  # it knows nothing of the behaviour policy: one step a batch
    there = moved.probabilities
    if method.grouped:
        returns = reward_to_go(rollout)[:, :1].view(-1, GROUP)
        credit = returns - returns.flip(1)  # leave one out, of two
        if method.can("advantage", "centred"):
            credit = credit / 2
        s = rollout.observations.argmax(-1)
        ratio = there[s, rollout.actions] / oracle.policy[s, rollout.actions]
        exact = oracle.expected_score(rollout, ratio * credit.view(-1, 1), at=there)
    else:
        exact = dp.softmax_gradient(oracle.visits, there, oracle.solve().action_values)
    note = "off the behaviour policy, the clip open: weighted by the ratio"
    yield equal(method.option, "grad of the surrogate", exact, ours, note=note)


def four_corners(method: Method) -> Iterator[Check]:
    """Outside the clip range the gradient is zero in two corners, and not in the two where the policy went wrong."""
    settings: dict[str, Any]
    low, high = 0.2, 0.3
    if method.has("clip"):
        settings = {"clip": {"low": low, "high": high}}
    elif method.config.clip_range is not None:
        settings, high = {"clip_range": low}, low
    else:
        return
    above, below = 1 + 1.1 * high, 1 - 1.1 * low
    corners = (
        ("A > 0, ratio above: clipped", 1.0, above, False),
        ("A < 0, ratio above: pulled back", -1.0, above, True),
        ("A > 0, ratio below: pulled back", 1.0, below, True),
        ("A < 0, ratio below: clipped", -1.0, below, False),
        ("A > 0, inside", 1.0, 1 + 0.9 * high, True),
        ("A < 0, inside", -1.0, 1 - 0.9 * low, True),
    )
    # One episode of one step for each, in a state of its own; two by two they are groups whose mean is 0.
    count = len(corners)
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(count, 3)
    oracle = oracles.bandit(torch.zeros_like(policy), policy)
    ratios = torch.tensor([ratio for _, _, ratio, _ in corners], dtype=torch.float64)[:, None]
    rewards = torch.tensor([a for _, a, _, _ in corners], dtype=torch.float64)[:, None]
    ended = torch.ones((count, 1), dtype=torch.bool)
    rollout = Rollout(
        observations=torch.eye(count, dtype=torch.float64)[:, None], actions=torch.ones((count, 1), dtype=torch.int64),
        rewards=rewards, terminated=ended, truncated=~ended, mask=ended, log_probs=policy[:, 1:2].log() - ratios.log(),
        values=torch.zeros_like(rewards), next_values=torch.zeros_like(rewards), groups=torch.arange(count) // 2,
        weights=torch.full((count,), 1 / count, dtype=torch.float64),
    )  # fmt: skip
    ours = method.ascent(oracle.table(), rollout, **settings) * count
    score = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64) - policy[0]
    for i, (name, advantage, ratio, flows) in enumerate(corners):
        exact = advantage * ratio * score if flows else torch.zeros(3, dtype=torch.float64)
        note = "outside the clip range, and not zero" if flows and not 1 - low <= ratio <= 1 + high else ""
        yield equal(method.option, name, exact, ours[i], note=note)


def its_own_surrogate(method: Method) -> Iterator[Check]:
    """What a GRPO variant does with the ratio, on the behaviour policy and off it, each row added up by itself."""
    name, config = method.config.surrogate, method.config
    if name == "clipped":
        return  # the corners
    oracle, rollout, exact = _case(method)
    settings: dict[str, Any] = {"surrogate": name, "clip": {"low": 0.3, "high": 0.1}}
    lengths = rollout.mask.sum(1, keepdim=True)
    if name == "gspo":
        settings["aggregation"] = "sequence_mean"
        exact = oracle.expected_score(rollout, _credit(method, rollout) / lengths)
    ours = method.ascent(oracle.table(), rollout, **settings)
    note = f"{name} at ratio 1: the gradient of the expected return, divided by lengths" if name == "gspo" else ""
    yield equal(method.option, "grad at ratio 1", exact, ours, note=note or f"{name}: the policy gradient")

    moved = oracle.table(moved=0.8)
    there, s = moved.probabilities, rollout.observations.argmax(-1)
    log_ratio = torch.where(rollout.mask, (there / oracle.policy).log()[s, rollout.actions], 0)
    credit = _credit(method, rollout)
    up = credit > 0
    match name:
        case "gspo":
            ratio = (log_ratio.sum(1, keepdim=True) / lengths).exp().expand_as(log_ratio)
            held = torch.where(up, ratio > 1.1, ratio < 0.7)
            weight = torch.where(held, 0, ratio / lengths)
            note = f"a whole episode's ratio: {float(held[:, 0].double().mean()):.0%} of the rows are clipped"
        case "cispo":
            weight = log_ratio.exp().clamp(0.7, 1.1)
            note = "a clipped weight, and no action without its gradient"
        case "sapo":
            tau = torch.where(up, config.gate.positive, config.gate.negative)
            p = (tau * (log_ratio.exp() - 1)).sigmoid()
            weight = 4 * p * (1 - p) * log_ratio.exp()
            note = "4 p (1 - p) times the ratio"
        case _:
            raise AssertionError(name)
    exact = oracle.expected_score(rollout, weight * credit, at=there)
    ours = method.ascent(oracle.table(), rollout, at=moved, **settings)
    yield equal(method.option, f"grad of {name}, moved", exact, ours, note=note)


def likelihood_of_success(method: Method) -> Iterator[Check]:
    """MaxRL: with groups of K, for rewards of 0 or 1, the gradient of sum_{k<K} pass@k / k, and not that of the return.

    log p = -sum_k (1 - p)^k / k: these are the first terms of the likelihood, up to a constant.
    """
    oracle = oracles.bandit(_row(1.0, 0.0, 0.0), _row(0.2, 0.5, 0.3))
    score = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - oracle.policy
    p = oracle.policy[0, 0]
    for size in (2, 3, 4):
        slope = sum((1 - p) ** (k - 1) for k in range(1, size))  # d/dp of pass@k is k (1 - p)^(k - 1)
        ours = method.ascent(oracle.table(), oracle.groups(size), advantage="maxrl")
        note = f"the sum of pass@k / k for k < {size}; log p weights by {float(1 / p):g}, this by {float(slope):.3g}"
        yield equal(method.option, f"grad, groups of {size}", slope * p * score, ours, note=note)


def value_clipping(method: Method) -> Iterator[Check]:
    """A clipped V stops where it has come nearer to its target by enough, and nowhere else."""
    held = 0.2
    # V, its target, and 2 (V - target) or 0; V_old is 0.
    cases = (
        (1.0, 3.0, 0.0),
        (1.0, 0.0, 2.0),
        (-1.0, -3.0, 0.0),
        (-1.0, 0.0, -2.0),
        (0.1, 1.0, -1.8),
        (-0.1, -1.0, 1.8),
    )
    v, target, exact = torch.tensor(cases, dtype=torch.float64).T
    count = len(cases)
    oracle = oracles.bandit(target[:, None], torch.ones((count, 1), dtype=torch.float64))
    table = Table(oracle.logits, v)
    loss = method.loss(
        table, oracle.rollout(torch.zeros((2, count), dtype=torch.float64)), clip_range_value=held, value_coefficient=1
    )
    (ours,) = torch.autograd.grad(loss, [table.critic])
    note = "nearer by enough: 0; farther, or within the range: twice the error"
    yield equal(method.option, "grad of the clipped value loss", exact / count, ours, note=note)


def adding_up(method: Method) -> Iterator[Check]:
    """How actions are weighted, and that cutting a batch into minibatches changes none of it."""
    oracle, rollout, exact = _case(method)
    table = oracle.table()
    length = 7.0
    predicted = {"token_mean": exact / oracle.mean_length, "constant": exact / length}
    notes = {"token_mean": "predicted: divided by the mean length", "constant": f"predicted: divided by {length:g}"}
    for choice in method.choices("aggregation"):
        settings = {"aggregation": choice} | ({"aggregation_length": length} if choice == "constant" else {})
        if choice == "sequence_mean":
            credit = _credit(method, rollout) / rollout.mask.sum(1, keepdim=True)
            predicted[choice] = oracle.expected_score(rollout, credit)
            turned = angle(predicted[choice], exact)
            notes[choice] = f"an action of a long episode counts less: {turned:.1f} degrees from grad J"
        if choice in predicted:
            ours = method.ascent(table, rollout, **settings)
            yield equal(method.option, f"grad, {choice}", predicted[choice], ours, note=notes[choice])

    one = method.make(table)
    batch = one.prepare(rollout)
    if isinstance(batch, Batch):
        pieces = batch.single_actions()
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
        total = sum(one.loss(table, piece, None)[0] for piece in pieces.minibatches(5, order)) / 5
        total = total * method.scale(rollout)
        (ours,) = torch.autograd.grad(total, [table.logits])
        yield equal(
            method.option,
            "grad, in 5 minibatches",
            exact,
            -ours,
            note="of single actions, shuffled: the mean of their gradients",
        )


def _credit(method: Method, rollout: Rollout) -> Tensor:
    """(N, T): what an unbiased method credits an action with, up to what has no expectation."""
    if not method.grouped:
        # Earlier rewards and baselines drop out of an expectation only where every action has the same weight: here
        # the weight depends on the length. So they must be taken as the method has them.
        return method.make(oracles.ending().table()).prepare(rollout).advantages
    returns = reward_to_go(rollout)[:, :1].view(-1, GROUP)
    credit = (returns - returns.flip(1)) / (2 if method.can("advantage", "centred") else 1)
    return credit.view(-1, 1).expand_as(rollout.rewards)


def entropy_bonus(method: Method) -> Iterator[Check]:
    """The bonus pays for entropy, per action, at the states that were visited."""
    oracle, rollout, _ = _case(method)
    coefficient = 0.7
    table = oracle.table()
    ours = method.ascent(table, rollout, entropy_coefficient=coefficient) - method.ascent(table, rollout)
    ours = ours / method.scale(rollout)  # the bonus is a mean over actions, whatever the rest is
    log_pi = oracle.policy.log()
    entropy = -(oracle.policy * log_pi).sum(-1, keepdim=True)
    share = oracle.visits.sum(0)[:, None] / oracle.mean_length
    exact = -coefficient * share * oracle.policy * (log_pi + entropy)
    yield equal(method.option, "grad of the entropy bonus", exact, ours, note=f"coefficient {coefficient:g}")


def fitting_the_values(method: Method) -> Iterator[Check]:
    """The critic is drawn to the exact values: twice the error, at the states that were visited."""
    settings: dict[str, Any] = {"baseline": "value"} if "value" in method.choices("baseline") else {}
    oracle = oracles.ending()
    table, values = oracle.table(), oracle.solve().values
    coefficient = 1.0
    if method.has("value_coefficient"):
        settings["value_coefficient"] = coefficient = 0.3
    one = method.make(table, **settings)
    batch = one.prepare(oracle.rollout(values))
    fit = getattr(one, "value_loss", one.loss)
    (ours,) = torch.autograd.grad(fit(table, batch, None)[0], [table.critic])
    exact = 2 * coefficient * (oracle.visits * (oracle.guess - values[:-1])).sum(0) / oracle.mean_length
    yield equal(method.option, "grad of the value loss", exact, ours, note=f"coefficient {coefficient:g}")


def maximum_likelihood(method: Method) -> Iterator[Check]:
    """Demonstrations of another policy: the gradient of their likelihood, per action."""
    oracle = oracles.ending()
    teacher = oracle.table(moved=1.0).probabilities
    seen = dp.visits(oracle.mdp, teacher, oracle.horizon).sum(0)
    exact = seen[:, None] * (teacher - oracle.policy) / seen.sum()
    rollout = oracle.rollout(behaviour=teacher)
    yield equal(
        method.option, "grad of the log-likelihood", exact, method.ascent(oracle.table(), rollout),
        note="of another policy's actions: a policy gradient with advantage 1",
    )  # fmt: skip


# ---------------------------------------------------------------- what GAE is expected to be, and to vary by


def _gae_moments(oracle: Oracle, lam: float) -> tuple[Tensor, Tensor]:
    """E[A_t | s, a] and E[A_t^2 | s, a] of GAE by the oracle's wrong V: (H, S, A) each, by backward induction.

    A_t = delta_t + lam A_{t+1}: the first moment needs that of the next step, the second both of them.
    """
    mdp, v = oracle.mdp, oracle.guess
    live = (~mdp.terminal).double()
    first, second = [], []
    mean, square = torch.zeros_like(v), torch.zeros_like(v)  # of A_{t+1}, in the state that was reached
    for t in reversed(range(oracle.horizon)):
        further = live if t < oracle.horizon - 1 else torch.zeros_like(live)
        delta = mdp.rewards + further * v - v[:, None, None]  # (S, A, S)
        ahead, ahead_square = lam * further * mean, lam**2 * further * square
        first.append((mdp.transitions * (delta + ahead)).sum(-1))
        second.append((mdp.transitions * (delta.square() + 2 * delta * ahead + ahead_square)).sum(-1))
        mean, square = ((oracle.policy * moments[-1]).sum(-1) for moments in (first, second))
    return torch.stack(first[::-1]), torch.stack(second[::-1])


def _gae_gradient(oracle: Oracle, lam: float) -> Tensor:
    return dp.softmax_gradient(oracle.visits, oracle.policy, _gae_moments(oracle, lam)[0])


def _gae_variance(oracle: Oracle, lam: float) -> Tensor:
    """Var(A_t | s_t, a_t), averaged over the actions that are taken."""
    first, second = _gae_moments(oracle, lam)
    taken = oracle.visits[..., None] * oracle.policy
    return (taken * (second - first.square())).sum() / oracle.mean_length


def _variance_of_estimates(oracle: Oracle, rollout: Rollout, estimates: Tensor) -> Tensor:
    """The same of given estimates, (N, T), by adding up: first for each (t, s, a), then over them."""
    assert rollout.weights is not None
    steps, (states, actions) = rollout.mask.shape[1], oracle.policy.shape
    place = (torch.arange(steps) * states + rollout.observations.argmax(-1)) * actions + rollout.actions
    place, x = place[rollout.mask], estimates[rollout.mask]
    w = rollout.weights[:, None].expand_as(rollout.mask)[rollout.mask]

    def total(y: Tensor) -> Tensor:
        return torch.zeros(steps * states * actions, dtype=torch.float64).index_add(0, place, y)

    mass = total(w)
    mean = total(w * x) / mass.clamp(min=1e-300)
    return total(w * (x - mean[place]).square()).sum() / mass.sum()


# ---------------------------------------------------------------- how noisy a gradient is


def _gradient_variance(oracle: Oracle, rollout: Rollout, baseline: Tensor) -> Tensor:
    """E |g - E g|^2 of one episode's sum_t grad log pi (G_t - b_t(s_t)), with b (H + 1, S)."""
    assert rollout.weights is not None
    s = rollout.observations.argmax(-1)
    steps = torch.arange(s.shape[1])
    credit = torch.where(rollout.mask, reward_to_go(rollout) - baseline[steps, s], 0)
    states, actions = oracle.policy.shape
    score = torch.nn.functional.one_hot(rollout.actions, actions) - oracle.policy[s]
    placed = torch.nn.functional.one_hot(s, states).double()
    each = torch.einsum("nt,nts,nta->nsa", credit, placed, score)
    return _spread(each, rollout.weights)


def _variance_through(method: Method, oracle: Oracle, rollout: Rollout, **settings: Any) -> Tensor:
    """The same of the method's own loss: the gradient of each row by itself."""
    assert rollout.weights is not None
    table = Table(oracle.logits, oracle.guess)
    policy, leaf = each_row_its_own(table, len(rollout.weights))
    loss = method.loss(table, rollout, policy=policy, **settings) * method.scale(rollout)
    (gradients,) = torch.autograd.grad(loss, [leaf])
    return _spread(-gradients / rollout.weights[:, None, None], rollout.weights)


def _spread(each: Tensor, weights: Tensor) -> Tensor:
    mean = (weights[:, None, None] * each).sum(0)
    return (weights * (each - mean).square().flatten(1).sum(1)).sum()


# ---------------------------------------------------------------- the mathematics that all of them share


def the_oracle_itself() -> Iterator[Check]:
    """Two roads to one number: dynamic programming, and the sum over all trajectories."""
    oracle = oracles.ending()
    rollout, solved = oracle.rollout(), oracle.solve()
    assert rollout.weights is not None
    value = dp.expected_return(oracle.mdp, solved.values[0])
    returns = reward_to_go(rollout)[:, 0]
    yield equal("", "J", value, (rollout.weights * returns).sum(), note=f"the sum over {len(returns)} trajectories")
    added = oracle.expected_score(rollout, reward_to_go(rollout))
    yield equal("", "grad J", oracle.gradient(), added, note="by the policy gradient theorem; by adding up")
    table = oracle.table()
    evaluated = table(rollout.observations, rollout.actions)
    ones = torch.ones_like(rollout.rewards)
    weights = torch.where(rollout.mask, rollout.weights[:, None], 0)
    loss = weighted_sum(policy_gradient(evaluated.log_probs, ones), weights)
    (score,) = torch.autograd.grad(loss, [table.logits])
    yield equal(
        "", "mean of the score", torch.zeros_like(score), score, note="E[grad log pi] = 0, so a baseline is free"
    )


def the_trade_of_lambda() -> Iterator[Check]:
    """With a wrong V, bias falls with lambda and variance rises: here, as a rule, and not as a theorem."""
    oracle = oracles.ending()
    exact = oracle.gradient()
    biases = [float((_gae_gradient(oracle, lam) - exact).norm()) for lam in LAMBDAS]
    variances = [float(_gae_variance(oracle, lam)) for lam in LAMBDAS]
    yield equal("", "bias of GAE, lambda 1", 0.0, biases[-1], note="whatever V is: V is a baseline only")
    for i, (low, high) in enumerate(pairwise(LAMBDAS)):
        yield at_most("", f"bias, lambda {high:g}", biases[i], biases[i + 1], note=f"of lambda {low:g}")
        yield at_most("", f"variance, lambda {low:g}", variances[i + 1], variances[i], note=f"of lambda {high:g}")


def kl_estimators() -> Iterator[Check]:
    """Value, gradient in the loss, gradient in the reward: an estimator can be right in one of them and not in another.

    One state, four actions, each weighted by its probability.
    """
    logits, reference = _row(0.3, -1.0, 0.8, 0.1)[0], _row(-0.5, 0.4, 0.2, 1.0)[0].log_softmax(-1)
    behaviour = _row(0.0, 0.5, -0.5, 0.3)[0].log_softmax(-1)
    logits = logits.requires_grad_()
    new = logits.log_softmax(-1)
    log_pi = new.detach()
    pi, ratio = log_pi.exp(), log_pi - reference
    forward = (pi * ratio).sum()
    to_reference = pi * (ratio - forward)  # grad KL(pi || ref)
    from_reference = pi - reference.exp()  # grad KL(ref || pi)
    half_square = 0.5 * (pi * ratio.square()).sum()

    def slope(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(x, [logits], retain_graph=True)
        return gradient

    estimators = {"k1": k1(new, reference), "k2": k2(new, reference), "k3": k3(new, reference)}
    for name, x in estimators.items():
        exact = half_square if name == "k2" else forward
        note = f"biased: E[ratio^2]/2, and not the KL of {float(forward):.4f}" if name == "k2" else "KL(pi || ref)"
        yield equal("", f"{name}, value", exact, (pi * x).sum(), note=note)
    in_loss = {
        "k1": (torch.zeros_like(pi), "zero: it holds nothing in a loss"),
        "k2": (to_reference, "grad KL(pi || ref)"),
        "k3": (from_reference, "grad KL(ref || pi): the other direction"),
    }
    for name, (exact, note) in in_loss.items():
        yield equal("", f"{name}, gradient in the loss", exact, slope((pi * estimators[name]).sum()), note=note)
    in_reward = {
        "k1": (to_reference, "grad KL(pi || ref)"),
        "k2": (pi * (0.5 * ratio.square() - half_square), f"{_angle_of(half_square, ratio, pi):.1f} degrees from it"),
        "k3": (to_reference - from_reference, "grad KL(pi || ref) - grad KL(ref || pi)"),
    }
    for name, (exact, note) in in_reward.items():
        penalised = (pi * policy_gradient(new, -estimators[name])).sum()
        yield equal("", f"{name}, gradient in the reward", exact, slope(penalised), note=note)

    acted = behaviour.exp()
    corrected = k3_corrected(new, reference, behaviour)
    note = "KL(pi || ref), on actions of another policy"
    yield equal("", "k3 corrected, value", forward, (acted * corrected).sum(), note=note)
    yield equal("", "k3 corrected, gradient in the loss", to_reference, slope((acted * corrected).sum()), note=note)


def kl_of_sequences() -> Iterator[Check]:
    """The KL of whole trajectories: k1 as a reward with gamma 1, or k2 of the summed log-ratio in the loss."""
    oracle = oracles.ending()
    reference = oracle.table(moved=0.7).probabilities.log()
    logits = oracle.logits.clone().requires_grad_()
    policy = logits.softmax(-1)
    per_state = (policy * (policy.log() - reference)).sum(-1)
    exact_value = (dp.visits(oracle.mdp, policy, oracle.horizon) @ per_state).sum()
    (exact,) = torch.autograd.grad(exact_value, [logits])

    rollout, table = oracle.rollout(), oracle.table()
    assert rollout.weights is not None
    s = rollout.observations.argmax(-1)
    new = torch.where(rollout.mask, table(rollout.observations, rollout.actions).log_probs, 0)
    old = torch.where(rollout.mask, reference[s, rollout.actions], 0)
    penalties = replace(rollout, rewards=-k1(new, old).detach())
    weights = torch.where(rollout.mask, rollout.weights[:, None], 0)
    (by_reward,) = torch.autograd.grad(
        weighted_sum(policy_gradient(new, reward_to_go(penalties)), weights), [table.logits], retain_graph=True
    )
    whole = k2(new.sum(1), old.sum(1))
    (by_loss,) = torch.autograd.grad((rollout.weights * whole).sum(), [table.logits])
    yield equal("", "sequence KL, value", exact_value, (rollout.weights * k1(new, old).sum(1)).sum(), note="k1, summed")
    yield equal("", "sequence KL, k1 as a reward", exact, by_reward, note="grad KL of trajectories, gamma 1")
    yield equal("", "sequence KL, k2 in the loss", exact, by_loss, note="grad KL of trajectories")


SHARED = (the_oracle_itself, the_trade_of_lambda, kl_estimators, kl_of_sequences)


def _mean_length(rollout: Rollout) -> Tensor:
    lengths = rollout.mask.sum(1).double()
    return lengths.mean() if rollout.weights is None else rollout.weights @ lengths


def _angle_of(half_square: Tensor, ratio: Tensor, pi: Tensor) -> float:
    return angle(pi * (0.5 * ratio.square() - half_square), pi * (ratio - (pi * ratio).sum()))


def _list(x: Tensor) -> str:
    return ", ".join(f"{value:.2g}" if value > 1e-12 else "0" for value in x.tolist())


def _row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)
