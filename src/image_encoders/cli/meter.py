"""How far a run is: a bar for people, or lines of JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from image_encoders.cli.printing import bar, say

if TYPE_CHECKING:
    from image_encoders.bulk.run import Standing
    from image_encoders.bulk.sources import Sources

SHOW_S = 0.1  # seconds between two looks at how far it is
LOG_S = 5.0  # seconds between two lines of JSON
LIMIT_S = 5.0  # seconds over which the stage that limits is found


@contextmanager
def progress_of(files: Sources, log_json: bool, quiet: bool) -> Iterator[Meter | None]:
    """What a run is to call: it shows a bar, or lines for people or machines, or nothing."""
    if log_json:
        meter = Meter(files, _log, LOG_S)
        try:
            yield meter
        finally:
            meter.end()
        return
    with bar("encoding", shown=not quiet) as show:
        yield show and Meter(files, partial(_display, show), SHOW_S)


def _display(
    show: Callable[..., None], standing: Standing, total: int | None, rate: float, limit: str, _: bool
) -> None:
    failed = standing.failures.total()
    notes = [f"{failed:,} failed"] * bool(failed) + [f"limited by {limit}"] * bool(limit)
    show(standing.done, total, rate, ", ".join(notes))


def _log(standing: Standing, total: int | None, rate: float, limit: str, ended: bool) -> None:
    """A line of JSON on standard error."""
    known = total is not None and rate > 0 and not ended
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "event": "end" if ended else "progress",
        "done": standing.done,
        "total": total,
        "read": standing.read,
        "rate": round(rate, 2),
        "eta_s": round(max(0, (total or 0) - standing.done) / rate) if known else None,
        "failures": dict(standing.failures),
        "waited_s": {stage: round(seconds, 1) for stage, seconds in standing.waited.items()},
        "limit": limit or None,
    }
    say(json.dumps(line))


class Meter:
    """Shows now and then how far a run is, and counts on a thread of its own how many files there will be.

    show: called with it, the total where it is known, items/s that had to be read, the stage that has limited the run
        since the last time, and whether this is the end
    """

    def __init__(self, files: Sources, show: Callable[[Standing, int | None, float, str, bool], None], every_s: float):
        self.show, self.every_s = show, every_s
        self.waited: dict[str, float] = {}
        self.last: Standing | None = None
        self.total = files.count_aside()
        self.began = self.limited = time.monotonic()
        self.shown, self.limit = self.began, ""

    def __call__(self, standing: Standing) -> None:
        """Show how far a run is, if it is time."""
        self.last = standing
        if time.monotonic() - self.shown >= self.every_s:
            self._show(standing)

    def end(self) -> None:
        """Show how far it came."""
        from image_encoders.bulk.run import Standing

        self._show(self.last or Standing(), ended=True)

    def _show(self, standing: Standing, ended: bool = False) -> None:
        self.shown = time.monotonic()
        lately = {stage: seconds - self.waited.get(stage, 0.0) for stage, seconds in standing.waited.items()}
        whole = ended or self.shown - self.limited >= LIMIT_S
        if whole:
            self.waited, self.limited = dict(standing.waited), self.shown
            chosen = standing.waited if ended else lately
            self.limit = max(chosen, key=lambda stage: chosen[stage], default="")
        self.show(standing, self.total(), standing.read / max(self.shown - self.began, SHOW_S), self.limit, ended)
