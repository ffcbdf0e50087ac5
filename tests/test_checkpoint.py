import os
import tempfile
from pathlib import Path

import pytest
import torch

from rlopt import checkpoint

STATE = {"policy": {"weight": torch.arange(3.0)}, "env_steps": 7, "name": "a", "list": [1.5, None]}


class Hostile:
    """Unpickling it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_half(state, file):
    file.write(b"half of it")
    raise OSError("disk full")


@pytest.fixture
def path(tmp_path):
    """A checkpoint of STATE."""
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, STATE)
    return path


def test_what_is_saved_is_loaded_and_nothing_else_is_left(path):
    loaded = checkpoint.load(path)
    torch.testing.assert_close(loaded.pop("policy"), STATE["policy"], rtol=0, atol=0)
    assert loaded == {key: STATE[key] for key in ("env_steps", "name", "list")}
    assert list(path.parent.iterdir()) == [path]


def test_a_later_save_replaces_the_earlier_one(path):
    checkpoint.save(path, {"env_steps": 8})
    assert checkpoint.load(path) == {"env_steps": 8}


def test_a_crash_while_writing_leaves_the_old_checkpoint(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"env_steps": 8})
    assert path.read_bytes() == before


def test_a_save_after_a_crash_is_whole(path, monkeypatch):
    with monkeypatch.context() as crash, pytest.raises(OSError, match="disk full"):
        crash.setattr(torch, "save", write_half)
        checkpoint.save(path, {"env_steps": 8})
    checkpoint.save(path, {"env_steps": 9})
    assert checkpoint.load(path) == {"env_steps": 9}


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.pt does not exist"):
        checkpoint.load(tmp_path / "none.pt")


@pytest.mark.parametrize("keep", [0, 1, 100, 1000])
def test_a_truncated_checkpoint_is_named_in_one_line(path, keep):
    whole = path.read_bytes()
    assert len(whole) > keep
    path.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=r"last\.pt is not a readable checkpoint") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_in_a_checkpoint_is_refused(tmp_path, as_zip):
    path, made = tmp_path / "last.pt", tmp_path / "made"
    torch.save({"policy": Hostile(made)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(ValueError, match=r"last\.pt is not a readable checkpoint"):
        checkpoint.load(path)
    assert not made.exists()
    torch.load(path, weights_only=False)  # the file is as hostile as it should be
    assert made.exists()


def damaged_copies(whole, number):
    """`whole` with eight flipped bits, again and again."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        data = bytearray(whole)
        for place in torch.randint(8 * len(data), (8,), generator=generator).tolist():
            data[place // 8] ^= 1 << place % 8
        yield bytes(data)


def test_flipped_bits_are_found_or_changed_nothing(path):
    """Some bytes of the container are padding; none that is read may be another one."""
    found = 0
    for data in damaged_copies(path.read_bytes(), 300):
        path.write_bytes(data)
        try:
            loaded = checkpoint.load(path)
        except ValueError:
            found += 1
        else:
            torch.testing.assert_close(loaded.pop("policy"), STATE["policy"], rtol=0, atol=0)
            assert loaded == {key: STATE[key] for key in ("env_steps", "name", "list")}
    assert found > 200


def test_the_last_two_are_kept(tmp_path):
    for i in range(3):
        checkpoint.save_last(tmp_path, {"env_steps": i})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert checkpoint.load(tmp_path / "last.pt") == {"env_steps": 2}
    assert checkpoint.load(tmp_path / "previous.pt") == {"env_steps": 1}


def test_nothing_saved_is_an_empty_state(tmp_path):
    assert checkpoint.load_last(tmp_path) == ({}, [])


@pytest.fixture
def read_only():
    """A folder with a checkpoint that this process may read and not write."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:  # in a place that everybody may enter
        folder = Path(name)
        checkpoint.save_last(folder, STATE)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # permissions do not bind root
        yield folder
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_read_only_folder_is_one_line_and_leaves_the_checkpoint(read_only):
    with pytest.raises(checkpoint.WriteError) as raised:
        checkpoint.save_last(read_only, {})
    assert str(raised.value) == f"{read_only / 'new.pt'} can't be written: Permission denied"
    assert [path.name for path in read_only.iterdir()] == ["last.pt"]
    assert checkpoint.load(read_only / "last.pt")["env_steps"] == 7
