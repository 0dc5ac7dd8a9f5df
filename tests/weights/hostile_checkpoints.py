"""A hundred hostile checkpoints: each tries to run code, to crash the reader, to make it hang or to fill memory.

`write` puts them into a folder. Their pickles are made opcode by opcode, since no pickler writes such.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import signal
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

MARKER = "code-was-run"  # the file that a checkpoint's code would leave in the working folder
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

# ---------------------------------------------------------------- pickles, opcode by opcode


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def group(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def numbers(*values: int) -> bytes:
    return group(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def state(*items: tuple[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items) + b"u"


def storage(
    key: str = "0", count: int = 6, kind: str = "FloatStorage", device: str = "cpu", old: bool = False
) -> bytes:
    last = b"N" if old else b""
    return group(text("storage"), name("torch", kind), text(key), text(device), number(count), last) + b"Q"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
HOOKS = name("collections", "OrderedDict") + b")R"


def tensor(
    shape: tuple[int, ...] = (6,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    *,
    of: bytes | None = None,
    more: tuple[bytes, ...] = (),
) -> bytes:
    return call(REBUILD, of or storage(), number(offset), numbers(*shape), numbers(*strides), b"\x89", HOOKS, *more)


def state_dict(**tensors: bytes) -> bytes:
    return b"\x80\x02" + state(*tensors.items()) + b"."


# ---------------------------------------------------------------- containers

FLOATS = struct.pack("<6f", *range(6))


def zipped(pickled: bytes, *, compress: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """The container of torch 1.6 and later around a pickle; records: their bytes by key."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for key, raw in ({"0": FLOATS} | records).items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def legacy(pickled: bytes, keys: object = None, counts: tuple[int, ...] = (6,), data: bytes = FLOATS) -> bytes:
    """The older container around a pickle."""
    head = b"".join(pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, {"little_endian": True}))
    tail = pickle.dumps(["0"] if keys is None else keys, 2) + b"".join(struct.pack("<q", n) + data for n in counts)
    return head + pickled + tail


def tar() -> bytes:
    """The container before torch 0.1.10, whose pickles name `os.system`."""
    pickled = b"\x80\x02" + RUN + b"."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member, raw in (("storages", pickled), ("tensors", pickled), ("pickle", pickled)):
            entry = tarfile.TarInfo(member)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return out.getvalue()


# ---------------------------------------------------------------- code

COMMAND = f"touch {MARKER}"
SYSTEM = name("posix", "system")
RUN = call(SYSTEM, text(COMMAND))
NAMESPACE = name("argparse", "Namespace")


def instance(module: str, attribute: str) -> bytes:
    """The opcode that names a class and calls it with what stands above the mark."""
    return b"(" + text(COMMAND) + f"i{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(raw)]) + raw for raw in (module.encode(), attribute.encode())) + b"\x93"


def pickled(*body: bytes) -> bytes:
    return b"\x80\x02" + b"".join(body) + b"."


CODE: dict[str, bytes] = {
    "os.system": pickled(RUN),
    "os.system in a state_dict": state_dict(w=RUN),
    "os.system dropped again": pickled(RUN, b"0", tensor()),
    "os.system by INST": pickled(instance("posix", "system")),
    "os.system by OBJ": pickled(b"(", SYSTEM, text(COMMAND), b"o"),
    "os.system by NEWOBJ": pickled(SYSTEM, group(text(COMMAND)), b"\x81"),
    "os.system by STACK_GLOBAL": b"\x80\x04" + stack_name("posix", "system") + group(text(COMMAND)) + b"R.",
    "os.system through the memo": pickled(SYSTEM, b"q\x000", b"h\x00", group(text(COMMAND)), b"R"),
    "eval": pickled(call(name("builtins", "eval"), text(f"__import__('os').system('{COMMAND}')"))),
    "exec of python 2": pickled(call(name("__builtin__", "exec"), text(f"import os; os.system('{COMMAND}')"))),
    "subprocess.Popen": pickled(call(name("subprocess", "Popen"), text(COMMAND), b"N" * 7, b"\x88")),
    "getattr chain": pickled(
        call(
            call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system")),
            text(COMMAND),
        )
    ),
    "dotted name": pickled(call(name("torch", "serialization.os.system"), text(COMMAND))),
    "dotted name in an allowed module": pickled(call(name("collections", "_sys.modules"), text(COMMAND))),
    "operator.attrgetter": pickled(call(call(name("operator", "attrgetter"), text("system")), name("os", "path"))),
    "functools.partial": pickled(call(call(name("functools", "partial"), SYSTEM, text(COMMAND)))),
    "torch.load of another file": pickled(call(name("torch", "load"), text("other.pt"), b"N", b"N", b"\x89")),
    "numpy.load with pickles": pickled(call(name("numpy", "load"), text("other.npy"), b"N", b"\x88")),
    "torch.hub": pickled(call(name("torch.hub", "load"), text("."), text("evil"))),
    "torch.jit": pickled(call(name("torch.jit", "_script"), text(COMMAND))),
    "runpy": pickled(call(name("runpy", "_run_code"), text(COMMAND), b"}")),
    "extension registry": pickled(b"\x82\x01", group(text(COMMAND)), b"R"),
    "persistent id of a module": pickled(group(text("module"), SYSTEM, text("a.py"), text("x")), b"Q"),
    "persistent id as a call": pickled(group(text("storage"), SYSTEM, text(COMMAND), text("cpu"), number(6)), b"Q"),
    "storage type that is a namespace": pickled(
        group(text("storage"), NAMESPACE, text("0"), text("cpu"), number(6)) + b"Q"
    ),
    "setstate of a namespace": pickled(
        NAMESPACE, b")R", state(("__setstate__", SYSTEM)), b"b", group(text(COMMAND)), b"b"
    ),
    "setstate that calls torch": pickled(
        NAMESPACE, b")\x81", state(("__setstate__", name("torch", "Size"))), b"b", numbers(1 << 40), b"b"
    ),
    "class of a namespace": pickled(NAMESPACE, b")\x81", state(("__class__", SYSTEM)), b"b"),
    "state of a class": pickled(NAMESPACE, state(("__init__", SYSTEM)), b"b"),
    "state of a function": pickled(REBUILD, state(("__code__", text(COMMAND))), b"b"),
    "slots of a namespace": pickled(NAMESPACE, b")\x81", group(b"N", state(("__class__", REBUILD))), b"b"),
    "attributes of a tensor": state_dict(
        w=call(
            name("torch._utils", "_rebuild_parameter_with_state"),
            tensor(),
            b"\x89",
            HOOKS,
            state(("detach", NAMESPACE), ("numel", NAMESPACE), ("shape", numbers(9))),
        )
    ),
    "data of a tensor": state_dict(
        w=call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            REBUILD,
            name("torch", "Tensor"),
            group(storage(), number(0), numbers(6), numbers(1), b"\x89", HOOKS),
            state(("data", tensor((2,))), ("__class__", NAMESPACE)),
        )
    ),
    "subclass by its rebuild function": state_dict(
        w=call(
            name("torch._utils", "_rebuild_wrapper_subclass"),
            name("torch.nn.parameter", "Parameter"),
            name("torch", "float32"),
            numbers(1 << 20),
            numbers(1),
            number(0),
            call(name("torch.serialization", "_get_layout"), text("torch.strided")),
            text("cpu"),
            b"\x89",
        )
    ),
}

# ---------------------------------------------------------------- memory that is not the tensor's

TENSORS: dict[str, bytes] = {
    "beyond the storage": state_dict(w=tensor((1 << 20,))),
    "far beyond the storage": state_dict(w=tensor((2, 2), (1 << 40, 1))),
    "offset beyond the storage": state_dict(w=tensor((1,), offset=1 << 30)),
    "negative offset": state_dict(w=tensor((1,), offset=-4096)),
    "negative stride": state_dict(w=tensor((6,), (-1,), 5)),
    "negative size": state_dict(w=tensor((-6,))),
    "sizes whose product overflows": state_dict(w=tensor((1 << 32, 1 << 32), (0, 0))),
    "strides whose product overflows": state_dict(w=tensor((3, 3), (1 << 62, 1 << 62))),
    "offset that overflows": state_dict(w=tensor((2,), offset=(1 << 62) - 1)),
    "elements repeated 2^40 times": state_dict(w=tensor((1 << 20, 1 << 20), (0, 0))),
    "more axes than fit": state_dict(w=tensor((1,) * 5000, (1,) * 5000)),
    "storage larger than its record": state_dict(w=tensor((1 << 24,), of=storage(count=1 << 24))),
    "storage of 2^62 elements": state_dict(w=tensor(of=storage(count=1 << 62))),
    "storage of -1 elements": state_dict(w=tensor(of=storage(count=-1))),
    "storage of two types": state_dict(a=tensor(), b=tensor((6,), of=storage(kind="DoubleStorage"))),
    "storage without a type": state_dict(
        w=call(
            name("torch._utils", "_rebuild_tensor_v3"),
            storage(kind="UntypedStorage", count=24),
            number(0),
            numbers(24),
            numbers(1),
            b"\x89",
            HOOKS,
            name("torch", "complex128"),
        )
    ),
    "flag bits of a type that has none": state_dict(w=tensor(more=(state(("conj", b"\x88")),))),
    "sign bit by metadata": state_dict(w=tensor(more=(state(("neg", b"\x88")),))),
    "quantised": state_dict(
        w=call(
            name("torch._utils", "_rebuild_qtensor"),
            storage(kind="QInt8Storage", count=24),
            number(0),
            numbers(1 << 30),
            numbers(1),
            group(name("torch", "per_tensor_affine"), b"G?\xf0" + bytes(6), number(0)),
            b"\x89",
            HOOKS,
        )
    ),
    "sparse beyond its size": state_dict(
        w=call(
            name("torch._utils", "_rebuild_sparse_tensor"),
            call(name("torch.serialization", "_get_layout"), text("torch.sparse_coo")),
            group(
                tensor((1, 3), (3, 1), of=storage(kind="LongStorage", count=3, key="1")),
                tensor((3,)),
                numbers(2),
                b"\x89",
            ),
        )
    ),
    "nested beyond its buffer": state_dict(
        w=call(
            name("torch._utils", "_rebuild_nested_tensor"),
            tensor(),
            *[tensor((1, 1), (1, 1), of=storage(kind="LongStorage", count=3, key="1"))] * 2,
            tensor((1,), of=storage(kind="LongStorage", count=3, key="1")),
        )
    ),
    "on no device": state_dict(
        w=call(
            name("torch._utils", "_rebuild_meta_tensor_no_storage"),
            name("torch", "float32"),
            numbers(1 << 20),
            numbers(1),
            b"\x89",
        )
    ),
    "tensor made from nothing": pickled(name("torch", "Tensor"), numbers(1 << 34), b"\x81"),
}
LONGS = struct.pack("<3q", 1 << 40, -(1 << 40), 5)

# ---------------------------------------------------------------- crashes, hangs, floods


def nested_key(depth: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple; hashing it goes down in C."""
    return pickled(b"})", b"\x85" * depth, b"Ns")


def multiplied_key(levels: int) -> bytes:
    """A key of a few bytes that holds itself 255 times on each level."""
    body = b"}q\x01K\x01q\x00" + (b"(" + b"h\x00" * 255 + b"tq\x00") * levels
    return pickled(body, b"h\x01h\x00Ns")


def growing(levels: int) -> bytes:
    """A list that doubles: a few bytes a level, and as many values as 2 to that power."""
    return pickled(b"]q\x00N", b"h\x00(h\x00h\x00e" * levels)


def repeated_state(times: int, size: int) -> bytes:
    """One state of `size` attributes put into `times` namespaces."""
    attributes = state(*((f"a{i}", b"N") for i in range(size)))
    return pickled(attributes, b"q\x00](", (NAMESPACE + b")\x81h\x00b") * times, b"e")


FLOODS: dict[str, Callable[[], bytes]] = {
    "nested key": lambda: nested_key(1_000_000),
    "multiplied key": lambda: multiplied_key(30),
    "nested value": lambda: pickled(b"N" + b"\x85" * 1_000_000),
    "nested lists": lambda: pickled(b"]" * 300_000 + b"a" * 299_999),
    "doubling list": lambda: growing(1_000),
    "one state for many": lambda: repeated_state(20_000, 5_000),
    "two million lines": lambda: b"\x80\x02" + b"I1\n0" * 2_400_000 + b"N.",
    "nine million values": lambda: pickled(b"N" * 9_000_000),
    "bytearray of 2^36": lambda: pickled(call(name("builtins", "bytearray"), number(1 << 36))),
    "string of 2^31": lambda: pickled(b"X\xff\xff\xff\x7fab"),
    "number of 2^31 bytes": lambda: pickled(b"\x8b\xff\xff\xff\x7fab"),
    "memo at 2^32": lambda: pickled(b"Nr\xff\xff\xff\xff"),
    "endless text codec": lambda: pickled(call(name("_codecs", "encode"), text("a" * 200_000), text("idna"))),
    "set of colliding numbers": lambda: pickled(
        call(name("builtins", "set"), b"](" + b"".join(number(i * ((1 << 61) - 1)) for i in range(40_000)) + b"e")
    ),
    "a mark never closed": lambda: pickled(b"(" * 1_000_000, b"N"),
}

# ---------------------------------------------------------------- zip archives


def overlapping(times: int = 200, size: int = 1 << 20) -> bytes:
    """Many entries of the directory for the same bytes."""
    tensors = {f"t{i}": tensor((size // 4,), of=storage(key=str(i), count=size // 4)) for i in range(times)}
    raw = bytearray(zipped(state_dict(**tensors), **{str(i): b"" for i in range(1, times)}, **{"0": bytes(size)}))
    return _redirected(raw, "archive/data/0", [f"archive/data/{i}" for i in range(1, times)])


def _redirected(raw: bytearray, source: str, others: list[str]) -> bytes:
    """The archive with the directory's entries of `others` made to point at `source`."""
    with zipfile.ZipFile(io.BytesIO(bytes(raw))) as archive:
        found = archive.getinfo(source)
        at = archive.start_dir
    while raw[at : at + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<3H", raw, at + 28)
        if raw[at + 46 : at + 46 + lengths[0]].decode() in others:
            struct.pack_into("<3I", raw, at + 16, found.CRC, found.compress_size, found.file_size)
            struct.pack_into("<I", raw, at + 42, found.header_offset)
        at += 46 + sum(lengths)
    return bytes(raw)


def twice(pickle_too: bool) -> bytes:
    """Two records of one name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for values, raw in ((state_dict(w=tensor()), FLOATS), (pickled(RUN), bytes(24))):
            archive.writestr("archive/data.pkl", values if pickle_too else state_dict(w=tensor()))
            archive.writestr("archive/data/0", raw)
    return out.getvalue()


def two_directories() -> bytes:
    """A whole archive in the comment of another: which of the two directories is read depends on the reader."""
    inner = zipped(pickled(RUN))
    raw = bytearray(zipped(state_dict(w=tensor())))
    struct.pack_into("<H", raw, len(raw) - 2, len(inner))
    return bytes(raw) + inner


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "overlapping records": overlapping,
    "a name twice": lambda: twice(False),
    "a name twice, one with code": lambda: twice(True),
    "two directories": two_directories,
    "a deflated bomb": lambda: zipped(
        state_dict(w=tensor((1 << 27,), of=storage(count=1 << 27))),
        compress=zipfile.ZIP_DEFLATED,
        **{"0": bytes(1 << 29)},
    ),
    "a TorchScript program": lambda: zipped(pickled(RUN), **{"../constants.pkl": pickled(RUN), "../code/a.py": b"x"}),
    "a tar of the first releases": tar,
    "a plain pickle": lambda: pickled(RUN),
    "a plain pickle of protocol 0": lambda: f"cposix\nsystem\n(S'{COMMAND}'\ntR.".encode(),
    "legacy: keys that are not there": lambda: legacy(state_dict(w=tensor(of=storage(old=True))), keys=["0", "9"]),
    "legacy: keys that run code": lambda: legacy(state_dict(w=tensor(of=storage(old=True))), keys=_Code()),
    "legacy: storage of 2^40": lambda: legacy(state_dict(w=tensor(of=storage(count=1 << 40, old=True)))),
    "legacy: other count": lambda: legacy(state_dict(w=tensor(of=storage(old=True))), counts=(1 << 40,)),
    "legacy: beyond the storage": lambda: legacy(state_dict(w=tensor((1 << 20,), of=storage(old=True)))),
    "legacy: view beyond its storage": lambda: legacy(
        state_dict(
            w=tensor(
                (6,),
                of=group(
                    text("storage"),
                    name("torch", "FloatStorage"),
                    text("0"),
                    text("cpu"),
                    number(6),
                    group(text("v"), number(4), number(6)),
                )
                + b"Q",
            )
        )
    ),
    "legacy: cut short": lambda: legacy(state_dict(w=tensor(of=storage(old=True))), data=FLOATS[:7]),
}


class _Code:
    def __reduce__(self) -> tuple:
        return os.system, (COMMAND,)


HARMLESS = {"nested value", "nested lists", "doubling list", "memo at 2^32", "a mark never closed"}  # plain values


def write(folder: Path) -> dict[str, Path]:
    """Every checkpoint as a file in `folder`, by name."""
    contents: dict[str, Callable[[], bytes]] = {
        **{title: partial(zipped, raw) for title, raw in CODE.items()},
        **{title: partial(zipped, raw, **{"1": LONGS}) for title, raw in TENSORS.items()},
        **{title: lambda make=make: zipped(make()) for title, make in FLOODS.items()},  # type: ignore[misc]
        "legacy: nested key": lambda: legacy(nested_key(1_000_000), keys=[]),
        "legacy: two million lines": lambda: legacy(FLOODS["two million lines"](), keys=[]),
        **{f"legacy: {title}": partial(legacy, CODE[title], keys=[]) for title in list(CODE)[:8]},
        **ARCHIVES,
    }
    paths = {}
    for place, (title, make) in enumerate(contents.items()):
        paths[title] = folder / f"{place:03}.pt"
        paths[title].write_bytes(make())
    return paths


def outcomes(folder: Path, read: Callable[[Path], object], room: int, seconds: int) -> dict[str, str]:
    """What `read` makes of every checkpoint, each in a fork of this process: "refused", "loaded", or how it died.

    room: memory it may take more than this process [bytes]
    """
    paths = write(folder)
    work = folder / "work"
    work.mkdir()
    os.chdir(work)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    found = {}
    for title, path in paths.items():
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            try:
                os._exit(_outcome(read, path))
            finally:
                os._exit(9)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found[title] = {0: "loaded", 1: "refused"}.get(code, f"died of signal {-code}" if code < 0 else "raised")
        if (work / MARKER).exists():
            found[title] = "ran code"
            (work / MARKER).unlink()
    return found


def _outcome(read: Callable[[Path], object], path: Path) -> int:
    from image_encoders.errors import WeightsError

    try:
        value = read(path)
    except WeightsError:
        return 1
    for tensor in value.values() if isinstance(value, dict) else ():
        tensor.double().sum()
    return 0


if __name__ == "__main__":
    import json
    import sys

    import torch  # noqa: F401  before the forks

    from image_encoders.weights import torch_file

    print(json.dumps(outcomes(Path(sys.argv[1]), torch_file.read, 1 << 30, 60)))
