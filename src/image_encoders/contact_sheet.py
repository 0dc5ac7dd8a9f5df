"""A page of thumbnails: search results or duplicates, in one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from image_encoders.bulk.sources import read_locator
from image_encoders.cache import atomic_write
from image_encoders.encoder import ordered
from image_encoders.errors import InputError
from image_encoders.records import Hit, Locator

if TYPE_CHECKING:
    from image_encoders.duplicates import Group
    from image_encoders.inputs.limits import ImageLimits

SIDE = 256  # longest side of a thumbnail [px]
QUALITY = 80  # of its JPEG
NAMED = 10  # copies of an image that are named
GROUPS, GROUPED = 200, 24  # groups of duplicates that are shown, and images of each


def contact_sheet(hits: Sequence[Hit], *, query: str, model: str, collection: str, image: Locator | None = None) -> str:
    """The HTML page that shows `hits`, best first.

    query: the words, or the name of the file
    model, collection: named below the title
    image: shown beside the title if the query was an image
    """
    figures = ordered(_figure, ((str(rank), hit) for rank, hit in enumerate(hits, 1)), ahead=16)
    asked = _thumbnail(image, f"The query: {query}") if image else ""
    found = f"{len(hits)} image{'' if len(hits) == 1 else 's'}"
    header = f"""{asked}
<div>
<h1>{escape(query)}</h1>
<p>{found} from {escape(collection)}, ranked by {escape(model)}</p>
</div>"""
    return _page(f"{query}: {found}", header, f"<ol>\n{''.join(figures)}</ol>")


def duplicates_sheet(groups: Sequence[Group], *, threshold: float, model: str, collection: str) -> str:
    """The HTML page that shows the first `GROUPS` groups of duplicates, and up to `GROUPED` images of each."""
    found = f"{len(groups):,} group{'' if len(groups) == 1 else 's'} of duplicates"
    only = f", of which the first {GROUPS} are shown" if len(groups) > GROUPS else ""
    header = f"""<div>
<h1>{found}</h1>
<p>in {escape(collection)}{only}. Any two images of a group have a cosine similarity of {threshold:g} or more by
{escape(model)}, or the same bytes. The similarity to the group's best image is shown below each image.</p>
</div>"""
    sections = (_section(number, group) for number, group in enumerate(groups[:GROUPS], 1))
    return _page(f"{found} in {collection}", header, "".join(sections))


def _section(number: int, group: Group) -> str:
    hits = group.images[:GROUPED]
    marks = ["best", *[""] * len(hits)]
    more = len(group.images) - len(hits)
    figures = "".join(ordered(_figure, zip(marks, hits), ahead=16))
    return f"""<section>
<h2>{number}: {len(group.images):,} images, similarity {group.least:.3f} or more</h2>
<p>The best has {escape(group.reason)}.{f" {more:,} more are not shown." if more else ""}</p>
<ol>
{figures}</ol>
</section>
"""


def _page(title: str, header: str, main: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
{header}
</header>
<main>
{main}
</main>
</body>
</html>
"""


def write(path: Path, page: str) -> None:
    """Write `page` to a file at `path`, which appears complete or not at all; OSError if it cannot be written."""
    try:
        with atomic_write(path) as part:
            part.write_bytes(page.encode("utf-8", "backslashreplace"))  # file names need not be UTF-8
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # names the file that was asked for


def _figure(marked: tuple[str, Hit]) -> str:
    mark, hit = marked
    path = Path(hit.path)
    name = hit.id.removeprefix(f"{path.parent}/") if hit.locator != Locator(hit.path) else path.name
    shown = _thumbnail(hit.locator, name)
    if path.exists():
        shown = f'<a href="{escape(path.absolute().as_uri())}">{shown}</a>'
    return f"""<li><figure>
{shown}
<figcaption><b>{mark}</b> <span class="score" title="cosine similarity">{hit.score:.3f}</span>
<span class="name" title="{escape(hit.path)}">{escape(name)}</span>
<span class="size">{hit.width} × {hit.height}</span>{_copies(hit)}</figcaption>
</figure></li>
"""


def _copies(hit: Hit) -> str:
    """How many other files have the same bytes, and the names of some."""
    if not hit.copies:
        return ""
    count = len(hit.copies)
    names = "\n".join(hit.copies[:NAMED]) + ("\n…" if count > NAMED else "")
    return f'\n<span class="name" title="{escape(names)}">and {count:,} {"copy" if count == 1 else "copies"}</span>'


def _thumbnail(locator: Locator, said: str) -> str:
    """An <img> that holds the image itself, or a note of why there is none."""
    try:
        encoded = base64.b64encode(thumbnail(read_locator(locator))).decode()
    except (InputError, OSError) as error:
        there = os.path.exists(locator.path)
        reason = "This image can no longer be read" if there else "This image is no longer there"
        return f'<span class="missing" title="{escape(str(error))}">{reason}</span>'
    return f'<img alt="{escape(said)}" src="data:image/jpeg;base64,{encoded}">'


def thumbnail(source: Path | bytes, *, side: int = SIDE, limits: ImageLimits | None = None) -> bytes:
    """A small JPEG of an image: upright, transparency on white.

    source: an image file, or its bytes
    side: the longest side [px]; smaller images are not enlarged
    limits: None: `ImageLimits.from_environment()`
    """
    from PIL import Image

    from image_encoders.inputs.image import read_image

    image = Image.fromarray(read_image(source, limits=limits, short_side=side))
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


_STYLE = """
:root { color-scheme: light dark; --back: #fafafa; --front: #1c1c1e; --quiet: #5f5f66; --card: #fff; --line: #dcdce0; }
@media (prefers-color-scheme: dark) {
  :root { --back: #161618; --front: #ececee; --quiet: #a3a3ab; --card: #222225; --line: #3a3a3f; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 90rem; padding: 1.5rem; background: var(--back); color: var(--front);
  font: 1rem/1.4 system-ui, sans-serif; }
header { display: flex; gap: 1rem; align-items: center; margin-bottom: 1.5rem; }
header img, header .missing { width: 6rem; height: 6rem; object-fit: contain; border-radius: .5rem; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 0; font-size: 1.1rem; }
section p { margin-bottom: .75rem; }
p { margin: .25rem 0 0; color: var(--quiet); overflow-wrap: anywhere; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12rem, 44%), 1fr)); gap: 1rem;
  margin: 0; padding: 0; list-style: none; }
figure { margin: 0; height: 100%; overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
figure a { display: block; }
figure a:focus-visible { outline: 3px solid #3478f6; outline-offset: -3px; }
figure img, figure .missing { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--back); }
figure img { display: block; }
.missing { display: grid; place-items: center; padding: 1rem; color: var(--quiet); text-align: center; }
figcaption { display: grid; grid-template-columns: auto 1fr auto; gap: 0 .5rem; padding: .5rem .75rem;
  font-size: .875rem; }
.score { color: var(--quiet); font-variant-numeric: tabular-nums; }
.size { grid-area: 1 / 3; color: var(--quiet); }
.name { grid-column: 1 / -1; overflow-wrap: anywhere; }
@media print {
  :root { color-scheme: light; --back: #fff; --front: #000; --quiet: #444; --card: #fff; --line: #bbb; }
  body { padding: 0; }
  ol { grid-template-columns: repeat(4, 1fr); }
  figure { break-inside: avoid; }
}
"""
