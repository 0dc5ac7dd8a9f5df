"""How fast nets run, files become rows and models load: what `load` chooses, against float32 by torch.

    python benchmarks/forward.py                                       # everything, every family
    python benchmarks/forward.py --only forward latency --families clip
    python benchmarks/forward.py --device cuda                         # on a GPU: forward, latency and tapped

forward      a batch of prepared images through the net, by turns; the median. Its operations, counted on the torch
             net, against the rate of the best matrix product that torch does here: convolutions that save
             multiplications (Winograd) can go beyond it
latency      one image: the net alone, and from the file to the row
end-to-end   files to rows by `encode_image`, against the loop that everybody writes first: PIL decodes, the family's
             own preparation on one thread, torch in float32, batches of 32. The net is ours in both: BiT's kernels
             are standardised once
load         `load` in a process of its own: the first time, which converts, and again; to the encoder and to the first
             row. peak: the most memory that was resident, mapped files included
scaling      forward on one thread and on more, each in a process of its own
tapped       a custom net that stops after an early layer, against the same layer and the whole net
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from load import resident
from models_at_hand import EARLY, JUDGED, Model, Table, at_hand, draw, heading, keep, machine
from PIL import Image

import bulk
from image_encoders import models
from image_encoders.encoder import Encoder, cores
from image_encoders.engines.select import Runtime

AUTO = {"precision": "auto", "engine": "auto"}
PLAIN = {"precision": "float32", "engine": "torch"}
BATCH = 32  # of the end-to-end loops
EVERYWHERE = ("forward", "latency", "tapped")  # what also runs on a GPU


def forward(options: argparse.Namespace) -> list[dict]:
    """The net alone, in batches."""
    rates = product_rates(options.device)
    print("\nMatrix products: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in rates.items()))
    table = Table(
        "model",
        "ours",
        "images/s",
        "float32 by torch, images/s",
        "ratio",
        "GFLOP/image",
        "GFLOP/s",
        "share of the products' rate",
        "share by torch",
    )
    for model in at_hand(options.families):
        ours, plain = (model.load(device=options.device, **runtime) for runtime in (AUTO, PLAIN))
        inputs = batch_of(ours, options.batch_size)
        taken = interleaved({"ours": embedding(ours, inputs), "plain": embedding(plain, inputs)}, options.repeats)
        ours_s, plain_s = (len(inputs) / taken[name] for name in ("ours", "plain"))
        operations = operations_of(plain, inputs[:1])
        table.add(
            {
                "model": model.label,
                "ours": chosen(ours),
                "images/s": ours_s,
                "float32 by torch, images/s": plain_s,
                "ratio": ours_s / plain_s,
                "GFLOP/image": operations / 1e9,
                "GFLOP/s": operations * ours_s / 1e9,
                "share of the products' rate": operations * ours_s / rates[ours.precision],
                "share by torch": operations * plain_s / rates["float32"],
            }
        )
    return table.rows


def latency(options: argparse.Namespace) -> list[dict]:
    """One image at a time."""
    table = Table(
        "model", "ours", "net, ms", "net by torch, ms", "ratio", "file to row, ms", "file to row by torch, ms"
    )
    with tempfile.TemporaryDirectory() as work:
        path = bulk.draw(Path(work, "photos"), 1) / f"{0:08d}.jpg"
        for model in at_hand(options.families):
            ours, plain = (model.load(device=options.device, **runtime) for runtime in (AUTO, PLAIN))
            inputs = batch_of(ours, 1)
            taken = interleaved(
                {
                    "ours": embedding(ours, inputs),
                    "plain": embedding(plain, inputs),
                    "our file": partial(ours.encode_image, [path]),
                    "plain file": partial(plain.encode_image, [path]),
                },
                4 * options.repeats,
            )
            table.add(
                {
                    "model": model.label,
                    "ours": chosen(ours),
                    "net, ms": 1000 * taken["ours"],
                    "net by torch, ms": 1000 * taken["plain"],
                    "ratio": taken["plain"] / taken["ours"],
                    "file to row, ms": 1000 * taken["our file"],
                    "file to row by torch, ms": 1000 * taken["plain file"],
                }
            )
    return table.rows


def end_to_end(options: argparse.Namespace) -> list[dict]:
    """Files to rows."""
    table = Table("model", "ours", "images/s", "naive loop, images/s", "ratio", "least cosine of the two's rows")
    with tempfile.TemporaryDirectory() as work:
        paths = sorted(bulk.draw(Path(work, "photos"), options.images).iterdir())
        for model in at_hand(options.families):
            ours, plain = (model.load(device="cpu", **runtime) for runtime in (AUTO, PLAIN))
            prepare = NAIVE[model.family]
            rows = ours.encode_image(paths[:BATCH], batch_size=BATCH), naive(plain, prepare, paths[:BATCH])  # warms up
            taken = interleaved(
                {
                    "ours": partial(ours.encode_image, paths, BATCH),
                    "naive": partial(naive, plain, prepare, paths),
                },
                fewer(options.repeats),
                warm_up=0,
            )
            table.add(
                {
                    "model": model.label,
                    "ours": chosen(ours),
                    "images/s": len(paths) / taken["ours"],
                    "naive loop, images/s": len(paths) / taken["naive"],
                    "ratio": taken["naive"] / taken["ours"],
                    "least cosine of the two's rows": least_cosine(*rows),
                }
            )
    return table.rows


def load(options: argparse.Namespace) -> list[dict]:
    """A model's way into memory."""
    table = Table("model", "weights MB", "load", "load, s", "first row, s", "process, s", "peak MB")
    for model in at_hand(options.families):
        size = megabytes(model.weights())
        with tempfile.TemporaryDirectory() as cache:
            own = {"IMAGE_ENCODERS_CACHE": cache}
            for label, runtime, turns in (
                ("first", AUTO, 1),
                ("again", AUTO, fewer(options.repeats)),
                ("float32 by torch", PLAIN, fewer(options.repeats)),
            ):
                runs = [child("loaded", model, runtime, own) for _ in range(turns)]
                middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
                table.add(
                    {
                        "model": model.label,
                        "weights MB": size,
                        "load": label,
                        "load, s": middle["load_s"],
                        "first row, s": middle["first_row_s"],
                        "process, s": middle["wall"],
                        "peak MB": middle["peak_mb"],
                    }
                )
    return table.rows


def scaling(options: argparse.Namespace) -> list[dict]:
    """Forward on more and more threads."""
    table = Table(
        "model", "threads", "ours", "images/s", "of one thread's", "by torch, images/s", "of one thread's there"
    )
    repeats = fewer(options.repeats)
    for model in at_hand(options.families):
        single: dict[str, float] = {}
        for threads in sorted({1, 2, cores()} & set(range(1, cores() + 1))):
            environment = {"OMP_NUM_THREADS": str(threads)}
            sizes = {"batch": options.batch_size, "repeats": repeats}
            runs = [child("ran", model, way, environment, **sizes) for way in (AUTO, PLAIN)]
            ours, plain = (run["images_s"] for run in runs)
            single = single or {"ours": ours, "plain": plain}
            table.add(
                {
                    "model": model.label,
                    "threads": threads,
                    "ours": runs[0]["chosen"],
                    "images/s": ours,
                    "of one thread's": ours / single["ours"],
                    "by torch, images/s": plain,
                    "of one thread's there": plain / single["plain"],
                }
            )
    return table.rows


def tapped(options: argparse.Namespace) -> list[dict]:
    """A layer near the start of a custom net, with the rest left out and with the rest run."""
    table = Table("model", "layer", "ours", "images/s", "whole net, images/s", "ratio")
    for model in at_hand(["custom"]):
        for layer in (EARLY, "features"):
            early, whole = (
                model.load(device=options.device, **AUTO, layer=layer, whole=whole) for whole in (False, True)
            )
            inputs = batch_of(early, options.batch_size)
            taken = interleaved({"early": embedding(early, inputs), "whole": embedding(whole, inputs)}, options.repeats)
            table.add(
                {
                    "model": model.label,
                    "layer": layer,
                    "ours": chosen(early),
                    "images/s": len(inputs) / taken["early"],
                    "whole net, images/s": len(inputs) / taken["whole"],
                    "ratio": taken["whole"] / taken["early"],
                }
            )
    return table.rows


PARTS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "forward": forward,
    "latency": latency,
    "end-to-end": end_to_end,
    "load": load,
    "scaling": scaling,
    "tapped": tapped,
}


# ------------------------------------------------------------------ measuring


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 2) -> dict[str, float]:
    """The median seconds of each, by turns, so that whatever else the machine does meets all of them."""
    for run in runs.values():
        for _ in range(warm_up):  # the first call allocates and chooses algorithms
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 == 0 else reversed(runs):
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def fewer(repeats: int) -> int:
    """How often to measure what takes long."""
    return max(1, repeats // 3)


def batch_of(encoder: Encoder, size: int) -> np.ndarray:
    """Drawn images as the net takes them."""
    tower = encoder.tower("image")
    return np.stack([tower.input(draw(JUDGED, number)) for number in range(size)])


def embedding(encoder: Encoder, inputs: np.ndarray) -> Callable[[], np.ndarray]:
    return partial(encoder.tower("image").embed, inputs)


def operations_of(plain: Encoder, inputs: np.ndarray) -> float:
    """The floating-point operations of an image in matrix products and convolutions; multiply and add are two."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        plain.tower("image").embed(inputs)
    return counter.get_total_flops() / len(inputs)


def product_rates(device: str) -> dict[str, float]:
    """Operations a second of the best matrix product of a few sizes, in each precision that the device computes."""
    import torch

    from image_encoders.engines.openvino import has_bfloat16

    gpu = device.startswith("cuda")
    low = ["bfloat16", "float16"] if gpu else ["bfloat16"] if has_bfloat16() else []
    rates = {}
    for name in ["float32", *low]:
        best = 0.0
        for side in (4096, 8192) if gpu else (1024, 2048, 4096):
            left, right = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))

            def product(left: Any = left, right: Any = right) -> None:
                torch.matmul(left, right)
                if gpu:
                    torch.cuda.synchronize(device)

            for _ in range(5):
                start = time.perf_counter()
                product()
                best = max(best, 2 * side**3 / (time.perf_counter() - start))
        rates[name] = best
    return rates


def chosen(encoder: Encoder) -> str:
    return f"{encoder.precision} by {encoder.engine}"


def least_cosine(rows: np.ndarray, others: np.ndarray) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(others, axis=1)
    return float(((rows * others).sum(axis=1) / lengths).min())


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files) / 1e6


# ------------------------------------------------------------------ processes of their own


def child(
    what: str, model: Model, runtime: dict[str, str], environment: dict[str, str], **sizes: int
) -> dict[str, Any]:
    """What one of the functions below finds in a new process, and the process's seconds."""
    call = {"what": what, "label": model.label, "weights": str(model.weights()), "runtime": runtime, **sizes}
    variables = [f"{name}={value}" for name, value in environment.items()]
    return bulk.measured(["env", *variables, sys.executable, __file__, "--child", json.dumps(call)])


def answer(what: str, label: str, weights: str, runtime: dict[str, str], **sizes: int) -> dict[str, Any]:
    """In the new process."""
    model = next(one for one in at_hand() if one.label == label)
    model = replace(model, weights=lambda: Path(weights))  # the cache may be another, and empty
    return CHILDREN[what](model, runtime, **sizes)


def loaded(model: Model, runtime: dict[str, str]) -> dict[str, float]:
    """Seconds to the encoder and to its first row, and the peak."""
    image = draw(JUDGED, 0)
    start = time.perf_counter()
    encoder = model.load(device="cpu", **runtime)
    there = time.perf_counter()
    encoder.encode_image([image])
    return {"load_s": there - start, "first_row_s": time.perf_counter() - start, "peak_mb": resident("VmHWM")}


def ran(model: Model, runtime: dict[str, str], batch: int, repeats: int) -> dict[str, Any]:
    """Images/s of the net."""
    encoder = model.load(device="cpu", **runtime)
    taken = interleaved({"": embedding(encoder, batch_of(encoder, batch))}, repeats)
    return {"images_s": batch / taken[""], "chosen": chosen(encoder)}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"loaded": loaded, "ran": ran}


# ------------------------------------------------------------------ the naive loops


def naive(plain: Encoder, prepare: Callable[[Image.Image], np.ndarray], paths: Sequence[Path]) -> np.ndarray:
    """The loop that everybody writes first."""
    rows = []
    for start in range(0, len(paths), BATCH):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        rows.append(plain.tower("image").embed(np.stack([prepare(image) for image in images])))
    return np.concatenate(rows)


CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # [px]


def naive_clip(image: Image.Image) -> np.ndarray:
    return normalised(cropped(image, SIDE, Image.Resampling.BICUBIC), *CLIP)


def naive_imagenet(image: Image.Image) -> np.ndarray:
    return normalised(cropped(image, 256, Image.Resampling.BILINEAR), *IMAGENET)


def naive_bit(image: Image.Image) -> np.ndarray:
    return normalised(image.resize((480, 480), Image.Resampling.BILINEAR), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def naive_audioclip(image: Image.Image) -> np.ndarray:
    """As the original: the float image is resized, by torch."""
    import torch

    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None] / 255
    height, width = x.shape[2:]
    least = min(height, width)
    size = (int(SIDE * height / least), int(SIDE * width / least))
    x = torch.nn.functional.interpolate(x, size=size, mode="bicubic")
    top, left = (round((side - SIDE) / 2) for side in x.shape[2:])
    mean, std = (torch.tensor(values)[:, None, None] for values in CLIP)
    return ((x[0, :, top : top + SIDE, left : left + SIDE] - mean) / std).numpy()


def cropped(image: Image.Image, short: int, filter: Image.Resampling) -> Image.Image:
    """The central 224 x 224 after the short side was resized."""
    width, height = image.size
    least = min(width, height)
    resized = image.resize((int(short * width / least), int(short * height / least)), filter)
    left, top = (round((side - SIDE) / 2) for side in resized.size)
    return resized.crop((left, top, left + SIDE, top + SIDE))


def normalised(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(3, H, W) float32"""
    x = np.asarray(image, np.float32) / np.float32(255)
    return ((x - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)


NAIVE: dict[str, Callable[[Image.Image], np.ndarray]] = {
    "clip": naive_clip,
    "bit": naive_bit,
    "audioclip": naive_audioclip,
    "vsepp": naive_imagenet,
    "custom": naive_imagenet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="default: everything that the device runs")
    parser.add_argument("--families", nargs="+", choices=models.families(), default=models.families())
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--repeats", type=int, default=9, help="a third of them for end-to-end, load and scaling")
    parser.add_argument("--batch-size", type=int, default=16, help="of forward, scaling and tapped")
    parser.add_argument("--images", type=int, default=96, help="of end-to-end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return print(json.dumps(answer(**json.loads(options.child))))
    options.device = Runtime.resolve(options.device).device
    gpu = options.device != "cpu"
    parts = options.only or (EVERYWHERE if gpu else tuple(PARTS))
    if gpu and not set(parts) <= set(EVERYWHERE):
        parser.error(f"on {options.device} there is {', '.join(EVERYWHERE)}")
    where = machine()
    if gpu:
        import torch

        where["cpu"] += f", {torch.cuda.get_device_name(options.device)}"
    heading(where)
    results = {}
    for part in parts:
        print(f"\n## {part}")
        results[part] = PARTS[part](options)
        keep(options.json, where, results)
    return None


if __name__ == "__main__":
    main()
