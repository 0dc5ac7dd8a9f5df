"""Items to embeddings, the same here and on another machine.

    items ─threads: read, preprocess→ inputs ─batches→ embeddings, in order

No collection, no signals, no progress: the result depends only on the items, the encoder and the batch size.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.sources import SourceItem
from image_encoders.embedding import as_input_error, embed_each
from image_encoders.encoder import Encoder, Tower, ordered
from image_encoders.errors import InputError, first_line
from image_encoders.inputs.image import ImageLimits, read_header
from image_encoders.process import cores
from image_encoders.tables import ImageFacts

HELD = 4  # batches of inputs that wait for others of their shape at most
OUTCOMES = 1024  # that wait for an embedding before them at most
DEEPEST_METADATA = 100  # levels: the database would die of thousands
LONGEST_SIDE = 2**31 - 1  # [px] that is stored


@dataclass
class Encoded:
    """An item that was read.

    facts: facts about its bytes; if `embedding` is None, only their digest and number
    embedding: (dim,) float32, finite; None if the embedding of these bytes is already known, or comes with an earlier
        item
    part: the part of the run that it belongs to, if any
    """

    item: SourceItem
    facts: ImageFacts
    embedding: np.ndarray | None = None
    part: str | None = None


@dataclass
class Failed:
    """An item that cannot be encoded: at which stage ("read", "prepare", "embed"), and why, as of InputError."""

    item: SourceItem
    stage: str
    code: str
    message: str
    part: str | None = None


Outcome = Encoded | Failed


def encode(
    items: Iterable[SourceItem],
    encoder: Encoder,
    *,
    batch_size: BatchSizeTuner | int | None = None,
    workers: int | None = None,
    known: Callable[[str], bool] = lambda sha256: False,
) -> Iterator[list[Outcome]]:
    """An embedding, or the reason why there is none, for each item.

    batch_size: None: the fastest, determined on the first batches
    workers: threads that read and preprocess; None: one per processor
    known: whether the embedding of the bytes with this sha256 is already known; called on threads
    returns: lists, each to be stored completely or not at all: then a resumed run uses the same batches. The outcomes
        are in the order of the items, except for inputs that wait for others of their shape.

    Repeated bytes are embedded once, provided that `known` learns of earlier results.
    """
    tuner = batch_size if isinstance(batch_size, BatchSizeTuner) else BatchSizeTuner(batch_size)
    tower, workers = encoder.tower("image"), workers or cores()
    batch = _Batch(tower, encoder.dim, tuner, known)
    read = partial(_read, tower=tower, limits=ImageLimits.from_environment(), known=known)
    with closing(ordered(read, items, ahead=2 * tuner.most + workers, workers=workers)) as ready:  # type: ignore[type-var]
        for one in ready:
            if outcomes := batch.take(one):
                yield outcomes
    while batch.waiting:
        yield batch.embed()


@dataclass
class _Read:
    """The result of reading an item; `input` has yet to be embedded."""

    outcome: Outcome
    input: np.ndarray | None = None


def _read(item: SourceItem, *, tower: Tower, limits: ImageLimits, known: Callable[[str], bool]) -> _Read:
    """Read and preprocess one item; bytes whose embedding is known are not decoded."""
    stage = "read"
    try:
        metadata_text(item)
        content = item.read(limits)
        facts = ImageFacts(0, 0, hashlib.sha256(content).hexdigest(), len(content))
        if known(facts.sha256):
            return _Read(Encoded(item, facts))
        image = tower.read(content)
        facts = replace(facts, height=image.shape[0], width=image.shape[1])
        with suppress(InputError):  # of what is no image file, but what the encoder's own reader takes
            header = read_header(content, limits=limits)  # the image may have been decoded at a smaller scale
            facts = replace(facts, width=header.width, height=header.height, taken=header.taken)
        if max(facts.width, facts.height) > LONGEST_SIDE:
            raise InputError(f"a side of more than {LONGEST_SIDE:,} pixels", code="too-many-pixels")
        stage = "prepare"
        prepared = tower.prepare(image)
        tower.check(prepared)
        return _Read(Encoded(item, facts), prepared)
    except Exception as error:  # a decoder may raise anything
        return _Read(_failed(item, stage, as_input_error(error)))


def metadata_text(item: SourceItem) -> str:
    """An item's metadata as JSON; InputError if it cannot be stored."""
    if _deeper(item.metadata, DEEPEST_METADATA):
        raise InputError(f"metadata nested more than {DEEPEST_METADATA} levels deep", code="metadata")
    try:
        return json.dumps(item.metadata, default=str, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata that JSON cannot hold: {first_line(error)}", code="metadata") from error


def _deeper(value: Any, levels: int) -> bool:
    """Whether a value is nested more deeply than that."""
    if not isinstance(value, (Mapping, list, tuple)):
        return False
    inside = value.values() if isinstance(value, Mapping) else value
    return not levels or any(_deeper(one, levels - 1) for one in inside)


class _Batch:
    """Inputs that wait for enough others of their shape, and the outcomes that wait for them, in order.

    waiting: everything that has not been returned
    """

    def __init__(self, tower: Tower, dim: int, tuner: BatchSizeTuner, known: Callable[[str], bool]):
        self.tower, self.dim, self.tuner, self.known = tower, dim, tuner, known
        self.waiting: list[_Read] = []
        self._shapes: dict[tuple[int, ...], list[_Read]] = {}  # what is to be embedded
        self._leaders: dict[str, _Read] = {}  # the same by sha256
        self._followers = 0  # how many wait that have the bytes of these

    def take(self, one: _Read) -> list[Outcome]:
        """The outcomes that can be returned after adding `one`."""
        self.waiting.append(one)
        if one.input is not None:
            assert isinstance(one.outcome, Encoded)
            sha256 = one.outcome.facts.sha256
            if sha256 in self._leaders or self.known(sha256):
                one.input = None
            else:
                self._leaders[sha256] = one
                self._shapes.setdefault(one.input.shape, []).append(one)
        self._followers += one.input is None and self._follows(one)
        # What is cut into a batch may depend on nothing but what has not been given back.
        largest = max(map(len, self._shapes.values()), default=0)
        most = max(len(self._leaders) / HELD, largest)
        if most >= self.tuner.size or self._followers >= OUTCOMES:
            return self.embed()
        idle = len(self.waiting) - len(self._leaders) - self._followers
        return self._done() if not self._leaders or idle >= OUTCOMES else []

    def embed(self) -> list[Outcome]:
        """Embed the inputs of the most common shape, and return the finished outcomes."""
        if self._shapes:
            shape = max(self._shapes, key=lambda shape: len(self._shapes[shape]))
            leaders = self._shapes.pop(shape)
            for leader, outcome in zip(leaders, self._embed([one.input for one in leaders if one.input is not None])):
                encoded = leader.outcome
                assert isinstance(encoded, Encoded)
                del self._leaders[encoded.facts.sha256]
                leader.input = None
                if isinstance(outcome, InputError):
                    leader.outcome = _failed(encoded.item, "embed", outcome)
                    self._fail_copies(encoded.facts.sha256, outcome)
                else:
                    encoded.embedding = outcome
        return self._done()

    def _embed(self, inputs: list[np.ndarray]) -> list[np.ndarray | InputError]:
        outcomes: list[np.ndarray | InputError] = []
        began = time.perf_counter()
        while len(outcomes) < len(inputs):
            some = inputs[len(outcomes) : len(outcomes) + self.tuner.fits]
            outcomes += embed_each(
                self.tower.embeddings, some, dim=self.dim, out_of_memory=self.tuner.ran_out_of_memory
            )
        self.tuner.took(len(inputs), time.perf_counter() - began)
        return outcomes

    def _fail_copies(self, sha256: str, error: InputError) -> None:
        for one in self.waiting:
            if isinstance(one.outcome, Encoded) and one.outcome.facts.sha256 == sha256:
                one.outcome = _failed(one.outcome.item, "embed", error)

    def _done(self) -> list[Outcome]:
        """What waits for no input, in order."""
        done = [one.outcome for one in self.waiting if one.input is None and not self._follows(one)]
        self.waiting = [one for one in self.waiting if one.input is not None or self._follows(one)]
        self._followers = len(self.waiting) - len(self._leaders)
        return done

    def _follows(self, one: _Read) -> bool:
        """Whether it has the same bytes as a waiting input."""
        return isinstance(one.outcome, Encoded) and one.outcome.facts.sha256 in self._leaders


def _failed(item: SourceItem, stage: str, error: InputError) -> Failed:
    return Failed(item, stage, error.code, error.message)
