"""What is installed is what was tried: conf/ in wheel and sdist, found from any folder; a plug-in that trains."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import pgcli.options
from pgcli.errors import InputError
from pgcli.options import GROUPS

pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
CONF = sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "conf").rglob("*.yaml"))

PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "corridor-plugin"
version = "1.0"
[project.entry-points."pgcli.environments"]
alley = "corridor_plugin.environment:Corridor"
[project.entry-points."pgcli.algorithms"]
bold = "corridor_plugin.algorithm:Bold"
[project.entry-points."pgcli.devices"]
desk = "corridor_plugin.device:Desk"
[tool.hatch.build.targets.wheel]
packages = ["corridor_plugin"]
""",
    "corridor_plugin/__init__.py": "",
    "corridor_plugin/conf/env/alley.yaml": """\
# A corridor of cells: the right end pays 1.
defaults: [_normalise]
name: alley
cells: 4
solved_at: 1.0
""",
    "corridor_plugin/conf/algo/bold.yaml": "# Vanilla policy gradient.\ndefaults: [vanilla_pg]\nname: bold\n",
    "corridor_plugin/conf/device/desk.yaml": "# The processor on the desk.\nname: desk\nthreads: 1\n",
    "corridor_plugin/algorithm.py": """
from pgcli.algorithms.vanilla_pg import VanillaPG

class Bold(VanillaPG):
    class Config(VanillaPG.Config):
        name: str
""",
    "corridor_plugin/device.py": """
from pgcli.devices.cpu import CPU
from pgcli.settings import Settings

class Desk(CPU):
    class Config(Settings):
        name: str
        threads: int
""",
    "corridor_plugin/environment.py": """
import numpy as np
from pydantic import Field

from pgcli.environments.normalise import Normalisation
from pgcli.settings import Settings
from pgcli.types import ControlSpec, Discrete, Step


class Corridor:
    world = "control"
    replay_mismatch = None

    class Config(Settings):
        name: str
        cells: int = Field(ge=2, description="of the corridor")
        solved_at: float | None = Field(description="null: never")
        normalise: Normalisation = Field(description="running normalisation")

    def __init__(self, config, num_envs):
        self.spec, self.num_envs, self.cells = ControlSpec((1,), Discrete(2)), num_envs, config.cells
        self.places, self.clock = np.zeros(num_envs, dtype=np.int64), np.zeros(num_envs, dtype=np.int64)

    def reset(self, rows, seeds):
        self.places[rows] = self.clock[rows] = 0
        return self.observe(rows)

    def step(self, actions, rows=None):
        rows = np.arange(self.num_envs) if rows is None else rows
        self.places[rows] = np.maximum(self.places[rows] + 2 * actions - 1, 0)
        self.clock[rows] += 1
        there = self.places[rows] == self.cells - 1
        late = ~there & (self.clock[rows] == 20)
        return Step(self.observe(rows), there.astype(np.float64), there, late, there.astype(np.float64))

    def observe(self, rows):
        return (self.places[rows, None] / self.cells).astype(np.float32)

    def state_dict(self):
        return {"places": self.places.copy(), "clock": self.clock.copy()}

    def load_state_dict(self, state):
        self.places[:], self.clock[:] = state["places"], state["clock"]

    def close(self):
        pass
""",
}


def call(*words: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Runs Python in `cwd` and returns what it printed; `path` comes before what this environment has installed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PGCLI_CONF")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The sdist, and the wheel that is made of the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    call("-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder with the wheel and a plug-in in it, as a user installs them."""
    source, target = tmp_path_factory.mktemp("plugin"), tmp_path_factory.mktemp("site")
    for name, text in PLUGIN.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    call(
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        target,
        built["wheel"],
        source,
        cwd=source,
    )
    return target


def test_the_wheel_holds_the_package_and_conf(built):
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert sorted(name.removeprefix("pgcli/") for name in names if name.startswith("pgcli/conf/")) == CONF
    assert {"pgcli/cli/train.py", "pgcli/py.typed"} <= set(names)  # a user's type checker reads the annotations


def test_the_sdist_holds_all_that_is_needed_to_build_test_and_read(built):
    with tarfile.open(built["sdist"]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert set(CONF) <= set(names)
    assert {"pyproject.toml", "README.md", "LICENSE", "src/pgcli/cli/train.py", "tests/test_packaging.py"} <= set(names)


def test_an_installed_wheel_finds_its_own_conf_from_any_folder(installed, tmp_path):
    found = call("-c", "import pgcli.options as o; print(o.built_in_folder())", cwd=tmp_path, path=installed)
    assert found.strip() == str(installed / "pgcli" / "conf")
    assert "ppo" in call("-m", "pgcli", "list", "algos", cwd=tmp_path, path=installed)


def test_an_unpacked_sdist_finds_its_conf_beside_src(built, tmp_path):
    shutil.unpack_archive(built["sdist"], tmp_path)
    root = next(tmp_path.glob("policy_gradient_cli-*"))
    found = call("-c", "import pgcli.options as o; print(o.built_in_folder())", cwd=tmp_path, path=root / "src")
    assert found.strip() == str(root / "conf")


def test_this_environment_finds_conf_from_any_folder(tmp_path):
    """An editable install in development, a wheel elsewhere."""
    assert "cartpole" in call("-m", "pgcli", "list", "envs", cwd=tmp_path)


def test_a_package_without_conf_says_so(monkeypatch):
    monkeypatch.setattr(pgcli.options, "__file__", "/nowhere/pgcli/options.py")
    with pytest.raises(InputError, match=r"^this installation has no conf/ folder \(looked in /nowhere/pgcli and "):
        pgcli.options.built_in_folder()


def test_an_installed_plug_in_extends_the_groups_and_trains(installed, tmp_path):
    for what, group, option in [("envs", "env", "alley"), ("algos", "algo", "bold"), ("devices", "device", "desk")]:
        assert group in GROUPS
        assert f"\n{option} " in "\n" + call("-m", "pgcli", "list", what, cwd=tmp_path, path=installed)
    words = [
        "algo=bold",
        "env=alley",
        "device=desk",
        "env.cells=3",
        "total_steps=3_000",
        "eval.every=1_000",
        "eval.episodes=4",
    ]
    answer = json.loads(call("-m", "pgcli", "train", *words, "--json", cwd=tmp_path, path=installed))
    run = json.loads((tmp_path / answer["run"] / "run.json").read_text())
    assert (run["status"], run["choices"]["algo"], run["slug"]) == ("completed", "bold", "alley")
    assert answer["eval/greedy_return_mean"] == 1.0  # it walks to the right end


def test_an_installed_plug_in_is_verified(installed, tmp_path):
    answer = json.loads(call("-m", "pgcli", "verify", "algo=bold", "--json", cwd=tmp_path, path=installed))
    assert answer["passed"]
    assert {row["algo"] for row in answer["checks"]} == {"bold"}
