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
  image-encoders demo /tmp/tour"""

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
) -> None:
    """Take the tour: draw images, encode them, search them.

    It uses the bundled model and no network, and shows each command before running it. Two of the files are broken, to
    show how a run reports them.
    """
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
    _tell(f"\nThat took {time.perf_counter() - start:.1f} s. Thumbnails to look at in a browser: {page.resolve()}")
    _tell("Now with your own images: image-encoders encode IMAGES -o COLLECTION   (downloads CLIP once)")


def _check(folder: Path) -> None:
    """Raise InputError for a folder that holds anything but what an earlier tour made."""
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder} is a file; name a folder, new or empty", code="folder")
        return
    others = sorted({one.name for one in folder.iterdir()} - MADE)
    if (images := folder / "images").exists():
        others += [f"images/{one.name}" for one in images.iterdir() if not one.name.startswith("album-")]
    if others:
        raise InputError(
            f"{folder} holds files that are not of the tour, such as {others[0]}; name a folder that is new or empty",
            code="folder",
        )


def _import_nets() -> None:
    """What `encode` is about to import, which takes several seconds."""
    from transformers import AutoTokenizer, CLIPModel  # noqa: F401


def _draw(images: Path) -> None:
    """The image files, unless an earlier tour drew them."""
    from image_encoders.scenes import write_images

    if images.exists():
        _tell(f"The images in {shown(images)} were drawn by an earlier tour.")
        return
    part = images.with_name(".images.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write_images(part, IMAGES, seed=0)
    part.rename(images)
    _tell(f"Drew {counted(IMAGES, 'image')} and two broken files in {shown(images)}.")


def _run(*arguments: str, expected: int = 0) -> None:
    """Show a command and run it here; end the tour if it does not end as it should."""
    from image_encoders.cli import app

    _tell(f"\n$ image-encoders {shlex.join(arguments)}", style="bold")
    status = app(list(arguments), prog_name="image-encoders", standalone_mode=False) or 0
    if status != expected:
        raise typer.Exit(status or 1)


def _tell(words: str, style: str | None = None) -> None:
    console().print(words, style=style, soft_wrap=True)
