"""`export`: a run's language model as a folder that other tools can open."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pgcli.errors import InputError
from pgcli.experiment.session import opened
from pgcli.policies.llama import write_tokenizer
from pgcli.runs.reader import find_run
from pgcli.types import TextSpec


def export(run: Path | str, folder: Path | str, *, trust: bool = False, runs_dir: str = "runs") -> dict[str, Any]:
    """The policy of a run's last checkpoint in a Hugging Face layout: `pgcli export RUN FOLDER`.

    Args:
        folder: the folder to create. It is written completely or not at all.

    Returns: {"run", "step", "folder", "files"}.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists():
        raise InputError(f"{folder} exists already: name a new folder")
    found = find_run(str(run), runs_dir)
    with opened(found, trust=trust) as (parts, step):
        policy: Any = parts.policy
        if not hasattr(policy, "export") or not isinstance(parts.spec, TextSpec):
            raise InputError(f"{found.path} has no language model to export (its policy is {found.choices['policy']})")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent)
        except OSError as error:
            raise InputError(f"cannot write {folder}: {error.strerror}") from error
        with beside as name:
            inside = Path(name) / target.name
            inside.mkdir()
            policy.export(inside)
            if not (inside / "tokenizer.json").exists():
                write_tokenizer(inside, parts.environment.decode, parts.spec)
            inside.rename(target)
    return {
        "run": str(found.path),
        "step": step,
        "folder": str(target),
        "files": sorted(p.name for p in target.iterdir()),
    }
