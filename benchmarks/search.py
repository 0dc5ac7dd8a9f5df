"""How fast a big collection is searched: in memory, by the database, and over HTTP from the request to the listed hits.

    python benchmarks/search.py                      # 100,000 images of 512 numbers
    python benchmarks/search.py --rows 1000000

Everything is made here, from a seed: clustered embeddings of unit length, and CLIP ViT-B/32 with random weights, whose
text tower embeds each query of the part over HTTP.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bulk import apart, machine, random_clip, show

LISTENING = re.compile(r"listening on (http://[^;\s]+)")
WORDS = "a photo of the old new red dark small dog cat house tree beach street at night in winter by the lake"


def fill(folder: Path, model: Path, count: int) -> int:
    """A collection of this model's, with embeddings drawn from 2,000 clusters; how long an embedding is."""
    import image_encoders
    from image_encoders.collection import Collection, Row
    from image_encoders.records import Locator
    from image_encoders.tables import ImageFacts

    encoder = image_encoders.load(f"clip/{model}", device="cpu", precision="float32")
    collection = Collection.create(folder, encoder)
    rng = np.random.default_rng(0)
    offset = 2 * rng.standard_normal(encoder.dim)
    centres = offset + rng.standard_normal((2000, encoder.dim))
    began = datetime.datetime(2010, 1, 1)
    for start in range(0, count, 4096):
        numbers = range(start, min(count, start + 4096))
        drawn = centres[rng.integers(0, len(centres), len(numbers))]
        drawn = drawn + 0.5 * rng.standard_normal(drawn.shape)
        units = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        rows = []
        for number, unit in zip(numbers, units):
            path = f"/photos/{number % 500:03d}/{number:07d}.jpg"
            taken = began + datetime.timedelta(minutes=61 * number % 7_000_000) if number % 4 else None
            facts = ImageFacts(4000, 3000, f"{number:064x}", 10**6, taken)
            rows.append(Row(path, Locator(path), unit, facts, ""))
        collection.append(rows, new=True)
    collection.settle()
    return encoder.dim


def timed(function: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds of several calls, after one that does not count."""
    function()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(1000 * (time.perf_counter() - began))
    taken.sort()
    return {"median ms": statistics.median(taken), "90% ms": taken[int(0.9 * (len(taken) - 1))], "best ms": taken[0]}


def within(folder: Path, dim: int, times: int) -> list[dict]:
    """In one process, without a model: the collection in memory, and the database."""
    from image_encoders.collection import ITEMS, Collection
    from image_encoders.gallery import Gallery
    from image_encoders.tables import Where

    collection = Collection.open(folder)
    rng = np.random.default_rng(1)

    def asked() -> np.ndarray:
        return collection.direction(rng.standard_normal(dim))

    def flat(k: int) -> Callable[[], Any]:
        def search(table: Any) -> Any:
            query = table.search(asked(), vector_column_name="embedding").distance_type("cosine").limit(k)
            return query.bypass_vector_index().select(["id", "_distance"]).to_arrow()

        return lambda: collection.read(ITEMS, search, None)

    before, began = resident(), time.perf_counter()
    gallery = Gallery(collection)
    gallery.view()
    table: list[dict] = [
        {"what": "reading it into memory", "median ms": 1000 * (time.perf_counter() - began), "MB": resident() - before}
    ]

    def one_folder() -> Where:
        return Where(folders=(f"/photos/{rng.integers(500):03d}",))

    def dates() -> Where:
        return Where(since=datetime.datetime(2020, 1, int(rng.integers(1, 30))))

    for what, function in {
        "in memory, all scores": lambda: gallery.rank(asked()),
        "in memory, in a folder": lambda: gallery.rank(asked(), where=one_folder()),
        "in memory, since a date": lambda: gallery.rank(asked(), where=dates()),
        "in memory, matches grouped by month": lambda: gallery.rank(asked(), group="month"),
        "the database, all rows, 10": flat(10),
        "the database, all rows, 10,000": flat(10_000),
        "the database's index, 10": lambda: collection.search(asked(), 10),
        "the database's index, 200": lambda: collection.search(asked(), 200),
    }.items():
        table.append({"what": what, **timed(function, times)})
    return table


def over_http(folder: Path, times: int) -> list[dict]:
    """Against a server: each search has words of its own, which its model embeds."""
    rng = np.random.default_rng(2)

    def words() -> str:
        return " ".join(rng.choice(WORDS.split(), 6))

    with serving(folder) as (url, pid), httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        inner: dict[str, list[float]] = {"embed": [], "search": []}

        def search(**params: Any) -> dict:
            answer = client.get("/search.json", params=params)
            answer.raise_for_status()
            body: dict = answer.json()
            for name, seconds in body["seconds"].items():
                inner[name].append(1000 * seconds)
            return body

        def some_folder() -> str:
            return f"{rng.integers(500):03d}"

        key = search(sort="path", k=1)["hits"][0]["key"]
        table: list[dict] = []
        for what, function in {
            "words, 200 hits": lambda: search(q=words(), k=200),
            "words minus words, in a folder": lambda: search(q=words(), minus=words(), folder=some_folder()),
            "like an image of the collection": lambda: search(like=key, minus=words()),
            "hits 9,801 to 10,000 of a search": lambda: search(like=key, k=200, offset=9800),
            "all images, newest first": lambda: search(sort="newest", offset=int(rng.integers(10_000))),
            "all images, by month, 1,000 hits": lambda: search(group="month", k=1000),
        }.items():
            for kept in inner.values():
                kept.clear()
            measured = timed(function, times)
            table.append({"what": what, **measured, **{name: statistics.median(kept) for name, kept in inner.items()}})
        table.append({"what": "the server's process", "MB": resident(pid)})
    return table


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    words = [sys.executable, "-m", "image_encoders", "serve", "--collection", str(folder), "--port", "0"]
    process = subprocess.Popen([*words, "--precision", "float32"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = next((found[1] for line in process.stderr if (found := LISTENING.search(line))), None)
        if url is None:
            raise SystemExit("the server ended before it listened")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait(60)


def resident(pid: int | str = "self") -> float:
    """The memory of a process [MB]."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=50, help="searches of each kind")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the model and the collection there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        model, folder = work / "model", work / f"index-{options.rows}"
        if not folder.exists():
            apart(random_clip, model)
            fill(folder, model, options.rows)
        tables = [within(folder, 512, options.times), over_http(folder, options.times)]
    where = machine()
    for table in tables:
        show(where, table, markdown=True)
    if options.json:
        options.json.write_text(json.dumps({**where, "rows": options.rows, "tables": tables}, indent=2) + "\n")


if __name__ == "__main__":
    main()
