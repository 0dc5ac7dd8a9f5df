"""`image-encoders flow`: started, used, and stopped as a person would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import jina
from image_encoders.cli import app
from image_encoders.integrations.jina import DocList, Document

# as people run it: without what these tests set for Flows of their own process
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "JINA_MP_START_METHOD"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "image_encoders", "flow", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_flow_says_where_it_listens_and_stops_cleanly(
    stop: signal.Signals, demo: str, own_executor: Path, images: list[np.ndarray]
) -> None:
    path = own_executor.with_name(f"flow-{stop.name}.yml")
    path.write_text(
        "jtype: Flow\npods:\n  - name: my-encoder\n    uses: jinahub://CLIPImageEncoder\n"
        f"    uses_with: {{pretrained_model_name_or_path: {demo}}}\n  - name: own\n    uses: {own_executor.name}\n"
    )
    words = [sys.executable, "-m", "image_encoders", "flow", str(path)]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    guard = threading.Timer(300, running.kill)
    guard.start()
    try:
        assert running.stderr is not None
        said = next(line for line in running.stderr if line.startswith("listening"))
        port = re.search(r"grpc://127\.0\.0\.1:(\d+); Ctrl-C", said)
        assert port, said
        client = jina.Client(host="127.0.0.1", port=int(port[1]))
        (doc,) = client.post("/x", DocList[Document]([Document(blob=images[0])]), return_type=DocList[Document])
        assert doc.embedding.shape == (128,)
        assert doc.tags == {"indexed": True}
        running.send_signal(stop)
        rest = running.stderr.read()
        assert running.wait(120) == 0
        assert rest.strip().endswith("stopped")
        assert "Traceback" not in rest
    finally:
        guard.cancel()
        running.kill()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such Flow file"),
        ("pods: [\n", "not YAML"),
        ("- a\n", "mapping"),
        ("pods:\n  - uses: jinahub://Nothing\n", "known: AudioCLIPEncoder"),
        ("pods: []\nexecutors: []\n", "both pods: and executors:"),
    ],
)
def test_a_flow_that_cannot_be_is_one_sentence(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "flow.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        app(["flow", str(path)], prog_name="image-encoders")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error.replace("\n", " ")


def test_a_flow_whose_executor_is_not_there_is_one_sentence_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "flow.yml"
    path.write_text("executors:\n  - uses: nowhere.yml\n")
    ran = run(path)
    assert ran.returncode == 2, ran.stderr
    ours = ran.stderr[ran.stderr.rindex("error: ") :]  # Jina's log comes before it
    assert "cannot start" in ours.replace("\n", " ")
    assert "Traceback" not in ours


@pytest.mark.slow
def test_a_flow_that_cannot_start_says_why(tmp_path: Path) -> None:
    path = tmp_path / "flow.yml"
    path.write_text(
        "jtype: Flow\nexecutors:\n  - uses: CLIPImageEncoder\n"
        "    uses_with: {pretrained_model_name_or_path: /nowhere/at/all}\n"
    )
    ran = run(path)
    assert ran.returncode == 2
    assert "CLIPImageEncoder cannot start: /nowhere/at/all: no such folder" in ran.stderr
    assert "error: " in ran.stderr.strip().splitlines()[-1]
