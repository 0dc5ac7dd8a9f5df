"""tensor_bundle: SavedModel folders as TensorFlow writes them, read without it; damage is named and never passed on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bundle_writer as writer
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_encoders.errors import WeightsError
from image_encoders.weights.tensor_bundle import read

END = "/.ATTRIBUTES/VARIABLE_VALUE"
TENSORS = {f"variables/{i}{END}": np.arange(i * 3, dtype=np.float32).reshape(i, 3) for i in range(12)}
GRAPH = writer.trackable_graph(
    [
        ({"variables": 1, "net": 2, "itself": 0}, "", ""),
        ({str(i): 3 + i for i in range(12)}, "", ""),
        ({"first": 3, "second": 4, "back": 0}, "", ""),
        *(({}, f"layer/{i % 2}/kernel", f"variables/{i}{END}") for i in range(12)),
    ]
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return writer.write(tmp_path / "model", TENSORS, GRAPH)


def index(folder: Path) -> Path:
    return folder / "variables/variables.index"


def shard(folder: Path, number: int = 0, of: int = 1) -> Path:
    return folder / f"variables/variables.data-{number:05}-of-{of:05}"


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_come_back_by_key(tmp_path: Path, shards: int) -> None:
    found = read(writer.write(tmp_path / "model", TENSORS, GRAPH, shards=shards)).tensors
    assert set(found) == set(TENSORS)
    for key, wanted in TENSORS.items():
        assert found[key].dtype == wanted.dtype
        np.testing.assert_array_equal(found[key], wanted)


@pytest.mark.parametrize("kind", writer.DTYPES)
def test_every_type_comes_back(tmp_path: Path, kind: str) -> None:
    wanted = {"a": np.arange(5).astype(kind), "b": np.array(3).astype(kind)}
    found = read(writer.write(tmp_path / "model", wanted)).tensors
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype
        np.testing.assert_array_equal(found[key], wanted[key])


def test_bfloat16_comes_back_as_float32(tmp_path: Path) -> None:
    wanted = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    raw = (wanted.view(np.uint32) >> 16).astype("<u2").tobytes()
    folder = writer.write(tmp_path / "model", {}, extra={"a": writer.entry(14, (4,), 0, 0, raw, writer.masked(raw))})
    shard(folder).write_bytes(raw)
    found = read(folder).tensors["a"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2**-7)


def test_writing_to_a_tensor_leaves_the_file_alone(folder: Path) -> None:
    before = shard(folder).read_bytes()
    read(folder).tensors[f"variables/5{END}"][:] = 9
    assert shard(folder).read_bytes() == before


def test_the_graph_leads_to_the_tensors(folder: Path) -> None:
    bundle = read(folder)
    assert bundle.names[f"variables/4{END}"] == "layer/0/kernel"
    assert bundle.walk("net/second") == f"variables/1{END}"
    assert bundle.walk("net/back/itself/net/first") == f"variables/0{END}"
    assert bundle.walk("first", start=2) == f"variables/0{END}"
    assert bundle.walk("net") is None
    assert bundle.walk("net/third") is None
    assert bundle.starts("second") == [2]
    assert bundle.starts("net/first") == [0]
    assert bundle.starts("nothing") == []


def test_without_a_graph_the_program_names_the_tensors(tmp_path: Path) -> None:
    odd = f"net/a.Sb..c{END}"  # the table's way to write the name "a/b.c"
    by_name = "resnet/kernel"
    tensors = {odd: np.ones(2, np.float32), by_name: np.zeros(2, np.float32)}
    folder = writer.write(tmp_path / "model", tensors)
    assert read(folder).names == {}
    nodes: list[tuple[dict[str, int], str]] = [({"net": 1, "k": 3}, ""), ({"a/b.c": 2}, ""), ({}, "dense/bias")]
    (folder / "saved_model.pb").write_bytes(writer.program([*nodes, ({}, by_name)]))
    bundle = read(folder)
    assert bundle.walk("net/a/b.c") is None  # a name may hold the separator: walk by nodes
    assert bundle.graph[2].key == odd
    assert bundle.walk("k") == by_name
    assert bundle.names == {odd: "dense/bias", by_name: by_name}


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    shard(folder).rename(tmp_path / "away")
    with pytest.raises(WeightsError, match=r"variables.data-00000-of-00001: no such file"):
        read(folder)
    with pytest.raises(WeightsError, match=r"variables.index: no such file; a SavedModel folder has one"):
        read(tmp_path / "nothing")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = writer.write(tmp_path / "model", TENSORS, GRAPH, shards=3)
    shard(folder, 1, 3).unlink()
    with pytest.raises(WeightsError, match=r"variables.data-00001-of-00003: no such file"):
        read(folder)


def test_a_truncated_data_file_says_what_it_lacks(folder: Path) -> None:
    whole = shard(folder).read_bytes()
    shard(folder).write_bytes(whole[:100])
    with pytest.raises(WeightsError, match=r"data-00000-of-00001: .* takes bytes \d+ to \d+, the file has 100"):
        read(folder)
    shard(folder).write_bytes(b"")
    with pytest.raises(WeightsError, match="the file has 0"):
        read(folder)


def test_a_flipped_bit_in_a_tensor_is_found(folder: Path) -> None:
    raw = bytearray(shard(folder).read_bytes())
    raw[40] ^= 1
    shard(folder).write_bytes(raw)
    with pytest.raises(WeightsError, match=r"variables/\d+/.* has checksum [0-9a-f]{8}, the index says [0-9a-f]{8}"):
        read(folder)


def test_a_flipped_bit_in_the_graph_is_found(folder: Path) -> None:
    raw = bytearray(shard(folder).read_bytes())
    raw[-5] ^= 1
    shard(folder).write_bytes(raw)
    with pytest.raises(WeightsError, match="_CHECKPOINTABLE_OBJECT_GRAPH has checksum"):
        read(folder)


def test_a_flipped_bit_anywhere_in_the_index_is_found_or_harmless(folder: Path) -> None:
    whole = index(folder).read_bytes()
    for at in range(0, len(whole), 2):
        raw = bytearray(whole)
        raw[at] ^= 0x10
        index(folder).write_bytes(raw)
        try:
            found = read(folder)
        except WeightsError as error:
            message = str(error)
            assert "variables.index: " in message
        else:  # the padding of the footer and the empty meta index say nothing
            assert set(found.tensors) == set(TENSORS)


def test_an_index_cut_anywhere_is_an_error(folder: Path) -> None:
    whole = index(folder).read_bytes()
    for size in range(0, len(whole), 11):
        index(folder).write_bytes(whole[:size])
        with pytest.raises(WeightsError, match=r"variables\.index: "):
            read(folder)


def test_a_compressed_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="compressed; TensorFlow writes these tables uncompressed"):
        read(writer.write(tmp_path / "model", TENSORS, compressed=True))


def test_a_partitioned_variable_is_named(tmp_path: Path) -> None:
    sliced = writer.entry(1, (2,), 0, 0, b"", 0) + writer.field(7, b"")
    with pytest.raises(WeightsError, match="part is stored in slices"):
        read(writer.write(tmp_path / "model", {}, extra={"part": sliced}))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (writer.entry(1, (3,), 0, 16, bytes(8), 0), r"shape \(3,\) and type float32 has 8 bytes"),
        (writer.entry(1, (1 << 62, 4), 0, 0, b"", 0), "has the shape"),
        (writer.entry(1, (1,) * 40, 0, 0, bytes(4), 0), "has the shape"),
        (writer.entry(1, (1,), 7, 0, bytes(4), 0), "lies in data file 7 of 1"),
        (writer.entry(20, (1,), 0, 16, bytes(4), 0), "data type 20; numbers were expected"),
        (writer.entry(1, (1,), 0, (1 << 63) - 1, bytes(4), 0), "the file has"),
        (b"\xff\xff\xff", "does not end"),
        (writer.field(1, "text"), "is not a number"),
    ],
)
def test_an_impossible_entry_is_refused(tmp_path: Path, entry: bytes, said: str) -> None:
    folder = writer.write(tmp_path / "model", {"b": np.ones(4, np.float32)}, extra={"a": entry})
    shard(folder).write_bytes(shard(folder).read_bytes() + bytes(8))
    with pytest.raises(WeightsError, match=said):
        read(folder)


def bomb(folder: Path, entries: list[tuple[bytes, bytes]], **options: int) -> Path:
    """A SavedModel whose table has these entries."""
    (folder / "variables").mkdir(parents=True)
    index(folder).write_bytes(writer.table([(b"", writer.field(1, 1)), *entries], **options))
    shard(folder).write_bytes(bytes(1000))
    return folder


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    entry = writer.entry(1, (250,), 0, 0, bytes(1000), writer.masked(bytes(1000)))
    folder = bomb(tmp_path, [(f"{i:05}".encode(), entry) for i in range(1000)])
    with pytest.raises(WeightsError, match="overlaps another tensor"):
        read(folder)


def test_keys_far_longer_than_their_table_are_refused(tmp_path: Path) -> None:
    entry = writer.entry(1, (0,), 0, 0, b"", writer.masked(b""))
    keys = [b"x" * 2000 + f"{i:05}".encode() for i in range(500)]
    folder = bomb(tmp_path, [(key, entry) for key in keys], per_block=5000, restart_every=5000)
    with pytest.raises(WeightsError, match=r"\d+ bytes whose keys have more than"):
        read(folder)


def test_a_block_named_many_times_is_refused(tmp_path: Path) -> None:
    folder = bomb(tmp_path, [], repeated=3000)
    with pytest.raises(WeightsError, match="overlaps the one before it"):
        read(folder)


def test_keys_out_of_order_or_twice_are_refused(tmp_path: Path) -> None:
    entry = writer.entry(1, (0,), 0, 0, b"", writer.masked(b""))
    for number, keys in enumerate(([b"b", b"a"], [b"a", b"a"])):
        with pytest.raises(WeightsError, match="not in order"):
            read(bomb(tmp_path / str(number), [(key, entry) for key in keys]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graph=st.binary(max_size=60), program=st.binary(max_size=60), mutate=st.integers(0, len(GRAPH) - 1))
def test_any_graph_gives_a_bundle_or_a_weights_error(
    tmp_path_factory: pytest.TempPathFactory, graph: bytes, program: bytes, mutate: int
) -> None:
    folder = writer.write(tmp_path_factory.mktemp("any") / "model", TENSORS, GRAPH[:mutate] + graph + GRAPH[mutate:])
    with suppress(WeightsError):
        read(folder).starts("net/first")
    other = writer.write(tmp_path_factory.mktemp("any") / "model", TENSORS)
    (other / "saved_model.pb").write_bytes(program)
    with suppress(WeightsError):
        read(other).starts("net/first")


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["hub", "raw", "wrapped", "named"])
def test_what_tensorflow_wrote_comes_back(
    checkpoint: Callable[[str], Path], conformance: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.syspath_prepend(str(conformance))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    from make_checkpoint import make_tensor

    case = f"bit-savedmodel-{kind}"
    spec = json.loads((conformance / "specs" / f"{case}.json").read_text())
    bundle = read(checkpoint(case) / spec["file"])
    assert set(bundle.tensors) == {one["checkpoint_key"] for one in spec["tensors"]}
    for one in spec["tensors"]:
        np.testing.assert_array_equal(
            bundle.tensors[one["checkpoint_key"]], make_tensor(spec, one, str(conformance / "specs"))
        )
        full = one["name"].partition("|")[2].removesuffix(":0") or one["name"]
        assert bundle.names[one["checkpoint_key"]] == full
    root = bundle.starts("_root/layer_with_weights-0/kernel")
    assert len(root) == (0 if kind == "named" else 1)
    for start in root:
        last = bundle.walk("_blocks/3/layer_with_weights-2/_unit_c/layer_with_weights-1/kernel", start)
        assert last is not None
        assert bundle.tensors[last].shape == (1, 1, 512, 2048)
