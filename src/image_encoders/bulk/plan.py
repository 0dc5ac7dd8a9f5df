"""Which items must be encoded, by comparison with the collection."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from image_encoders.bulk.digests import DigestTable
from image_encoders.bulk.sources import SourceItem
from image_encoders.bulk.sources.items import SAID
from image_encoders.collection import FAILURES, ITEMS, Collection


class Plan:
    """The content of a collection, kept up to date while a run writes into it.

    total: items met so far; unchanged, failed: those of them that are not encoded, as they are stored, or failed before
    rows: the state of each id that has a row; failures: of each on the list of failures
    bare: the state of the bytes alone, of each id whose row's state includes metadata
    contents: the digest (sha256) of each file whose embedding is known
    recovered: ids on the list of failures that have a row in their present state
    """

    def __init__(self, collection: Collection, retry_failed: bool = False):
        """retry_failed: plan also what failed before and has not changed since."""
        self.retry_failed = retry_failed
        self.total = self.unchanged = self.failed = 0
        self.rows, self.bare = DigestTable(), DigestTable()
        self.failures, self.contents = DigestTable(), DigestTable()
        self.recovered: list[str] = []
        self._under_way: set[str] = set()  # ids that are being encoded
        self._recorded = DigestTable()  # ids in parts that are written down
        for rows in collection.scan(ITEMS, ["id", "state", "sha256"]):
            ids, states, contents = (column.to_pylist() for column in rows.columns)
            self._have_rows(ids, states)
            self.contents.add(*contents)
        for rows in collection.scan(FAILURES, ["id", "state"]):
            self.failures.put_all(zip(*(column.to_pylist() for column in rows.columns)))

    def changed(self, items: Iterable[SourceItem]) -> Iterator[SourceItem]:
        """The items that must be encoded, each id once, and none that is in a part."""
        for item in items:
            if self._recorded.has(item.id):
                continue
            self.total += 1
            # An id leaves `_under_way` after it has come into one of the tables, on the committer's thread.
            if item.id in self._under_way:
                self.unchanged += 1
            elif item.state and self.knows(item.id, item.state):
                self.unchanged += 1
                if item.id in self.failures:
                    self.recovered.append(item.id)
            elif self._failed_before(item):
                self.failed += 1
            else:
                self._under_way.add(item.id)
                yield item

    def knows(self, id: str, state: str) -> bool:
        """Whether an item has a row in its state; one that says more of it does for a source that says nothing."""
        return self.rows.matches(id, state) or self.bare.matches(id, state)

    def _have_rows(self, ids: Sequence[str], states: Sequence[str]) -> None:
        self.rows.put_all(zip(ids, states))
        self.bare.put_all((id, state.partition(SAID)[0]) for id, state in zip(ids, states) if SAID in state)

    def _failed_before(self, item: SourceItem) -> bool:
        """Whether an item failed in this same state, and should not be retried."""
        if self.retry_failed:
            return False
        return bool(item.state) and item.error is None and self.failures.matches(item.id, item.state)

    def holds(self, items: Iterable[SourceItem]) -> bool:
        """Whether each item has a row, or is on the list of failures, in its state."""
        return all(self.rows.matches(one.id, one.state) or self.failures.matches(one.id, one.state) for one in items)

    def carry_on(self, items: Sequence[SourceItem]) -> None:
        """Count the items of a part that an earlier run has left."""
        self.total += len(items)
        self.recorded(items)

    def recorded(self, items: Iterable[SourceItem]) -> None:
        """Note that items are recorded in a part."""
        for item in items:
            self._recorded.add(item.id)
            self._under_way.discard(item.id)

    def stored(self, id: str, state: str) -> None:
        """Note that an item has a row."""
        self._have_rows([id], [state])
        self._under_way.discard(id)

    def listed(self, id: str, state: str) -> None:
        """Note that an item is on the list of failures."""
        self.failures.put(id, state)
        self._under_way.discard(id)
