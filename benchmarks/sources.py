"""How fast images are read from where they are, against the same files loose, with a net that takes no time.

    python benchmarks/sources.py shards --count 20000 --runs 5     # a WebDataset shard against a folder

Everything is made here, from a seed: JPEG files of 64 x 48, about 2 kB each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def shards(options: argparse.Namespace, work: Path) -> dict[str, float]:
    """Images/s of a folder, of a tar of its files in order, and of one with a caption beside each."""
    folder, plain, captioned = work / "loose", work / "plain.tar", work / "captioned.tar"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(plain, "w") as one, tarfile.open(captioned, "w") as other:
        for number in range(options.count):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(file, "JPEG", quality=60)
            (folder / f"{number:07d}.jpg").write_bytes(file.getvalue())
            for tar in (one, other):
                _add(tar, f"{number:07d}.jpg", file.getvalue())
            _add(other, f"{number:07d}.txt", f"a caption of image {number}".encode())
    runs: dict[str, list[dict[str, float]]] = {}
    for turn in range(options.runs):
        for path in (folder, plain, captioned) if turn % 2 == 0 else (captioned, plain, folder):
            runs.setdefault(path.name, []).append(_run(path, work / "index"))
    found = {
        f"{name}, {per}": statistics.median(one[per] for one in some) for name, some in runs.items() for per in some[0]
    }
    for name in ("plain.tar", "captioned.tar"):
        for per in ("images/s", "images/core s"):
            found[f"{name} / loose, {per}"] = found[f"{name}, {per}"] / found[f"loose, {per}"]
    return found


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _run(path: Path, index: Path) -> dict[str, float]:
    """A first run in a process of its own."""
    shutil.rmtree(index, ignore_errors=True)
    done = subprocess.run([sys.executable, __file__, "one", path, index], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def one(path: str, index: str) -> None:
    """A run whose net takes no time; prints images/s and, for machines that do other things, images/s of a core."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from fake_encoder import FakeEncoder
    from image_encoders.bulk.run import run
    from image_encoders.bulk.sources import find
    from image_encoders.collection import Collection

    encoder = FakeEncoder()
    collection = Collection.create(index, encoder)
    began, cores = time.perf_counter(), time.process_time()
    report = run(find([path]), encoder, collection, batch_size=64)
    seconds, cores = time.perf_counter() - began, time.process_time() - cores
    print(json.dumps({"images/s": report.encoded / seconds, "images/core s": report.encoded / cores}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["shards"])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = shards(options, Path(work))
    print(
        json.dumps({**found, "count": options.count, "cores": os.cpu_count(), "machine": platform.machine()}, indent=1)
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
    else:
        main()
