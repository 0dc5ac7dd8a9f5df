"""torch_file: everything torch.save writes comes back equal, and nothing in a file is ever run."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import hostile_checkpoints
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_encoders.errors import WeightsError
from image_encoders.weights import torch_file
from image_encoders.weights.pickle_file import read as read_pickle
from image_encoders.weights.torch_file import read

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, value: object, zipped: bool = True, **options: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def assert_equal(found: object, wanted: object) -> None:
    if isinstance(wanted, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert (found.dtype, found.shape, found.device.type) == (wanted.dtype, wanted.shape, "cpu")
        assert torch.equal(found, wanted.detach())
    elif isinstance(wanted, dict):
        assert isinstance(found, dict)
        assert list(found) == list(wanted)
        for key in wanted:
            assert_equal(found[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)  # type: ignore[arg-type]
        for one, other in zip(found, wanted):  # type: ignore[call-overload]
            assert_equal(one, other)
    elif isinstance(wanted, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    else:
        assert found == wanted


@pytest.fixture
def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))


@BOTH
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_state_dict_comes_back_equal(tmp_path: Path, net: torch.nn.Module, zipped: bool, protocol: int) -> None:
    path = save(tmp_path / "a.pt", net.state_dict(), zipped, pickle_protocol=protocol)
    assert_equal(read(path), net.state_dict())


@BOTH
@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int8),
        *(torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128, torch.uint16, torch.uint32),
    ],
    ids=str,
)
def test_every_type_comes_back_equal(tmp_path: Path, zipped: bool, dtype: torch.dtype) -> None:
    value = {"x": torch.arange(11).to(dtype), "y": torch.arange(24).reshape(2, 3, 4).to(dtype)}
    assert_equal(read(save(tmp_path / "a.pt", value, zipped)), value)


@BOTH
def test_views_parameters_and_empty_tensors_come_back_equal(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(60, dtype=torch.float32)
    value = {
        "transposed": base.reshape(3, 20).t(),
        "strided": base[5::7],
        "expanded": torch.ones(1).expand(4, 5),
        "empty": torch.empty(0),
        "empty axes": torch.empty(2, 0, 3, dtype=torch.int64),
        "scalar": torch.tensor(4.5),
        "parameter": torch.nn.Parameter(base[:4].clone()),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    assert_equal(read(save(tmp_path / "a.pt", value, zipped)), value)


@BOTH
def test_tensors_of_one_storage_still_share_it(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(10.0)
    found = read(save(tmp_path / "a.pt", [base, base[2:5]], zipped))
    found[0][2] = 99
    assert found[1][0] == 99


@BOTH
def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "a.pt", torch.zeros(1000), zipped)
    before = path.read_bytes()
    read(path).fill_(7)
    assert path.read_bytes() == before


@BOTH
def test_plain_values_around_the_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    value = {
        "epoch": 30,
        "best": 412.5,
        "big": 1 << 70,
        "flags": {"a", "b"},
        "frozen": frozenset([1, 2]),
        "raw": b"\x00\xff",
        "array": bytearray(b"xyz"),
        "none": None,
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda:1"),
        "numpy": np.float64(2.5),
        "matrix": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "words": np.array(["ab", "c"]),
        "complex": [1, (2, [3, {"x": True}])],
    }
    assert_equal(read(save(tmp_path / "a.pt", value, zipped)), value)


@BOTH
def test_options_come_back_as_a_namespace(tmp_path: Path, zipped: bool) -> None:
    found = read(save(tmp_path / "a.pt", {"opt": argparse.Namespace(use_abs=True, dim=1024)}, zipped))
    assert isinstance(found["opt"], SimpleNamespace)
    assert vars(found["opt"]) == {"use_abs": True, "dim": 1024}


def test_reading_under_another_default_device_still_gives_values(tmp_path: Path, net: torch.nn.Module) -> None:
    path = save(tmp_path / "a.pt", net.state_dict())
    with torch.device("meta"):
        assert_equal(read(path), net.state_dict())


def test_records_compressed_by_another_tool_are_read(tmp_path: Path, net: torch.nn.Module) -> None:
    path = save(tmp_path / "a.pt", net.state_dict())
    packed = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert_equal(read(packed), net.state_dict())


def test_files_written_without_checksums_are_read(tmp_path: Path, net: torch.nn.Module) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.pt", net.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal(read(path), net.state_dict())


@BOTH
def test_peak_memory_is_that_of_the_weights(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "a.pt", {str(i): torch.rand(1 << 18) for i in range(8)}, zipped)
    import tracemalloc

    tracemalloc.start()
    state = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(t.numel() * 4 for t in state.values()) == 8 << 20
    assert peak < 1.3 * (8 << 20)


# ---------------------------------------------------------------- old files


class Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Protocol 2 as Python 2 wrote it: byte strings."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str(self, text: str) -> None:
        raw = text.encode("latin-1")
        self.write(pickle.SHORT_BINSTRING + bytes([len(raw)]) + raw)
        self.memoize(text)

    dispatch[str] = save_str


def legacy(pickled: bytes, storages: dict[str, np.ndarray]) -> bytes:
    """A legacy container around a pickle."""
    head = (torch_file.LEGACY_MAGIC, torch_file.LEGACY_PROTOCOL, {"little_endian": True})
    out = b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps(list(storages), 2)
    return out + b"".join(struct.pack("<q", a.size) + a.tobytes() for a in storages.values())


def tensor_pickle(shape: tuple, strides: tuple, offset: int = 0, count: int = 6, view: object = None) -> bytes:
    """A tensor over the storage "s" of `count` elements, as torch 0.3 pickled it."""

    def plain(value: object) -> bytes:  # without PROTO and STOP
        buffer = io.BytesIO()
        pickler = Python2(buffer, 2)
        pickler.fast = True
        pickler.save(value)
        return buffer.getvalue()

    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n(("
        + plain("storage")
        + b"ctorch.cuda\nFloatStorage\n"
        + b"".join(map(plain, ("s", "cuda:0", count, view)))
        + b"tQ"
        + b"".join(map(plain, (offset, shape, strides)))
        + b"tR."
    )


def test_a_gpu_tensor_of_python_2_comes_back_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(tensor_pickle((2, 3), (3, 1)), {"s": np.arange(6, dtype=np.float32)}))
    assert_equal(read(path), torch.arange(6.0).reshape(2, 3))


def test_a_view_of_a_storage_in_the_oldest_files_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    pickled = tensor_pickle((3,), (1,), offset=1, view=("v", 2, 4))
    path.write_bytes(legacy(pickled, {"s": np.arange(6, dtype=np.float32)}))
    assert_equal(read(path), torch.tensor([3.0, 4.0, 5.0]))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "view"),
    [
        ((2, 3), (4, 1), 0, None),
        ((7,), (1,), 0, None),
        ((1,), (1,), 6, None),
        ((6,), (1,), 1, None),
        ((2,), (1 << 61,), 0, None),
        ((1 << 40, 1 << 40), (0, 0), 0, None),
        ((3,), (-1,), 5, None),
        ((-1,), (1,), 0, None),
        ((6,), (1,), -1, None),
        ((2, 3), (1,), 0, None),
        ((1,) * 65, (1,) * 65, 0, None),
        ((1,), (1,), 0, ("v", 4, 3)),
        ((3,), (1,), 0, ("v", 0, 2)),
        ((1.5,), (1,), 0, None),
        ((True,), (1,), 0, None),
        (("3",), (1,), 0, None),
    ],
)
def test_a_tensor_that_reaches_outside_its_storage_is_refused(
    tmp_path: Path, shape: tuple, strides: tuple, offset: int, view: object
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(tensor_pickle(shape, strides, offset, view=view), {"s": np.arange(6, dtype=np.float32)}))
    with pytest.raises(WeightsError, match="a damaged torch checkpoint"):
        read(path)


@pytest.mark.parametrize("count", [0, 5, 7, 1 << 40, -1])
def test_a_storage_of_another_size_than_the_pickle_says_is_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(tensor_pickle((0,), (1,), count=count), {"s": np.arange(6, dtype=np.float32)}))
    with pytest.raises(WeightsError, match="damaged"):
        read(path)


def test_a_zip_record_of_another_size_than_the_pickle_says_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", torch.arange(6.0))
    short = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(short, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry)[: -4 if entry.filename.endswith("data/0") else None])
    with pytest.raises(WeightsError, match="data/0 has 20 bytes for 6 elements of float32"):
        read(short)


def test_big_endian_files_are_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", torch.arange(6.0))
    other = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, b"big" if entry.filename.endswith("byteorder") else old.read(entry))
    with pytest.raises(WeightsError, match="big-endian"):
        read(other)


@pytest.mark.parametrize(
    "case",
    [
        "custom-conv",
        "custom-features",
        "custom-inplace",
        *(
            pytest.param(case, marks=pytest.mark.golden)
            for case in ("audioclip", "vse-vgg19", "vse-vgg19-py2", "vse-resnet152", "vse-resnet152-order")
        ),
    ],
)
def test_checkpoints_of_every_age_equal_what_torch_itself_reads(
    checkpoint: Callable[[str], Path], conformance: Path, case: str
) -> None:
    spec = json.loads((conformance / "specs" / f"{case}.json").read_text())
    path = checkpoint(case) / spec["file"]
    with torch.serialization.safe_globals([argparse.Namespace]):
        wanted = torch.load(path, map_location="cpu", weights_only=True)
    found = read(path)
    if "opt" in wanted:
        assert vars(found.pop("opt")) == vars(wanted.pop("opt"))
    assert_equal(found, wanted)
    for one in spec.get("vocab_files", []):
        vocabulary = read_pickle(checkpoint(case) / one["file"], ["vocab.Vocabulary"])
        words = spec["vocabulary"]
        assert vocabulary["word2idx"] == {word: i for i, word in enumerate(words)}
        assert vocabulary["idx2word"] == dict(enumerate(words))
        assert vocabulary["idx"] == len(words)


# ---------------------------------------------------------------- hostile pickles


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def touch(path: str) -> None:
    Path(path).write_text("run")


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": [x]}, lambda x: OrderedDict(w=(x, torch.ones(2)))])
def test_code_in_a_checkpoint_is_refused_by_name_and_not_run(
    tmp_path: Path, zipped: bool, protocol: int, wrap: object
) -> None:
    trace = tmp_path / "trace"
    value = wrap(Calls(touch, str(trace)))  # type: ignore[operator]
    path = save(tmp_path / "a.pt", value, zipped, pickle_protocol=protocol)
    with pytest.raises(WeightsError, match=rf"a.pt: holds a pickled {__name__}.touch, refused.*state_dict"):
        read(path)
    assert not trace.exists()


@BOTH
def test_a_whole_pickled_net_is_refused_with_advice(tmp_path: Path, zipped: bool, net: torch.nn.Module) -> None:
    path = save(tmp_path / "a.pt", net, zipped)
    with pytest.raises(WeightsError, match=r"torch.nn.modules.container.Sequential.*torch.save\(model.state_dict\(\)"):
        read(path)


@pytest.mark.parametrize("call", ["os system", "builtins eval", "__builtin__ exec", "builtins getattr", "torch load"])
@pytest.mark.parametrize("form", ["GLOBAL REDUCE", "INST", "STACK_GLOBAL", "OBJ", "NEWOBJ"])
def test_every_way_of_calling_is_refused(tmp_path: Path, call: str, form: str) -> None:
    module, name = (part.encode() for part in call.split())

    def text(raw: bytes) -> bytes:
        return b"\x8c" + bytes([len(raw)]) + raw

    found = b"c" + module + b"\n" + name + b"\n"
    pickled = {
        "GLOBAL REDUCE": found + b"(Vx\ntR",
        "INST": b"(Vx\ni" + module + b"\n" + name + b"\n",
        "STACK_GLOBAL": text(module) + text(name) + b"\x93(Vx\ntR",
        "OBJ": b"(" + found + b"Vx\no",
        "NEWOBJ": found + b"(Vx\nt\x81",
    }[form]
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(b"\x80\x02" + pickled + b".", {}))
    with pytest.raises(WeightsError, match="refused because unpickling it would run code"):
        read(path)
    path.write_bytes(b"\x80\x02" + pickled + b".")
    with pytest.raises(WeightsError, match="refused because unpickling it would run code"):
        read_pickle(path, [])


DTYPE = b"cnumpy\ndtype\n(Vf4\nI00\nI01\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"


@pytest.mark.parametrize(
    "pickled",
    [
        b"ccollections\nOrderedDict\n(I5\ntR",
        b"ccollections\nOrderedDict\n((I5\nltR",
        b"ccollections\nOrderedDict\n(((]I5\ntltR",
        b"c__builtin__\nset\n(I5\ntR",
        b"c__builtin__\nset\n((]ltR",
        b"c__builtin__\nbytearray\n(I99999999999\ntR",
        b"c__builtin__\nbytes\n((I999\nltR",
        b"c__builtin__\nbytes\n(VX\nVrot13\ntR",
        b"c_codecs\nencode\n(I5\nVlatin1\ntR",
        b"c_codecs\nencode\n(VX\nVzlib\ntR",
        b"c__builtin__\nobject\n)R",
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nNNtR",
        b"ccopy_reg\n_reconstructor\n(NNNtR",
        b"cargparse\nNamespace\n)RVx\nb",
        b"cnumpy\ndtype\n(VO8\nI00\nI01\ntR",
        b"cnumpy\ndtype\n(Vf4,f4\nI00\nI01\ntR",
        b"cnumpy\ndtype\n(VS999999999\ntR",
        b"cnumpy\ndtype\n(I5\ntR",
        b"cnumpy\ndtype\n(V" + b"f4," * 9999 + b"\ntR",
        DTYPE + b"Nb",
        DTYPE + b"(I3\nV?\ntb",
        ARRAY + b"Nb",
        ARRAY + b"(I1\n(I4\nt" + DTYPE + b"(I3\nV<\ntbI00\nVabcd\ntb",
        ARRAY + b"(I1\n(I-4\nt" + DTYPE + b"(I3\nV<\ntbI00\nVabcd\ntb",
        ARRAY + b"(I1\n(I1\ntNI00\nVabcd\ntb",
        b"cnumpy.core.multiarray\nscalar\n(" + DTYPE + b"(I3\nV<\ntbI5\ntR",
        b"ctorch\nSize\n((VX\nttR",
        b"ctorch\ndevice\n(Vnowhere\ntR",
        b"ctorch\ndevice\n(I1\ntR",
        b"ctorch\nfloat32\n)R",
        b"ctorch\nFloatStorage\n)R",
        b"ctorch._utils\n_rebuild_parameter\n(I1\nI00\nNtR",
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n))tR",
        b"ctorch._utils\n_rebuild_tensor_v3\n(NtR",
        b"(Vmodule\nNNNtQ",
        b"(Vstorage\nNVs\nVcpu\nI1\ntQ",
        b"(Vstorage\nctorch\nfloat32\nVs\nVcpu\nI1\ntQ",
        b"(Vstorage\nctorch\nFloatStorage\n]Vcpu\nI1\ntQ",
    ],
)
def test_what_may_be_called_can_not_be_misused(tmp_path: Path, pickled: bytes) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(legacy(b"\x80\x02" + pickled + b".", {}))
    with pytest.raises(WeightsError, match=r"damaged torch checkpoint|refused because"):
        read(path)


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError, match="TorchScript program, refused"):
        read(path)


def test_a_zip_bomb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
        archive.writestr("a/data/0", bytes(100 << 20))
    with pytest.raises(WeightsError, match="would inflate to"):
        read(path)


@BOTH
@pytest.mark.parametrize("view", [lambda z: z.conj(), lambda z: z.conj().imag], ids=["conjugated", "negated"])
def test_values_that_torch_negates_on_use_are_refused(tmp_path: Path, zipped: bool, view: Callable) -> None:
    path = save(tmp_path / "a.pt", {"w": view(torch.tensor([1 + 2j, 3 - 4j]))}, zipped)
    with pytest.raises(WeightsError, match=r"a.pt: holds a tensor .*save tensor.resolve_conj\(\).resolve_neg\(\)"):
        read(path)


@BOTH
def test_tensors_that_repeat_the_file_over_and_over_are_refused(tmp_path: Path, zipped: bool) -> None:
    base = torch.ones(1)
    path = save(tmp_path / "a.pt", {str(i): base.expand(1 << 20) for i in range(30)}, zipped)
    with pytest.raises(WeightsError, match="repeat the file's bytes too often"):
        read(path)


def test_zip_records_that_overlap_or_share_a_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(hostile_checkpoints.overlapping(times=3))
    with pytest.raises(WeightsError, match=r"record archive/data/\d (overlaps|has another name)"):
        read(path)
    path.write_bytes(hostile_checkpoints.twice(False))
    with pytest.raises(WeightsError, match="two records are called archive/data"):
        read(path)


# ---------------------------------------------------------------- damaged files


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    value = {"w": torch.arange(12.0).reshape(3, 4).t(), "opt": argparse.Namespace(a=[1, "x"]), "n": np.float32(1)}
    return save(tmp_path / "small.pt", value, request.param)


def test_a_file_cut_anywhere_is_an_error(small: Path) -> None:
    whole = small.read_bytes()
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        small.write_bytes(whole[:size])
        with pytest.raises(WeightsError, match="small"):
            read(small)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_gives_a_value_or_a_weights_error(small: Path, data: st.DataObject) -> None:
    whole = bytearray(small.read_bytes())
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = small.with_name("damaged.pt")
    path.write_bytes(damaged)
    with suppress(WeightsError):
        found = read(path)
        if isinstance(found, dict) and isinstance(found.get("w"), torch.Tensor):
            found["w"].sum()  # every element can be reached


def test_a_flipped_bit_in_the_weights_of_a_zip_file_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", torch.arange(1000.0))
    raw = bytearray(path.read_bytes())
    at = raw.index(torch.arange(500.0, 504.0).numpy().tobytes())
    raw[at + 1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match="data/0 has a wrong checksum"):
        read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (struct.pack("<Q", 20) + b'{"a":{}}            ', "safetensors"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"sys_info".ljust(257, b"\0") + b"ustar", "a tar archive, perhaps of a torch before 0.1.10"),
        (b"hello, this is text", "begins with b'hello, t'"),
        (b"PK\x05\x06" + bytes(18), "without data.pkl"),
        (pickle.dumps({"a": 1}, 2), "a pickle that torch.save did not write"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(WeightsError, match=str(path)):
            read(path)


# ---------------------------------------------------------------- plain pickles


class Vocabulary:
    """Pickles as the class that VSE++ calls vocab.Vocabulary."""


Vocabulary.__module__ = "vocab"
WORDS = {"<pad>": 0, "<unk>": 1, "naïve": 2, "日本": 3}


@pytest.fixture
def vocabulary(monkeypatch: pytest.MonkeyPatch) -> Vocabulary:
    import sys
    import types

    module = types.ModuleType("vocab")
    module.Vocabulary = Vocabulary  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vocab", module)
    made = Vocabulary()
    made.word2idx, made.idx2word, made.idx = WORDS, {i: w for w, i in WORDS.items()}, len(WORDS)  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("protocol", range(6))
def test_a_vocabulary_of_any_protocol_comes_back_as_its_attributes(
    tmp_path: Path, vocabulary: Vocabulary, protocol: int
) -> None:
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(vocabulary, protocol))
    assert read_pickle(path, ["vocab.Vocabulary"]) == vars(vocabulary)


def test_a_vocabulary_of_python_2_comes_back_as_text(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "vocab.pkl"
    raw = b"\x80\x02cvocab\nVocabulary\n)\x81}U\x08word2idx}(U\x05<pad>K\x00U\x06na\xc3\xafveK\x02usb."
    path.write_bytes(raw)
    assert read_pickle(path, ["vocab.Vocabulary"]) == {"word2idx": {"<pad>": 0, "naïve": 2}}
    old_style = b"(ivocab\nVocabulary\n(dS'idx'\nI4\nsS'word2idx'\n(dS'a\\'b'\nI0\nssb."
    path.write_bytes(old_style)
    assert read_pickle(path, ["vocab.Vocabulary"]) == {"idx": 4, "word2idx": {"a'b": 0}}


def test_a_vocabulary_far_larger_than_any_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "vocab.pkl"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(WeightsError, match="a vocabulary of at most 67108864 is accepted"):
        read_pickle(path, ["vocab.Vocabulary"])


def test_a_class_that_was_not_asked_for_is_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "vocab.pkl"
    path.write_bytes(pickle.dumps(vocabulary, 2))
    with pytest.raises(WeightsError, match=r"vocab.Vocabulary, refused.*accepted here: plain values and no class"):
        read_pickle(path, [])


def test_a_vocabulary_cut_anywhere_is_an_error(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "vocab.pkl"
    for protocol in (0, 2, 4):
        whole = pickle.dumps(vocabulary, protocol)
        for size in range(0, len(whole), 3):
            path.write_bytes(whole[:size])
            with pytest.raises(WeightsError):
                read_pickle(path, ["vocab.Vocabulary"])
