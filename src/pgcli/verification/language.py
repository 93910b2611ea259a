"""The language methods, through their own `prepare` and `loss`, on the text task whose completions are enumerated.

The rows of `policy_gradients` check a method on episodes, those here on completions: padding with the end token's
number is left out and the end token is not; a reward at the last token is credited to all tokens; and which gradient
each placement and each estimator of the KL to a reference has. If that is not the gradient of J - beta KL(pi || ref),
it is predicted independently, and the angle between the two is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from pgcli.algorithms.grpo import EPSILON
from pgcli.functional import dynamic_programming as dp
from pgcli.functional.completions import tilt
from pgcli.functional.kl import k1, k2, k3, k3_corrected
from pgcli.functional.masked import masked_sum
from pgcli.types import ABSENT, Rollout
from pgcli.verification.check import Check, at_most, equal, of_each, safely
from pgcli.verification.method import GROUP, Method
from pgcli.verification.oracle import angle, reward_to_go
from pgcli.verification.text_oracle import Language, Table, Whole, language, minimise, settings, slope

BETA = 0.3
ESTIMATORS = ("k1", "k2", "k3", "k3_corrected")


class Writer(Method):
    """An algorithm that learns from completions."""

    @property
    def writes(self) -> bool:
        return self.stochastic and self.collects("episodes", "groups")

    def climbs(self, policy: Any, rollout: Rollout, *, at: Any = None, **settings: Any) -> Tensor:
        """Its update direction of a policy's parameters, as a sum over a completion; `at`: where the loss is taken."""
        taken = at or policy
        loss = self.loss(policy, rollout, policy=taken.once_differentiable(), **settings) * self.scale(rollout)
        return -slope(loss, taken)

    def priced(self, placement: str, estimator: str) -> dict[str, Any]:
        kl = {"coefficient": BETA, "placement": placement, "estimator": estimator, "allow_biased": True}
        return {"kl": self.config.kl.model_dump() | kl}

    def every(self, world: Language, pi: Tensor, reference: Tensor | None = None) -> Rollout:
        """All data that it learns from, enumerated."""
        return world.groups(pi, reference, size=GROUP) if self.grouped else world.rollout(pi, reference)

    @property
    def share(self) -> float:
        """Share of the gradient left by its group's baseline: a mean that contains the return itself removes 1/K."""
        return (GROUP - 1) / GROUP if self.can("advantage", "centred") else 1.0


def checks(only: Collection[str] = ()) -> Iterator[Check]:
    """Rows of the algorithms in `only`; of all algorithms and the shared mathematics if it is empty."""
    if not only:
        for shared in SHARED:
            yield from safely("", shared)
    yield from of_each(only, Writer, _topics, what="text: its loss")


def _topics(method: Writer) -> Iterator[Callable[[Writer], Iterator[Check]]]:
    if method.stochastic and method.collects("demonstrations", "revisions"):
        yield maximum_likelihood
    if not method.writes:
        return
    if method.has("selection"):
        yield imitation_of_the_best
        return
    if method.declares:
        yield as_it_declares
        return
    yield gradient_of_the_reward
    yield a_reply_in_between
    yield token_by_token
    if method.has("kl"):
        yield price_in_the_reward
        yield price_in_the_loss
        yield price_off_the_behaviour_policy
    if method.has("surrogate") and method.has("advantage") and method.has("aggregation"):
        yield as_it_is_configured


# ---------------------------------------------------------------- one method at a time


def gradient_of_the_reward(method: Writer) -> Iterator[Check]:
    """The gradient of J for a transformer, and for a table also that of each end token."""
    world, policy = language(), language().transformer()
    pi = world.probabilities(policy)
    exact = slope(world.value(pi), policy) * method.share
    ours = method.climbs(policy, method.every(world, pi))
    part = "" if method.share == 1 else f"{method.share:g} "
    note = "of a transformer's parameters; completions that end and that are cut"
    yield equal(method.option, f"text: {part}grad J", exact, ours, note=note)

    table = world.table()
    exact = dp.softmax_gradient(world.visits(pi), pi, world.solve(pi).action_values[0])[:-1] * method.share
    found = method.climbs(table, method.every(world, pi))[: exact.numel()].view_as(exact)
    note = "padding has its number, and it is taught where it is chosen"
    yield equal(method.option, f"text: {part}grad J, end tokens", exact[:, -1], found[:, -1], note=note)


def as_it_declares(method: Writer) -> Iterator[Check]:
    """The same for a method that is biased on purpose, by the credit per token that it declares."""
    world, policy = language(), language().table()
    pi = world.probabilities(policy)
    rollout, right = method.every(world, pi), slope(world.value(pi), policy, keep=True)
    assert rollout.weights is not None
    exact = world.expected_score(rollout, rollout.weights[:, None] * method.declared(rollout), pi.detach())
    note = f"{angle(exact, right):.1f} degrees from grad J, and {float(exact.norm() / right.norm()):.2f} times as long"
    ours = method.climbs(policy, rollout)
    yield equal(method.option, "text: biased grad J, as it declares", exact, ours, note=note)


def a_reply_in_between(method: Writer) -> Iterator[Check]:
    """The task's reply in the middle is in no gradient and takes no time, and its consequences are rewarded."""
    world, policy = language(), language().table()
    pi = world.probabilities(policy)
    exact = slope(world.value(world.answered(pi)), policy) * method.share
    rollout = world.groups(pi, size=GROUP, replied=True) if method.grouped else world.rollout(pi, replied=True)
    part = "" if method.share == 1 else f"{method.share:g} "
    note = "the second token of three is the task's"
    ours = method.climbs(policy, rollout)
    yield equal(method.option, f"text: {part}grad J, a reply in between", exact, ours, note=note)


def token_by_token(method: Writer) -> Iterator[Check]:
    """A reward at the last token, credited to each token, gives R grad log pi(y), as for a single action."""
    world = language()
    pi = world.probabilities(world.table()).detach()
    rollout, scores = method.every(world, pi), world.score(pi)
    if method.critic():  # an untrained one
        rollout.values, rollout.next_values = (torch.zeros_like(rollout.rewards) for _ in range(2))
    returns = reward_to_go(rollout)[:, 0]
    assert rollout.weights is not None
    rows = len(returns)
    each = torch.arange(rows) if not method.grouped else _members(world)
    credit = returns
    if method.grouped:
        credit = (returns - returns.view(-1, GROUP).flip(1).flatten()) * method.share
    exact = credit[:, None] * scores[each]
    table = Table(pi[:-1].log().expand(rows, -1, -1))
    loss = method.loss(table, rollout) * method.scale(rollout)
    (found,) = torch.autograd.grad(loss, [table.logits])
    ours = -found.flatten(1) / rollout.weights[:, None]
    yield equal(
        method.option, "text: each completion's gradient", exact, ours,
        note="token by token, it is that of the whole: R grad log pi(y)",
    )  # fmt: skip

    # Per completion, so that methods with groups and without are comparable.
    size = GROUP if method.grouped else 1
    weights = rollout.weights * size
    spread = _spread(weights.view(-1, size)[:, 0], exact.view(-1, size, exact.shape[1]).mean(1)) * size
    through = _spread(weights.view(-1, size)[:, 0], ours.view(-1, size, ours.shape[1]).mean(1)) * size
    note = "of one completion, trace of the covariance"
    if method.grouped:
        scaled = "" if method.share == 1 else f"of {method.share:g} times it, "
        note = f"{scaled}of one completion in groups of {size}, trace of the covariance"
    yield equal(method.option, "text: variance of the gradient", spread, through, note=note)


def _members(world: Language) -> Tensor:
    """(rows,): which completion each row of `groups` is."""
    each = len(world.actions) // world.prompts
    pairs = torch.cartesian_prod(torch.arange(each), torch.arange(each))
    return torch.cat([pairs + prompt * each for prompt in range(world.prompts)]).flatten()


def _spread(weights: Tensor, each: Tensor) -> Tensor:
    """(N,), (N, D) -> E|g - E g|^2."""
    mean = weights @ each
    return weights @ (each - mean).square().sum(1)


# ---------------------------------------------------------------- a price on leaving the reference


def costs(pi: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """(S, V) each: an estimator's value for a token, by its formula, without a gradient."""
    ratio = (pi / reference).detach()
    opposite = 1 / ratio - 1 + ratio.log()
    return {"k1": ratio.log(), "k2": ratio.log().square() / 2, "k3": opposite, "k3_corrected": opposite}


def price_in_the_reward(method: Writer) -> Iterator[Check]:
    """beta times an estimate, subtracted from each token's reward: only k1 gives grad (J - beta KL)."""
    world, policy = language(), language().table()
    pi, reference = world.probabilities(policy), world.probabilities(world.table(seed=1)).detach()
    rollout, taken = method.every(world, pi, reference), costs(pi, reference)
    right = slope(world.value(pi) - BETA * world.divergence(pi, reference), policy, keep=True)
    for name in ESTIMATORS[:3]:
        ours = method.climbs(policy, rollout, **method.priced("reward", name))
        exact, note = right, "k1 in the reward: the gradient of what is wanted"
        if name != "k1":
            exact = slope(world.value(pi, world.mdp.expected_rewards - BETA * taken[name]), policy, keep=True)
            note = f"predicted: {angle(exact, right):.1f} degrees from it"
        quantity = "grad (J - beta KL)" if name == "k1" else f"biased, {name} in the reward"
        part = "" if method.share == 1 or name != "k1" else f"{method.share:g} "
        yield equal(method.option, f"text: {part}{quantity}", exact * method.share, ours, note=note)


def price_in_the_loss(method: Writer) -> Iterator[Check]:
    """An estimate added to the loss: at the visited prefixes, without its effect on later ones."""
    world, policy = language(), language().table()
    pi, reference = world.probabilities(policy), world.probabilities(world.table(seed=1)).detach()
    rollout, taken = method.every(world, pi, reference), costs(pi, reference)
    visits = world.visits(pi).detach()
    whole = slope(world.divergence(pi, reference), policy, keep=True)
    forward = slope(world.divergence(pi, reference, visits), policy, keep=True)
    backward = slope(world.divergence(reference, pi, visits), policy, keep=True)
    turned = f"{angle(forward, whole):.1f} degrees"
    told = {
        "k1": (torch.zeros_like(whole), "zero: it holds nothing in a loss"),
        "k2": (forward, f"KL(pi || ref) at fixed prefixes: {turned} from that of completions"),
        "k3": (backward, f"KL(ref || pi) at fixed prefixes: {angle(backward, whole):.1f} degrees"),
        "k3_corrected": (forward, f"KL(pi || ref) at fixed prefixes: {turned}"),
    }
    without = method.climbs(policy, rollout)
    exact_values, values = [], []
    for name, (exact, note) in told.items():
        settings = method.priced("loss", name)
        ours = without - method.climbs(policy, rollout, **settings)
        quantity = f"text: beta grad KL, {name} in the loss"
        yield equal(method.option, quantity, BETA * exact, ours, note=note)
        one = method.make(policy, **settings)
        values.append(one.loss(policy, one.prepare(rollout), None)[1]["loss/kl"] * method.scale(rollout))
        exact_values.append(BETA * world.moments(pi, taken[name])[0])
    exact_value = torch.stack(exact_values)
    note = f"the KL of completions; k2 makes it {float((exact_value[1] / exact_value[0]).detach()):.2f} times as much"
    yield equal(method.option, "text: loss/kl, of each estimator", exact_value, torch.stack(values), note=note)


def price_off_the_behaviour_policy(method: Writer) -> Iterator[Check]:
    """If another policy wrote the completions, the ratio corrects for it; k2 has no ratio."""
    world, behaviour, policy = language(), language().table(), language().table(moved=0.5)
    wrote, pi = world.probabilities(behaviour).detach(), world.probabilities(policy)
    reference = world.probabilities(world.table(seed=1)).detach()
    rollout, visits = method.every(world, wrote, reference), world.visits(wrote)
    without = method.climbs(behaviour, rollout, at=policy)
    right = slope(world.divergence(pi, reference, visits), policy, keep=True)
    half_square = 0.5 * (pi.log() - reference.log()).square()
    uncorrected = slope(visits @ (wrote * half_square).sum(-1), policy)
    told = {
        "k3_corrected": (right, "grad KL(pi || ref) at the prefixes of the policy that wrote"),
        "k2": (uncorrected, f"predicted: {angle(uncorrected, right):.1f} degrees from it, for it knows no ratio"),
    }
    for name, (exact, note) in told.items():
        ours = without - method.climbs(behaviour, rollout, at=policy, **method.priced("loss", name))
        biased = "" if name == "k3_corrected" else "biased "
        yield equal(method.option, f"text: off-policy {biased}grad KL, {name}", BETA * exact, ours, note=note)


# ---------------------------------------------------------------- GRPO and its family


def as_it_is_configured(method: Writer) -> Iterator[Check]:
    """The gradient with the advantage, the ratio and the aggregation of the method's own YAML file."""
    world, config = language(), method.config
    policy, moved = world.table(), world.table(moved=1.2)
    pi = world.probabilities(policy).detach()
    rollout = world.groups(pi, size=GROUP)
    right = slope(world.value(world.probabilities(policy)), policy)
    cut = rollout.truncated.any(1)
    assert rollout.weights is not None
    own = {"advantage": config.advantage, "surrogate": config.surrogate, "clip": config.clip.model_dump(),
           "aggregation": config.aggregation, "aggregation_length": config.aggregation_length}  # fmt: skip
    for name, at, changes in (
        ("ratio 1", policy, own),
        ("moved", moved, own),
        ("cut ones masked", policy, own | {"mask_truncated": True}),
    ):
        there = world.probabilities(at).detach()
        credit = _advantages(rollout, config.advantage)[:, None].expand_as(rollout.rewards)
        mask = rollout.mask & ~cut[:, None] if "mask_truncated" in changes else rollout.mask
        ratio = world.likelihoods(rollout, there) / world.likelihoods(rollout, pi)
        weights = _aggregated(mask, rollout.weights, config)
        pull = _pull(ratio, credit, mask, config)
        exact = world.expected_score(rollout, weights * credit * pull, there)
        ours = -slope(method.loss(policy, rollout, policy=at, **changes), at)
        turned = f"{angle(exact, right):.1f} degrees from grad J"
        held = float((pull[mask] == 0).double().mean())
        note = {"ratio 1": turned, "moved": f"off the behaviour policy: {held:.0%} of tokens have no gradient"}.get(
            name, f"{turned}: those that the limit cut are a baseline only"
        )
        yield equal(method.option, f"text: as configured, {name}", exact, ours, note=note)


def _advantages(rollout: Rollout, kind: str) -> Tensor:
    """(N,), group by group."""
    returns = reward_to_go(rollout)[:, 0].view(-1, GROUP)
    mean = returns.mean(1, keepdim=True)
    centred = returns - mean
    scale: Tensor | float
    match kind:
        case "standardised":
            scale = 1 / (centred.square().mean(1, keepdim=True).sqrt() + EPSILON)
        case "maxrl":
            scale = 1 / mean
        case "batch":
            scale = 1 / (returns.std(correction=0) + EPSILON)
        case "leave_one_out":
            scale = GROUP / (GROUP - 1)
        case _:
            scale = 1.0
    return (centred * scale).flatten()


def _aggregated(mask: Tensor, chances: Tensor, config: Any) -> Tensor:
    """(N, T): the weight of each token."""
    rows, lengths = chances[:, None], mask.sum(1, keepdim=True).clamp(min=1)
    divided = {
        "token_mean": (chances @ mask.double()).sum(),
        "sequence_mean": lengths,
        "sequence_sum": torch.ones(()),
        "constant": torch.tensor(config.aggregation_length or mask.shape[1]),
    }
    return torch.where(mask, rows / divided[config.aggregation], 0)


def _pull(ratio: Tensor, credit: Tensor, mask: Tensor, config: Any) -> Tensor:
    """(N, T): the derivative of the surrogate with respect to log pi of a token, divided by the advantage."""
    low, high, up = 1 - config.clip.low, 1 + config.clip.high, credit > 0
    match config.surrogate:
        case "cispo":
            return ratio.clamp(low, high)
        case "sapo":
            tau = torch.where(up, config.gate.positive, config.gate.negative).to(ratio)
            closing = torch.sigmoid(tau * (ratio - 1))
            return 4 * closing * (1 - closing) * ratio
        case "gspo":
            lengths = mask.sum(1, keepdim=True).clamp(min=1)
            # Each of the terms of a row, `length` of them, has the mean of all its log-ratios in it.
            ratio = torch.where(mask, ratio.log(), 0).sum(1, keepdim=True).div(lengths).exp().expand_as(ratio)
    return torch.where(torch.where(up, ratio > high, ratio < low), 0, ratio)


# ---------------------------------------------------------------- learning from given completions


def best(world: Language, reference: Tensor) -> Tensor:
    """(B, Y / B): log pi*(y | x), the optimum of E[r] - beta KL(pi || reference)."""
    rewards = world.rewards.view(world.prompts, -1)
    return tilt(world.sequences(reference), rewards, BETA)


def maximum_likelihood(method: Writer) -> Iterator[Check]:
    """On completions of pi*: the likelihood's gradient, per token; and the optimum is pi*."""
    world, policy = language(), language().transformer()
    teacher = world.policy_of(best(world, world.probabilities(world.table(seed=1)).detach()))
    rollout, pi = world.rollout(teacher), world.probabilities(policy)
    rollout.log_probs = ABSENT  # unknown for given texts
    visits = world.visits(teacher)
    entropy = -visits @ (teacher * pi.log()).sum(-1) / visits.sum()
    ours = method.loss(policy, rollout)
    yield equal(method.option, "text: cross-entropy", entropy, ours, note="per token; the end token is one of them")
    yield equal(method.option, "text: grad of the log-likelihood", -slope(entropy, policy), -slope(ours, policy))
    whole = Whole(world, world.sequences(pi))
    one = method.make(whole)
    batch = one.prepare(rollout)
    minimise(lambda: one.loss(whole, batch, None)[0], whole.logits)
    found = world.probabilities(whole).detach()
    yield equal(
        method.option, "text: KL(pi* || what it ends at)", 0.0, world.divergence(teacher, found),
        note="taught by pi*'s completions, descended to the end",
    )  # fmt: skip


def imitation_of_the_best(method: Writer) -> Iterator[Check]:
    """The better of two is kept: a sample of another distribution, whose likelihood is maximised."""
    world, policy = language(), language().table()
    pi = world.probabilities(policy).detach()
    chances, rewards = world.sequences(pi).exp(), world.rewards.view(world.prompts, -1)
    # P(the better one is y) = pi(y)^2 + 2 pi(y) P(another is worse)
    worse = (chances[:, None, :] * (rewards[:, None, :] < rewards[:, :, None])).sum(-1)
    best_of_two = chances * (chances + 2 * worse)
    each = best_of_two.flatten() / world.prompts
    exact = each @ world.score(pi) / (each @ world.mask.sum(1).double())
    ours = -slope(method.loss(policy, world.groups(pi, size=GROUP), selection="top_per_prompt"), policy)
    right = slope(world.value(world.probabilities(policy)), policy)
    note = f"of the better of two, per token: {angle(exact, right):.1f} degrees from grad J"
    yield equal(method.option, "text: grad of the log-likelihood", exact, ours, note=note)
    divergence = (best_of_two * (best_of_two / chances).log()).sum(1)
    bound = math.log(GROUP) - (GROUP - 1) / GROUP
    note = "KL(best of two || policy): log K - (K - 1) / K, at the most"
    yield at_most(method.option, "text: how far it is led", bound, float(divergence.max()), note=note)


# ---------------------------------------------------------------- shared mathematics


def the_task_itself() -> Iterator[Check]:
    """Each number in two ways: token by token through the decision process, and by summing over completions."""
    world, policy = language(), language().transformer()
    pi, reference = world.probabilities(policy), world.probabilities(world.table(seed=1))
    rollout, scored = world.rollout(pi), policy(world.observations, world.actions).log_probs
    assert rollout.weights is not None
    whole = masked_sum(scored, world.mask, dim=1)  # log pi(y | x)
    chances = whole.exp() / world.prompts
    count = len(world.actions) // world.prompts
    yield equal("", "text: sum of probabilities", 1.0, chances.sum(), note=f"{count} completions of each prompt")
    yield equal("", "text: log pi(y)", _decoded(world, policy), whole, note="token by token, as it is sampled; scored")
    cold, warm = settings().policy.temperature, world.probabilities(world.transformer(temperature=1.0))
    exact = (warm.log() / cold).softmax(-1)
    yield equal("", "text: pi at a temperature", exact, pi, note=f"pi^(1/{cold:g}), divided by its sum")
    yield equal("", "text: J", world.value(pi), chances @ world.rewards, note="by dynamic programming; by adding up")
    by_sum = slope(chances @ world.rewards, policy, keep=True)
    yield equal("", "text: grad J", slope(world.value(pi), policy, keep=True), by_sum, note="of all parameters")

    other = masked_sum(world.rollout(reference).log_probs, world.mask, dim=1)
    divergence = chances @ (whole - other)
    note = "the KLs of each next token, over the prefixes that are visited"
    yield equal("", "text: KL(pi || ref)", world.divergence(pi, reference), divergence, note=note)
    exact = slope(world.divergence(pi, reference.detach()), policy, keep=True)
    yield equal("", "text: grad KL(pi || ref)", exact, slope(divergence, policy), note="of completions")


def _decoded(world: Language, policy: Any) -> Tensor:
    """(Y,): log pi(y | x) by the decoder, which reads one token after the other with its cache."""
    total = torch.zeros_like(world.rewards)
    with torch.no_grad():
        logits, cache = policy.prefill(world.observations)
        for t in range(world.mask.shape[1]):
            chosen = logits.log_softmax(-1).gather(1, world.actions[:, t : t + 1]).squeeze(1)
            total += torch.where(world.mask[:, t], chosen, 0)
            logits = policy.step(world.actions[:, t], cache) if t + 1 < world.mask.shape[1] else logits
    return total


def the_best_policy() -> Iterator[Check]:
    """pi* = ref exp(r / beta) / Z: the gradient vanishes there, and every other policy has a lower value."""
    world = language()
    reference = world.probabilities(world.table(seed=1)).detach()
    rewards = world.rewards.view(world.prompts, -1)
    normaliser = (world.sequences(reference) + rewards / BETA).logsumexp(-1)
    table = Table(world.policy_of(best(world, reference))[:-1].log())

    def worth(policy: Any) -> Tensor:
        pi = world.probabilities(policy)
        return world.value(pi) - BETA * world.divergence(pi, reference)

    top = worth(table)
    yield equal("", "text: J - beta KL at pi*", BETA * normaliser.mean(), top, note=f"beta log Z, beta {BETA:g}")
    gradient = slope(top, table)
    yield equal("", "text: its gradient at pi*", torch.zeros_like(gradient), gradient, note="an optimum")
    for name, policy in (("the policy", world.transformer()), ("the reference", world.transformer(seed=1))):
        gap = world.divergence(world.probabilities(policy), world.probabilities(table))
        note = "falls short of pi*'s by beta KL(pi || pi*)"
        yield equal("", f"text: J - beta KL of {name}", top - BETA * gap, worth(policy), note=note)


def estimators_of_the_kl() -> Iterator[Check]:
    """Value and variance of each, summed over a completion: by backward induction, and by summing over completions."""
    world = language()
    pi, reference = (world.probabilities(world.table(seed=seed)).detach() for seed in (0, 1))
    new, old = world.rollout(pi).log_probs, world.rollout(reference).log_probs
    weights = world.chances(pi)
    ours = {"k1": k1(new, old), "k2": k2(new, old), "k3": k3(new, old), "k3_corrected": k3_corrected(new, old, new)}
    divergence = float(world.divergence(pi, reference))
    for name, cost in costs(pi, reference).items():
        mean, variance = world.moments(pi, cost)
        each = masked_sum(ours[name], world.mask, dim=1)
        bias = float(mean) - divergence
        note = f"biased by {bias:+.3f}" if abs(bias) > 1e-9 else "KL(pi || ref) of completions"
        yield equal("", f"text: {name}, mean", mean, weights @ each, note=note)
        yield equal("", f"text: {name}, variance", variance, _spread(weights, each[:, None]))


def noise_of_the_kl() -> Iterator[Check]:
    """Variance of each estimator's gradient, in the loss or as k1 in the reward, for one completion of the table."""
    world = language()
    pi, reference = (world.probabilities(world.table(seed=seed)).detach() for seed in (0, 1))
    rollout, weights = world.rollout(pi, reference), world.chances(pi)
    table = Table(pi[:-1].log().expand(len(weights), -1, -1))
    old = rollout.reference_log_probs
    ratio = torch.where(world.mask, (pi / reference)[world.states, world.actions], 1)
    to_go = ratio.log().flip(1).cumsum(1).flip(1)
    # The factor of grad log pi of a token.
    told = {
        "k1 in the reward": (to_go, lambda new: to_go * new),
        "k2 in the loss": (ratio.log(), lambda new: k2(new, old)),
        "k3 in the loss": (1 - 1 / ratio, lambda new: k3(new, old)),
        "k3_corrected in the loss": (ratio.log(), lambda new: k3_corrected(new, old, new.detach())),
    }
    notes = {
        "k1 in the reward": "of one completion's gradient, trace of the covariance",
        "k3_corrected in the loss": "on-policy its gradient is k2's, completion by completion",
    }
    passed = torch.nn.functional.one_hot(world.states, len(pi) - 1).double()
    score = torch.nn.functional.one_hot(world.actions, pi.shape[1]) - pi[world.states]
    for name, (credit, estimate) in told.items():
        each = torch.einsum("nt,nts,nta->nsa", torch.where(world.mask, credit, 0), passed, score)
        new = table(world.observations, world.actions).log_probs
        (found,) = torch.autograd.grad(masked_sum(estimate(new), world.mask), [table.logits])
        exact, ours = (_spread(weights, x.flatten(1)) for x in (each, found))
        yield equal("", f"text: variance, {name}", exact, ours, note=notes.get(name, ""))


SHARED = (the_task_itself, the_best_policy, estimators_of_the_kl, noise_of_the_kl)
