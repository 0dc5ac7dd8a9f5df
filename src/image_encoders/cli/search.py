"""`image-encoders search`: the pictures of a collection that are nearest to words, a picture or a sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from image_encoders.cli.arguments import Device, Json, Offline, Weights, load_again
from image_encoders.cli.printing import print_json, print_table, say, shown
from image_encoders.errors import CollectionError

if TYPE_CHECKING:
    from image_encoders.collection import Hit

EXAMPLES = """\b
Examples:
  image-encoders search my-photos "a dog on a beach"
  image-encoders search my-photos "a dog on a beach" -k 50 --html dogs.html
  image-encoders search my-photos --image holiday.jpg        # pictures like this one
  image-encoders search my-sounds --audio bark.wav           # models that hear, such as audioclip
  image-encoders search my-photos "a dog" --json | jq -r '.[].path'"""


def search(
    collection: Annotated[Path, typer.Argument(metavar="COLLECTION", help="The folder that `encode -o` made.")],
    words: Annotated[
        str | None, typer.Argument(metavar='"WORDS"', help="What to look for.", show_default=False)
    ] = None,
    image: Annotated[Path | None, typer.Option(metavar="FILE", help="Look for pictures like this one.")] = None,
    audio: Annotated[Path | None, typer.Option(metavar="FILE", help="Look for pictures of what is heard.")] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many pictures to find.")] = 10,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of thumbnails, all in one file.")
    ] = None,
    as_json: Json = False,
    weights: Weights = None,
    device: Device = None,
    offline: Offline = False,
) -> None:
    """Find pictures by words, a picture or a sound.

    The nearest come first. The model is the one that the collection was encoded with. A score is the cosine similarity.
    """
    if sum(query is not None for query in (words, image, audio)) != 1:
        raise typer.BadParameter('give one query: "WORDS", --image FILE or --audio FILE')

    from image_encoders.collection import Collection

    opened = Collection.open(collection)
    encoder = load_again(opened, {}, offline=offline, weights=weights, device=device)
    if encoder.fingerprint != opened.fingerprint:
        raise CollectionError(
            f"{collection} was encoded with {opened.name} of fingerprint {opened.fingerprint}, and {encoder.name} as "
            f"loaded here ({encoder.precision} by {encoder.engine} on {encoder.device}) has {encoder.fingerprint}: "
            "their rows cannot be compared; use the same weights and device, or encode the pictures again elsewhere"
        )
    if words is not None:
        query, rows = words, encoder.encode_text([words])
    elif image is not None:
        query, rows = image.name, encoder.encode_image([image])
    else:
        assert audio is not None
        query, rows = audio.name, encoder.encode_audio([audio])
    hits = opened.search(rows[0], k)
    if as_json:
        print_json([_fields(rank, hit) for rank, hit in enumerate(hits, 1)])
    else:
        show(hits)
    if page is not None:
        write_page(page, hits, query=query, model=encoder.name, collection=collection.name, picture=image)


def show(hits: Sequence[Hit]) -> None:
    """The table of what was found."""
    rows = ((rank, hit.score, f"{hit.width} x {hit.height}", shown(hit.path)) for rank, hit in enumerate(hits, 1))
    print_table(("rank", "score", "size", "picture"), rows)
    if not hits:
        say("the collection holds no pictures")


def write_page(
    path: Path, hits: Sequence[Hit], *, query: str, model: str, collection: str, picture: Path | None = None
) -> None:
    """The contact sheet, and where it is."""
    from image_encoders import contact_sheet

    sheet = contact_sheet.contact_sheet(hits, query=query, model=model, collection=collection, picture=picture)
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
    }
