import json
import math
import os
import pickle
import shutil
import struct

import numpy as np
import pytest
import torch

from pgcli.errors import InputError, RunError
from pgcli.runs import checkpoint, files
from pgcli.runs.checkpoint import Damaged
from pgcli.types import Appended


def same(a, b):
    """Equal to the bit: type, dtype, shape and bytes."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and same(_bytes(a), _bytes(b))
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return a == b


def _bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def round_trip(folder, rest, policy=None):
    path = checkpoint.write(folder, 7, {"policy": policy or {}, "rest": rest})
    step, state = checkpoint.read(path)
    assert step == 7
    return state


FLOATS = ["float64", "float32", "float16", "bfloat16", "complex64"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS)
def test_a_tensor_of_any_dtype_comes_back_bit_for_bit(tmp_path, dtype):
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype))
    assert same(round_trip(tmp_path, tensor)["rest"], tensor)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8"])
def test_an_array_of_any_dtype_comes_back_as_an_array(tmp_path, dtype):
    array = np.array([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    assert same(round_trip(tmp_path, array)["rest"], array)


def test_the_largest_unsigned_numbers_survive(tmp_path):
    numbers = [np.array([2**64 - 1], dtype=np.uint64), torch.tensor([2**64 - 1], dtype=torch.uint64), np.uint64(2**63)]
    assert same(round_trip(tmp_path, numbers)["rest"], numbers)


def test_arrays_and_tensors_without_axes_or_without_elements_survive(tmp_path):
    rest = [
        torch.tensor(3.5),
        torch.empty(0, 3),
        np.array(2),
        np.empty((4, 0), np.float32),
        np.float32(0.1),
        np.bool_(True),
    ]
    assert same(round_trip(tmp_path, rest)["rest"], rest)


def test_nan_payloads_and_signed_zeros_in_arrays_survive(tmp_path):
    array = np.array([0x7FF8000000000001, 0xFFF8000000000002, 0x8000000000000000], dtype=np.uint64).view(np.float64)
    assert same(round_trip(tmp_path, array)["rest"], array)


def test_views_of_one_flat_buffer_and_transposed_tensors_are_saved_as_what_they_show(tmp_path):
    flat = torch.arange(12.0)
    policy = {"b": flat[:6].view(2, 3), "a": flat[6:].view(3, 2).t(), "all": flat, "tied": flat}
    saved = round_trip(tmp_path, np.arange(6).reshape(2, 3).T, policy)
    assert same(saved["policy"], {name: tensor.contiguous() for name, tensor in policy.items()})
    assert saved["rest"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_parameter_is_saved_without_its_gradient_and_in_the_order_of_the_policy(tmp_path):
    policy = {"z": torch.nn.Parameter(torch.ones(2)), "a": torch.nn.Parameter(torch.zeros(1))}
    saved = round_trip(tmp_path, None, policy)["policy"]
    assert list(saved) == ["z", "a"]
    assert not saved["z"].requires_grad
    assert saved["z"].tolist() == [1, 1]


def test_what_json_cannot_hold_comes_back_as_it_was(tmp_path):
    rest = {
        "generator": np.random.Generator(np.random.PCG64(3)).bit_generator.state,  # 128-bit integers
        "floats": [math.nan, math.inf, -math.inf, -0.0, 0.1, 1e-323],
        "optimiser": {0: {"step": torch.tensor(1.0)}, 1: {}},
        "betas": (0.9, 0.999),
        "$": {"$": "torch", "name": "/rest"},  # looks like ours
        "others": [None, True, False, 1, "é\n\ud7ff", {}, []],
    }
    assert same(round_trip(tmp_path, rest)["rest"], rest)


def test_paths_that_look_alike_are_kept_apart(tmp_path):
    rest = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "__metadata__": torch.tensor(3), 0: {}, "0": {}}
    assert same(round_trip(tmp_path, rest)["rest"], rest)


def test_a_random_generator_goes_on_where_it_was(tmp_path):
    generator = torch.Generator().manual_seed(5)
    torch.rand(10, generator=generator)
    saved = round_trip(tmp_path, generator.get_state())["rest"]
    after = torch.rand(4, generator=generator)
    again = torch.Generator()
    again.set_state(saved)
    assert torch.equal(torch.rand(4, generator=again), after)


def test_loaded_arrays_and_tensors_can_be_written_to(tmp_path):
    state = round_trip(tmp_path, np.zeros(2), {"w": torch.zeros(2)})
    state["rest"][0] = 1
    state["policy"]["w"][0] = 1


@pytest.mark.parametrize("thing", [object(), {1, 2}, b"bytes", np.array(["text"]), np.array([object()]), {None: 1}])
def test_an_object_is_refused_by_the_path_to_it(tmp_path, thing):
    with pytest.raises(TypeError, match="/rest/deep/1"):
        checkpoint.write(tmp_path, 1, {"policy": {}, "rest": {"deep": [0, thing]}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_policy_that_is_not_finite_is_never_written(tmp_path, value):
    policy = {"actor.weight": torch.ones(3), "critic.bias": torch.tensor([0.0, value, 1.0])}
    with pytest.raises(RunError, match=r"`critic\.bias` of the policy has 1 values of 3"):
        checkpoint.write(tmp_path, 1, {"policy": policy})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, state_at, monkeypatch):
    done = []

    def recorded(name, real):
        def operation(path, *arguments):
            done.append((name, ".tmp" if path.name.startswith(".tmp-") else path.name))
            return real(path, *arguments)

        return operation

    for name in ("make_dir", "write", "fsync", "rename"):
        monkeypatch.setattr(files, name, recorded(name, getattr(files, name)))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    checkpoint.write(folder, 5, state_at(5))
    contents = ["model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"]
    assert done == [
        ("make_dir", ".tmp"),
        *[(operation, name) for name in contents for operation in ("write", "fsync")],
        ("fsync", ".tmp"),
        ("rename", ".tmp"),
        ("fsync", "checkpoints"),
    ]


# ---------------------------------------------------------------- damage


@pytest.fixture
def three(tmp_path, state_at):
    """Checkpoints at 100, 200 and 300."""
    for step in (100, 200, 300):
        checkpoint.write(tmp_path, step, state_at(step))
    return tmp_path


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


NAMES = ["model.safetensors", "state.safetensors", "state.json", "MANIFEST.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "replaced by a folder", "a bit flipped"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(three, state_at, name, damage):
    path = three / "step-000000300" / name
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "emptied":
            path.write_bytes(b"")
        case "removed":
            path.unlink()
        case "replaced by a folder":
            path.unlink()
            path.mkdir()
        case "a bit flipped":
            flip(path, path.read_bytes().index(b"0"))
    loaded = checkpoint.load_newest(three)
    assert loaded.step == 200
    assert same(loaded.state, state_at(200))
    assert len(loaded.warnings) == 1
    assert "step-000000300" in loaded.warnings[0]
    assert name in loaded.warnings[0]


def test_every_single_flipped_bit_of_the_weights_is_noticed(three):
    path = three / "step-000000300" / "model.safetensors"
    for position in range(path.stat().st_size):
        flip(path, position)
        with pytest.raises(Damaged, match="SHA-256"):
            checkpoint.read(path.parent)
        flip(path, position)
    assert checkpoint.read(path.parent)[0] == 300


def test_a_checkpoint_that_a_live_run_removes_while_it_is_read_is_no_damage(tmp_path, state_at, monkeypatch):
    checkpoint.write(tmp_path, 1, state_at(1))
    real = checkpoint._read_file

    def the_run_goes_on(path, limit):
        monkeypatch.setattr(checkpoint, "_read_file", real)
        checkpoint.write(tmp_path, 2, state_at(2))
        checkpoint.prune(tmp_path, 1, set())
        return real(path, limit)

    monkeypatch.setattr(checkpoint, "_read_file", the_run_goes_on)
    found = checkpoint.load_last(tmp_path)
    assert (found.step, found.warnings) == (2, [])


def test_without_an_intact_checkpoint_there_is_an_error_that_names_all(three):
    for step in (100, 200, 300):
        (three / f"step-{step:09d}" / "state.json").unlink()
    with pytest.raises(InputError, match=r"(?s)step-000000300.*step-000000200.*step-000000100"):
        checkpoint.load_newest(three)


def test_a_folder_without_checkpoints_is_an_error_not_a_fresh_start(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        checkpoint.load_newest(tmp_path)


def test_who_only_looks_is_not_shown_an_older_checkpoint_for_a_damaged_one(three):
    assert checkpoint.load_last(three).step == 300
    flip(three / "step-000000300" / "model.safetensors", -1)
    with pytest.raises(InputError, match=r"step-000000300.*newest intact one is of step 200, which pgcli"):
        checkpoint.load_last(three)


def test_a_checkpoint_under_the_name_of_another_step_is_damaged(three):
    (three / "step-000000300").rename(three / "step-000000400")
    with pytest.raises(Damaged, match="says step 300"):
        checkpoint.read(three / "step-000000400")


def rewrite_manifest(path, change):
    manifest = json.loads((path / "MANIFEST.json").read_text())
    change(manifest)
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def test_a_checkpoint_of_another_schema_is_refused_by_both_versions_and_not_skipped(three):
    rewrite_manifest(three / "step-000000300", lambda manifest: manifest.update(schema=2))
    with pytest.raises(InputError, match=r"step-000000300 is a checkpoint of schema 2, and this pgcli reads schema 1"):
        checkpoint.load_newest(three)


# ---------------------------------------------------------------- malice


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def forge(path, name, data):
    """Put `data` in place of a file, with the size and hash that make it pass for the original."""
    (path / name).write_bytes(data)
    described = {"size": len(data), "sha256": checkpoint._sha256(data)}
    rewrite_manifest(path, lambda manifest: manifest["files"].update({name: described}))


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_pickle_with_a_valid_hash_is_not_executed(three, name, monkeypatch):
    monkeypatch.chdir(three)
    forge(three / "step-000000300", name, pickle.dumps(Bomb()))
    with pytest.raises(Damaged):
        checkpoint.read(three / "step-000000300")
    assert not (three / "executed").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (three / "executed").exists()  # the bomb was live


@pytest.mark.parametrize("name", ["../step-000000200/model.safetensors", "/etc/hostname", "a/b", "..\\x", ""])
def test_a_manifest_that_names_another_file_is_refused_and_the_file_not_opened(three, name, monkeypatch):
    path = three / "step-000000300"
    rewrite_manifest(path, lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))
    opened = []
    real = checkpoint._read_file
    monkeypatch.setattr(checkpoint, "_read_file", lambda file, limit: opened.append(file.name) or real(file, limit))
    with pytest.raises(Damaged, match="names"):
        checkpoint.read(path)
    assert opened == ["MANIFEST.json"]


def test_a_link_to_a_file_elsewhere_is_not_followed(three):
    path = three / "step-000000300" / "state.json"
    secret = three / "secret"
    shutil.move(path, secret)
    path.symlink_to(secret)
    with pytest.raises(Damaged, match="not a file"):
        checkpoint.read(path.parent)


@pytest.mark.parametrize("length", [2**63, 2**25, 100])
def test_a_header_that_claims_too_much_is_refused(three, length):
    forge(three / "step-000000300", "model.safetensors", struct.pack("<Q", length) + b"{}")
    with pytest.raises(Damaged):
        checkpoint.read(three / "step-000000300")


@pytest.mark.parametrize(
    "tree",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"policy": ["no such name"]}',
        '{"policy": [], "a": {"$": "torch", "name": "x"}}',
        '{"policy": [], "a": {"$": 1}}',
    ],
)
def test_a_tree_that_makes_no_sense_is_refused(three, tree):
    forge(three / "step-000000300", "state.json", tree.encode())
    with pytest.raises(Damaged, match="make no sense"):
        checkpoint.read(three / "step-000000300")


@pytest.mark.parametrize(
    "manifest", ["[]", "null", '{"schema": 1}', "[" * 50_000, '{"schema": 1, "step": 300, "best": 0, "files": []}']
)
def test_a_manifest_that_makes_no_sense_is_refused(three, manifest):
    (three / "step-000000300" / "MANIFEST.json").write_text(manifest)
    with pytest.raises(Damaged, match="MANIFEST"):
        checkpoint.read(three / "step-000000300")


def test_a_huge_manifest_is_not_read(three):
    path = three / "step-000000300" / "MANIFEST.json"
    path.write_text(path.read_text() + " " * 100_000)
    with pytest.raises(Damaged, match="bytes instead of"):
        checkpoint.read(path.parent)


# ---------------------------------------------------------------- retention


def steps(folder):
    return [checkpoint.checkpoint_step(path) for path in checkpoint.list_checkpoints(folder)]


def test_the_newest_and_the_best_are_kept(tmp_path, state_at):
    for step in range(6):
        checkpoint.write(tmp_path, step, state_at(step), best=step in (0, 1))
        checkpoint.prune(tmp_path, 2, set())
    assert steps(tmp_path) == [1, 4, 5]
    assert checkpoint.find_best(tmp_path).name == "step-000000001"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000001", "step-000000004", "step-000000005"]


def test_a_damaged_checkpoint_does_not_count_as_kept(three):
    # 300 and 200 are damaged: with keep = 1 the last intact one is 100, and must stay.
    for step in (200, 300):
        flip(three / f"step-{step:09d}" / "model.safetensors", -1)
    checkpoint.prune(three, 1, set())
    assert steps(three) == [100, 200, 300]
    assert checkpoint.load_newest(three).step == 100


def test_a_full_disk_keeps_the_old_checkpoint_and_leaves_nothing_half_written(three, state_at, monkeypatch):
    real = files.write

    def full(path, data):
        if path.name == "state.safetensors":
            real(path, data[:10])
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(files, "write", full)
    for step in (300, 400):  # over an old one, and a new one
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(three, step, state_at(999))
    monkeypatch.undo()
    assert sorted(path.name for path in three.iterdir()) == ["step-000000100", "step-000000200", "step-000000300"]
    assert same(checkpoint.load_newest(three).state, state_at(300))


# ---------------------------------------------------------------- a memory that only grows


def memory_at(end, capacity=10**6, *, first=None):
    """Row n holds n, 2n and whether n is even; in two pieces, as a ring has them."""
    first = max(0, end - capacity) if first is None else first
    n = np.arange(first, end)
    columns = {"a": n.astype(np.float32), "b": np.stack([2 * n, n], 1), "c": n % 2 == 0}
    half = (end - first) // 2
    cuts = [(0, half), (half, end - first)]
    pieces = [(first + i, {name: c[i:j] for name, c in columns.items()}) for i, j in cuts if i < j]
    return Appended(first, end, pieces)


def remembering(end, capacity=10**6):
    return {"policy": {"w": torch.full((2,), float(end))}, "collector": {"memory": memory_at(end, capacity), "n": end}}


def joined(memory):
    """Every row, and the numbers of the first and of the one after the last."""
    assert all(at == before for (at, _), before in zip(memory.pieces[1:], _ends(memory), strict=False))
    names = sorted(memory.pieces[0][1]) if memory.pieces else []
    columns = {name: np.concatenate([piece[name] for _, piece in memory.pieces]) for name in names}
    return memory.first, memory.end, columns


def _ends(memory):
    return [at + len(columns["a"]) for at, columns in memory.pieces]


def segments(folder):
    return sorted(path.name[5:30] for path in (folder / "memory").iterdir())


def rows_named(first, end):
    return f"{first:012d}-{end:012d}"


def test_a_checkpoint_writes_only_the_rows_that_the_one_before_it_has_not(tmp_path, monkeypatch):
    written = {}
    real = files.write
    monkeypatch.setattr(files, "write", lambda path, data: written.update({path.name: len(data)}) or real(path, data))
    for step, end in enumerate((0, 1000, 3000, 3000, 3010)):
        written.clear()
        checkpoint.write(tmp_path, step, remembering(end))
        _, state = checkpoint.read(tmp_path / f"step-{step:09d}")
        assert same(joined(state["collector"]["memory"]), joined(memory_at(end)))
    assert segments(tmp_path) == [rows_named(0, 1000), rows_named(1000, 3000), rows_named(3000, 3010)]
    new = {name: size for name, size in written.items() if "rows-" in name}
    assert len(new) == 1
    assert sum(new.values()) < 10 * (4 + 16 + 1) + 400  # ten rows, and a header


def test_every_checkpoint_reads_what_was_there_when_it_was_written(tmp_path):
    ends = (3, 8, 15, 17, 40)
    for end in ends:
        checkpoint.write(tmp_path, end, remembering(end, capacity=10))
    for end in ends:
        _, state = checkpoint.read(tmp_path / f"step-{end:09d}")
        assert same(joined(state["collector"]["memory"]), joined(memory_at(end, 10)))


def test_segments_that_no_checkpoint_names_any_longer_are_removed(tmp_path):
    for end in (5, 10, 15, 20):
        checkpoint.write(tmp_path, end, remembering(end, capacity=10), best=end == 5)
        checkpoint.prune(tmp_path, 1, set())
    # 20 has the rows from 10 on, 5 is the best; 10 and 15 are gone, and so are the rows 5 to 10.
    assert steps(tmp_path) == [5, 20]
    assert segments(tmp_path) == [rows_named(0, 5), rows_named(10, 15), rows_named(15, 20)]
    for step in (5, 20):
        checkpoint.read(tmp_path / f"step-{step:09d}")


def test_what_was_wholly_overwritten_since_the_last_checkpoint_is_never_written(tmp_path):
    checkpoint.write(tmp_path, 1, remembering(5, capacity=10))
    checkpoint.write(tmp_path, 2, remembering(95, capacity=10))
    assert segments(tmp_path) == [rows_named(0, 5), rows_named(85, 95)]


def test_too_many_segments_become_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_SEGMENTS", 4)
    for end in range(1, 8):
        checkpoint.write(tmp_path, end, remembering(end))
        checkpoint.prune(tmp_path, 1, set())
    assert segments(tmp_path) == [rows_named(0, 5), rows_named(5, 6), rows_named(6, 7)]
    assert same(joined(checkpoint.load_newest(tmp_path).state["collector"]["memory"]), joined(memory_at(7)))


def test_as_many_segments_as_there_may_be_fit_into_a_manifest(tmp_path):
    for end in range(1, checkpoint.MOST_SEGMENTS + 1):
        checkpoint.write(tmp_path, end, remembering(end))
        checkpoint.prune(tmp_path, 1, {tmp_path / f"step-{end:09d}"})
    assert len(segments(tmp_path)) == checkpoint.MOST_SEGMENTS
    assert checkpoint.load_newest(tmp_path).step == checkpoint.MOST_SEGMENTS


@pytest.mark.parametrize(
    "damage", ["truncated", "emptied", "removed", "replaced by a folder", "linked", "a bit flipped"]
)
def test_a_damaged_segment_damages_those_that_name_it_and_the_one_before_them_is_used(tmp_path, damage):
    for end in (100, 200, 300):
        checkpoint.write(tmp_path, end, remembering(end))
    path = next((tmp_path / "memory").glob(f"*{rows_named(100, 200)}*"))
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "emptied":
            path.write_bytes(b"")
        case "removed":
            path.unlink()
        case "replaced by a folder":
            path.unlink()
            path.mkdir()
        case "linked":
            shutil.move(path, tmp_path / "elsewhere")
            path.symlink_to(tmp_path / "elsewhere")
        case "a bit flipped":
            flip(path, -1)
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded.step == 100
    assert same(joined(loaded.state["collector"]["memory"]), joined(memory_at(100)))
    assert len(loaded.warnings) == 2
    assert all(path.name in warning for warning in loaded.warnings)
    # To play, a policy needs none of it.
    assert checkpoint.load_newest(tmp_path, memory=False).step == 300

    checkpoint.set_aside(tmp_path, 100)
    checkpoint.write(tmp_path, 200, remembering(200))
    assert same(joined(checkpoint.load_newest(tmp_path).state["collector"]["memory"]), joined(memory_at(200)))


@pytest.mark.parametrize("damage", ["removed", "truncated"])
def test_a_segment_that_has_visibly_gone_is_written_again_with_the_next_checkpoint(tmp_path, damage):
    checkpoint.write(tmp_path, 100, remembering(100))
    path = next((tmp_path / "memory").iterdir())
    path.unlink() if damage == "removed" else path.write_bytes(b"x")
    checkpoint.write(tmp_path, 200, remembering(200))
    assert checkpoint.load_newest(tmp_path).step == 200


def test_a_memory_is_not_read_where_it_is_not_asked_for(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, 100, remembering(100))
    opened = []
    real = checkpoint._read_file
    monkeypatch.setattr(checkpoint, "_read_file", lambda file, limit: opened.append(file.name) or real(file, limit))
    state = checkpoint.load_newest(tmp_path, memory=False).state
    assert sorted(opened) == sorted(NAMES)
    assert state["collector"]["n"] == 100
    assert state["collector"]["memory"].pieces == []


@pytest.mark.parametrize(
    "name",
    ["../step-000000200/model.safetensors", "/etc/hostname", "rows-0-1-0.safetensors", f"../rows-{'0' * 12}", ""],
)
def test_a_manifest_that_names_another_file_as_a_segment_is_refused_and_the_file_not_opened(three, name, monkeypatch):
    path = three / "step-000000300"
    rewrite_manifest(path, lambda manifest: manifest.update(memory={name: {"size": 1, "sha256": "0"}}))
    opened = []
    real = checkpoint._read_file
    monkeypatch.setattr(checkpoint, "_read_file", lambda file, limit: opened.append(file.name) or real(file, limit))
    with pytest.raises(Damaged, match="names"):
        checkpoint.read(path)
    assert opened == ["MANIFEST.json"]


@pytest.mark.parametrize("change", ["none", "first", "last", "middle", "renamed"])
def test_a_manifest_that_leaves_out_a_segment_is_refused(tmp_path, change):
    for end in (100, 200, 300):
        checkpoint.write(tmp_path, end, remembering(end))

    def leave_out(manifest):
        names = sorted(manifest["memory"])
        gone = {"none": names, "first": names[:1], "middle": names[1:2], "last": names[2:], "renamed": names[2:]}
        for name in gone[change]:
            entry = manifest["memory"].pop(name)
        if change == "renamed":
            new = name.replace("300", "400")
            (tmp_path / "memory" / name).rename(tmp_path / "memory" / new)
            manifest["memory"][new] = entry

    rewrite_manifest(tmp_path / "step-000000300", leave_out)
    with pytest.raises(Damaged, match="make no sense"):
        checkpoint.read(tmp_path / "step-000000300")


def test_two_memories_in_one_state_are_refused(tmp_path):
    state = {"policy": {}, "a": memory_at(3), "b": [memory_at(4)]}
    with pytest.raises(TypeError, match="2 memories"):
        checkpoint.write(tmp_path, 1, state)
    assert list(tmp_path.iterdir()) == []


def test_a_process_killed_at_any_operation_leaves_the_old_memory_or_the_new(tmp_path, dies_at):
    for torn in (False, True):
        for n in range(1, 100):
            folder = tmp_path / f"{n}{torn}"
            folder.mkdir()
            for end in (10, 20):
                checkpoint.write(folder, end, remembering(end, capacity=15))

            def work(start, folder=folder):
                start()
                checkpoint.write(folder, 30, remembering(30, capacity=15))
                checkpoint.prune(folder, 1, set())

            killed = dies_at(n, work, torn=torn)
            checkpoint.sweep(folder)
            loaded = checkpoint.load_newest(folder)
            assert loaded.warnings == []
            assert same(joined(loaded.state["collector"]["memory"]), joined(memory_at(loaded.step, 15)))
            checkpoint.write(folder, 40, remembering(40, capacity=15))
            checkpoint.prune(folder, 1, set())
            assert same(joined(checkpoint.load_newest(folder).state["collector"]["memory"]), joined(memory_at(40, 15)))
            assert not list(folder.rglob(".tmp-*"))
            named = json.loads((folder / "step-000000040" / "MANIFEST.json").read_text())["memory"]
            assert sorted(named) == sorted(path.name for path in (folder / "memory").iterdir())
            if not killed:
                break
        assert 20 < n < 100
