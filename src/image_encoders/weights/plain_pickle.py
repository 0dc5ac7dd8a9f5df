"""Pickles read as data: no import, no call, no attribute of a live object.

The standard library's `pickletools` splits a pickle into opcodes; `load` interprets them. A name in the pickle never
becomes the thing it names: it is looked up in a table of the caller's, and whatever is not there is refused. The
standard library's Unpickler, even with its own `find_class`, lets a pickle set attributes of objects it was given.
"""

from __future__ import annotations

import io
import mmap
import pickletools
from collections.abc import Callable, Iterable, Mapping, Sized
from types import SimpleNamespace
from typing import Any

from image_encoders.weights.files import Malformed

MAX_OPCODES = 2_000_000  # a state_dict takes about 40 per tensor, a vocabulary 10 per word
MAX_KEY = (1 << 61) - 1  # integers below it hash to themselves; larger ones can be made to collide by the million
COPIED_AT_LEAST = 64 << 20  # calls and states may be given this many bytes together,
COPIED_RATIO = 4  # or this many times the pickle's size: beyond that it hands one large value to many of them
ELEMENT = 64  # [bytes] about what a value takes in a container

_MARK = object()
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg", "UserDict": "collections"}


class Refused(Malformed):
    """The pickle refers to something that is not in the caller's table."""


class Name:
    """A class or function that a pickle names: what to put in its place, never the thing itself.

    call: what REDUCE and NEWOBJ give, from the arguments in the pickle; None: it cannot be called
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
    """A placeholder for a value that is known only when BUILD brings its state.

    build: state -> the value
    """

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build = build
        self.values: list[Any] = []  # the value, once built: the memo may still hold its stand-in


def load(
    pickled: bytes | memoryview | mmap.mmap,
    start: int = 0,
    *,
    names: Mapping[str, Any],
    persistent: Callable[[object], Any] | None = None,
) -> tuple[Any, int]:
    """The object in the pickle that starts at `start`, and the position after its end.

    names: "module.name" -> a `Name`, or the plain value that stands for it
    persistent: what a persistent id stands for; None: there may be none

    Raises Refused for a name that is not in `names`, Malformed or ValueError for everything else that is wrong.
    """
    file = pickled if isinstance(pickled, mmap.mmap) else io.BytesIO(pickled)
    file.seek(start)
    machine = _Machine(max(COPIED_AT_LEAST, COPIED_RATIO * len(pickled)), names, persistent)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if count == MAX_OPCODES:
            raise Malformed(f"more than {MAX_OPCODES:,} opcodes")
        if opcode.name in VALUES:
            machine.stack.append(argument)
        elif opcode.name in _STEPS:
            _STEPS[opcode.name](machine, argument)
        elif opcode.name != "STOP":
            raise Malformed(f"opcode {opcode.name} is not one that data needs")
    return machine.value(), file.tell()


class _Machine:
    """The pickle machine's stack and memo.

    may_copy: how many bytes calls and states may be given
    """

    def __init__(self, may_copy: int, names: Mapping[str, Any], persistent: Callable[[object], Any] | None) -> None:
        self.names, self.persistent = names, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.may_copy = may_copy

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
            raise Malformed("the pickle expands to far more than it holds")

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


def _text(argument: str) -> str | bytes:
    """A Python 2 string, of which pickletools makes a character for each byte: text where it is UTF-8, else bytes."""
    raw = argument.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


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


def _add_items(m: _Machine, values: list[Any]) -> None:
    if m.stack and isinstance(m.stack[-1], set):
        m.stack[-1].update(map(key, values))
    else:
        raise Malformed("the pickle adds to something that is not a set")


def _set_item(m: _Machine) -> None:
    value, name = m.value(), m.value()
    _set_items(m, {key(name): value})


def _persistent(m: _Machine) -> None:
    identity = m.value()
    if m.persistent is None:
        raise Malformed("the pickle refers to data outside itself")
    m.push(m.persistent(identity))


def _global(m: _Machine, argument: str) -> Any:
    return m.find(*argument.split(" ", 1))


def _stack_global(m: _Machine) -> None:
    name, module = m.value(), m.value()
    m.push(m.find(module, name))


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


# opcodes that push what follows them
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}

# every other opcode that data needs: what it does to the machine, given what follows it in the pickle
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,  # the opcodes say all
    "FRAME": lambda m, a: None,
    "MARK": lambda m, a: m.push(_MARK),
    "POP": lambda m, a: m.pop(),
    "POP_MARK": lambda m, a: m.group(),
    "DUP": lambda m, a: _duplicate(m),
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "STRING": lambda m, a: m.push(_text(a)),
    "BINSTRING": lambda m, a: m.push(_text(a)),
    "SHORT_BINSTRING": lambda m, a: m.push(_text(a)),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "LIST": lambda m, a: m.push(m.group()),
    "APPEND": lambda m, a: _append(m, [m.value()]),
    "APPENDS": lambda m, a: _append(m, m.group()),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "TUPLE": lambda m, a: m.push(tuple(m.group())),
    "TUPLE1": lambda m, a: _tuple(m, 1),
    "TUPLE2": lambda m, a: _tuple(m, 2),
    "TUPLE3": lambda m, a: _tuple(m, 3),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "DICT": lambda m, a: m.push(pairs(m.group())),
    "SETITEM": lambda m, a: _set_item(m),
    "SETITEMS": lambda m, a: _set_items(m, pairs(m.group())),
    "EMPTY_SET": lambda m, a: m.push(set()),
    "ADDITEMS": lambda m, a: _add_items(m, m.group()),
    "FROZENSET": lambda m, a: m.push(frozenset(key(v) for v in m.group())),
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda m, a: _put(m, len(m.memo)),
    "BINPERSID": lambda m, a: _persistent(m),
    "GLOBAL": lambda m, a: m.push(_global(m, a)),
    "STACK_GLOBAL": lambda m, a: _stack_global(m),
    "INST": lambda m, a: m.push(m.call(_global(m, a), tuple(m.group()))),
    "OBJ": lambda m, a: _object(m),
    "REDUCE": lambda m, a: _reduce(m),
    "NEWOBJ": lambda m, a: _reduce(m),  # takes a class and a tuple, as REDUCE takes a function and a tuple
    "NEWOBJ_EX": lambda m, a: _new_with_keywords(m),
    "BUILD": lambda m, a: m.build(),
}
