"""`image-encoders doctor`: this machine, and a model's bottleneck on it."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.loading import check_paths, load
from image_encoders.cli.options import (
    Calibration,
    Device,
    Engine,
    Json,
    Offline,
    Options,
    Precision,
    Weights,
    local_path,
    parse_options,
)
from image_encoders.cli.printing import counted, print, print_json, print_table, say

if TYPE_CHECKING:
    from image_encoders.doctor import Stages
    from image_encoders.encoder import Encoder
    from image_encoders.engines.embedder import Choice

EXAMPLES = """\b
Examples:
  image-encoders doctor                                  # versions, cores, memory, devices, cache
  image-encoders doctor --model clip/demo                # and how fast this model is here, and why
  image-encoders doctor --model clip/demo photos/*.jpg   # on images of your own"""


def doctor(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="IMAGE",
            help="Image files to measure with.  [default: drawn images]",
            show_default=False,
            parser=local_path,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Measure each stage with this model.")
    ] = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = None,
    calibration: Calibration = None,
    options: Options = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images per batch.")] = 32,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show versions and hardware, and measure a model.

    With --model it shows which engine and precision were chosen and why, measures how long reading, preprocessing and
    embedding an image take, and names the bottleneck.
    """
    if images and model is None:
        raise typer.BadParameter("measuring images requires a model: add --model NAME")
    check_paths(weights, calibration)
    if model is not None:
        from image_encoders import models
        from image_encoders.inputs.image import read_image

        models.family(model)
        for image in images or ():
            read_image(image)

    from image_encoders import doctor as diagnosis

    machine = diagnosis.machine()
    if not as_json:
        _show_machine(machine)
    if model is None:
        if as_json:
            print_json(machine)
        return
    encoder = load(
        model,
        parse_options(options),
        offline=offline,
        weights=weights,
        device=device,
        precision=precision,
        engine=engine,
        calibration=calibration,
    )
    with tempfile.TemporaryDirectory() as folder:
        measured = diagnosis.stages(encoder, images or diagnosis.sample_images(Path(folder)), batch_size)
    if as_json:
        print_json({**machine, "stages": _fields(encoder, measured)})
    else:
        _show_model(encoder, measured)


def _fields(encoder: Encoder, measured: Stages) -> dict[str, Any]:
    return {
        "model": encoder.name,
        "device": encoder.device,
        "engine": encoder.engine,
        "precision": encoder.precision,
        "preprocessing": dict(encoder.tower("image").inputs.facts),
        "choice": None if encoder.choice is None else asdict(encoder.choice),
        **asdict(measured),
        "limit": measured.limit,
        "rate": measured.rate,
    }


def _show_machine(machine: dict[str, Any]) -> None:
    processor, memory, torch, cache = (machine[key] for key in ("processor", "memory", "torch", "cache"))
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine["packages"].items())
    devices = ", ".join(f"{one['device']} {one['name']} {one['memory_mb']:,} MB" for one in torch["cuda"])
    build = (
        "this build of torch is for the CPU"
        if torch["cuda_build"] is None
        else f"torch is built for CUDA {torch['cuda_build']}"
    )
    rows = [
        ("python", f"{machine['python']} on {machine['system']}"),
        ("packages", versions),
        ("processor", f"{processor['name']}, {counted(processor['cores'], 'core')} for this process"),
        ("instructions", " ".join(processor["instructions"]) or "none that speed up models"),
        ("memory", f"{memory['available_mb']:,} of {memory['total_mb']:,} MB free"),
        ("cuda", devices or f"no device; {build}"),
        ("cache", f"{cache['folder']}, {cache['free_mb']:,} MB free{'' if cache['writable'] else ', NOT writable'}"),
        ("hub cache", cache["hub_folder"]),
        (
            "network",
            "off: IMAGE_ENCODERS_OFFLINE or HF_HUB_OFFLINE is set" if cache["offline"] else "used to download models",
        ),
    ]
    for name, extra in machine["extras"].items():
        missing = [package for package, version in extra["packages"].items() if version is None]
        there = ", ".join(f"{package} {version}" for package, version in extra["packages"].items())
        rows.append((f"extra {name}", f"{' and '.join(missing)} missing: {extra['install']}" if missing else there))
    print_table((), rows)


def _show_model(encoder: Encoder, measured: Stages) -> None:
    how = f"{encoder.precision} by {encoder.engine} on {encoder.device}"
    print(f"\n{encoder.name}: {how}, {counted(measured.images, 'image')}")
    if summary := encoder.tower("image").inputs.summary:
        print(f"preprocessing: {summary}")
    if encoder.choice is not None:
        _show_choice(encoder.choice)
    _show_stages(measured)


def _show_choice(choice: Choice) -> None:
    """What precision="auto" selected, and why."""
    near = choice.closeness
    if near is not None:
        print(
            f"{choice.precision} stays close to float32: centred cosine at least {near.centred:.4f}, "
            f"{100 * near.neighbours:.0f} % of nearest neighbours the same, for {counted(near.images, 'drawn image')}"
        )
    for refused in choice.refused:
        print(f"not chosen: {refused}")


def _show_stages(measured: Stages) -> None:
    costs = measured.costs
    total = sum(costs.values())
    alone = {"read": f"{measured.read_ms:.2f}", "preprocess": f"{measured.preprocess_ms:.2f}"}
    together = counted(measured.workers, "thread")
    print_table(
        ("stage", "ms per image on 1 thread", f"on {together}", "share"),
        [(stage, alone.get(stage, ""), f"{cost:.2f}", f"{100 * cost / total:.0f} %") for stage, cost in costs.items()],
    )
    print(f"embedded in batches of {measured.batch_size}")
    print(f"{measured.limit} limits; expect about {measured.rate:.0f} images/s")
    if measured.limit != "embed" and not measured.shared:
        say("the device waits for images: more processor cores, or smaller files, would help")
