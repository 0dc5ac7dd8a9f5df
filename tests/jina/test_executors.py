"""The Executors called directly: the same code that a Flow runs, without its processes."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.integrations.jina import CLIPImageEncoder, CLIPTextEncoder, DocList, Document
from image_encoders.integrations.jina.executors import EncoderExecutor
from image_encoders.spellings import CLASSES


@pytest.fixture(scope="module")
def executor(demo: str) -> CLIPImageEncoder:
    return CLIPImageEncoder(pretrained_model_name_or_path=demo)


@pytest.fixture(scope="module")
def rows(demo: str, pictures: list[np.ndarray]) -> np.ndarray:
    return ie.load(f"clip/{demo}", crop="round", precision="float32").encode_image(pictures)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_every_documented_class_has_an_executor() -> None:
    assert {cls.__name__ for cls in EncoderExecutor.__subclasses__()} == set(CLASSES)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, 4.0, None])
def test_rows_equal_the_library_s_whatever_the_batch_size(
    executor: CLIPImageEncoder, pictures: list[np.ndarray], rows: np.ndarray, batch_size: object
) -> None:
    docs = DocList[Document]([Document(blob=one) for one in pictures])
    executor.encode(docs, parameters={"batch_size": batch_size, "__results__": {}})
    found = np.stack([doc.embedding for doc in docs])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, rows, atol=2e-5)


def test_pixels_bytes_tensors_and_addresses_give_the_same_row(
    executor: CLIPImageEncoder, pictures: list[np.ndarray], rows: np.ndarray
) -> None:
    file = png(pictures[0])
    data = "data:image/png;base64," + base64.b64encode(file).decode()
    docs = [Document(tensor=pictures[0]), Document(buffer=file), Document(uri=data)]
    executor.encode(docs)
    for doc in docs:
        np.testing.assert_allclose(doc.embedding, rows[0], atol=2e-5)


def test_a_bad_document_fails_alone_and_says_why(
    executor: CLIPImageEncoder, pictures: list[np.ndarray], rows: np.ndarray
) -> None:
    bad = [
        Document(buffer=b"no picture"),
        Document(buffer=png(pictures[1])[:60]),
        Document(blob=np.zeros((4, 4, 7), np.uint8)),
        Document(blob=np.zeros((4, 4, 3), np.float32)),
        Document(blob=np.zeros((0, 4, 3), np.uint8)),
        Document(uri="file:///etc/hostname"),
        Document(uri="/etc/hostname"),
        Document(uri="http://127.0.0.1:9/a.png"),
        Document(uri="data:image/png;base64,%%%"),
    ]
    docs = [Document(blob=pictures[0]), *bad, Document(blob=pictures[1])]
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


def test_paths_of_the_request_win_over_the_executor_s(demo: str, pictures: list[np.ndarray]) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo, default_traversal_paths=["c"])
    tree = [Document(blob=pictures[0], chunks=[Document(blob=pictures[1], chunks=[Document(blob=pictures[2])])])]
    executor.encode(tree)
    assert tree[0].embedding is None
    assert tree[0].chunks[0].embedding.shape == (executor.encoder.dim,)
    executor.encode(tree, parameters={"traversal_paths": "@r,cc"})
    assert tree[0].embedding is not None
    assert tree[0].chunks[0].chunks[0].embedding is not None


def test_inputs_can_be_left_out_of_the_answer(executor: CLIPImageEncoder, pictures: list[np.ndarray]) -> None:
    docs = [Document(blob=pictures[0], text="kept"), Document(buffer=png(pictures[0]))]
    executor.encode(docs, parameters={"strip": True})
    assert all(doc.embedding is not None and doc.blob is None and doc.buffer is None for doc in docs)
    assert docs[0].text == "kept"


@pytest.mark.parametrize(
    "parameters", [{"batch_size": 0}, {"batch_size": 2.5}, {"batch_size": "8"}, {"traversal_paths": "x"}]
)
def test_a_wrong_parameter_is_an_error(executor: CLIPImageEncoder, parameters: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"batch_size|traversal path"):
        executor.encode([Document()], parameters=parameters)


def test_prepared_pictures_go_straight_to_the_net(demo: str) -> None:
    executor = CLIPImageEncoder(pretrained_model_name_or_path=demo, use_default_preprocessing=False)
    size = executor.encoder.tower("image").shape[1]
    prepared = np.random.default_rng(1).normal(size=(3, size, size)).astype(np.float32)
    docs = [
        Document(blob=prepared),
        Document(blob=prepared.transpose(1, 2, 0)),
        Document(blob=np.zeros((3, size, size), np.uint8)),
        Document(blob=np.zeros((3, size + 1, size), np.float32)),
    ]
    executor.encode(docs)
    np.testing.assert_allclose(docs[0].embedding, executor.encoder.embed_image([prepared])[0], atol=1e-5)
    np.testing.assert_allclose(docs[1].embedding, docs[0].embedding, atol=1e-6)
    assert [doc.tags.get("error_code") for doc in docs] == [None, None, "dtype", "shape"]


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


@pytest.fixture
def served(tmp_path: Path, pictures: list[np.ndarray]) -> Callable[[], str]:
    """A server on this machine's own address with one picture."""
    (tmp_path / "a.png").write_bytes(png(pictures[0]))
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
