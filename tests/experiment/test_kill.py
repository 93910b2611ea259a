"""`kill -9` of real processes at some sixty moments; `pgcli resume` then ends with the bytes of one that was let be."""

import json
import signal
import subprocess
import sys
import time

import pytest

from pgcli.runs import Run

from .conftest import MLP, TINY, TRANSFORMER, assert_same_end

SEGMENTS = ("algo.num_envs=4", "algo.num_steps=32", MLP)
SORT = ("env=sort", *TRANSFORMER)
EPISODES = ("algo.num_episodes=4", "env.max_episode_steps=50", MLP)
GROUPS = ("algo.num_groups=2", "algo.group_size=2", "env.max_episode_steps=50", MLP)
CANDIDATES = (
    "algo.num_episodes=2",
    "env.max_episode_steps=50",
    "total_steps=10000",
)  # they are fast: long enough to be hit
REPLAY = (
    "algo.num_envs=2", "algo.num_steps=5", "algo.gradient_steps=2", "algo.batch_size=8", "algo.learning_starts=50",
    "algo.capacity=500", MLP,
)  # fmt: skip
EXPERIMENTS = {
    "vanilla_pg": ("algo=vanilla_pg", *EPISODES),
    "reinforce": ("algo=reinforce", *EPISODES),
    "a2c": ("algo=a2c", "env=pendulum", *SEGMENTS),
    "ppo": ("algo=ppo", *SEGMENTS, "env.normalise.observations=true", "env.normalise.rewards=true"),
    "ppo_kl": ("algo=ppo_kl", *SEGMENTS),
    "trpo": ("algo=trpo", *SEGMENTS),
    "npg": ("algo=npg", "env=pendulum", *SEGMENTS),
    "ppo in Gymnasium": ("algo=ppo", "env=Acrobot-v1", "algo.epochs=1", *SEGMENTS),
    "ppo on sort": ("algo=ppo", *SORT, "algo.num_episodes=16", "algo.epochs=2"),
    "rloo": ("algo=rloo", *GROUPS),
    "grpo": ("algo=grpo", *GROUPS),
    "grpo on sort": ("algo=grpo", *SORT, "algo.num_groups=4", "algo.group_size=4"),
    "es": ("algo=es", "algo.population=4", *CANDIDATES, MLP),
    "ga": ("algo=ga", "algo.population=5", *CANDIDATES, MLP),
    "nelder_mead": ("algo=nelder_mead", *CANDIDATES),
    "dqn": ("algo=dqn", *REPLAY),
    "sarsa": ("algo=sarsa", "env=frozen_lake", "algo.num_envs=4"),
    "dpo": ("algo=dpo", *SORT, "algo.num_pairs=5", "env.pairs=24"),
    "sft": ("algo=sft", *SORT, "algo.num_demonstrations=16"),
    "revise": ("algo=revise", "env=assistant", *TRANSFORMER, "algo.num_prompts=16"),
    "sac": ("algo=sac", "env=pendulum", "algo.learning_starts=100", "algo.batch_size=8", MLP),
    "td3": ("algo=td3", "env=pendulum", "algo.learning_starts=100", "algo.batch_size=8", MLP),
}
KILLED = -signal.SIGKILL


def train(name, folder, steps=1200):
    """The words of a command. `keep=1`: a single checkpoint to fall back on, besides the best."""
    return ("train", *TINY, "checkpoint.keep=1", f"total_steps={steps}", *EXPERIMENTS[name], "--run-dir", folder, "-q")


def resume(folder):
    return ("resume", folder, "-q")


def both(*processes):
    """Started before either is waited for: two at a time."""
    return [process.wait().code for process in processes]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_process_killed_anywhere_in_its_loop_is_resumed_to_the_same_bytes(pgcli, tmp_path, name):
    straight, early, late = (tmp_path / which for which in ("straight", "early", "late"))
    assert pgcli.run(*train(name, straight), note_cpu_seconds=str(tmp_path / "cpu")).code == 0
    whole = float((tmp_path / "cpu").read_text())
    assert both(
        pgcli.start(*train(name, early), die_after_cpu_seconds=whole * 0.2),
        pgcli.start(*train(name, late), die_after_cpu_seconds=whole * 0.5),
    ) == [KILLED, KILLED]
    assert Run(early).status == Run(late).status == "died"
    # One of them dies once more, in its resumed part.
    assert both(
        pgcli.start(*resume(early), die_after_cpu_seconds=whole * 0.3),
        pgcli.start(*resume(late)),
    ) == [KILLED, 0]
    assert both(pgcli.start(*resume(early))) == [0]
    assert_same_end(early, straight)
    assert_same_end(late, straight)


def test_a_process_killed_before_its_first_update_and_one_killed_after_its_last_are_resumed(pgcli, tmp_path):
    straight, before, after = (tmp_path / which for which in ("straight", "before", "after"))
    assert both(
        pgcli.start(*train("grpo", straight)),
        pgcli.start(*train("grpo", before), die_before_loop=None),
        pgcli.start(*train("grpo", after), die_after_loop=None),
    ) == [0, KILLED, KILLED]
    assert (before / "metrics.jsonl").read_text() == ""
    assert Run(after).info["status"] == "running"
    assert both(pgcli.start(*resume(before)), pgcli.start(*resume(after))) == [0, 0]
    assert_same_end(before, straight)
    assert_same_end(after, straight)


@pytest.mark.parametrize("name", ["grpo", "sft", "dqn"])
def test_a_process_killed_at_any_operation_of_a_checkpoint_is_resumed_to_the_same_bytes(pgcli, tmp_path, name):
    straight, notes = tmp_path / "straight", tmp_path / "notes"
    third = {"save": 3}  # the first one is of step 0; this one removes another
    assert pgcli.run(*train(name, straight, steps=900), watch_save=third | {"note": str(notes)}).code == 0
    operations = [line.split()[0] for line in notes.read_text().splitlines()]
    assert operations.count("write") == 4 + (name == "dqn")  # its new transitions
    assert operations.count("fsync") >= 8
    assert operations.count("rename") >= 2

    deaths = [(n, False) for n, operation in enumerate(operations, 1) if operation in ("write", "fsync", "rename")]
    deaths += [(n, True) for n, operation in enumerate(operations, 1) if operation == "write"]
    if name == "sft":
        deaths = deaths[::4]
    folders = [tmp_path / f"killed-{n}{'-torn' * torn}" for n, torn in deaths]
    for two in _pairs(list(zip(folders, deaths, strict=True))):
        codes = both(
            *(
                pgcli.start(*train(name, folder, steps=900), watch_save=third | {"die_at": n, "torn": torn})
                for folder, (n, torn) in two
            )
        )
        assert codes == [KILLED] * len(two)
        assert both(*(pgcli.start(*resume(folder)) for folder, _ in two)) == [0] * len(two)
    for folder in folders:
        assert_same_end(folder, straight)
        assert not list(folder.rglob(".tmp-*"))
        assert not list(folder.rglob(".replaced-*"))


def _pairs(items):
    return [items[i : i + 2] for i in range(0, len(items), 2)]


def test_the_command_itself_survives_kill_9_from_outside(pgcli, tmp_path):
    """No driver, no fault injected: `python -m pgcli train`, killed when it has written some rows."""
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    reference = pgcli.start(*train("ppo", straight, steps=6000))
    words = [str(word) for word in train("ppo", folder, steps=6000)]
    process = subprocess.Popen([sys.executable, "-m", "pgcli", *words], env=pgcli.environment)
    metrics = folder / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 10, process)
    process.kill()
    assert process.wait() == KILLED
    done = json.loads(metrics.read_text().splitlines()[-2])["step"]
    assert 1000 < done < 6000
    assert reference.wait().code == 0
    assert pgcli.run(*resume(folder)).code == 0
    assert_same_end(folder, straight)


def test_a_process_killed_as_soon_as_its_directory_appears_is_a_run_or_nothing(pgcli, tmp_path):
    folder = tmp_path / "killed"
    process = pgcli.start(*train("ppo", folder, steps=6000))
    wait_until(folder.exists, None)
    process.kill()
    assert process.wait().code == KILLED
    ended = pgcli.run(*resume(folder))
    if ended.code == 0:
        assert Run(folder).status == "completed"
    else:  # killed before its run.json
        assert ended.code == 2
        assert "is not a run directory" in ended.err


def wait_until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        assert process is None or process.poll() is None, "it ended by itself"
        time.sleep(0.002)


PIPELINE = f"""stages:
  - {{name: taught, words: [{", ".join([*TINY, *EXPERIMENTS["sft"], "total_steps=900"])}]}}
  - {{name: paid, words: [{", ".join([*TINY, *EXPERIMENTS["grpo on sort"], "init=taught", "total_steps=900"])}]}}
"""


def test_a_pipeline_killed_anywhere_goes_on_by_the_same_command(pgcli, tmp_path):
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "two.yaml").write_text(PIPELINE)

    def words(name, *more):
        return ("pipeline", "two", "--config-dir", "conf", "--pipelines-dir", name, "-q", *more)

    assert pgcli.run(*words("straight"), folder=tmp_path, note_cpu_seconds=str(tmp_path / "cpu")).code == 0
    whole = float((tmp_path / "cpu").read_text())
    moments = {"early": 0.2, "middle": 0.45, "late": 0.65}
    killed = [
        pgcli.start(*words(name), folder=tmp_path, die_after_cpu_seconds=whole * share)
        for name, share in moments.items()
    ]
    assert both(*killed) == [KILLED] * 3
    for name in moments:
        assert pgcli.run(*words(name)[:2], *words(name)[4:], "--resume", folder=tmp_path).code == 0
        (straight,), (mine,) = (list((tmp_path / which).glob("*_two_*")) for which in ("straight", name))
        for stage in ("taught", "paid"):
            assert_same_end(mine / stage, straight / stage)
