"""Rows of a collection as one file that other programs read: Parquet, Arrow, CSV or NumPy.

A file appears complete or not at all, and leftovers of a killed export are removed by the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from image_encoders.cache import atomic_write
from image_encoders.errors import CollectionError

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".parquet", ".arrow", ".feather", ".csv", ".npy")


def names_beside(path: Path) -> Path:
    """The file beside an .npy with the ids of its embeddings."""
    return path.with_name(f"{path.stem}.ids.jsonl")


def check(path: Path, overwrite: bool, endings: Sequence[str] = ENDINGS) -> None:
    """Raise CollectionError unless `path` may be written: for its ending, its folder, or a file that is there."""
    ending = path.suffix.lower()
    if ending not in endings:
        found = repr(ending) if ending else "a name without an extension"
        raise CollectionError(f"{path}: cannot export to {found}; accepted: {', '.join(endings)}")
    if not path.absolute().parent.is_dir():
        raise CollectionError(f"{path}: there is no folder {path.parent}; create it, or choose another")
    for target in [path, names_beside(path)] if ending == ".npy" else [path]:
        if target.is_dir():
            raise CollectionError(f"{target} is a folder; choose another name")
        if target.exists() and not overwrite:
            raise CollectionError(f"{target} already exists; choose another name, or replace it with overwrite=True")


def write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema, count: int) -> None:
    """Write all rows in the format of `path`'s extension, replacing an existing file.

    tables: pieces of the rows, each of the columns of `schema`
    count: how many rows there are in all
    """
    ending = path.suffix.lower()
    if ending == ".npy":
        # The names appear last and the old ones go first: no moment shows embeddings beside the names of others.
        names = names_beside(path)
        with atomic_write(names) as lines, atomic_write(path) as part:
            _write_npy(part, lines, tables, (count, schema.field("embedding").type.list_size))
            names.unlink(missing_ok=True)
        return
    with atomic_write(path) as part:
        {".parquet": _write_parquet, ".csv": _write_csv}.get(ending, _write_arrow)(part, tables, schema)


def _write_parquet(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    import pyarrow.parquet as pq

    # Neither helps embeddings, whose bits are as good as random, and ids are all different.
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _write_arrow(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Arrow's file format, which is Feather's second version; not compressed, so that it can be memory-mapped."""
    import pyarrow as pa

    with path.open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _write_csv(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """One column for each number of an embedding, after the others."""
    import pyarrow as pa
    from pyarrow import csv

    dim = schema.field("embedding").type.list_size
    plain = [field for field in schema if field.name != "embedding"]
    numbers = [pa.field(f"embedding_{place}", pa.float32()) for place in range(dim)]
    flat = pa.schema([*plain, *numbers])
    with path.open("wb") as file, csv.CSVWriter(file, flat) as writer:
        for table in tables:
            columns = [table[field.name] for field in plain]
            writer.write_table(pa.table([*columns, *map(pa.array, matrix(table).T)], schema=flat))


def _write_npy(path: Path, lines: Path, tables: Iterable[pa.Table], shape: tuple[int, int]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file, lines.open("w", encoding="utf-8") as names:
        np.lib.format.write_array_header_1_0(file, header)
        for table in tables:
            file.write(np.ascontiguousarray(matrix(table), "<f4").data)
            for row in table.drop_columns("embedding").to_pylist():
                print(json.dumps(row, ensure_ascii=False, default=str), file=names)
        for written in (file, names):
            written.flush()
            os.fsync(written.fileno())


def matrix(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """The embeddings: (N, dim) float32."""
    column = rows["embedding"]
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
