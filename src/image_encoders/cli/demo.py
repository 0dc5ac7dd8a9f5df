"""`image-encoders demo`: the tour, from image files to search results."""

from __future__ import annotations

import shlex
import shutil
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from image_encoders.cli.options import local_path
from image_encoders.cli.printing import console, counted, shown
from image_encoders.errors import InputError

EXAMPLES = """\b
Examples:
  image-encoders demo               # into the folder image-encoders-demo
  image-encoders demo /tmp/tour
  image-encoders demo --serve       # and then a page in the web browser that searches them"""

IMAGES = 300
MADE = {"images", ".images.part", "collection", "red-circles.html"}  # by a tour, in its folder
QUERIES = ("a red circle", "a purple triangle on a white background", "a green heart and a yellow square")


def demo(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Where the images and the collection go: new or empty, or an earlier tour's.",
            parser=local_path,
        ),
    ] = Path("image-encoders-demo"),
    serve: Annotated[
        bool, typer.Option("--serve", help="Then search the images on a page in the web browser, until Ctrl-C.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="With --serve: do not open a web browser.")] = False,
    port: Annotated[int | None, typer.Option(metavar="N", min=0, max=65535, help="With --serve: the port.")] = None,
) -> None:
    """Take the tour: draw images, encode them, search them.

    It uses the bundled model and no network, and shows each command before running it. Two of the files are broken, to
    show how a run reports them.
    """
    from image_encoders.models import DEFAULT

    _check(folder)
    start = time.perf_counter()
    images, collection, page = folder / "images", folder / "collection", folder / "red-circles.html"
    if not images.exists():  # later tours have the converted model in the cache
        threading.Thread(target=_import_nets, daemon=True).start()  # on the second core, while the first one draws
    _draw(images)
    _run("encode", str(images), "-o", str(collection), "--model", "clip/demo", expected=3)
    _run("failures", str(collection))
    _run("search", str(collection), QUERIES[0], "-k", "12", "--html", str(page))
    for words in QUERIES[1:]:
        _run("search", str(collection), words, "-k", "5")
    _run("search", str(collection), "--image", str(min(images.rglob("*.webp"))), "-k", "5")
    _show(f"\nThat took {time.perf_counter() - start:.1f} s. Thumbnails to look at in a browser: {page.resolve()}")
    if serve:
        options = [*(["--no-open"] if no_open else []), *([] if port is None else ["--port", str(port)])]
        _run("browse", str(images), "-o", str(collection), *options)
    else:
        _show("The same on a page that searches as you type: image-encoders demo --serve")
    _show(f"Now with your own images: image-encoders fetch {DEFAULT}   (0.6 GB, once)")
    _show("                          image-encoders browse IMAGES")


def _check(folder: Path) -> None:
    """Raise InputError for a folder with files that no earlier tour made."""
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder} is a file; choose a new or empty folder", code="folder")
        return
    others = sorted({one.name for one in folder.iterdir()} - MADE)
    if (images := folder / "images").exists():
        others += [f"images/{one.name}" for one in images.iterdir() if not one.name.startswith("album-")]
    if others:
        raise InputError(
            f"{folder} holds files that do not belong to the tour, such as {others[0]}; choose a new or empty folder",
            code="folder",
        )


def _import_nets() -> None:
    """What `encode` is about to import, which takes several seconds."""
    from transformers import AutoTokenizer, CLIPModel  # noqa: F401


def _draw(images: Path) -> None:
    """The image files, unless an earlier tour drew them."""
    from image_encoders.scenes import write_images

    if images.exists():
        _show(f"The images in {shown(images)} were drawn by an earlier tour.")
        return
    part = images.with_name(".images.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_images(part, IMAGES, seed=0)
    part.rename(images)
    _show(f"Drew {counted(IMAGES, 'image')} and two broken files in {shown(images)}.")


def _run(*arguments: str, expected: int = 0) -> None:
    """Show a command and run it here; end the tour if it fails unexpectedly."""
    from image_encoders.cli import app

    _show(f"\n$ image-encoders {shlex.join(arguments)}", style="bold")
    status = app(list(arguments), prog_name="image-encoders", standalone_mode=False) or 0
    if status != expected:
        raise typer.Exit(status or 1)


def _show(words: str, style: str | None = None) -> None:
    console().print(words, style=style, soft_wrap=True)
