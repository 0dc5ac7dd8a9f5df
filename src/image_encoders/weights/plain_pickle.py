"""Pickles read as data: no import, no call, no attribute of a live object.

`load` interprets the opcodes itself. A name in the pickle never becomes the thing it names; it is looked up in
a table that the caller gives, and whatever is not in the table is refused. So a hostile file can at worst be
refused: the standard library's Unpickler, even with its own `find_class`, still lets a pickle set attributes
of the objects it was given.

Source: the opcode list in the standard library's `pickletools`, protocols 0 to 5.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Iterable, Mapping, Sized
from types import SimpleNamespace
from typing import Any

from image_encoders.weights.files import Malformed

MAX_OPCODES = 2_000_000  # a state_dict takes about 40 per tensor, a vocabulary 10 per word
MAX_NUMBER = 1000  # longest integer [digits in text, bytes in binary]: the largest legitimate one has 20
MAX_LINE = 1 << 16  # longest text argument [bytes]; only protocol 0 has any
MAX_KEY = (1 << 61) - 1  # integers below it hash to themselves; larger ones can be made to collide by the million
COPIED_AT_LEAST = 64 << 20  # calls and states may be given this many bytes together,
COPIED_RATIO = 4  # or this many times the pickle's size: beyond that it hands one large value to many of them
ELEMENT = 64  # [bytes] about what a value takes in a container

_MARK = object()
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}


class Refused(Malformed):
    """The pickle asks for something that is not in the caller's table."""


class Name:
    """A class or function that a pickle names: what to put in its place, never the thing itself.

    call: what REDUCE and NEWOBJ give, from the arguments in the pickle; None: it can not be called
    """

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None) -> None:
        self.name = name
        self.call = call


class Record(SimpleNamespace):
    """An instance of a class in the caller's table: its attributes and nothing else."""


def record(*_: object) -> Record:
    """An empty instance; BUILD fills it. Arguments of the original constructor are dropped."""
    return Record()


class Unbuilt:
    """Stands for a value that is known only when BUILD brings its state.

    build: state -> the value
    """

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build = build
        self.values: list[Any] = []  # the value, once built: the memo may still hold its stand-in


def load(
    pickled: Any,
    start: int = 0,
    *,
    names: Mapping[str, Any],
    persistent: Callable[[object], Any] | None = None,
) -> tuple[Any, int]:
    """The object in the pickle that starts at `start`, and the position after its end.

    pickled: bytes-like
    names: "module.name" -> a `Name`, or the plain value that stands for it
    persistent: what a persistent id stands for; None: there may be none

    Raises Refused for a name that is not in `names`, Malformed for everything else that is wrong.
    """
    return _Machine(memoryview(pickled), start, names, persistent).run()


class _Machine:
    """The pickle machine's stack, memo and position."""

    def __init__(
        self,
        pickled: memoryview,
        start: int,
        names: Mapping[str, Any],
        persistent: Callable[[object], Any] | None,
    ) -> None:
        self.bytes, self.at = pickled, start
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.may_copy = max(COPIED_AT_LEAST, COPIED_RATIO * len(pickled))

    def run(self) -> tuple[Any, int]:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                value = self.pop()
                if value is _MARK:
                    raise Malformed("the pickle ends inside a group")
                return value, self.at
            step = _STEPS.get(opcode)
            if step is None:
                raise Malformed(f"opcode {opcode!r} at byte {self.at - 1} is not one that data needs")
            step(self)
        raise Malformed(f"more than {MAX_OPCODES:,} opcodes")

    # reading

    def take(self, count: int) -> bytes:
        taken = bytes(self.bytes[self.at : self.at + count])
        if count < 0 or len(taken) != count:
            raise Malformed(f"the pickle ends at byte {len(self.bytes)}, inside a value")
        self.at += count
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        room = 64
        while room <= MAX_LINE:
            line, end, _ = bytes(self.bytes[self.at : self.at + room]).partition(b"\n")
            if end:
                self.at += len(line) + 1
                return line
            room *= 4
        raise Malformed(f"the line at byte {self.at} does not end")

    # the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise Malformed("the pickle takes a value that is not there")
        return self.stack.pop()

    def value(self) -> Any:
        value = self.pop()
        if value is _MARK:
            raise Malformed("the pickle takes a mark as a value")
        return value

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise Malformed(f"the pickle adds to something that is not a {kind.__name__}")
        return self.stack[-1]

    def group(self) -> list[Any]:
        """The values above the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                values = self.stack[at + 1 :]
                del self.stack[at:]
                return values
        raise Malformed("the pickle closes a group that it did not open")

    # names, calls, state

    def find(self, module: object, name: object) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name in the pickle is not text")
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full not in self.names:
            raise Refused(f"{module[:80]}.{name[:80]}".encode("unicode_escape").decode())
        return self.names[full]

    def call(self, callee: Any, arguments: Any) -> Any:
        if type(callee) is not Name or callee.call is None:
            shown = callee.name if type(callee) is Name else type(callee).__name__
            raise Malformed(f"the pickle calls {shown}, which is not a function")
        if type(arguments) is not tuple:
            raise Malformed(f"the arguments of {callee.name} are not a tuple")
        self.copies(arguments)
        return callee.call(*arguments)

    def copies(self, values: Iterable[Any]) -> None:
        """Count what a call or a state copies, since the memo lets a short pickle hand over one large value often."""
        for value in values:
            if isinstance(value, Sized):
                self.may_copy -= len(value) * (1 if isinstance(value, (str, bytes, bytearray)) else ELEMENT)
        if self.may_copy < 0:
            raise Malformed("the pickle hands on far more than it holds")

    def build(self) -> None:
        state = self.value()
        if not self.stack:
            raise Malformed("the pickle gives state to nothing")
        target = self.stack[-1]
        self.copies([state, *(state if type(state) is tuple else ())])
        if type(target) is Unbuilt:
            target.values = [target.build(state)]
            self.stack[-1] = target.values[0]
        elif type(target) is Record:
            if type(state) is tuple and len(state) == 2 and state[1] is None:
                state = state[0]
            if type(state) is not dict or not all(type(key) is str for key in state):
                raise Malformed("an instance's state is not a dictionary of attributes")
            vars(target).update(state)
        elif not isinstance(target, dict):
            raise Malformed(f"the pickle gives state to a {type(target).__name__}")
        # an OrderedDict's own attributes (torch keeps version numbers there) are dropped


def key(value: Any) -> Any:
    """`value`, when it can safely be a dictionary key or a set's member.

    Tuples are refused: hashing recurses in C, where depth is a crash, and visits shared members again and again.
    """
    if value is None or isinstance(value, (str, bytes, float)) or (isinstance(value, int) and abs(value) < MAX_KEY):
        return value
    raise Malformed(f"a {type(value).__name__} is used as a key")


def pairs(values: list[Any]) -> dict[Any, Any]:
    """Keys and values that follow each other."""
    if len(values) % 2:
        raise Malformed("a key has no value")
    return {key(k): v for k, v in zip(values[::2], values[1::2])}


def text(raw: bytes) -> str | bytes:
    """A Python 2 string: text where it is UTF-8, else the bytes."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _unicode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _integer(raw: bytes) -> int | bool:
    if raw in (b"00", b"01"):  # how protocol 0 writes False and True
        return raw == b"01"
    raw = raw.removesuffix(b"L")
    if len(raw) > MAX_NUMBER:
        raise Malformed(f"a number of {len(raw)} digits")
    return int(raw)


def _binary_integer(m: _Machine, size: int) -> int:
    if not 0 <= size <= MAX_NUMBER:
        raise Malformed(f"a number of {size} bytes")
    return int.from_bytes(m.take(size), "little", signed=True)


def _quoted(raw: bytes) -> bytes:
    raw = raw.strip()
    if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
        raise Malformed("a string without quotes")
    return codecs.escape_decode(raw[1:-1])[0]  # type: ignore[attr-defined]  # what the pickle module itself uses


def _get(m: _Machine, index: int) -> None:
    if index not in m.memo:
        raise Malformed(f"the pickle refers to value {index}, which it never stored")
    value = m.memo[index]
    m.push(value.values[0] if type(value) is Unbuilt and value.values else value)


def _put(m: _Machine, index: int) -> None:
    if not m.stack or m.stack[-1] is _MARK:
        raise Malformed("the pickle stores a value that is not there")
    m.memo[index] = m.stack[-1]


def _duplicate(m: _Machine) -> None:
    value = m.value()
    m.stack += [value, value]


def _tuple(m: _Machine, size: int) -> None:
    m.push(tuple(m.value() for _ in range(size))[::-1])


def _append(m: _Machine, values: list[Any]) -> None:
    if m.stack and isinstance(m.stack[-1], list):
        m.stack[-1].extend(values)
    else:
        raise Malformed("the pickle appends to something that is not a list")


def _set_items(m: _Machine, items: dict[Any, Any]) -> None:
    if m.stack and isinstance(m.stack[-1], dict):
        m.stack[-1].update(items)
    else:
        raise Malformed("the pickle sets an item of something that is not a dictionary")


def _set_item(m: _Machine) -> None:
    value, name = m.value(), m.value()
    _set_items(m, {key(name): value})


def _persistent(m: _Machine) -> None:
    identity = m.value()
    if m.persistent is None:
        raise Malformed("the pickle refers to data outside itself")
    m.push(m.persistent(identity))


def _global(m: _Machine) -> Any:
    module, name = _unicode(m.line()), _unicode(m.line())
    return m.find(module, name)


def _stack_global(m: _Machine) -> None:
    name, module = m.value(), m.value()
    m.push(m.find(module, name))


def _instance(m: _Machine) -> None:
    callee = _global(m)
    m.push(m.call(callee, tuple(m.group())))


def _object(m: _Machine) -> None:
    values = m.group()
    if not values:
        raise Malformed("the pickle makes an instance of nothing")
    m.push(m.call(values[0], tuple(values[1:])))


def _reduce(m: _Machine) -> None:
    arguments, callee = m.value(), m.value()
    m.push(m.call(callee, arguments))


def _new_with_keywords(m: _Machine) -> None:
    if m.value():
        raise Malformed("the pickle makes an instance with keywords")
    _reduce(m)


def _bytes_of(m: _Machine, form: str) -> bytes:
    return m.take(m.number(form))


_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # the protocol's number; the opcodes say all
    b"\x95": lambda m: m.take(8),  # a frame's length
    b"(": lambda m: m.push(_MARK),
    b"0": lambda m: m.pop(),
    b"1": lambda m: m.group(),
    b"2": _duplicate,
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_integer(m.line())),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"L": lambda m: m.push(int(_integer(m.line()))),
    b"\x8a": lambda m: m.push(_binary_integer(m, m.number("<B"))),
    b"\x8b": lambda m: m.push(_binary_integer(m, m.number("<i"))),
    b"F": lambda m: m.push(float(m.line())),
    b"G": lambda m: m.push(m.number(">d")),
    b"S": lambda m: m.push(text(_quoted(m.line()))),
    b"T": lambda m: m.push(text(_bytes_of(m, "<i"))),
    b"U": lambda m: m.push(text(_bytes_of(m, "<B"))),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
    b"X": lambda m: m.push(_unicode(_bytes_of(m, "<I"))),
    b"\x8c": lambda m: m.push(_unicode(_bytes_of(m, "<B"))),
    b"\x8d": lambda m: m.push(_unicode(_bytes_of(m, "<Q"))),
    b"B": lambda m: m.push(_bytes_of(m, "<I")),
    b"C": lambda m: m.push(_bytes_of(m, "<B")),
    b"\x8e": lambda m: m.push(_bytes_of(m, "<Q")),
    b"\x96": lambda m: m.push(_bytes_of(m, "<Q")),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.group()),
    b"a": lambda m: _append(m, [m.value()]),
    b"e": lambda m: _append(m, m.group()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.group())),
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push(pairs(m.group())),
    b"s": _set_item,
    b"u": lambda m: _set_items(m, pairs(m.group())),
    b"\x8f": lambda m: m.push(set()),
    b"\x90": lambda m: (lambda members: m.top(set).update(members))([key(v) for v in m.group()]),
    b"\x91": lambda m: m.push(frozenset(key(v) for v in m.group())),
    b"g": lambda m: _get(m, int(_integer(m.line()))),
    b"h": lambda m: _get(m, m.number("<B")),
    b"j": lambda m: _get(m, m.number("<I")),
    b"p": lambda m: _put(m, int(_integer(m.line()))),
    b"q": lambda m: _put(m, m.number("<B")),
    b"r": lambda m: _put(m, m.number("<I")),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"Q": _persistent,
    b"c": lambda m: m.push(_global(m)),
    b"\x93": _stack_global,
    b"i": _instance,
    b"o": _object,
    b"\x81": _reduce,  # NEWOBJ takes a class and a tuple, as REDUCE takes a function and a tuple
    b"\x92": _new_with_keywords,
    b"R": _reduce,
    b"b": lambda m: m.build(),
}
