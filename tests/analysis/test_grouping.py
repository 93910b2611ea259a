"""Groups are named by what differs, and by no more."""

import pytest

from pgcli.analysis.curves import load
from pgcli.analysis.grouping import confounded, group_curves, labels


@pytest.fixture
def names(write_run):
    """names((algo, seed, settings), ...): {label: seeds}."""

    def group(*runs):
        paths = [write_run(algo, seed, [1.0], name=f"_{i}", **more) for i, (algo, seed, more) in enumerate(runs)]
        curves, warnings = load(paths, "eval/return_mean")
        assert not warnings
        grouped = group_curves(curves)
        seeds = [sorted(curve.seed for curve in members) for _, members in grouped]
        return dict(zip(labels([settings for settings, _ in grouped]), seeds, strict=True))

    return group


def test_runs_that_differ_in_their_seed_are_one_group(names):
    assert names(("ppo", 0, {}), ("ppo", 1, {})) == {"algo=ppo": [0, 1]}


def test_an_algorithm_stands_for_the_settings_that_come_with_it(names):
    # Learning rate, clip_range and num_steps differ too, but only with the algorithm.
    assert names(("ppo", 0, {}), ("a2c", 0, {}), ("ppo", 1, {})) == {"algo=ppo": [0, 1], "algo=a2c": [0]}


def test_a_setting_that_differs_within_an_algorithm_is_named_by_its_last_word(names):
    fast = {"config": {"algo.learning_rate": 0.01}}
    assert names(("ppo", 0, {}), ("ppo", 0, fast)) == {"learning_rate=0.0003": [0], "learning_rate=0.01": [0]}
    # clip_range is ppo's alone: a2c is not said to have none.
    clip = {"config": {"algo.clip_range": 0.1}, "folder": "second"}
    found = names(("ppo", 0, {"folder": "second"}), ("ppo", 0, clip), ("a2c", 0, {"folder": "second"}))
    assert found == {"algo=ppo clip_range=0.2": [0], "algo=ppo clip_range=0.1": [0], "algo=a2c": [0]}


def test_settings_with_the_same_last_word_keep_their_sections(names):
    both = {"config": {"algo.size": 1, "policy.size": 1}}
    other = {"config": {"algo.size": 2, "policy.size": 2}}
    assert list(names(("ppo", 0, both), ("ppo", 0, other))) == [
        "algo.size=1 policy.size=1",
        "algo.size=2 policy.size=2",
    ]


def test_runs_that_were_made_before_a_setting_existed_are_a_group_with_a_name(names):
    newer = {"config": {"algo.weight_decay": 0.0}}
    assert names(("ppo", 0, {}), ("ppo", 1, newer)) == {"without these settings": [0], "weight_decay=0": [1]}


@pytest.mark.parametrize(
    ("key", "off", "on"),
    [
        ("env.normalise.gamma", {"env.normalise.observations": True}, {"env.normalise.rewards": True}),
        ("env.normalise.clip", {"env.normalise.rewards": False}, {"env.normalise.observations": True}),
        ("env.normalise.clip", {}, {"env.normalise.rewards": True}),
        ("algo.schedule_c", {"algo.schedule": "linear"}, {"algo.schedule": "robbins_monro"}),
        ("algo.schedule_offset", {"algo.schedule": "constant"}, {"algo.schedule": "robbins_monro"}),
    ],
)
def test_a_setting_without_effect_tells_no_groups_apart(names, key, off, on):
    def found(others, folder):
        runs = ({"config": {key: value, **others}, "folder": folder} for value in (1, 2))
        return list(names(*(("ppo", seed, run) for seed, run in enumerate(runs))).values())

    assert found(off, "off") == [[0, 1]]
    assert found(on, "on") == [[0], [1]]


def test_a_list_is_a_value(names):
    wide = {"config": {"policy.hidden_sizes": [256]}}
    assert list(names(("ppo", 0, {}), ("ppo", 0, wide))) == ["hidden_sizes=[64,64]", "hidden_sizes=[256]"]


def test_a_choice_stands_for_the_settings_that_come_with_it(names):
    cnn = {"choices": {"policy": "cnn"}, "config": {"policy": {"name": "cnn", "channels": [16]}}}
    assert list(names(("ppo", 0, {}), ("ppo", 0, cnn))) == ["policy=mlp", "policy=cnn"]
    tuned = {"choices": {"tuned": "ppo_cartpole"}, "config": {"algo.learning_rate": 0.002}, "folder": "second"}
    assert list(names(("ppo", 0, {"folder": "second"}), ("ppo", 0, tuned))) == ["tuned=none", "tuned=ppo_cartpole"]


def test_where_a_run_writes_and_how_it_is_measured_tell_no_groups_apart(names):
    elsewhere = {
        "config": {"runs_dir": "x", "log_every": 9, "checkpoint.every": 7, "eval.episodes": 5, "device.threads": 2},
        "device": "cuda",
    }
    assert names(("ppo", 0, {}), ("ppo", 1, elsewhere)) == {"algo=ppo": [0, 1]}


def test_only_whether_a_run_was_initialised_tells_groups_apart(names):
    given = [{"config": {"init": f"runs/sft_s{seed}"}} for seed in (0, 1)]
    assert names(("ppo", 0, given[0]), ("ppo", 1, given[1]), ("ppo", 0, {})) == {"init=given": [0, 1], "init=null": [0]}


def test_runs_that_started_from_differently_trained_ones_are_no_group(names, write_run):
    long = [str(write_run("a2c", seed, [0.0, 1.0], folder="long")) for seed in (0, 1)]
    short = [str(write_run("a2c", seed, [0.0], folder="short")) for seed in (0, 1)]
    runs = [("ppo", seed, {"config": {"init": start[seed]}}) for start in (long, short) for seed in (0, 1)]
    found = names(*runs)
    assert list(found.values()) == [[0, 1], [0, 1]]
    assert all(label.startswith("init=a2c:") for label in found)
    assert names(*(("ppo", seed, {"config": {"init": long[seed]}, "folder": "x"}) for seed in (0, 1))) == {
        "algo=ppo": [0, 1]
    }


def test_environments_are_strata_and_not_groups(names):
    # A setting that comes with the environment, as a tuned one does, is not named either.
    acrobot = {"slug": "acrobot", "config": {"algo.learning_rate": 0.1}}
    found = names(("ppo", 0, {}), ("ppo", 0, acrobot), ("a2c", 0, {}), ("a2c", 0, {"slug": "acrobot"}))
    assert found == {"algo=ppo": [0, 0], "algo=a2c": [0, 0]}


def test_total_steps_tell_groups_of_one_algorithm_apart(names):
    assert list(names(("ppo", 0, {}), ("ppo", 0, {"every": 200}))) == ["total_steps=100", "total_steps=200"]


def test_what_differs_outside_the_algorithm_is_said(write_run):
    paths = [write_run("ppo", 0, [1.0]), write_run("a2c", 0, [1.0], config={"policy.hidden_sizes": [32]})]
    curves, _ = load(paths, "eval/return_mean")
    groups = [(curve.algorithm, [curve]) for curve in curves]
    assert confounded(groups, {"algo"}) == ["policy.hidden_sizes differs too: [64,64] (ppo), [32] (a2c)"]
