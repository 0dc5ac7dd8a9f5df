"""How long loading takes and how much memory it needs; what folding (BiT) and stopping early (custom) bring.

    python benchmarks/load.py                        # everything; makes 4 GB of synthetic checkpoints once
    python benchmarks/load.py --family bit custom --repeats 1
    python benchmarks/load.py --speed                # only the two comparisons of speed

Checkpoints are those of the conformance bundle, of the true sizes, kept where `image-encoders verify` keeps them.
Each load happens in a process of its own, its files in the page cache:
    load   from the call of `load` to the encoder, fingerprint included, after the imports [s, median]
    peak   the largest resident memory meanwhile, mapped files included, above that before the call [MB, median]
The rows go to standard output as a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from image_encoders import models
from image_encoders.conformance import bundle
from image_encoders.weights import convert


@dataclass(frozen=True)
class Case:
    """A checkpoint of the bundle, and how it is loaded."""

    name: str
    spec: str
    file: str
    options: dict[str, Any] = field(default_factory=dict)


DEFINITION = {"definition": str(bundle.FOLDER / "specs/data/custom_conv.py"), "class_name": "CustomModel"}
CASES = (
    Case("bit/R50x1", "bit-npz-R50x1", "BiT-M-R50x1.npz"),
    Case("bit/R50x1", "bit-savedmodel-hub", "bit-savedmodel-hub"),
    Case("bit/R50x3", "bit-npz-R50x3", "BiT-M-R50x3.npz"),
    Case("vsepp", "vse-vgg19", "model_best.pth.tar"),
    Case("vsepp", "vse-vgg19-py2", "model_best.pth.tar"),
    Case("vsepp", "vse-resnet152", "model_best.pth.tar"),
    Case("audioclip/full", "audioclip", "AudioCLIP-Full-Training.pt"),
    Case("clip", "clip-vit-b32", ""),
    Case("custom", "custom-conv", "model_state_dict.pth", {**DEFINITION, "layer": "conv1"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=models.families(), default=models.families())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--speed", action="store_true", help="only folding and stopping early")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return print(json.dumps(measure(**json.loads(given.child))))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    print(f"{machine}: `{' '.join(['python', 'benchmarks/load.py', *sys.argv[1:]])}`\n")
    if not given.speed:
        print("| model | from | weights MB | load s | peak MB | peak / weights |\n|---|---|---|---|---|---|")
        for case in CASES:
            if case.name.split("/")[0] in given.family:
                loads(case, given.repeats)
    if "bit" in given.family:
        folding(given.repeats)
    if "custom" in given.family:
        stopping(given.repeats)
    return None


def loads(case: Case, repeats: int) -> None:
    """Print the rows of the table for a checkpoint and for its conversion."""
    folder = bundle.checkpoint(case.spec)
    path, family = folder / case.file, models.family(case.name)
    weights = folder / "model.safetensors"  # CLIP's; a conversion of the others
    ways = [(path, case.spec)]
    if hasattr(family, "original"):
        weights = folder.with_name(f"{folder.name}-converted.safetensors")
        if not weights.exists():
            convert.save(weights, *family.original(path))
        ways.append((weights, f"{case.spec}, converted"))
    size = weights.stat().st_size / 1e6
    for source, label in ways:
        call = json.dumps({"name": case.name, "weights": str(source), "options": case.options})
        command = [sys.executable, __file__, "--child", call]
        runs = [json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(repeats)]
        seconds, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "peak"))
        print(f"| {case.name} | {label} | {size:.0f} | {seconds:.2f} | {peak:.0f} | {peak / size:.2f} |", flush=True)


def measure(name: str, weights: str | None, options: dict[str, Any]) -> dict[str, float]:
    """Seconds and megabytes of one load, in this process."""
    models.load("clip/demo", device="cpu")  # imports torch and transformers, starts their threads
    import image_encoders.nets.bit
    import image_encoders.nets.custom
    import image_encoders.weights.npz
    import image_encoders.weights.tensor_bundle
    import image_encoders.weights.torch_file  # noqa: F401

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    start = time.perf_counter()
    encoder = models.load(name, weights=weights, device="cpu", precision="float32", engine="torch", **options)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": resident("VmHWM") - before, "dim": encoder.dim}


def resident(key: str) -> float:
    """VmRSS, what is resident now, or VmHWM, the most that ever was [MB]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6


def rate(run: Any, images: int, repeats: int) -> float:
    """Images a second: the best of some runs, after one to warm up."""
    run()
    seconds = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return images / min(seconds)


def folding(repeats: int) -> None:
    """Print BiT R50x1's speed with kernels standardised at load, and in every pass as the original does."""
    import torch

    from image_encoders.nets.bit import BiT, standardize

    class Standardized(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(x, standardize(self.weight.clone()), self.bias)

    net = BiT((3, 4, 6, 3), 64).eval().requires_grad_(False)
    print("\n| BiT R50x1, float32 | images/s, batch of 1 | batch of 8 |\n|---|---|---|")
    for label in ("folded at load", "standardised in every pass"):
        found = []
        for batch in (1, 8):
            images = torch.rand(batch, 3, 224, 224)
            with torch.inference_mode():
                found.append(rate(lambda images=images: net(images), batch, repeats))
        print(f"| {label} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)
        for module in net.modules():
            if type(module) is torch.nn.Conv2d:
                module.__class__ = Standardized


def stopping(repeats: int) -> None:
    """Print the speed of layers of a net of seven convolutions, stopped after the layer and run whole."""
    import torch

    from image_encoders.nets.custom import Tapped

    widths = (3, 32, 64, 64, 128, 128, 256, 256)
    net = torch.nn.Sequential()
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        net.add_module(f"conv{number}", torch.nn.Conv2d(before, after, 3, padding=1, stride=1 + number % 2))
        net.add_module(f"relu{number}", torch.nn.ReLU())
    net.eval().requires_grad_(False)
    images = torch.rand(8, 3, 224, 224)
    print("\n| custom, seven convolutions, layer | images/s, stopped after it | whole |\n|---|---|---|")
    for layer in ("relu0", "relu3", "relu6"):
        found = []
        for whole in (False, True):
            tapped = Tapped(net, layer, whole=whole)
            with torch.inference_mode():
                found.append(rate(lambda tapped=tapped: tapped(images), len(images), repeats))
        print(f"| {layer} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
