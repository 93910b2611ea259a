"""A checkpoint: a tree of tensors, arrays and numbers as a folder, exact to the bit. Reading one executes nothing.

    model.safetensors   the policy: state["policy"], a dict of tensors, under their own names
    state.safetensors   every other tensor and array
    state.json          the tree, which refers to those by name
    MANIFEST.json       schema, step, whether it was the best so far, size and SHA-256 of each file

It is written under a temporary name, made durable, and renamed: a checkpoint under its own name is complete.

A memory that only grows (`types.Appended`) is not in that folder but in `memory/` beside it, in segments that all
checkpoints share: each writes the rows that the one before it does not have, and lists in its manifest all that it
needs. Segments are durable before a manifest lists them; `prune` removes those that no checkpoint lists any longer.
"""

import contextlib
import hashlib
import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pgcli.errors import InputError, RunError
from pgcli.runs import files
from pgcli.runs.reader import checkpoint_step, list_checkpoints
from pgcli.types import Appended, State

SCHEMA = 1
MANIFEST, MODEL, ARRAYS, TREE = "MANIFEST.json", "model.safetensors", "state.safetensors", "state.json"
MEMORY = "memory"
SEGMENT = re.compile(r"rows-(\d{12})-(\d{12})-[0-9a-f]{16}\.safetensors")
"""Name of a segment: its first row, the row after its last, the start of its SHA-256."""
MOST_SEGMENTS = 256
"""Number of segments at which the whole memory is written again as one."""
REPLACED = ".replaced-"
MANIFEST_LIMIT = 64 * 1024
HEADER_LIMIT = 16 * 1024 * 1024
"""Bytes: names and shapes of a hundred thousand tensors."""


Pieces: TypeAlias = list[tuple[int, dict[str, np.ndarray]]]
"""The pieces of an `Appended`."""


class Loaded(NamedTuple):
    """A checkpoint, and a sentence for each newer one that is damaged."""

    step: int
    state: State
    warnings: list[str]


class Manifest(NamedTuple):
    step: int
    best: bool
    files: dict[str, tuple[int, str]]
    """Size and SHA-256 of each file."""
    memory: dict[str, tuple[int, str]]
    """Size and SHA-256 of each segment, oldest first."""


class Damaged(InputError):  # noqa: N818  (what a checkpoint is)
    """The checkpoint's contents do not match its manifest."""


# ---------------------------------------------------------------- writing


def write(folder: Path, step: int, state: State, *, best: bool = False) -> Path:
    """Save `state` as `folder`/step-N. `best`: it is the best so far.

    Raises RunError, before anything is written, if the policy is not finite.
    """
    refuse_non_finite(state["policy"])
    contents, memories = encode(state), list(_memories(state))
    if len(memories) > 1:
        raise TypeError(f"a checkpoint cannot hold {len(memories)} memories")
    described = {name: _describe(data) for name, data in contents.items()}
    manifest: dict[str, Any] = {"schema": SCHEMA, "step": step, "best": best, "files": described}
    target = folder / f"step-{step:09d}"
    beside = files.temporary(target)
    try:
        if memories:
            manifest["memory"] = _remember(folder, step, memories[0])
        contents[MANIFEST] = json.dumps(manifest, indent=1).encode()
        files.make_dir(beside)
        for name, data in contents.items():
            files.write(beside / name, data)
            files.fsync(beside / name)
        files.fsync(beside)
        if target.exists():  # rename cannot replace a folder with contents; `sweep` restores it if we are killed here
            files.rename(target, folder / (REPLACED + target.name))
        files.rename(beside, target)
        files.fsync(folder)
        sweep(folder)
    except OSError:
        with contextlib.suppress(OSError):  # the first error is the one to report
            sweep(folder)
        raise
    return target


def _describe(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": _sha256(data)}


def _memories(tree: Any) -> Iterator[Appended]:
    if isinstance(tree, Appended):
        yield tree
    elif isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _memories(item)


def _remember(folder: Path, step: int, memory: Appended) -> dict[str, dict[str, Any]]:
    """Write the rows that the checkpoint before `step` does not have. Returns the segments that hold all rows."""
    segments = {name: entry for name, entry in _segments_before(folder, step).items() if _rows(name)[1] > memory.first}
    first = max((_rows(name)[1] for name in segments), default=memory.first)
    if len(segments) >= MOST_SEGMENTS or first > memory.end:
        segments, first = {}, memory.first
    if first == memory.end:
        return segments
    later = [(at, columns) for at, columns in memory.pieces if at + _length(columns) > first]
    new = {name: np.concatenate([piece[name][max(0, first - at) :] for at, piece in later]) for name in later[0][1]}
    data = safetensors.torch.save({name: torch.from_numpy(column) for name, column in new.items()})
    entry = _describe(data)
    if not (folder / MEMORY).is_dir():
        files.make_dir(folder / MEMORY)
        files.fsync(folder)
    name = f"rows-{first:012d}-{memory.end:012d}-{entry['sha256'][:16]}.safetensors"
    files.replace(folder / MEMORY / name, data)
    return segments | {name: entry}


def _segments_before(folder: Path, step: int) -> dict[str, dict[str, Any]]:
    """Segments of the newest checkpoint before `step`, whose rows are the first ones of the present memory.

    Empty in a fork, which has no checkpoint yet, and if one of the files is missing.
    """
    for path in reversed(list_checkpoints(folder)):
        if checkpoint_step(path) >= step:
            continue
        with contextlib.suppress(InputError):
            found = _read_manifest(path).memory
            whole = all(_size(folder / MEMORY / name) == size for name, (size, _) in found.items())
            return {name: {"size": size, "sha256": sha256} for name, (size, sha256) in found.items()} if whole else {}
    return {}


def _size(path: Path) -> int | None:
    return path.lstat().st_size if path.is_file() else None


def _length(columns: dict[str, np.ndarray]) -> int:
    return len(next(iter(columns.values())))


def _rows(segment: str) -> tuple[int, int]:
    found = SEGMENT.fullmatch(segment)
    assert found
    return int(found[1]), int(found[2])


def refuse_non_finite(policy: dict[str, Tensor]) -> None:
    for name, tensor in policy.items():
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise RunError(
                f"`{name}` of the policy has {bad} values of {tensor.numel()} that are not finite: "
                "no checkpoint was written, the last good one is kept"
            )


def sweep(folder: Path) -> None:
    """Repair `folder` after a killed process."""
    for replaced in folder.glob(f"{REPLACED}*"):
        original = folder / replaced.name.removeprefix(REPLACED)
        if original.exists():
            files.remove(replaced)
        else:
            files.rename(replaced, original)
    files.sweep(folder)
    files.sweep(folder / MEMORY)


def set_aside(folder: Path, step: int) -> None:
    """Rename the checkpoints later than `step`: the damaged ones that `load_newest` skipped."""
    for path in list_checkpoints(folder):
        if checkpoint_step(path) > step:
            aside = path.with_name(f"discarded-{path.name}")
            if aside.exists():
                files.remove(aside)
            files.rename(path, aside)
    _forget(folder)


def prune(folder: Path, keep: int, intact: set[Path]) -> None:
    """Remove all but the newest `keep` intact checkpoints and the best. `intact`: known ones; more are added."""
    kept, best = 0, find_best(folder)
    for path in reversed(list_checkpoints(folder)):
        if kept < keep:
            if path in intact or _is_intact(path):
                intact.add(path)
                kept += 1
        elif path != best:
            gone = files.temporary(path)
            files.rename(path, gone)  # removing a folder is not atomic, and half of one must not keep its name
            files.remove(gone)
            intact.discard(path)
    _forget(folder)


def _forget(folder: Path) -> None:
    """Remove the segments that no checkpoint lists."""
    if not (folder / MEMORY).is_dir():
        return
    named: set[str] = set()
    for path in list_checkpoints(folder):
        with contextlib.suppress(InputError):
            named |= _read_manifest(path).memory.keys()
    for segment in (folder / MEMORY).iterdir():
        if segment.name not in named:
            files.remove(segment)


# ---------------------------------------------------------------- reading


def load_newest(folder: Path, *, memory: bool = True) -> Loaded:
    """The newest intact checkpoint. Raises InputError if there is none: never a silent fresh start.

    memory: whether to read the rows of an `Appended`; an empty one is enough to evaluate.
    """
    warnings: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            step, state = read(path, memory=memory)
        except Damaged as damage:
            if not path.exists():  # removed while it was read, by a run that goes on and has written a newer one
                return load_newest(folder, memory=memory)
            warnings.append(f"{damage}; this checkpoint was skipped")
            continue
        return Loaded(step, state, warnings)
    reason = "; ".join(warnings) or f"there is none in {folder}"
    raise InputError(f"no checkpoint to go on from, start the run again: {reason}")


def load_last(folder: Path, *, memory: bool = True) -> Loaded:
    """The newest checkpoint, for whoever only looks at it. Raises InputError if that one is damaged: an older policy in
    its place would be another one, and nobody would know.
    """
    loaded = load_newest(folder, memory=memory)
    if loaded.warnings:
        damage = loaded.warnings[0].removesuffix("; this checkpoint was skipped")
        raise InputError(
            f"{damage}; the newest intact one is of step {loaded.step:,}, which pgcli resume {folder.parent} takes"
        )
    return loaded


def find_best(folder: Path) -> Path | None:
    """The last checkpoint that was the best when it was written. `prune` never removes it."""
    for path in reversed(list_checkpoints(folder)):
        with contextlib.suppress(InputError):
            if _read_manifest(path).best:
                return path
    return None


def read(path: Path, *, memory: bool = True) -> tuple[int, State]:
    """Step and state. Raises Damaged, or InputError for a checkpoint of another schema."""
    step, contents = _read_verified(path, memory=memory)
    try:
        return step, decode(contents, memory=memory)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise Damaged(f"{path}: its contents make no sense ({error})") from error


def _is_intact(path: Path) -> bool:
    try:
        _read_verified(path, memory=True)
    except InputError:
        return False
    return True


def _read_verified(path: Path, *, memory: bool) -> tuple[int, dict[str, bytes]]:
    contents = {}
    manifest = _read_manifest(path)
    named = [(path / name, *entry) for name, entry in manifest.files.items()]
    if memory:
        named += [(path.parent / MEMORY / name, *entry) for name, entry in manifest.memory.items()]
    for file, size, sha256 in named:
        name = file.name
        data = _read_file(file, size)
        if len(data) != size:
            raise Damaged(f"{path}: {name} has {len(data)} bytes instead of {size}")
        if _sha256(data) != sha256:
            raise Damaged(f"{path}: {name} does not match its SHA-256")
        contents[name] = data
    return checkpoint_step(path), contents


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = json.loads(_read_file(path / MANIFEST, MANIFEST_LIMIT))
        schema = manifest["schema"]
        expected, memory = (
            {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in named.items()}
            for named in (manifest["files"], manifest.get("memory", {}))
        )
        found = Manifest(manifest["step"], bool(manifest["best"]), expected, memory)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: {MANIFEST} makes no sense") from error
    if schema != SCHEMA:
        raise InputError(
            f"{path} is a checkpoint of schema {schema}, and this pgcli reads schema {SCHEMA}: use the one that made it"
        )
    # Only our own names are opened: no other name in a manifest, such as an absolute or a parent path.
    if expected.keys() != {MODEL, ARRAYS, TREE}:
        raise Damaged(f"{path}: {MANIFEST} names {', '.join(sorted(expected)) or 'no file'}")
    if not all(map(SEGMENT.fullmatch, memory)):
        raise Damaged(f"{path}: {MANIFEST} names segments of a memory {', '.join(sorted(memory))}")
    if found.step != checkpoint_step(path):
        raise Damaged(f"{path}: {MANIFEST} says step {found.step}")
    return found


def _read_file(path: Path, limit: int) -> bytes:
    """Contents of a regular file of at most `limit` bytes: no device, no symbolic link."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(f"{path} is not a file")
        if found.st_size > limit:
            raise Damaged(f"{path} has {found.st_size} bytes instead of {limit}")
        return path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: {error.strerror}") from error


# ---------------------------------------------------------------- a tree as bytes


def encode(state: State) -> dict[str, bytes]:
    """The files of a checkpoint, without its manifest."""
    arrays: dict[str, Tensor] = {}
    policy = state["policy"]
    tree = _pack(state | {"policy": list(policy)}, "", arrays)  # the names, because safetensors loses their order
    return {
        MODEL: safetensors.torch.save({name: _own(tensor) for name, tensor in policy.items()}),
        ARRAYS: safetensors.torch.save(arrays),
        TREE: json.dumps(tree, allow_nan=False).encode(),
    }


def decode(contents: dict[str, bytes], *, memory: bool = True) -> State:
    policy, arrays = _tensors(contents[MODEL]), _tensors(contents[ARRAYS])
    state = _unpack(json.loads(contents[TREE]), arrays, _pieces(contents) if memory else None)
    return state | {"policy": {name: policy[name] for name in state["policy"]}}


def _pieces(contents: dict[str, bytes]) -> Pieces:
    """The segments in order. Raises ValueError if they do not continue one another."""
    pieces: Pieces = []
    at = None
    for name in sorted(filter(SEGMENT.fullmatch, contents)):
        first, end = _rows(name)
        columns = {key: tensor.numpy() for key, tensor in _tensors(contents[name]).items()}
        if at not in (None, first) or {len(column) for column in columns.values()} != {end - first}:
            raise ValueError(f"{name} is not what comes after {at}")
        pieces.append((first, columns))
        at = end
    return pieces


def _remembered(first: int, end: int, pieces: Pieces | None) -> Appended:
    """The rows from `first` on: a segment may begin with rows dropped since it was written."""
    if pieces is None:
        return Appended(first, end, [])
    kept: Pieces = []
    at = first
    for start, columns in pieces:
        cut = {name: column[max(0, first - start) :] for name, column in columns.items()}
        kept.append((max(start, first), cut))
        at = start + _length(columns)
    if at != end or (kept and kept[0][0] != first):
        raise ValueError(f"a memory of the rows {first} to {end} ends at {at}")
    return Appended(first, end, kept)


def _tensors(data: bytes) -> dict[str, Tensor]:
    if int.from_bytes(data[:8], "little") > HEADER_LIMIT:
        raise ValueError("a header of safetensors is too large")
    return safetensors.torch.load(data)


def _own(tensor: Tensor) -> Tensor:
    """A dense copy on the CPU: safetensors takes neither a view of a shared buffer nor a transposed one."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _pack(value: Any, path: str, arrays: dict[str, Tensor]) -> Any:
    """`value` as JSON. What JSON cannot hold becomes {"$": kind, ...}; tensors and arrays go to `arrays`."""
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$": "float", "value": repr(value)}
    if isinstance(value, Tensor):
        return {"$": "torch", "name": _store(_own(value), path, arrays)}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc" and value.dtype.isnative:
        kind = "numpy" if isinstance(value, np.ndarray) else "scalar"
        return {"$": kind, "name": _store(torch.from_numpy(np.array(value, order="C")), path, arrays)}
    if isinstance(value, Appended):
        return {"$": "appended", "first": value.first, "end": value.end}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$": "tuple", "items": items}
    if isinstance(value, dict) and all(type(key) in (int, str) for key in value):
        pairs = [(key, _pack(item, f"{path}/{key}", arrays)) for key, item in value.items()]
        plain = "$" not in value and all(type(key) is str for key in value)
        return dict(pairs) if plain else {"$": "dict", "items": pairs}
    raise TypeError(f"a checkpoint cannot hold {path}: {type(value).__name__} {getattr(value, 'dtype', '')}".rstrip())


def _store(tensor: Tensor, path: str, arrays: dict[str, Tensor]) -> str:
    while path in arrays:  # {"a/b": x, "a": {"b": y}}
        path += "'"
    arrays[path] = tensor
    return path


def _unpack(value: Any, arrays: dict[str, Tensor], pieces: Pieces | None) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays, pieces) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get("$"):
        case None:
            return {key: _unpack(item, arrays, pieces) for key, item in value.items()}
        case "float":
            return float(value["value"])
        case "torch":
            return arrays[value["name"]]
        case "numpy":
            return arrays[value["name"]].numpy()
        case "scalar":
            return arrays[value["name"]].numpy()[()]
        case "appended":
            return _remembered(value["first"], value["end"], pieces)
        case "tuple":
            return tuple(_unpack(item, arrays, pieces) for item in value["items"])
        case "dict":
            return {key: _unpack(item, arrays, pieces) for key, item in value["items"]}
    raise ValueError(f"an unknown kind {value['$']!r}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
