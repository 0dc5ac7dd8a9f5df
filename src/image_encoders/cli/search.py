"""`image-encoders search`: the images of a collection that are nearest to words, an image or a sound."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.loading import load_again, loading
from image_encoders.cli.options import CollectionFolder, Device, Json, Offline, Weights, local_path
from image_encoders.cli.printing import counted, print_json, print_table, say, shown
from image_encoders.errors import CollectionError, InputError

if TYPE_CHECKING:
    import numpy as np

    from image_encoders.collection import Collection, Hit
    from image_encoders.encoder import Encoder
    from image_encoders.records import Locator

EXAMPLES = """\b
Examples:
  image-encoders search my-photos "a dog on a beach"
  image-encoders search my-photos "a dog on a beach" -k 50 --html dogs.html
  image-encoders search my-photos --image holiday.jpg        # images like this one
  image-encoders search my-photos "at night" --image street.jpg --minus "people"
  image-encoders search my-photos "a dog" --where "year >= 2020" --where "label = beach"   # by metadata of a table
  image-encoders search my-sounds --audio bark.wav           # with a model that takes sounds, such as audioclip
  image-encoders search my-photos "a dog" --json | jq -r '.[].path'"""


def search(
    collection: CollectionFolder,
    words: Annotated[
        str | None,
        typer.Argument(
            metavar='"WORDS"',
            help="What to look for, in words; --image or --audio can replace it or be combined with it.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Find images like this one: a file, or an id such as shard.tar#7.jpg."),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Find images that match this sound.", parser=local_path)
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option("--minus", metavar='"WORDS"', help="Subtract these words from the query; may be repeated."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar='"NAME = VALUE"',
            help="Only images with matching metadata: =, !=, <, <=, > or >= a number, a text, true, false or null; may "
            "be repeated, and then all must match.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many images to find.")] = 10,
    each_copy: Annotated[
        bool, typer.Option("--all", help="List every copy of an image; without it, identical files share one line.")
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Also write a page of thumbnails, in one HTML file.", parser=local_path
        ),
    ] = None,
    as_json: Json = False,
    weights: Weights = None,
    device: Device = None,
    offline: Offline = False,
) -> None:
    """Find images by words, an image, a sound, or several of these.

    The best matches come first; the score is the cosine similarity. The model is the one that the collection was
    encoded with.
    """
    queries = [(modality, one, 1.0) for modality, one in _queries(words, image, audio) if one is not None]
    if not queries:
        raise typer.BadParameter('give a query: "WORDS", --image FILE or --audio FILE')
    queries += [("text", one, -1.0) for one in minus or ()]
    if any(modality == "text" and not one.strip() for modality, one, _ in queries):
        raise typer.BadParameter('WORDS are empty; write what to look for, such as "a dog on a beach"')

    from image_encoders.bulk.sources import locator_of
    from image_encoders.collection import Collection
    from image_encoders.tables import Comparison, Where

    held = Where(metadata=tuple(map(Comparison.parse, where or ())))
    opened = Collection.open(collection)
    contents = [_content(opened, modality, query) for modality, query, _ in queries]
    check_page(page)
    with loading(opened.name):
        encoder = load_again(opened, {}, offline=offline, quiet=True, weights=weights, device=device)
        embeddings = [_embedding(encoder, modality, one) for (modality, *_), one in zip(queries, contents)]
    hits = opened.search(opened.mix(embeddings, [weight for *_, weight in queries]), k, each_copy=each_copy, where=held)
    if as_json:
        print_json([_fields(rank, hit) for rank, hit in enumerate(hits, 1)])
    else:
        show(hits, "no image matches --where" if where and opened.count() else "the collection is empty")
    if page is not None:
        title = "".join(
            (" − " if weight < 0 else " + " if place else "")
            + (query if modality == "text" else os.path.basename(query))
            for place, (modality, query, weight) in enumerate(queries)
        )
        asked = None if image is None else locator_of(os.path.expanduser(image))
        write_page(page, hits, query=title, model=encoder.name, collection=collection.name, image=asked)


def _queries(words: str | None, image: str | None, audio: Path | None) -> Sequence[tuple[str, Any]]:
    return ("text", words), ("image", image), ("audio", audio)


def _content(opened: Collection, modality: str, query: Any) -> Any:
    """What is to be embedded; raises, before a model is loaded, where that cannot be."""
    from image_encoders.bulk.sources import locator_of, read_locator

    if modality not in opened.modalities:
        raise CollectionError(
            f"{opened.folder} was encoded with {opened.name}, which has no {modality} tower; "
            f"search by {' or '.join(opened.modalities)}"
        )
    if modality == "image":
        try:
            return read_locator(locator_of(os.path.expanduser(query)))
        except InputError as error:
            raise error.named(query) from error
    if modality == "audio":
        query.expanduser().open("rb").close()
    return query


def check_page(page: Path | None) -> None:
    """Raise InputError where a page of thumbnails cannot be written to `page`."""
    if page is None:
        return
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"--html {page}: the name must end with .html, so that no other file is overwritten", code="page"
        )
    if page.is_dir() or not page.absolute().parent.is_dir():
        where = "is a folder" if page.is_dir() else f"there is no folder {shown(page.absolute().parent)}"
        raise InputError(f"--html {page}: {where}; choose a file in an existing folder", code="page")


def _embedding(encoder: Encoder, modality: str, query: Any) -> np.ndarray:
    """(dim,) of the query."""
    encode = {"text": encoder.encode_text, "image": encoder.encode_image, "audio": encoder.encode_audio}[modality]
    return encode([query])[0]


def show(hits: Sequence[Hit], otherwise: str) -> None:
    """The table of what was found; `otherwise` where nothing was."""
    rows = ((rank, hit.score, f"{hit.width} x {hit.height}", named(hit)) for rank, hit in enumerate(hits, 1))
    print_table(("rank", "score", "size", "image"), rows)
    if not hits:
        say(otherwise)


def named(hit: Hit) -> str:
    """An image as people know it, and how many copies it has."""
    from image_encoders.collection import path_of

    copies = len(hit.copies)
    name = shown(hit.path) if path_of(hit.id) == hit.path else hit.id  # an item of a program's own source
    return name + (f" and {counted(copies, 'copy', 'copies')}" if copies else "")


def write_page(
    path: Path, hits: Sequence[Hit], *, query: str, model: str, collection: str, image: Locator | None = None
) -> None:
    """The contact sheet, and where it is."""
    from image_encoders import contact_sheet

    sheet = contact_sheet.contact_sheet(hits, query=query, model=model, collection=collection, image=image)
    contact_sheet.write(path, sheet)
    say(f"thumbnails: {shown(path)}")


def _fields(rank: int, hit: Hit) -> dict:
    return {
        "rank": rank,
        "score": float(hit.score),
        "path": hit.path,
        "id": hit.id,
        "width": hit.width,
        "height": hit.height,
        "sha256": hit.sha256,
        "copies": list(hit.copies),
        "metadata": hit.metadata,
    }
