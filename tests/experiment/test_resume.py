"""A run that was killed and resumed ends as one that was not, bit for bit: each algorithm, each kind of environment.

In one process, on copies of what a killed process leaves behind; test_kill.py kills real ones.
"""

import copy
import json
import shutil

import gymnasium
import numpy as np
import pytest
import yaml

from pgcli.errors import InputError
from pgcli.experiment import evaluate, resume, train
from pgcli.runs import Run

from .conftest import MLP, TINY, TRANSFORMER, assert_same_end, killed_copy, lines_of_metrics

pytestmark = pytest.mark.usefixtures("_no_power_cut")

EPISODES = ("algo.num_episodes=4", "env.max_episode_steps=50", MLP)
SEGMENTS = ("algo.num_envs=4", "algo.num_steps=32", MLP)
GROUPS = ("algo.num_groups=2", "algo.group_size=2", "env.max_episode_steps=50", MLP)
CANDIDATES = ("algo.num_episodes=2", "env.max_episode_steps=50")
REPLAY = (
    "algo.num_steps=10", "algo.gradient_steps=3", "algo.batch_size=8", "algo.learning_starts=50", "algo.capacity=400",
    MLP,
)  # fmt: skip
NORMALISED = ("env.normalise.observations=true", "env.normalise.rewards=true")
MEMORY = ("env=cartpole_positions", "policy.hidden=8", "env.max_episode_steps=50")
SORT = ("env=sort", *TRANSFORMER)
PAIRS = (*SORT, "algo.num_pairs=5", "env.pairs=24")
PENDULUM = ("env=pendulum", "env.max_episode_steps=50", "algo.learning_starts=100", "algo.batch_size=8", MLP)

EXPERIMENTS = {
    "vanilla_pg": ("algo=vanilla_pg", *EPISODES),
    "reinforce without a baseline": ("algo=reinforce", "algo.baseline=none", *EPISODES),
    "reinforce, mean": ("algo=reinforce", "algo.baseline=mean", *EPISODES),
    "reinforce, value": ("algo=reinforce", "algo.baseline=value", *EPISODES),
    "reinforce, optimal": ("algo=reinforce", "algo.baseline=optimal", *EPISODES),
    "actor_critic": ("algo=actor_critic", "algo.num_envs=4", MLP),
    "npg": ("algo=npg", *SEGMENTS),
    "npg, scheduled": ("algo=npg", "algo.step=plain", "algo.schedule=robbins_monro", *SEGMENTS),
    "trpo": ("algo=trpo", *SEGMENTS),
    "trpo on pendulum": ("algo=trpo", "env=pendulum", *SEGMENTS, "env.max_episode_steps=50", *NORMALISED),
    "ppo_kl": ("algo=ppo_kl", *SEGMENTS),
    "ppo_kl, clipped": ("algo=ppo_kl", "algo.clip_range=0.2", "env=pendulum", *SEGMENTS, "env.max_episode_steps=50"),
    "cpi": ("algo=cpi", *SEGMENTS, "env.normalise.reward_scale=0.1", "env.normalise.reward_clip=0.05"),
    "trpo on sort": ("algo=trpo", *SORT, "algo.num_episodes=16"),
    "a2c": ("algo=a2c", *SEGMENTS),
    "a3c with one worker": ("algo=a3c", "algo.num_workers=1", "algo.num_envs=4", MLP),
    "a2c on episodes": ("algo=a2c", "algo.collect=episodes", *EPISODES),
    "ppo": ("algo=ppo", *SEGMENTS),
    "ppo on episodes": ("algo=ppo", "algo.collect=episodes", *EPISODES),
    "ppo with all its options": (
        "algo=ppo", *SEGMENTS, "algo.clip_range_value=0.2", "algo.target_kl=1e-4", "algo.normalise_advantages=batch",
        "algo.max_grad_norm=null", "log_every=200",
    ),
    "linear schedule": ("algo=ppo", *SEGMENTS, "algo.schedule=linear"),
    "robbins_monro schedule": ("algo=ppo", *SEGMENTS, "algo.schedule=robbins_monro", "algo.schedule_offset=3"),
    "normalised segments": ("algo=ppo", *SEGMENTS, *NORMALISED),
    "normalised episodes": ("algo=reinforce", *EPISODES, *NORMALISED),
    "rloo": ("algo=rloo", *GROUPS),
    "grpo": ("algo=grpo", *GROUPS),
    "grpo in minibatches": ("algo=grpo", *GROUPS, "algo.minibatches=3", *NORMALISED),
    "pendulum": ("algo=ppo", "env=pendulum", *SEGMENTS, "env.max_episode_steps=50"),
    "a2c on pendulum, normalised": ("algo=a2c", "env=pendulum", *SEGMENTS, "env.max_episode_steps=50", *NORMALISED),
    "CartPole of Gymnasium": ("algo=ppo", "env=CartPole-v1", *SEGMENTS),
    "Acrobot of Gymnasium": ("algo=a2c", "env=Acrobot-v1", *SEGMENTS, "env.max_episode_steps=70", *NORMALISED),
    "Pendulum of Gymnasium": ("algo=ppo", "env=Pendulum-v1", *SEGMENTS, "env.max_episode_steps=50"),
    "groups in Gymnasium": ("algo=grpo", "env=CartPole-v1", *GROUPS),
    "ddpg": ("algo=ddpg", *PENDULUM, "algo.exploration=ornstein_uhlenbeck"),
    "td3": ("algo=td3", *PENDULUM, *NORMALISED),
    "sac": ("algo=sac", *PENDULUM, "algo.num_envs=2", "algo.schedule=linear"),
    "probe": ("algo=a2c", "env=probe_delayed_reward_continuous", *SEGMENTS),
    "image": ("algo=ppo", "env=probe_image", "algo.num_steps=32", "policy=cnn", "policy.channels=[2,2]"),
    "a memory in segments": ("algo=ppo", *MEMORY, "algo.num_envs=4", "algo.num_steps=32", *NORMALISED),
    "a memory in episodes": ("algo=ppo", "algo.collect=episodes", *MEMORY, "algo.num_episodes=4"),
    "a memory in groups": ("algo=grpo", *MEMORY, "algo.num_groups=2", "algo.group_size=2"),
    "es": ("algo=es", "algo.population=4", *CANDIDATES, MLP),
    "es, plain steps, normalised": (
        "algo=es", "policy=linear", "algo.population=4", "algo.optimiser=sgd", *CANDIDATES, NORMALISED[0],
    ),
    "es over a rule in Gymnasium": ("algo=es", "env=CartPole-v1", "policy=rule", "algo.population=4", *CANDIDATES),
    "ga": ("algo=ga", "algo.population=3", "algo.crossover=0.5", *CANDIDATES, MLP),
    "ga by tournament on images": (
        "algo=ga", "env=probe_image", "policy.channels=[2,2]", "algo.population=9", "algo.selection=tournament",
    ),
    "nelder_mead": ("algo=nelder_mead", *CANDIDATES, "algo.tolerance=0.3"),
    "nelder_mead on pendulum": ("algo=nelder_mead", "env=pendulum", "algo.fresh_seeds=false", *CANDIDATES),
    "dqn": ("algo=dqn", *REPLAY),
    "dqn with all its options": (
        "algo=dqn", *REPLAY, "algo.double=true", "algo.loss=squared", "algo.target_period=1", "algo.target_tau=0.1",
        "algo.num_envs=3", "algo.capacity=170", "algo.epsilon_steps=400",
    ),
    "dqn, normalised": ("algo=dqn", *REPLAY, *NORMALISED),
    "dqn in Gymnasium": ("algo=dqn", "env=CartPole-v1", *REPLAY),
    "dqn of images": (
        "algo=dqn", "env=probe_image", *(word for word in REPLAY if word != MLP), "policy.channels=[2,2]",
    ),
    "dqn of bytes": (
        "algo=dqn", "env=PgcliPixels-v0", "policy=cnn", "policy.channels=[2,2]", *REPLAY[:-1],
    ),
    "q_learning": ("algo=q_learning", "env=frozen_lake", "algo.num_envs=4", "algo.schedule=robbins_monro"),
    "sarsa": ("algo=sarsa", "env=taxi", "algo.num_envs=4", "algo.epsilon_steps=700"),
    "a2c with a table": ("algo=a2c", "env=frozen_lake", "policy=tabular", "algo.num_envs=4", "algo.num_steps=32"),
    "sft on sort": ("algo=sft", *SORT, "algo.num_demonstrations=16"),
    "two turns": ("algo=rloo", "env=guess", *TRANSFORMER, "algo.num_groups=8", "algo.group_size=4"),
    "process rewards": ("algo=ppo", "env=chain", "env.reward_kind=process", *TRANSFORMER, "algo.num_episodes=16"),
    "revise": ("algo=revise", "env=assistant", *TRANSFORMER, "algo.num_prompts=8", "algo.rounds=2"),
    "revise by the policy itself": (
        "algo=revise", "env=assistant", *TRANSFORMER, "algo.num_prompts=8", "algo.writer=policy",
    ),
    "grpo on sort": ("algo=grpo", *SORT, "algo.num_groups=4", "algo.group_size=4"),
    "grpo on a mixture": (
        "algo=grpo", "env=mixture", "env.tasks.sort.weight=2", *TRANSFORMER, "algo.num_groups=4", "algo.group_size=4",
    ),
    "dr_grpo on sort": ("algo=dr_grpo", *SORT, "algo.num_groups=4", "algo.group_size=4"),
    "dapo on sort": ("algo=dapo", *SORT, "algo.num_groups=4", "algo.group_size=4", "algo.max_polls=2"),
    "gspo": ("algo=gspo", *GROUPS, "algo.minibatches=2"),
    "rloo on sort": ("algo=rloo", *SORT, "algo.num_groups=4", "algo.group_size=4"),
    "rloo on sort with an adapted price on the KL": (
        "algo=rloo", *SORT, "algo.num_groups=4", "algo.group_size=4", "algo.kl.coefficient=0.1", "algo.kl.target=0.01",
    ),
    "ppo with the KL to a reference in its loss": (
        "algo=ppo", *SEGMENTS, "algo.kl.coefficient=0.1", "algo.kl.placement=loss", "algo.kl.estimator=k2",
    ),
    "ppo on sort": ("algo=ppo", *SORT, "algo.num_episodes=16", "algo.epochs=2"),
    "ppo with a critic of its own": ("algo=ppo", *SORT, "policy.critic=separate", "algo.num_episodes=16"),
    "a2c on sort": ("algo=a2c", *SORT, "algo.num_episodes=16"),
    "reinforce on sort": ("algo=reinforce", *SORT, "algo.num_episodes=16"),
    "vanilla_pg on sort": ("algo=vanilla_pg", *SORT, "algo.num_episodes=16"),
    "outcome_reward": ("algo=outcome_reward", *SORT, "algo.num_completions=10", "env.pairs=24"),
    "process_reward": (
        "algo=process_reward", "env=chain", *TRANSFORMER, "algo.num_completions=10", "env.pairs=24", "algo.ensemble=2",
    ),
    "raft": ("algo=raft", *GROUPS, "algo.selection=random", "algo.epochs=2"),
    "raft on sort": ("algo=raft", *SORT, "algo.num_groups=4", "algo.group_size=4"),
    "dpo": ("algo=dpo", *PAIRS),
    "simpo": ("algo=simpo", *PAIRS),
    "orpo": ("algo=orpo", *PAIRS),
    "online_dpo": ("algo=online_dpo", *PAIRS, "env.label_flip=0.1"),
    "kto": ("algo=kto", *SORT, "algo.num_completions=10", "env.pairs=24"),
    "reward_model": ("algo=reward_model", *PAIRS, "algo.ensemble=2"),
}  # fmt: skip


class Pixels(gymnasium.Env):
    """Twenty pictures drawn from the seed."""

    observation_space = gymnasium.spaces.Box(0, 255, (12, 12, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        self.t += 1
        return self.observe(), float(action), self.t == 20, False, {}

    def observe(self):
        return self.np_random.integers(256, size=(12, 12, 3), dtype=np.uint8)


gymnasium.register("PgcliPixels-v0", Pixels, max_episode_steps=1000)


def start(folder, *words, steps=1000):
    return train(*TINY, f"total_steps={steps}", "checkpoint.keep=100", *words, run_dir=folder, quiet=True)


@pytest.mark.parametrize("words", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_a_killed_run_ends_as_if_it_had_never_been(tmp_path, words):
    straight = start(tmp_path / "straight", *words)
    count = len(straight.checkpoints())
    assert count >= 4
    killed = killed_copy(straight.path, tmp_path / "killed", after=count // 2)
    assert Run(killed).status == "died"
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)
    assert Run(killed).info["exact_resume"] is True


def test_with_two_workers_a_run_is_resumed_and_says_that_it_may_end_elsewhere(tmp_path, capsys):
    words = ("algo=a3c", "algo.num_workers=2", "algo.num_envs=4", MLP)
    straight = start(tmp_path / "straight", *words)
    assert straight.info["exact_resume"].startswith("not promised with 2 workers")
    killed = killed_copy(straight.path, tmp_path / "killed", after=2)
    resume(killed, quiet=True)
    assert Run(killed).status == "completed"
    assert "not exact: not promised with 2 workers" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CartPole of Gymnasium", "normalised episodes", "ppo on sort"])
def test_a_run_killed_before_its_first_checkpoint_but_that_of_step_0_begins_again(tmp_path, name):
    straight = start(tmp_path / "straight", *EXPERIMENTS[name])
    killed = killed_copy(straight.path, tmp_path / "killed", after=0)
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)
    assert len((killed / "metrics.discarded.jsonl").read_text().splitlines()) == 2


def test_a_run_killed_before_any_checkpoint_begins_again_and_says_so(tmp_path, capsys):
    first = start(tmp_path / "first", *EXPERIMENTS["sft on sort"], steps=300)
    straight = start(tmp_path / "straight", *EXPERIMENTS["grpo on sort"], f"init={first.path}", steps=600)
    killed = killed_copy(straight.path, tmp_path / "killed", after=0)
    for path in Run(killed).checkpoints():
        shutil.rmtree(path)
    (killed / "metrics.jsonl").write_text("")
    resume(killed, quiet=True)
    assert "killed before its first checkpoint" in capsys.readouterr().err
    assert_same_end(killed, straight.path)


def test_a_run_that_has_lost_its_checkpoints_does_not_begin_again(tmp_path):
    straight = start(tmp_path / "straight", *EXPERIMENTS["ppo"], steps=300)
    killed = killed_copy(straight.path, tmp_path / "killed", after=1)
    for path in Run(killed).checkpoints():
        shutil.rmtree(path)
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        resume(killed, quiet=True)


def test_a_run_that_dies_again_and_again_still_gets_there(tmp_path):
    straight = start(tmp_path / "straight", *EXPERIMENTS["normalised segments"])
    path = straight.path
    for after in (1, 2, 2, 3):
        path = killed_copy(path, tmp_path / f"after-{path.name}-{after}", after=after)
        resume(path, quiet=True)
    assert_same_end(path, straight.path)
    assert (path / "metrics.discarded.jsonl").exists()


def test_a_run_killed_after_its_last_checkpoint_only_has_to_say_so(tmp_path):
    straight = start(tmp_path / "straight", *EXPERIMENTS["ppo"])
    killed = killed_copy(straight.path, tmp_path / "killed", after=len(straight.checkpoints()) - 1)
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)
    assert Run(killed).info["summary"]["eval/return_mean"] == straight.info["summary"]["eval/return_mean"]


def test_a_run_that_began_with_the_weights_of_another_no_longer_needs_it(tmp_path):
    first = start(tmp_path / "first", *EXPERIMENTS["sft on sort"], steps=300)
    straight = start(tmp_path / "straight", *EXPERIMENTS["grpo on sort"], f"init={first.path}", steps=600)
    shutil.rmtree(first.path)
    killed = killed_copy(straight.path, tmp_path / "killed", after=0)
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)


JUDGED = {name: EXPERIMENTS[name] for name in ("rloo on sort", "online_dpo", "reward_model")}
JUDGED["ppo with a critic made of its judge"] = (*EXPERIMENTS["ppo on sort"], "policy.critic=reward_model")


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("words", JUDGED.values(), ids=JUDGED)
def test_a_run_that_a_trained_judge_rewards_is_resumed_with_the_same_calibration(tmp_path, words, after):
    judge = start(tmp_path / "judge", *EXPERIMENTS["reward_model"], steps=300)
    straight = start(tmp_path / "straight", *words, f"reward={judge.path}", steps=600)
    killed = killed_copy(straight.path, tmp_path / "killed", after=after)
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)


def test_a_run_stops_when_its_judges_disagree_and_goes_on_with_another_limit(tmp_path):
    judge = start(tmp_path / "judge", *EXPERIMENTS["reward_model"], steps=300)
    words = (*EXPERIMENTS["rloo on sort"], f"reward={judge.path}", "judge.stop_disagreement=1e-6")
    stopped = start(tmp_path / "stopped", *words, steps=600)
    assert stopped.status == "completed"
    assert len(stopped.rows()) == 1
    assert stopped.info["summary"]["doubtful"] > 1e-6
    with pytest.raises(InputError, match="its judges disagree by more than 1e-06"):
        resume(stopped.path, quiet=True)
    resume(stopped.path, "judge.stop_disagreement=null", quiet=True)
    straight = start(tmp_path / "straight", *words[:-1], steps=600)
    assert lines_of_metrics(stopped.path)[-1] == lines_of_metrics(straight.path)[-1]


# ---------------------------------------------------------------- longer than it was


@pytest.mark.parametrize("name", ["ppo", "robbins_monro schedule", "normalised episodes", "grpo on sort"])
def test_a_finished_run_can_be_extended_and_ends_as_the_longer_one(tmp_path, name):
    longer = start(tmp_path / "longer", *EXPERIMENTS[name], steps=1200)
    run = start(tmp_path / "run", *EXPERIMENTS[name], steps=600)
    resume(run.path, "total_steps=1200", quiet=True)
    assert_same_end(run.path, longer.path, rows=False)  # the shorter one's last row has an evaluation more
    assert rows_of_training(run.path) == rows_of_training(longer.path)
    assert Run(run.path).config["total_steps"] == 1200


def test_a_run_whose_schedule_depends_on_its_length_is_extended_only_as_a_fork(tmp_path):
    run = start(tmp_path / "run", *EXPERIMENTS["linear schedule"], f"runs_dir={tmp_path / 'forks'}", steps=600)
    with pytest.raises(InputError, match=r"linear schedule of this run depends on it.*--fork"):
        resume(run.path, "total_steps=1200", quiet=True)

    before = contents(run.path)
    child = resume(run.path, "total_steps=1200", fork=True, quiet=True)
    assert contents(run.path) == before
    assert child.path.parent == tmp_path / "forks"
    assert (child.path / child.info["parent"]).resolve() == run.path
    assert child.info["steps"] >= 1200
    assert child.checkpoints()[0].name == run.checkpoints()[-1].name


def test_a_fork_with_other_settings_goes_on_from_the_weights(tmp_path):
    run = start(tmp_path / "run", *EXPERIMENTS["ppo"], f"runs_dir={tmp_path / 'forks'}", steps=600)
    child = resume(run.path, "total_steps=1200", "algo.learning_rate=1e-5", fork=True, quiet=True)
    first, last = child.checkpoints()[0], run.checkpoints()[-1]
    assert (first / "model.safetensors").read_bytes() == (last / "model.safetensors").read_bytes()
    assert child.config["algo"]["learning_rate"] == 1e-5


def test_a_fork_has_the_whole_curve(tmp_path):
    run = start(tmp_path / "run", *EXPERIMENTS["ppo"], f"runs_dir={tmp_path / 'forks'}", steps=600)
    child = resume(run.path, "total_steps=1200", fork=True, quiet=True)
    steps = [row["step"] for row in child.rows()]
    before = [row["step"] for row in run.rows()]
    assert steps[: len(before)] == before
    assert steps == sorted(set(steps))
    assert steps[-1] >= 1200
    assert len(child.episodes()["r"]) > len(run.episodes()["r"]) > 0


def test_a_fork_that_does_not_fit_the_checkpoint_is_refused_and_makes_no_run(tmp_path):
    run = start(tmp_path / "run", *EXPERIMENTS["ppo"], f"runs_dir={tmp_path / 'forks'}", steps=300)
    with pytest.raises(InputError, match="does not fit"):
        resume(run.path, "total_steps=600", "policy.hidden=[9]", fork=True, quiet=True)
    assert not (tmp_path / "forks").exists()


@pytest.mark.parametrize("fork", [False, True])
def test_a_run_with_all_its_steps_is_not_resumed(tmp_path, fork):
    run = start(tmp_path / "run", *EXPERIMENTS["ppo"], steps=300)
    before = contents(run.path)
    said = r"has all its 300 steps; extend", r"has 3\d\d steps already, and total_steps=100 is not more; extend"
    for more, match in zip(((), ("total_steps=100",)), said, strict=True):
        with pytest.raises(InputError, match=match):
            resume(run.path, *more, fork=fork, quiet=True)
    assert contents(run.path) == before


@pytest.mark.parametrize("word", ["algo.learning_rate=1e-3", "seed=1", "eval.every=100", "checkpoint.every=100"])
def test_nothing_but_its_length_can_be_changed_in_a_resumed_run(tmp_path, word):
    run = start(tmp_path / "run", *EXPERIMENTS["ppo"], steps=300)
    before = contents(run.path)
    with pytest.raises(InputError, match=f"cannot change {word.partition('=')[0]}.*--fork"):
        resume(run.path, "total_steps=600", word, quiet=True)
    assert contents(run.path) == before


# ---------------------------------------------------------------- solved before its time


SOLVES = ("algo=a2c", "env=probe_constant_reward", *SEGMENTS)
"""Every episode returns 1, so that the first evaluation solves it."""


def test_a_run_that_was_solved_is_over_until_it_is_given_another_aim(tmp_path):
    run = start(tmp_path / "run", *SOLVES, "stop_at=1")
    assert run.info["summary"]["solved"]
    assert run.info["steps"] < 1500
    before = contents(run.path)
    for more in ((), ("total_steps=2000",)):
        with pytest.raises(InputError, match=r"reached stop_at=1.*stop_at="):
            resume(run.path, *more, quiet=True)
    assert contents(run.path) == before

    resume(run.path, "stop_at=2", quiet=True)
    assert_same_end(run.path, start(tmp_path / "longer", *SOLVES).path)
    assert Run(run.path).info["summary"]["solved"] is None


def test_a_run_killed_when_it_was_solved_only_has_to_say_so(tmp_path):
    straight = start(tmp_path / "straight", *SOLVES, "stop_at=1")
    killed = killed_copy(straight.path, tmp_path / "killed", after=len(straight.checkpoints()) - 1)
    resume(killed, quiet=True)
    assert_same_end(killed, straight.path)
    assert Run(killed).info["summary"]["solved"] == straight.info["summary"]["solved"]


# ---------------------------------------------------------------- where the promise does not hold


def test_a_resume_with_other_versions_withdraws_the_promise_by_name(tmp_path):
    straight = start(tmp_path / "straight", *EXPERIMENTS["a2c"], steps=600)
    killed = killed_copy(straight.path, tmp_path / "killed", after=1)
    info = json.loads((killed / "run.json").read_text())
    info["versions"]["torch"] = "1.0.0"
    (killed / "run.json").write_text(json.dumps(info))
    resume(killed, quiet=True)
    assert "torch 1.0.0 -> " in Run(killed).info["exact_resume"]
    assert "torch 1.0.0 -> " in (killed / "log.txt").read_text()


def test_a_run_made_before_a_setting_existed_is_resumed_and_evaluated_and_says_with_what(tmp_path, capsys):
    words = ["algo=ppo", "env=cartpole", "env.normalise.rewards=true", "algo.gamma=0.9", "total_steps=600"]
    run = train(*words, "device=cpu", run_dir=tmp_path / "run", quiet=True)
    whole = yaml.safe_load((run.path / "config.yaml").read_text())
    older = copy.deepcopy(whole)
    del older["algo"]["weight_decay"], older["algo"]["kl"]["gain"], older["env"]["normalise"]["gamma"], older["judge"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(older))
    said = 'lacks judge={"combine": "mean", '
    assert evaluate(run.path, episodes=2)["step"] == 1_024
    assert said in capsys.readouterr().err
    resume(run.path, "total_steps=1_100", quiet=True)
    printed = capsys.readouterr().err
    for text in (said, "algo.weight_decay=0.0", "algo.kl.gain=0.1", "env.normalise.gamma=0.9"):  # gamma: of the run
        assert text in printed, text
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == whole | {"total_steps": 1_100}
    assert "lacks" in Run(run.path).info["exact_resume"]

    (run.path / "config.yaml").write_text(yaml.safe_dump(older))
    info = json.loads((run.path / "run.json").read_text())
    info["choices"]["algo"] = "of_a_plug_in_that_is_gone"
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"`algo\.weight_decay` has no value"):
        evaluate(run.path, episodes=2)


def rows_of_training(path):
    return [{k: v for k, v in row.items() if not k.startswith("eval/")} for row in lines_of_metrics(path)]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_that_another_one_builds_on_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*EXPERIMENTS["grpo on sort"], "algo.kl.measure=true", "runs_dir=all"]
    first = start("all/first", *words, steps=100)
    second = start("second", *words, "init=all/first", "reference=latest", steps=100)
    assert second.config["init"] == second.config["reference"] == str(tmp_path / "all" / "first")
    monkeypatch.chdir("/")
    assert evaluate(tmp_path / second.path, episodes=2)["episodes"] == 2
    assert not first.path.exists(), "from here"


def test_runs_that_build_on_one_another_can_be_moved_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*EXPERIMENTS["grpo on sort"], "algo.kl.measure=true", "runs_dir=all"]
    start("all/first", *words, steps=100)
    second = start("all/second", *words, "reference=all/first", steps=100)
    before = evaluate(second.path, episodes=2)
    (tmp_path / "all").rename(tmp_path / "moved")
    assert evaluate("moved/second", episodes=2) == before | {"run": "moved/second"}
    assert resume("moved/second", "total_steps=200").config["reference"] == str(tmp_path / "moved" / "first")
    (tmp_path / "moved" / "first").rename(tmp_path / "first")
    with pytest.raises(InputError, match="moved/first is not a run directory"):
        evaluate("moved/second")
