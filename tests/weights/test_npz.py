"""npz: numpy's archives, array by array, without pickles."""

from __future__ import annotations

import tracemalloc
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_encoders.errors import WeightsError
from image_encoders.weights.files import let_go
from image_encoders.weights.npz import read

ARRAYS = {
    "resnet/block1/unit01/a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "half": np.arange(5, dtype=np.float16),
    "big": np.arange(5, dtype=">i4"),
    "scalar": np.array(3.5),
    "empty": np.empty((0, 7)),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_array_comes_back_equal_and_in_order(tmp_path: Path, save: object) -> None:
    path = tmp_path / "a.npz"
    save(path, **ARRAYS)  # type: ignore[operator]
    found = read(path)
    assert list(found) == list(ARRAYS)
    assert len(found) == len(ARRAYS)
    for name, wanted in ARRAYS.items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_array_equal(found[name], wanted)
    assert "other" not in found
    with pytest.raises(KeyError):
        found["other"]


def test_asking_for_a_name_reads_no_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.full(8, 1.5))
    path.write_bytes(path.read_bytes().replace(np.float64(1.5).tobytes(), np.float64(2.5).tobytes(), 1))
    found = read(path)
    assert "a" in found
    with pytest.raises(WeightsError, match=r"array a: .* wrong checksum"):
        found["a"]


def test_arrays_of_an_uncompressed_archive_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(1 << 18), b=np.ones(1 << 18))
    before = path.read_bytes()
    tracemalloc.start()
    found = read(path)
    total = sum(float(found[name].sum()) for name in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 2 << 18
    assert peak < 1 << 20
    found["a"][:] = 5
    assert path.read_bytes() == before


def test_an_array_whose_memory_was_given_back_can_still_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(1 << 16), b=np.ones(5))
    found = read(path)
    a, b = found["a"], found["b"]
    let_go(a[5:])
    let_go(np.ones(3))  # of no file
    np.testing.assert_array_equal(a, np.arange(1 << 16))
    np.testing.assert_array_equal(b, np.ones(5))


def test_objects_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array([{"x": 1}], dtype=object), b=np.ones(2))
    found = read(path)
    with pytest.raises(WeightsError, match=r"a.npz: array a: values of type object.*would need a pickle"):
        found["a"]
    assert found["b"].sum() == 2


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(100.0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.arange(50.0, 55.0).tobytes()) + 3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"array a: record a.npy has a wrong checksum; get the file again"):
        read(path)["a"]


def test_a_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.save(tmp_path / "a.npy", np.arange(100.0))
    raw = (tmp_path / "a.npy").read_bytes()
    for shape in (b"(999,)", b"(-10,)", b"(10**9,)", b"'x'   "):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", raw.replace(b"(100,)", shape))
        with pytest.raises(WeightsError, match="array a"):
            read(path)["a"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for content in (b"", b"not an archive", b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.npz"):
            read(path)
    with pytest.raises(WeightsError, match="No such file"):
        read(tmp_path / "none.npz")


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.arange(3.0))
    for other in ("a.npy", "a"):
        twice = tmp_path / "b.npz"
        twice.write_bytes(path.read_bytes())
        with warnings.catch_warnings(), zipfile.ZipFile(twice, "a") as archive:
            warnings.simplefilter("ignore")
            archive.writestr(other, archive.read("a.npy"))
        with pytest.raises(WeightsError, match=r"two (records|arrays) are called a"):
            read(twice)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(80 << 20))
    with pytest.raises(WeightsError, match="would inflate to"):
        read(path)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), packed=st.booleans())
def test_any_damage_gives_arrays_or_a_weights_error(tmp_path: Path, data: st.DataObject, packed: bool) -> None:
    path = tmp_path / "a.npz"
    (np.savez_compressed if packed else np.savez)(path, a=np.arange(30.0).reshape(5, 6), b=np.ones(3))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))])
    with suppress(WeightsError):
        found = read(path)
        for name in found:
            found[name].sum()
