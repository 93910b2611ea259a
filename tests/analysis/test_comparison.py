"""The verdict, both ways; what it takes to be surer; and everything irregular, named."""

import json
from pathlib import Path

import pytest

from pgcli.analysis import compare
from pgcli.analysis.report import columns
from pgcli.errors import InputError
from pgcli.runs import Run


def notes(comparison, words):
    return [warning for warning in comparison.warnings if words in warning]


# ---------------------------------------------------------------- the verdict


def test_a_winner_is_named_when_everything_agrees(write_runs):
    found = compare(write_runs("ppo", [480, 485, 490, 495, 500]) + write_runs("a2c", [380, 385, 390, 395, 400]))
    # IQM: the three in the middle. All 25 pairs are won; p is 2 / C(10, 5) = 2/252.
    assert found.verdict.startswith("ppo beats a2c on CartPole-v1: probability of improvement 1.00 [0.64, 1.00]; ")
    assert "IQM of the final return 490 [" in found.verdict
    assert "] against 390 [" in found.verdict
    assert found.verdict.endswith("; 5 seeds each, 200 steps.")
    assert found.contrasts[0].p == pytest.approx(2 / 252)
    assert [group.label for group in found.groups] == ["algo=ppo", "algo=a2c"]
    assert found.commands == []


def test_three_seeds_never_win_however_far_apart(write_runs):
    found = compare(write_runs("ppo", [500, 499, 498]) + write_runs("a2c", [10, 11, 12]))
    assert found.contrasts[0].probability.low > 0.5  # the interval alone would have claimed it
    assert found.contrasts[0].p == pytest.approx(0.1)
    assert found.verdict.startswith(
        "Too early to say: 3 seeds each cannot show any difference, and 4 are the fewest that can (of 2."
    )
    assert found.verdict.endswith(
        " Add 1 seed each (4 in all): pgcli sweep algo=ppo,a2c env=cartpole 'seed=range(3,4)'\n"
        "then pgcli compare ... sweeps/<id>"
    )


def test_the_seeds_to_add_go_into_new_folders_beside_those_that_were_compared(write_runs, tmp_path):
    write_runs("ppo", [400, 401, 402, 403], folder="a b")
    write_runs("a2c", [398, 399, 404], folder="c", config={"algo.num_steps": 8}, typed=["algo.num_steps=8"])
    found = compare([tmp_path / "a b", tmp_path / "c"])
    assert found.verdict.endswith(
        # 3 and 4 seeds: those of a2c are one short of four, which both get.
        " Add 1 seed each (at least 4 in all): pgcli sweep algo=ppo env=cartpole 'seed=range(4,5)'\n"
        "pgcli sweep algo=a2c env=cartpole algo.num_steps=8 'seed=range(4,5)'\n"
        f"then pgcli compare '{tmp_path}/a b' {tmp_path}/c sweeps/<id> sweeps/<id>"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_have_no_interval(write_runs, n):
    found = compare(write_runs("ppo", [500, 499][:n]) + write_runs("a2c", [10, 11][:n]))
    assert found.verdict.startswith(f"Too early to say: {n} seed{'s' if n > 1 else ''} each cannot show any difference")
    assert found.groups[0].results[0].final.iqm[1:] == (None, None)
    assert found.contrasts[0].probability[1:] == (None, None)
    assert notes(found, "fewer than 3 seeds")


def test_overlap_is_too_early_to_say(write_runs):
    found = compare(write_runs("ppo", [400, 420, 440, 460]) + write_runs("a2c", [390, 430, 435, 455]))
    # Sums of squares about the means 430 and 427.5: 2000 and 2225; over 6 degrees of freedom: 26.54 squared.
    # The largest p below 0.05 is 2/70: t = 2.8661.
    # ncp = 2.8661 (1 - 1/24) + 0.8416 sqrt(1 + 2.8661^2 / 12) = 3.8390; times 26.54 sqrt(2/4) sqrt(pi/3): 73.7.
    assert found.verdict.startswith(
        "Too early to say: 4 seeds each could only have shown a difference of 74 or more (seen: 2.5; "
    )
    # 400 beats 390; 420 too; 440 beats three; 460 all: 9 of 16.
    assert "probability of improvement 0.56 [" in found.verdict
    assert found.commands == []


def test_a_margin_tells_the_seeds_and_the_command(write_runs):
    paths = write_runs("ppo", [400, 420, 440, 460]) + write_runs("a2c", [390, 430, 435, 455])
    # d = 26.54 / 26.54 = 1: 17 seeds for a t test (Cohen's table), 18 for ranks, 14 more than there are.
    found = compare(paths, margin=26.6)
    assert found.commands == ["pgcli sweep algo=ppo,a2c env=cartpole 'seed=range(4,18)'"]
    said = f" To see 26.6, add 14 seeds each (18 in all): {found.commands[0]}\nthen pgcli compare ... sweeps/<id>"
    assert found.verdict.endswith(said)
    enough = compare(paths, margin=1000)
    assert enough.verdict.endswith("One of 1000 would have shown four times out of five.")
    assert enough.commands == []


def test_a_difference_that_could_have_been_shown_and_was_not_is_no_contradiction(write_runs):
    # Spread sqrt(200,000 / 8) = 158.1: 331 is detected four times out of five. 399 was seen, but with one of five
    # runs above all others the ranks allow chance: 20 of 25 pairs.
    found = compare(write_runs("ppo", [499] * 5) + write_runs("a2c", [0, 0, 0, 0, 500]))
    assert found.verdict.startswith(
        "Too early to say: 5 seeds each show a difference of 331 or more only four times out of five (seen: 399; "
    )


def test_a_margin_on_several_environments_is_a_share_of_their_range(write_runs):
    paths = [
        *write_runs("ppo", [0, 300, 500, 500]), *write_runs("ppo", [-500, -300, -100, -80], slug="acrobot"),
        *write_runs("a2c", [0, 200, 400, 500]), *write_runs("a2c", [-500, -400, -100, -90], slug="acrobot"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"--margin=25: on 2 environments a difference is a share of the range"):
        compare(paths, margin=25)
    found = compare(paths, margin=0.5)
    assert "4 seeds each per environment could only have shown a scaled difference of 0." in found.verdict
    assert ". To see 0.5, add " in found.verdict


def test_the_command_repeats_what_was_typed(write_run):
    paths = [
        write_run("ppo", seed, [0.0, 400 + seed], config={"algo.learning_rate": lr, "algo.gamma": 0.9}, name=f"_{lr}",
                  typed=["algo.gamma=0.9", f"algo.learning_rate={lr}", "runs_dir=elsewhere"])
        for seed in (3, 4, 5) for lr in (0.01, 0.1)
    ]  # fmt: skip
    command = "pgcli sweep algo=ppo env=cartpole algo.gamma=0.9 algo.learning_rate=0.01,0.1 'seed=range(6,7)'"
    assert compare(paths).commands == [command]


def test_settings_that_are_no_product_get_a_command_each(write_run):
    paths = [
        write_run(algo, seed, [0.0, 400 + seed], config={"algo.learning_rate": lr}, typed=[f"algo.learning_rate={lr}"])
        for algo, lr in (("ppo", 0.1), ("a2c", 0.2)) for seed in range(3)
    ]  # fmt: skip
    commands = compare(paths).commands
    assert sorted(commands) == [
        "pgcli sweep algo=a2c env=cartpole algo.learning_rate=0.2 'seed=range(3,4)'",
        "pgcli sweep algo=ppo env=cartpole algo.learning_rate=0.1 'seed=range(3,4)'",
    ]


def test_equal_results_are_no_difference_rather_than_too_early(write_runs):
    found = compare(write_runs("ppo", [500] * 5) + write_runs("a2c", [500] * 5))
    assert found.verdict == "No difference to see: every run ended at 500; 5 seeds each."


def test_the_best_of_three_pays_for_having_been_picked(write_runs):
    low, middle, high = ([base + i for i in range(5)] for base in (100, 200, 300))
    found = compare(write_runs("a2c", low) + write_runs("ppo", high) + write_runs("reinforce", middle))
    # Three pairs of groups: 3 x 2/252 = 0.024 is still below 0.05.
    assert [contrast.p for contrast in found.contrasts] == [pytest.approx(6 / 252)] * 2
    assert found.verdict.startswith(
        "ppo beats reinforce and a2c on CartPole-v1: probability of improvement over reinforce, "
    )
    assert [group.name for group in found.groups] == ["ppo", "reinforce", "a2c"]


def test_four_seeds_of_three_groups_are_too_few(write_runs):
    low, middle, high = ([base + i for i in range(4)] for base in (100, 200, 300))
    found = compare(write_runs("a2c", low) + write_runs("ppo", high) + write_runs("reinforce", middle))
    assert found.contrasts[0].p == pytest.approx(3 * 2 / 70)
    assert found.verdict.startswith("Too early to say between ppo, ")
    assert "4 seeds each cannot show any difference, and 5 are the fewest" in found.verdict


def test_one_may_be_beaten_and_another_undecided(write_runs):
    groups = write_runs("ppo", [490, 492, 494, 496, 498]) + write_runs("reinforce", [489, 493, 493, 497, 497])
    found = compare(groups + write_runs("a2c", [100, 101, 102, 103, 104]))
    assert " beats a2c on CartPole-v1" in found.verdict
    assert "Too early to say between ppo and reinforce: " in found.verdict


def test_a_single_group_is_described(write_runs):
    found = compare(write_runs("ppo", [470, 480, 490, 500]))
    assert found.verdict.startswith("ppo on CartPole-v1: IQM of the final return 485 [")  # (480 + 490) / 2
    assert (
        "; reached 475 in 3 of 4 runs, half of all runs within 200 steps (2.0 s); 4 seeds, 200 steps." in found.verdict
    )


# ---------------------------------------------------------------- measures


def test_the_area_does_not_depend_on_how_often_a_run_was_evaluated(write_run):
    # The line step / 100, evaluated every 100, 200 and 400 steps. From 400, where all are known, to 800: 4 to 8.
    paths = [
        write_run("ppo", seed, [float(i * every // 100) for i in range(1, 800 // every + 1)], every=every)
        for seed, every in enumerate((100, 200, 400))
    ]
    (result,) = compare(paths).groups[0].results
    assert result.span == (400, 800)
    assert [curve.area(*result.span) for curve in result.curves] == [6, 6, 6]
    assert result.area.mean.value == 6


def test_the_area_of_all_groups_is_over_the_same_steps(write_run):
    often = [write_run("ppo", seed, [1.0, 2.0, 3.0, 4.0], every=100) for seed in range(3)]
    rarely = [write_run("a2c", seed, [2.0, 4.0], every=200) for seed in range(3)]
    areas = [group.results[0].area.mean.value for group in compare(often + rarely).groups]
    assert areas == [3, 3]
    # Cut at 350 of 400 steps the one is known up to 300, the other up to 200.
    short = [write_run("reinforce", seed, [0.0] * 7, every=50) for seed in range(3)]
    assert {group.results[0].span for group in compare(often + rarely + short).groups} == {(200, 200)}


def test_a_run_that_stopped_on_success_stays_at_its_last_height(write_runs):
    # 0 at step 100 to 480 at 200, where it stopped, and 480 up to its budget of 1,000: (100 x 240 + 800 x 480) / 900.
    settings = {"config": {"stop_at": 475, "total_steps": 1000}}
    (result,) = compare(write_runs("ppo", [480, 480, 480], **settings)).groups[0].results
    assert result.area.mean.value == pytest.approx((24_000 + 384_000) / 900)


def test_no_curve_is_drawn_before_its_first_evaluation(write_run):
    # One seed is known from step 100, the other from 200: their mean from 200 only.
    paths = [write_run("ppo", 0, [0.0, 10.0, 20.0, 30.0]), write_run("ppo", 1, [20.0, 40.0], every=200)]
    (result,) = compare(paths).groups[0].results
    steps, heights = result.grid(3)
    assert steps.tolist() == [200, 300, 400]
    assert heights.tolist() == [[10, 20, 30], [20, 30, 40]]
    # The one evaluation of a run is after its last batch, which ended at 100 of 90 steps.
    (late,) = compare([write_run("ppo", 0, [7.0], config={"total_steps": 90}, folder="late")]).groups[0].results
    assert late.grid(2)[0].tolist() == [90, 90]
    assert (late.span, late.area.mean.value) == ((90, 90), 7)


def test_a_run_that_never_reaches_the_threshold_counts_as_infinitely_late(write_runs):
    result = compare(write_runs("ppo", [480, 100, 100]), threshold=475).groups[0].results[0]
    assert (result.reach.reached, result.reach.of) == (1, 3)
    assert result.reach.steps.value == float("inf")
    data = compare(write_runs("ppo", [480, 100, 100], folder="again")).to_json()["groups"][0]["environments"][0]
    assert data["to_threshold"]["median_steps"] == {"value": None, "low": 200, "high": None}


def test_the_threshold_is_the_environments_unless_given(write_runs):
    paths = write_runs("ppo", [480, 480, 480])
    assert compare(paths).groups[0].results[0].reach.threshold == 475
    assert compare(paths, threshold=490).groups[0].results[0].reach.reached == 0
    acrobot = write_runs("ppo", [-80, -80], slug="acrobot")
    assert compare(acrobot).groups[0].results[0].reach is None


def test_greedy_and_any_other_metric_can_be_compared(write_runs):
    paths = write_runs("ppo", [480, 480, 480])
    greedy = compare(paths, greedy=True)
    assert greedy.groups[0].results[0].final.mean.value == 481
    assert greedy.verdict.startswith("ppo on CartPole-v1: IQM of the final greedy return 481 ")
    assert [heading for heading, _, _ in columns(greedy)][1:3] == ["final greedy\nIQM", "final greedy\nmean"]
    found = compare(write_runs("ppo", [3, 3, 3], folder="other", key="eval/length_mean"), metric="eval/length_mean")
    assert found.groups[0].results[0].final.mean.value == 3
    assert found.groups[0].results[0].reach is None
    with pytest.raises(InputError, match="not both"):
        compare(paths, greedy=True, metric="x")


def test_the_same_seed_gives_the_same_intervals(write_runs):
    paths = write_runs("ppo", [400, 420, 440, 460, 500])
    first, again, other = (compare(paths, seed=seed).groups[0].results[0].area.mean for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_environments_are_compared_on_a_common_scale(write_runs):
    paths = [
        *write_runs("ppo", [490, 495, 500, 500, 500]), *write_runs("ppo", [-100, -90, -85, -80, -80], slug="acrobot"),
        *write_runs("a2c", [0, 10, 20, 30, 40]), *write_runs("a2c", [-500, -490, -480, -470, -460], slug="acrobot"),
    ]  # fmt: skip
    found = compare(paths)
    # CartPole from 0 to 500: 0.98 0.99 1 1 1. Acrobot from -500 to -80: (400, 410, 415, 420, 420) / 420.
    # IQM of ten drops two at each end: (0.98 or below) go: 0.952, 0.976 | 0.98, 0.988, 0.99, 1, 1, 1 | 1, 1.
    ppo = next(group for group in found.groups if group.name == "ppo")
    assert ppo.overall.iqm.value == pytest.approx((0.98 + 415 / 420 + 0.99 + 3) / 6)
    assert found.verdict.startswith("ppo beats a2c on 2 environments: probability of improvement 1.00 [")
    assert "IQM of the scaled final return" in found.verdict
    assert "5 seeds each per environment" in found.verdict


# ---------------------------------------------------------------- irregularities


def test_unequal_budgets_are_compared_at_the_common_one_and_named(write_run):
    long = [write_run("ppo", seed, [100.0, 200.0, 300.0, 400.0]) for seed in range(3)]
    short = [write_run("a2c", seed, [150.0, 250.0]) for seed in range(3)]
    found = compare(long + short)
    ppo = next(group for group in found.groups if group.name == "ppo").results[0]
    assert (ppo.steps, ppo.final.mean.value, ppo.best.mean.value) == (200, 200, 200)
    (warning,) = notes(found, "unequal budgets on cartpole")
    assert short[0].name in warning
    assert long[0].name in warning
    assert "within 200" in warning


def test_runs_that_end_far_beyond_their_budget_with_a_large_batch_are_named(write_run):
    within = [write_run("a2c", seed, [0.0, 10.0 + seed]) for seed in range(3)]
    beyond = [
        write_run("ppo", seed, [0.0, 20.0 + seed], every=150 + seed, config={"total_steps": 200}) for seed in range(3)
    ]
    (warning,) = notes(compare(within + beyond), "ended with the batch")
    assert all(path.name in warning for path in beyond)
    assert not any(path.name in warning for path in within)
    assert warning.endswith("that passed 200 steps: what is compared of them was reached at 300 to 304")
    slightly = [
        write_run("ppo", seed, [0.0, 1.0], every=102, config={"total_steps": 200}, folder="b") for seed in range(3)
    ]
    assert not notes(compare(within + slightly), "ended with the batch")


def test_a_run_with_a_torn_row_is_left_out_and_named(write_run):
    paths = [write_run("a2c", seed, [0.0, 10.0 + seed]) for seed in range(3)]
    rows = (paths[0] / "metrics.jsonl").read_text().splitlines()
    (paths[0] / "metrics.jsonl").write_text("".join(f"{row}\n" for row in [*rows[:-1], "{garbage"]))
    found = compare(paths)
    (warning,) = notes(found, "left out")
    assert "metrics.jsonl is damaged: `{garbage` is not a row of JSON" in warning
    assert len(found.groups[0].results[0].curves) == 2
    other = Run(paths[1])
    assert compare(other).verdict == compare([other]).verdict == compare(str(other)).verdict
    assert (str(other), Path(other)) == (str(paths[1]), paths[1])


def test_the_command_is_of_what_became_of_a_run_and_finds_its_configs(write_run):
    paths = [
        write_run("ppo", seed, [0.0, 400 + seed], config={"total_steps": 200}, typed=["total_steps=150"])
        for seed in range(3)
    ]  # fmt: skip
    for path in paths:
        info = json.loads((path / "run.json").read_text())
        argv = ["pgcli", "train", "algo=ppo", "--config-dir", "my conf", "--trust"]
        (path / "run.json").write_text(json.dumps(info | {"argv": argv}))
    others = [write_run("a2c", seed, [0.0, 400 + seed], typed=["total_steps=2_00"]) for seed in range(3)]
    commands = compare(paths + others).commands
    end = "'seed=range(3,4)' --config-dir 'my conf' --trust"
    assert f"pgcli sweep algo=ppo env=cartpole total_steps=200 {end}" in commands


def test_runs_that_all_ended_alike_may_not_go_on_so(write_runs):
    # Ten in a row without one that differs: at most 0.26 do, as 0.74^10 = 0.049. Three: 0.63, as 0.37^3 = 0.051.
    found = compare(write_runs("ppo", [500] * 10) + write_runs("a2c", [500] * 9 + [200]))
    note = "all 10 runs of ppo on CartPole-v1 ended alike, so that their intervals have no width; up to 26% of further"
    assert [warning for warning in found.warnings if "alike" in warning] == [f"{note} runs may end otherwise (95%)"]
    found = compare(write_runs("ppo", [500] * 3, folder="x") + write_runs("a2c", [9] * 3, folder="x"))
    assert notes(
        found, "all 3 runs of ppo and a2c on CartPole-v1 ended alike, so that their intervals have no width; up to 63%"
    )


def test_missing_seeds_are_named(write_run):
    found = compare(
        [write_run("ppo", seed, [1.0]) for seed in range(5)] + [write_run("a2c", seed, [1.0]) for seed in (0, 1)]
    )
    assert notes(found, "seeds missing on cartpole: a2c has no run with seeds 2-4")


def test_unequal_counts_of_seeds_are_spelled_in_the_verdict(write_runs):
    found = compare(write_runs("ppo", [500, 499, 498, 497, 496]) + write_runs("a2c", [1, 2, 3, 4]))
    assert found.verdict.endswith("; 5 and 4 seeds, 200 steps.")


def test_a_failed_run_is_left_out_and_named(write_run, write_runs):
    bad = write_run("ppo", 9, [1.0], status="failed", reason="NaN in the policy loss")
    found = compare([*write_runs("ppo", [480, 490, 500]), bad])
    assert len(found.groups[0].results[0].curves) == 3
    assert notes(found, f"{bad.name} is failed (NaN in the policy loss)")


def test_runs_that_stopped_on_success_are_named(write_runs):
    settings = {"config": {"stop_at": 475, "total_steps": 1000}}
    found = compare(write_runs("ppo", [480, 490, 500], **settings))
    assert notes(found, "stopped early, on reaching stop_at: ")
    assert found.groups[0].results[0].steps == 1000


def test_other_devices_and_other_evaluations_are_named(write_run):
    settings = {"device": "cuda", "config": {"eval.episodes": 5}}
    found = compare([write_run("ppo", 0, [1.0]), write_run("ppo", 1, [1.0], **settings)])
    assert notes(found, "seconds do not compare: runs were on cpu; cuda")
    assert notes(found, "evaluated differently: eval.episodes is 20, 5")


@pytest.mark.parametrize("why", ["auto", "auto: a network of 4,610 parameters is faster there than on cuda:0"])
def test_a_device_is_the_same_whoever_chose_it(write_run, why):
    found = compare(
        [
            write_run("ppo", 0, [1.0], device="cpu, 1 thread"),
            write_run("a2c", 0, [1.0], device=f"cpu, 1 thread ({why})"),
        ]
    )
    assert not notes(found, "seconds do not compare")
    other = write_run("a2c", 1, [1.0], device=f"cpu, 2 threads ({why})")
    found = compare([write_run("ppo", 1, [1.0], device="cpu, 1 thread"), other])
    assert notes(found, "seconds do not compare: runs were on cpu, 1 thread; cpu, 2 threads")


def test_returns_that_a_reward_model_gave_are_said_to_be_its_scores(write_run):
    note = "these returns are a reward model's scores; the task's own reward: --metric eval/gold"

    def run(seed, price, gold=True, reward="elsewhere/rm"):
        path = write_run(
            "ppo",
            seed,
            [1.0],
            name=f"_{price}_{gold}_{reward is None}",
            config={"reward": reward, "algo.kl.coefficient": price},
        )
        if gold:
            path.joinpath("metrics.jsonl").open("a").write('{"step": 100, "eval/gold": 0.5}\n')
        return path

    paths = [run(0, 0.0), run(0, 0.1)]
    found = compare(paths)
    assert [group.label for group in found.groups] == ["kl.coefficient=0", "kl.coefficient=0.1"]
    assert [warning for warning in found.warnings if "scores" in warning] == [note]
    assert not notes(compare(paths, metric="eval/gold"), "scores")
    assert not notes(compare([paths[0], run(1, 0.1, gold=False)]), "scores")
    assert not notes(compare([run(2, 0.1, reward=None)]), "scores")


def gilded(path, *values):
    """The run with a gold reward at steps 100, 200, ..."""
    with path.joinpath("metrics.jsonl").open("a") as file:
        file.writelines(f'{{"step": {100 * i}, "eval/gold": {value}}}\n' for i, value in enumerate(values, 1))
    return path


def test_returns_of_two_units_are_compared_by_the_tasks_own_reward(write_run):
    # By their returns ppo, paid by a reward model, would win; by the task's own reward reinforce does.
    paths = [
        gilded(write_run(algo, seed, [0.0, height + seed], config={"reward": judge}), 0.0, gold + seed)
        for algo, height, gold, judge in (("ppo", 100, 1, "elsewhere/rm"), ("reinforce", 1, 100, None))
        for seed in range(5)
    ]  # fmt: skip
    found = compare(paths)
    assert found.metric == "eval/gold"
    assert found.verdict.startswith("reinforce beats ppo on CartPole-v1: ")
    units = "returns on cartpole have no common unit: the scores of elsewhere/rm (ppo), the task's reward (reinforce)"
    assert f"{units}; compared is eval/gold, the task's own reward" in found.warnings
    named = compare(paths, metric="eval/return_mean")  # obeyed, with a note
    assert named.verdict.startswith("ppo beats reinforce")
    assert units in named.warnings
    assert not notes(compare(paths, metric="eval/gold"), "no common unit")
    greedy = compare(paths, greedy=True)  # gold is that of sampled completions
    assert greedy.verdict == f"No verdict: {units}; compare with --metric eval/gold."
    assert greedy.contrasts == []


def test_returns_of_two_units_without_gold_have_no_verdict(write_runs):
    judges = write_runs("a2c", [0.9] * 5, config={"algo.name": "reward_model"})
    found = compare(judges + write_runs("ppo", [100] * 5))
    assert found.verdict == (
        "No verdict: returns on cartpole have no common unit: a judge's accuracy (a2c), the task's reward (ppo); "
        "they share no --metric of success: compare the runs of each unit by themselves."
    )
    assert found.contrasts == found.commands == []
    assert (
        " beats "
        in compare(judges + write_runs("ppo", [0.5] * 5, name="_too", config={"algo.name": "outcome_reward"})).verdict
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"reward": "a/rm"}, {"reward": "b/rm"}),
        ({"reward": "a/rm", "judge.combine": "mean"}, {"reward": "a/rm", "judge.combine": "min"}),
    ],
)
def test_scores_of_two_judges_have_no_common_unit(write_runs, one, other):
    paths = write_runs("ppo", [100] * 5, config=one) + write_runs("ppo", [1] * 5, config=other, name="_other")
    assert compare(paths).verdict.startswith("No verdict: returns on cartpole have no common unit: ")
    assert not compare(write_runs("a2c", [1] * 3, config=one)).verdict.startswith("No verdict")


def test_greedy_policies_beside_sampling_ones_are_named(write_run):
    def run(algo, seed, *greedy):
        path = write_run(algo, seed, [1.0, 2.0])
        lines = [f'{{"step": {100 * i}, "eval/return_mean": {i}.0, "eval/greedy_return_mean": {value}}}\n'
                 for i, value in enumerate(greedy, 1)]  # fmt: skip
        path.joinpath("metrics.jsonl").write_text("".join(lines))
        return path

    greedy = [run("a2c", seed, 1.0, 2.0) for seed in range(2)]
    # By chance the first evaluation of one run is alike.
    sampling = [run("ppo", 0, 1.0, 2.5), run("ppo", 1, 1.5, 2.5)]
    note = (
        "greedy policies beside sampling ones: the evaluated policy of a2c is deterministic, that of ppo samples; "
        "both greedy: --metric eval/greedy_return_mean"
    )
    assert notes(compare(greedy + sampling), "sampl") == [note]
    assert not notes(compare(greedy + sampling, metric="eval/greedy_return_mean"), "sampl")
    assert not notes(compare(sampling), "sampl")
    assert not notes(compare([*greedy, run("reinforce", 0, 1.0, 2.0)]), "sampl")
    for path in greedy:
        info = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(info | {"unit": "tokens"}))
    assert not notes(compare(greedy + sampling), "sampl"), "texts that are never rewarded"


def test_a_metric_that_the_last_evaluation_lacks_is_said_to_be_old(write_run):
    old, new = write_run("ppo", 0, [1.0, 2.0]), write_run("ppo", 1, [1.0, 2.0])
    for path, steps in ((old, (100,)), (new, (100, 200))):
        for step in steps:
            path.joinpath("metrics.jsonl").open("a").write(f'{{"step": {step}, "eval/length_wrong": 5.0}}\n')
    note = f"no eval/length_wrong in the last evaluation of {old.name}: an earlier one stands for it"
    assert notes(compare([old, new], metric="eval/length_wrong"), "stands for it") == [note]
    assert not notes(compare([old, new]), "stands for it")


def test_groups_are_compared_on_the_environments_that_they_share(write_runs):
    paths = write_runs("ppo", [1, 2, 3]) + write_runs("a2c", [1, 2, 3]) + write_runs("ppo", [5, 6, 7], slug="acrobot")
    found = compare(paths)
    assert notes(found, "no run on acrobot: a2c")
    assert found.contrasts[0].probability.value == 0.5
    apart = compare([*write_runs("ppo", [1], folder="x"), *write_runs("a2c", [1], folder="x", slug="acrobot")])
    assert apart.verdict == "Nothing to compare: these groups have no environment in common."


def test_nothing_but_unusable_runs_is_refused_with_the_reason(write_run):
    with pytest.raises(InputError, match=r"nothing to compare; left out: .* is interrupted"):
        compare([write_run("ppo", 0, [1.0], status="interrupted")])
    with pytest.raises(InputError, match="--margin must be a positive"):
        compare([], margin=-1)


def test_json_holds_the_verdict_the_groups_and_the_warnings(write_runs):
    data = json.loads(
        json.dumps(compare(write_runs("ppo", [480, 490]) + write_runs("a2c", [1, 2])).to_json(), allow_nan=False)
    )
    assert set(data) == {"verdict", "commands", "metric", "groups", "contrasts", "warnings"}
    (first, _) = data["groups"]
    assert first["label"] == "algo=ppo"
    assert first["settings"] == {"algo": "ppo"}
    (environment,) = first["environments"]
    assert environment["seeds"] == [0, 1]
    assert environment["final_returns"] == [480, 490]
    assert environment["final_return"]["mean"] == {"value": 485, "low": None, "high": None}
    assert data["contrasts"][0]["probability_of_improvement"]["value"] == 1
