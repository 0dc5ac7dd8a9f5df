"""A real Flow over gRPC, its Executors in processes of their own."""

from __future__ import annotations

import io
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from jina.excepts import RuntimeFailToStart
from PIL import Image

import image_encoders as ie
import jina
from image_encoders.errors import InputError, UnknownModel
from image_encoders.integrations.jina import DocList, Document, Flow
from image_encoders.integrations.jina.flow import CONFIGS, executor_arguments, flow_config, resolve
from image_encoders.legacy_names import CLASSES


@pytest.fixture(scope="module")
def rows(demo: str, images: list[np.ndarray]) -> np.ndarray:
    return ie.load(f"clip/{demo}", crop="round", precision="float32").encode_image(images)


@pytest.fixture(scope="module")
def flow(demo: str) -> Iterator[Flow]:
    """One Executor, with its default parameters."""
    with Flow().add(
        uses="jinahub+docker://CLIPImageEncoder/gpu",
        name="my-encoder",
        uses_with={"pretrained_model_name_or_path": demo},
    ) as started:
        yield started


@pytest.fixture(scope="module")
def chain(demo: str, own_executor: Path) -> Iterator[Flow]:
    """Images by two replicas, texts, and a user's own Executor, from YAML as it was once written."""
    config = {
        "jtype": "Flow",
        "pods": [
            {
                "name": "image-encoder",
                "uses": "jinahub://CLIPImageEncoder",
                "uses_with": {"pretrained_model_name_or_path": demo, "default_traversal_paths": ["r", "c"]},
                "replicas": 2,
            },
            {
                "name": "texts",
                "uses": "CLIPTextEncoder",
                "uses_with": {"pretrained_model_name_or_path": demo, "default_traversal_paths": "@m"},
            },
            {"name": "indexer", "uses": own_executor.name},
        ],
    }
    path = own_executor.with_name("flow.yml")
    path.write_text(yaml.safe_dump(config))
    with Flow.load_config(path) as started:
        yield started


def encoded(flow: Flow, docs: Any, **arguments: Any) -> list[Document]:
    responses = flow.post(on="/encode", inputs=docs, return_results=True, **arguments)
    return [doc for response in responses for doc in response.docs]


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8, None])
@pytest.mark.parametrize("request_size", [1, 10, 50, 100])
def test_rows_equal_the_library_s_whatever_the_sizes(
    flow: Flow, images: list[np.ndarray], rows: np.ndarray, batch_size: int | None, request_size: int
) -> None:
    count = min(3 * request_size, 100)
    docs = [Document(blob=images[i % len(images)], text=str(i)) for i in range(count)]
    found = encoded(flow, docs, request_size=request_size, parameters={"batch_size": batch_size, "strip": True})
    assert sorted(int(doc.text) for doc in found) == list(range(count))
    for doc in found:
        assert doc.embedding.dtype == np.float32
        np.testing.assert_allclose(doc.embedding, rows[int(doc.text) % len(images)], atol=2e-5)


def test_nested_documents_are_found_by_the_paths_of_the_request(
    flow: Flow, images: list[np.ndarray], rows: np.ndarray
) -> None:
    tree = Document(
        blob=images[0],
        chunks=[Document(blob=images[1], chunks=[Document(blob=images[2])]), Document()],
        matches=[Document(buffer=png(images[3]))],
    )
    for paths in ("@r,c,cc,m", ["r", "c", "cc", "m"], ["r,c", "cc,m"]):
        (found,) = encoded(flow, tree, parameters={"traversal_paths": paths})
        reached = [found, found.chunks[0], found.chunks[0].chunks[0], found.matches[0]]
        np.testing.assert_allclose(np.stack([doc.embedding for doc in reached]), rows[:4], atol=2e-5)
        assert found.chunks[1].embedding is None
        np.testing.assert_array_equal(found.chunks[0].blob, images[1])
    (found,) = encoded(flow, tree, parameters={"traversal_paths": ["cc"], "strip": True})
    assert found.embedding is None
    assert found.blob is not None
    assert found.chunks[0].chunks[0].blob is None
    np.testing.assert_allclose(found.chunks[0].chunks[0].embedding, rows[2], atol=2e-5)


@pytest.mark.parametrize("inputs", [None, [], DocList[Document]()])
def test_a_request_without_documents_is_answered(flow: Flow, inputs: Any) -> None:
    assert encoded(flow, inputs) == []


def test_documents_without_anything_to_encode_come_back_as_they_are(flow: Flow) -> None:
    docs = encoded(flow, [Document(), Document(text="words"), Document(chunks=[]), Document(blob=None)])
    assert [doc.embedding for doc in docs] == [None] * 4
    assert [doc.tags for doc in docs] == [{}] * 4
    assert docs[1].text == "words"


def test_every_endpoint_encodes_with_and_without_a_slash(
    flow: Flow, images: list[np.ndarray], rows: np.ndarray
) -> None:
    for on in ("foo", "/foo", "/encode", "/index", "/search", "/"):
        (response,) = flow.post(on=on, inputs=Document(blob=images[0]), return_results=True)
        np.testing.assert_allclose(response.docs[0].embedding, rows[0], atol=2e-5)
        np.testing.assert_allclose(response.data.docs[0].embedding, rows[0], atol=2e-5)


def test_callbacks_get_responses_with_documents(flow: Flow, images: list[np.ndarray], rows: np.ndarray) -> None:
    done: list[Document] = []
    always: list[Document] = []
    flow.post(
        on="/foo",
        inputs=(Document(blob=one) for one in images),
        request_size=3,
        on_done=lambda response: done.extend(Document(doc) for doc in response.data.docs),
        on_always=lambda response: always.extend(response.docs),
    )
    assert len(done) == len(always) == len(images)
    by_row = sorted(done, key=lambda doc: doc.blob.size)
    assert {type(doc) for doc in always} == {Document}
    np.testing.assert_allclose(
        by_row[0].embedding, rows[min(range(len(images)), key=lambda i: images[i].size)], atol=2e-5
    )


def test_without_return_results_the_answer_is_the_documents(flow: Flow, images: list[np.ndarray]) -> None:
    found = flow.post(on="/foo", inputs=Document(blob=images[0]))
    assert isinstance(found[0], Document)
    assert found[0].embedding.dtype == np.float32


@pytest.mark.parametrize("request_size", [1, 7])
def test_answers_come_in_the_order_of_the_documents(flow: Flow, images: list[np.ndarray], request_size: int) -> None:
    """Large and small ones, so that they are ready in another order."""
    docs = [Document(blob=np.resize(images[0], (800, 800, 3)) if i % 3 == 0 else images[i % 7]) for i in range(60)]
    found = encoded(flow, docs, request_size=request_size, parameters={"strip": True})
    assert [doc.id for doc in found] == [doc.id for doc in docs]
    seen: list[str] = []
    flow.post("/", docs, request_size=request_size, on_done=lambda answer: seen.extend(doc.id for doc in answer.docs))
    assert seen == [doc.id for doc in docs]


@pytest.mark.parametrize("parameters", [{"batch_size": float("nan")}, {"traversal_paths": "\ud800"}, {"a": object()}])
def test_parameters_that_cannot_be_sent_are_refused_before_anything_is(
    flow: Flow, images: list[np.ndarray], parameters: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="the parameters cannot be sent"):
        encoded(flow, Document(blob=images[0]), parameters=parameters)


def test_documents_that_cannot_be_sent_fail_alone(flow: Flow, images: list[np.ndarray], rows: np.ndarray) -> None:
    deep, itself = Document(text="innermost"), Document(chunks=[])
    itself.chunks.append(itself)
    for _ in range(30):
        deep = Document(chunks=[deep])
    docs = [Document(blob=images[0]), deep, itself, Document(text="\ud800"), Document(blob=images[1])]
    client = jina.Client(host="127.0.0.1", port=flow.port)
    sent = client.post("/", DocList[Document](docs), return_type=DocList[Document], results_in_order=True)
    for found in (encoded(flow, docs), encoded(flow, iter(docs), request_size=2), sent):
        assert [doc.tags.get("error_code") for doc in found] == [None, "document", "document", "document", None]
        assert [doc.id for doc in found] == [doc.id for doc in docs]
        np.testing.assert_allclose(found[0].embedding, rows[0], atol=2e-5)
        np.testing.assert_allclose(found[4].embedding, rows[1], atol=2e-5)


def test_a_document_sent_again_loses_its_error(flow: Flow, images: list[np.ndarray]) -> None:
    (failed,) = encoded(flow, Document(buffer=b"no image", tags={"mine": 1}))
    assert failed.tags["error"]
    failed.buffer = png(images[0])
    (mended,) = encoded(flow, failed)
    assert mended.embedding is not None
    assert mended.tags == {"mine": 1}


@pytest.mark.parametrize("parameters", [{"strip": "no"}, {"batchsize": 3}, {"traversal_paths": []}, {"batch_size": 0}])
def test_a_failed_request_shows_no_path_of_the_server(
    flow: Flow, images: list[np.ndarray], parameters: dict[str, Any]
) -> None:
    with pytest.raises(jina.excepts.BadServer) as caught:
        encoded(flow, Document(blob=images[0]), parameters=parameters)
    status = caught.value.args[0].status
    assert status.exception.name == "InputError"
    assert "accepted" in status.description
    assert str(Path(ie.__file__).parent) not in str(caught.value)
    assert "site-packages" not in str(caught.value)
    assert len(status.exception.stacks) == 1


def test_wrong_parameters_fail_their_request_and_no_other(flow: Flow, images: list[np.ndarray]) -> None:
    with pytest.raises(Exception, match="batch_size") as caught:
        encoded(flow, Document(blob=images[0]), parameters={"batch_size": 0})
    assert "accepted" in str(caught.value)
    with pytest.raises(Exception, match="traversal path"):
        encoded(flow, Document(blob=images[0]), parameters={"traversal_paths": "@x"})
    assert encoded(flow, Document(blob=images[0]))[0].embedding is not None


def test_jina_s_own_client_gets_the_same_rows(flow: Flow, images: list[np.ndarray], rows: np.ndarray) -> None:
    client = jina.Client(host="127.0.0.1", port=flow.port)
    docs = client.post("/encode", DocList[Document]([Document(blob=images[0])]), return_type=DocList[Document])
    np.testing.assert_allclose(docs[0].embedding, rows[0], atol=2e-5)


def test_of_400_documents_by_16_clients_only_the_broken_ones_fail(
    flow: Flow, images: list[np.ndarray], rows: np.ndarray
) -> None:
    count, clients = 400, 16
    whole = png(images[0])
    deep = Document(text="innermost")
    for _ in range(25):
        deep = Document(chunks=[deep])
    breaks: list[dict[str, Any]] = [
        {"buffer": whole[: len(whole) // 2]},
        {"buffer": b"not an image"},
        {"blob": np.zeros((3, 3, 5), np.uint8)},
        {"blob": np.zeros((3, 3, 3), np.float64)},
        {"blob": np.zeros((0, 0, 3), np.uint8)},
        {"blob": np.array(["a"])},
        {"uri": "http://127.0.0.1:1/a.png"},
        {"uri": "http://[::ffff:127.0.0.1]/a.png"},
        {"uri": "gopher://example.org/"},
        {"uri": "data:image/png;base64,%%%"},
        {"chunks": [deep]},
        {"text": "half of \ud83d"},
    ]
    rng = np.random.default_rng(7)
    broken = dict(zip(rng.choice(count, 48, replace=False).tolist(), 4 * breaks))
    docs = [Document(id=str(i), **broken.get(i, {"blob": images[i % len(images)]})) for i in range(count)]

    def client(number: int) -> list[Document]:
        size = [1, 3, 7, 25][number % 4]
        part = DocList[Document](docs[number::clients])
        return jina.Client(host="127.0.0.1", port=flow.port).post(
            "/encode",
            part,
            request_size=size,
            parameters={"strip": True, "batch_size": size},
            return_type=DocList[Document],
            results_in_order=True,
        )

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(client, range(clients), timeout=300))
    for number, found in enumerate(answers):
        assert [doc.id for doc in found] == [doc.id for doc in docs[number::clients]]
        for doc in found:
            if int(doc.id) in broken:
                assert doc.embedding is None
                assert doc.tags["error"]
                assert doc.tags["error_code"]
            else:
                assert not doc.tags
                np.testing.assert_allclose(doc.embedding, rows[int(doc.id) % len(images)], atol=2e-5)


def test_images_texts_and_a_user_s_own_executor_work_together(
    chain: Flow, demo: str, images: list[np.ndarray], rows: np.ndarray
) -> None:
    texts = ie.load(f"clip/{demo}", precision="float32").encode_text(["a red circle"])
    docs = [
        Document(
            text=str(i),
            blob=one,
            chunks=[Document(buffer=png(images[0]))],
            matches=[Document(text="a red circle"), Document(text="words " * 200)],
        )
        for i, one in enumerate(images * 4)
    ]
    found = encoded(chain, docs, request_size=2)
    assert sorted(int(doc.text) for doc in found) == list(range(len(docs)))
    for doc in found:
        np.testing.assert_allclose(doc.embedding, rows[int(doc.text) % len(images)], atol=2e-5)
        np.testing.assert_allclose(doc.chunks[0].embedding, rows[0], atol=2e-5)
        np.testing.assert_allclose(doc.matches[0].embedding, texts[0], atol=2e-5)
        assert doc.matches[1].embedding.shape == texts[0].shape
        assert doc.tags == {"indexed": True}


def test_nothing_listens_but_on_this_machine_s_own_address(flow: Flow, chain: Flow) -> None:
    family = {os.getpid(), *_descendants(os.getpid())}
    listening = [(address, port) for pid in family for address, port in _listening(pid)]
    assert {flow.port, chain.port} <= {port for _, port in listening}
    assert {address for address, _ in listening} == {"127.0.0.1"}


def test_the_flow_is_reported_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jina posts to a server of its own from a thread, unless this variable was there when it was imported."""
    called: list[object] = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *arguments, **more: called.append(arguments))
    jina.helper.send_telemetry_event("start", "Flow")
    time.sleep(0.5)
    assert os.environ["JINA_OPTOUT_TELEMETRY"]
    assert not called


def test_a_start_that_fails_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    flow = Flow().add(uses="CLIPImageEncoder", uses_with={"pretrained_model_name_or_path": "/nowhere/at/all"})
    with pytest.raises(RuntimeFailToStart), flow:
        pass
    assert "CLIPImageEncoder cannot start: /nowhere/at/all: no such folder" in capfd.readouterr().err


@pytest.mark.slow
def test_shards_that_all_are_asked_give_every_document_its_row(
    demo: str, images: list[np.ndarray], rows: np.ndarray
) -> None:
    with Flow().add(
        uses="CLIPImageEncoder",
        uses_with={"pretrained_model_name_or_path": demo},
        shards=2,
        polling="ANY",
    ) as started:
        found = encoded(started, [Document(blob=one, text=str(i)) for i, one in enumerate(images)], request_size=1)
    assert len(found) == len(images)
    for doc in found:
        np.testing.assert_allclose(doc.embedding, rows[int(doc.text)], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["executor", "flow"])
def test_jina_s_own_commands_start_the_packaged_configurations(
    command: str, demo: str, tmp_path: Path, images: list[np.ndarray], rows: np.ndarray
) -> None:
    port = _free_port()
    if command == "executor":
        arguments = [
            "--uses", str(CONFIGS / "CLIPImageEncoder.yml"),
            "--uses-with", f"pretrained_model_name_or_path:{demo}",
            "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
    else:
        path = tmp_path / "flow.yml"
        path.write_text(
            "jtype: Flow\n"
            f"with:\n  host: 127.0.0.1\n  port: {port}\n"
            "executors:\n"
            "  - name: encoder\n"
            f"    uses: {CONFIGS / 'CLIPImageEncoder.yml'}\n"
            f"    uses_with:\n      pretrained_model_name_or_path: {demo}\n"
        )
        arguments = ["--uses", str(path)]
    jina_itself = str(Path(sys.executable).with_name("jina"))
    running = subprocess.Popen([jina_itself, command, *arguments], start_new_session=True)
    try:
        client = jina.Client(host="127.0.0.1", port=port)
        _until(lambda: client.is_flow_ready() if command == "flow" else _answers(port), running)
        docs = client.post("/encode", DocList[Document]([Document(blob=images[0])]), return_type=DocList[Document])
        np.testing.assert_allclose(docs[0].embedding, rows[0], atol=2e-5)
    finally:
        running.terminate()
        running.wait(120)
        with suppress(ProcessLookupError):  # Jina's command leaves processes of its own behind
            os.killpg(running.pid, signal.SIGKILL)


# ------------------------------------------------------------------ names, arguments, YAML: without a process


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "jinahub://{}",
        "jinahub+docker://{}",
        "jinahub+docker://{}/gpu",
        "jinahub+docker://{}/latest-gpu",
        "jinahub+docker://{}/v0.3",
        "jinahub+sandbox://{}",
        "jinahub://jina-ai/{}",
        "jinahub://{}:secret/latest",
        "jinaai://jina-ai/{}:latest",
        "jinaai+docker://jina-ai/{}",
        "jinahub/pod.encoder.{}:0.0.6-0.9.33",
        "docker://jinahub/pod.encoder.{}:0.0.6-0.9.33",
    ],
)
def test_every_old_address_leads_to_the_packaged_executor(form: str, name: str) -> None:
    assert resolve(form.format(name)) == str(CONFIGS / f"{name}.yml")
    assert resolve(form.format(name.lower())) == str(CONFIGS / f"{name}.yml")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_executor_has_a_configuration_of_its_own(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yml").read_text())
    assert config["jtype"] == config["metas"]["name"] == name


@pytest.mark.parametrize(
    "uses", ["jinahub://NoSuchEncoder", "jinahub+docker://jina-ai/PDFSegmenter/gpu", "CLIPImageEncodr", "jinahub://"]
)
def test_an_unknown_name_lists_the_known_ones(uses: str) -> None:
    with pytest.raises((UnknownModel, ValueError)) as caught:
        Flow().add(uses=uses)
    assert all(name in str(caught.value) for name in CLASSES)


@pytest.mark.parametrize("uses", ["indexer.yml", "docker://mine:1", "grpc://127.0.0.1:5", "a/b.yml", "BaseExecutor"])
def test_other_addresses_are_left_to_jina(uses: str) -> None:
    assert resolve(uses) == uses


def test_what_only_containers_know_has_no_effect_and_says_so() -> None:
    with pytest.warns(UserWarning, match="no effect") as said:
        arguments = executor_arguments({"uses": "jinahub+docker://VSEImageEncoder", "volumes": "a:b", "gpus": "all"})
    assert set(arguments) == {"uses"}
    assert [str(one.message).split()[0] for one in said] == ["volumes", "gpus"]
    assert executor_arguments({"uses": "docker://mine", "volumes": "a:b"})["volumes"] == "a:b"


def test_old_spellings_of_arguments_are_understood() -> None:
    given = {"name": "my-encoder", "image": "jinahub/pod.encoder.vseimageencoder:0.0.6-0.9.33"}
    with pytest.warns(UserWarning, match="port_out"):
        arguments = executor_arguments({**given, "port_in": 55555, "port_out": 55556})
    assert arguments == {"name": "my_encoder", "uses": str(CONFIGS / "VSEImageEncoder.yml"), "port": 55555}


def test_yaml_is_read_with_pods_or_executors(tmp_path: Path) -> None:
    for key in ("pods", "executors"):
        text = f"jtype: Flow\n{key}:\n  - name: e\n    uses: jinahub://VSEImageEncoder\n"
        path = tmp_path / f"{key}.yml"
        path.write_text(text)
        assert Flow.load_config(io.StringIO(text)).num_deployments == 1
        for source in (text, path, str(path), yaml.safe_load(text)):
            config = flow_config(source)
            assert config["executors"] == [{"name": "e", "uses": str(CONFIGS / "VSEImageEncoder.yml")}]
            assert config["with"]["host"] == "127.0.0.1"
            assert "pods" not in config
            assert Flow.load_config(source).num_deployments == 1


def test_the_type_may_stand_anywhere_or_nowhere() -> None:
    executors = "executors:\n  - name: e\n    uses: jinahub://VSEImageEncoder\n"
    for text in (executors, executors + "jtype: Flow\n", executors + "with: {port: 12345}\njtype: Flow\n"):
        assert Flow.load_config(text).num_deployments == 1


def test_copies_share_the_cores_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("image_encoders.integrations.jina.flow.cores", lambda: 8)
    for given, threads in (({"replicas": 2}, "4"), ({"replicas": 2, "shards": 2}, "2"), ({"replicas": 99}, "1")):
        assert executor_arguments({"uses": "CLIPImageEncoder", **given})["env"] == {"OMP_NUM_THREADS": threads}
    own = {"OMP_NUM_THREADS": "3", "A": "b"}
    assert executor_arguments({"uses": "CLIPImageEncoder", "replicas": 2, "env": own})["env"] == own
    assert "env" not in executor_arguments({"uses": "CLIPImageEncoder"})
    assert "env" not in executor_arguments({"uses": "own.yml", "replicas": 2})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert "env" not in executor_arguments({"uses": "CLIPImageEncoder", "replicas": 2})


def test_the_address_in_yaml_wins() -> None:
    assert flow_config("jtype: Flow\nwith:\n  host: 0.0.0.0\n")["with"]["host"] == "0.0.0.0"
    assert Flow.load_config("jtype: Flow\nwith:\n  port: 12345\nexecutors: []\n").host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pods: []\nexecutors: []\n", "both pods: and executors:"),
        ("- a\n- b\n", "mapping"),
        ("pods: [\n", "not YAML"),
        ("nowhere.yml", "no such Flow file"),
        ("pods:\n  - uses: jinahub://Nothing\n", "known: AudioCLIPEncoder"),
        ("pods: text\n", "list"),
        ("executors:\n  - text\n", "mapping"),
        ("with: text\n", "mapping"),
        ("jtype: Deployment\nwith: {}\n", "jtype: Flow is expected"),
    ],
)
def test_yaml_that_is_no_flow_is_an_error(text: str, said: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError, UnknownModel), match=said):
        Flow.load_config(text)


# ------------------------------------------------------------------ processes and ports


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(ready: Any, running: subprocess.Popen[bytes], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert running.poll() is None, "it ended"
        assert time.monotonic() < end, "it is not ready"
        time.sleep(0.5)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _listening(pid: int) -> set[tuple[str, int]]:
    """(address, port) of every TCP socket that a process listens on."""
    try:
        inodes = {os.readlink(fd)[8:-1] for fd in Path(f"/proc/{pid}/fd").iterdir() if "socket:" in os.readlink(fd)}
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{pid}/net/{name}").read_text().split("\n")
        ]
    except FileNotFoundError:  # a process or a descriptor that has gone meanwhile
        return set()
    found = set()
    for fields in lines:
        if len(fields) > 9 and fields[3] == "0A" and fields[9] in inodes:
            host, port = fields[1].split(":")
            raw = b"".join(int(host[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(host), 8))
            mapped = raw[:12] == bytes(10) + b"\xff\xff"
            found.add((str(ipaddress.ip_address(raw[12:] if mapped else raw)), int(port, 16)))
    return found
