"""`image-encoders export`: a collection's embeddings in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from image_encoders.cli.options import CollectionFolder, Json, local_path
from image_encoders.cli.printing import counted, print, print_json, shown

EXAMPLES = """\b
Examples:
  image-encoders export my-photos rows.parquet     # paths, sizes, sha256 and embeddings; for pandas, polars, DuckDB
  image-encoders export my-photos rows.npy         # the embeddings alone, float32; rows.ids.jsonl names them
  image-encoders export my-photos rows.csv         # a column for each number; also rows.arrow and rows.feather
  image-encoders export my-photos rows.parquet --overwrite"""


def export(
    collection: CollectionFolder,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A file that ends in .parquet, .arrow, .feather, .csv or .npy.", parser=local_path
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write a collection's embeddings to a file.

    Parquet, Arrow, CSV or NumPy, by the file's name. It appears complete or not at all.
    """
    from image_encoders.collection import Collection

    opened = Collection.open(collection)
    count = opened.export(out, overwrite=overwrite)
    if as_json:
        print_json({"path": str(out.resolve()), "rows": count, "dim": opened.dim, "model": opened.name})
    else:
        print(f"{counted(count, 'embedding')} of {opened.dim} numbers: {shown(out)}")
