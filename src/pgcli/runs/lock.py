"""One process at a time writes to a run.

The lock is the folder `.lock`, which holds the owner's name. A folder, because renaming a prepared one into place is
atomic and refused when the lock is taken, so that no process ever sees a lock without an owner. A lock is stale when
its owner is dead: the process is gone, or its number belongs to a later one, or the machine was restarted; or when it
came with a copy of a run that its owner holds elsewhere.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

from pgcli.errors import InputError
from pgcli.runs import files

LOCK = ".lock"
OWNER = "owner.json"


def acquire(run: Path) -> None:
    """Take the lock, also from a dead owner. Raises InputError, which names the owner, if it is alive."""
    while not _attempt(run):
        pass


def _attempt(run: Path) -> bool:
    """False if a process that took the lock has swept ours away, half-made, as what a killed one had left."""
    mine = files.temporary(run / LOCK)
    files.make_dir(mine)
    try:
        files.write(mine / OWNER, json.dumps(_this_process(run)).encode())
        files.fsync(mine / OWNER)
        while not _place(mine, run / LOCK):
            _evict(run)
    except FileNotFoundError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            if mine.exists():
                files.remove(mine)
    return True


def release(run: Path) -> None:
    """A run that was moved, or whose disk fails, is not released: the lock is stale when this process ends."""
    gone = files.temporary(run / LOCK)
    with contextlib.suppress(OSError):
        files.rename(run / LOCK, gone)
        files.remove(gone)


def in_use(run: Path) -> bool:
    """Whether a live process holds the run."""
    owner = _owner(run / LOCK)
    return owner is not None and not _dead(owner) and not _copied(run, owner)


def _place(mine: Path, lock: Path) -> bool:
    try:
        files.rename(mine, lock)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _evict(run: Path) -> None:
    """Remove a stale lock. It is moved away first and checked again, so that two processes cannot evict each other."""
    owner = _owner(run / LOCK)
    if owner is None:
        return  # released in the meantime
    if not _dead(owner) and not _copied(run, owner):
        raise InputError(_refusal(run, owner))
    moved = run / f"{files.TEMPORARY}{secrets.token_hex(4)}-stale{LOCK}"
    try:
        files.rename(run / LOCK, moved)
    except FileNotFoundError:
        return  # another process evicted it first
    if _owner(moved) != owner:
        _place(moved, run / LOCK)  # another process has just taken the lock: restore it
        return
    files.remove(moved)


def _refusal(run: Path, owner: dict[str, Any]) -> str:
    if owner["host"] == socket.gethostname():
        return f"{run} is in use by process {owner['pid']}: wait until it ends, or stop it with `kill {owner['pid']}`"
    return (
        f"{run} is in use by process {owner['pid']} on {owner['host']}, which cannot be asked from here; "
        f"if it has ended, remove {run / LOCK}"
    )


def _owner(lock: Path) -> dict[str, Any] | None:
    """The owner; None if there is no lock. An unreadable owner, which only a power cut can leave, is an empty dict."""
    if not lock.is_dir():
        return None
    try:
        owner = json.loads((lock / OWNER).read_text())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and owner.keys() >= {"pid", "started", "host", "boot"} else {}


def _dead(owner: dict[str, Any]) -> bool:
    if not owner:
        return True
    if owner["host"] != socket.gethostname():
        return False  # unknown: assume that it is alive
    return owner["boot"] != _boot() or owner["started"] != _started(owner["pid"])


def _copied(run: Path, owner: dict[str, Any]) -> bool:
    """Whether the owner holds another run with the same lock, so that this one is a copy of it."""
    held = Path(owner.get("run", run))
    try:
        return not held.samefile(run) and _owner(held / LOCK) == owner
    except OSError:  # renamed, perhaps: the owner may be writing to it
        return False


def _this_process(run: Path) -> dict[str, Any]:
    return {
        "pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname(), "boot": _boot(),
        "run": str(run.resolve()),
    }  # fmt: skip


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When the process began, in clock ticks since boot; empty where there is no /proc; None if it is dead."""
    if Path("/proc/self/stat").exists():
        try:
            # The command's name, in brackets, may contain any character. After it: state, and the start as the 20th
            # field.
            after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if after[0] in "ZX" else after[19]  # a zombie is dead, but not yet reaped by its parent
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
