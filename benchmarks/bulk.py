"""How fast a folder of pictures becomes a collection, in how much memory, and how well a big one is searched.

    python benchmarks/bulk.py compare --count 1000 --runs 3      # against the loop that everybody writes first
    python benchmarks/bulk.py memory --counts 1000 2000 4000     # peak memory as the folder grows
    python benchmarks/bulk.py recall --rows 120000               # of the index, against comparing all rows

Everything is made here, from a seed: JPEG files of 640 x 480 to 1920 x 1440, CLIP ViT-B/32 with random weights, rows.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 960), (1600, 1200), (1920, 1440))
DRAWN = 8  # different pictures of each size; a comment in the file tells its copies apart
BATCH = 32


def compare(options: argparse.Namespace, work: Path) -> list[dict]:
    """`image-encoders encode` and the naive loop by turns, each in a process of its own: medians."""
    photos, model = draw(work / "photos", options.count), random_clip(work / "model")
    results: dict[str, list[dict]] = {"image-encoders encode": [], "naive loop": []}
    for turn in range(options.runs):
        runs: list[tuple[str, Callable[[], dict]]] = [
            ("image-encoders encode", lambda: encode(photos, work / "index", f"clip/{model}", options.encode)),
            ("naive loop", lambda: worker("naive", photos, model)),
        ]
        for name, run in runs if turn % 2 == 0 else reversed(runs):
            results[name].append(run())
    table = [
        {
            "what": name,
            "images/s, loop": options.count / median(runs, "seconds"),
            "images/s, end to end": options.count / median(runs, "wall"),
            "core ms/image, loop": 1000 * median(runs, "cpu") / options.count if "cpu" in runs[0] else None,
            "peak MB": median(runs, "peak"),
        }
        for name, runs in results.items()
    ]
    ours, naive = table
    ratios = {name: ours[name] / naive[name] for name in ours if name.startswith("images/s") or name == "peak MB"}
    prepared = worker("prepare", photos, model)
    per_image = 1000 * prepared["cpu"] / options.count
    return [
        *table,
        {"what": "ratio", **ratios},
        {
            "what": "decode + prepare alone",
            "core ms/image, loop": per_image,
            "of the naive loop's": per_image / naive["core ms/image, loop"],
        },
    ]


def memory(options: argparse.Namespace, work: Path) -> list[dict]:
    """The peak memory of an encode, for folders of several sizes."""
    table = []
    for count in options.counts:
        photos = draw(work / f"photos {count}", count)
        done = encode(photos, work / "index", options.model, options.encode)
        table.append({"images": count, "peak MB": done["peak"], "images/s, loop": count / done["seconds"]})
        shutil.rmtree(photos)
    first, last = table[0], table[-1]
    growth = (last["peak MB"] - first["peak MB"]) / max(last["images"] - first["images"], 1)
    return [*table, {"images": "growth in MB per 1,000 images", "peak MB": 1000 * growth}]


def recall(options: argparse.Namespace, work: Path) -> list[dict]:
    """How many of the ten nearest rows the index finds, among random rows and among clustered ones like a model's."""
    from image_encoders.collection import Collection, Row
    from image_encoders.encoder import Encoder

    rng = np.random.default_rng(0)
    count, dim = options.rows, options.dim
    centres = rng.standard_normal((2000, dim), dtype=np.float32)
    offset = 2 * rng.standard_normal(dim, dtype=np.float32)
    noise = rng.standard_normal((count, dim), dtype=np.float32)
    kinds = {
        "random rows, random queries": (noise, rng.standard_normal((50, dim), dtype=np.float32)),
        # As texts among pictures: the queries share the clusters and not the offset.
        "clusters, queries far off": (
            offset + centres[rng.integers(0, len(centres), count)] + 0.3 * noise,
            -offset + centres[:50] + 0.5 * rng.standard_normal((50, dim), dtype=np.float32),
        ),
    }
    table = []
    for kind, (rows, queries) in kinds.items():
        folder = work / kind.replace(" ", "-")
        collection = Collection.create(folder, Encoder("benchmark", dim, {}, "0" * 32))
        for start in range(0, count, 4096):
            collection.append(
                [
                    Row(f"{number:09d}", "", row, 1, 1, "", 0, 0)
                    for number, row in enumerate(rows[start : start + 4096], start)
                ],
                new=True,
            )
        began = time.perf_counter()
        collection.settle()
        built = time.perf_counter() - began
        lengths = np.linalg.norm(rows, axis=1)
        nearest = [set(np.argsort(-(rows @ query) / lengths)[:10].tolist()) for query in queries]
        collection.search(queries[0])
        began = time.perf_counter()
        found = [{int(hit.id) for hit in collection.search(query, 10)} for query in queries]
        searched = time.perf_counter() - began
        hits = sum(len(some & right) for some, right in zip(found, nearest))
        table.append(
            {
                "what": kind,
                "rows": count,
                "recall@10": hits / (10 * len(queries)),
                "ms/search": 1000 * searched / len(queries),
                "s to build": built,
            }
        )
    return table


# ------------------------------------------------------------------ processes


def encode(photos: Path, index: Path, model: str, extra: Sequence[str]) -> dict:
    """`image-encoders encode` into a new collection."""
    shutil.rmtree(index, ignore_errors=True)
    command = [sys.executable, "-m", "image_encoders", "encode", str(photos), "-o", str(index), "--model", model]
    done = measured([*command, "--batch-size", str(BATCH), "--json", "--quiet", *extra])
    if done["failed"] or done["encoded"] != done["total"]:
        sys.exit(f"{done['failed']} of {done['total']} failed: {done['failures']}")
    return done


def worker(name: str, photos: Path, model: Path) -> dict:
    """One of the loops below in a process of its own."""
    return measured([sys.executable, __file__, name, str(photos), str(model)])


def measured(command: list[str]) -> dict:
    """What a command prints as JSON, with its wall seconds and its peak memory [MB]."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{shlex.join(command)} failed")
        printed.seek(0)
        return {**json.load(printed), "wall": wall, "peak": usage.ru_maxrss / 1024}


def naive(photos: Path, model: Path) -> dict:
    """The loop that everybody writes first."""
    import torch
    import transformers
    from PIL import Image

    processor = clip_processor().from_pretrained(model)
    net = transformers.CLIPModel.from_pretrained(model).eval()
    paths = sorted(photos.iterdir())
    rows = []
    began, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(paths), BATCH):
        pictures = [Image.open(path).convert("RGB") for path in paths[start : start + BATCH]]
        with torch.no_grad():
            features = net.get_image_features(**processor(images=pictures, return_tensors="pt"))
        rows.append(getattr(features, "pooler_output", features).numpy())  # transformers 5 wraps it, 4 did not
    assert np.concatenate(rows).shape == (len(paths), net.config.projection_dim)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def prepare(photos: Path, model: Path) -> dict:
    """Read, decode and prepare, on one thread."""
    import image_encoders

    tower = image_encoders.load(f"clip/{model}", device="cpu", precision="float32", engine="torch").tower("image")
    paths = sorted(photos.iterdir())
    began, cpu = time.perf_counter(), time.process_time()
    for path in paths:
        tower.input(path)
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


# ------------------------------------------------------------------ what is encoded


def draw(folder: Path, count: int) -> Path:
    """`count` JPEG files of photographs' sizes and detail, all different."""
    from PIL import Image

    folder.mkdir(parents=True)
    drawn = []
    for number in range(min(count, len(SIZES) * DRAWN)):
        rng = np.random.default_rng(number)
        width, height = SIZES[number % len(SIZES)]
        rough = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        grain = rng.normal(0, 6, (height, width, 1))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(rough) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        drawn.append(file.getvalue())
    for number in range(count):
        picture = drawn[number % len(drawn)]
        comment = f"{number:08d}".encode()
        marked = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{number:08d}.jpg").write_bytes(picture[:2] + marked + picture[2:])
    return folder


def clip_processor() -> Any:
    """The class of CLIP's image processor that works on PIL images; it got a name of its own in transformers 5."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if hasattr(transformers, "CLIPImageProcessorPil"):
        return transformers.CLIPImageProcessorPil
    return transformers.CLIPImageProcessor


def random_clip(folder: Path) -> Path:
    """A checkpoint of CLIP ViT-B/32 with random weights, and the tokenizer of the bundled model."""
    import torch
    import transformers

    import image_encoders

    torch.manual_seed(0)
    demo = Path(image_encoders.__file__).parent / "assets" / "clip-demo"
    tokens = json.loads((demo / "config.json").read_text())["text_config"]
    special = {name: tokens[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in tokens}
    config = transformers.CLIPConfig(text_config={**special, "vocab_size": 49408})  # the rest is ViT-B/32 by default
    clip_processor()().save_pretrained(folder)
    transformers.CLIPModel(config).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(demo / name, folder)
    return folder


# ------------------------------------------------------------------ report


def median(runs: list[dict], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def machine() -> dict[str, Any]:
    """Where and when."""
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def show(where: dict[str, Any], table: list[dict]) -> None:
    print(f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {where['date']}\n{where['command']}\n")
    names = list(dict.fromkeys(name for row in table for name in row))
    cells = [names, *([_cell(row.get(name)) for name in names] for row in table)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="compare | memory | recall")
    for name, function in (("compare", compare), ("memory", memory), ("recall", recall)):
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
        if name == "recall":
            command.add_argument("--rows", type=int, default=120_000)
            command.add_argument("--dim", type=int, default=512)
        else:
            command.add_argument("encode", nargs="*", metavar="-- OPTIONS", help="more options of `encode`, after --")
        if name == "compare":
            command.add_argument("--count", type=int, default=480, help="pictures")
            command.add_argument("--runs", type=int, default=3)
        if name == "memory":
            command.add_argument("--counts", type=int, nargs="+", default=[500, 1000, 2000, 4000])
            command.add_argument("--model", default="clip/demo")
    for loop in (naive, prepare):  # what `worker` starts
        command = commands.add_parser(loop.__name__)
        command.set_defaults(loop=loop)
        command.add_argument("photos", type=Path)
        command.add_argument("model", type=Path)
    options = parser.parse_args()
    if "loop" in options:
        print(json.dumps(options.loop(options.photos, options.model)))
        return
    with tempfile.TemporaryDirectory() as work:
        table = options.function(options, Path(work))
    show(machine(), table)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
