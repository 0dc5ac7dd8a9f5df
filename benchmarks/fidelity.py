"""How near every precision and engine comes to float32 by torch, and how fast it is.

    python benchmarks/fidelity.py                                              # every family, 500 images
    python benchmarks/fidelity.py --families clip vsepp --precisions auto int8 --images 200
    python benchmarks/fidelity.py --images 600 --seed 20261121 --parts         # images that nothing was tuned on
    python benchmarks/fidelity.py --budget-s 120                               # for all images of one configuration

Images are drawn from a seed, all different; int8 is calibrated on others. For each configuration, against float32 by
torch on inputs that Pillow resized:
    cosine            of each image's embedding to its reference: the least
    centred cosine    the same after the mean embedding was subtracted, since embeddings of one net have much in common:
                      the least, percentiles 0.1, 1, 5 and 50, and the share of images below the gate of "auto"
    relative error    the largest difference in an image's embedding / the largest number in its reference: percentiles
                      50, 95, 99 and 99.9, and the most
    neighbours        the share of images whose nearest other image is the same
    images/s          of the net alone, inputs prepared: the median over batches, the first left out
    judged            for how many images there was time

In low precision torch resizes images, in float32 Pillow does. With --parts the two causes of a difference are also
shown one by one: "net" is the low precision on Pillow's inputs, "resizer" is float32 on torch's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from models_at_hand import CALIBRATED, JUDGED, Model, Table, at_hand, bundled, draw_files, heading, keep, machine

from image_encoders import models
from image_encoders.encoder import Encoder, ordered
from image_encoders.engines.closeness import CLOSEST, closeness
from image_encoders.errors import DeviceError, MissingExtra

WAYS = (  # precision, engine; those that this machine does not have are refused, and the table says why
    ("auto", "auto"),
    ("float32", "openvino"),
    ("bfloat16", "torch"),
    ("bfloat16", "openvino"),
    ("int8", "openvino"),
)
BELOW = f"below {CLOSEST}"
CENTRED = {
    "least centred cosine": 0.0,
    "centred cosine, p0.1": 0.1,
    "centred cosine, p1": 1.0,
    "centred cosine, p5": 5.0,
    "median centred cosine": 50.0,
}
RELATIVE = {"relative error, median": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "most": 100.0}


def judge(model: Model, options: argparse.Namespace, work: Path, table: Table) -> None:
    """A row of the table for each way to run a model; the first is what the others are compared with."""
    plain = model.load(device="cpu", precision="float32", engine="torch")
    exact = prepared(plain, model, options, work / "float32.npy")
    wanted, rate = embedded(plain, exact, options)
    own = {"model": model.label, "precision": "float32", "engine": "torch"}
    table.add({**own, "images/s": rate, "judged": len(wanted), "remark": "the reference"})
    resized: np.ndarray | None = None  # inputs of low precision
    best: tuple[str, str] | None = None  # what "auto" came to, which need not be judged twice
    for precision, engine in WAYS:
        if precision not in options.precisions or (precision, engine) == best:
            continue
        calibration = {"calibration": work.parent / "calibration"} if precision == "int8" else {}
        try:
            encoder = model.load(device="cpu", precision=precision, engine=engine, **calibration)
        except (DeviceError, MissingExtra) as error:
            remark = str(error).partition(";")[0]
            table.add({"model": model.label, "precision": precision, "engine": engine, "remark": remark})
            continue
        if precision == "auto":
            best = encoder.precision, encoder.engine
        inputs = exact
        if encoder.precision != "float32":
            if resized is None:
                resized = prepared(encoder, model, options, work / "low.npy")
                if options.parts:
                    embeddings, rate = embedded(plain, resized[: len(wanted)], options)
                    compare(model, plain, embeddings, wanted, rate, "float32", "resizer", table)
            inputs = resized
        embeddings, rate = embedded(encoder, inputs[: len(wanted)], options)
        compare(model, encoder, embeddings, wanted, rate, precision, "all", table)
        if options.parts and encoder.precision != "float32":
            embeddings, rate = embedded(encoder, exact[: len(wanted)], options)
            compare(model, encoder, embeddings, wanted, rate, precision, "net", table)
        del encoder


def compare(
    model: Model,
    encoder: Encoder,
    embeddings: np.ndarray,
    wanted: np.ndarray,
    rate: float,
    asked: str,
    part: str,
    table: Table,
) -> None:
    wanted = wanted[: len(embeddings)]
    near, mean = closeness(embeddings, wanted), wanted.mean(axis=0)
    centred = cosines(embeddings - mean, wanted - mean)
    relative = np.abs(embeddings - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    refused = encoder.choice.refused if encoder.choice is not None else ()
    table.add(
        {
            "model": model.label,
            "precision": encoder.precision if asked != "auto" else f"auto: {encoder.precision}",
            "engine": encoder.engine,
            "differs by": part,
            "least cosine": near.cosine,
            **percentiles(centred, CENTRED),
            BELOW: float((centred < CLOSEST).mean()),
            **percentiles(relative, RELATIVE),
            "neighbours": near.neighbours,
            "images/s": rate,
            "judged": len(embeddings),
            "remark": "; ".join(refused) or None,
        }
    )


def prepared(encoder: Encoder, model: Model, options: argparse.Namespace, path: Path) -> np.ndarray:
    """The encoder's inputs of drawn images (count, ...), on the disk and not in memory."""
    tower, stored = encoder.tower("image"), None
    drawn = (model.draw(options.seed, number) for number in range(options.images))
    for number, one in enumerate(ordered(tower.input, drawn, ahead=16)):
        if stored is None:
            stored = np.lib.format.open_memmap(path, "w+", one.dtype, (options.images, *one.shape))
        stored[number] = one
    assert stored is not None
    return stored


def embedded(encoder: Encoder, inputs: np.ndarray, options: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Embeddings of as many inputs as there is time for, and images/s."""
    embed = encoder.tower("image").embed
    embeddings, seconds = [], []
    began = time.perf_counter()
    for batch in batches(inputs, options.batch_size):
        start = time.perf_counter()
        embeddings.append(embed(batch))
        seconds.append((time.perf_counter() - start) / len(batch))
        if time.perf_counter() - began > options.budget_s:
            break
    return np.concatenate(embeddings), float(1 / np.median(seconds[1:] or seconds))


def batches(inputs: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(inputs), size):
        yield np.array(inputs[start : start + size])


def cosines(embeddings: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(wanted, axis=1)
    return (embeddings * wanted).sum(axis=1) / lengths


def percentiles(values: np.ndarray, named: dict[str, float]) -> dict[str, float]:
    """Values that are there, none in between: of 600 values the lowest 0.1 % is the least."""
    return {name: float(np.percentile(values, at, method="nearest")) for name, at in named.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=models.families(), default=models.families())
    precisions = list(dict.fromkeys(precision for precision, _ in WAYS))
    parser.add_argument("--only", metavar="WORDS", default="", help="models whose label has these words in it")
    parser.add_argument("--precisions", nargs="+", choices=precisions, default=precisions)
    parser.add_argument("--images", type=int, default=500, help="that are judged, 2 or more")
    parser.add_argument("--seed", type=int, default=JUDGED, help=f"of those images, any but {CALIBRATED}")
    parser.add_argument("--parts", action="store_true", help="also the net's and the resizer's share")
    parser.add_argument("--calibration", type=int, default=128, help="other images, that int8 is calibrated on")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--budget-s", type=float, default=300, help="after which a configuration is cut short")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args(arguments)
    if options.images < 2 or options.batch_size < 2:
        parser.error("neighbours need two images and more, in batches of two and more")
    if options.seed == CALIBRATED:
        parser.error(f"int8 is calibrated on the images of seed {CALIBRATED}")
    where = machine()
    heading(where)
    table = Table(
        "model",
        "precision",
        "engine",
        "differs by",
        "least cosine",
        *CENTRED,
        BELOW,
        *RELATIVE,
        "neighbours",
        "images/s",
        "judged",
        "remark",
    )
    offered = [*(bundled() if "clip" in options.families else ()), *at_hand(options.families)]
    chosen = [model for model in offered if options.only in model.label]
    with tempfile.TemporaryDirectory() as work:
        if "int8" in options.precisions:
            draw_files(Path(work, "calibration"), CALIBRATED, options.calibration)
        for model in chosen:
            with tempfile.TemporaryDirectory(dir=work) as own:
                judge(model, options, Path(own), table)
            keep(options.json, where, table.rows)


if __name__ == "__main__":
    main()
