"""One run: many items into a collection.

    items ─plan: changed?→ ─encode: read, preprocess, embed→ outcomes ─committer: one thread→ collection
                          └cut into parts→ a pool's workers: encode→ results ┘

With a pool of workers elsewhere, the items are first recorded in parts (`parts.py`). A run begins with the parts that
an earlier one has left, whether or not it has a pool itself.

Items keep their order, and whole batches are committed: with a given batch size, a run that was killed and is started
again uses the same batches as one that was not, so even the last bits of its embeddings are the same.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.commit import Committer
from image_encoders.bulk.encode import Encoded, Failed, Outcome, encode
from image_encoders.bulk.parts import Listing, Parts, Pool, Worker, folder_of
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.sources import SourceItem, Sources, find
from image_encoders.collection import ITEMS, Collection, now
from image_encoders.encoder import Encoder, check_batch_size
from image_encoders.errors import InputError, TooManyFailures
from image_encoders.inputs.files import ADDRESS
from image_encoders.records import RunRecord
from image_encoders.tables import path_of
from image_encoders.upkeep import LIMIT_S

Source = str | os.PathLike[str]
Prune = Callable[[list[str]], Iterable[str]]


@dataclass
class Standing:
    """The progress of a run.

    done: finished items; read: those of them that had to be read
    failures: how many failed in this run, by their codes
    waited: seconds that the run has waited for each stage: "reading" (finding and preprocessing too), "embedding",
        "committing"; with a pool, "workers" instead of the first two. The longest is the bottleneck.
    """

    done: int = 0
    read: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    waited: dict[str, float] = field(default_factory=lambda: {"committing": 0.0})


Progress = Callable[[Standing], None]


@dataclass
class Report:
    """What a run did. Every item is counted once: total = encoded + reused + unchanged + failed.

    encoded: embedded now
    reused: bytes that were embedded before, under another name; the embedding was copied
    unchanged: already stored, with the same bytes
    failed: cannot be encoded, and in the collection's list of failures; includes those from earlier runs that were
        not retried
    ignored: files in folders that are not named like images; not in the total
    pruned: rows removed because their files are gone
    seconds: how long it took
    batch_size: the final batch size
    """

    total: int = 0
    encoded: int = 0
    reused: int = 0
    unchanged: int = 0
    failed: int = 0
    ignored: int = 0
    pruned: int = 0
    seconds: float = 0.0
    batch_size: int = 0


def run(
    sources: Source | list[Source] | Iterable[SourceItem],
    encoder: Encoder,
    collection: Collection | Source,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    prune: bool | Prune = False,
    max_failures: int | None = None,
    progress: Progress | None = None,
    commit_s: float | None = None,
    record_unchanged: bool = True,
    pool: Callable[[Parts, Encoder], Pool] | None = None,
    parts: Source | None = None,
) -> Report:
    """Encode what is new or changed among `sources` into `collection`.

    sources: a folder, file or glob, or a list of these, as `bulk.sources.find` takes them; or any items
    collection: an open collection, or its folder, created if necessary
    batch_size: None: the fastest, determined on the first batches. It affects at most the last bits of embeddings.
    workers: threads that read and preprocess; None: one per processor
    retry_failed: also retry items that failed in an earlier run and have not changed
    prune: afterwards remove the rows whose files are gone; or a function that gets the paths of those files, and
        returns the ones whose rows are to be removed
    max_failures: how many items may fail in this run before it is aborted: then everything encoded is stored, and
        TooManyFailures is raised
    progress: called often, in this thread, with the run's progress: always the same object, which changes
    commit_s: maximum seconds between commits, which a kill may cost; None: 5
    record_unchanged: add the run to the collection's list of runs even if it changed nothing
    pool: creates the workers that encode parts of the run, such as `bulk.ray.Workers`; None: it is encoded here
    parts: the parent of the parts' folder, which the workers see at the same path; None: the collection

    Items that cannot be encoded go into the collection's list of failures; the others are encoded. KeyboardInterrupt
    is raised once everything embedded has been stored, a second one at once; the same run again resumes from there.
    Raises CollectionError if the collection cannot be written, is in use, or is of another embedding space.
    """
    if batch_size is not None:
        check_batch_size(batch_size)
    if isinstance(sources, (str, os.PathLike)):
        sources = find([sources])
    elif isinstance(sources, (list, tuple)) and all(isinstance(one, (str, os.PathLike)) for one in sources):
        sources = find(sources)
    if not isinstance(collection, Collection):
        collection = Collection.open_or_create(collection, encoder)
    collection.check(encoder)
    collection.check_canaries(encoder)
    with collection.running():
        plan = Plan(collection, retry_failed)
        settings = sources.settings if isinstance(sources, Sources) else None
        kept = Parts(folder_of(collection, parts), collection, settings)
        again = partial(encode, encoder=encoder)
        committer = Committer(collection, plan, again, commit_s, stored=kept.remove, pooled=pool is not None)
        worker = Worker(kept, encoder, BatchSizeTuner(batch_size), workers)
        return _Run(sources, worker, committer, max_failures, progress, record_unchanged).all(
            pool and pool(kept, encoder), prune
        )


class _Run:
    """A run: who knows what must be encoded, who encodes it, who writes it."""

    def __init__(
        self,
        sources: Iterable[Any],
        worker: Worker,
        committer: Committer,
        max_failures: int | None,
        progress: Progress | None,
        record_unchanged: bool,
    ):
        self.sources, self.worker, self.parts, self.tuner = sources, worker, worker.parts, worker.tuner
        self.committer, self.plan, self.collection = committer, committer.plan, committer.collection
        self.began, self.since = now(), time.monotonic()
        if isinstance(sources, Sources):
            sources.known = self.plan.knows
        self.progress, self.max_failures, self.record_unchanged = progress, max_failures, record_unchanged
        self.standing = Standing()
        self.pruned = self.forgotten = 0

    def all(self, pool: Pool | None, prune: bool | Prune) -> Report:
        try:
            try:
                unfinished = self._carry_on()
                if pool is None:
                    self._commit_parts(self.worker.finished(unfinished))
                    self._encode()
                else:
                    self.standing.waited["workers"] = 0.0
                    self._encode_by(pool, unfinished)
            finally:  # after an interrupt, too, all that was embedded is stored
                self.committer.finish()
            self._forget()
            if prune:
                self._prune(list if prune is True else prune)
            self.collection.settle(limit_s=max(LIMIT_S, (time.monotonic() - self.since) / 10))
        except (KeyboardInterrupt, TooManyFailures):
            if self.committer.finished:
                self._close()
            raise
        finally:
            if isinstance(self.sources, Sources):
                with suppress(ValueError):  # a thread that lists them waits for an answer
                    self.sources.close()
        return self._close()

    def _carry_on(self) -> list[str]:
        """Store the results of an earlier run's parts; returns the parts without results, to be done."""
        unfinished = []
        for part in self.parts.recorded():
            items = self.parts.items(part)
            if self.plan.holds(items):  # it was stored before its files could be removed
                self.parts.remove(part)
                continue
            if not self.parts.has_result(part):
                self.plan.carry_on(items)
                unfinished.append(part)
                continue
            unchanged = {item.id for item in items if not item.changed()}  # the others are met again
            self.plan.carry_on([item for item in items if item.id in unchanged])
            if outcomes := [one for one in self.parts.outcomes(part) if one.item.id in unchanged]:
                self._commit(outcomes)
            else:
                self.parts.remove(part)
        return unfinished

    def _encode(self) -> None:
        """Encode what is changed here."""
        changed, known = self.plan.changed(self._checked_items(self._report_progress)), self.plan.contents.has
        worker = self.worker
        for outcomes in encode(changed, worker.encoder, batch_size=self.tuner, workers=worker.workers, known=known):
            self._commit(outcomes)

    def _encode_by(self, pool: Pool, unfinished: list[str]) -> None:
        """Have a pool encode what is unfinished, and what is changed."""
        if isinstance(self.sources, Sources):
            self.sources.known = _everything_known  # bytes are read where they are encoded
        listing = Listing(self.plan.changed(self._checked_items()), self.parts, self.plan)
        try:
            with closing(pool.finished(chain(unfinished, listing))) as done:
                self._commit_parts(done)
        finally:
            listing.close()

    def _commit_parts(self, parts: Iterable[str | None]) -> None:
        """Commit the results of parts as they come."""
        for part in parts:
            if part is not None:
                self._commit(self.parts.outcomes(part))
            self._report_progress()

    def _commit(self, outcomes: list[Outcome]) -> None:
        """Hand outcomes to the committer, and count them."""
        began = time.monotonic()
        self.committer.add(outcomes)
        self.standing.waited["committing"] += time.monotonic() - began
        for one in outcomes:
            if isinstance(one, Encoded) and one.embedding is not None:
                self.plan.contents.add(one.facts.sha256)
        self.standing.read += len(outcomes)
        self.standing.failures.update(one.code for one in outcomes if isinstance(one, Failed))
        self._report_progress()
        self._check_failures(outcomes)

    def _check_failures(self, outcomes: list[Outcome]) -> None:
        """Raise TooManyFailures where more than may fail have failed."""
        if self.max_failures is None or self.standing.failures.total() <= self.max_failures:
            return
        last = [one for one in outcomes if isinstance(one, Failed)][-1:]
        if last:
            raise TooManyFailures(
                f"more than {self.max_failures:,} images failed, the last being {last[0].item.id}: {last[0].message}; "
                "what was encoded is stored, and the same command resumes from there"
            )

    def _checked_items(self, show: Callable[[], None] = lambda: None) -> Iterator[SourceItem]:
        """The items of the sources; InputError for a path among them."""
        for item in self.sources:
            if isinstance(item, (str, os.PathLike)):
                raise InputError(
                    "a path among source items; paths are accepted in a list, such as run(list(paths), ...)",
                    item=os.fsdecode(item),
                    code="type",
                )
            yield item
            show()

    def _report_progress(self) -> None:
        if self.progress is not None:
            standing, embedding = self.standing, self.tuner.seconds
            waited = standing.waited
            standing.done = self.plan.unchanged + self.plan.failed + standing.read
            rest = time.monotonic() - self.since - embedding - waited["committing"]
            waited.update({"workers": rest} if "workers" in waited else {"reading": rest, "embedding": embedding})
            self.progress(standing)

    def _forget(self) -> None:
        """Take off the list of failures what has a row, and archives and folders that were read whole now."""
        finished = self.sources.finished if isinstance(self.sources, Sources) else lambda *failure: False
        whole = (
            failure.id
            for failure in self.collection.failures()
            if failure.when < self.began and finished(failure.id, failure.state)
        )
        self._take_off_list([*self.plan.recovered, *whole])

    def _take_off_list(self, ids: Iterable[str]) -> None:
        ids = list(ids)
        self.collection.forget(ids)
        self.forgotten += len(ids)

    def _prune(self, chosen: Prune) -> None:
        """Remove the rows, and the failures of earlier runs, whose files are gone."""
        rows = {
            id: path
            for rows in self.collection.scan(ITEMS, ["id", "path"])
            for id, path in zip(rows["id"].to_pylist(), map(path_of, rows["path"].to_pylist()))
            if (mode := _mode(path)) is None or (mode and not stat.S_ISREG(mode))
        }
        failures = {
            failure.id: failure.path
            for failure in self.collection.failures()
            if failure.when < self.began and _mode(failure.path) is None
        }
        wanted = set(chosen([*rows.values(), *failures.values()]))
        gone = [id for id, path in rows.items() if path in wanted]
        self.collection.remove(gone)
        self.pruned = len(gone)
        self._take_off_list(id for id, path in failures.items() if path in wanted)

    def _close(self) -> Report:
        """What the run did, which the collection records too."""
        plan, written = self.plan, self.committer.counts
        report = Report(
            total=plan.total,
            encoded=written["encoded"],
            reused=written["reused"],
            unchanged=plan.unchanged + written["unchanged"],
            failed=plan.failed + written["failed"],
            ignored=getattr(self.sources, "ignored", 0),
            pruned=self.pruned,
            seconds=time.monotonic() - self.since,
            batch_size=self.tuner.size,
        )
        counts = {name: getattr(report, name) for name in ("encoded", "reused", "unchanged", "failed", "pruned")}
        if not (self.record_unchanged or written.total() or self.pruned or self.forgotten):
            return report
        self.collection.write_failures()
        self.collection.add_run(RunRecord(self.began, now(), getattr(self.sources, "described", []), **counts))
        return report


def _everything_known(id: str, state: str) -> bool:
    """As a collection that holds everything answers."""
    return True


def _mode(path: str) -> int | None:
    """What kind of file there is, as `os.stat` says it; None where there is none, 0 where that cannot be known."""
    if ADDRESS.match(path):
        return 0
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return 0
