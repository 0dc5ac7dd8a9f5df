"""What a run costs beside reading, preprocessing and the net, from ten thousand images to ten millions.

    python benchmarks/scale.py memory --counts 10000 100000 1000000   # peak memory and time of first runs and reruns
    python benchmarks/scale.py start --lines 10000000                 # until the first embedding of a long list
    python benchmarks/scale.py digests --counts 1000000 10000000      # tables of digests: bytes and time an entry

The net is a stub that takes no time. The images are made here: one JPEG of 32 x 24 with its number in a comment.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bulk import machine, show
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.inputs.image import ImageLimits, read_image
from image_encoders.records import Locator


def memory(options: argparse.Namespace, work: Path) -> list[dict]:
    """First runs and reruns of so many images, each in a process of its own."""
    table = []
    for count in options.counts:
        for what in ("first", "again"):
            table.append({"run": what, **_apart("run", count, options.dim, work / f"collection {count}")})
            print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    peaks = [row["peak MB"] for row in table if row["run"] == "first"]
    return [*table, {"run": "largest / smallest peak of a first run", "peak MB": max(peaks) / min(peaks)}]


def start(options: argparse.Namespace, work: Path) -> list[dict]:
    """Seconds until the first embedding of a list with so many lines, all but the first of them of missing files."""
    image = work / "0.jpg"
    image.write_bytes(Generated(0).read(ImageLimits()))
    listed = work / "list.txt"
    with listed.open("w") as file:
        file.write(f"{image}\n")
        for start in range(0, options.lines, 10_000):
            file.write(
                "".join(
                    f"/mnt/images/{number // 1000:06d}/{number:09d}.jpg\n" for number in range(start, start + 10_000)
                )
            )
    return [_apart("begin", str(listed), work / "collection")]


def digests(options: argparse.Namespace, work: Path) -> list[dict]:
    """Tables of digests in memory: bytes, and microseconds to put and to find, an entry."""
    return [_apart("table", count) for count in options.counts]


def _apart(name: str, *arguments: Any) -> dict:
    """What one of the functions below prints, in a process of its own."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


# ------------------------------------------------------------------ what is measured


def run(count: int, dim: int, folder: str) -> dict:
    """A run of generated images into a collection."""
    from image_encoders.bulk.run import run
    from image_encoders.collection import Collection

    count, dim = int(count), int(dim)
    collection = Collection.open_or_create(folder, stub(dim))
    began, cpu = time.perf_counter(), _cpu()
    report = run(generated(count), stub(dim), collection, batch_size=64)
    seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    assert report.total == count == report.encoded + report.unchanged, report
    return {
        "images": count,
        "peak MB": _status("VmHWM"),
        "peak MB of the upkeep": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "seconds": seconds,
        "ms/image": 1000 * seconds / count,
        "core ms/image": 1000 * cpu / count,
    }


def begin(listed: str, folder: str) -> dict:
    """The run of a list, given up after its first commit."""
    from image_encoders.bulk import encode
    from image_encoders.bulk.sources import find

    began = time.perf_counter()
    for outcomes in encode.encode(find([listed]), stub(), batch_size=1):
        if any(isinstance(one, encode.Encoded) for one in outcomes):
            return {
                "lines": sum(1 for _ in open(listed, "rb")),
                "seconds to the first embedding": time.perf_counter() - began,
            }
    raise SystemExit("nothing was embedded")


def table(count: int) -> dict:
    """A table of digests with so many entries."""
    from image_encoders.bulk.digests import DigestTable

    count = int(count)
    before = _status("VmRSS")
    found = DigestTable()
    began = time.perf_counter()
    for number in range(count):
        found.put(f"/mnt/images/{number:09d}.jpg", "1234 567")
    put = time.perf_counter()
    for number in range(0, count, 10):
        assert f"/mnt/images/{number:09d}.jpg" in found
    looked = time.perf_counter()
    return {
        "entries": count,
        "bytes/entry, in the end": 2**20 * (_status("VmRSS") - before) / count,
        "bytes/entry, at the peak": 2**20 * (_status("VmHWM") - before) / count,
        "us to put": 1e6 * (put - began) / count,
        "us to find": 1e7 * (looked - put) / count,
    }


def _cpu() -> float:
    """Seconds of a core that this process has used, and those that it has started."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _status(name: str) -> float:
    """VmRSS, the resident memory of this process, or VmHWM, the most there was [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


# ------------------------------------------------------------------ images and net


class Generated:
    """An image that is made when it is read; a source item."""

    metadata = error = None
    state = "1 1"

    def __init__(self, number: int):
        self.id = f"/mnt/images/{number // 1000:06d}/{number:09d}.jpg"

    @property
    def locator(self) -> Locator:
        return Locator(self.id)

    def read(self, limits: ImageLimits) -> bytes:
        comment = self.id.encode()
        return JPEG[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + JPEG[2:]


def generated(count: int) -> Iterator[Generated]:
    return map(Generated, range(count))


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(file, "JPEG")
    return file.getvalue()


JPEG = _jpeg()


def stub(dim: int = 512) -> Encoder:
    """An encoder whose net takes no time: its embeddings have nothing to do with the images, and are clustered."""

    def embed(inputs: np.ndarray) -> np.ndarray:
        some = centres[rng.integers(0, len(centres), len(inputs))]
        return some + 0.3 * rng.standard_normal((len(inputs), dim), dtype=np.float32)

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((500, dim), dtype=np.float32)
    tower = Tower(InputSpec("image", read_image, lambda pixels: np.zeros((3, 8, 8), np.uint8), (3, 8, 8)), embed)
    return Encoder("benchmark", dim, {"image": tower}, "0" * 32)


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in APART:
        print(json.dumps(APART[sys.argv[1]](*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="memory | start | digests")
    for function in (memory, start, digests):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--work", type=Path, metavar="FOLDER", help="where collections and lists are made")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
        if function is start:
            command.add_argument("--lines", type=int, default=10_000_000)
        else:
            command.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
        if function is memory:
            command.add_argument("--dim", type=int, default=512)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        found = options.function(options, Path(work))
    show(machine(), found, markdown=False)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "results": found}, indent=2) + "\n")


APART = {function.__name__: function for function in (run, begin, table)}

if __name__ == "__main__":
    main()
