"""One flipped bit in a checkpoint is noticed wherever the file has a checksum; elsewhere it may change values."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_writer
import numpy as np
import pytest
import torch

from image_encoders.errors import WeightsError
from image_encoders.weights import npz, safetensors_file, tensor_bundle, torch_file

FLIPS = 400
ARRAYS = {
    "layer.weight": np.linspace(-1, 1, 240, dtype=np.float32).reshape(12, 20),
    "layer.bias": np.arange(12, dtype=np.float32),
    "steps": np.arange(3, dtype=np.int64),
}
TENSORS = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


def _zip(folder: Path) -> Path:
    torch.save(TENSORS, folder / "a.pt")
    return folder / "a.pt"


def _legacy(folder: Path) -> Path:
    torch.save(TENSORS, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def _npz(folder: Path) -> Path:
    np.savez(folder / "a.npz", **ARRAYS)
    return folder / "a.npz"


def _safetensors(folder: Path) -> Path:
    safetensors_file.write(folder / "a.safetensors", TENSORS)
    return folder / "a.safetensors"


def _saved_model(folder: Path) -> Path:
    graph = bundle_writer.trackable_graph([({"a": 1}, "", ""), ({}, "layer/weight", "layer.weight")])
    return bundle_writer.write(folder / "model", ARRAYS, graph)


def _read_npz(path: Path) -> dict[str, Any]:
    archive = npz.read(path)
    return {name: archive[name] for name in archive}


# how a container is written, how it is read, and whether all of its bytes have checksums
CONTAINERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], bool]] = {
    "zip": (_zip, torch_file.read, True),
    "legacy": (_legacy, torch_file.read, False),
    "npz": (_npz, _read_npz, True),
    "safetensors": (_safetensors, lambda path: safetensors_file.read(path)[0], False),
    "saved model": (_saved_model, lambda path: tensor_bundle.read(path).tensors, True),
}


def _equal(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == ARRAYS.keys()
        and all(np.array_equal(np.asarray(found[name]), wanted) for name, wanted in ARRAYS.items())
    )


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path: Path, kind: str) -> None:
    write, read, checked = CONTAINERS[kind]
    path = write(tmp_path)
    files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    whole = {file: file.read_bytes() for file in files}
    assert _equal(read(path))
    chosen = random.Random(0)
    wrong, refused = [], 0
    for _ in range(FLIPS):
        file = chosen.choices(files, [len(whole[file]) for file in files])[0]
        bit = chosen.randrange(8 * len(whole[file]))
        raw = bytearray(whole[file])
        raw[bit // 8] ^= 1 << bit % 8
        file.unlink()  # the file that was read before may still be mapped
        file.write_bytes(raw)
        try:
            if not _equal(read(path)):
                wrong.append((file.name, bit))
        except WeightsError:
            refused += 1
        file.unlink()
        file.write_bytes(whole[file])
    assert refused
    if checked:
        assert not wrong
