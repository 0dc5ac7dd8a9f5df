"""The compact table of what is known."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from image_encoders.bulk import digests
from image_encoders.bulk.digests import DigestTable
from image_encoders.errors import CollectionError


@pytest.mark.parametrize("filter_bytes", [1, 64, digests.FILTER])
@pytest.mark.parametrize("recent", [1, 3, 64, 10_000])
def test_it_answers_as_a_dictionary_does(recent: int, filter_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RECENT", recent)
    monkeypatch.setattr(digests, "FILTER", filter_bytes)
    table, dictionary = DigestTable(), {}
    for number in np.random.default_rng(0).integers(0, 500, 2000).tolist():
        other = f"{number} {len(dictionary)}"
        table.put(f"text {number}", other)
        dictionary[f"text {number}"] = other
    for number in range(600):
        text = f"text {number}"
        assert (text in table) == (text in dictionary)
        assert table.matches(text, dictionary.get(text, "")) == (text in dictionary)
        assert not table.matches(text, "something else")


def test_a_full_disk_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digests._temporary_file

    def small() -> sqlite3.Connection:
        file = whole()
        file.execute("PRAGMA max_page_count = 3")
        return file

    monkeypatch.setattr(digests, "_temporary_file", small)
    monkeypatch.setattr(digests, "RECENT", 1000)
    table = DigestTable()
    for number in range(999):
        table.add(str(number))
    with pytest.raises(CollectionError, match=r"disk is full\); free some space, or have TMPDIR name another folder"):
        table.add("one more")


def test_it_is_a_set_of_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RECENT", 5)
    table = DigestTable()
    assert not table.has("0")
    for number in range(0, 100, 2):
        table.add(str(number))
    assert [table.has(str(number)) for number in range(100)] == [number % 2 == 0 for number in range(100)]
