"""How near every precision and engine comes to float32 by torch, and how fast it is.

    python benchmarks/fidelity.py                                    # every family, 500 pictures
    python benchmarks/fidelity.py --families clip vsepp --precisions auto int8 --pictures 200
    python benchmarks/fidelity.py --budget-s 120                     # for all pictures of one configuration

Pictures are drawn from a seed, all different; int8 is calibrated on others. For each configuration:
    cosine          of each picture's row to its row in float32 by torch: the least, and the median
    centred cosine  the same after the mean row was subtracted, since rows of one net have much in common
    neighbours      the share of pictures whose nearest other picture is the same
    images/s        of the net alone, inputs prepared: the median over batches, the first left out
    judged          for how many pictures there was time
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from models_at_hand import CALIBRATED, JUDGED, Model, Table, at_hand, draw, draw_files, heading, keep, machine

from image_encoders import models
from image_encoders.encoder import Encoder, Tower, ordered
from image_encoders.engines.precision import closeness
from image_encoders.errors import DeviceError, MissingExtra

WAYS = (  # precision, engine; those that this machine does not have are refused, and the table says why
    ("auto", "auto"),
    ("float32", "openvino"),
    ("bfloat16", "torch"),
    ("bfloat16", "openvino"),
    ("int8", "openvino"),
)


def judge(model: Model, options: argparse.Namespace, work: Path, table: Table) -> None:
    """A row of the table for each way to run a model; the first is what the others are compared with."""
    encoder = model.load(device="cpu", precision="float32", engine="torch")
    inputs = prepared(encoder.tower("image"), options.pictures, work / "inputs.npy")
    wanted, rate = embedded(encoder, inputs, options)
    own = {"model": model.label, "precision": "float32", "engine": "torch"}
    table.add({**own, "images/s": rate, "judged": len(wanted), "remark": "the reference"})
    del encoder
    best: tuple[str, str] | None = None  # what "auto" came to, which need not be judged twice
    for precision, engine in WAYS:
        if precision not in options.precisions or (precision, engine) == best:
            continue
        pictures = {"calibration": work.parent / "calibration"} if precision == "int8" else {}
        try:
            encoder = model.load(device="cpu", precision=precision, engine=engine, **pictures)
        except (DeviceError, MissingExtra) as error:
            remark = str(error).partition(";")[0]
            table.add({"model": model.label, "precision": precision, "engine": engine, "remark": remark})
            continue
        if precision == "auto":
            best = encoder.precision, encoder.engine
        rows, rate = embedded(encoder, inputs[: len(wanted)], options)
        compare(model, encoder, rows, wanted[: len(rows)], rate, precision, table)
        del encoder


def compare(
    model: Model, encoder: Encoder, rows: np.ndarray, wanted: np.ndarray, rate: float, asked: str, table: Table
) -> None:
    near, mean = closeness(rows, wanted), wanted.mean(axis=0)
    refused = encoder.choice.refused if encoder.choice is not None else ()
    table.add(
        {
            "model": model.label,
            "precision": encoder.precision if asked != "auto" else f"auto: {encoder.precision}",
            "engine": encoder.engine,
            "least cosine": near.cosine,
            "median cosine": median_cosine(rows, wanted),
            "least centred cosine": near.centred,
            "median centred cosine": median_cosine(rows - mean, wanted - mean),
            "neighbours": near.neighbours,
            "images/s": rate,
            "judged": near.pictures,
            "remark": "; ".join(refused) or None,
        }
    )


def prepared(tower: Tower, count: int, path: Path) -> np.ndarray:
    """The inputs of drawn pictures (count, ...), on the disk and not in memory."""
    stored: np.memmap | None = None
    for number, one in enumerate(ordered(lambda number: tower.input(draw(JUDGED, number)), range(count), ahead=16)):
        if stored is None:
            stored = np.lib.format.open_memmap(path, "w+", one.dtype, (count, *one.shape))
        stored[number] = one
    assert stored is not None
    return stored


def embedded(encoder: Encoder, inputs: np.ndarray, options: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Rows of as many inputs as there is time for, and images/s."""
    embed = encoder.tower("image").embed
    rows, seconds = [], []
    began = time.perf_counter()
    for batch in batches(inputs, options.batch_size):
        start = time.perf_counter()
        rows.append(embed(batch))
        seconds.append((time.perf_counter() - start) / len(batch))
        if time.perf_counter() - began > options.budget_s:
            break
    return np.concatenate(rows), float(1 / np.median(seconds[1:] or seconds))


def batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(inputs), size):
        yield np.array(inputs[start : start + size])


def median_cosine(rows: np.ndarray, wanted: np.ndarray) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(np.median((rows * wanted).sum(axis=1) / lengths))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=models.families(), default=models.families())
    precisions = list(dict.fromkeys(precision for precision, _ in WAYS))
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--pictures", type=int, default=500, help="that are judged, 2 or more")
    parser.add_argument("--calibration", type=int, default=128, help="other pictures, that int8 is calibrated on")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--budget-s", type=float, default=300, help="after which a configuration is cut short")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(arguments)
    if options.pictures < 2 or options.batch_size < 2:
        parser.error("neighbours need two pictures and more, in batches of two and more")
    where = machine()
    heading(where)
    table = Table(
        "model",
        "precision",
        "engine",
        "least cosine",
        "median cosine",
        "least centred cosine",
        "median centred cosine",
        "neighbours",
        "images/s",
        "judged",
        "remark",
    )
    with tempfile.TemporaryDirectory() as work:
        if "int8" in options.precisions:
            draw_files(Path(work, "calibration"), CALIBRATED, options.calibration)
        for model in at_hand(options.families):
            with tempfile.TemporaryDirectory(dir=work) as own:
                judge(model, options, Path(own), table)
            keep(options.json, where, table.rows)


if __name__ == "__main__":
    main()
