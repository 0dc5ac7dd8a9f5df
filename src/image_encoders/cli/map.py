"""`image-encoders map`: a collection as points in the plane, to look at in Embedding Atlas."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from image_encoders.cli.options import CollectionFolder, Json, local_path
from image_encoders.cli.printing import counted, notice, print, print_json, say, shown
from image_encoders.errors import ImageEncodersError, MissingExtra

EXAMPLES = """\b
Examples:
  image-encoders map my-photos                                # writes my-photos.map.parquet and opens it
  image-encoders map my-photos -o map.parquet --no-open       # only writes it
  image-encoders map my-photos --method pca --overwrite       # quickly, also for millions"""


def map(
    collection: CollectionFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The Parquet file.  [default: COLLECTION.map.parquet]",
            parser=local_path,
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="pca, the two directions in which the embeddings differ most; umap, which keeps neighbours together "
            "and takes minutes for large collections; or auto: umap where umap-learn is installed.",
        ),
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    opened: Annotated[bool, typer.Option("--open/--no-open", help="Open it in Embedding Atlas, in a browser.")] = True,
    as_json: Json = False,
) -> None:
    """Write a map of a collection, and open it.

    Each image is a point, and similar ones are near each other. The file has a row for each image: x, y, its path, size
    and date. Embedding Atlas (pip install 'image-encoders[map]') shows it until Ctrl-C.
    """
    from image_encoders.collection import Collection
    from image_encoders.projection import project

    if opened and find_spec("embedding_atlas") is None:
        raise MissingExtra("embedding-atlas", "map", "opening a map (--no-open only writes it)")
    out = out or Path(f"{collection.absolute().name}.map.parquet")
    with notice("projecting the embeddings"):
        written = project(Collection.open(collection), out, method=method, overwrite=overwrite)  # type: ignore[arg-type]
    viewer = [sys.executable, "-m", "embedding_atlas.cli", str(out), "--x", "x", "--y", "y", "--text", "path"]
    if as_json:
        print_json({"path": str(out.resolve()), "images": written.images, "method": written.method})
    else:
        print(f"{counted(written.images, 'image')} by {written.method}: {shown(out)}")
    if opened:
        ended = subprocess.run(viewer, check=False, stdout=2)  # standard output is for results
        if ended.returncode:
            raise ImageEncodersError(f"Embedding Atlas ended with status {ended.returncode}; {shown(out)} was written")
    elif not as_json:
        say(f"to open it: {shlex.join(['embedding-atlas', *viewer[3:]])}")
