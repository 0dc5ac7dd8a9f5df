"""`image-encoders encode`: images into a collection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.failures import with_advice
from image_encoders.cli.loading import check_goes_on, check_paths, load, load_again
from image_encoders.cli.meter import progress_of
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
from image_encoders.cli.printing import counted, escape_controls, notice, print, print_json, say, shown
from image_encoders.cli.shutdown import interrupted, interrupts_held, terminations
from image_encoders.engines.precision import CALIBRATED

if TYPE_CHECKING:
    from image_encoders.bulk.run import Report
    from image_encoders.bulk.sources import Sources
    from image_encoders.collection import Collection
    from image_encoders.encoder import Encoder

EXAMPLES = """\b
Examples:
  image-encoders encode photos/ -o my-photos                       # with CLIP from the Hugging Face hub
  image-encoders encode photos/ -o my-photos --model clip/demo     # with the small bundled model, no network
  image-encoders encode photos/ -o my-photos -m clip/./my-clip     # with the checkpoint in the folder my-clip
  image-encoders encode 'photos/**/*.jpg' more/ -o my-photos       # globs and folders
  image-encoders encode 'shards/*.tar' -o my-photos                # WebDataset shards, other archives
  image-encoders encode photos.csv --column path -o my-photos      # a table; its other columns as metadata
  image-encoders encode holiday.mp4 --frames scenes -o my-photos   # a frame of each scene of a video
  image-encoders encode s3://bucket/photos -o my-photos            # object storage
  find photos -name '*.png' | image-encoders encode - -o my-photos # paths from standard input
  image-encoders encode photos/ -o my-photos                       # again: only what is new or changed
  image-encoders encode photos/ -o my-photos --retry-failed        # and what failed before
  image-encoders encode photos/ -o features -m bit/R50x1 --weights BiT-M-R50x1.npz -O input_size=480
  image-encoders encode photos/ -o my-photos --ray local --ray-workers 4   # four processes on this machine
  image-encoders encode /shared/photos -o /shared/index --ray auto         # on the cluster of this machine
  nohup image-encoders encode photos/ -o my-photos &               # in the background; `kill PID` stops it
\b
On a Ray cluster every node must see the images, and the collection or --parts, at the same path. Whichever process was
killed, the same command resumes. See docs/scale.md.
\b
Stopping: Ctrl-C (SIGINT) or `kill` (SIGTERM) stores what has been embedded and exits with 130; a second exits at once.
Under `nohup`, or with `&` in a script, shells make commands ignore SIGINT; SIGTERM still stops it cleanly."""

SHOWN = 5  # failures in the summary
COUNTS = {  # in the summary, after what was encoded, each with what it means
    "reused": " (the same bytes under another name)",
    "unchanged": "",
    "failed": "",
    "pruned": " (their files are gone)",
    "ignored": " (not named like images; --all-files includes them)",
}
CALIBRATION = 300  # images that a model is calibrated on, unless --calibration names others


def encode(
    context: typer.Context,
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help='Folders, "globs", image files, archives (.tar, .zip), tables (.parquet, .csv, .jsonl, .lance), '
            "videos, s3:// and the like, lists of paths (@list.txt), or - for a list on standard input.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="COLLECTION",
            help="The folder of the collection: a new one, or one to add to.",
            parser=local_path,
        ),
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
        typer.Option(metavar="N", min=1, help="Images per batch.  [default: the fastest, found by trying]"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Threads that read and preprocess.  [default: one per processor core]"),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Also retry items that failed in earlier runs and have not changed.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="At the end, remove the embeddings of files that no longer exist.")
    ] = False,
    all_files: Annotated[
        bool, typer.Option("--all-files", help="Take every file in a folder, whatever its extension.")
    ] = False,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For tables: the column of images, paths or URLs.  [default: detected]"),
    ] = None,
    private_urls: Annotated[
        bool, typer.Option("--private-urls", help="Fetch URLs of lists and tables from private addresses, too.")
    ] = False,
    frames: Annotated[
        str,
        typer.Option(
            metavar="WHEN", help="For videos: the number of seconds between frames, or scenes for one frame per scene."
        ),
    ] = "10",
    max_failures: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Stop once more than N images have failed in this run.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Encode on a Ray cluster: HOST:PORT of its head, auto for the one that this machine belongs to, or "
            "local to start one here.",
        ),
    ] = None,
    ray_workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Workers on the cluster.  [default: one per GPU, or per node where there is none]"
        ),
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --ray: a folder for work in progress that every node sees at this path.  [default: in the "
            "collection]",
            parser=local_path,
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Largest image to decode, width x height.  [default: 178000000]"),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Largest file to read, in bytes.  [default: 536870912]")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Report progress as lines of JSON on standard error, instead of a bar.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print no progress and no summary, only errors and the number of failures."),
    ] = False,
) -> None:
    """Encode images into a collection.

    Run it again and only what is new or changed is encoded. Stop it at any time: the same command resumes. A broken
    file does not stop the run: it is listed, and the exit status is 3.
    """
    _set_limits(IMAGE_ENCODERS_MAX_PIXELS=max_pixels, IMAGE_ENCODERS_MAX_BYTES=max_bytes)

    from image_encoders.bulk import run, sources
    from image_encoders.collection import Collection

    if ray is None and (ray_workers is not None or parts is not None):
        raise typer.BadParameter("--ray-workers and --parts require --ray ADDRESS, such as --ray local")
    files = sources.find(source, all_files=all_files, column=column, private_urls=private_urls, frames=frames)
    begun = _begun(output)
    check_paths(weights, calibration)
    if begun is not None:
        check_goes_on(begun, model, weights, precision)
    wishes: dict[str, Any] = {"weights": weights, "device": device, "precision": precision, "engine": engine}
    if precision in CALIBRATED or calibration is not None:
        wishes["calibration"] = calibration or (begun and begun.recipe.get("calibration")) or files.sample(CALIBRATION)
    began = time.monotonic()
    encoder = _encoder(begun, model, parse_options(options), offline=offline, quiet=quiet, **wishes)
    load_seconds = time.monotonic() - began
    pool = context.with_resource(_cluster(ray, ray_workers, batch_size, quiet))
    try:
        with terminations():
            collection = Collection.open_or_create(output, encoder)
            with progress_of(files, log_json, quiet) as progress:
                report = run.run(
                    files,
                    encoder,
                    collection,
                    batch_size=batch_size,
                    workers=workers,
                    retry_failed=retry_failed,
                    prune=prune,
                    max_failures=max_failures,
                    progress=progress,
                    pool=pool,
                    parts=parts,
                )
    except KeyboardInterrupt:
        with interrupted():
            _say_what_is_kept(output)
        raise typer.Exit(130) from None
    if not report.total:
        say(_nothing(source, files))
    if as_json:
        print_json(_fields(report, output, encoder, collection, load_seconds))
    elif not quiet:
        summarize(report, output, collection, load_seconds)
    if report.failed:
        if quiet:
            say(f"{report.failed:,} failed; image-encoders failures {shown(output)} lists them")
        raise typer.Exit(3)


@contextmanager
def _cluster(address: str | None, workers: int | None, batch_size: int | None, quiet: bool) -> Iterator[Any]:
    """What makes a run's workers on a Ray cluster, to which the block is connected; None without --ray.

    Ray takes seconds to start, so the model is loaded first: one that cannot be used is refused at once. The database,
    whose threads no process that Ray starts should inherit, is opened afterwards.
    """
    if address is None:
        yield None
        return
    from image_encoders.bulk import ray

    with ExitStack() as connection:
        with notice(f"connecting to Ray at {address}", not quiet), interrupts_held():  # its start survives none
            connection.enter_context(ray.connected(address))
        yield partial(ray.Workers, count=workers, batch_size=batch_size)


def _set_limits(**limits: int | None) -> None:
    """Set image limits, for this process and those that it starts."""
    os.environ.update({name: str(limit) for name, limit in limits.items() if limit is not None})


def _say_what_is_kept(output: Path) -> None:
    from image_encoders.collection import MARK, Collection

    count = Collection.open(output).count() if (output / MARK).exists() else 0
    say(f"interrupted: {counted(count, 'embedding')} kept in {shown(output)}; run the same command again to resume")


def _begun(output: Path) -> Collection | None:
    """The collection in `output`, locked by no other process; None if one can be created there."""
    from image_encoders.collection import MARK, Collection, check_new

    if not (output / MARK).exists():
        check_new(output)
        return None
    begun = Collection.open(output)
    with begun.locked():
        return begun


def _encoder(begun: Collection | None, model: str | None, options: dict[str, Any], **wishes: Any) -> Encoder:
    """The requested model, or the collection's encoder, or the default."""
    from image_encoders.models import DEFAULT

    if begun is not None and model in (None, begun.name):
        return load_again(begun, options, **wishes)
    return load(model or DEFAULT, options, **wishes)


def _nothing(source: Sequence[str], files: Sources) -> str:
    """The warning that there were no images, with what was found instead."""
    from image_encoders.bulk.sources.find import holds_many

    places = ["standard input" if place == "-" else place for place in source]
    words = f"warning: no images in {_some(places, len(places))}"
    if not files.ignored:
        return words
    others = f"{counted(files.ignored, 'other file')}: {_some(files.passed_over, files.ignored)}"
    if (held := next(filter(holds_many, files.passed_over), None)) is not None:
        pattern = os.path.join(source[0], "**", f"*{os.path.splitext(held)[1]}")
        return f"{words}, but {others}; archives, tables and videos are named themselves, as in '{pattern}'"
    return f"{words}, but {others}; --all-files includes them"


def _some(names: Sequence[str], count: int) -> str:
    """The first of `count` names."""
    more = count - len(names[:SHOWN])
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more else "")


def summarize(report: Report, output: Path, collection: Collection, load_seconds: float) -> None:
    """Print what a run did, with the first failures and how to see the others."""
    rate = f", then {report.encoded / report.seconds:.0f} images/s" if report.encoded and report.seconds else ""
    seconds = f"{load_seconds + report.seconds:.1f} s ({load_seconds:.1f} s to load the model{rate})"
    stored = counted(collection.count(), "embedding")
    print(f"{counted(report.total, 'image')} in {seconds} -> {shown(output)}, {stored}")
    counts = {name: getattr(report, name) for name in ("encoded", *COUNTS)}
    said = (f"{count:,} {name}{COUNTS.get(name, '')}" for name, count in counts.items() if count or name == "encoded")
    print("  " + ", ".join(said))
    if report.failed:
        for failure in collection.failures()[:SHOWN]:
            print(escape_controls(f"  {shown(failure.id)}: {with_advice(failure)}"))
        print(f"  all failures: image-encoders failures {shown(output)}; to retry them: --retry-failed")


def _fields(
    report: Report, output: Path, encoder: Encoder, collection: Collection, load_seconds: float
) -> dict[str, Any]:
    return {
        **asdict(report),
        "load_seconds": load_seconds,
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
