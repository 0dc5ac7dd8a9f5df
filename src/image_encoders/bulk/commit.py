"""The only writer of a collection during a run."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from image_encoders.bulk.encode import Encoded, Failed, Outcome
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.sources import SourceItem
from image_encoders.collection import Collection, now
from image_encoders.process import give_back_memory
from image_encoders.records import Failure, Row, Stored

COMMIT_S = 5.0  # seconds between commits: what a kill may cost
COMMIT_ROWS = 2048  # outcomes, and
COMMIT_BYTES = 1 << 23  # bytes of embeddings, that wait for a commit at most, while as many are written
POOLED = 8  # times as much where a kill costs nothing, since parts lie on disk: few commits, large fragments
SETTLE = 64  # commits between looks at whether the database's files should be merged


class Committer:
    """Writes outcomes to a collection on its own thread, while the next batch is embedded.

    counts: what was written so far: "encoded", "reused", "unchanged", "failed", as a Report has them
    """

    def __init__(
        self,
        collection: Collection,
        plan: Plan,
        again: Callable[[list[SourceItem]], Iterable[list[Outcome]]],
        commit_s: float | None = None,
        stored: Callable[[str], None] = lambda part: None,
        pooled: bool = False,
    ):
        """again: encodes items whose bytes seemed to be known, but whose row was replaced meanwhile
        commit_s: seconds between commits at most
        stored: called with each part once all of it is stored
        pooled: whether all outcomes come in parts that are on disk
        """
        self.collection, self.plan, self.again, self.stored = collection, plan, again, stored
        many = POOLED if pooled else 1
        self.commit_s = many * COMMIT_S if commit_s is None else commit_s
        self.counts: Counter[str] = Counter()
        self._most = many * max(1, min(COMMIT_ROWS, COMMIT_BYTES // (4 * collection.dim)))
        self._pending: list[Outcome] = []
        self._error: BaseException | None = None
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="commit")
        self._ended = threading.Event()  # an interrupted Thread.join takes the thread for dead (Python 3.11)

    @property
    def finished(self) -> bool:
        """Whether nothing is being written."""
        return self._thread.ident is None or self._ended.is_set()

    def add(self, outcomes: list[Outcome]) -> None:
        """Queue outcomes for one commit, such as those of a part; blocks while too many are queued.

        Raises the error of an earlier commit.
        """
        if self._thread.ident is None:
            self._thread.start()
        with self._changed:
            while len(self._pending) >= self._most and self._error is None:
                self._changed.wait()
            if self._error is not None:
                raise self._error
            self._pending += outcomes  # in one step, whatever interrupts this thread
            self._changed.notify_all()

    def finish(self) -> None:
        """Write all queued outcomes, and end; raises any error."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        while not (self.finished or self._ended.wait(0.1)):  # a signal just before it waits would not wake it
            pass
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        commits = 0
        try:
            with self.collection.writing():  # also if the run is aborted meanwhile
                while outcomes := self._next():
                    self._commit(outcomes)
                    give_back_memory()
                    commits += 1
                    if commits % SETTLE == 0:
                        self.collection.settle(index=False)
        except BaseException as error:  # is raised where somebody waits
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            self._ended.set()

    def _next(self) -> list[Outcome]:
        """The outcomes to write next, once there are enough, or after a while; none at the end."""
        due = time.monotonic() + self.commit_s
        with self._changed:
            while not (self._ending or len(self._pending) >= self._most or (self._pending and time.monotonic() >= due)):
                self._changed.wait(max(0.0, due - time.monotonic()) if self._pending else None)
            outcomes, self._pending = self._pending, []
            self._changed.notify_all()
            return outcomes

    def _commit(self, outcomes: list[Outcome]) -> None:
        """Write outcomes in this order: removals, so that no item ever has both a row and a failure; failures; and
        embeddings last, so that a part that has rows is complete.
        """
        rows, failures = self._resolved(outcomes)
        recovered = [row.id for row in rows if row.id in self.plan.failures]
        broken = [failure.id for failure in failures if failure.id in self.plan.rows]
        if recovered:
            self.collection.forget(recovered)
        if broken:
            self.collection.remove(broken)
        self.collection.record(failures)
        self.collection.append(rows, new=not any(row.id in self.plan.rows for row in rows))
        self.counts["failed"] += len(failures)
        for row in rows:
            self.plan.stored(row.id, row.state)
        for failure in failures:
            self.plan.listed(failure.id, failure.state)
        for part in {one.part for one in outcomes if one.part is not None}:
            self.stored(part)

    def _resolved(self, outcomes: list[Outcome]) -> tuple[list[Row], list[Failure]]:
        """Rows and failures; copies get the embedding of the same bytes."""
        new = _by_content(outcomes)
        copies = [one for one in outcomes if isinstance(one, Encoded) and one.facts.sha256 not in new]
        stored = self.collection.stored(one.facts.sha256 for one in copies)
        lost = [one.item for one in copies if one.facts.sha256 not in stored]
        redone = {one.item.id: one for some in (self.again(lost) if lost else ()) for one in some}
        new.update(_by_content(redone.values()))
        rows, failures = [], []
        for one in outcomes:
            part, one = one.part, redone.get(one.item.id, one)
            if isinstance(one, Failed):
                failures.append(_failure(one, part))
                continue
            known = stored.get(one.facts.sha256)
            there = known is not None and one.item.id in known.ids
            self.counts["encoded" if one.embedding is not None else "unchanged" if there else "reused"] += 1
            rows.append(_row(one, one if one.embedding is not None else known or new[one.facts.sha256], part))
        return rows, failures


def _by_content(outcomes: Iterable[Outcome]) -> dict[str, Encoded]:
    """New embeddings by the digest of their bytes."""
    return {one.facts.sha256: one for one in outcomes if isinstance(one, Encoded) and one.embedding is not None}


def _row(one: Encoded, known: Encoded | Stored, part: str | None) -> Row:
    """The row of an item, with what is known of its bytes."""
    item, embedding = one.item, known.embedding
    assert isinstance(embedding, np.ndarray)
    return Row(item.id, item.locator, embedding, known.facts, item.state, item.metadata, part)


def _failure(one: Failed, part: str | None) -> Failure:
    item = one.item
    return Failure(item.id, item.locator.path, one.stage, one.code, one.message, item.state, now(), part)
