"""An embedding space and the towers into it.

    path/bytes/array ─read→ item ─prepare→ input ─embed→ embeddings

`read` may touch the disk, `prepare` is pure, both work on one item; `embed` works on a batch of equal shapes.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from image_encoders.arrays import as_array
from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.inputs.spec import InputSpec
from image_encoders.process import cores
from image_encoders.progress import bar

Source = TypeVar("Source")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Tower:
    """One modality's way into an embedding space.

    inputs: sources to inputs
    embed: inputs stacked to (B, ...) -> embeddings (B, dim) float32; callable from many threads at once
    """

    inputs: InputSpec
    embed: Callable[[np.ndarray], np.ndarray]

    @property
    def modality(self) -> str:
        return self.inputs.modality

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        return self.inputs.shape

    @property
    def streams(self) -> int:
        """How many batches the net embeds side by side, each on threads of its own."""
        return getattr(self.embed, "streams", 1)

    def read(self, source: Any) -> Any:
        """One decoded thing; see `InputSpec`."""
        return self.inputs.read(source)

    def prepare(self, item: Any) -> np.ndarray:
        """The net's input for one decoded thing."""
        return self.inputs.prepare(item)

    def input(self, source: Any) -> np.ndarray:
        """The net's input for one source: read, then prepared."""
        return self.prepare(self.read(source))

    def begin(self, source: Any, keep: bool) -> Callable[[], np.ndarray]:
        """The rest of `input`, for another thread.

        Open files and PIL images are read now, since reading changes them: a PIL image decodes itself once.
        keep: the source may have changed by the time that thread reads it, such as an array that a generator refills.
            It is then read now, and copied. Paths and bytes are left as they are.

        Errors of the source are raised by the rest.
        """
        if isinstance(source, (bytearray, memoryview)):
            source = bytes(source)
        if isinstance(source, (str, bytes, os.PathLike)):
            return partial(self.input, source)
        if not keep and not hasattr(source, "read") and not hasattr(source, "load"):
            return partial(self.input, source)
        try:
            item = self.read(source)
        except ImageEncodersError as error:
            return partial(_fail, error)
        return partial(self.prepare, copy.deepcopy(item) if keep else item)

    def embeddings(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Embedding i for input i; inputs of equal shape and type go through the net together.

        inputs: at least one; each as `prepare` gives it
        returns: (len(inputs), dim) float32
        """
        groups: dict[tuple, list[int]] = {}
        for position, one in enumerate(inputs):
            self.check(one)
            groups.setdefault((one.shape, one.dtype.str), []).append(position)
        if len(groups) == 1:
            return self.embed(np.stack(inputs))
        embeddings: np.ndarray | None = None
        for positions in groups.values():
            part = self.embed(np.stack([inputs[i] for i in positions]))
            if embeddings is None:
                embeddings = np.empty((len(inputs), part.shape[1]), np.float32)
            embeddings[positions] = part
        assert embeddings is not None
        return embeddings

    def check(self, one: np.ndarray) -> None:
        """Raise InputError unless `one` has the shape that the net takes."""
        self.inputs.check(one)


@dataclass
class Encoder:
    """An embedding space: images, and where the model has them texts and sounds, become embeddings of `dim` numbers.

    name: the model's name, such as "clip/openai/clip-vit-base-patch32"
    dim: length of an embedding
    towers: one `Tower` per modality
    fingerprint: embeddings with equal fingerprints are comparable
    device, engine, precision: what runs the nets, as chosen
    calibration: digest of the images that it was calibrated on; else ""
    choice: what precision="auto" selected, and how close it is to float32, an engines.Choice; else None
    recipe: what `load` was called with, enough to load the same encoder again, for example when unpickled in another
        process
    """

    name: str
    dim: int
    towers: Mapping[str, Tower]
    fingerprint: str
    device: str = "cpu"
    engine: str = "torch"
    precision: str = "float32"
    calibration: str = ""
    choice: Any = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __copy__(self) -> Encoder:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return replace(self)  # what runs the nets is for all threads, and all copies

    @property
    def modalities(self) -> tuple[str, ...]:
        """What can be encoded, such as ("image", "text")."""
        return tuple(self.towers)

    def __repr__(self) -> str:
        steps = "".join(
            f"; {tower.modality}: {tower.inputs.summary}" for tower in self.towers.values() if tower.inputs.summary
        )
        return (
            f"<Encoder {self.name}: {', '.join(self.modalities)} -> {self.dim}, "
            f"{self.precision} by {self.engine} on {self.device}{steps}>"
        )

    def tower(self, modality: str) -> Tower:
        """The tower of `modality`; InputError if this model has none."""
        if modality not in self.towers:
            raise InputError(f"{self.name} has no {modality} tower; it has: {', '.join(self.towers)}", code="no-tower")
        return self.towers[modality]

    def encode_image(self, images: Iterable[Any], batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """One embedding per image.

        images: paths, bytes of image files, binary files open for reading, PIL images, uint8 arrays (H, W),
            (H, W, 1|3|4), or tensors of those shapes. Files and bytes are rotated upright (EXIF), transparency becomes
            white; arrays are not rotated. Paths, bytes and arrays are read on threads, ahead of the net; PIL images and
            open files when they are drawn. So are all items of a generator, which may reuse one array.
        batch_size: how many images per batch; embeddings do not depend on it
        progress: show a bar on standard error
        returns: (N, dim) float32, embedding i for image i; N may be 0

        Raises InputError naming the path or the position of the first image that cannot be encoded.
        """
        return self._encode("image", images, batch_size, progress)

    def encode_text(self, texts: Iterable[str], batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """One embedding per text: (N, dim) float32. Raises InputError if the model has no text tower."""
        return self._encode("text", texts, batch_size, progress)

    def encode_audio(self, clips: Iterable[Any], batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """One embedding per sound.

        clips: paths, bytes of sound files, binary files open for reading, or pairs (samples, rate): samples (T,) or
            (channels, T) float32 in [-1, 1], rate in Hz
        returns: (N, dim) float32
        """
        return self._encode("audio", clips, batch_size, progress)

    def embed_image(self, prepared: np.ndarray | Sequence[np.ndarray], batch_size: int = 32) -> np.ndarray:
        """Embeddings of images that are already preprocessed: they go directly to the net, as in the original code.

        They are computed in the encoder's precision; in float32 if PyTorch does not have it, such as int8.

        prepared: (N, 3, H, W) or (N, H, W, 3) floats, an array or a tensor, or a sequence of such arrays without the
            first axis
        returns: (N, dim) float32
        """
        tower = self.tower("image")
        check_batch_size(batch_size)
        if not hasattr(prepared, "__iter__") or getattr(prepared, "ndim", None) == 0:
            raise InputError(
                f"embed_image got a {type(prepared).__name__}; floats (N, 3, H, W) or a list of images are accepted",
                code="not-a-list",
            )
        inputs = []
        keep = _may_refill(prepared)
        for position, one in enumerate(prepared):
            try:
                array = self.prepared_image(one)
                inputs.append(array.copy() if keep else array)
            except InputError as error:
                raise error.named(f"prepared[{position}]") from None
        batches = [tower.embeddings(inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)]
        return _finite(np.concatenate(batches) if batches else np.empty((0, self.dim), np.float32), "prepared")

    def prepared_image(self, array: Any) -> np.ndarray:
        """The image tower's input from an image that is already preprocessed.

        array: (3, H, W) or (H, W, 3) floats, an array or a tensor
        returns: (3, H, W) float32

        Raises InputError for other shapes and types.
        """
        array = as_array(array)
        if array.dtype.kind != "f":
            raise InputError(
                f"a prepared image of {array.dtype}; floats are accepted, and encode_image takes raw pixels",
                code="dtype",
            )
        if array.ndim == 3 and array.shape[0] != 3 and array.shape[2] == 3:
            array = array.transpose(2, 0, 1)
        with np.errstate(over="ignore"):  # what overflows has no finite embedding, and is refused then
            array = np.ascontiguousarray(array, np.float32)
        self.tower("image").check(array)
        return array

    def _encode(self, modality: str, sources: Iterable[Any], batch_size: int, progress: bool) -> np.ndarray:
        tower = self.tower(modality)
        check_batch_size(batch_size)
        sources = _many(sources, modality)
        keep = _may_refill(sources)

        def prepared(numbered: tuple[int, Callable[[], np.ndarray]]) -> np.ndarray:
            position, rest = numbered
            try:
                return rest()
            except InputError as error:
                raise error.named(f"{modality}[{position}]") from error.__cause__

        total = len(sources) if isinstance(sources, Sized) else None
        embeddings: list[np.ndarray] = []
        with bar(f"encoding {modality}", progress) as show:
            batch: list[np.ndarray] = []
            begun = enumerate(tower.begin(source, keep) for source in sources)
            for one in ordered(prepared, begun, ahead=2 * batch_size):
                batch.append(one)
                if len(batch) == batch_size:
                    embeddings.append(tower.embeddings(batch))
                    show(len(embeddings) * batch_size, total)
                    batch = []
            if batch:
                embeddings.append(tower.embeddings(batch))
        return _finite(np.concatenate(embeddings) if embeddings else np.empty((0, self.dim), np.float32), modality)


def ordered(
    function: Callable[[Source], Result], sources: Iterable[Source], *, ahead: int, workers: int | None = None
) -> Iterator[Result]:
    """`function` of each source, in order, computed on threads at most `ahead` results in advance.

    An exception is raised at its source's turn; sources not started by then are never started.
    """
    results: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="prepare")
    try:
        for source in sources:
            results.append(pool.submit(function, source))
            if len(results) >= max(ahead, 1):
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _may_refill(sources: Any) -> bool:
    """Whether what was drawn from `sources` may have changed by the next draw."""
    # The items of a list, an array, a table's column are there all at once. What has no length, such as a reader of
    # video, may give the same memory each time with other numbers in it, or close the file that an image is in.
    # A copy costs a thirtieth of preparing what was copied.
    return not isinstance(sources, Sized)


def _fail(error: ImageEncodersError) -> np.ndarray:
    raise error


def check_batch_size(batch_size: Any) -> None:
    """Raise InputError unless it is a whole number of 1 or more."""
    if not isinstance(batch_size, (int, np.integer)) or isinstance(batch_size, bool) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; a whole number of 1 or more is accepted", code="batch-size")


def _finite(embeddings: np.ndarray, label: str) -> np.ndarray:
    """`embeddings`; InputError naming the first item whose embedding is not finite and so cannot be compared."""
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(wrong):
        raise InputError("the model's embedding for it is not finite", item=f"{label}[{wrong[0]}]", code="not-finite")
    return embeddings


def _many(sources: Any, modality: str) -> Iterable[Any]:
    """`sources` if it is a collection of sources, else InputError: passing a single one is the most common mistake."""
    shape = getattr(sources, "shape", None)
    if isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Mapping)) or not hasattr(
        sources, "__iter__"
    ):
        one = True
    elif shape is not None and not _holds_objects(sources):  # numbers
        if modality == "image" and len(shape) == 1:
            raise InputError(
                f"encode_image got numbers of shape {tuple(shape)}; a list of images is accepted", code="not-a-list"
            )
        image = len(shape) < 3 or (len(shape) == 3 and shape[-1] in (1, 3, 4))
        one = len(shape) == 0 or (modality == "image" and image)
    else:
        one = modality != "text" and hasattr(sources, "read")  # the lines of an open file may be texts
    if one:
        raise InputError(
            f"encode_{modality} takes a list; wrap a single one: encode_{modality}([{modality}])",
            code="not-a-list",
        )
    return sources


def _holds_objects(array: Any) -> bool:
    """Whether an array, or the column of a table, holds paths, texts or other objects, not numbers."""
    return getattr(getattr(array, "dtype", None), "kind", "") in ("O", "U", "S", "T") and len(array.shape) > 0
