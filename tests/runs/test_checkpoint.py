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


def test_without_an_intact_checkpoint_there_is_an_error_that_names_all(three):
    for step in (100, 200, 300):
        (three / f"step-{step:09d}" / "state.json").unlink()
    with pytest.raises(InputError, match=r"(?s)step-000000300.*step-000000200.*step-000000100"):
        checkpoint.load_newest(three)


def test_a_folder_without_checkpoints_is_an_error_not_a_fresh_start(tmp_path):
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        checkpoint.load_newest(tmp_path)


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
