"""`audit`: properties that every run must have, checked in its directory and by collecting with its last checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgcli.algorithms._update import by_rows, by_unit
from pgcli.collectors.reference import view
from pgcli.errors import InputError, PgcliError
from pgcli.experiment.build import Parts, build
from pgcli.experiment.config import UntrustedError, load
from pgcli.experiment.overrides import parse
from pgcli.experiment.session import EXTENSIBLE, opened
from pgcli.functional.masked import masked_sum
from pgcli.options import GROUPS
from pgcli.runs import checkpoint
from pgcli.runs.reader import Run, find_run
from pgcli.seeding import episode_seeds, numpy_generator
from pgcli.types import ABSENT, Batch, Rollout, State

STREAM = "audit"
COMPLETIONS = 64
MISMATCH = 1e-3
"""Largest difference, in nats, between a sampler's log-prob and the loss's: float32 gives about 1e-6, a cache in half
precision about 1e-4; a wrong temperature gives tenths.
"""


UNDEFINED = ("value/explained_variance",)
"""Metrics that are NaN, rightly, if all returns are equal."""


class Check(NamedTuple):
    name: str
    seen: str
    ok: bool | None
    """None: the check does not apply to this run."""


def audit(run: Path | str, *, trust: bool = False, runs_dir: str = "runs") -> list[Check]:
    """Check a run: `pgcli audit RUN`. Nothing in its directory changes."""
    found = find_run(str(run), runs_dir)
    checks = [*_directory(found)]
    try:
        with opened(found, trust=trust) as (parts, _):
            checks += _replay(found, parts)
    except UntrustedError:
        raise
    except PgcliError as error:
        checks.append(Check("can be replayed", str(error).splitlines()[0], False))
    return checks


# ---------------------------------------------------------------- the directory


def _directory(run: Run) -> Iterator[Check]:
    yield _checkpoints(run)
    yield from _metrics(run)
    yield from _counts(run)
    yield _config(run)
    yield _price(run)


def _checkpoints(run: Run) -> Check:
    paths, damage = run.checkpoints(), []
    for path in paths:
        try:
            checkpoint.read(path)
        except InputError as error:
            damage.append(str(error))
    seen = f"{len(paths) - len(damage)} of {len(paths)} have the hashes of their manifest"
    return Check("checkpoints are intact", "; ".join([seen, *damage[:1]]), bool(paths) and not damage)


def _metrics(run: Run) -> Iterator[Check]:
    try:
        rows = run.rows()
    except InputError as error:
        yield Check("metrics can be read", str(error), False)
        return
    bad = [
        (row.get("step"), key)
        for row in rows
        for key, value in row.items()
        if key not in UNDEFINED and (not isinstance(value, int | float) or not math.isfinite(value))
    ]
    first = f"; the first is {bad[0][1]} at step {bad[0][0]}" if bad else ""
    yield Check("metrics are finite", f"{len(bad)} of {sum(map(len, rows))} values are not{first}", not bad)
    steps, updates = ([row.get(key, -1) for row in rows] for key in ("step", "update"))
    rises = all(a < b for values in (steps, updates) for a, b in pairwise(values))
    span = f"{len(rows)} rows" + (f", step {steps[0]:,} to {steps[-1]:,}" if rows else "")
    yield Check("steps and updates rise", span, rises)


def _counts(run: Run) -> Iterator[Check]:
    """Values that are written in several places agree."""
    last = [row["step"] for row in run.rows()[-1:]] or [0]
    saved = [int(path.name.removeprefix("step-")) for path in run.checkpoints()[-1:]] or [0]
    same = last[0] == saved[0] == run.steps
    whole = bool(run.info["ended"]) and run.status != "failed"  # a failure may come between one file and another
    seen = f"run {run.steps:,}, last row {last[0]:,}, last checkpoint {saved[0]:,}"
    yield Check("the end is the same everywhere", seen, same if whole else None)
    counted = sum(row.get("rollout/episodes", 0) for row in run.rows())
    logged = len(run.episodes().get("step", []))
    seen = f"{counted:,.0f} counted in metrics, {logged:,} in episodes.csv"
    yield Check("every episode is written down", seen, counted == logged if whole else None)


def _config(run: Run) -> Check:
    """Every override that was typed is in config.yaml, except settings that a resumed run may change."""
    name = "the config is what was typed"
    try:
        words = parse((run.path / "overrides.txt").read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError, InputError) as error:
        return Check(name, f"overrides.txt: {error}", False)
    wrong = []
    words = list({word.key: word for word in words}.values())  # of two for one setting the last one counts
    for key, value, text in words:
        if key in (*EXTENSIBLE, "tuned"):
            continue
        if key in GROUPS:
            section = run.config[key]
            known = {
                run.choices[key],
                section.get("name"),
                section.get("id"),
                f"{section['name']}:{section.get('index')}",
            }
            if str(value) not in {str(x) for x in known}:
                wrong.append(text)
            continue
        node: Any = run.config
        for part in key.split("."):
            node = node.get(part, ABSENT) if isinstance(node, dict) else ABSENT
        whole = str(node).endswith(f"/{str(value).removeprefix('./')}") or value == "latest"  # an absolute path
        if node != value and str(node) != str(value) and not whole:
            wrong.append(text)
    kept = f"{len(words) - len(wrong)} of {len(words)} words"
    return Check(name, kept + (f"; not {', '.join(wrong)}" if wrong else ""), not wrong)


def _price(run: Run) -> Check:
    """The KL price is paid in one place only, by an estimator whose gradient is right there."""
    name = "KL is paid once, and rightly"
    settings = run.config["algo"].get("kl")
    if not isinstance(settings, dict) or "placement" not in settings:
        return Check(name, "this method has no price on KL", None)
    paid = {place: bool(run.rows(key)) for place, key in (("reward", "kl/price"), ("loss", "loss/kl"))}
    if not settings["coefficient"]:
        return Check(name, "coefficient 0: nothing is paid", not any(paid.values()))
    placement, estimator = settings["placement"], settings["estimator"]
    other = "loss" if placement == "reward" else "reward"
    right = estimator == "k1" if placement == "reward" else estimator in ("k2", "k3_corrected")
    seen = f"{settings['coefficient']:g} a nat, by {estimator} in the {placement}"
    seen += f", and in the {other} too" if paid[other] else "" if right else ", where its gradient is biased (as asked)"
    asked = settings["allow_biased"] or (placement, estimator) == ("loss", "k3")
    return Check(name, seen, (right or asked) and not paid[other] and (paid[placement] or not run.rows()))


# ---------------------------------------------------------------- played once more


def _replay(run: Run, parts: Parts) -> Iterator[Check]:
    yield _reference(run, parts)
    writes = hasattr(parts.evaluator, "task") and hasattr(parts.policy, "prefill")
    played = _play(parts, COMPLETIONS) if writes else None
    collected = parts.collector.collect(parts.behaviour())
    trained = collected if isinstance(collected, Rollout) else None
    if trained is None and played is None:
        yield Check("played once more", f"algo={run.choices['algo']} learns from no rollout", None)
        return
    source = "training" if trained is not None else "evaluation"
    rollout = trained if trained is not None else played
    assert rollout is not None
    if writes:
        yield from _masks(rollout, parts, source)
    else:
        cut = int((~rollout.mask).sum())
        after = rollout.mask[:, 1:] & ~rollout.mask[:, :-1]
        yield Check(
            "masks end where an episode does", f"{cut:,} of {rollout.mask.numel():,} are padding", not after.any()
        )
    if trained is not None:
        yield from _padding(trained, parts)
    sampled = next((r for r in (trained, played) if r is not None and r.log_probs is not None), None)
    if sampled is not None:
        yield _ratio(sampled, parts)
        yield from _rewards(sampled, run, parts, writes)
    if writes:
        yield _batching(parts)


def _play(parts: Parts, rows: int) -> Rollout:
    seeds = episode_seeds(parts.config.seed, STREAM, range(rows))
    return parts.evaluator.play(parts.policy, seeds, numpy_generator(parts.config.seed, STREAM), held_out=True)


def _reference(run: Run, parts: Parts) -> Check:
    name = "the reference has not moved"
    if "reference" not in parts.frozen:
        return Check(name, "there is none", None)
    now: State = parts.frozen["reference"].state_dict()
    settings = parts.config
    source = settings.reference or settings.init
    try:
        if source is None:
            origin = "the initial policy"
            first = build(load(run.path, trust=True)).frozen["reference"].state_dict()
        else:
            origin = source
            first = checkpoint.load_last(find_run(source).path / "checkpoints", memory=False).state["policy"]
    except PgcliError:
        origin = "its oldest checkpoint"
        first = checkpoint.read(run.checkpoints()[0], memory=False)[1]["frozen"]["reference"]
    moved = [key for key, value in now.items() if key in first and not torch.equal(value.cpu(), first[key].cpu())]
    shared = sum(key in first for key in now)
    same = f"{shared - len(moved)} of {shared} tensors are those of {origin}"
    return Check(name, same, not moved and shared > 0)


def _masks(rollout: Rollout, parts: Parts, source: str) -> Iterator[Check]:
    """Texts: masks are 1 up to and including the last end token, 0 after it and on a task's own reply."""
    spec = parts.environment.spec
    position = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
    last = torch.where(rollout.mask, position, -1).amax(1)
    ends = (rollout.actions == spec.end) & rollout.mask
    turns = 2 if spec.reply_length else 1
    holes = (~rollout.mask & (position < last[:, None])).any(1)
    finished = rollout.terminated.any(1)
    closes = ends.gather(1, last[:, None].clamp(min=0))[:, 0]
    good = (last >= 0) & (ends.sum(1) <= turns) & (closes | (rollout.truncated.any(1) | ~finished))
    good &= ~holes if turns == 1 else torch.ones_like(holes)
    good &= closes | (ends.sum(1) < turns)  # nothing follows the last end token
    yield Check(
        "masks are 1 up to the end, and not after", f"{int(good.sum())} of {len(good)} {source} rows", bool(good.all())
    )
    trained = finished & closes & rollout.terminated.gather(1, last[:, None].clamp(min=0))[:, 0]
    seen = f"{int(trained.sum())} of {int(finished.sum())} that ended have it in their mask"
    yield Check("the end token is trained", seen, bool((trained == finished).all()))


def _padding(rollout: Rollout, parts: Parts) -> Iterator[Check]:
    """The loss does not depend on values at padding, and the estimates do not change the rollout."""
    name = "padding is not in the loss"
    algorithm: Any = parts.algorithm
    if not hasattr(algorithm, "prepare") or not hasattr(algorithm, "loss"):
        yield Check(name, "this method has no loss over rows", None)
        return
    before = rollout.rewards.clone()
    batch: Batch = algorithm.prepare(rollout)
    yield Check(
        "rewards stay as they were given", "the method's estimates are its own", bool(before.equal(rollout.rewards))
    )
    if batch.mask is ABSENT or bool(rollout.mask.all()):
        yield Check(name, "there is none", None)
        return
    position = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    behind = position > torch.where(batch.mask, position, -1).amax(1, keepdim=True)
    weighed = float((batch.weights * ~batch.mask).abs().sum() + (batch.per_action * ~batch.mask).abs().sum())

    def other(x: Tensor) -> Tensor:
        if x is ABSENT or x.shape != batch.mask.shape:
            return x
        return torch.where(behind, x.flip(0) if x.dtype == torch.int64 else x + 1.0, x)

    changed = replace(
        batch, actions=other(batch.actions), advantages=other(batch.advantages), returns=other(batch.returns),
        log_probs=other(batch.log_probs), values=other(batch.values),
        reference_log_probs=other(batch.reference_log_probs),
    )  # fmt: skip
    policy = parts.policy
    if getattr(getattr(algorithm, "updater", None), "whole_rows", False):
        policy = by_rows(policy, policy)
    else:
        batch, changed = by_unit(policy, batch), by_unit(policy, changed)
    with torch.no_grad():
        losses = [float(algorithm.loss(policy, one, None)[0]) for one in (batch, changed)]
    seen = f"the loss is {losses[0]:.6g}, and {losses[1]:.6g} with other padding"
    close = math.isclose(losses[0], losses[1], rel_tol=1e-5, abs_tol=1e-6)
    yield Check(name, seen, close and weighed == 0)


def _ratio(rollout: Rollout, parts: Parts) -> Check:
    """Before an update's first step the policy is the behaviour policy: every ratio is 1."""
    found = view(parts.behaviour(), rollout).log_probs
    apart = torch.where(rollout.mask, (found - rollout.log_probs).abs(), 0)
    worst = float(apart.max())
    seen = f"log-probs of sampler and loss are at most {worst:.1e} nats apart"
    return Check("the ratio is 1 on the first epoch", seen, worst < MISMATCH)


def _rewards(rollout: Rollout, run: Run, parts: Parts, writes: bool) -> Iterator[Check]:
    if writes:
        task = parts.evaluator.task if rollout.aux else parts.environment  # type: ignore[attr-defined]
        given = task.rewards(rollout.observations, rollout.actions, rollout.mask)["reward"]
        position = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
        last = position == torch.where(rollout.mask, position, -1).amax(1, keepdim=True)
        name = "rewards stand where they are due"
        if given.dim() == 2:
            outside = int((rollout.rewards * ~rollout.mask).count_nonzero())
            yield Check(name, f"the task pays token by token; {outside} are off the mask", outside == 0)
        else:
            early = int(torch.where(last, 0, rollout.rewards).count_nonzero())
            yield Check(name, f"on the last token; {early} elsewhere", early == 0)
    whole = len(rollout.episodes) == len(rollout.mask)
    normalised = run.config["env"].get("normalise", {}).get("rewards", False)
    name = "returns are the sums of rewards"
    if not whole or normalised:
        yield Check(name, "rows are no whole episodes" if not whole else "rewards are normalised", None)
        return
    totals = masked_sum(rollout.rewards, rollout.mask, dim=1).cpu().double()
    told = torch.tensor([episode.total for episode in rollout.episodes], dtype=torch.float64)
    apart = float((totals - told).abs().nan_to_num().max())
    yield Check(
        name, f"at most {apart:.1e} apart, of {len(told)} episodes", apart <= 1e-4 * max(1.0, float(told.abs().max()))
    )


def _batching(parts: Parts) -> Check:
    """A completion is a function of its prompt and its noise, whatever else is in the batch."""
    whole = _play(parts, COMPLETIONS)
    seeds = episode_seeds(parts.config.seed, STREAM, range(COMPLETIONS))
    generator = numpy_generator(parts.config.seed, STREAM)
    pieces = [
        parts.evaluator.play(parts.policy, seeds[i : i + 16], generator, held_out=True)
        for i in range(0, len(seeds), 16)
    ]
    same = (torch.cat([piece.actions for piece in pieces]) == whole.actions).all(1)
    seen = f"{int(same.sum())} of {len(same)} completions are the same in batches of {len(same)} and of 16"
    # Matrix products of another shape may round differently, which changes about one token in a thousand.
    return Check("noise does not depend on batching", seen, float(same.float().mean()) >= 0.95)
