"""What a collection stores and finds: rows, failures, runs, hits, and where an image's bytes are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from image_encoders import __version__
from image_encoders.tables import ImageFacts, id_of, path_of


@dataclass(frozen=True)
class Locator:
    """Where the bytes of something are.

    path: the file as `open` takes it, or an address; where a file's name is not UTF-8, it holds surrogates
    member: in an archive, the name of the member; in a table, "column/row"; surrogates as in a path
    time_s: in a video, the time of the frame [s]
    """

    path: str
    member: str | None = None
    time_s: float | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Locator:
        """That of a table's row."""
        member = row["member"]
        return cls(path_of(row["path"]), None if member is None else path_of(member), row["time_s"])

    def columns(self) -> dict[str, Any]:
        """As a table has it."""
        member = None if self.member is None else id_of(self.member)
        return {"path": id_of(self.path), "member": member, "time_s": self.time_s}


@dataclass(frozen=True)
class Row:
    """What is stored of one image.

    id: unique, printable Unicode text
    locator: where its bytes are
    embedding: (dim,) float32, finite
    facts: facts about its bytes
    state: text that changes when the bytes may have changed; a file's is its size and the time of its last change
    metadata: what its source says about it, as JSON can hold it
    part: the part of the run that encoded it, if the run had parts
    """

    id: str
    locator: Locator
    embedding: np.ndarray
    facts: ImageFacts
    state: str
    metadata: Mapping[str, Any] | None = None
    part: str | None = None


@dataclass(frozen=True)
class Stored:
    """What a collection knows of some bytes: embedding, facts, the ids that have them."""

    embedding: np.ndarray
    facts: ImageFacts
    ids: frozenset[str]


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    id: the row's id, always valid Unicode
    path: the file as `open` takes it; where its name is not UTF-8, it holds surrogates
    score: cosine similarity to the query, -1 to 1
    width, height: of the upright image [px]
    sha256: of the file's bytes, hexadecimal
    copies: ids of the other rows with the same bytes, in order; none where a search lists each of them
    member, time_s: where the file is an archive, a table or a video, as of `Locator`
    metadata: what its source says about it, such as the other columns of its table
    """

    id: str
    path: str
    score: float
    width: int
    height: int
    sha256: str
    copies: tuple[str, ...] = ()
    member: str | None = None
    time_s: float | None = None
    metadata: Mapping[str, Any] | None = field(default=None, hash=False)

    @classmethod
    def of(cls, row: Mapping[str, Any], copies: tuple[str, ...]) -> Hit:
        """From a row of a search's result."""
        place = Locator.of(row)
        return cls(
            id=row["id"],
            path=place.path,
            score=min(1.0, max(-1.0, 1.0 - row["_distance"])),
            width=row["width"],
            height=row["height"],
            sha256=row["sha256"],
            copies=copies,
            member=place.member,
            time_s=place.time_s,
            metadata=None if row["metadata"] is None else json.loads(row["metadata"]),
        )

    @property
    def locator(self) -> Locator:
        """Where the image's bytes are."""
        return Locator(self.path, self.member, self.time_s)


@dataclass(frozen=True)
class Failure:
    """Something that could not be encoded.

    id, path, state: as of a row; state is that at which it failed
    stage: "read", "prepare" or "embed"
    code: a short stable word, such as "truncated"
    message: what was found, what is accepted
    when: ISO 8601, UTC
    part: as of a row
    """

    id: str
    path: str
    stage: str
    code: str
    message: str
    state: str
    when: str
    part: str | None = None


@dataclass(frozen=True)
class RunRecord:
    """A run that finished or was interrupted: when [ISO 8601, UTC], from which sources, and what it did."""

    began: str
    ended: str
    sources: list[str]
    encoded: int
    reused: int
    unchanged: int
    failed: int
    pruned: int
    package: str = __version__
