"""The final sentence of a comparison, and the command for a more certain one."""

import os
import shlex
from collections.abc import Iterable, Sequence
from itertools import chain
from math import floor, inf, isfinite, log10, prod

from pgcli.analysis import statistics
from pgcli.analysis.curves import Curve
from pgcli.analysis.results import Contrast, Group, Reach
from pgcli.analysis.statistics import Estimate
from pgcli.runs.reader import still_true, typed_options


def conclude(
    groups: list[Group],
    contrasts: list[Contrast],
    shared: list[str],
    margin: float | None,
    measure: str,
    paths: Sequence[os.PathLike[str] | str] = (),
) -> tuple[str, list[str]]:
    """The verdict, and the next commands. measure: what is compared, such as `final return`; paths: of the runs."""
    if len(groups) == 1:
        return describe(groups[0], measure), []
    if not shared:
        return "Nothing to compare: these groups have no environment in common.", []
    by_label = {group.label: group for group in groups}
    best = by_label[contrasts[0].better]
    beaten = [contrast for contrast in contrasts if contrast.claimed]
    undecided = [by_label[contrast.worse] for contrast in contrasts if not contrast.claimed]
    sentences: list[str] = []
    commands: list[str] = []
    if beaten:
        sentences.append(winner(best, by_label[beaten[0].worse], beaten, shared, measure))
    if undecided:
        closest = next(contrast for contrast in contrasts if not contrast.claimed)
        sentence, commands = too_early(best, undecided, closest, len(groups), margin, paths)
        sentences.append(sentence)
    return " ".join(sentences), commands


# ---------------------------------------------------------------- the sentences


def describe(group: Group, measure: str) -> str:
    """The sentence about a single group, which has no comparison."""
    parts = []
    for result in group.results:
        spelled = with_interval([result.final.iqm, result.final.mean])
        reach = f"; {reach_text(result.reach)}" if result.reach else ""
        parts.append(
            f"on {result.environment}: IQM of the {measure} {spelled[0]}, mean {spelled[1]}{reach}; "
            f"{plural(len(result.curves), 'seed')}, {result.steps:,} steps"
        )
    return f"{group.name} " + "; ".join(parts) + "."


def reach_text(reach: Reach) -> str:
    """`reached 475 in 9 of 10 runs, half of all runs within 41,000 steps (8.8 s)`."""
    text = f"reached {reach.threshold:g} in {reach.reached} of {reach.of} runs"
    if isfinite(reach.steps.value):
        text += f", half of all runs within {reach.steps.value:,.0f} steps ({figure(reach.seconds.value)} s)"
    return text


def winner(best: Group, closest: Group, beaten: list[Contrast], shared: list[str], measure: str) -> str:
    """The winner, by how much and how certainly; the numbers are those of the closest group beaten."""
    names = [contrast.worse.removeprefix("algo=") for contrast in beaten]
    over = "" if len(names) == 1 else f" over {closest.name}, the closest,"
    results = [result for slug in shared for group in (best, closest) if (result := group.on(slug))]
    where = results[0].environment if len(shared) == 1 else f"{len(shared)} environments"
    assert best.overall is not None  # there is a shared environment
    assert closest.overall is not None
    first, second = with_interval([best.overall.iqm, closest.overall.iqm])
    steps = sorted({result.steps for result in results})
    scaled = "" if len(shared) == 1 else "scaled "
    return (
        f"{best.name} beats {listed(some(names))} on {where}: "
        f"probability of improvement{over} {with_interval([beaten[0].probability], decimals=2)[0]}; "
        f"IQM of the {scaled}{measure} {first} against {second}; "
        f"{seeds_text([best, closest])}, {' to '.join(f'{n:,}' for n in {steps[0]: 0, steps[-1]: 0})} steps."
    )


def too_early(
    best: Group,
    undecided: list[Group],
    contrast: Contrast,
    groups: int,
    margin: float | None,
    paths: Sequence[os.PathLike[str] | str],
) -> tuple[str, list[str]]:
    """The difference that these seeds could have shown, and the seeds needed. contrast: best and closest group."""
    closest = undecided[0]
    pairs = list(zip(best.compared, closest.compared, strict=True))
    sizes = [(len(x), len(y)) for x, y in pairs]
    strata, size = len(sizes), min(map(min, sizes))
    significance = statistics.SIGNIFICANCE / (groups * (groups - 1) // 2)
    least = statistics.seeds_needed(inf, 1.0, strata, significance)
    spread = statistics.pooled_spread(pairs)
    names = [group.name for group in undecided]
    between = "" if groups == 2 else f" between {listed([best.name, *some(names)])}"
    against = f" against {closest.name}, the closest" if len(undecided) > 1 else ""
    seeds, needed = seeds_text([best, closest]), least

    def detectable(sizes: list[tuple[int, int]]) -> str:
        return figure(statistics.detectable_difference(spread or 0.0, sizes, significance))

    if spread == 0 and contrast.probability.value == 0.5:
        pair, of_both = ("", "") if groups == 2 else (f" between {best.name} and {closest.name}", " of both")
        rest = f" Too early to say of {listed(some(names[1:]))}." if names[1:] else ""
        return (
            f"No difference to see{pair}: every run{of_both} ended at {figure(float(pairs[0][0][0]))}; {seeds}.{rest}",
            [],
        )
    seen = abs(sum(x.mean() - y.mean() for x, y in pairs)) / strata
    scaled = "" if strata == 1 else " scaled"
    if not statistics.can_show(sizes, significance):
        could = f"{seeds} cannot show any difference, and {least} are the fewest that can"
        could += f" (of {detectable([(least, least)] * strata)} or more)" if spread else ""
    elif spread and seen >= statistics.detectable_difference(spread, sizes, significance):
        could = f"{seeds} show a{scaled} difference of {detectable(sizes)} or more only four times out of five"
    else:
        could = f"{seeds} could only have shown a{scaled} difference of {detectable(sizes)} or more"
    probability = with_interval([contrast.probability], decimals=2)[0]
    sentence = (
        f"Too early to say{between}: {could} (seen{against}: {figure(seen)}; probability of improvement {probability})."
    )
    if margin is not None and spread:
        needed = statistics.seeds_needed(margin, spread, strata, significance)
    if needed <= size:
        return sentence + (f" One of {margin:g} would have shown four times out of five." if margin else ""), []
    wanted = [best, *undecided]
    sizes_now = [len(result.curves) for group in wanted for result in group.results]
    more = needed - min(sizes_now)
    commands = sweep_commands(wanted, more)
    purpose = f"To see {margin:g}, add" if margin is not None and spread else "Add"
    total = f"{needed} in all" if min(sizes_now) == max(sizes_now) else f"at least {needed} in all"
    lines = [f"{sentence} {purpose} {plural(more, 'seed')} each ({total}): {commands[0]}", *commands[1:]]
    return "\n".join([*lines, f"then {compare_command(paths, len(commands))}"]), commands


# ---------------------------------------------------------------- the command to type


def sweep_commands(groups: list[Group], more: int) -> list[str]:
    """Commands that give every group more seeds: one sweep if the groups are a product of settings, else one each."""
    curves = [group_curves(group) for group in groups]
    first = 1 + max(curve.seed for curve in chain(*curves))
    seed = f"seed=range({first},{first + more})"
    together = crossed(chain(*curves))
    if together is not None:
        return [shlex.join(["pgcli", "sweep", *together, seed, *shared_options(chain(*curves))])]
    return [shlex.join(["pgcli", "sweep", *(crossed(own) or ["..."]), seed, *shared_options(own)]) for own in curves]


FEW_PATHS = 3
"""Paths that are spelled in a command; more come from a pattern, which the shell's history has."""


def compare_command(paths: Sequence[os.PathLike[str] | str], sweeps: int) -> str:
    """What to type when the sweeps, each in a folder of its own, have added their runs to those of the paths."""
    old = [shlex.quote(str(path)) for path in paths] if 0 < len(paths) <= FEW_PATHS else ["..."]
    return " ".join(["pgcli compare", *old, *["sweeps/<id>"] * sweeps])


def group_curves(group: Group) -> list[Curve]:
    return [curve for result in group.results for curve in result.curves]


def crossed(curves: Iterable[Curve]) -> list[str] | None:
    """The runs' overrides as one sweep's, `algo=ppo,a2c env=cartpole`; None if they are not a full product."""
    typed = [typed_overrides(curve) for curve in curves]
    values = {key: list(dict.fromkeys(own[key] for own in typed if key in own)) for key in chain(*typed)}
    combinations = {tuple(sorted(own.items())) for own in typed}
    if any(own.keys() != values.keys() for own in typed) or len(combinations) != prod(map(len, values.values())):
        return None
    return [f"{key}={','.join(options)}" for key, options in values.items()]


def typed_overrides(curve: Curve) -> dict[str, str]:
    """The overrides typed to start a run, without its seed and directory; `algo` and `env` always."""
    file = curve.run.path / "overrides.txt"
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    typed = {"algo": curve.run.choices["algo"], "env": curve.run.choices["env"]}
    words = (still_true(curve.run, line) for line in lines)
    typed |= {key: value for key, _, value in (word.partition("=") for word in words)}
    return {key: value for key, value in typed.items() if key not in ("seed", "runs_dir")}


def shared_options(curves: Iterable[Curve]) -> list[str]:
    """The options with which the runs were started that say where configs are, and that code may be imported."""
    found: dict[str, list[str]] = {}
    for curve in curves:
        for option, values in typed_options(curve.run).items():
            found[option] = list(dict.fromkeys([*found.get(option, []), *values]))
    folders = [word for folder in found.get("--config-dir", []) for word in ("--config-dir", folder)]
    return folders + ["--trust"] * ("--trust" in found)


# ---------------------------------------------------------------- numbers as words


def decimals_for(numbers: Iterable[float]) -> int:
    """Decimals that show two significant digits of the numbers' spread, or of their size if all are equal."""
    numbers = [x for x in numbers if isfinite(x)]
    if not numbers:
        return 0
    scale = (max(numbers) - min(numbers)) or max(map(abs, numbers))
    return min(6, max(0, 1 - floor(log10(scale)))) if scale else 0


def figure(x: float) -> str:
    """Two significant digits, or all digits before the point: `0.12`, `8.8`, `1,204`."""
    return f"{x:,.{decimals_for([x])}f}" if isfinite(x) else "never"


def with_interval(estimates: Sequence[Estimate], decimals: int | None = None) -> list[str]:
    """`498 [489, 500]`, all with the number of decimals that they need together."""
    known = [x for estimate in estimates for x in estimate if x is not None]
    places = decimals_for(known) if decimals is None else decimals
    return [
        f"{e.value:,.{places}f}" + (f" [{e.low:,.{places}f}, {e.high:,.{places}f}]" if e.low is not None else "")
        for e in estimates
    ]


def plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def some(names: list[str]) -> list[str]:
    """The first few names, and the number of further ones."""
    return names if len(names) <= 3 else [*names[:3], f"{len(names) - 3} more"]


def seeds_text(groups: list[Group]) -> str:
    """`10 seeds each`, `10 and 9 seeds`; a range if there are several environments."""
    sizes = [[len(values) for values in group.compared] for group in groups]
    several = " per environment" if len(sizes[0]) > 1 else ""
    low, high = min(chain(*sizes)), max(chain(*sizes))
    if low == high:
        return f"{plural(low, 'seed')} each{several}"
    return f"{low} to {high} seeds{several}" if several else f"{listed([str(own[0]) for own in sizes])} seeds"
