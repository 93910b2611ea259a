"""The methods that learn from comparisons, through their own loss, on the text task whose completions are enumerated.

The population is exact: every pair of completions that a policy may write with each of its two labels, and their joint
probability; labels follow Bradley and Terry's law for the task's reward. A batch has no probabilities, so each pair is
a batch of its own, and their losses are summed with these weights. The required gradient is derived by hand, as the
derivative with respect to the two log-probs; and if the optimum has a closed form, the loss is minimised over all
distributions of completions, and must end there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from pgcli.functional.completions import tilt
from pgcli.types import Checked, Completions, Labelled, Observations, PolicyFunction, Preferences, Scores
from pgcli.verification.check import Check, equal, of_each
from pgcli.verification.language import BETA, Writer
from pgcli.verification.oracle import JUNK
from pgcli.verification.text_oracle import Language, Table, Whole, language, minimise, prefixes, slope


class Learner(Writer):
    """An algorithm that learns from comparisons or labels."""

    @property
    def compares(self) -> bool:
        return self.collects("pairs", "judged")

    @property
    def scores(self) -> bool:
        return isinstance(self.algorithm.needs(self.config), Scores)

    @property
    def fresh(self) -> bool:
        """Whether the policy itself writes the compared completions."""
        return (self.has("collect") and self.config.collect == "judged") or not self.collects("pairs")

    def expected(self, policy: Any, pairs: Pairs, reference: Tensor, **settings: Any) -> Tensor:
        """The loss of the population."""
        one = self.make(policy, **settings)

        def loss(texts: Completions, number: Tensor) -> Tensor:
            return one.loss(policy, Preferences(texts, number[None], number[None].double()), None)[0]

        each = texts_of(language(), torch.stack([pairs.chosen, pairs.rejected], dim=1), reference)
        return pairs.weights @ vmap(loss)(each, torch.arange(len(pairs.weights)))

    def of_a_batch(self, policy: Any, pairs: Pairs, reference: Tensor, **settings: Any) -> Tensor:
        """The loss of a batch that has each pair once, as in training."""
        numbers = torch.arange(len(pairs.weights))
        texts = texts_of(language(), torch.cat([pairs.chosen, pairs.rejected]), reference)
        batch = Preferences(texts, numbers, numbers.double())
        return self.make(policy, **settings).loss(policy, batch, None)[0]


class Pairs(NamedTuple):
    """Pairs of completions, by their rows in `language()`, (P,) each; `weights`: probability of pair and label."""

    chosen: Tensor
    rejected: Tensor
    weights: Tensor


def texts_of(world: Language, rows: Tensor, reference: Tensor) -> Completions:
    """Rows of any shape (...,) -> Completions of (..., T), with log-probs of the reference (S, V)."""
    log_probs = torch.where(world.mask, reference[world.states, world.actions].log(), JUNK)
    return Completions(
        {"prompt": world.observations["prompt"][rows]}, world.actions[rows], world.mask[rows], log_probs[rows]
    )


def compared(world: Language, chances: Tensor, wins: Tensor) -> Pairs:
    """Two completions of a prompt, written independently, and which of them is preferred.

    chances: (Y,), probability of each prompt and completion. wins: (B, Y / B, Y / B), probability that the first is
    preferred to the second. A completion is not compared with itself.
    """
    each = len(world.actions) // world.prompts
    one, other = torch.cartesian_prod(torch.arange(each), torch.arange(each)).unbind(1)
    one, other = one[keep := one != other], other[keep]
    chosen, rejected = (torch.cat([x + prompt * each for prompt in range(world.prompts)]) for x in (one, other))
    preferred = torch.cat([wins[prompt, one, other] for prompt in range(world.prompts)])
    # Both orders of writing give the same pair.
    weights = 2 * world.prompts * chances[chosen] * chances[rejected] * preferred
    return Pairs(chosen, rejected, weights)


def bradley_terry(world: Language, smoothed: float = 0.0) -> Tensor:
    """(B, Y / B, Y / B): probability that the first is preferred, if a share `smoothed` of labels is turned round."""
    rewards = world.rewards.view(world.prompts, -1)
    p = torch.sigmoid(rewards[:, :, None] - rewards[:, None, :])
    return (p - smoothed) / (1 - 2 * smoothed)


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    """Rows of the algorithms in `only`; of all algorithms if it is empty."""
    yield from of_each(only, Learner, _topics, what="preferences: its loss")


def _topics(method: Learner) -> Iterator[Callable[[Learner], Iterator[Check]]]:
    if method.compares and method.scores:
        yield scores_of_pairs
    elif method.collects("checked") and method.scores:
        yield what_is_right
    elif method.compares and method.has("beta") and method.has("loss") and method.config.loss in SLOPES:
        yield gradient_of_pairs
        if method.config.loss in OPTIMA:
            yield optimum_of_pairs
    if method.collects("labelled") and not method.scores and method.has("beta"):
        yield gradient_of_labels


# ---------------------------------------------------------------- derivatives by hand


class Pair(NamedTuple):
    """The arguments of a loss of pairs, (P,) each: sums over tokens, and numbers of tokens."""

    chosen: Tensor
    rejected: Tensor
    chosen_ratio: Tensor
    rejected_ratio: Tensor
    chosen_length: Tensor
    rejected_length: Tensor


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _bell(x: Tensor) -> Tensor:
    """The derivative of the sigmoid."""
    return _sigmoid(x) * _sigmoid(-x)


def _dpo(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    a, b = (p.chosen_length, p.rejected_length) if c.length_normalised else (1.0, 1.0)
    h = c.beta * (p.chosen_ratio / a - p.rejected_ratio / b)
    pull = -c.beta * ((1 - c.label_smoothing) * _sigmoid(-h) - c.label_smoothing * _sigmoid(h))
    return pull / a, -pull / b


def _ipo(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    pull = 2 * (p.chosen_ratio - p.rejected_ratio - 1 / (2 * c.beta))
    return pull, -pull


def _simpo(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    h = c.beta * (p.chosen / p.chosen_length - p.rejected / p.rejected_length) - c.gamma
    return -c.beta * _sigmoid(-h) / p.chosen_length, c.beta * _sigmoid(-h) / p.rejected_length


def _orpo(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    # d log(odds) / d a = 1 / (1 - exp(a)), where a is the mean log-prob of a token.
    a, b = p.chosen / p.chosen_length, p.rejected / p.rejected_length
    odds = (a.exp() / (1 - a.exp())) / (b.exp() / (1 - b.exp()))
    pull = -c.beta / (1 + odds)
    return pull / (1 - a.exp()) / p.chosen_length, -pull / (1 - b.exp()) / p.rejected_length


def _apo_zero(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    return -c.beta * _bell(c.beta * p.chosen_ratio), c.beta * _bell(c.beta * p.rejected_ratio)


def _apo_down(p: Pair, c: Any) -> tuple[Tensor, Tensor]:
    pull = c.beta * _bell(c.beta * (p.chosen_ratio - p.rejected_ratio))
    return c.beta * _bell(c.beta * p.chosen_ratio) - pull, pull


SLOPES = {"dpo": _dpo, "ipo": _ipo, "simpo": _simpo, "orpo": _orpo, "apo_zero": _apo_zero, "apo_down": _apo_down}
"""The loss of a pair -> its derivatives with respect to log pi of the preferred and of the rejected completion."""


def by_hand(world: Language, policy: Any, pairs: Pairs, reference: Tensor, config: Any, *, batch: bool) -> Tensor:
    """(S * V,): the gradient of the loss; in a batch, the likelihood term is one mean over all of its tokens."""
    pi = world.probabilities(policy).detach()
    own, other = (world.sequences(x).flatten() for x in (pi, reference))
    lengths = world.mask.sum(1).double()
    c, r = pairs.chosen, pairs.rejected
    pair = Pair(own[c], own[r], own[c] - other[c], own[r] - other[r], lengths[c], lengths[r])
    weights = torch.full_like(pairs.weights, 1 / len(c)) if batch else pairs.weights
    up, down = (weights * x for x in SLOPES[config.loss](pair, config))
    tokens = (weights @ lengths[c]) if batch else lengths[c]
    up = up - config.likelihood_coefficient * weights / tokens
    each = torch.zeros_like(own).index_add(0, c, up).index_add(0, r, down)
    return each @ world.score(pi)


# ---------------------------------------------------------------- one method at a time


def gradient_of_pairs(method: Learner) -> Iterator[Check]:
    """The gradients of the population's loss and of a batch's loss."""
    world, policy, reference = language(), language().table(), _reference()
    writer = world.probabilities(policy).detach() if method.fresh else reference
    pairs = compared(world, world.chances(writer), bradley_terry(world))
    exact = by_hand(world, policy, pairs, reference, method.config, batch=False)
    ours = slope(method.expected(policy, pairs, reference), policy)
    note = f"of {len(pairs.weights)} pairs that {'the policy' if method.fresh else 'the reference'} writes"
    yield equal(method.option, "text: grad of the loss", exact, ours, note=note)
    right = world.rewards[pairs.chosen] > world.rewards[pairs.rejected]
    pairs = Pairs(*(x[right] for x in pairs))
    exact = by_hand(world, policy, pairs, reference, method.config, batch=True)
    ours = slope(method.of_a_batch(policy, pairs, reference), policy)
    yield equal(method.option, "text: grad of a batch's loss", exact, ours, note="the right half of them, each once")


def _reference() -> Tensor:
    world = language()
    return world.probabilities(world.table(seed=1)).detach()


def optimum_of_pairs(method: Learner) -> Iterator[Check]:
    """The minimum of the loss over all distributions of completions, starting at the reference."""
    world, reference = language(), _reference()
    settings = {"beta": BETA, "label_smoothing": method.config.label_smoothing}
    wins = bradley_terry(world, method.config.label_smoothing)
    optimum, note = OPTIMA[method.config.loss](world, reference, wins, method.having(method.config, settings))
    at = Table(world.policy_of(optimum)[:-1].log())
    writer = world.probabilities(at).detach() if method.fresh else reference
    pairs = compared(world, world.chances(writer), wins)
    gradient = slope(method.expected(at, pairs, reference, **settings), at)
    who = "itself" if method.fresh else "the reference"
    if method.config.loss == "dpo":  # regardless of the policy that writes the pairs; IPO's optimum depends on it
        yield equal(
            method.option, "text: its gradient at pi*", torch.zeros_like(gradient), gradient,
            note=f"{note}; the pairs by {who}",
        )  # fmt: skip
    alike = torch.full_like(world.rewards, 1 / len(world.rewards))
    pairs = compared(world, alike, wins)
    whole = Whole(world, world.sequences(reference))
    minimise(lambda: method.expected(whole, pairs, reference, **settings), whole.logits)
    found = whole.log_probs.detach()
    divergence = (optimum.exp() * (optimum - found)).sum(1).mean()
    yield equal(method.option, "text: KL(pi* || what it ends at)", 0.0, divergence, note=f"{note}; every pair as often")


def _optimum_of_dpo(world: Language, reference: Tensor, wins: Tensor, config: Any) -> tuple[Tensor, str]:
    del wins  # those of Bradley and Terry
    old, rewards = world.sequences(reference), world.rewards.view(world.prompts, -1)
    if not config.length_normalised:
        smoothed = ", and as many labels turned round as it assumes" if config.label_smoothing else ""
        return tilt(old, rewards, config.beta), f"pi* = ref exp(r / beta) / Z{smoothed}"
    # log-ratio / length = r / beta + c, with the c that makes it a distribution: found by halving.
    lengths = world.mask.sum(1).double().view(world.prompts, -1)
    low, high = torch.full((world.prompts, 1), -50.0), torch.full((world.prompts, 1), 50.0)
    low, high = low.double(), high.double()
    for _ in range(100):
        middle = (low + high) / 2
        above = (old + lengths * (rewards / config.beta + middle)).logsumexp(1, keepdim=True) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return old + lengths * (rewards / config.beta + low), "ref exp(length (r / beta + c)): long ones are moved farther"


def _optimum_of_ipo(world: Language, reference: Tensor, wins: Tensor, config: Any) -> tuple[Tensor, str]:
    # Least squares of the margins on (2 p - 1) / (2 beta): the mean over the completions compared with it.
    margins = (2 * wins - 1) / (2 * config.beta)
    optimum = torch.log_softmax(world.sequences(reference) + margins.mean(2), dim=1)
    return optimum, "ref exp(P(preferred to another) / beta) / Z"


OPTIMA: dict[str, Callable[[Language, Tensor, Tensor, Any], tuple[Tensor, str]]] = {
    "dpo": _optimum_of_dpo,
    "ipo": _optimum_of_ipo,
}
"""The loss of a pair -> log of the policy at which that of the population ends, (B, Y / B)."""


# ---------------------------------------------------------------- reward models


class Judge(nn.Module):
    """A score for each prefix and its last token. float64."""

    unit, has_critic = "sequence", False

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(scores.clone())

    def forward(self, observations: Observations, actions: Tensor) -> Tensor:
        return self.logits[prefixes(observations["prompt"], actions), actions][None]

    def once_differentiable(self) -> PolicyFunction:
        return self


def scores_of_pairs(method: Learner) -> Iterator[Check]:
    """The score of a completion's last token converges to its reward, up to a constant per prompt."""
    world, reference = language(), _reference()
    last = (world.states[world.last], world.actions[world.last])
    judge = Judge(torch.sin(torch.arange(reference[:-1].numel(), dtype=torch.float64)).view_as(reference[:-1]))
    pairs = compared(world, world.chances(reference), bradley_terry(world))
    settings: dict[str, Any] = {}
    scores = judge.logits.detach()[last]
    up, down = scores[pairs.chosen], scores[pairs.rejected]
    pull = torch.zeros_like(up)
    if method.has("margin") and method.has("centring"):
        settings = {"margin": 0.3, "centring": 0.1}
        pull, up = 2 * 0.1 * (up + down), up - 0.3
    to_win = pairs.weights * (pull - _sigmoid(down - up))
    to_lose = pairs.weights * (pull + _sigmoid(down - up))
    each = torch.zeros_like(scores).index_add(0, pairs.chosen, to_win).index_add(0, pairs.rejected, to_lose)
    exact = torch.zeros_like(judge.logits.detach()).index_put(last, each, accumulate=True).flatten()
    ours = slope(method.expected(judge, pairs, reference, **settings), judge)
    note = f"of {len(pairs.weights)} pairs that the reference writes, at their last tokens"
    yield equal(method.option, "text: grad of the loss", exact, ours, note=note)
    single = pairs._replace(weights=torch.full_like(pairs.weights, 1 / len(pairs.weights)))
    of_each = slope(method.expected(judge, single, reference), judge)
    of_all = slope(method.of_a_batch(judge, pairs, reference), judge)
    yield equal(method.option, "text: grad of a batch's loss", of_each, of_all, note="the mean of its pairs'")

    alike = torch.full_like(world.rewards, 1 / len(world.rewards))
    pairs = compared(world, alike, bradley_terry(world))
    minimise(lambda: method.expected(judge, pairs, reference), judge.logits, within=1e-11)
    found, rewards = (x.view(world.prompts, -1) for x in (judge.logits.detach()[last], world.rewards))
    centred = [x - x.mean(1, keepdim=True) for x in (rewards, found)]
    note = "what it ends at: the reward, less its mean over a prompt's completions"
    yield equal(method.option, "text: the scores", *centred, note=note)


def what_is_right(method: Learner) -> Iterator[Check]:
    """The sigmoid of a score converges to the probability that the completion, or each step, is right."""
    world, reference = language(), _reference()
    numbers = torch.arange(reference[:-1].numel(), dtype=torch.float64).view_as(reference[:-1])
    truth, judge = 0.5 + 0.4 * torch.sin(3 * numbers), Judge(torch.cos(numbers))
    whole = method.has("labels") and method.config.labels == "outcome"
    known = world.last if whole else world.mask  # every token is a step
    place = (world.states[known], world.actions[known])
    probabilities = truth[world.states, world.actions]
    texts = texts_of(world, torch.arange(len(world.actions)), reference)
    one = method.make(judge)

    right = (probabilities > 0.5).double()
    loss = one.loss(judge, Checked(texts, torch.where(known, right, JUNK), known), None)[0]
    pull = (_sigmoid(judge.logits.detach()[place]) - right[known]) / known.sum()
    exact = torch.zeros_like(truth).index_put(place, pull, accumulate=True).flatten()
    note = "at their last tokens" if whole else "at the end of each step"
    yield equal(method.option, "text: grad of a batch's loss", exact, slope(loss, judge), note=note)

    # Each label, right and wrong, is a batch of its own, weighted by its probability.
    row, step = known.nonzero(as_tuple=True)
    single = texts_of(world, row[:, None], reference)
    here = torch.nn.functional.one_hot(step, known.shape[1]).bool()[:, None]

    def expected() -> Tensor:
        def loss(text: Completions, at: Tensor) -> Tensor:
            both = (
                one.loss(judge, Checked(text, y.expand_as(at), at), None)[0] for y in (torch.ones(1), torch.zeros(1))
            )
            return torch.stack(list(both))

        p = probabilities[row, step]
        return (torch.stack([p, 1 - p], dim=1) * vmap(loss)(single, here)).sum()

    minimise(expected, judge.logits, within=1e-11)
    reached = torch.zeros_like(truth, dtype=torch.bool).index_put(place, torch.ones_like(place[0], dtype=torch.bool))
    found = _sigmoid(judge.logits.detach())[reached]
    yield equal(method.option, "text: the probabilities", truth[reached], found, note="what it ends at")


# ---------------------------------------------------------------- single labels


def gradient_of_labels(method: Learner) -> Iterator[Check]:
    """KTO's gradient, with a reference point above zero and with one clamped to zero."""
    world, policy, reference = language(), language().table(), _reference()
    pi, c = world.probabilities(policy).detach(), method.config
    ratios = (world.sequences(pi) - world.sequences(reference)).flatten()
    each, rows = torch.arange(len(ratios)), torch.arange(len(ratios)) // (len(ratios) // world.prompts)
    one = method.make(policy)
    for name, side in (("above", 1.0), ("below", -1.0)):
        # The same number of completions of another prompt, all different.
        best = ((side * ratios[rows == prompt]).topk(9).indices for prompt in range(world.prompts))
        mismatched = torch.cat([each[rows == prompt][found] for prompt, found in enumerate(best)])
        others = texts_of(world, mismatched, reference)
        z = ratios[mismatched].mean().clamp(min=0)
        batch = Labelled(texts_of(world, each[: len(mismatched)], reference), torch.ones_like(mismatched) > 0, others)
        ours = one.prepare(batch).reference_point
        yield equal(method.option, f"text: z, {name} 0", z, ours, note="mean log-ratio of mismatched texts, at least 0")
        good = world.rewards  # probability of the label "desirable"
        gain = _bell(c.beta * (ratios - z))
        chances = world.chances(reference)
        pull = chances * c.beta * gain * ((1 - good) * c.undesirable_weight - good * c.desirable_weight)
        exact = pull @ world.score(pi)

        def loss(texts: Completions, desirable: Tensor, point: Tensor = z) -> Tensor:
            return one.loss(policy, Labelled(texts, desirable[None], texts, reference_point=point), None)[0]

        texts = texts_of(world, each.repeat(2)[:, None], reference)
        desirable = torch.arange(2 * len(each)) < len(each)
        weights = torch.cat([chances * good, chances * (1 - good)])
        ours = slope(weights @ vmap(loss, in_dims=(0, 0))(texts, desirable), policy)
        note = f"z = {float(z):.3g}: no gradient flows into it" if side > 0 else "z = 0, whatever it would be"
        yield equal(method.option, f"text: grad of the loss, z {name} 0", exact, ours, note=note)
