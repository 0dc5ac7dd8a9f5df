"""The command `image-encoders`: one module per command, which parses and prints; the work is done elsewhere.

Exit statuses: 0 everything asked for was done; 2 it could not be done, and one sentence says why; 3 done, but items
failed, and it is said where they are listed; 130 interrupted. Results go to standard output, all else to standard
error.
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
    convert,
    demo,
    doctor,
    encode,
    export,
    failures,
    fetch,
    flow,
    info,
    models,
    search,
    unused,
    verify,
)
from image_encoders.cli.endings import discard, give_up, hold_interrupts_while_importing, interrupted
from image_encoders.cli.printing import say
from image_encoders.errors import ImageEncodersError


class Commands(TyperGroup):
    """The commands, with every expected error turned into one sentence and an exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _ended(ctx):  # --help and --version are written here
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _ended(ctx):
            return super().invoke(ctx)


@contextmanager
def _ended(ctx: Any) -> Iterator[None]:
    """What goes wrong in the block, as one sentence and an exit status."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where a closed pipe is still an error that can be caught
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        discard(sys.stdout)
        raise typer.Exit(141) from None  # what a shell reports for SIGPIPE
    except (ImageEncodersError, OSError) as error:
        if (ctx.obj or {}).get("debug"):
            raise
        give_up(error)
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
  image-encoders encode photos/ -o my-photos            # pictures into a collection
  image-encoders search my-photos "a dog on a beach"    # and found by words
\b
Exit status: 0 all done; 2 not possible, one sentence says why; 3 done, but some items failed.""",
)

for command in (
    encode.encode,
    search.search,
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
    app.command(epilog=command.__globals__["EXAMPLES"])(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"image-encoders {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.", envvar="IMAGE_ENCODERS_DEBUG")] = False,
) -> None:
    """Pictures into vectors, and collections of pictures that you search by words, sounds and pictures."""
    context.obj = {"debug": debug}


def main() -> None:
    """The command's entry point."""
    hold_interrupts_while_importing()
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be text
    unused.leave_out()
    # Pillow warns of metadata it cannot read and of images above a limit of its own; neither decides here.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app(prog_name="image-encoders")


def _open_streams() -> None:
    """Where a standard stream is closed, the null device: else the next file that is opened would take its place."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
