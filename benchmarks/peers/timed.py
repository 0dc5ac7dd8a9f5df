"""What every worker here does: load a model, embed a folder of images, say how long it took.

    WORKER PHOTOS MODEL ROWS PRECISION     prints one JSON value and writes ROWS, an .npy file, in the names' order

seconds, cpu: of the loop alone, files to rows, the model loaded before; cpu counts the processes that it started
peak_mb: of the largest process
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH = 32

Embed = Callable[[list[Path]], Any]


def main(load: Callable[[Path, str], Embed]) -> None:
    """Time what `load(model, precision)` returns: paths -> (N, dim) array of numbers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("precision", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    # Libraries print what they do: that goes elsewhere, from child processes too.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    embed = load(options.model, options.precision)
    paths = sorted(options.photos.iterdir())
    began, cpu = time.perf_counter(), _cpu()
    rows = embed(paths)
    seconds, cpu = time.perf_counter() - began, _cpu() - cpu

    import numpy as np

    rows = np.asarray(rows, np.float32)
    if len(rows) != len(paths):
        sys.exit(f"{len(rows)} rows for {len(paths)} images")
    np.save(options.rows, rows)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    with answer:
        json.dump({"seconds": seconds, "images": len(paths), "cpu": cpu, "peak_mb": peak / 1024}, answer)
    os._exit(0)  # some leave threads that never end


def _cpu() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])
