"""The Executors: thin over `load`, with the class names and parameters of their documentation (spellings.py)."""

# No `from __future__ import annotations` here: with it, Jina's start-up hangs for ever.
import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Union

import numpy as np
from docarray import DocList

from image_encoders.encoder import Encoder, cores
from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.inputs.urls import UrlLimits, read_url
from image_encoders.integrations.jina.batcher import Batcher, reason
from image_encoders.integrations.jina.documents import Document, traversal, traverse
from image_encoders.models import load
from image_encoders.spellings import CLASSES, SERVING, spell
from jina import Executor, requests

# Jina's own arguments of an Executor
RUNTIME = ("metas", "requests", "runtime_args", "workspace", "dynamic_batching")
REQUESTS = 64  # at a time; those that wait for a slow address leave room for others
FETCHES = 16  # addresses of one request at a time


class EncoderExecutor(Executor):
    """Gives documents their embeddings.

    parameters: those of the class in its documentation, and
        precision, engine: as for `load`
        private_urls: fetch addresses that are not public too

    A document that has nothing to encode is left as it is. One that cannot be encoded gets the reason in
    `tags["error"]` and a short code in `tags["error_code"]`; the others get their embeddings.
    Per request, `parameters` may hold `traversal_paths`, `batch_size` and `strip` (leave inputs out of the answer).
    Documents of requests that come at the same time share batches.
    """

    def __init_subclass__(cls, **kwargs: Any):
        """Give each class the parameters of its documentation, which Jina compares with those in a YAML file."""
        super().__init_subclass__(**kwargs)
        if cls.__name__ in CLASSES:
            cls.__init__ = _constructor(cls.__name__)  # type: ignore[method-assign]

    def __init__(self, precision: str = "auto", engine: str = "auto", private_urls: bool = False, **parameters: Any):
        super().__init__(**{name: parameters.pop(name) for name in RUNTIME if name in parameters})
        try:
            documented = next(cls.__name__ for cls in type(self).__mro__ if cls.__name__ in CLASSES)
            self._spelled = spell(documented, parameters)
            self._paths = traversal(self._spelled.traversal_paths)
            self._size = _batch_size(self._spelled.batch_size)
            _share_cores(self.runtime_args)
            self._encoder = _load(self._spelled, precision, engine)
            self._tower = self._encoder.tower(self._spelled.modality)
        except (ImageEncodersError, TypeError, ValueError, OSError) as error:
            # Jina reports only that the start failed.
            print(f"{type(self).__name__} cannot start: {error}", file=sys.stderr, flush=True)
            raise
        self._urls = UrlLimits(private=private_urls)
        self._batcher = Batcher(self._tower.rows)
        self._callers = ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")

    @property
    def encoder(self) -> Encoder:
        """What stands behind this Executor."""
        return self._encoder

    @requests
    async def answer(self, docs: DocList[Document], parameters: Optional[dict] = None, **_: Any) -> DocList[Document]:
        """What a Flow calls, for every endpoint: `encode` on a thread of its own.

        Jina runs a plain function for one request at a time, and its own dynamic batching never answers a request
        without documents.
        """
        return await asyncio.get_running_loop().run_in_executor(self._callers, self.encode, docs, parameters)

    def encode(self, docs: Sequence[Document], parameters: Optional[dict] = None, **_: Any) -> Sequence[Document]:
        """The documents, with embeddings (dim,) float32 where the paths lead; from any thread."""
        given = parameters or {}
        paths = traversal(given["traversal_paths"]) if given.get("traversal_paths") is not None else self._paths
        size = _batch_size(given["batch_size"]) if "batch_size" in given else self._size
        found = list(traverse(docs, paths))
        for start in range(0, len(found), size or max(len(found), 1)):
            self._encode(found[start : start + size] if size else found, size)
        if given.get("strip"):
            for doc in found:
                doc.blob = doc.tensor = doc.buffer = None
                if (doc.uri or "").startswith("data:"):
                    doc.uri = None
        return docs

    def close(self) -> None:
        """End the threads."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _encode(self, docs: list[Document], limit: Optional[int]) -> None:
        """Embeddings, or reasons why not, for the documents of one batch."""
        pending: list[tuple[Document, np.ndarray]] = []
        for doc, one in zip(docs, self._inputs(docs)):
            if isinstance(one, InputError):
                _fail(doc, one)
            elif one is not None:
                pending.append((doc, one))
        for (doc, _), row in zip(pending, self._batcher([one for _, one in pending], limit)):
            if isinstance(row, InputError):
                _fail(doc, row)
            else:
                doc.embedding = row

    def _inputs(self, docs: list[Document]) -> list[Union[np.ndarray, InputError, None]]:
        """What the net takes for each document, or why there is nothing; None where there is nothing to encode."""

        def one(doc: Document) -> Union[np.ndarray, InputError, None]:
            try:
                return self._input(doc)
            except Exception as error:
                return reason(error)

        if len(docs) < 2:
            return [one(doc) for doc in docs]
        fetching = any(doc.uri for doc in docs)
        with ThreadPoolExecutor(FETCHES if fetching else cores(), thread_name_prefix="prepare") as pool:
            return list(pool.map(one, docs))

    def _input(self, doc: Document) -> Optional[np.ndarray]:
        """What the net takes for a document; None where there is nothing to encode."""
        if self._spelled.modality == "text":
            return self._tower.input(doc.text) if doc.text else None
        if doc.array is not None:
            array = np.asarray(doc.array)
            return self._sound(doc, array) if self._spelled.modality == "audio" else self._picture(array)
        if doc.buffer:
            return self._tower.input(doc.buffer)
        return self._tower.input(read_url(doc.uri, self._urls)) if doc.uri else None

    def _sound(self, doc: Document, samples: np.ndarray) -> np.ndarray:
        rate = doc.tags.get("sample_rate")
        if rate is None:
            raise InputError("samples without a rate; put it into tags['sample_rate'], in Hz", code="rate")
        return self._tower.input((samples, rate))

    def _picture(self, array: np.ndarray) -> np.ndarray:
        prepared, axis = self._spelled.prepared, self._spelled.channel_axis
        if prepared is False or (prepared is None and array.dtype == np.uint8):
            return self._tower.input(array)
        if array.ndim == 3 and axis is not None:
            array = np.moveaxis(array, axis - 1 if axis > 0 else axis, 0)
        return self._encoder.prepared_image(array)


def _constructor(name: str) -> Callable[..., None]:
    """The `__init__` of the class `name`, with its parameters by name."""

    def __init__(self: EncoderExecutor, **parameters: Any) -> None:
        EncoderExecutor.__init__(self, **parameters)

    own = {"device": "cpu", **SERVING, **CLASSES[name][0], "precision": "auto", "engine": "auto", "private_urls": False}
    of_self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    of_jina = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    named = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in own.items()]
    __init__.__signature__ = inspect.Signature([of_self, *named, of_jina])  # type: ignore[attr-defined]
    return __init__


class BigTransferEncoder(EncoderExecutor):
    """Pictures by BiT.

    model_path: folder of a SavedModel, or an .npz; where nothing is there, `model_name` is fetched
    model_name: "R50x1", "R101x1", "R50x3", "R101x3", "R152x4"; with "Imagenet1k/" before it, the smaller training set
    target_dim: (H, W, 3): pictures are resized and cropped to it; without it floats in [0, 1] go to the net in
        their own size, and uint8 pixels are preprocessed as by `load("bit/...")`
    channel_axis: of the arrays, counted with the batch's; None: wherever three are
    device, default_batch_size, default_traversal_paths
    """


class CLIPImageEncoder(EncoderExecutor):
    """Pictures by CLIP.

    pretrained_model_name_or_path: hub id or folder
    base_feature_extractor: hub id or folder whose preprocessing is used instead
    use_default_preprocessing: False: arrays are (3, 224, 224) or (224, 224, 3) floats, ready for the net
    device, default_batch_size, default_traversal_paths
    """


class CLIPTextEncoder(EncoderExecutor):
    """Texts by CLIP; longer ones are cut at `max_length` tokens.

    pretrained_model_name_or_path, base_tokenizer_model, max_length, device, default_batch_size,
    default_traversal_paths
    """


class VSEImageEncoder(EncoderExecutor):
    """Pictures by VSE++: floats are ready for the net, uint8 pixels and files are preprocessed.

    model_path (path): checkpoint, or the folder it is in
    channel_axis: of the arrays, counted with the batch's: 1 is (3, H, W)
    pool_strategy: has no effect, as rows have no space left to pool
    device, default_batch_size, default_traversal_paths
    """


class VSETextEncoder(EncoderExecutor):
    """Captions by VSE++.

    model_path (path), vocab_path, device, default_batch_size, default_traversal_paths
    """


class AudioCLIPImageEncoder(EncoderExecutor):
    """Pictures by AudioCLIP.

    model_path: the released .pt; where nothing is there and `download_model`, it is fetched
    use_default_preprocessing (use_preprocessing): False: arrays are (3, 224, 224) floats, ready for the net
    device, default_batch_size, default_traversal_paths
    """


class AudioCLIPTextEncoder(EncoderExecutor):
    """Texts by AudioCLIP.

    model_path, tokenizer_path, download_model, device, default_batch_size, default_traversal_paths
    """


class AudioCLIPEncoder(EncoderExecutor):
    """Sounds by AudioCLIP: arrays (T,) or (2, T) with `tags["sample_rate"]`, or sound files.

    amplitude: "unit", as this Executor always fed them, or "int16", as the model was trained
    batch_norm: "running" statistics, or those of each "item", as its last version did
    model_path, download_model, device, default_batch_size, default_traversal_paths
    """


class CustomImageTorchEncoder(EncoderExecutor):
    """Pictures by your own PyTorch model: the file that defines it is executed.

    model_state_dict_path, model_definition_file, model_class_name
    layer_name: whose output is the embedding, pooled over space
    device, default_batch_size, default_traversal_paths; any other parameter goes to the model's class
    """


def _share_cores(runtime_args: Any) -> None:
    """Where a Flow runs several copies of this Executor on this machine, each computes on its part of the cores."""
    copies = (getattr(runtime_args, "replicas", None) or 1) * (getattr(runtime_args, "shards", None) or 1)
    if copies > 1 and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(max(cores() // copies, 1))


def _load(spelled: Any, precision: str, engine: str) -> Encoder:
    return load(
        spelled.name,
        weights=spelled.weights,
        device=spelled.device,
        precision=precision,
        engine=engine,
        **spelled.options,
    )


def _batch_size(value: Any) -> Optional[int]:
    """A whole number of at least 1, which arrives as a float; None: all at once."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise InputError(f"batch_size {value!r}; a whole number from 1 on is accepted, or none for all", code="option")
    return int(value)


def _fail(doc: Document, error: InputError) -> None:
    doc.embedding = None
    doc.tags["error"] = error.message
    doc.tags["error_code"] = error.code
