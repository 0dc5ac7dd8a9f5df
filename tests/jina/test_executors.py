"""The Executors called directly: the same code that a Flow runs, without its processes."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
import jina
from image_encoders.batching import Batcher
from image_encoders.errors import ImageEncodersError, InputError, Overloaded
from image_encoders.inputs.urls import UrlLimits
from image_encoders.integrations.jina import CLIPImageEncoder, CLIPTextEncoder, DocList, Document, executors
from image_encoders.integrations.jina.executors import EncoderExecutor
from image_encoders.integrations.jina.flow import CONFIGS
from image_encoders.legacy_names import ALIASES, CLASSES, SERVING
from image_encoders.models.clip import DEMO


@pytest.fixture(scope="module")
def executor(demo: str) -> CLIPImageEncoder:
    return CLIPImageEncoder(pretrained_model_name_or_path=demo)


@pytest.fixture(scope="module")
def rows(demo: str, images: list[np.ndarray]) -> np.ndarray:
    return ie.load(f"clip/{demo}", crop="round", precision="float32").encode_image(images)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_every_documented_class_has_an_executor() -> None:
    assert {cls.__name__ for cls in EncoderExecutor.__subclasses__()} == set(CLASSES)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 4.0, None])
def test_rows_equal_the_library_s_whatever_the_batch_size(
    executor: CLIPImageEncoder, images: list[np.ndarray], rows: np.ndarray, batch_size: object
) -> None:
    docs = DocList[Document]([Document(blob=one) for one in images])
    executor.encode(docs, parameters={"batch_size": batch_size, "__results__": {}})
    found = np.stack([doc.embedding for doc in docs])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows, atol=2e-5)


def test_pixels_bytes_tensors_and_addresses_give_the_same_row(
    executor: CLIPImageEncoder, images: list[np.ndarray], rows: np.ndarray
) -> None:
    file = png(images[0])
    data = "data:image/png;base64," + base64.b64encode(file).decode()
    docs = [Document(tensor=images[0]), Document(buffer=file), Document(uri=data)]
    executor.encode(docs)
    for doc in docs:
        np.testing.assert_allclose(doc.embedding, rows[0], atol=2e-5)


def test_a_bad_document_fails_alone_and_says_why(
    executor: CLIPImageEncoder, images: list[np.ndarray], rows: np.ndarray
) -> None:
    bad = [
        Document(buffer=b"no image"),
        Document(buffer=png(images[1])[:60]),
        Document(blob=np.zeros((4, 4, 7), np.uint8)),
        Document(blob=np.zeros((4, 4, 3), np.float32)),
        Document(blob=np.zeros((0, 4, 3), np.uint8)),
        Document(uri="file:///etc/hostname"),
        Document(uri="/etc/hostname"),
        Document(uri="http://127.0.0.1:9/a.png"),
        Document(uri="data:image/png;base64,%%%"),
    ]
    docs = [Document(blob=images[0]), *bad, Document(blob=images[1])]
    executor.encode(docs)
    np.testing.assert_allclose(docs[0].embedding, rows[0], atol=2e-5)
    np.testing.assert_allclose(docs[-1].embedding, rows[1], atol=2e-5)
    for doc in bad:
        assert doc.embedding is None
        assert doc.tags["error"]
        assert doc.tags["error_code"]
        assert "hostname" not in doc.tags["error"] or "public" not in doc.tags["error"]


def test_documents_with_nothing_to_encode_are_left_as_they_are(executor: CLIPImageEncoder) -> None:
    docs = [Document(), Document(text="only words")]
    executor.encode(docs)
    assert all(doc.embedding is None and not doc.tags for doc in docs)
    assert executor.encode([]) == []


def test_paths_of_the_request_win_over_the_executor_s(demo: str, images: list[np.ndarray]) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo, default_traversal_paths=["c"])
    tree = [Document(blob=images[0], chunks=[Document(blob=images[1], chunks=[Document(blob=images[2])])])]
    executor.encode(tree)
    assert tree[0].embedding is None
    assert tree[0].chunks[0].embedding.shape == (executor.encoder.dim,)
    executor.encode(tree, parameters={"traversal_paths": "@r,cc"})
    assert tree[0].embedding is not None
    assert tree[0].chunks[0].chunks[0].embedding is not None


def test_inputs_can_be_left_out_of_the_answer(executor: CLIPImageEncoder, images: list[np.ndarray]) -> None:
    docs = [Document(blob=images[0], text="kept"), Document(buffer=png(images[0]))]
    executor.encode(docs, parameters={"strip": True})
    assert all(doc.embedding is not None and doc.blob is None and doc.buffer is None for doc in docs)
    assert docs[0].text == "kept"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"batch_size": 0}, "batch_size 0;"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"batch_size": "8"}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"batch_size": float("nan")}, "batch_size nan"),
        ({"batch_size": float("inf")}, "batch_size inf"),
        ({"traversal_paths": "x"}, "traversal path"),
        ({"traversal_paths": []}, "traversal path"),
        ({"traversal_paths": {"r": 1}}, "traversal path"),
        ({"traversal_paths": 3}, "traversal path"),
        ({"strip": "no"}, "strip 'no'; true and false are accepted"),
        ({"strip": 1.0}, "strip"),
        ({"strip": None}, "strip"),
        ({"batchsize": 4}, "unknown parameter 'batchsize'; accepted: traversal_paths, batch_size, strip"),
        ({"limit": 10}, "under its name"),
    ],
)
def test_a_wrong_parameter_is_an_error(executor: CLIPImageEncoder, parameters: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        executor.encode([Document()], parameters=parameters)


@pytest.mark.parametrize("batch_size", [0, 2.5, "8", float("nan"), float("inf"), -1])
def test_a_wrong_batch_size_stops_the_start(demo: str, batch_size: object) -> None:
    with pytest.raises(InputError, match="batch_size"):
        CLIPImageEncoder(pretrained_model_name_or_path=demo, batch_size=batch_size)


def test_parameters_of_other_executors_are_none_of_ours(executor: CLIPImageEncoder, images: list[np.ndarray]) -> None:
    docs = [Document(blob=images[0])]
    executor.encode(docs, parameters={"indexer": {"limit": 3}, "__results__": {}, "traversal_path": "r", "strip": True})
    assert docs[0].embedding is not None
    assert docs[0].blob is None


def test_success_removes_the_error_of_an_earlier_attempt(executor: CLIPImageEncoder, images: list[np.ndarray]) -> None:
    doc = Document(buffer=b"no image", tags={"mine": 1})
    executor.encode([doc])
    assert doc.tags["error"]
    doc.buffer = png(images[0])
    executor.encode([doc])
    assert doc.embedding is not None
    assert doc.tags == {"mine": 1}
    doc.buffer = b"no image again"
    executor.encode([doc])
    assert doc.embedding is None
    assert doc.tags["error_code"]


@pytest.mark.parametrize("shape", [(0, 0, 3), (0,), (4, 0, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_array_without_elements_is_called_empty(
    executor: CLIPImageEncoder, shape: tuple[int, ...], dtype: type
) -> None:
    doc = Document(blob=np.zeros(shape, dtype))
    executor.encode([doc])
    assert doc.tags["error_code"] == "empty"
    assert "empty" in doc.tags["error"]


def test_floats_are_refused_with_what_an_executor_can_do_about_it(executor: CLIPImageEncoder) -> None:
    doc = Document(blob=np.zeros((8, 8, 3), np.float64))
    executor.encode([doc])
    assert doc.tags["error"] == (
        "an array of float64; uint8 pixels are accepted, and prepared floats with use_default_preprocessing=False"
    )


def test_prepared_images_go_straight_to_the_net(demo: str) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo, use_default_preprocessing=False)
    size = executor.encoder.tower("image").shape[1]
    prepared = np.random.default_rng(1).normal(size=(3, size, size)).astype(np.float32)
    docs = [
        Document(blob=prepared),
        Document(blob=prepared.transpose(1, 2, 0)),
        Document(blob=np.zeros((3, size + 1, size), np.float32)),
        Document(blob=np.array(["a", "b"])),
    ]
    executor.encode(docs)
    np.testing.assert_allclose(docs[0].embedding, executor.encoder.embed_image([prepared])[0], atol=1e-5)
    np.testing.assert_allclose(docs[1].embedding, docs[0].embedding, atol=1e-6)
    assert [doc.tags.get("error_code") for doc in docs] == [None, None, "shape", "dtype"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint16, bool])
def test_whole_numbers_go_to_the_net_unscaled_where_preprocessing_is_off(demo: str, dtype: type) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo, use_default_preprocessing=False)
    size = executor.encoder.tower("image").shape[1]
    numbers = np.random.default_rng(2).integers(0, 100, (3, size, size)).astype(dtype)
    docs = [Document(blob=numbers), Document(blob=numbers.astype(np.float32))]
    executor.encode(docs)
    assert not docs[0].tags
    np.testing.assert_allclose(docs[0].embedding, docs[1].embedding, atol=1e-5)


def test_an_array_of_the_other_layout_fails_alone(demo: str, images: list[np.ndarray]) -> None:
    """The original raises ValueError and fails the whole request."""
    for parameters, good, wrong in (
        ({}, images[0], images[0].transpose(2, 0, 1)),
        ({"use_default_preprocessing": False}, np.ones((3, 60, 60), np.uint8), np.ones((100, 100, 3), np.uint8)),
    ):
        docs = [Document(blob=wrong), Document(blob=good)]
        CLIPImageEncoder(pretrained_model_name_or_path=demo, **parameters).encode(docs, parameters={})
        assert docs[0].embedding is None
        assert docs[0].tags["error_code"] == "shape"
        assert docs[1].embedding is not None
        assert not docs[1].tags


def test_a_call_without_documents_returns_quietly(executor: CLIPImageEncoder) -> None:
    assert executor.encode(docs=None, parameters={}) is None
    assert executor.encode(None) is None


def test_parameters_can_be_read_back_under_both_of_their_names(demo: str) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo)
    assert executor.pretrained_model_name_or_path == demo
    assert executor.device == "cpu"
    assert executor.batch_size == executor.default_batch_size == 32
    assert executor.traversal_paths == executor.default_traversal_paths == ("r",)
    assert executor.default_traversal_path == executor.traversal_path == ("r",)
    assert executor.use_default_preprocessing is executor.use_preprocessing is True
    assert executor.base_feature_extractor is None
    assert (executor.precision, executor.engine, executor.private_urls) == ("float32", "auto", False)
    given = CLIPImageEncoder(demo, batch_size=8, default_traversal_path="@c", use_preprocessing=False, device="/CPU:0")
    assert given.pretrained_model_name_or_path == demo
    assert given.batch_size == given.default_batch_size == 8
    assert given.traversal_paths == given.default_traversal_paths == "@c"
    assert given.use_default_preprocessing is given.use_preprocessing is False
    assert given.device == "/CPU:0"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_class_has_its_parameters_as_attributes(name: str, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model: here the small one stands behind all of them."""
    encoder = ie.load("clip/demo", precision="float32")
    monkeypatch.setattr(executors, "load", lambda *arguments, **more: encoder)
    monkeypatch.setattr(type(encoder), "tower", lambda self, modality: self.towers["image"])
    needed = {"model_state_dict_path": "w.pth", "model_definition_file": "m.py", "model_class_name": "M"}
    own = CLASSES[name][0]
    executor = getattr(executors, name)(**{key: value for key, value in needed.items() if key in own})
    for parameter, default in {"device": "cpu", **SERVING, **own}.items():
        if parameter != "metas":
            assert getattr(executor, parameter) == needed.get(parameter, default)
    for alias, parameter in ALIASES.items():
        if parameter in own or parameter in SERVING:
            assert getattr(executor, alias) == getattr(executor, parameter)


def test_a_configuration_file_starts_an_executor_with_its_documented_defaults(demo: str) -> None:
    executor = jina.Executor.load_config(
        str(CONFIGS / "CLIPImageEncoder.yml"), uses_with={"pretrained_model_name_or_path": demo, "batch_size": 4}
    )
    assert executor.batch_size == executor.default_batch_size == 4
    assert executor.traversal_paths == ("r",)
    assert executor.use_default_preprocessing
    assert executor.metas.name == "CLIPImageEncoder"


@pytest.mark.parametrize("dtype", [np.int64, bool, "<U3", complex])
def test_where_the_kind_of_numbers_says_what_they_are_others_are_refused(dtype: Any) -> None:
    """The embedding of VSE++ and BiT: uint8 are pixels, floats are prepared."""
    executor = CLIPImageEncoder(str(DEMO))
    executor._legacy = replace(executor._legacy, prepared=None)
    doc = Document(blob=np.ones((3, 60, 60), dtype))
    executor.encode([doc])
    assert "uint8 pixels and prepared floats are accepted" in doc.tags["error"]


def test_executors_compute_in_float32_by_default(demo: str) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo)
    assert executor.encoder.precision == "float32"
    assert executor.encoder.recipe["precision"] == "float32"
    asked = CLIPImageEncoder(pretrained_model_name_or_path=demo, precision="auto")
    assert asked.encoder.recipe["precision"] == "auto"


def test_texts_longer_than_the_context_are_cut_as_the_original_does(demo: str) -> None:
    executor = CLIPTextEncoder(pretrained_model_name_or_path=demo)
    docs = [Document(text="a red circle"), Document(text="a red circle " * 100), Document(), Document(text="")]
    executor.encode(docs)
    expected = ie.load(f"clip/{demo}", precision="float32").encode_text(["a red circle"])
    np.testing.assert_allclose(docs[0].embedding, expected[0], atol=2e-5)
    assert docs[1].embedding is not None
    assert docs[2].embedding is docs[3].embedding is None


@pytest.mark.parametrize(
    "parameters",
    [
        {"batch_size": 4, "traversal_paths": ("c",)},
        {"default_batch_size": 4, "default_traversal_paths": ["c"]},
        {"default_batch_size": None, "device": "/CPU:0"},
        {"use_preprocessing": True},
    ],
)
def test_both_spellings_of_parameters_are_accepted(demo: str, parameters: dict[str, object]) -> None:
    assert CLIPImageEncoder(pretrained_model_name_or_path=demo, **parameters).encoder.device == "cpu"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"pretrained_model_name_or_path": "/nowhere/at/all"}, "no such folder"),
        ({"colour": "red"}, "no parameter 'colour'"),
        ({"device": "tpu"}, "unknown device"),
        ({"batch_size": 1, "default_batch_size": 2}, "mean the same"),
    ],
)
def test_a_start_that_fails_says_why(
    demo: str, parameters: dict[str, object], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ImageEncodersError, TypeError), match=said):
        CLIPImageEncoder(**{"pretrained_model_name_or_path": demo, **parameters})
    assert said in capfd.readouterr().err


class Stalled:
    """A resolver that does not answer until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.asked, self.go = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr("image_encoders.inputs.urls._checked", self.checked)

    def checked(self, *_: object) -> list[str]:
        self.asked.release()
        assert self.go.wait(120)
        raise OSError("nobody is there")


def test_other_requests_do_not_wait_for_slow_addresses(
    demo: str, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests are held up by an address than there are threads of any kind."""
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo)
    resolver = Stalled(monkeypatch)

    async def ask() -> None:
        slow = [
            asyncio.ensure_future(
                executor.answer([Document(uri="http://slow.example/a.png"), Document(blob=images[0])])
            )
            for _ in range(executors.REQUESTS + 70)
        ]
        await asyncio.to_thread(resolver.asked.acquire)
        good = await asyncio.wait_for(executor.answer([Document(blob=images[0])]), 60)
        assert good[0].embedding is not None
        assert not any(one.done() for one in slow)
        resolver.go.set()
        for docs in await asyncio.wait_for(asyncio.gather(*slow), 60):
            assert docs[0].tags["error_code"] == "url"
            assert docs[1].embedding is not None

    asyncio.run(ask())
    executor.close()


def test_what_a_client_that_has_gone_waits_for_is_never_embedded(
    executor: CLIPImageEncoder, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = threading.Semaphore(0), threading.Event()
    sizes: list[int] = []

    def stall(inputs: Sequence[np.ndarray]) -> np.ndarray:
        sizes.append(len(inputs))
        started.release()
        assert go.wait(120)
        return np.ones((len(inputs), 4), np.float32)

    batcher = Batcher(stall)
    submitted = threading.Semaphore(0)
    submit = batcher.submit
    monkeypatch.setattr(executor, "_batcher", batcher)
    monkeypatch.setattr(batcher, "submit", lambda *given, **more: (submit(*given, **more), submitted.release())[0])

    def docs(count: int) -> list[Document]:
        return [Document(blob=images[0]) for _ in range(count)]

    async def ask() -> None:
        first = asyncio.ensure_future(executor.answer(docs(1)))
        await asyncio.to_thread(started.acquire)
        gone = asyncio.ensure_future(executor.answer(docs(40)))
        for _ in range(2):
            await asyncio.to_thread(submitted.acquire)
        kept = asyncio.ensure_future(executor.answer(docs(2)))
        await asyncio.to_thread(submitted.acquire)
        gone.cancel()
        await asyncio.wait([gone])
        go.set()
        for answer in await asyncio.gather(first, kept):
            assert all(doc.embedding is not None for doc in answer)

    asyncio.run(ask())
    batcher.close()
    assert sizes == [1, 2]


def test_more_than_may_wait_fail_their_request_with_when_to_come_back(
    executor: CLIPImageEncoder, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise Overloaded(limit=10, waiting=9, retry_s=2.5)

    monkeypatch.setattr(executor._batcher, "submit", full)
    with pytest.raises(ImageEncodersError, match=r"retry in about 2\.5 seconds") as caught:
        asyncio.run(executor.answer([Document(blob=images[0])]))
    assert type(caught.value).__name__ == "Overloaded"


def test_an_input_that_the_model_cannot_bear_fails_alone_and_names_no_path(
    executor: CLIPImageEncoder, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(inputs: Sequence[np.ndarray]) -> np.ndarray:
        if any(np.ptp(one.reshape(len(one), -1), axis=1).max() < 1e-6 for one in inputs):  # of one colour
            raise RuntimeError("/secret/path.py fails")
        return np.ones((len(inputs), 4), np.float32)

    monkeypatch.setattr(executor, "_batcher", Batcher(picky))
    docs = [Document(blob=one) for one in (images[0], np.zeros((70, 70, 3), np.uint8), images[1])]
    executor.encode(docs)
    assert docs[0].embedding is not None
    assert docs[2].embedding is not None
    assert docs[1].tags == {"error": "the model fails on it: RuntimeError", "error_code": "unexpected"}


def test_a_request_ends_when_its_addresses_have_had_their_time(
    demo: str, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "UrlLimits", lambda private: UrlLimits(private=private, max_seconds_together=0.2))
    monkeypatch.setattr(executors, "GRACE_S", 0.2)
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo)
    resolver = Stalled(monkeypatch)
    docs = [Document(uri="http://slow.example/"), Document(blob=images[0]), Document(uri="http://slow.example/")]
    asyncio.run(executor.answer(docs))
    again = [Document(doc) for doc in docs]
    executor.encode(again)
    late = "the URLs of its request took longer than 0.2 s"
    for found in (docs, again):
        said = [doc.tags.get("error") for doc in found]
        assert said == [late, None, late]
        assert found[1].embedding is not None
    resolver.go.set()
    executor.close()


@pytest.mark.parametrize(
    ("parameters", "said"), [({"batch_size": 0}, "batch_size 0;"), ({"traversal_paths": "r"}, "RuntimeError")]
)
def test_a_request_that_fails_names_no_path_of_this_machine(
    executor: CLIPImageEncoder, parameters: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/secret/path.py fails")

    monkeypatch.setattr(executors, "traverse", broken)
    with pytest.raises(ImageEncodersError, match=said) as caught:
        asyncio.run(executor.answer([Document()], parameters))
    lines = traceback.format_exception(type(caught.value), caught.value, caught.value.__traceback__)
    assert len(lines) == 1
    assert "secret" not in lines[0]


def test_embeddings_in_the_precision_that_is_fastest_stay_close(
    demo: str, images: list[np.ndarray], rows: np.ndarray, bfloat16: bool
) -> None:
    """Whoever asks for `auto` gets closeness, not digits."""
    executor = CLIPImageEncoder(demo, precision="auto")
    docs = [Document(blob=one) for one in images]
    executor.encode(docs)
    found = np.stack([doc.embedding for doc in docs])
    cosines = (found * rows).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(rows, axis=1)
    assert cosines.min() > 0.99
    assert executor.encoder.precision in ({"float32", "bfloat16"} if bfloat16 else {"float32"})


@pytest.fixture
def served(tmp_path: Path, images: list[np.ndarray]) -> Callable[[], str]:
    """A server on this machine's own address with one image."""
    (tmp_path / "a.png").write_bytes(png(images[0]))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.png"
    server.shutdown()
    thread.join()
    server.server_close()


def test_private_addresses_are_fetched_only_where_the_owner_says_so(
    demo: str, executor: CLIPImageEncoder, served: str, rows: np.ndarray
) -> None:
    refused = [Document(uri=served)]
    executor.encode(refused)
    assert refused[0].tags["error_code"] == "url"
    assert "public" in refused[0].tags["error"]
    allowed = [Document(uri=served)]
    CLIPImageEncoder(pretrained_model_name_or_path=demo, private_urls=True).encode(allowed)
    np.testing.assert_allclose(allowed[0].embedding, rows[0], atol=2e-5)
