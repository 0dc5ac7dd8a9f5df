"""`bulk.py peers`: the same images and weights through other libraries, and through no library at all.

Each peer has three things: `peers/NAME.txt`, all the packages it needs; `.venv-peers/NAME`, made from that when it is
first asked for; `peers/NAME.py`, which uses it as its documentation says. Where a peer cannot be installed or does not
run, the table says why.

Everybody first encodes a few images unmeasured, so that byte code, converted models and choices of precision are on
disk; then all take turns, each time in a new process. The medians are shown: of the loop, from the first file to the
last row with the model loaded before (ours writes the collection in it), and end to end, from the start of the process
to its end. Peak memory is the largest process's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bulk

WORKERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parents[1] / ".venv-peers"
OURS, NAIVE = "image-encoders encode", "naive loop"
PEERS = {  # the package, and what is run of it: label, precision
    "sentence-transformers": (
        "sentence-transformers",
        {"as shipped": "float32", "set to bfloat16": "bfloat16"},
    ),
    "infinity": ("infinity_emb", {"as shipped": "float32", "set to bfloat16": "bfloat16"}),
    "open-clip": ("open_clip_torch", {"DataLoader, 2 workers": "float32", "DataLoader, bfloat16": "bfloat16"}),
    "fastembed-onnx": ("fastembed", {"as shipped": "float32"}),
    "clip-retrieval": ("clip_retrieval", {"as shipped": "float32"}),
}
CONVERTED = ("fastembed-onnx",)  # these want the weights in another form, made before anything is measured
FEW = 8  # images of the run that is not measured
# Matrix products (M, K) @ (K, N) whose best rate counts: of ViT-B/32 at batch 32, and square ones.
PRODUCTS = ((1600, 768, 3072), (1600, 3072, 768), (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096))
PRODUCT_SECONDS = 0.5  # for each of them
DECODED = 96  # images at most, to measure the decoder

Run = Callable[[Path, Path], dict]  # photos, where the rows go -> what was measured


def peers(options: argparse.Namespace, work: Path) -> list[dict]:
    """`image-encoders encode`, the naive loop and other libraries by turns, and what the machine could do at most."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    photos, few = bulk.draw(work / "photos", options.count), bulk.draw(work / "few", FEW)
    model = options.model.resolve() if options.model else bulk.apart(bulk.random_clip, work / "model")
    flops = flops_per_image(model)
    entered: dict[str, Run | str] = {
        OURS: lambda photos, rows: bulk.encode(photos, rows, f"clip/{model}", options.encode, quiet=True),
        NAIVE: partial(embed, Path(sys.executable), "naive", model, "float32"),
    }
    for name in options.only:
        entered.update(enter(name, model, work, options.all or has_bfloat16()))

    rows = {name: work / f"rows {number}.npy" for number, name in enumerate(entered)}
    runs: dict[str, list[dict]] = {}
    refused: dict[str, str] = {}
    for name, run in entered.items():
        tell(f"{name}: first run")
        reason = attempt(run, few, rows[name])
        if isinstance(reason, str):
            refused[name] = reason
            tell(f"{name}: {reason}")
        else:
            runs[name] = []
    rates = []
    for turn in range(options.runs):
        rates.append(bulk.worker("rates", photos, model))
        for name in list(runs) if turn % 2 == 0 else list(reversed(runs)):
            if name in refused:
                continue
            done = attempt(entered[name], photos, rows[name])
            if isinstance(done, str):
                refused[name] = done
            else:
                runs[name].append(done)
                tell(f"{name}: {options.count / done['seconds']:.1f} images/s, turn {turn + 1} of {options.runs}")

    vectors = {name: read(rows[name]) for name in runs if name not in refused}
    naive = line(runs[NAIVE], options.count) if NAIVE in vectors else None
    table: list[dict[str, Any]] = []
    for name in entered:
        if name in refused:
            table.append({"what": name, "not measured because": refused[name]})
            continue
        measured = line(runs[name], options.count)
        ratios: dict[str, float] = {}
        likeness: dict[str, float] = {}
        if naive is not None:
            ratios = {
                f"x naive, {scope}": measured[f"images/s, {scope}"] / naive[f"images/s, {scope}"] for scope in SCOPES
            }
            likeness = compared(vectors[name], vectors[NAIVE])
        table.append({"what": name, **measured, **ratios, **likeness})
    ours = next((row for row in table if row["what"] == OURS and "images/s, loop" in row), None)
    return [*table, *bounds(rates, flops, ours)]


def enter(name: str, model: Path, work: Path, bfloat16: bool) -> dict[str, Run | str]:
    """What is run of a peer, by label, or why it cannot be."""
    package, labels = PEERS[name]
    pinned = next(one for one in (WORKERS / f"{name}.txt").read_text().splitlines() if one.startswith(f"{package}=="))
    variants = {f"{pinned.replace('==', ' ')}, {label}": precision for label, precision in labels.items()}
    try:
        python = environment(name)
        if name in CONVERTED:
            tell(f"{name}: converting the weights")
            target = work / f"model for {name}"
            succeed([str(python), str(WORKERS / f"{name}.py"), str(model), str(target)])
            model = target
    except bulk.Failed as failure:
        return dict.fromkeys(variants, str(failure))
    return {
        label: partial(embed, python, name, model, precision)
        if precision == "float32" or bfloat16
        else "no bfloat16 here"
        for label, precision in variants.items()
    }


def environment(name: str) -> Path:
    """The Python of a peer's virtual environment, which is made when it is missing or its list has changed."""
    folder, wanted = ENVIRONMENTS / name, WORKERS / f"{name}.txt"
    python, mark = folder / "bin" / "python", folder / "installed.txt"
    packages = wanted.read_text()
    if not mark.exists() or mark.read_text() != packages:
        tell(f"{name}: installing into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        succeed([sys.executable, "-m", "venv", str(folder)])
        install = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile"]
        torch = next(one for one in packages.splitlines() if one.startswith("torch=="))
        succeed([*install, torch])  # with what it needs, which differs between its builds for CPUs and for GPUs
        succeed([*install, "--no-deps", "-r", str(wanted)])
        mark.write_text(packages)
    return python


def embed(python: Path, name: str, model: Path, precision: str, photos: Path, rows: Path) -> dict:
    """A peer's worker in a process of its own."""
    command = [python, WORKERS / f"{name}.py", photos, model, rows, precision]
    return bulk.measured([str(word) for word in command], quiet=True)


def attempt(run: Run | str, photos: Path, rows: Path) -> dict | str:
    """What was measured, or why nothing was; a reason stays what it is."""
    try:
        return run if isinstance(run, str) else run(photos, rows)
    except bulk.Failed as failure:
        return str(failure)


def succeed(command: Sequence[str]) -> None:
    """Run a command; bulk.Failed with its last words where it fails."""
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        raise bulk.Failed(bulk.last_words(done.stderr) or f"{Path(command[0]).name} ended with {done.returncode}")


# ------------------------------------------------------------------ the machine


def rates(photos: Path, model: Path) -> dict:
    """What all cores together do: products of matrices [FLOP/s] by precision, and JPEG files decoded [1/s]."""
    import simplejpeg
    import torch

    files = [path.read_bytes() for path in sorted(photos.iterdir())[:DECODED]]
    with ThreadPoolExecutor(bulk.cores()) as threads:
        began = time.perf_counter()
        for _ in threads.map(simplejpeg.decode_jpeg, files):
            pass
        decoded = len(files) / (time.perf_counter() - began)
    torch.set_num_threads(bulk.cores())
    dtypes = (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,)
    return {"decode": decoded, **{str(dtype).removeprefix("torch."): max(_products(dtype)) for dtype in dtypes}}


def _products(dtype: Any) -> Iterator[float]:
    """FLOP/s of the products above, each the best of some."""
    import torch

    for m, k, n in PRODUCTS:
        left, right = torch.rand(m, k).to(dtype), torch.rand(k, n).to(dtype)
        best, end = float("inf"), time.perf_counter() + PRODUCT_SECONDS
        while time.perf_counter() < end:
            began = time.perf_counter()
            torch.matmul(left, right)
            best = min(best, time.perf_counter() - began)
        yield 2 * m * k * n / best


def has_bfloat16() -> bool:
    """Whether the processor has instructions that multiply bfloat16."""
    if not Path("/proc/cpuinfo").exists():
        return False
    known = set(Path("/proc/cpuinfo").read_text().split())
    return bool(known & {"avx512_bf16", "amx_bf16", "bf16"})


def flops_per_image(model: Path) -> float:
    """Operations in the matrix products of CLIP's vision tower, two for a multiplication with its addition."""
    config = json.loads((model / "config.json").read_text())
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "image_size": 224,
        "patch_size": 32,
        **config["vision_config"],  # transformers 4 wrote only what differs from ViT-B/32
    }
    width, patches = vision["hidden_size"], (vision["image_size"] // vision["patch_size"]) ** 2
    tokens = patches + 1
    layer = tokens * (4 * width**2 + 2 * width * vision["intermediate_size"]) + 2 * tokens**2 * width
    embedded = patches * 3 * vision["patch_size"] ** 2 * width
    return 2.0 * (embedded + vision["num_hidden_layers"] * layer + width * config.get("projection_dim", 512))


def bounds(rates: list[dict], flops: float, ours: dict | None) -> list[dict]:
    """Images/s if all cores did nothing but decode and multiply, at the best rates seen, and how near we come."""
    table = []
    decode = max(one["decode"] for one in rates)
    for precision in ("float32", "bfloat16"):
        products = max((one[precision] for one in rates if precision in one), default=None)
        if products is None:
            continue
        bound = 1 / (flops / products + 1 / decode)
        parts = f"{products / 1e12:.3g} TFLOP/s, {flops / 1e9:.2g} GFLOP an image, {decode:.0f} images/s decoded"
        table.append({"what": f"bound of this machine, {precision}: {parts}", "images/s, loop": bound})
        if ours is not None:
            table.append({"what": f"{OURS}: share of that", "images/s, loop": ours["images/s, loop"] / bound})
    return table


# ------------------------------------------------------------------ the table

SCOPES = ("loop", "end to end")


def line(runs: list[dict], count: int) -> dict[str, float]:
    """Medians over a contestant's runs."""
    loop, whole = bulk.median(runs, "seconds"), bulk.median(runs, "wall")
    return {
        "images/s, loop": count / loop,
        "images/s, end to end": count / whole,
        "s, loop": loop,
        "s, end to end": whole,
        "core ms/image, end to end": 1000 * bulk.median(runs, "cores") / count,
        "peak MB": bulk.median(runs, "peak"),
    }


def read(rows: Path) -> np.ndarray:
    """The rows of the last run, in the order of the files' names: an .npy file's, or a collection's."""
    if rows.is_file():
        return np.load(rows)
    from image_encoders.collection import ITEMS, Collection

    found: dict[str, list[float]] = {}
    for batch in Collection.open(rows).scan(ITEMS, ["id", "embedding"]):
        found.update(zip(batch["id"].to_pylist(), batch["embedding"].to_pylist()))
    return np.array([found[name] for name in sorted(found)], np.float32)


def compared(rows: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The lowest cosine of a row to the naive loop's: as they are, and from the mean of the naive loop's rows.

    A net with random weights gives all images nearly one row; only the second says much of it.
    """
    unit, right = _unit(rows), _unit(reference)
    mean = right.mean(axis=0)
    centred = (_unit(unit - mean) * _unit(right - mean)).sum(axis=1)
    return {"lowest cosine": float((unit * right).sum(axis=1).min()), "lowest centred cosine": float(centred.min())}


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tell(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)
