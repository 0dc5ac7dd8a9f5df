"""safetensors_file and convert: what is written is what the library itself reads, and what comes back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from image_encoders.errors import WeightsError
from image_encoders.weights import convert
from image_encoders.weights.safetensors_file import TYPES, read, write

TENSORS = {
    "w": torch.arange(12.0).reshape(3, 4).t(),
    "half": torch.arange(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "array": np.arange(6, dtype=">f4").reshape(2, 3)[:, ::-1],
    "empty": torch.empty(0, 3),
    "flags": np.array([True, False, True]),
    "ünïcode/名": torch.zeros(1, dtype=torch.uint8),
}


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "deep/a.safetensors"
    write(path, TENSORS, {"format": "pt", "note": "naïve"})
    for found in (safetensors.torch.load_file(path), read(path)[0]):
        assert set(found) == set(TENSORS)
        for name, wanted in TENSORS.items():
            if isinstance(wanted, np.ndarray):
                wanted = torch.from_numpy(np.ascontiguousarray(wanted.astype(wanted.dtype.newbyteorder("="))))
            assert found[name].dtype == wanted.dtype
            assert torch.equal(found[name], wanted)
    assert read(path)[1] == {"format": "pt", "note": "naïve"}
    assert os.listdir(path.parent) == ["a.safetensors"]


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_the_format_comes_back(tmp_path: Path, kind: str) -> None:
    wanted = {"x": torch.arange(5).to(getattr(torch, kind))}
    write(tmp_path / "a.safetensors", wanted)
    found, metadata = read(tmp_path / "a.safetensors")
    assert found["x"].dtype == wanted["x"].dtype
    assert torch.equal(found["x"], wanted["x"])
    assert metadata == {}


def test_the_file_can_be_read_by_those_the_umask_allows(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"x": torch.ones(1)})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left"):
        write(path, {"x": torch.zeros(1000)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_type_the_format_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no type for z \(complex64\)"):
        write(tmp_path / "a.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, TENSORS)
    whole = path.read_bytes()
    for size in (0, 7, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="a damaged safetensors file"):
            read(path)
    with pytest.raises(WeightsError, match="no such file"):
        read(tmp_path / "none")


def test_a_converted_checkpoint_keeps_its_metadata(tmp_path: Path) -> None:
    metadata = {"family": "vsepp", "opt": {"use_abs": True}, "vocabulary": ["<pad>", "naïve"], "sizes": [1, 2.5, None]}
    convert.save(tmp_path / "a.safetensors", {"x": torch.ones(2)}, metadata)
    tensors, found = convert.load(tmp_path / "a.safetensors")
    assert found == metadata
    assert torch.equal(tensors["x"], torch.ones(2))


def test_a_file_of_someone_else_is_not_a_converted_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}, {convert.METADATA: "not json"}, {convert.METADATA: json.dumps([1])}):
        write(path, {"x": torch.ones(1)}, metadata)
        with pytest.raises(WeightsError, match="metadata"):
            convert.load(path)
