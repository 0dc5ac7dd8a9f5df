"""How far a run is: a bar for people, or lines of JSON for machines."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
        meter, ended = Meter(files, _log, LOG_S), threading.Event()
        beat = threading.Thread(target=_beat, args=(meter, ended), daemon=True, name="heartbeat")
        beat.start()
        try:
            yield meter
        finally:
            ended.set()
            beat.join()
            meter.end()
        return
    with bar("encoding", shown=not quiet) as show:
        yield show and Meter(files, partial(_display, show), SHOW_S)


def _beat(meter: Meter, ended: threading.Event) -> None:
    """Show how far a run is while nothing in it finishes, as when all addresses that it fetches hang."""
    while not ended.wait(meter.every_s / 5):
        with suppress(OSError):  # standard error is closed: the run's own next line says so
            meter.look()


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
        self.turn = threading.Lock()
        self.total = files.count_aside()
        self.began = self.limited = time.monotonic()
        self.shown, self.limit = self.began, ""

    def __call__(self, standing: Standing) -> None:
        """Show how far a run is, if it is time."""
        self.last = standing
        self.look()

    def look(self) -> None:
        """Show how far the run was when it last said so, if it is time; on any thread."""
        with self.turn:
            if time.monotonic() - self.shown >= self.every_s:
                self._show()

    def end(self) -> None:
        """Show how far it came."""
        self._show(ended=True)

    def _show(self, ended: bool = False) -> None:
        from image_encoders.bulk.run import Standing

        standing = self.last or Standing()
        self.shown = time.monotonic()
        waited = dict(standing.waited)  # which the run may add to
        if ended or self.shown - self.limited >= LIMIT_S:
            lately = waited if ended else {stage: waited[stage] - self.waited.get(stage, 0.0) for stage in waited}
            self.waited, self.limited = waited, self.shown
            self.limit = max(filter(lately.get, lately), key=lambda stage: lately[stage], default="")
        self.show(standing, self.total(), standing.read / max(self.shown - self.began, SHOW_S), self.limit, ended)
