"""Which items must be encoded: what there is, compared with what the collection knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fake_encoder import DIM, FakeEncoder
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.sources import SourceFile
from image_encoders.collection import Collection, Failure, Row
from image_encoders.errors import InputError
from image_encoders.records import Locator
from image_encoders.tables import ImageFacts


def item(name: str, state: str = "1 1") -> SourceFile:
    return SourceFile(f"/{name}", f"/{name}", state)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """It has a row for /stored and a failure of /failed, and both for /recovered."""
    made = Collection.create(tmp_path / "index", FakeEncoder())
    rows = [
        Row(f"/{name}", Locator(f"/{name}"), np.ones(DIM, np.float32), ImageFacts(1, 1, name, 1), "1 1")
        for name in ("stored", "recovered")
    ]
    made.append(rows)
    made.record([Failure(f"/{name}", f"/{name}", "read", "x", "x", "1 1", "") for name in ("failed", "recovered")])
    return made


def planned(plan: Plan, *items: SourceFile) -> list[str]:
    return [one.id for one in plan.changed(items)]


def test_what_is_new_or_in_another_state_is_encoded(collection: Collection) -> None:
    plan = Plan(collection)
    items = [item("new"), item("stored"), item("failed"), item("recovered")]
    assert planned(plan, *items) == ["/new"]
    assert (plan.total, plan.unchanged, plan.failed, plan.recovered) == (4, 2, 1, ["/recovered"])
    changed = [dataclasses.replace(one, state="1 2") for one in items]
    assert planned(Plan(collection), *changed) == [one.id for one in changed]
    assert planned(Plan(collection), item("stored", "")) == ["/stored"]


def test_what_failed_is_encoded_again_where_one_asks_or_its_source_knows_an_error(collection: Collection) -> None:
    assert planned(Plan(collection, retry_failed=True), item("failed"), item("stored")) == ["/failed"]
    missing = dataclasses.replace(item("failed"), error=InputError("no such file"))
    assert planned(Plan(collection), missing) == ["/failed"]


def test_an_item_that_comes_again_is_planned_once(collection: Collection) -> None:
    plan = Plan(collection)
    assert planned(plan, item("new"), item("new", "2 2")) == ["/new"]
    plan.stored("/new", "1 1")
    assert planned(plan, item("new"), item("new", "2 2")) == ["/new"]
    plan.listed("/new", "2 2")
    assert planned(plan, item("new", "2 2")) == []
    assert (plan.unchanged, plan.failed) == (2, 1)


def test_contents_are_known_by_their_digest(collection: Collection) -> None:
    plan = Plan(collection)
    assert plan.contents.has("stored")
    assert not plan.contents.has("new")
