"""Study files: what is refused, what a row stands for, and that those that are shipped hold what they say."""

import pytest
import yaml

from pgcli.errors import InputError
from pgcli.experiment.config import compose
from pgcli.options import options, search_path
from pgcli.studies import definition

GOOD = {
    "question": "Does it?",
    "measure": "training_return",
    "seeds": 3,
    "total_steps": 1000,
    "common": ["algo=ppo", "tuned=none"],
    "rows": [{"words": ["algo.clip_range=0.1,0.2", "env=cartpole,acrobot"]}],
}


@pytest.fixture
def study(tmp_path):
    def write(**changes):
        (tmp_path / "experiment").mkdir(exist_ok=True)
        data = {key: value for key, value in (GOOD | changes).items() if value is not None}
        (tmp_path / "experiment" / "mine.yaml").write_text("# One of mine.\n" + yaml.safe_dump(data))
        return definition.load("mine", [tmp_path])

    return write


def test_a_row_is_every_combination_of_its_words(study):
    found = definition.cells(study())
    assert [(cell.method, cell.environment) for cell in found] == [
        ("clip_range=0.1", "cartpole"), ("clip_range=0.1", "acrobot"),
        ("clip_range=0.2", "cartpole"), ("clip_range=0.2", "acrobot"),
    ]  # fmt: skip
    assert found[3].words == ["algo=ppo", "tuned=none", "algo.clip_range=0.2", "env=acrobot"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"common": ["init=sft"]}, "`init=sft`: sft is not a stage; there is no stage before it"),
        ({"stages": {"sft": ["algo=sft", "init=sft"]}}, "`init=sft`: sft is not a stage; there is no stage before it"),
        ({"stages": {"a": ["algo=sft"]}, "common": ["reward=b"]}, "`reward=b`: b is not a stage; the stages before it"),
        ({"measure": "the best"}, "measure"),
    ],
)
def test_a_run_that_no_stage_makes_is_refused(study, changes, message):
    with pytest.raises(InputError, match=message):
        study(**changes)


def test_what_a_method_is_called(study):
    def methods(*rows, **changes):
        return [
            (c.method, c.environment) for c in definition.cells(study(rows=[{"words": row} for row in rows], **changes))
        ]

    assert methods(["env=cartpole"]) == [("ppo", "cartpole")]
    assert methods(["algo=a2c", "env=cartpole"], common=["tuned=none"]) == [("a2c", "cartpole")]
    # The environment's own settings are its own, how a method looks at it is the method's.
    assert methods(
        ["env=cartpole", "env.max_episode_steps=50", "env.normalise.reward_shift=2", "env.normalise.rewards=true"]
    ) == [("normalise.rewards=true", "cartpole max_episode_steps=50 reward_shift=2")]


def test_words_that_come_with_an_environment_or_a_row_are_not_named(study):
    found = definition.cells(
        study(
            environments={"acrobot": ["algo.gamma=0.9"]},
            rows=[{"words": ["algo.epochs=1", "env=cartpole,acrobot"], "fixed": ["algo.minibatches=1"]}],
        )
    )
    assert [cell.method for cell in found] == ["epochs=1", "epochs=1"]
    assert "algo.gamma=0.9" not in found[0].words
    assert "algo.gamma=0.9" in found[1].words
    assert all("algo.minibatches=1" in cell.words for cell in found)


def test_only_takes_environments_by_name(study):
    mine = study()
    assert {cell.environment for cell in definition.only(mine, ["acrobot"])} == {"acrobot"}
    assert len(definition.only(mine, [])) == 4
    with pytest.raises(InputError, match=r"no environment `acrobat`; did you mean `acrobot`\?"):
        definition.only(mine, ["acrobat"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": 3}, "`sedes` is not a setting of a study; did you mean `seeds`?"),
        ({"rows": [{"wrods": ["env=cartpole"], "words": ["env=cartpole"]}]}, "did you mean `words`?"),
        ({"seeds": 0}, "`seeds` must be an integer >= 1, not 0"),
        ({"measure": "reward"}, "`measure` must be one of training_return, "),
        ({"question": None}, "`question` has no value"),
        ({"rows": []}, "`rows` is empty: there is nothing to run"),
        ({"rows": [{"words": 3}]}, "`rows.0.words` must be a non-empty list of text, not 3"),
        ({"sources": {"x": {"title": "X", "seeds": 1}}}, "`sources.x.seeds` must be an integer >= 2 or null, not 1"),
        ({"common": ["seed=1"]}, "`seed=1`: a study sets seed by its own keys"),
        ({"environments": {"acrobot": ["eval.every=3"]}}, "a study sets eval.every by its own keys"),
        ({"environments": {"pendulum": ["algo.gamma=1"]}}, "environments: no row has env=pendulum"),
        ({"reference": "clip_range=0.3"}, "`clip_range=0.3` is not one of the methods clip_range=0.1, clip_range=0.2"),
        (
            {"rows": [{"words": ["env=cartpole"], "published": [{"source": "x", "mean": 1}]}]},
            "`x` is not one of the sources: there are none",
        ),
        (
            {
                "sources": {"x": {"title": "X"}},
                "rows": [{"words": ["env=cartpole,acrobot"], "published": [{"source": "x", "mean": 1}]}],
            },
            "`env=cartpole,acrobot` is several runs, and a published number belongs to one",
        ),
    ],
)
def test_a_study_that_is_wrong_is_refused_in_one_line(study, changes, message):
    with pytest.raises(InputError) as refusal:
        study(**changes)
    assert message in str(refusal.value)
    assert "mine.yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bad_yaml_names_its_line(study, tmp_path):
    study()
    (tmp_path / "experiment" / "mine.yaml").write_text("question: a\nseeds: 1: 2\n")
    with pytest.raises(InputError, match=r"mine.yaml, line 2: bad YAML: mapping values are not allowed here"):
        definition.load("mine", [tmp_path])


def test_an_unknown_study_is_told_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"no study is called `clasic_ppo`; did you mean `classic_ppo`\?"):
        definition.load("clasic_ppo")
    with pytest.raises(InputError, match="no study is called"):
        definition.load("../algo/ppo")


# ---------------------------------------------------------------- those that are shipped

SHIPPED = sorted(definition.names())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_study_has_a_title_and_composes(name):
    assert definition.names()[name].endswith(".")
    study = definition.load(name)
    folders = search_path()
    for cell in definition.cells(study):
        choices = [word.partition("=") for word in cell.words if word.partition("=")[0] in ("algo", "env")]
        unbuilt = [
            option for group, _, option in choices if option not in options(group, folders) and "-v" not in option
        ]
        if unbuilt:
            pytest.skip(f"{unbuilt[0]} is not built yet")
        compose([*cell.words, "seed=0", f"total_steps={cell.total_steps}"])
    for stage in study.stages.values():
        compose(stage)


def published(name):
    return {
        cell.env: [(p.mean, p.deviation) for p in cell.published] for cell in definition.cells(definition.load(name))
    }


def test_the_published_numbers_are_those_of_their_sources():
    assert published("classic_ppo") == {
        "cartpole": [(490.04, 6.12), (497.54, 4.02)],
        "acrobot": [(-86.36, 1.32), (-81.82, 5.58)],
        "mountain_car": [(-200, 0), (-200, 0)],
    }
    assert published("mujoco_ppo") == {
        "HalfCheetah-v5": [(1442.64, 46.03)],
        "Walker2d-v5": [(2287.95, 571.78)],
        "Hopper-v5": [(2382.86, 271.74)],
        "InvertedPendulum-v5": [(963.09, 22.20)],
        "Humanoid-v5": [(716.11, 49.08)],
        "Pusher-v5": [(-40.38, 7.15)],
    }
    first = {name: [row[0] for row in published(name).values()] for name in ("mujoco_sac", "mujoco_ddpg", "mujoco_td3")}
    assert first == {
        "mujoco_sac": [(9634.89, 1423.73), (3591.45, 911.33), (2310.46, 342.82)],
        "mujoco_ddpg": [(10374.07, 157.37), (1240.16, 390.10), (1576.78, 818.98)],
        "mujoco_td3": [(9583.22, 126.09), (4057.59, 658.78), (3134.61, 360.18)],
    }
