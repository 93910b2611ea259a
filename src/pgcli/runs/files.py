"""Everything that a run writes to a disk goes through these functions. Text is UTF-8, its lines end with a line feed.

Call them as `files.rename(...)`: a test replaces them, to kill the process or fill the disk at each operation.
"""

import contextlib
import os
import secrets
import shutil
from pathlib import Path

TEMPORARY = ".tmp-"
"""Prefix of names that a killed process may leave behind; they are removed when the run is opened again."""


def temporary(path: Path) -> Path:
    """A name beside `path` that nothing else uses."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")


def make_dir(path: Path) -> None:
    """Raises FileExistsError if it exists, so that two runs never share a folder."""
    os.mkdir(path)


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def fsync(path: Path) -> None:
    """Make the contents of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(old: Path, new: Path) -> None:
    """Atomic; replaces a file, refuses to replace a folder with contents."""
    os.replace(old, new)


def remove(path: Path) -> None:
    """Remove a file, or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def close(descriptor: int) -> None:
    os.close(descriptor)


def append(descriptor: int, data: bytes) -> None:
    """Append directly to the operating system, without a buffer: the data survive a kill of the process."""
    while data:
        data = data[os.write(descriptor, data) :]


def replace(path: Path, data: bytes) -> None:
    """Write a small file so that a reader, or a power cut, finds the old contents or the new."""
    beside = temporary(path)
    write(beside, data)
    fsync(beside)
    rename(beside, path)
    fsync(path.parent)


def sweep(folder: Path) -> None:
    """Remove files that killed processes left half-written in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(FileNotFoundError):  # a living process, refused the lock, has removed its own
            remove(path)
