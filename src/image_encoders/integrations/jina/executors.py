"""The Executors: thin over `load`, with the class names and parameters of their documentation (legacy_names.py)."""

# No `from __future__ import annotations` here: with it, Jina hangs at start-up.
import asyncio
import inspect
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, Optional, Union

import numpy as np
from docarray import DocList

from image_encoders.batching import Batcher
from image_encoders.encoder import Encoder, ordered
from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.inputs.urls import UrlFetcher, UrlLimits, read_url
from image_encoders.integrations.jina.calls import Call, read_batch_size, read_parameters, reason, without_traceback
from image_encoders.integrations.jina.documents import Document, traversal, traverse
from image_encoders.legacy_names import CLASSES, SERVING, attributes, translate
from image_encoders.models import load
from jina import Executor, requests

# Jina's own arguments of an Executor
RUNTIME = ("metas", "requests", "runtime_args", "workspace", "dynamic_batching")
REQUESTS = 64  # at a time
MAX_WAITING = 4096  # inputs; with batches of 32 the requests at a time never come to so many
GRACE_S = 1.0  # for an address that is late; after that it is not waited for
ABOUT_FLOATS = {  # what lets a class take floats
    "use_default_preprocessing": "prepared floats with use_default_preprocessing=False",
    "target_dim": "floats in [0, 1] without target_dim",
}

Source = Callable[[], Optional[np.ndarray]]  # gives the net's input for a document, None where it has nothing


class EncoderExecutor(Executor):
    """Gives documents their embeddings.

    parameters: those of the class in its documentation, which are attributes too, under both spellings, and
        precision, engine: as for `load`, but float32 by default: the original's embeddings, on every processor
        private_urls: fetch addresses that are not public too

    A document with nothing to encode is left unchanged. One that cannot be encoded gets the reason in
    `tags["error"]` and a short code in `tags["error_code"]`; the others get their embeddings.
    Per request, `parameters` may hold `traversal_paths`, `batch_size` and `strip` (leave inputs out of the answer).
    Documents of requests that come at the same time share batches.
    """

    def __init_subclass__(cls, **kwargs: Any):
        """Give each class the parameters of its documentation, which Jina compares with those in a YAML file."""
        super().__init_subclass__(**kwargs)
        if cls.__name__ in CLASSES:
            cls.__init__ = _constructor(cls.__name__)  # type: ignore[method-assign]

    def __init__(self, precision: str = "float32", engine: str = "auto", private_urls: bool = False, **parameters: Any):
        super().__init__(**{name: parameters.pop(name) for name in RUNTIME if name in parameters})
        self.precision, self.engine, self.private_urls = precision, engine, private_urls
        try:
            documented = next(cls.__name__ for cls in type(self).__mro__ if cls.__name__ in CLASSES)
            self._legacy = translate(documented, parameters)
            self.__dict__.update(attributes(documented, parameters))
            self._defaults = traversal(self._legacy.traversal_paths), read_batch_size(self._legacy.batch_size)
            self._encoder = load(
                self._legacy.name,
                weights=self._legacy.weights,
                device=self._legacy.device,
                precision=precision,
                engine=engine,
                **self._legacy.options,
            )
            self._tower = self._encoder.tower(self._legacy.modality)
        except (ImageEncodersError, TypeError, ValueError, OSError) as error:
            # Jina reports only that the start failed.
            print(f"{type(self).__name__} cannot start: {error}", file=sys.stderr, flush=True)
            raise
        about = [hint for parameter, hint in ABOUT_FLOATS.items() if parameter in CLASSES[documented][0]]
        self._about_floats = about[0] if about else ""
        self._limits = UrlLimits(private=private_urls)
        self._fetcher = UrlFetcher(self._limits)
        self._patience = self._limits.max_seconds_together + GRACE_S
        self._batcher = Batcher(self._tower.embeddings, max_waiting=MAX_WAITING, streams=self._tower.streams)
        self._callers = ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")

    @property
    def encoder(self) -> Encoder:
        """What stands behind this Executor."""
        return self._encoder

    @requests
    async def answer(self, docs: DocList[Document], parameters: Optional[dict] = None, **_: Any) -> DocList[Document]:
        """Called by a Flow, for every endpoint: `encode` on separate threads, none of which waits for a URL.

        Jina runs a plain function for one request at a time, and its own dynamic batching never answers a request
        without documents.
        """
        on_thread = partial(asyncio.get_running_loop().run_in_executor, self._callers)
        try:
            with self._call(docs, parameters) as call:
                await on_thread(self._begin, call)
                arriving = asyncio.gather(*map(asyncio.wrap_future, call.fetched), return_exceptions=True)
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(arriving, self._patience)
                await on_thread(self._finish, call)
        except Exception as error:
            raise without_traceback(error) from None
        return docs

    def encode(
        self, docs: Optional[Sequence[Document]] = None, parameters: Optional[dict] = None, **_: Any
    ) -> Optional[Sequence[Document]]:
        """The documents, with embeddings (dim,) float32 where the paths lead; from any thread."""
        if docs is not None:
            with self._call(docs, parameters) as call:
                self._begin(call)
                wait(call.fetched, self._patience)
                self._finish(call)
        return docs

    def close(self) -> None:
        """End the threads, when they have answered what they have begun."""
        self._fetcher.close()
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._batcher.close()
        super().close()

    def _call(self, docs: Sequence[Document], parameters: Optional[dict]) -> Call:
        """A request understood, and its addresses being fetched."""
        paths, batch_size, strip = read_parameters(parameters, self._defaults)
        documents = list(traverse(docs, paths))
        remote = [doc for doc in documents if self._is_remote(doc)]
        return Call(documents, remote, self._fetcher.fetch([str(doc.uri) for doc in remote]), batch_size, strip)

    def _begin(self, call: Call) -> None:
        """Embed the documents that bring everything along."""
        remote = set(map(id, call.remote))
        self._embed(call, [(doc, partial(self._input, doc)) for doc in call.documents if id(doc) not in remote])

    def _finish(self, call: Call) -> None:
        """Embed what has been fetched."""
        self._embed(call, [(doc, partial(self._fetched, future)) for doc, future in zip(call.remote, call.fetched)])
        if call.strip:
            for doc in call.documents:
                doc.blob = doc.tensor = doc.buffer = None
                if _is_data(doc.uri):
                    doc.uri = None

    def _embed(self, call: Call, sources: Sequence[tuple[Document, Source]]) -> None:
        """Embeddings, or reasons why not, for documents whose inputs the sources give."""
        size = call.batch_size or max(len(sources), 1)
        for start in range(0, len(sources), size):
            some = sources[start : start + size]
            began = time.monotonic()
            pending: list[tuple[Document, np.ndarray]] = []
            for (doc, _), one in zip(some, self._inputs([source for _, source in some])):
                if isinstance(one, InputError):
                    _fail(doc, one)
                elif one is not None:
                    pending.append((doc, one))
            call.embedding = self._batcher.submit(
                [one for _, one in pending], batch_size=call.batch_size, prepare_s=time.monotonic() - began
            )
            if call.left:  # perhaps just before these futures could be cancelled
                call.leave()
                return
            for (doc, _), future in zip(pending, call.embedding):
                try:
                    doc.embedding = future.result().embedding
                except InputError as error:
                    _fail(doc, reason(error))
                else:
                    for tag in ("error", "error_code"):  # of an earlier attempt
                        doc.tags.pop(tag, None)

    def _inputs(self, sources: Sequence[Source]) -> list[Union[np.ndarray, InputError, None]]:
        """What the net takes for each document, or why there is nothing; None where there is nothing to encode."""

        def one(source: Source) -> Union[np.ndarray, InputError, None]:
            try:
                return source()
            except Exception as error:
                return reason(error)

        if len(sources) < 2:
            return [one(source) for source in sources]
        return list(ordered(one, sources, ahead=len(sources)))

    def _is_remote(self, doc: Document) -> bool:
        """Whether what a document has to encode is at another machine's address."""
        here = self._legacy.modality == "text" or doc.array is not None or doc.buffer or not doc.uri
        return not here and not _is_data(doc.uri)

    def _fetched(self, future: Future[bytes]) -> np.ndarray:
        return self._tower.input(self._fetcher.outcome(future))

    def _input(self, doc: Document) -> Optional[np.ndarray]:
        """What the net takes for a document that is here; None where there is nothing to encode."""
        if self._legacy.modality == "text":
            return self._tower.input(doc.text) if doc.text else None
        if doc.array is not None:
            array = np.asarray(doc.array)
            if not array.size:
                raise InputError(f"an empty array of shape {array.shape}", code="empty")
            return self._sound(doc, array) if self._legacy.modality == "audio" else self._image(array)
        if doc.buffer:
            return self._tower.input(doc.buffer)
        return self._tower.input(read_url(doc.uri, self._limits)) if doc.uri else None

    def _sound(self, doc: Document, samples: np.ndarray) -> np.ndarray:
        rate = doc.tags.get("sample_rate")
        if rate is None:
            raise InputError("samples without a rate; set tags['sample_rate'], in Hz", code="rate")
        return self._tower.input((samples, rate))

    def _image(self, array: np.ndarray) -> np.ndarray:
        prepared, axis = self._legacy.prepared, self._legacy.channel_axis
        if prepared is False and array.dtype.kind == "f" and self._about_floats:
            raise InputError(
                f"an array of {array.dtype}; uint8 pixels are accepted, and {self._about_floats}", code="dtype"
            )
        if prepared is False or (prepared is None and array.dtype == np.uint8):
            return self._tower.input(array)
        if array.dtype.kind not in ("biuf" if prepared else "f"):
            accepted = "numbers are" if prepared else "uint8 pixels and prepared floats are"
            raise InputError(f"an array of {array.dtype}; {accepted} accepted", code="dtype")
        if array.ndim == 3 and axis is not None:
            array = np.moveaxis(array, axis - 1 if axis > 0 else axis, 0)
        if array.dtype.kind != "f":  # as the originals do: their numbers, unscaled
            array = array.astype(np.float32)
        return self._encoder.prepared_image(array)


def _constructor(name: str) -> Callable[..., None]:
    """The `__init__` of the class `name`, with its parameters by name."""

    defaults = {**CLASSES[name][0], **SERVING, "precision": "float32", "engine": "auto", "private_urls": False}
    first = next(iter(defaults))  # the only one that is commonly given by its place

    def __init__(self: EncoderExecutor, *model: Any, **parameters: Any) -> None:
        signature.bind(self, *model, **parameters)
        EncoderExecutor.__init__(self, **dict(zip([first], model)), **parameters)

    kinds = inspect.Parameter
    named = [
        kinds(key, kinds.POSITIONAL_OR_KEYWORD if key == first else kinds.KEYWORD_ONLY, default=value)
        for key, value in {first: None, "device": "cpu", **defaults}.items()
    ]
    signature = inspect.Signature(
        [kinds("self", kinds.POSITIONAL_OR_KEYWORD), *named, kinds("kwargs", kinds.VAR_KEYWORD)]
    )
    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


class BigTransferEncoder(EncoderExecutor):
    """Images by BiT.

    model_path: folder of a SavedModel, or an .npz; where nothing is there, `model_name` is fetched
    model_name: "R50x1", "R101x1", "R50x3", "R101x3", "R152x4"; with "Imagenet1k/" before it, the smaller training set
    target_dim: (H, W, 3): images are resized and cropped to it; without it floats in [0, 1] go to the net in
        their own size, and uint8 pixels are preprocessed as by `load("bit/...")`
    channel_axis: of the arrays, counted with the batch's; None: wherever three are
    device, default_batch_size, default_traversal_paths
    """


class CLIPImageEncoder(EncoderExecutor):
    """Images by CLIP.

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
    """Images by VSE++: floats are ready for the net, uint8 pixels and files are preprocessed.

    model_path (path): checkpoint, or the folder it is in
    channel_axis: of the arrays, counted with the batch's: 1 is (3, H, W)
    pool_strategy: has no effect, as embeddings have no space left to pool
    device, default_batch_size, default_traversal_paths
    """


class VSETextEncoder(EncoderExecutor):
    """Captions by VSE++.

    model_path (path), vocab_path, device, default_batch_size, default_traversal_paths
    """


class AudioCLIPImageEncoder(EncoderExecutor):
    """Images by AudioCLIP.

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
    """Images by your own PyTorch model: the file that defines it is executed.

    model_state_dict_path, model_definition_file, model_class_name
    layer_name: whose output is the embedding, pooled over space
    device, default_batch_size, default_traversal_paths; any other parameter goes to the model's class
    """


def _is_data(uri: Optional[str]) -> bool:
    return (uri or "")[:5].lower() == "data:"


def _fail(doc: Document, error: InputError) -> None:
    doc.embedding = None
    doc.tags["error"] = error.message
    doc.tags["error_code"] = error.code
