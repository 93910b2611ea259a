"""What `pgcli verify` says, of built-ins and of a user's own, and how it says it."""

import importlib.metadata
import json
import math
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pgcli
from pgcli import cli, verification
from pgcli.cli.verify import lines
from pgcli.errors import InputError
from pgcli.experiment.build import build
from pgcli.experiment.config import compose
from pgcli.verification import Verification, language, policy_gradients, preferences, verify
from pgcli.verification.check import Check, at_most, broken, equal


@pytest.fixture(scope="module")
def everything():
    return verify()


def command(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *words])
    return ended.value.code


# ---------------------------------------------------------------- what is found


def test_everything_that_is_built_in_passes(everything):
    assert everything.passed, [check for check in everything.checks if not check.passed]
    assert everything.verdict.startswith(f"verified: {len(everything.checks)} quantities of ")


def test_each_method_has_the_rows_that_its_settings_call_for(everything):
    found = {}
    for check in everything.checks:
        if not check.quantity.startswith("text: "):
            found.setdefault(check.algo, set()).add(check.quantity)
    # Which of them are biased, and which are not, is a fact of each method: said here, not found out.
    adding = {"grad, token_mean", "grad, sequence_mean", "grad, in 5 minibatches"}
    angle = {"angle of an update <= bound"}
    common = {"grad J", *angle, *adding}
    bonus = {"grad of the entropy bonus"}
    corners = {row for row in found["ppo"] if row.startswith("A ")}
    assert len(corners) == 6
    critic = {
        "biased grad J, gamma 0.8", "grad J, wrong V", "grad J, cut segments", "grad J, exact V, any lambda",
        "biased grad J, wrong V, any lambda", "variance of A, wrong V", "grad of the value loss",
    }  # fmt: skip
    standardised = {"standardised, groups of 2", "standardised, groups of 3"}
    assert found["vanilla_pg"] == common | bonus | {"grad J, gamma 0.8"}
    assert found["a3c"] == found["a2c"] - angle - {"grad, token_mean", "grad, sequence_mean"}
    assert found["a2c"] == common | bonus | critic
    assert found["ppo"] >= common | bonus | critic | corners | {"grad of the surrogate"}
    assert found["rloo"] == common | bonus | {"each gradient, r and r + 5"}
    surrogate = {"each gradient, r and r + 5", "(K-1)/K grad J", "grad of the surrogate", "grad, constant"}
    assert found["grpo"] == surrogate | angle | adding | bonus | corners | standardised
    assert found["dr_grpo"] == found["grpo"]
    assert found["sft"] == {"grad of the log-likelihood", *angle}
    assert found["reinforce"] >= common | bonus | {
        "biased grad J, gamma 0.8", "biased grad J, baseline mean", "grad J, baseline value", "grad of the value loss",
        "variance, baseline value: both", "variance, baseline value, bandit",
    }  # fmt: skip


def test_the_numbers_worth_knowing_are_what_they_are(everything):
    rows = {(c.algo, c.quantity): c for c in everything.checks}
    biased = rows["reinforce", "biased grad J, baseline mean"]
    assert "(N-1)/N" in biased.note
    # pi = (0.9, 0.1), r = (1, 0). |score|^2 = 0.02 and 1.62. Without: 0.9 * 0.02 * 1 - (E g)^2, E g = 0.09 (1, -1).
    # With V = 0.9: 0.9 * 0.02 * 0.01 + 0.1 * 1.62 * 0.81 - 0.0162.
    assert rows["reinforce", "variance, baseline value, bandit"].exact == pytest.approx(0.1314 - 0.0162)
    assert "64.0 times" in rows["reinforce", "variance, baseline value, bandit"].note  # 0.1152 / 0.0018
    # The wrong V's bias falls to 0 at lambda 1; the standardised direction is another one.
    assert rows["a2c", "biased grad J, wrong V, any lambda"].note.endswith(", 0")
    assert float(rows["grpo", "standardised, groups of 2"].note.partition(" ")[0]) > 10


def test_only_what_is_asked_for_is_made(monkeypatch):
    made = []

    def counted(original):
        return lambda option: made.append(option) or original(option)

    monkeypatch.setattr(policy_gradients, "Method", counted(policy_gradients.Method))
    monkeypatch.setattr(language, "Writer", counted(language.Writer))
    monkeypatch.setattr(preferences, "Learner", counted(preferences.Learner))
    found = verify("algo=rloo,sft", "algo=rloo")
    assert made == ["rloo", "sft"] * 3
    assert {check.algo for check in found.checks} == {"rloo", "sft"}
    assert "of rloo, sft" in found.verdict


def test_the_python_call_is_the_command(capsys):
    assert pgcli.verify is verify
    assert command("algo=rloo", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(verify("algo=rloo").to_json()))
    assert printed["passed"] is True
    assert {row["algo"] for row in printed["checks"]} == {"rloo"}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("algo=pppo", r"no algo is called `pppo`; did you mean `algo=ppo`\?"),
        ("algo=qqqqq", r"no algo is called `qqqqq`   \(pgcli list algos\)"),
        ("ppo", r"`ppo` is not something to verify; did you mean `algo=ppo`\?"),
        ("env=cartpole", r"`env=cartpole` is not something to verify; write algo=NAME"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(word, message, capsys):
    with pytest.raises(InputError, match=message):
        verify(word)
    assert command(word) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---------------------------------------------------------------- what breaks, and what fails


def test_a_topic_that_breaks_is_a_row_that_fails(monkeypatch, capsys):
    def checks():
        yield equal("", "fine", 1.0, 1.0)
        raise ZeroDivisionError("by nothing\nat all")

    module = types.ModuleType("pgcli.verification.fragile")
    module.checks = checks
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(verification, "TOPICS", ("fragile", "absent"))
    found = verify()
    assert [check.passed for check in found.checks] == [True, False, False]
    assert found.checks[1].note == "could not be checked: ZeroDivisionError: by nothing"
    assert "absent" in found.checks[2].note
    assert command() == 1
    assert "not verified: 2 of 3 quantities fail, in the shared mathematics" in capsys.readouterr().out
    assert json.dumps(found.to_json(), allow_nan=False)


def test_a_topic_says_of_whom_it_speaks(monkeypatch):
    module = types.ModuleType("pgcli.verification.narrow")
    module.ALGOS = ("rloo",)
    module.checks = lambda: iter([equal("rloo", "one", 1.0, 1.0), equal("grpo", "other", 1.0, 1.0)])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(verification, "TOPICS", ("narrow",))
    assert [check.quantity for check in verify("algo=rloo").checks] == ["one"]
    nobody = verify("algo=ppo")
    assert (nobody.checks, nobody.unchecked, nobody.passed) == ([], ["ppo"], False)
    assert nobody.verdict == "nothing to verify: no topic speaks of ppo"


def test_a_number_that_is_not_one_fails():
    assert not equal("", "x", 1.0, math.nan).passed
    assert not at_most("", "x", 1.0, math.nan).passed
    assert not broken("", "x", ValueError("y")).passed
    assert at_most("", "x", 1.0, 0.5).passed
    assert not at_most("", "x", 1.0, 1.5).passed


# ---------------------------------------------------------------- a user's own algorithm

RIGHT = """
from pgcli.algorithms.reinforce import Reinforce

class Mine(Reinforce):
    class Config(Reinforce.Config):
        name: str
"""
SIGN = (
    RIGHT
    + """
    def loss(self, policy, batch, noise):
        total, terms = super().loss(policy, batch, noise)
        return -total, terms
"""
)
CRASH = (
    RIGHT
    + """
    def prepare(self, rollout):
        raise RuntimeError("not today")
"""
)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package with an algorithm `mine`, made of the given source."""

    def install(source, parent="reinforce"):
        package = f"plugin_{abs(hash(source))}"
        (tmp_path / package / "conf" / "algo").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text(source)
        (tmp_path / package / "conf" / "algo" / "mine.yaml").write_text(f"defaults: [{parent}]\nname: mine\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        entry = importlib.metadata.EntryPoint("mine", f"{package}:Mine", "pgcli.algorithms")
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda *, group: [entry] if group == "pgcli.algorithms" else []
        )

    return install


def test_a_plug_in_is_checked_like_a_built_in(plugin):
    plugin(RIGHT)
    found = verify("algo=mine")
    assert found.passed, found.failures
    own = [*policy_gradients.checks(["reinforce"]), *language.checks(["reinforce"])]
    assert [c.quantity for c in found.checks] == [c.quantity for c in own]


FORGETFUL = """
from pgcli.algorithms.reinforce import Reinforce

class Mine:
    class Config(Reinforce.Config):
        name: str

    METRICS, collects, actions = Reinforce.METRICS, Reinforce.collects, Reinforce.actions
    needs, update = staticmethod(Reinforce.needs), Reinforce.update
"""


def test_a_plug_in_that_lacks_a_member_is_refused_by_its_name(plugin):
    plugin(FORGETFUL)
    with pytest.raises(
        InputError, match=r"^algo=mine: its class Mine has no state_dict, load_state_dict \(docs/extend"
    ):
        build(compose(["algo=mine", "env=cartpole", "tuned=none"]))
    assert not verify("algo=mine").passed


def test_a_plug_in_with_a_wrong_sign_fails(plugin, capsys):
    plugin(SIGN)
    assert command("algo=mine") == 1
    printed = capsys.readouterr().out
    assert "not verified: " in printed.splitlines()[-1]
    assert "in mine" in printed.splitlines()[-1]
    assert "\nx grad J " in printed
    rows = {check.quantity: check for check in verify("algo=mine").checks}
    assert rows["grad J"].error > 0.1


TURNED = (
    RIGHT
    + """
    def update(self, rollout):
        loss, self.loss = self.loss, lambda *given: (-loss(*given)[0], loss(*given)[1])
        return super().update(rollout)
"""
)


def test_a_plug_in_whose_update_turns_its_loss_around_fails(plugin):
    plugin(TURNED)
    [failure] = verify("algo=mine").failures
    assert failure.quantity == "angle of an update <= bound"
    assert failure.ours > 120


OPTIMIST = (
    RIGHT
    + """
    def prepare(self, rollout):
        batch = super().prepare(rollout)
        batch.advantages = batch.advantages.clamp(min=0.5)
        return batch
"""
)
DECLARED = """
    @staticmethod
    def expected_credit(config, rollout):
        return rollout.rewards.flip(1).cumsum(1).flip(1).clamp(min=0.5)
"""


def test_a_plug_in_that_is_biased_on_purpose_says_what_it_expects(plugin):
    plugin(OPTIMIST)
    assert not verify("algo=mine").passed
    plugin(OPTIMIST + DECLARED)
    found = verify("algo=mine")
    assert found.passed, found.failures
    rows = {check.quantity: check for check in found.checks}
    assert set(rows) == {
        "biased grad J, as it declares", "angle of an update <= bound", "grad, token_mean", "grad, sequence_mean",
        "grad, in 5 minibatches",
        "grad of the entropy bonus", "grad of the value loss", "text: biased grad J, as it declares",
    }  # fmt: skip
    for name in ("biased grad J, as it declares", "text: biased grad J, as it declares"):
        assert float(rows[name].note.partition(" degrees from grad J")[0]) > 1
    assert verify("algo=reinforce").checks[0].exact != pytest.approx(
        rows["biased grad J, as it declares"].exact, rel=0.1
    )


def test_a_plug_in_that_declares_another_bias_than_its_own_fails(plugin):
    plugin(OPTIMIST + DECLARED.replace("0.5", "0.6"))
    failing = {check.quantity for check in verify("algo=mine").failures}
    assert {"biased grad J, as it declares", "text: biased grad J, as it declares"} <= failing


def test_a_plug_in_that_learns_from_pairs_is_checked_like_a_built_in(plugin):
    source = RIGHT.replace("reinforce", "dpo").replace("Reinforce", "DPO")
    plugin(source, "dpo")
    found = verify("algo=mine")
    assert found.passed, found.failures
    assert [c.quantity for c in found.checks] == [c.quantity for c in preferences.checks(["dpo"])]
    plugin(source + SIGN.removeprefix(RIGHT), "dpo")
    assert not verify("algo=mine").passed


OF_OTHER_ROLES = {
    # parent: its class, and mistakes that its rows must notice
    "ddpg": ("DDPG", ("gamma=c.gamma", "gamma=1.0"), ("lowest(policy", "-lowest(policy"), ("= -batch", "= batch")),
    "td3": ("DDPG", ("batch.terminated", "~batch.terminated"), ("fixed_values", "values"), (" - targets", "")),
    "sac": (
        "SAC",
        ("(judged, next_", "(2 * judged, next_"),
        ("-batch.mean(soft", "batch.mean(soft"),
        ("gamma=c", "gamma=0.5 * c"),
    ),
    "dqn": ("DQN", ("amax(-1)", "mean(-1)"), ("values - targets", "targets - targets"), ("gamma=", "gamma=1 - ")),
    "q_learning": ("QLearning", ("amax(-1)", "amin(-1)"), ("values - targets", "values + targets")),
    "sarsa": (
        "Sarsa",
        ("select(next_values, next_actions)", "next_values.amax(-1)"),
        ("batch.terminated", "~batch.terminated"),
    ),
    "es": ("ES", ("flat - ascent", "flat + ascent")),
    "ga": ("GA", ("truncation_selection(returns, len", "truncation_selection(-returns, len")),
}


def of_another_role(parent, class_name, mistake=None):
    """The source of a built-in method, as a package of a user's own would have it, with a mistake."""
    module = {"td3": "ddpg"}.get(parent, parent)
    source = Path(importlib.import_module(f"pgcli.algorithms.{module}").__file__).read_text()
    if mistake:
        assert mistake[0] in source, mistake
        source = source.replace(*mistake)
    return source.replace(f"class {class_name}:", "class Mine:").replace(f'Literal["{module}"]', "str")


@pytest.mark.parametrize("parent", OF_OTHER_ROLES)
def test_a_plug_in_of_any_role_is_checked_and_its_mistakes_are_noticed(plugin, parent):
    class_name, *mistakes = OF_OTHER_ROLES[parent]
    plugin(of_another_role(parent, class_name), parent)
    found = verify("algo=mine")
    assert found.passed, found.failures or found.unchecked
    for mistake in mistakes:
        plugin(of_another_role(parent, class_name, mistake), parent)
        assert verify("algo=mine").failures, mistake


def test_a_plug_in_that_values_states_in_its_own_way_declares_it(plugin):
    source = of_another_role("sarsa", "Sarsa").replace("def expected_values", "def something_else")
    plugin(source, "sarsa")
    assert not verify("algo=mine").passed


def test_a_plug_in_that_crashes_leaves_the_others_their_rows(plugin):
    plugin(CRASH)
    found = verify("algo=mine", "algo=rloo")
    mine = [check for check in found.checks if check.algo == "mine"]
    assert mine
    assert not any(check.passed for check in mine)
    assert all("RuntimeError: not today" in check.note for check in mine)
    assert all(check.passed for check in found.checks if check.algo == "rloo")


# ---------------------------------------------------------------- how it reads


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(everything, width):
    wrong = Check("ppo", "something else", 1.0, -1.0, 2.0, 1e-8, "a note on it that is long enough to be folded " * 3)
    text = [str(line) for line in lines(Verification([*everything.checks, wrong], ["es"]), width)]
    assert max(map(len, text)) <= width
    heading = next(line for line in text if line.startswith("ppo "))
    assert heading.split() == ["ppo", "exact", "ours", "error", "tolerance"]
    row = next(line for line in text if "something else" in line)
    assert row.split()[:7] == ["x", "something", "else", "1", "-1", "2e+00", "1e-08"]
    assert text[-1] == "nothing is said of es"


@pytest.mark.parametrize("columns", ["0", "5"])
def test_a_terminal_too_narrow_for_any_text_is_written_to(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert command("algo=rloo") == 0
    assert "quantities of rloo are exact" in capsys.readouterr().out


def test_notes_stand_beside_their_rows_where_there_is_room(everything):
    wide, narrow = ([str(line) for line in lines(everything, width)] for width in (120, 80))
    assert any("score" in line and "a baseline is" in line for line in wide)
    assert (
        narrow[narrow.index(next(line for line in narrow if "score" in line)) + 1].strip().startswith("E[grad log pi]")
    )


def test_the_help_imports_no_torch():
    script = "import sys; from pgcli import cli\ntry: cli.main(['verify', '--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run(
        [sys.executable, "-c", script + "print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "algo=NAME" in done.stdout
