"""Progress on standard error: the one display that encoders, downloads, conversions and commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Called with how much is done, of how much where that is known, and the two as text if numbers do not do."""

    def __call__(self, done: int, total: int | None = None, text: str = "") -> None: ...


@contextmanager
def bar(label: str, shown: bool | None = None) -> Iterator[Show]:
    """A bar that moves as it is called, and pulses while the total is unknown.

    shown: None: where standard error is a terminal
    """
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda done, total=None, text="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with Progress(*columns, console=console, transient=console.is_terminal) as display:
        task = display.add_task(label, total=None, text="")

        def show(done: int, total: int | None = None, text: str = "") -> None:
            counted = text or (f"{done:,}" if total is None else f"{done:,} of {total:,}")
            display.update(task, completed=done, total=total, text=counted)

        yield show
