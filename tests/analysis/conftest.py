"""Run directories on disk, written as a run would leave them, without any training."""

import json

import pytest
import yaml

IDS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1"}
ALGOS = {
    "ppo": {"name": "ppo", "learning_rate": 3e-4, "clip_range": 0.2},
    "a2c": {"name": "a2c", "learning_rate": 7e-4, "num_steps": 5},
    "reinforce": {"name": "reinforce", "learning_rate": 1e-3, "baseline": "value"},
}


def merged(tree, changes):
    """`tree` with dotted keys changed: {"algo.learning_rate": 1}."""
    tree = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *path, last = key.split(".")
        branch = tree
        for word in path:
            branch = branch.setdefault(word, {})
        branch[last] = value
    return tree


@pytest.fixture
def write_run(tmp_path):
    """write_run(algo, seed, returns): a run with one evaluation every `every` steps and `walls` seconds apart."""

    def write(
        algo, seed, returns, *, slug="cartpole", every=100, wall=1.0, folder="runs", name="", status="completed",
        reason=None, config=None, choices=None, device="cpu", typed=(), key="eval/return_mean", created=None,
    ):  # fmt: skip
        path = tmp_path / folder / f"20260101-000000_{algo}_{slug}_s{seed}{name}"
        path.mkdir(parents=True)
        reached = every * len(returns)
        settings = {
            "seed": seed,
            "total_steps": reached,
            "stop_at": None,
            "init": None,
            "runs_dir": folder,
            "log_every": 1,
            "eval": {"every": every, "episodes": 20},
            "checkpoint": {"every": 100, "keep": 3},
            "algo": ALGOS[algo],
            "env": {"name": slug, "id": IDS[slug], "solved_at": 475.0 if slug == "cartpole" else None},
            "policy": {"name": "mlp", "hidden_sizes": [64, 64]},
            "device": {"name": device, "threads": 1},
        }
        info = {
            "schema": 1,
            "id": path.name,
            "status": status,
            "reason": reason,
            "argv": [],
            "device": device,
            "slug": slug,
            "choices": {
                "algo": algo,
                "env": slug,
                "policy": "mlp",
                "device": device,
                "tuned": "none",
                **(choices or {}),
            },
            "seed": seed,
            "created": created or "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T01:00:00+00:00",
            "steps": reached,
        }
        rows = [{"step": every // 2, "update": 0, "wall": 0.5, "loss/policy": "NaN"}]
        for i, value in enumerate(returns, 1):
            evaluation = {key: value, "eval/greedy_return_mean": value + 1}
            rows.append({"step": i * every, "update": i, "wall": i * wall, **evaluation})
        overrides = [f"algo={algo}", f"env={slug}", f"seed={seed}", *typed]
        (path / "run.json").write_text(json.dumps(info))
        (path / "config.yaml").write_text(yaml.safe_dump(merged(settings, config or {})))
        (path / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return write


@pytest.fixture
def write_runs(write_run):
    """write_runs(algo, finals): a run for each final return, seeds 0, 1, ..., each with the curve (0, final)."""

    def write(algo, finals, **settings):
        return [write_run(algo, seed, [0.0, final], **settings) for seed, final in enumerate(finals)]

    return write
