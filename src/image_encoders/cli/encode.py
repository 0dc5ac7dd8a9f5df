"""`image-encoders encode`: pictures into a collection."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.arguments import (
    Calibration,
    Device,
    Engine,
    Json,
    Offline,
    Options,
    Precision,
    Weights,
    load,
    load_again,
    parsed,
)
from image_encoders.cli.endings import interrupted
from image_encoders.cli.printing import bar, counted, print, print_json, say, shown, visible
from image_encoders.errors import CollectionError

if TYPE_CHECKING:
    from image_encoders.bulk.run import Report
    from image_encoders.bulk.sources import Sources
    from image_encoders.collection import Collection
    from image_encoders.encoder import Encoder

EXAMPLES = """\b
Examples:
  image-encoders encode photos/ -o my-photos                       # with CLIP from the Hugging Face hub
  image-encoders encode photos/ -o my-photos --model clip/demo     # with the small bundled model, no network
  image-encoders encode photos/ -o my-photos -m clip/./my-clip       # with a model in the folder my-clip
  image-encoders encode 'photos/**/*.jpg' more/ -o my-photos       # globs and folders
  find photos -name '*.png' | image-encoders encode - -o my-photos # paths from standard input
  image-encoders encode photos/ -o my-photos                       # again: only what is new or changed
  image-encoders encode photos/ -o my-photos --retry-failed        # and what failed before
  image-encoders encode photos/ -o features -m bit/R50x1 --weights BiT-M-R50x1.npz -O input_size=480"""

SHOWN = 5  # failures in the summary
CALIBRATED = 300  # pictures that int8 is calibrated on, unless --calibration names others


def encode(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help='Folders, "globs", picture files, lists of paths (@list.txt), or - for a list on standard input.',
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="COLLECTION", help="The folder of the collection, made if need be."),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The model; `image-encoders models` lists them.  [default: the collection's own, or else "
            "clip/openai/clip-vit-base-patch32]",
        ),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = None,
    calibration: Calibration = None,
    options: Options = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Pictures that the net takes at once.  [default: found by trying]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads that read and prepare.  [default: one per processor]"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed before and has not changed since.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Afterwards remove the rows whose files are no longer there.")
    ] = False,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Take every file of a folder, whatever its name.")
    ] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Largest picture to decode, width x height.  [default: 178000000]"),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Largest file to read.  [default: 536870912]")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")] = False,
) -> None:
    """Encode pictures into a collection.

    Run it again and only what is new or changed is encoded; stop it at any moment and run it again to go on. A broken
    file does not end the run: it is listed, and the exit status is 3.
    """
    for name, limit in (("IMAGE_ENCODERS_MAX_PIXELS", max_pixels), ("IMAGE_ENCODERS_MAX_BYTES", max_bytes)):
        if limit is not None:
            os.environ[name] = str(limit)

    from image_encoders.bulk import run, sources
    from image_encoders.collection import Collection

    files = sources.find(source, all_files=all_files)
    wishes: dict[str, Any] = {"weights": weights, "device": device, "precision": precision, "engine": engine}
    if precision == "int8" or calibration is not None:
        wishes["calibration"] = calibration or _calibration(output) or files.sample(CALIBRATED)
    encoder = _encoder(output, model, parsed(options), offline, wishes)
    collection = Collection.open_or_create(output, encoder)
    try:
        with bar("encoding", shown=not quiet) as progress:
            report = run.run(
                files,
                encoder,
                collection,
                batch_size=batch_size,
                workers=workers,
                retry_failed=retry_failed,
                prune=prune,
                progress=progress,
            )
    except KeyboardInterrupt:
        with interrupted():
            kept = f"{counted(collection.count(), 'row')} kept in {shown(output)}"
            say(f"interrupted: {kept}; the same command goes on from there")
        raise typer.Exit(130) from None
    if not report.total:
        say(_nothing(source, files))
    if as_json:
        print_json(_fields(report, output, encoder, collection))
    elif not quiet:
        summarize(report, output, collection)
    if report.failed:
        raise typer.Exit(3)


def _calibration(output: Path) -> str | None:
    """The calibration of a collection that was begun; CollectionError where it was begun in another precision."""
    from image_encoders.collection import MARK, Collection

    if not (output / MARK).exists():
        return None
    opened = Collection.open(output)
    if opened.precision != "int8":
        raise CollectionError(f"{output} was begun in {opened.precision}; choose another output for int8")
    return opened.recipe.get("calibration")


def _encoder(
    output: Path, model: str | None, options: dict[str, Any], offline: bool, wishes: dict[str, Any]
) -> Encoder:
    """The model asked for, or the one that the collection was begun with, or the default."""
    from image_encoders.collection import MARK, Collection
    from image_encoders.models import DEFAULT

    if model is None and (output / MARK).exists():
        return load_again(Collection.open(output), options, offline=offline, **wishes)
    return load(model or DEFAULT, options, offline=offline, **wishes)


def _nothing(source: Sequence[str], files: Sources) -> str:
    """That there were no pictures, and what there was instead."""
    places = ["standard input" if place == "-" else place for place in source]
    words = f"warning: no pictures in {_some(places, len(places))}"
    if not files.ignored:
        return words
    others = counted(files.ignored, "other file")
    return f"{words}, but {others}: {_some(files.passed_over, files.ignored)}; --all-files takes them"


def _some(names: Sequence[str], count: int) -> str:
    """The first of `count` names."""
    more = count - len(names[:SHOWN])
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more else "")


def summarize(report: Report, output: Path, collection: Collection) -> None:
    """What a run did, with the first failures and how to see the others."""
    rate = f", {report.encoded / report.seconds:.0f}/s" if report.encoded and report.seconds else ""
    rows = counted(collection.count(), "row")
    print(f"{counted(report.total, 'picture')} in {report.seconds:.1f} s{rate} -> {shown(output)}, {rows}")
    counts = {name: getattr(report, name) for name in ("encoded", "reused", "unchanged", "failed", "pruned", "ignored")}
    print("  " + ", ".join(f"{count:,} {name}" for name, count in counts.items() if count or name == "encoded"))
    if report.failed:
        for failure in collection.failures()[:SHOWN]:
            print(visible(f"  {shown(failure.id)}: {failure.message}"))
        print(f"  all failures: image-encoders failures {shown(output)}; to try them again: --retry-failed")


def _fields(report: Report, output: Path, encoder: Encoder, collection: Collection) -> dict[str, Any]:
    return {
        **asdict(report),
        "rate": report.encoded / report.seconds if report.seconds else 0.0,
        "collection": str(output.absolute()),
        "rows": collection.count(),
        "model": encoder.name,
        "fingerprint": encoder.fingerprint,
        "device": encoder.device,
        "engine": encoder.engine,
        "precision": encoder.precision,
        "failures": [asdict(failure) for failure in collection.failures()[:SHOWN]] if report.failed else [],
    }
