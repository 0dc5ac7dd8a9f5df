"""The command `image-encoders`: one module per command, for parsing and printing; the work is done elsewhere.

Exit statuses: 0 success; 2 error, explained in one sentence; 3 finished, but some items failed, and a line says where
they are listed; 130 interrupted. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from image_encoders import __version__
from image_encoders.cli import (
    browse,
    convert,
    demo,
    doctor,
    duplicates,
    encode,
    export,
    failures,
    fetch,
    flow,
    info,
    map,
    models,
    search,
    serve,
    skipped_imports,
    verify,
)
from image_encoders.cli.printing import keeps_results_apart, say
from image_encoders.cli.shutdown import discard_output, exit_with_error, hold_interrupts, interrupted
from image_encoders.errors import ImageEncodersError


class Commands(TyperGroup):
    """The commands, with every expected error turned into one sentence and an exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _exit_statuses(ctx):  # --help and --version are written here
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _exit_statuses(ctx):
            return super().invoke(ctx)


@contextmanager
def _exit_statuses(ctx: Any) -> Iterator[None]:
    """Turns what is raised in the block into one sentence and an exit status."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a closed pipe is still an error that can be caught
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        discard_output(sys.stdout)
        raise typer.Exit(141) from None  # what a shell reports for SIGPIPE
    except (ImageEncodersError, OSError) as error:
        if (ctx.obj or {}).get("debug"):
            raise
        exit_with_error(error)
    except KeyboardInterrupt:
        with interrupted():
            say("interrupted")
        raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # plain help: quick to show, and its examples can be copied
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Try it:
  image-encoders demo                                   # the whole tour, with no network
  image-encoders browse photos/                         # a page that searches them
  image-encoders encode photos/ -o my-photos            # images into a collection
  image-encoders search my-photos "a dog on a beach"    # find them by words
\b
Exit status: 0 success; 2 error, explained in one sentence; 3 finished, but some items failed; 130 interrupted:
completed work is kept, and the same command resumes.
\b
Ctrl-C (SIGINT) and SIGTERM stop a run cleanly. Under `nohup`, or with `&` in a script, shells make commands ignore
SIGINT: use `kill PID` (SIGTERM) instead.""",
)

for command in (
    browse.browse,
    encode.encode,
    search.search,
    duplicates.duplicates,
    map.map,
    serve.serve,
    failures.failures,
    info.info,
    export.export,
    models.models,
    fetch.fetch,
    convert.convert,
    verify.verify,
    doctor.doctor,
    flow.flow,
    demo.demo,
):
    assert "EXAMPLES" in command.__globals__, f"{command.__module__} has no EXAMPLES, which end its --help"
    app.command(epilog=command.__globals__["EXAMPLES"])(keeps_results_apart(command))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"image-encoders {__version__}")
        raise typer.Exit


@app.callback()
def all_commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="IMAGE_ENCODERS_DEBUG")] = False,
) -> None:
    """Turn images into embeddings, and search collections of images by words, by images and by sounds."""
    context.obj = {"debug": debug}


def main() -> None:
    """The command's entry point."""
    hold_interrupts()
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be text
    skipped_imports.skip()
    # Pillow warns of metadata it cannot read and of images above a limit of its own; neither decides here.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # LanceDB's library in Rust writes warnings for its developers to standard error; its errors are raised. It reads
    # this when it is imported.
    os.environ.setdefault("LANCEDB_LOG", "off")
    app(prog_name="image-encoders")


def _open_streams() -> None:
    """Replace closed standard streams by the null device: otherwise the next opened file would take their place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
