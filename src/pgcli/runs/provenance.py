"""Where a result came from: code, versions, machine. Unknown values are left out; errors here never stop a run."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "policy-gradient-cli", "torch", "numpy", "gymnasium", "hydra-core", "safetensors", "mujoco", "transformers", "peft",
)  # fmt: skip
DIFF_LIMIT = 1_000_000
"""Most bytes of uncommitted changes that are kept: enough for changes of code, not for data added by mistake."""


def versions() -> dict[str, str]:
    """Versions, read from the packages' metadata, so that nothing is imported."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "executable": Path(sys.executable).name,
    }


def git(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Commit, branch and dirtiness of the working tree around `folder`, and its uncommitted changes as a diff.

    (None, b"") outside a repository, before its first commit, and without git. Untracked files are ignored:
    a folder of runs would make every tree dirty.
    """
    sha = _git(folder, "rev-parse", "HEAD").decode().strip()
    if not sha:
        return None, b""
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD").decode(errors="replace").strip()
    diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color")
    found: dict[str, Any] = {"sha": sha, "branch": branch, "dirty": bool(diff)}
    if len(diff) > DIFF_LIMIT:
        found["diff"] = f"the first {DIFF_LIMIT:,} of {len(diff):,} bytes"
    return found, diff[:DIFF_LIMIT]


def _git(folder: Path, *arguments: str) -> bytes:
    # Takes no lock on the user's index, and runs no program that the repository's settings name.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return answer.stdout if answer.returncode == 0 else b""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
