"""Composition, refusals, the tuned overlay, trust, plug-ins, sweeps and the way back from a written config.

A plug-in of four toy classes lies in a temporary folder, so that the exact texts here do not depend on the real ones.
"""

import importlib
import json
import os
import sys
import threading
from pathlib import Path

import pytest

from pgcli.errors import InputError
from pgcli.experiment.config import compose, dump, explain, load
from pgcli.experiment.overrides import expand
from pgcli.options import groups, headline

CLASSES = """
from typing import Annotated, Any, Literal
from pydantic import Field, PositiveInt, model_validator
from pgcli.settings import Settings

class Clip(Settings):
    low: float = Field(gt=0, le=1, description="down to 1 - low")
    high: float = Field(gt=0, description="up to 1 + high")

class Toy:
    METRICS = {"loss/toy": "how toyish"}
    class Config(Settings):
        name: Literal["toy"]
        learning_rate: float = Field(gt=0, description="step size")
        gamma: float = Field(ge=0, le=1, description="discount")
        epochs: int = Field(ge=1, description="passes")
        schedule: Literal["constant", "linear"] = Field(description="of the step size")
        target_kl: float | None = Field(gt=0, description="null: never")
        normalise: bool = Field(description="advantages")
        clip: Clip = Field(description="of the ratio")
        @model_validator(mode="after")
        def _order(self):
            if self.clip.low > self.clip.high:
                raise ValueError("clip.low must not exceed clip.high")
            return self

class Land:
    class Config(Settings):
        name: str
        id: str = Field(description="Gymnasium id")
        size: int = Field(ge=1, description="of the land")
        kwargs: dict[str, Any] = Field(description="of its constructor")

class Net:
    class Config(Settings):
        name: str
        hidden: tuple[PositiveInt, ...] = Field(description="units")

class Other:
    class Config(Settings):
        name: str
        width: int = Field(ge=1, description="units")
"""

FILES = {
    "toyplug/__init__.py": "raise RuntimeError('a plug-in must not be imported to find its conf/')",
    "toyparts.py": CLASSES,
    "toyplug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: toyplug\nVersion: 1.0\n",
    "toyplug-1.0.dist-info/entry_points.txt": """
[pgcli.algorithms]
toy = toyparts:Toy
unused = toyplug:Unused
[pgcli.environments]
land = toyparts:Land
[pgcli.policies]
net = toyparts:Net
other = toyparts:Other
""",
    "toyplug/conf/algo/toy.yaml": """\
# A toy algorithm.
# With a second line of comment.
name: toy
learning_rate: 1e-3
gamma: 0.9
epochs: 4
schedule: constant
target_kl: null
normalise: true
clip: {low: 0.2, high: 0.2}
""",
    "toyplug/conf/algo/toy_fast.yaml": "# A faster toy.\ndefaults: [toy]\nlearning_rate: 0.1\n",
    "toyplug/conf/env/land.yaml": """\
# @package _global_.env
# A land.
defaults: [override /policy@_global_.policy: net]
name: land
id: Land-v1
size: ${checkpoint.keep}
kwargs: {}
""",
    "toyplug/conf/env/coded.yaml": "name: land\nid: 'toyland:Land-v0'\nsize: 1\nkwargs: {}\n",
    "toyplug/conf/policy/net.yaml": "# A net.\nname: net\nhidden: [8, 8]\n",
    "toyplug/conf/policy/other.yaml": "# Another.\nname: other\nwidth: 3\n",
}
CONFIG = (Path(__file__).parents[2] / "conf/config.yaml").read_text()
OF_TOY = "   (all of them: pgcli show config algo=toy)"
OF_ALL = "   (all of them: pgcli show config)"
DEVICES = "   (device is one of auto, cpu, cuda, mps)"
TOY = ["algo=toy", "env=land", "seed=5"]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module", autouse=True)
def plugin(tmp_path_factory):
    """An installed package with entry points and a conf/ of its own."""
    site = write(tmp_path_factory.mktemp("site"), FILES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        yield site
    sys.modules.pop("toyparts", None)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No test runs in the checkout."""
    monkeypatch.delenv("PGCLI_CONF", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def refusal(*overrides: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        compose(overrides, **options)
    return str(caught.value)


# ---------------------------------------------------------------- composition


def test_a_composed_config_is_typed_frozen_and_knows_its_choices():
    config = compose([*TOY, "algo.clip.high=0.3", "device=cpu", "total_steps=1_000"])
    assert (config.seed, config.total_steps, config.algo.clip.high, config.policy.hidden) == (5, 1000, 0.3, (8, 8))
    assert config.choices == {"algo": "toy", "env": "land", "policy": "net", "device": "cpu", "tuned": "none"}
    assert config.overrides == (*TOY, "algo.clip.high=0.3", "device=cpu", "total_steps=1_000")
    with pytest.raises(ValueError, match="frozen"):
        config.algo.gamma = 0.5


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${oc.decode:${oc.env:HOME}}"])
def test_a_config_that_would_be_computed_is_refused(tmp_path, value):
    with pytest.raises(InputError, match=r"`seed`: a config is data, and `oc.env:` would be computed"):
        compose(["algo=ppo", "env=cartpole", "seed=${oc.env:HOME}"])
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "mine.yaml").write_text(f"defaults: [cartpole]\nsolved_at: '{value}'\n")
    with pytest.raises(InputError, match=r"`env.solved_at`: a config is data"):
        compose(["algo=ppo", "env=mine"], config_dirs=[tmp_path])


@pytest.mark.parametrize(
    ("bounds", "message"),
    [("[2,-20]", r"the lower bound comes first, and is below the other"), ("[1]", r"must be .*, not \[1")],
)
def test_bounds_that_are_no_bounds_are_refused(bounds, message):
    with pytest.raises(InputError, match=rf"`policy.log_std_bounds` .*{message}"):
        compose(["algo=sac", "env=pendulum", f"policy.log_std_bounds={bounds}"])


def test_interpolations_see_the_command_line():
    assert compose([*TOY, "checkpoint.keep=5"]).env.size == 5  # the file says ${checkpoint.keep}


def test_an_environment_chooses_its_policy_and_the_command_line_another():
    assert compose(TOY).choices["policy"] == "net"
    assert compose([*TOY, "policy=other"]).policy.width == 3


def test_an_option_starts_from_another():
    config = compose(["algo=toy_fast", "env=land", "seed=1"])
    assert (config.algo.learning_rate, config.algo.epochs, config.choices["algo"]) == (0.1, 4, "toy_fast")


def test_a_gymnasium_id_and_a_device_number_are_shorthands():
    config = compose(["algo=toy", "env=ALE/Pong-v5", "device=cuda:1"])
    assert (config.choices["env"], config.env.id, config.device.index) == ("gymnasium", "ALE/Pong-v5", 1)


def test_an_integral_float_is_an_integer_and_the_last_word_counts():
    config = compose([*TOY, "total_steps=1e5", "algo.epochs=2", "algo.epochs=3"])
    assert (config.total_steps, config.algo.epochs) == (100_000, 3)
    assert type(config.total_steps) is int


def test_settings_of_a_group_merge_and_free_ones_may_be_new():
    config = compose([*TOY, "algo.clip={high:0.5}", "env.kwargs.wind=true"])
    assert (config.algo.clip.low, config.algo.clip.high, config.env.kwargs) == (0.2, 0.5, {"wind": True})


def test_threads_may_compose_at_once(tmp_path):
    seeds: list[int] = []

    def work(seed: int) -> None:
        own = write(tmp_path, {f"{seed}/algo/own.yaml": "defaults: [toy]\n"}) / str(seed)  # nothing to remember
        seeds.append(compose(["algo=own", "env=land", f"seed={seed}"], config_dirs=[own]).seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seeds) == [0, 1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore:.*version_base")
def test_a_hydra_application_may_call_us_and_goes_on(tmp_path):
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    write(tmp_path, {"theirs/main.yaml": "x: 1\n", "mine/algo/own.yaml": "defaults: [toy]\n"})
    with hydra.initialize_config_dir(str(tmp_path / "theirs"), version_base="1.3"):
        compose(["algo=own", "env=land"], config_dirs=[tmp_path / "mine"])
        assert GlobalHydra.instance().is_initialized()
        assert hydra.compose("main").x == 1


# ---------------------------------------------------------------- refusals, each one line


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "algo.learning_rte=1e-3",
            "`algo.learning_rte` is not a setting of toy; did you mean `algo.learning_rate`?" + OF_TOY,
        ),
        (
            "algo.lrr=3",
            "`algo.lrr` is not a setting of toy; did you mean `algo.learning_rate`?" + OF_TOY,
        ),
        ("algo.clipp=3", "`algo.clipp` is not a setting of toy; did you mean `algo.clip.low`?" + OF_TOY),
        ("algo.Gamma=0.5", "`algo.Gamma` is not a setting of toy; did you mean `algo.gamma`?" + OF_TOY),
        ("algo.sched=linear", "`algo.sched` is not a setting of toy; did you mean `algo.schedule`?" + OF_TOY),
        ("agro=toy", "`agro` is not a setting; did you mean `algo`?" + OF_ALL),
        ("Algo=toy", "`Algo` is not a setting; did you mean `algo`?" + OF_ALL),
        ("algo.zzz=3", "`algo.zzz` is not a setting of toy" + OF_TOY),
        ("algo.clip.hgh=3", "`algo.clip.hgh` is not a setting of toy; did you mean `algo.clip.high`?" + OF_TOY),
        ("gamma=0.5", "`gamma` is not a setting; did you mean `algo.gamma`?" + OF_ALL),
        ("sed=1", "`sed` is not a setting; did you mean `seed`?" + OF_ALL),
        ("seed.x=1", "`seed.x` is not a setting; did you mean `seed`?" + OF_ALL),
        ("hydra.run.dir=x", "`hydra` is not a setting" + OF_ALL),
        ("overrides=[a]", "`overrides` is not a setting" + OF_ALL),
        ("choices.algo=ppo", "`choices` is not a setting" + OF_ALL),
        ("a..b=1", "`a..b` is not a setting" + OF_ALL),
        ("algo.learning_rate=abc", "`algo.learning_rate` must be a number > 0, not abc   (step size)"),
        ("algo.learning_rate=true", "`algo.learning_rate` must be a number > 0, not true"),
        ("algo.gamma=-3", "`algo.gamma` must be a number >= 0, <= 1, not -3   (discount)"),
        ("algo.target_kl=0", "`algo.target_kl` must be a number > 0 or null, not 0   (null: never)"),
        ("algo.clip.high=inf", "`algo.clip.high` must be a number > 0, not inf   (up to 1 + high)"),
        ("algo.epochs=1.5", "`algo.epochs` must be an integer >= 1, not 1.5   (passes)"),
        ("algo.epochs=null", "`algo.epochs` must be an integer >= 1, not null   (passes)"),
        ("algo.schedule=cosine", "`algo.schedule` must be one of constant, linear, not cosine   (of the step size)"),
        ("algo.normalise=maybe", "`algo.normalise` must be true or false, not maybe   (advantages)"),
        ("policy.hidden=[8,x]", "`policy.hidden` must be a list of integer > 0, not [8,x]   (units)"),
        ("algo.clip=3", "`algo.clip` is a group of settings (algo.clip.low, algo.clip.high), not 3"),
        ("algo.clip.low=0.9", "`algo` is refused: clip.low must not exceed clip.high"),
        ("algo.name=ppo", "`algo.name=ppo`: the algo is chosen with algo=ppo"),
        ("seed=", "`seed=` has no value; leave it out to keep the default"),
        ("seed=-1", "`seed` must be an integer >= 0, not -1   (seed of all random numbers of a run)"),
        ("runs_dir=''", "`runs_dir` must be non-empty text, not ''   (folder of the run directories)"),
        ("+algo.extra=1", "`+algo.extra=1` is refused: settings are set (key=value), not added"),
        ("++algo.gamma=1", "`++algo.gamma=1` is refused: settings are set (key=value), not added"),
        ("~algo.gamma", "`~algo.gamma` is refused: settings are set (key=value), not removed"),
        ("policy@algo=net", "`policy@algo=net` is refused: write policy=net"),
        ('runs_dir="\udce4"', "`runs_dir=\"\udce4\"` is not UTF-8, as the files of a run are: rename what it names"),
        ("toy", "`toy` is not key=value; did you mean `algo=toy`?"),
        ("nothing", "`nothing` is not key=value"),
        ("=3", "`=3` is not key=value"),
        ("seed=1,2", "`seed=1,2` is a sweep: use `pgcli sweep`"),
        ("algo=toy,ppo", "`algo=toy,ppo` is a sweep: use `pgcli sweep`"),
        ("seed=range(0,3)", "`seed=range(0,3)` is a sweep: use `pgcli sweep`"),
        ("policy.hidden=(64,64)", "`policy.hidden=(64,64)` cannot be read; write policy.hidden=[64,64]"),
        ("runs_dir=run#1", "`runs_dir=run#1` cannot be read; write 'runs_dir=\"run#1\"'"),
        ("runs_dir=a=b", "`runs_dir=a=b` cannot be read; write 'runs_dir=\"a=b\"'"),
        ("seed=${sed}", "`seed`: Interpolation key 'sed' not found"),
        ("policy=nett", None),
        ("device=gpu", "no device is called `gpu`" + DEVICES),
        ("device=cuda:x", "no device is called `cuda:x`; did you mean `device=cuda`?" + DEVICES),
        ("algo={gamma: 1}", None),
        ("env=gymnasium", None),
    ],
)  # fmt: skip
def test_each_mistake_has_its_line(word, line):
    said = refusal(*TOY, word)
    assert "\n" not in said
    if line is not None:
        assert said == line


def test_what_is_suggested_when_quoted_is_accepted():
    assert compose([*TOY, 'runs_dir="run#1"']).runs_dir == "run#1"
    assert compose([*TOY, "policy.hidden=[64,64]"]).policy.hidden == (64, 64)


def test_an_unknown_algorithm_names_the_nearest_and_where_the_options_are():
    said = refusal("algo=ppoo", "env=land")
    assert said == "no algo is called `ppoo`; did you mean `algo=ppo`?   (pgcli list algos)"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("algo=PPO", "algo=ppo"), ("algo=ppp", "algo=ppo"), ("algo=sca", "algo=sac"), ("policy=mpl", "policy=mlp")],
)
def test_capitals_and_slips_in_a_short_name_are_understood(typed, meant):
    assert f"; did you mean `{meant}`?" in refusal("env=cartpole", typed)


@pytest.mark.parametrize("word", ["algo.clip=0.1", "algo.clipp=0.1"])
def test_a_name_that_was_begun_is_finished_in_its_own_section(word):
    said = refusal("algo=ppo", "env=cartpole", word)  # there are env.normalise.clip and algo.dual_clip
    assert "; did you mean `algo.clip_range`?" in said


def test_options_are_those_of_plug_ins_too():
    said = refusal(*TOY, "policy=nett")
    assert said == "no policy is called `nett`; did you mean `policy=net`?   (pgcli list policies)"


def test_a_slip_in_an_environments_name_is_not_a_gymnasium_id():
    assert refusal("algo=toy", "env=lnad").startswith("no env is called `lnad`; did you mean `env=land`?")


def test_an_environment_that_gymnasium_knows_by_another_spelling_is_suggested():
    assert refusal("algo=toy", "env=half_cheetah").startswith(
        "no env is called `half_cheetah`; did you mean `env=HalfCheetah-v5`?"
    )


def test_several_mistakes_are_told_at_once():
    said = refusal(*TOY, "algo.gamma=7", "sed=1", "policy.hidden=x").split("\n")
    assert [line.split()[0] for line in said] == ["`sed`", "`algo.gamma`", "`policy.hidden`"]


def test_bad_yaml_is_named_by_file_and_line(tmp_path):
    write(tmp_path, {"mine/algo/bad.yaml": "name: toy\ngamma: [1,\nepochs: 2\n", "mine/algo/list.yaml": "- 1\n"})
    said = refusal("algo=bad", "env=land", config_dirs=[tmp_path / "mine"])
    assert said.startswith(f"{tmp_path}/mine/algo/bad.yaml, line 4: bad YAML: ")
    assert refusal("algo=list", "env=land", config_dirs=[tmp_path / "mine"]).startswith(
        f"{tmp_path}/mine/algo/list.yaml must hold settings"
    )


def test_a_wrong_value_is_blamed_once_though_others_repeat_it(tmp_path):
    said = refusal("algo=ppo", "env=cartpole", "algo.gamma=1.5")  # env.normalise.gamma is ${algo.gamma}
    assert said == "`algo.gamma` must be a number >= 0, <= 1, not 1.5   (discount per step)"
    said = refusal("algo=ppo", "env=cartpole", "env.normalise.gamma=1.5")
    assert said.startswith("`env.normalise.gamma` must be a number")
    write(tmp_path, {"mine/env/mine.yaml": "defaults: [land]\nsize: ${seed}\n"})
    said = refusal("algo=toy", "env=mine", "seed=0", config_dirs=[tmp_path / "mine"])  # 0 is a seed, but no size
    assert said.startswith(f"{tmp_path}/mine/env/mine.yaml: `env.size` must be")


def test_a_wrong_value_in_a_file_is_blamed_on_the_file(tmp_path):
    write(tmp_path, {"mine/algo/mine.yaml": "defaults: [toy]\ngamma: 2\n", "mine/algo/bare.yaml": "name: toy\n"})
    said = refusal("algo=mine", "env=land", "seed=1", config_dirs=[tmp_path / "mine"])
    assert said == f"{tmp_path}/mine/algo/mine.yaml: `algo.gamma` must be a number >= 0, <= 1, not 2   (discount)"
    said = refusal("algo=bare", "env=land", "seed=1", config_dirs=[tmp_path / "mine"]).split("\n")
    assert said[0] == "`algo.learning_rate` has no value: number > 0   (step size)"


def test_a_file_that_starts_from_nothing_known_is_refused(tmp_path):
    write(tmp_path, {"mine/algo/lost.yaml": "defaults: [nowhere]\nname: toy\n"})
    assert refusal("algo=lost", config_dirs=[tmp_path / "mine"]) == "In 'algo/lost': Could not load 'algo/nowhere'."


def test_a_config_that_names_something_to_call_executes_nothing(tmp_path):
    write(tmp_path, {"mine/algo/evil.yaml": "defaults: [toy]\n_target_: os.system\n_args_: ['touch pwned']\n"})
    assert "`algo._target_` is not a setting of evil" in refusal(
        "algo=evil", "env=land", "seed=1", config_dirs=[tmp_path / "mine"]
    )
    write(tmp_path, {"mine/algo/evil.yaml": "name: ../../evil\n"})
    assert (
        refusal("algo=evil", "env=land", "seed=1", config_dirs=[tmp_path / "mine"])
        == f"{tmp_path}/mine/algo/evil.yaml: `name: ../../evil` is no algo that is built in or installed; a file with "
        "`defaults` takes its name from them"
    )
    write(tmp_path, {"mine/algo/evil.yaml": "name: toy\ngamma: !!python/object/apply:os.system ['touch pwned']\n"})
    assert "bad YAML: could not determine a constructor" in refusal(
        "algo=evil", "env=land", config_dirs=[tmp_path / "mine"]
    )
    assert os.listdir() == []


# ---------------------------------------------------------------- folders


def test_a_config_folder_adds_options_from_any_working_directory(tmp_path, monkeypatch):
    mine = write(tmp_path, {"mine/algo/slow.yaml": "# My own.\ndefaults: [toy]\nlearning_rate: 1e-5\n"}) / "mine"
    assert compose(["algo=slow", "env=land", "seed=1"], config_dirs=[mine]).algo.learning_rate == 1e-5
    assert groups([mine])["algo"]["slow"] == "My own."
    monkeypatch.setenv("PGCLI_CONF", str(mine))
    assert compose(["algo=slow", "env=land", "seed=1"]).algo.epochs == 4
    assert "slow" in groups()["algo"]


def test_a_config_folder_may_have_spaces_and_quotes_in_its_name(tmp_path):
    mine = write(tmp_path, {"it's mine, too/algo/slow.yaml": "defaults: [toy]\n"}) / "it's mine, too"
    assert compose(["algo=slow", "env=land", "seed=1"], config_dirs=[mine]).choices["algo"] == "slow"


def test_a_missing_config_folder_is_named(tmp_path):
    assert refusal(config_dirs=[tmp_path / "no"]) == f"config folder {tmp_path}/no does not exist"


def test_a_file_that_a_built_in_option_would_hide_is_refused(tmp_path):
    write(tmp_path, {"mine/algo/ppo.yaml": "defaults: [toy]\n"})
    said = refusal("algo=ppo", "env=land", config_dirs=[tmp_path / "mine"])
    assert said == f"{tmp_path}/mine/algo/ppo.yaml has the name of a built-in option: give it another one than `ppo`"


def test_a_file_of_ones_own_starts_from_what_is_no_option_itself(tmp_path):
    folder = write(tmp_path, {"env/mine.yaml": "defaults: [_normalise]\nname: pendulum\nid: Pendulum-v1\n"
                                               "max_episode_steps: 9\nsolved_at: null\n"})  # fmt: skip
    config = compose(["algo=ppo", "env=mine", "algo.gamma=0.5"], config_dirs=[folder])
    assert config.env.normalise == compose(["algo=ppo", "env=pendulum", "algo.gamma=0.5", "tuned=none"]).env.normalise
    assert config.env.normalise.gamma == 0.5
    with pytest.raises(InputError, match="no env is called `_normalise`"):
        compose(["algo=ppo", "env=_normalise"])


def test_a_whole_tree_of_ones_own_leads(tmp_path):
    mine = write(
        tmp_path,
        {
            "mine/config.yaml": CONFIG.replace("seed: 0", "seed: 77"),
            "mine/algo/ppo.yaml": "defaults: [toy]\ngamma: 0.5\n",
        },
    )
    config = compose(["algo=ppo", "env=land"], config_dirs=[mine / "mine"])
    assert (config.seed, config.algo.gamma) == (77, 0.5)


def test_a_plug_ins_options_are_listed_without_importing_it():
    assert groups()["algo"]["toy"] == "A toy algorithm."
    assert groups()["env"]["land"] == "A land."  # `# @package` is for Hydra
    assert "toyplug" not in sys.modules  # importing it would raise


LONG = "A method that does what its paper says, on every task there is, in as many words as a line has room for"


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("# Short, no stop\n# More.", "Short, no stop"),
        (f"# {LONG}", LONG),
        (f"# Dr. GRPO (Liu et al. 2025). {LONG}: and\n# more of it.", "Dr. GRPO (Liu et al. 2025)."),
        (f"# {LONG},\n# and more. Then something else.", f"{LONG}, and more."),
        (f"# {LONG},\n# and more\n#\n# Another matter.", f"{LONG}, and more"),
    ],
)
def test_a_headline_is_the_first_line_or_whole_sentences(tmp_path, comment, said):
    assert headline(write(tmp_path, {"a.yaml": f"{comment}\nname: a\n"}) / "a.yaml") == said


def test_the_headline_of_a_file_without_comment_is_empty(tmp_path):
    assert headline(write(tmp_path, {"a.yaml": "name: a\n"}) / "a.yaml") == ""


def test_a_file_that_changed_is_read_again(tmp_path):
    mine = write(tmp_path, {"mine/algo/slow.yaml": "defaults: [toy]\nepochs: 2\n"}) / "mine"
    assert compose(["algo=slow", "env=land"], config_dirs=[mine]).algo.epochs == 2
    write(tmp_path, {"mine/algo/slow.yaml": "defaults: [toy]\nepochs: 3\n"})
    assert compose(["algo=slow", "env=land"], config_dirs=[mine]).algo.epochs == 3


# ---------------------------------------------------------------- tuned


def test_the_tuned_file_lies_between_the_groups_and_the_command_line(tmp_path):
    mine = (
        write(
            tmp_path, {"mine/tuned/toy_land.yaml": "total_steps: 7\nalgo: {gamma: 0.5, epochs: 9, clip: {low: 0.1}}\n"}
        )
        / "mine"
    )
    composition = explain([*TOY, "algo.epochs=2"], config_dirs=[mine])
    config, origins = composition
    assert config.choices["tuned"] == "toy_land"
    assert (config.total_steps, config.algo.gamma, config.algo.epochs) == (7, 0.5, 2)
    assert (config.algo.clip.low, config.algo.clip.high) == (0.1, 0.2)
    assert origins.name("algo.gamma") == origins.name("algo.clip.low") == f"{tmp_path}/mine/tuned/toy_land.yaml"
    assert origins.name("algo.epochs") == "command line"
    assert origins.name("algo.learning_rate").endswith("toyplug/conf/algo/toy.yaml")
    assert origins.name("log_every") == "conf/config.yaml"


def test_the_tuned_file_is_found_by_id_as_by_name(tmp_path):
    mine = write(tmp_path, {"mine/tuned/toy_land.yaml": "algo: {gamma: 0.5}\n"}) / "mine"
    by_id = compose(["algo=toy", "env=Land-v3", "policy=net"], config_dirs=[mine])  # the slug drops the version
    assert (by_id.choices["env"], by_id.choices["tuned"], by_id.algo.gamma) == ("gymnasium", "toy_land", 0.5)
    assert compose([*TOY, "env.id=Sea-v1"], config_dirs=[mine]).choices["tuned"] == "none"


def test_the_tuned_file_can_be_left_out_and_another_one_named(tmp_path):
    mine = (
        write(tmp_path, {"mine/tuned/toy_land.yaml": "algo: {gamma: 0.5}\n", "mine/tuned/fancy.yaml": "seed: 9\n"})
        / "mine"
    )
    assert compose([*TOY, "tuned=none"], config_dirs=[mine]).algo.gamma == 0.9
    assert compose(["algo=toy", "env=land", "tuned=fancy"], config_dirs=[mine]).seed == 9
    assert refusal(*TOY, "tuned=fncy", config_dirs=[mine]).startswith(
        "no tuned is called `fncy`; did you mean `tuned=fancy`?"
    )


def test_a_tuned_file_that_is_not_there_names_those_that_are():
    with pytest.raises(InputError, match=r"no tuned is called `x`   \(tuned is one of auto, none, "):
        compose(["algo=ppo", "env=cartpole", "tuned=x"])


def test_a_tuned_section_with_a_name_is_for_that_class_only(tmp_path):
    mine = write(tmp_path, {"mine/tuned/toy_land.yaml": "policy: {name: net, hidden: [3]}\n"}) / "mine"
    assert compose(TOY, config_dirs=[mine]).policy.hidden == (3,)
    assert compose([*TOY, "policy=other"], config_dirs=[mine]).policy.width == 3


def test_without_a_file_for_the_pair_that_of_the_policy_is_taken(tmp_path):
    sections = "algo: [{name: toy, gamma: 0.3}, {name: other, gamma: 0.1}]\n"
    mine = write(tmp_path, {"mine/tuned/net.yaml": sections}) / "mine"
    config = compose(TOY, config_dirs=[mine])
    assert (config.choices["tuned"], config.algo.gamma) == ("net", 0.3)
    write(tmp_path, {"mine/tuned/toy_land.yaml": "algo: {epochs: 9}\n"})
    assert compose(TOY, config_dirs=[mine]).choices["tuned"] == "toy_land"
    write(tmp_path, {"mine/tuned/toy_land.yaml": "", "mine/tuned/net.yaml": "algo: [{name: other, gamma: 0.1}]\n"})
    (tmp_path / "mine/tuned/toy_land.yaml").unlink()
    assert compose(TOY, config_dirs=[mine]).choices["tuned"] == "none", "nothing of it was for this method"


def test_a_tuned_file_of_another_algorithm_is_refused(tmp_path):
    mine = write(tmp_path, {"mine/tuned/theirs.yaml": "algo: {name: other, gamma: 0.1}\n"}) / "mine"
    assert refusal(*TOY, "tuned=theirs", config_dirs=[mine]) == "tuned=theirs is for algo=other, not for algo=toy"


def test_a_mistake_in_a_tuned_file_is_blamed_on_it(tmp_path):
    mine = write(tmp_path, {"mine/tuned/toy_land.yaml": "algo: {gama: 0.5}\n"}) / "mine"
    assert refusal(*TOY, config_dirs=[mine]).startswith(
        f"{tmp_path}/mine/tuned/toy_land.yaml: `algo.gama` is not a setting of toy; "
    )
    write(tmp_path, {"mine/tuned/toy_land.yaml": "defaults: [x]\n"})
    assert "has no `defaults`" in refusal(*TOY, config_dirs=[mine])


# ---------------------------------------------------------------- trust


CODE = "defaults: [land]\nid: 'danger:Env-v0'\nsize: 1\n"


def test_user_code_named_on_the_command_line_is_trusted_and_in_a_file_it_is_not(tmp_path):
    mine = write(tmp_path, {"mine/env/mine.yaml": CODE}) / "mine"
    assert compose(["algo=toy", "env=danger:Env-v0", "policy=net"]).env.id == "danger:Env-v0"
    assert compose([*TOY, "env.id=danger:Env-v0"]).env.id == "danger:Env-v0"
    said = refusal("algo=toy", "env=mine", config_dirs=[mine])
    assert said.startswith(
        f"{tmp_path}/mine/env/mine.yaml names user code to import, env.id=danger:Env-v0: pass --trust"
    )
    assert compose(["algo=toy", "env=mine"], config_dirs=[mine], trust=True).env.id == "danger:Env-v0"


def test_an_installed_plug_in_may_name_its_own_code(tmp_path):
    mine = write(tmp_path, {"mine/algo/slow.yaml": "defaults: [toy]\n"}) / "mine"
    assert compose(["algo=slow", "env=coded", "policy=net"], config_dirs=[mine]).env.id == "toyland:Land-v0"


@pytest.mark.parametrize(
    "files",
    [
        {"mine/tuned/toy_land.yaml": "env: {id: 'danger:Env-v0'}\n"},
        {"mine/config.yaml": f"{CONFIG}env: {{id: 'danger:Env-v0'}}\n"},
        {"mine/device/sly.yaml": "# @package _global_\ndevice: {name: cpu, threads: 1}\nenv: {id: 'danger:Env-v0'}\n"},
    ],
)
def test_no_other_file_can_smuggle_code_in(tmp_path, files):
    mine = write(tmp_path, files) / "mine"
    choice = [f"{Path(name).parent.name}=sly" for name in files if "sly" in name]
    said = refusal(*(w for w in TOY if not any(w.startswith(c[:4]) for c in choice)), *choice, config_dirs=[mine])
    assert "env.id=danger:Env-v0: pass --trust" in said


# ---------------------------------------------------------------- there and back


def test_a_dumped_config_loads_as_it_was(tmp_path):
    from omegaconf import OmegaConf

    config = compose(
        [*TOY, "algo.learning_rate=1e-5", "env.kwargs.name='on'", "stop_at=null", "init=null", "policy.hidden=[3,4]"]
    )
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dump(config))))
    back = load(tmp_path / "config.yaml")
    assert dump(back) == dump(config)
    assert back.model_copy(update={"choices": config.choices, "overrides": config.overrides}) == config
    assert dump(load(dump(config))) == dump(config)


def test_a_run_directory_keeps_its_choices(tmp_path):
    from omegaconf import OmegaConf

    config = compose(["algo=toy_fast", "env=land", "seed=1"])
    write(tmp_path, {"run/run.json": '{"choices": {"algo": "toy_fast", "env": "land", "tuned": "x"}}'})
    (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dump(config))))
    back = load(tmp_path / "run", ["total_steps=9"])
    assert (back.choices["algo"], back.choices["policy"], back.choices["tuned"], back.total_steps) == (
        "toy_fast",
        "net",
        "x",
        9,
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_config_beside_a_damaged_run_json_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "config.yaml").write_text(json.dumps(dump(compose(TOY))))
    (tmp_path / "run.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        load(tmp_path / "config.yaml")


def test_a_loaded_config_takes_settings_but_no_other_options():
    data = dump(compose(TOY))
    assert load(data, ["algo.gamma=0.5"]).algo.gamma == 0.5
    for word, line in [
        ("algo=ppo", "`algo=ppo` is refused here: this config has chosen its algo; only its settings can be changed"),
        (
            "algo.gama=1",
            "`algo.gama` is not a setting of toy; did you mean `algo.gamma`?" + OF_TOY,
        ),
    ]:
        with pytest.raises(InputError) as caught:
            load(data, [word])
        assert str(caught.value) == line


def test_a_loaded_config_needs_trust_to_name_code():
    data = dump(compose([*TOY, "env.id=danger:Env-v0"]))
    with pytest.raises(InputError, match=r"this config names user code to import, env\.id=danger:Env-v0: pass --trust"):
        load(data)
    assert load(data, trust=True).env.id == load(data, ["env.id=danger:Env-v0"]).env.id == "danger:Env-v0"


def test_a_file_that_is_no_config_is_refused(tmp_path):
    for text, said in [
        ("seed: 1\n", "is not the config of a run: it has no `algo.name`"),
        ("a: [\n", "line 2: bad YAML"),
        ("a: \0\n", r"x\.yaml: bad YAML: unacceptable character"),
    ]:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            load(tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"nothere.yaml does not exist"):
        load(tmp_path / "nothere.yaml")


# ---------------------------------------------------------------- sweeps


def test_expand_is_the_product_and_the_last_word_varies_fastest():
    assert expand(["algo=ppo,a2c", "env=cartpole", "seed=range(0,2)"]) == [
        ["algo=ppo", "env=cartpole", "seed=0"],
        ["algo=ppo", "env=cartpole", "seed=1"],
        ["algo=a2c", "env=cartpole", "seed=0"],
        ["algo=a2c", "env=cartpole", "seed=1"],
    ]
    assert expand([]) == [[]]


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("policy.hidden=[64,64],[32,32]", [[64, 64], [32, 32]]),
        ("algo.learning_rate=1e-3,3e-4", [0.001, 0.0003]),
        ("algo.gamma=range(0,1,0.5)", [0.0, 0.5]),
        ("init='a, b','c=d',null", ["a, b", "c=d", None]),
        ("env=CartPole-v1,ALE/Pong-v5,my_package:MyEnv-v0", ["CartPole-v1", "ALE/Pong-v5", "my_package:MyEnv-v0"]),
        ("algo.clip={low:0.1},{low:0.2}", [{"low": 0.1}, {"low": 0.2}]),
        ("seed=choice(3,1,2)", [3, 1, 2]),
        ("algo.normalise=true,false", [True, False]),
    ],
)
def test_each_alternative_parses_back_to_its_value(word, values):
    from pgcli.experiment.overrides import parse

    assert [parse(run)[0].value for run in expand([word])] == values


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "algo.gamma=interval(0,1)",
            "`algo.gamma=interval(0,1)` is not a list of values: write `a,b,c` or `range(start,stop,step)`",
        ),
        ("algo=glob(*)", "`algo=glob(*)` is not a list of values: write `a,b,c` or `range(start,stop,step)`"),
        ("seed=range(5,0)", "`seed=range(5,0)` is empty: it counts up from 5 and ends before 0"),
        ("seed=range(0,5,-1)", "`seed=range(0,5,-1)` is empty: it counts down from 0 and ends before 5"),
        ("seed=range(0,5,0)", "`seed=range(0,5,0)` never ends: its step is 0"),
        ("seed=range(0,5,nan)", "`seed=range(0,5,nan)` never ends: start, stop and step must be finite"),
        ("seed=range(0,inf)", "`seed=range(0,inf)` never ends: start, stop and step must be finite"),
        ("seed=range(0,1e9)", "`seed=range(0,1e9)` is 1,000,000,000 runs; 10,000 are the most of one sweep"),
        ("seed=1,2,1", "`seed=1,2,1` names 1 twice: the same run would count as two"),
        (
            "seed=shuffle(1,2)",
            "`seed=shuffle(1,2)` has no order of its own: a sweep runs its values as given, leave shuffle out",
        ),
        ("+seed=1,2", "`+seed=1,2` is refused: settings are set (key=value), not added"),
    ],
)
def test_what_is_no_list_of_values_is_refused(word, line):
    with pytest.raises(InputError) as caught:
        expand([word])
    assert str(caught.value) == line


def test_a_product_of_more_runs_than_anybody_meant_is_refused_before_it_is_made():
    with pytest.raises(InputError, match="is 1,000,000 runs; 10,000 are the most of one sweep"):
        expand(["seed=range(0,1000)", "algo.gamma=range(0,1000)"])


# ---------------------------------------------------------------- the real tree


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in ("algo", "env", "policy", "device") for o in groups()[g]]
)
def test_every_built_in_option_composes_and_has_a_headline(group, option):
    missing = {
        "gymnasium": "env.id=CartPole-v1", "jsonl": "env.path=x", "hf": "policy.path=x", "hf_lora": "policy.path=x",
    }  # fmt: skip
    words = [f"{group}={option}", *([missing[option]] if option in missing else [])]
    assert getattr(compose(words), group).name
    assert groups()[group][option]
