"""The one who writes: on a thread of its own, in whole lists, and nothing silently lost."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drawn import draw, image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk import commit
from image_encoders.bulk.commit import Committer
from image_encoders.bulk.encode import Encoded, Failed, encode
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.sources import SourceFile, find
from image_encoders.collection import Collection
from image_encoders.errors import CollectionError
from image_encoders.tables import ImageFacts


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.create(tmp_path / "index", FakeEncoder())


@pytest.fixture
def items(tmp_path: Path) -> list[SourceFile]:
    draw(tmp_path / "photos", range(6))
    (tmp_path / "photos" / "copy.png").write_bytes(image(0))
    return list(find([str(tmp_path / "photos")]))


def committer(collection: Collection) -> Committer:
    return Committer(collection, Plan(collection), partial(encode, encoder=FakeEncoder()))


def test_it_writes_on_a_thread_of_its_own(
    collection: Collection, items: list[SourceFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    append = Collection.append

    def watched(self: Collection, rows: list[Any], **options: Any) -> None:
        names.append(threading.current_thread().name)
        append(self, rows, **options)

    monkeypatch.setattr(Collection, "append", watched)
    writer = committer(collection)
    for some in encode(items, FakeEncoder(), batch_size=2):
        writer.add(some)
    writer.finish()
    assert set(names) == {"commit"}
    assert list(rows(collection)) == [item.id for item in items]
    assert writer.counts == {"encoded": 7, "failed": 0}


def test_what_waits_is_written_after_a_while_though_nothing_more_comes(
    collection: Collection, items: list[SourceFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "COMMIT_S", 0.01)
    writer = committer(collection)
    (some,) = encode(items, FakeEncoder(), batch_size=8)
    writer.add(some)
    while collection.count() < 7:
        threading.Event().wait(0.01)
    writer.finish()


def test_bytes_that_have_lost_their_row_are_embedded_once_for_all_that_have_them(
    collection: Collection, items: list[SourceFile]
) -> None:
    writer = committer(collection)
    digests = {one.item.id: one.facts.sha256 for some in encode(items, FakeEncoder()) for one in some}  # type: ignore[union-attr]
    writer.add([Encoded(item, ImageFacts(0, 0, digests[item.id], 1)) for item in items])
    writer.finish()
    stored = rows(collection)
    assert len(stored) == 7
    assert stored[items[0].id]["embedding"] == stored[items[-1].id]["embedding"]
    assert writer.counts == {"encoded": 6, "reused": 1, "failed": 0}


def test_an_item_has_a_row_or_a_failure_and_never_both(collection: Collection, items: list[SourceFile]) -> None:
    first, *_ = items
    for broken in (True, False, True):
        writer = committer(collection)
        encoded = next(iter(encode([first], FakeEncoder())))
        writer.add([Failed(first, "read", "truncated", "ends too early")] if broken else encoded)
        writer.finish()
        assert [one.id for one in collection.failures()] == [first.id] * broken
        assert list(rows(collection)) == [first.id] * (not broken)


def test_what_goes_wrong_is_raised_where_somebody_adds_or_finishes(
    collection: Collection, items: list[SourceFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise CollectionError("the disk is full")

    monkeypatch.setattr(Collection, "append", full)
    monkeypatch.setattr(commit, "COMMIT_ROWS", 1)
    writer = committer(collection)
    lists = encode(items * 100, FakeEncoder(), batch_size=1)
    with pytest.raises(CollectionError, match="disk is full"):
        any(writer.add(some) for some in lists)
    lists.close()
    with pytest.raises(CollectionError, match="disk is full"):
        writer.finish()
    assert writer.finished


def test_nothing_to_write_needs_no_thread(collection: Collection) -> None:
    before = set(threading.enumerate())  # of tests before this one, some may be about to end
    writer = committer(collection)
    writer.finish()
    assert writer.finished
    assert not any(thread.name == "commit" for thread in set(threading.enumerate()) - before)
