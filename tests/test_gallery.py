"""A collection in memory: what a search finds is what sorting all cosines gives, filtered, grouped, while it grows."""

from __future__ import annotations

import dataclasses
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_encoder import DIM, FakeEncoder
from image_encoders import gallery as gallery_module
from image_encoders import upkeep
from image_encoders.collection import Collection, Row, RunRecord, Where, id_of
from image_encoders.errors import InputError
from image_encoders.gallery import MATCHES, Gallery, Ranking, best_by_chance, folder_names, usual_and_spread
from image_encoders.records import Locator
from image_encoders.tables import FACTS, ImageFacts

ODD = ["/p/it's", "/p/100%_", '/p/"', "/p/a\\b", "/p/ä", os.fsdecode(b"/p/\xff\\x"), "/p", "/pq", "/p/\n'; --"]
DAY = 24 * 60 * 60 * 10**9  # [ns]


def row(number: int, path: str | None = None, embedding: np.ndarray | None = None, **changes: Any) -> Row:
    path = path or f"/photos/{number % 3}/{number:06d}.jpg"
    made = Row(
        id=id_of(path),
        locator=Locator(path),
        embedding=np.asarray(np.cos(np.arange(DIM) * (number + 1.3)) if embedding is None else embedding, np.float32),
        facts=ImageFacts(width=640 + number, height=480, sha256=f"{number:064x}", size=1000 + number),
        state=f"{1000 + number} {(20_000 + number) * DAY}",
    )
    facts = {name: changes.pop(name) for name in FACTS if name in changes}
    return dataclasses.replace(made, facts=dataclasses.replace(made.facts, **facts), **changes)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.create(tmp_path / "index", FakeEncoder())


def query(collection: Collection, seed: int = 0) -> np.ndarray:
    return collection.direction(np.random.default_rng(seed).standard_normal(DIM))


def paths(ranking: Ranking) -> list[str]:
    return [ranking.view.image(int(position)).locator.path for position in ranking.positions]


def numbers(ranking: Ranking) -> list[int]:
    return [int(ranking.view.image(int(position)).key, 16) for position in ranking.positions]


def drawn(count: int, seed: int = 7) -> list[Row]:
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.01, 100, (count, 1))
    return [row(number, embedding=one) for number, one in enumerate(rng.standard_normal((count, DIM)) * scale)]


# ------------------------------------------------------------------ what is found


def test_it_finds_what_the_collection_finds_and_all_the_rest_in_order(collection: Collection) -> None:
    rows = drawn(300)
    collection.append(rows)
    gallery = Gallery(collection)
    for seed in range(5):
        asked = query(collection, seed)
        found = gallery.rank(asked)
        assert [hit.path for hit in collection.search(asked, 20)] == paths(found)[:20]
        units = np.stack([one.embedding / np.linalg.norm(one.embedding) for one in rows])
        assert found.scores is not None
        np.testing.assert_allclose(found.scores, np.sort(units @ asked)[::-1], atol=2e-6)
        assert len(found) == 300


def test_where_the_embeddings_are_too_many_for_memory_the_database_finds_the_same(collection: Collection) -> None:
    collection.append(drawn(300))
    held, unheld = Gallery(collection), Gallery(collection, memory=0)
    for seed in range(3):
        asked = query(collection, seed)
        for where in (None, Where(min_width=800)):
            first, second = held.rank(asked, where=where), unheld.rank(asked, where=where)
            assert numbers(first) == numbers(second)
            assert first.scores is not None
            np.testing.assert_allclose(first.scores, second.scores, atol=2e-6)
            assert (first.usual, first.spread) == pytest.approx((second.usual, second.spread), abs=1e-5)
    key = f"{5:064x}"
    directions = [gallery.view().direction(gallery.view().find(key)[0]) for gallery in (held, unheld)]
    np.testing.assert_allclose(*directions, atol=1e-6)


def test_files_with_the_same_bytes_are_one_hit_unless_each_is_wanted(collection: Collection) -> None:
    same = [row(9, f"/photos/copy {number}.jpg", np.ones(DIM)) for number in range(4)]
    collection.append([*same[:2], row(1), row(2), *same[2:]])
    gallery = Gallery(collection)
    found = gallery.rank(collection.direction(np.ones(DIM)))
    assert (numbers(found)[0], found.copies[0], len(found)) == (9, 3, 3)
    assert found.view.image(int(found.positions[0])).name == "copy 0.jpg"
    each = gallery.rank(collection.direction(np.ones(DIM)), each_copy=True)
    assert (numbers(each)[:4], each.copies.any(), len(each)) == ([9] * 4, False, 6)
    assert len(gallery.view().find(f"{9:064x}")) == 4
    within = gallery.rank(collection.direction(np.ones(DIM)), where=Where(folders=("/photos/copy 2.jpg",)))
    assert paths(within) == ["/photos/copy 2.jpg"]


def test_a_row_of_zeros_is_listed_and_never_found(collection: Collection) -> None:
    collection.append([row(1, embedding=np.zeros(DIM)), row(2), row(3)])
    gallery = Gallery(collection)
    assert sorted(numbers(gallery.rank(query(collection)))) == [2, 3]
    assert len(gallery.rank()) == 3


def test_an_empty_collection_has_no_hits(collection: Collection, tmp_path: Path) -> None:
    for gallery in (Gallery(collection), Gallery(Collection.open(tmp_path / "index"), memory=0)):
        for group in (None, "folder", "month"):
            assert len(gallery.rank(query(collection), group=group)) == 0  # type: ignore[arg-type]
            assert len(gallery.rank(sort="path", group=group)) == 0  # type: ignore[arg-type]
        assert gallery.view().find("0" * 64) == []


@pytest.mark.parametrize("key", ["", "x", "é" * 64, "0" * 63, "0" * 65, "\0" * 64, "G" * 64])
def test_a_key_that_no_image_has_finds_none(collection: Collection, key: str) -> None:
    collection.append([row(1)])
    assert Gallery(collection).view().find(key) == []


# ------------------------------------------------------------------ order


def test_images_are_listed_by_date_when_taken_else_when_changed_and_those_without_last(collection: Collection) -> None:
    collection.append(
        [
            row(1, taken=datetime(2021, 5, 1)),
            row(2),  # changed in 2024
            row(3, state=""),
            row(4, taken=datetime(2030, 1, 1)),
            row(5, state="an etag"),
            row(6, state=f"etag {20_500 * DAY}"),
            row(7, state=f"12 {20_600 * DAY} 512"),  # in an archive that was changed in 2026
        ]
    )
    gallery = Gallery(collection)
    assert numbers(gallery.rank(sort="newest")) == [4, 7, 2, 1, 3, 5, 6]
    assert numbers(gallery.rank(sort="score")) == [4, 7, 2, 1, 3, 5, 6]
    assert numbers(gallery.rank(sort="oldest")) == [1, 2, 7, 4, 3, 5, 6]
    assert sorted(numbers(gallery.rank(where=Where(since=datetime(1900, 1, 1))))) == [1, 2, 4, 7]
    months = gallery.rank(sort="oldest", group="month")
    assert list(months.groups or ()) == ["2021-05", "2024-10", "2026-05", "2030-01", *["no date"] * 3]


def test_images_are_listed_by_path_and_grouped_by_folder(collection: Collection) -> None:
    names = ["/p/b/2.jpg", "/p/a/1.jpg", "/p/b/1.jpg", "/p/0.jpg"]
    collection.append([row(number, name) for number, name in enumerate(names)])
    found = Gallery(collection).rank(sort="path", group="folder")
    assert paths(found) == ["/p/0.jpg", "/p/a/1.jpg", "/p/b/1.jpg", "/p/b/2.jpg"]
    assert list(found.groups or ()) == [".", "a", "b", "b"]


def test_the_matches_of_a_query_are_sorted_and_grouped_and_not_the_rest(collection: Collection) -> None:
    rng = np.random.default_rng(3)
    rows = [row(number, embedding=rng.standard_normal(DIM)) for number in range(2 * MATCHES)]
    near = [row(1000 + number, embedding=np.ones(DIM) + 0.1 * rng.standard_normal(DIM)) for number in range(5)]
    collection.append([*rows, *near])
    gallery = Gallery(collection)
    asked = collection.direction(np.ones(DIM))
    best = numbers(gallery.rank(asked))
    newest = gallery.rank(asked, sort="newest")
    assert len(newest) == MATCHES
    assert numbers(newest) == sorted(best[:MATCHES], reverse=True)  # a higher number was changed later
    grouped = gallery.rank(asked, group="folder")
    assert sorted(numbers(grouped)) == sorted(best[:MATCHES])
    assert grouped.groups is not None
    changes = sum(one != other for one, other in zip(grouped.groups, list(grouped.groups)[1:]))
    assert changes == len(set(grouped.groups)) - 1  # equal ones follow each other
    assert grouped.scores is not None
    assert numbers(grouped)[0] == best[0]


def test_the_pages_of_a_search_are_computed_once(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.append(drawn(20))
    gallery = Gallery(collection)
    first = gallery.rank(query(collection))
    monkeypatch.setattr(gallery_module, "_scores", None)
    assert gallery.rank(query(collection)) is first
    for seed in range(40):
        monkeypatch.undo()
        gallery.rank(query(collection, seed))
    assert len(gallery._rankings) == gallery_module.RANKINGS


# ------------------------------------------------------------------ filters


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Collection, list[Row]]:
    folder = tmp_path_factory.mktemp("filtered") / "index"
    collection = Collection.create(folder, FakeEncoder())
    dates = [datetime(2020, 1, 1) + timedelta(days=40 * number) if number % 4 else None for number in range(90)]
    rows = [row(number, f"{ODD[number % len(ODD)]}/{number}.jpg", taken=dates[number]) for number in range(90)]
    rows.append(row(90, "/p/\udcfe.jpg"))
    collection.append(rows)
    return collection, rows


dates = st.none() | st.datetimes(datetime(2019, 1, 1), datetime(2031, 1, 1))
folders = st.none() | st.lists(
    st.sampled_from(
        ["/", "/p", "/p/", "/p/it's", "/p/100%_", '/p/"', "/p/a\\b", os.fsdecode(b"/p/\xff\\x"), "/p/\n'; --"]
    )
    | st.text(max_size=8),
    max_size=3,
).map(tuple)
sizes = st.none() | st.integers(0, 800)


@settings(deadline=None)
@given(st.builds(Where, folders=folders, since=dates, until=dates, min_width=sizes, min_height=sizes))
def test_filters_find_what_a_loop_over_all_rows_finds(filtered: tuple[Collection, list[Row]], where: Where) -> None:
    collection, rows = filtered

    def holds(one: Row) -> bool:
        changed = datetime.fromtimestamp(int(one.state.split()[1]) / 10**9, timezone.utc).replace(tzinfo=None)
        date = one.facts.taken or changed
        path = one.locator.path
        inside = where.folders is None or any(
            path == folder.rstrip("/") or path.startswith(folder.rstrip("/") + "/") for folder in where.folders
        )
        return (
            inside
            and (where.since is None or date >= where.since.replace(microsecond=where.since.microsecond // 1000 * 1000))
            and (where.until is None or date < where.until)
            and one.facts.width >= (where.min_width or 0)
            and one.facts.height >= (where.min_height or 0)
        )

    expected = sorted(int(one.facts.sha256, 16) for one in rows if holds(one))
    gallery = Gallery(collection)
    assert sorted(numbers(gallery.rank(where=where))) == expected
    asked = collection.direction(np.ones(DIM))
    hits = collection.search(asked, 100, where=where)
    assert sorted(int(hit.sha256, 16) for hit in hits) == expected
    assert [hit.path for hit in hits] == paths(gallery.rank(asked, where=where))


def test_a_zone_of_a_date_is_heeded(collection: Collection) -> None:
    collection.append([row(1, taken=datetime(2024, 1, 1, 12))])
    east = timezone(timedelta(hours=3))
    assert (
        Where(since=datetime(2024, 1, 1, 14, tzinfo=east)).condition()
        == Where(since=datetime(2024, 1, 1, 11)).condition()
    )
    assert len(Gallery(collection).rank(where=Where(since=datetime(2024, 1, 1, 16, tzinfo=east)))) == 0


# ------------------------------------------------------------------ while it changes


def test_it_sees_what_is_added_changed_and_removed_meanwhile(tmp_path: Path, collection: Collection) -> None:
    gallery = Gallery(Collection.open(tmp_path / "index"))
    asked = collection.direction(np.ones(DIM))
    assert len(gallery.rank(asked)) == 0
    collection.append(drawn(40))
    before = gallery.rank(asked)
    assert len(before) == 40
    held = gallery.view().held
    collection.append([row(100, embedding=np.ones(DIM))])
    assert numbers(gallery.rank(asked))[0] == 100
    collection.append([row(100, embedding=-np.ones(DIM)), row(101, embedding=np.ones(DIM) * 3)])
    found = gallery.rank(asked)
    assert (numbers(found)[0], numbers(found)[-1], len(found)) == (101, 100, 42)
    collection.remove([row(101).id])
    assert len(gallery.rank(asked)) == len(gallery.view()) == 41
    assert gallery.view().held is held  # it was followed, and never read anew
    assert paths(before) == paths(before)  # an older one can still be read
    collection.remove([row(number).id for number in range(30)])
    assert sorted(numbers(gallery.rank(asked))) == [*range(30, 40), 100]
    assert gallery.view().held is not held


def test_it_follows_through_merged_files_and_growth_as_if_it_were_read_anew(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SMALL_FRAGMENTS", 4)
    monkeypatch.setattr(upkeep, "apart", lambda step, folder, name, limit_s: step(folder, name))  # here, which is quick
    gallery = Gallery(collection)
    rng = np.random.default_rng(5)
    for step in range(12):
        collection.append([row(int(number), embedding=rng.standard_normal(DIM)) for number in rng.choice(60, 5, False)])
        if step % 3 == 2:
            collection.remove([row(int(number)).id for number in rng.choice(60, 3)])
        if step % 5 == 4:
            collection.settle()
        asked, fresh = query(collection, step), Gallery(collection)
        for where in (None, Where(min_width=660)):
            first, second = gallery.rank(asked, where=where), fresh.rank(asked, where=where)
            assert numbers(first) == numbers(second)
            assert first.scores is not None
            np.testing.assert_array_equal(first.scores, second.scores)


def test_what_failed_while_it_followed_leaves_nothing_behind(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.append(drawn(10))
    gallery = Gallery(collection)
    gallery.view()
    collection.append([row(50)])
    with monkeypatch.context() as patch:
        patch.setattr(gallery_module, "at_unit_length", lambda embeddings: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gallery.view()
    assert sorted(numbers(gallery.rank())) == [*range(10), 50]


# ------------------------------------------------------------------ names of folders


@pytest.mark.parametrize(
    ("folders", "sources", "names"),
    [
        (["/home/me/p", "/home/me/p/2024"], ["/home/me/p"], [".", "2024"]),
        (["/home/me/p/2023", "/home/me/p/2024/x"], [], ["2023", "2024/x"]),
        (["/home/me/p/x", "/mnt/q"], ["/home/me/p", "/mnt/q"], ["p/x", "q"]),
        (["/home/me/p/x"], ["/home/me/p", "/home/me"], ["p/x"]),
        (["/home/me/p/x", "/srv/secret/y"], ["/home/me/p"], ["p/x", "y"]),
        ([os.fsdecode(b"/p/\xff")], ["/p"], ["\\udcff"]),
        (["/"], ["/"], ["."]),
        ([""], [], ["."]),
        (["https://example.org/a", "/p/b"], [], ["https://example.org/a", "."]),
        (["/home/me/x", "/srv/y", "/"], [], ["x", "y", "."]),
    ],
)
def test_folders_are_named_from_what_the_collection_was_made_of(
    folders: list[str], sources: list[str], names: list[str]
) -> None:
    assert folder_names(folders, sources) == names


def test_a_folder_is_found_again_by_its_name_or_that_of_one_above_it(collection: Collection) -> None:
    collection.append(
        [row(1, "/home/me/p/2024/may/1.jpg"), row(2, "/home/me/p/2024/june/2.jpg"), row(3, "/home/me/p/3.jpg")]
    )
    collection.add_run(RunRecord("2026", "2026", ["/home/me/p", "-"], 3, 0, 0, 0, 0))
    view = Gallery(collection).view()
    assert [view.image(position).folder for position in range(3)] == ["2024/may", "2024/june", "."]
    assert view.folders("2024") == ("/home/me/p/2024",)
    assert view.folders("2024/may/") == ("/home/me/p/2024/may",)
    assert view.folders("MA") == ("/home/me/p/2024/may",)
    assert view.folders("/home/me/p") == view.folders("../..") == ()


# ------------------------------------------------------------------ mixes and what is usual


def test_a_mix_is_the_weighted_sum_of_directions(collection: Collection) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, DIM)) * [[1e-3], [1e6]]
    mixed = collection.mix([first, second], [1, -0.5])
    expected = first / np.linalg.norm(first) - 0.5 * second / np.linalg.norm(second)
    np.testing.assert_allclose(mixed, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(("vectors", "weights"), [([[1.0] * DIM] * 2, [1, -1]), ([[1.0] * DIM], [0]), ([], [])])
def test_queries_that_cancel_each_other_out_are_refused(
    collection: Collection, vectors: list, weights: list[float]
) -> None:
    with pytest.raises(InputError, match="cancel each other out"):
        collection.mix(vectors, weights)


def test_the_usual_score_and_spread_are_those_of_the_many_whatever_a_few_matches_score() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0.2, 0.03, 2000)
    assert usual_and_spread(scores) == pytest.approx((0.2, 0.03), rel=0.1)
    assert usual_and_spread(np.concatenate([scores, np.full(200, 0.9)])) == pytest.approx((0.2, 0.03), rel=0.15)


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 100_000])
def test_the_best_by_chance_is_what_the_best_of_so_many_draws_is_on_average(count: int) -> None:
    rng = np.random.default_rng(count)
    best = [rng.standard_normal(count).max() for _ in range(200)]
    assert best_by_chance(count) == pytest.approx(np.mean(best), abs=4 * np.std(best) / np.sqrt(200) + 0.02)
