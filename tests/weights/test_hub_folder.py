"""hub_folder: a checkpoint from the hub, or one clear sentence about why not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import httpx
import pytest

from image_encoders.errors import UnknownModel, WeightsError
from image_encoders.weights.hub import hub_folder

hub = pytest.importorskip("huggingface_hub")
REPO = "someone/some-clip"
WANTED = {"config.json", "tokenizer.json", "merges.txt", "model.safetensors"}


class Hub:
    """Stands for the hub's client: a repository's files, or the error it answers with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.files = [
            "config.json",
            "tokenizer.json",
            "merges.txt",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
        ]
        self.error: Exception | None = None
        self.cached = cache / "cached"
        self.asked: list[Any] = []
        monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(model_info=self.model_info))
        monkeypatch.setattr(hub, "snapshot_download", self.snapshot_download)
        for name in ("IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)

    def model_info(self, repo_id: str, *, revision: str | None, timeout: float) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, repo_id: str, *, revision: str | None = None, **options: Any) -> str:
        from fnmatch import fnmatch

        self.asked.append(options | {"revision": revision})
        if options.get("local_files_only"):
            if not self.cached.exists():
                raise hub.errors.LocalEntryNotFoundError("not cached")
            return str(self.cached)
        self.cached.mkdir(exist_ok=True)
        for name in self.files:
            if any(fnmatch(name, pattern) for pattern in options["allow_patterns"]):
                (self.cached / name).write_text("x")
        return str(self.cached)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    return Hub(monkeypatch, tmp_path)


def answer(kind: str) -> Exception:
    """An error as the client raises it, without a server's answer behind it."""
    made = getattr(hub.errors, kind)
    error = made.__new__(made)
    Exception.__init__(error, kind)
    return error


def test_only_what_a_checkpoint_needs_is_fetched(fake: Hub) -> None:
    folder = hub_folder(REPO, progress=False)
    assert {one.name for one in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "model.safetensors",
    }


def test_pickled_weights_are_fetched_only_where_there_are_no_others(fake: Hub) -> None:
    fake.files.remove("model.safetensors")
    folder = hub_folder(REPO)
    assert (folder / "pytorch_model.bin").exists()


def test_what_is_cached_serves_without_the_network(fake: Hub) -> None:
    hub_folder(REPO)
    fake.error = ConnectionError("no route")
    assert hub_folder(REPO) == fake.cached
    assert hub_folder(REPO, offline=True) == fake.cached


class Answered(Exception):
    """An error of the hub's client with the server's answer behind it."""

    def __init__(self, status: int) -> None:
        self.response = httpx.Response(status, headers={"Retry-After": "7"})
        super().__init__(f"the server says {status}")


def stumble(fake: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[float]:
    """The hub fails so many times, then it answers; the pauses that are made."""
    failed: list[float] = []

    def sleep(seconds: float) -> None:
        failed.append(seconds)
        fake.error = error if len(failed) < times else None

    fake.error = error
    monkeypatch.setattr("time.sleep", sleep)
    return failed


@pytest.mark.parametrize(
    ("error", "pauses"),
    [(httpx.ReadError("broken"), [0.5, 1.0]), (httpx.ReadTimeout("slow"), [0.5, 1.0]), (Answered(503), [7.0, 7.0])],
)
def test_what_may_pass_is_tried_again_as_for_other_downloads(
    fake: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, pauses: list[float]
) -> None:
    made = stumble(fake, monkeypatch, error, 2)
    assert hub_folder(REPO, progress=False) == fake.cached
    assert made == pauses


@pytest.mark.parametrize(
    ("error", "tries"), [(httpx.ReadError("x"), 5), (httpx.ConnectError("x"), 1), (Answered(400), 1)]
)
def test_it_gives_up_at_last_and_at_once_where_no_other_try_would_help(
    fake: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int
) -> None:
    made = stumble(fake, monkeypatch, error, 100)
    with pytest.raises(WeightsError, match="Hugging Face cannot be reached"):
        hub_folder(REPO)
    assert len(made) == tries - 1


def test_what_is_cached_does_not_wait_for_another_try(fake: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_folder(REPO)
    made = stumble(fake, monkeypatch, Answered(503), 100)
    assert hub_folder(REPO) == fake.cached
    assert made == []


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_and_cache_it_says_what_works(fake: Hub, offline: bool) -> None:
    fake.error = ConnectionError("no route")
    why = "network access is off" if offline else r"cannot be reached \(ConnectionError: no route\)"
    with pytest.raises(
        WeightsError, match=rf"{REPO} is not completely downloaded, and .*{why}.*clip/demo.*local checkpoints"
    ):
        hub_folder(REPO, offline=offline)


@pytest.mark.parametrize(
    ("kind", "raised", "said"),
    [
        ("RepositoryNotFoundError", UnknownModel, "no such public repository"),
        ("RevisionNotFoundError", UnknownModel, "has no revision main2"),
        ("GatedRepoError", WeightsError, "gated repository.*hf auth login"),
    ],
)
def test_an_answer_of_the_hub_becomes_one_sentence(fake: Hub, kind: str, raised: type[Exception], said: str) -> None:
    fake.error = answer(kind)
    with pytest.raises(raised, match=f"{REPO}.*{said}"):
        hub_folder(REPO, revision="main2")


def test_a_full_disk_is_not_taken_for_a_missing_network(fake: Hub) -> None:
    fake.error = OSError(28, "No space left on device")
    with pytest.raises(WeightsError, match="No space left on device; set HF_HOME"):
        hub_folder(REPO)


def test_a_half_fetched_checkpoint_is_not_served(fake: Hub) -> None:
    hub_folder(REPO)
    (fake.cached / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks config.json or weights"):
        hub_folder(REPO, offline=True)


@pytest.mark.parametrize("name", ["a/b/c", "white space/x", "", "../up"])
def test_what_can_not_be_an_id_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModel, match="not a Hugging Face id"):
        hub_folder(name, offline=True)


class Endpoint(BaseHTTPRequestHandler):
    """The few answers of the hub that its client needs for a small repository."""

    protocol_version = "HTTP/1.1"
    commit = "a" * 40
    files: ClassVar = {name: name.encode() for name in [*WANTED, "pytorch_model.bin"]}

    def reply(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def do_GET(self) -> None:
        if not self.path.startswith((f"/api/models/{REPO}", f"/{REPO}")):
            self.reply(status=404, X_Error_Code="RepoNotFound")
        elif "/tree/" in self.path:
            rows = [{"type": "file", "path": n, "size": len(b), "oid": self.oid(b)} for n, b in self.files.items()]
            self.reply(json.dumps(rows).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.files]
            body = {"id": REPO, "sha": self.commit, "siblings": siblings, "tags": [], "private": False}
            self.reply(json.dumps(body).encode(), Content_Type="application/json")
        else:
            body = self.files[self.path.rpartition("/")[2]]
            self.reply(body, ETag=f'"{self.oid(body)}"', X_Repo_Commit=self.commit)

    do_HEAD = do_GET

    def oid(self, body: bytes) -> str:
        return hashlib.sha1(body).hexdigest()

    def log_message(self, *_: Any) -> None: ...


PROGRAM = f"""
from image_encoders.weights.hub import hub_folder
for repo, options in [("{REPO}", {{}}), ("{REPO}", {{"offline": True}}), ("some/other", {{}})]:
    try:
        print(sorted(one.name for one in hub_folder(repo, progress=False, **options).iterdir()))
    except Exception as error:
        print(type(error).__name__)
"""


def test_the_real_client_fetches_and_then_works_offline(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "IMAGE_ENCODERS_OFFLINE": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300, check=True
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.stdout.splitlines() == [str(sorted(WANTED)), str(sorted(WANTED)), "UnknownModel"]
    assert done.stderr == ""
