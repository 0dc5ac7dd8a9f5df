"""The compact table of what is known."""

from __future__ import annotations

import numpy as np
import pytest

from image_encoders.bulk import known
from image_encoders.bulk.known import Known


@pytest.mark.parametrize("recent", [1, 3, 64, 10_000])
def test_it_answers_as_a_dictionary_does(recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "RECENT", recent)
    table, dictionary = Known(2), {}
    for number in np.random.default_rng(0).integers(0, 500, 2000).tolist():
        values = (number * 7 - 3, len(dictionary))
        table.put(f"text {number}", *values)
        dictionary[f"text {number}"] = values
    for number in range(600):
        assert table.get(f"text {number}") == dictionary.get(f"text {number}")
        assert (f"text {number}" in table) == (f"text {number}" in dictionary)


def test_without_integers_it_is_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "RECENT", 5)
    table = Known(0)
    for number in range(0, 100, 2):
        table.put(str(number))
    assert [str(number) in table for number in range(100)] == [number % 2 == 0 for number in range(100)]
