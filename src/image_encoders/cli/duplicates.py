"""`image-encoders duplicates`: duplicates and near-duplicates in a collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.options import CollectionFolder, Json, local_path
from image_encoders.cli.printing import bar, counted, print, print_json, print_table, say, shown
from image_encoders.cli.search import check_page, named

if TYPE_CHECKING:
    from image_encoders.duplicates import Duplicate, Duplicates, Group

EXAMPLES = """\b
Examples:
  image-encoders duplicates my-photos
  image-encoders duplicates my-photos --threshold 0.99          # only what is almost the same
  image-encoders duplicates my-photos --html duplicates.html    # to compare them side by side
  image-encoders duplicates my-photos -o duplicates.parquet     # one row per image, for pandas, polars, DuckDB
  image-encoders duplicates my-photos --json | jq -r '.groups[].images[] | select(.best | not) | .path'"""

SHOWN, SHOWN_IMAGES = 20, 10  # groups that are listed, and images of each


def duplicates(
    collection: CollectionFolder,
    threshold: Annotated[
        float,
        typer.Option(
            metavar="COSINE",
            help="Minimum similarity of any two images in a group; 1 means equal embeddings. A good value depends on "
            "the model: look at some groups, and raise it if they contain different images.",
        ),
    ] = 0.95,
    near: Annotated[
        bool, typer.Option("--near", help="Ignore exact copies: of files with the same bytes, compare only the first.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write a Parquet file with one row per image.",
            parser=local_path,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(
            "--html",
            "--sheet",
            metavar="FILE",
            help="Also write a page of thumbnails, in one HTML file.",
            parser=local_path,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Find duplicate and near-duplicate images.

    A group holds files with the same bytes, and images whose embeddings are nearly the same. Any two images in it are
    that similar: chains, in which each image resembles only the next, are split. The best of each group is marked: the
    one with the most pixels, then the most bytes, then the first by id. No file is changed or deleted.
    """
    from image_encoders import contact_sheet, duplicates, exports
    from image_encoders.collection import Collection

    opened = Collection.open(collection)
    if out is not None:
        exports.check(out, overwrite, duplicates.ENDINGS)
    check_page(page)
    with bar("comparing", shown=not as_json) as show:
        found = duplicates.find_duplicates(
            opened,
            threshold=threshold,
            each_copy=not near,
            progress=show and (lambda done, total: show(done, total, 0)),
        )
    if as_json:
        print_json(_fields(found))
    else:
        _summarize(found)
    if out is not None:
        duplicates.write(out, found, overwrite=overwrite)
        say(f"{counted(sum(len(group.images) for group in found.groups), 'image')}: {shown(out)}")
    if page is not None:
        sheet = contact_sheet.duplicates_sheet(
            found.groups, threshold=threshold, model=opened.name, collection=collection.name
        )
        contact_sheet.write(page, sheet)
        say(f"thumbnails: {shown(page)}")


def _summarize(found: Duplicates) -> None:
    """The groups for people, and how many there are."""
    if found.recall is not None:
        missed = f"{found.recall.found:,} of {found.recall.pairs:,}"
        say(f"compared within cells of similar embeddings; on a sample this found {missed} pairs")
    if not found.groups:
        say(f"no duplicates among {counted(found.count, 'image')} at a cosine similarity of {found.threshold:g}")
        return
    print_table(("group", "similarity", "size", "bytes", "image"), list(_rows(found.groups)))
    if len(found.groups) > SHOWN:
        say(f"and {counted(len(found.groups) - SHOWN, 'more group')}: --json and -o list all, --html shows them")
    extra = [image for group in found.groups for image in group.images[1:]]
    print(
        f"{counted(len(found.groups), 'group')} among {counted(found.count, 'image')}; besides the best of each, "
        f"{counted(len(extra), 'image')} with {sum(image.size for image in extra) / 1e6:,.1f} MB"
    )


def _rows(groups: Sequence[Group]) -> Iterator[tuple[Any, ...]]:
    for number, group in enumerate(groups[:SHOWN], 1):
        best, *others = group.images
        count = counted(len(group.images), "image")
        yield f"{number}", "best", *_size(best), f"{named(best)}: {group.reason}"
        for image in others[: SHOWN_IMAGES - 1]:
            yield "", f"{image.score:.3f}", *_size(image), named(image)
        more = len(group.images) - SHOWN_IMAGES
        least = f"{count}, any two {group.least:.3f} or more"
        yield "", "", "", "", f"({least}{f'; {more:,} more' if more > 0 else ''})"


def _size(image: Duplicate) -> tuple[str, str]:
    return f"{image.width} x {image.height}", f"{image.size:,}"


def _fields(found: Duplicates) -> dict[str, Any]:
    from image_encoders.duplicates import fields

    return {
        "threshold": found.threshold,
        "images": found.count,
        "recall": found.recall and {"pairs": found.recall.pairs, "found": found.recall.found},
        "groups": [
            {"least": group.least, "reason": group.reason, "images": fields(number, group)}
            for number, group in enumerate(found.groups, 1)
        ],
    }
