"""What this machine has, and which stage limits a model on it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from image_encoders.encoder import Encoder
from image_encoders.engines.machine import system_lines
from image_encoders.process import cores

PACKAGES = "image-encoders", "torch", "transformers", "openvino", "lancedb", "pyarrow", "numpy", "pillow", "simplejpeg"
# As /proc/cpuinfo spells them; what makes models fast on a CPU.
INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"),
    *("asimd", "bf16", "i8mm", "sve"),
)


def machine() -> dict[str, Any]:
    """Processor, memory, packages, devices, cache and extras, as plain values for printing or JSON."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "memory": _memory(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": _torch(),
        "cache": _cache(),
        "extras": {
            name: {
                "packages": {one: _version(one) for one in packages},
                "install": f"pip install 'image-encoders[{name}]'",
            }
            for name, packages in _extras().items()
        },
    }


def _processor() -> dict[str, Any]:
    name, flags = platform.processor() or platform.machine(), []
    for line in system_lines("/proc/cpuinfo"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "model name":
            name = value
        elif key.lower() in ("flags", "features"):
            flags = value.split()
            break
    return {"name": name, "cores": cores(), "instructions": [one for one in INSTRUCTIONS if one in flags]}


def _memory() -> dict[str, int]:
    """Total and available [MB], the total no more than this process's control group may have."""
    sizes = {
        key: int(rest.split()[0]) // 1024
        for key, _, rest in (line.partition(":") for line in system_lines("/proc/meminfo"))
    }
    total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    limit = "".join(system_lines("/sys/fs/cgroup/memory.max")).strip()
    if limit.isdigit():
        total = min(total, int(limit) >> 20)
    return {"total_mb": total, "available_mb": min(available, total)}


def _torch() -> dict[str, Any]:
    import torch

    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            one = torch.cuda.get_device_properties(index)
            devices.append({"device": f"cuda:{index}", "name": one.name, "memory_mb": one.total_memory >> 20})
    return {"threads": torch.get_num_threads(), "cuda_build": torch.version.cuda, "cuda": devices}


def _cache() -> dict[str, Any]:
    from huggingface_hub import constants

    from image_encoders.cache import cache_folder
    from image_encoders.weights.fetch import is_offline

    folder = cache_folder()
    there = next(one for one in (folder, *folder.parents) if one.exists())
    return {
        "folder": str(folder),
        "hub_folder": str(constants.HF_HUB_CACHE),
        "free_mb": shutil.disk_usage(there).free >> 20,
        "writable": os.access(there, os.W_OK),
        "offline": is_offline(),
    }


def _extras() -> dict[str, list[str]]:
    """The packages of each optional part, as the distribution declares them."""
    extras: dict[str, list[str]] = {}
    for requirement in metadata.requires("image-encoders") or ():
        package, marker = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)", requirement)
        if package and marker and marker[1] != "dev":
            extras.setdefault(marker[1], []).append(package[0])
    return extras


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Stages:
    """How long one image takes in each stage [ms]: reading and preprocessing on one thread, embedding in batches."""

    read_ms: float
    preprocess_ms: float
    embed_ms: float
    images: int
    batch_size: int
    workers: int  # threads that read and preprocess
    shared: bool  # whether the model runs on the same cores

    @property
    def costs(self) -> dict[str, float]:
        """Each stage's share of the time per embedding [ms], the threads sharing the work."""
        return {
            "read": self.read_ms / self.workers,
            "preprocess": self.preprocess_ms / self.workers,
            "embed": self.embed_ms,
        }

    @property
    def limit(self) -> str:
        """The stage that takes the largest share."""
        costs = self.costs
        return max(costs, key=lambda stage: costs[stage])

    @property
    def rate(self) -> float:
        """Images per second to expect: stages on the same cores add up; those on a device of its own overlap."""
        read, preprocess, embed = self.costs.values()
        return 1000 / (read + preprocess + embed if self.shared else max(read + preprocess, embed))


def stages(encoder: Encoder, images: Sequence[Path], batch_size: int = 32) -> Stages:
    """How long each stage takes for these image files: medians."""
    tower = encoder.tower("image")
    items, read = _timed(tower.read, images)
    inputs, preprocess = _timed(tower.prepare, items)
    batches = [inputs[i : i + batch_size] for i in range(0, len(inputs), batch_size)]
    tower.embeddings(batches[0])  # the first call also allocates and chooses algorithms
    embed = [one for _ in range(3) for one in _timed(tower.embeddings, batches)[1]]
    per_image = [seconds / len(batch) for seconds, batch in zip(embed, batches * 3, strict=True)]
    return Stages(
        read_ms=1000 * statistics.median(read),
        preprocess_ms=1000 * statistics.median(preprocess),
        embed_ms=1000 * statistics.median(per_image),
        images=len(images),
        batch_size=min(batch_size, len(images)),
        workers=cores(),
        shared=encoder.device == "cpu",
    )


def _timed(function: Callable[[Any], Any], arguments: Iterable[Any]) -> tuple[list[Any], list[float]]:
    results, seconds = [], []
    for argument in arguments:
        start = time.perf_counter()
        results.append(function(argument))
        seconds.append(time.perf_counter() - start)
    return results, seconds


def sample_images(folder: Path) -> list[Path]:
    """32 JPEG files with shapes and grain like photographs', for measuring."""
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for number in range(32):
        cells = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        shapes = cells.resize((1024, 768), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (768, 1024, 1))
        path = folder / f"{number:03}.jpg"
        Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    return paths
