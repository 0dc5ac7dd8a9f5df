"""How fast a folder of images becomes a collection, in how much memory, and how well a big one is searched.

    python benchmarks/bulk.py compare --count 1000 --runs 3      # against the loop that everybody writes first
    python benchmarks/bulk.py peers --count 480 --runs 3         # against other libraries; installs them first
    python benchmarks/bulk.py memory --counts 1000 2000 4000     # peak memory as the folder grows

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
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import contest
import numpy as np

SIZES = ((640, 480), (800, 600), (1024, 768), (1280, 960), (1600, 1200), (1920, 1440))
DRAWN = 8  # different images of each size; a comment in the file tells its copies apart
BATCH = 32
NAIVE = Path(__file__).parent / "peers" / "naive.py"


class Failed(SystemExit):
    """A command that was to be measured ended badly; its text says how."""


def compare(options: argparse.Namespace, work: Path) -> list[dict]:
    """`image-encoders encode` and the naive loop by turns, each in a process of its own: medians."""
    photos, model = draw(work / "photos", options.count), apart(random_clip, work / "model")
    naive = [sys.executable, str(NAIVE), str(photos), str(model), str(work / "rows.npy"), "float32"]
    results: dict[str, list[dict]] = {"image-encoders encode": [], "naive loop": []}
    for turn in range(options.runs):
        runs: list[tuple[str, Callable[[], dict]]] = [
            ("image-encoders encode", lambda: encode(photos, work / "index", f"clip/{model}", options.encode)),
            ("naive loop", lambda: measured(naive)),
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
    ours, theirs = table
    ratios = {name: ours[name] / theirs[name] for name in ours if name.startswith("images/s") or name == "peak MB"}
    prepared = worker("prepare", photos, model)
    per_image = 1000 * prepared["cpu"] / options.count
    return [
        *table,
        {"what": "ratio", **ratios},
        {
            "what": "decode + prepare alone",
            "core ms/image, loop": per_image,
            "of the naive loop's": per_image / theirs["core ms/image, loop"],
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


# ------------------------------------------------------------------ processes


def encode(photos: Path, index: Path, model: str, extra: Sequence[str], quiet: bool = False) -> dict:
    """`image-encoders encode` into a new collection."""
    shutil.rmtree(index, ignore_errors=True)
    command = [sys.executable, "-m", "image_encoders", "encode", str(photos), "-o", str(index), "--model", model]
    done = measured([*command, "--batch-size", str(BATCH), "--json", "--quiet", *extra], quiet)
    if done["failed"] or done["encoded"] != done["total"]:
        raise Failed(f"{done['failed']} of {done['total']} failed: {done['failures']}")
    return done


def worker(name: str, photos: Path, model: Path) -> dict:
    """One of the loops below in a process of its own."""
    return measured([sys.executable, __file__, name, str(photos), str(model)])


def measured(command: list[str], quiet: bool = False) -> dict:
    """What a command prints as JSON, with its wall seconds, its processor seconds and its peak memory [MB].

    quiet: keep what it writes on standard error, but for its last words where it fails
    """
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+", errors="replace") as complaints:
        process = subprocess.Popen(command, stdout=printed, stderr=complaints if quiet else None)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        if code := os.waitstatus_to_exitcode(status):
            complaints.seek(0)
            raise Failed(last_words(complaints.read()) or f"{shlex.join(command)} ended with {code}")
        printed.seek(0)
        cores = usage.ru_utime + usage.ru_stime
        return {**json.load(printed), "wall": wall, "cores": cores, "peak": usage.ru_maxrss / 1024}


def last_words(text: str) -> str:
    """The last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def apart(function: Callable[[Path], Path], folder: Path) -> Path:
    """`function(folder)` in a process of its own: the peak memory of what is measured counts its parent's as well."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, folder).result()


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
        image = drawn[number % len(drawn)]
        comment = f"{number:08d}".encode()
        marked = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{number:08d}.jpg").write_bytes(image[:2] + marked + image[2:])
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
    return {
        "cpu": cpu,
        "cores": cores(),
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
    }


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def show(where: dict[str, Any], table: list[dict], markdown: bool) -> None:
    print(f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {where['date']}\n{where['command']}\n")
    names = list(dict.fromkeys(name for row in table for name in row))
    cells = [names, *([cell(name, row.get(name)) for name in names] for row in table)]
    if markdown:
        cells.insert(1, ["---"] * len(names))
        print("\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells))
        return
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def cell(column: str, value: Any, decimals: int = 5) -> str:
    """A table's cell; decimals: of a cosine."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if "cosine" in column:
        return f"{value:.{decimals}f}"
    return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="compare | peers | memory")
    for function in (compare, contest.peers, memory):
        name = function.__name__
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
        command.add_argument("encode", nargs="*", metavar="-- OPTIONS", help="more options of `encode`, after --")
        if name in ("compare", "peers"):
            command.add_argument("--count", type=int, default=480, help="images")
            command.add_argument("--runs", type=int, default=3)
        if name == "peers":
            command.add_argument("--model", type=Path, metavar="FOLDER", help="a CLIP ViT-B/32; random weights if none")
            command.add_argument("--only", nargs="*", choices=contest.PEERS, default=list(contest.PEERS))
            command.add_argument("--all", action="store_true", help="bfloat16 also where the processor has none")
        if name == "memory":
            command.add_argument("--counts", type=int, nargs="+", default=[500, 1000, 2000, 4000])
            command.add_argument("--model", default="clip/demo")
    for loop in (prepare, contest.rates):  # what `worker` starts
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
    show(machine(), table, markdown=options.function is contest.peers)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
