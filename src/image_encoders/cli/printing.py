"""What the commands print: results on standard output, everything else on standard error.

While a command runs, `sys.stdout` is standard error too, so that whatever a custom model's own code or a library prints
does not end up among the results: `print` of this module is for those.
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from image_encoders import progress

if TYPE_CHECKING:
    from rich.console import Console

ENDLESS = 10_000  # columns: where no terminal sets a width, no line is broken and no cell cut
QUIET_S = 10.0  # seconds between two lines of progress where there is no terminal
NOTICE_S = 1.0  # after which something slow is said to be going on

# The library quotes the value of a keyword, or names it in capitals (weights=PATH); a folder source=web is neither.
_VALUE = r"""=(?:['"]([\w.-]+)['"]|([A-Z]+))(?!\w)"""
_NO_VALUE = r"=(?=[\s,;:]|$)"
_FLAGS = r"(?<![\w/-])(weights|device|precision|engine|calibration|method|overwrite)"
_OPTIONS = (
    r"(?<![\w/-])(?<!-O )(definition|class_name|class_args|layer|pooling|preprocess|input_shape|vocabulary|source)"
)
KEYWORDS = (  # in the library's errors, and how the command line spells them
    (r",? or (?:pass|load with) truncate=True", ""),  # a command that takes a text takes no options of its model
    (r"(?<!--model )clip/demo, which is bundled", "--model clip/demo, which is bundled"),
    (_FLAGS + _VALUE, r"--\1 \2\3"),
    (_FLAGS + r"(?:=True(?!\w)|" + _NO_VALUE + ")", r"--\1"),
    (_OPTIONS + _VALUE, r"-O \1=\2\3"),
    (_OPTIONS + _NO_VALUE, r"-O \1=..."),
)

_results: list[TextIO] = []  # standard output, of the command that runs


def results() -> TextIO:
    """The stream that results go to."""
    return _results[-1] if _results else sys.stdout


def print(*words: Any) -> None:
    """A result, on standard output."""
    builtins.print(*words, file=results())


def keeps_results_apart(command: Callable[..., None]) -> Callable[..., None]:
    """The command, during which only `print` of this module writes on standard output."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        _results.append(results())  # of the outer command, where one runs another
        try:
            with redirect_stdout(sys.stderr):
                command(*arguments, **options)
        finally:
            _results.pop()

    return run


def console(stream: Any = None) -> Console:
    """A rich console on a stream, standard output by default; coloured only on a terminal that wants it."""
    from rich.console import Console

    stream = stream or results()
    return Console(file=stream, width=None if stream.isatty() else ENDLESS, highlight=False, markup=False, emoji=False)


def say(words: str, style: str | None = None) -> None:
    """A line for people, on standard error, after what is on standard output already."""
    results().flush()
    if style is None or not sys.stderr.isatty():
        sys.stderr.write(f"{escape_controls(words)}\n")  # at once: two threads may write
    else:
        console(sys.stderr).print(escape_controls(words), style=style, soft_wrap=True)


def print_json(value: Any) -> None:
    """`value` as JSON, all that a command with --json writes on standard output."""
    print(json.dumps(value, indent=2, default=str))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows below headings, if there are any; numbers to the right."""
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(box=None, show_header=bool(headings), header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for position in range(len(headings or rows[0])):
        numbers = all(isinstance(row[position], (int, float)) for row in rows)
        heading = headings[position] if headings else ""
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else escape_controls(str(cell)) for cell in row))
    printer = console()
    with printer.capture() as captured:
        printer.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


@contextmanager
def notice(words: str, shown: bool = True) -> Iterator[None]:
    """`words` as a line on standard error, once the block has taken `NOTICE_S`."""

    def write() -> None:
        with suppress(OSError):  # its reader is gone
            say(words)

    timer = threading.Timer(NOTICE_S, write)
    timer.daemon = True
    if shown:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def bar(label: str, shown: bool = True) -> Iterator[Callable[..., None] | None]:
    """Called with (done, of how many or None, per second, notes): a bar on a terminal, else a line now and then."""
    if not shown:
        yield None
    elif sys.stderr.isatty():
        with progress.bar(label) as show:
            yield lambda done, total, rate, notes="": show(done, total, _standing(done, total, rate, notes))
    else:
        yield _lines(label)


def _lines(label: str) -> Callable[..., None]:
    last = time.monotonic()

    def write(done: int, total: int | None, rate: float, notes: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_S:
            last = time.monotonic()
            left = f", {timedelta(seconds=round((total - done) / rate))} left" if total is not None and rate > 0 else ""
            say(f"{label}: {_standing(done, total, rate, notes)}{left}")

    return write


def _standing(done: int, total: int | None, rate: float, notes: str) -> str:
    """How far it is: 1,200 of 5,000, 80/s, 2 failed, limited by reading."""
    parts = [f"{done:,}" if total is None else f"{done:,} of {total:,}"]
    if rate > 0:
        parts.append(f"{rate:,.1f}/s" if rate < 10 else f"{rate:,.0f}/s")
    return ", ".join([*parts, notes] if notes else parts)


def escape_controls(words: str) -> str:
    """`words` with what a terminal would obey or cannot show spelled out, line ends apart."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in words)


def shown(path: str | Path) -> str:
    """A path as people know it, on one line: from the current folder where it lies below that."""
    with suppress(ValueError, FileNotFoundError):
        path = Path(path).relative_to(Path.cwd())
    return str(path).replace("\n", "\\n")


def counted(count: int, noun: str, plural: str = "") -> str:
    """1 image, 2 images, 1,000 images; the plural where it is irregular."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def error_sentence(error: Exception) -> str:
    """What an error says, in one line; for an operating system's error also which file, and what next."""
    if not isinstance(error, OSError) or error.strerror is None:
        return in_flags(" ".join(str(error).split()))
    where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    advice = "; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}{advice}"


def in_flags(sentence: str) -> str:
    """A sentence of the library's with the command line's flags in place of Python's keywords."""
    for keyword, flag in KEYWORDS:
        sentence = re.sub(keyword, flag, sentence)
    return sentence
