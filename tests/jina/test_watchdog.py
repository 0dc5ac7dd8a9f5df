"""Every process of a Flow ends with the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import jina
from image_encoders.integrations.jina import DocList, Document, flow, watchdog

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")

STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
PROGRAM = f"""
import os, signal, subprocess, sys, time
held, patience = int(sys.argv[1]), sys.argv[2]

def child(setup):
    program = f"import signal, time; {{setup}}; print(flush=True); time.sleep(600)"
    started = subprocess.Popen([sys.executable, "-c", program], pass_fds=[held], stdout=subprocess.PIPE)
    started.stdout.readline()
    return started

children = [child("pass"), child("{STUBBORN}")]
me = os.pidfd_open(os.getpid())
command = [sys.executable, "-I", "-S", {watchdog.__file__!r}, str(me), patience]
watching = subprocess.Popen(command, pass_fds=[me], stdin=subprocess.PIPE, text=True, start_new_session=True)
watching.stdin.write("".join(f"{{one.pid}}\\n" for one in children))
watching.stdin.flush()
print("started", flush=True)
time.sleep(600)
"""
ENDS_S = 60


class Family:
    """A parent with two children, one of which ignores SIGTERM, and their watchdog."""

    def __init__(self, patience: float):
        self.end, held = os.pipe()  # its other end is held by parent and children as long as they live
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(held), str(patience)],
            pass_fds=[held], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(held)
        assert self.parent.stdout is not None
        assert self.parent.stdout.readline() == "started\n"

    def all_end(self) -> bool:
        return bool(select.select([self.end], [], [], ENDS_S)[0]) and os.read(self.end, 1) == b""

    def close(self) -> None:
        self.parent.kill()
        self.parent.communicate()
        os.close(self.end)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent_however_it_ends(stop: signal.Signals) -> None:
    family = Family(patience=0.3)
    try:
        family.parent.send_signal(stop)
        family.parent.wait(ENDS_S)
        assert family.all_end()
    finally:
        family.close()


def test_a_process_that_does_not_end_when_its_flow_closes_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "PATIENCE_S", 0.3)
    pods = [Pod("pass"), Pod(STUBBORN)]
    flow._end(pods)
    assert [pod.worker.exitcode for pod in pods] == [-signal.SIGTERM, -signal.SIGKILL]
    assert all(pod.is_shutdown.is_set() for pod in pods)


def wait_long(setup: str, ready: Any) -> None:
    exec(setup, {"signal": signal})
    ready.set()
    time.sleep(600)


class Pod:
    """What Jina has for each process of a Flow."""

    def __init__(self, setup: str):
        spawn = multiprocessing.get_context("spawn")
        ready, self.is_shutdown = spawn.Event(), spawn.Event()
        self.worker = spawn.Process(target=wait_long, args=(setup, ready))
        self.worker.start()
        assert ready.wait(ENDS_S)


FLOW = """
import os, sys, time
from image_encoders.integrations.jina import Flow

if __name__ == "__main__":
    flow = Flow().add(uses="CLIPImageEncoder", uses_with={"pretrained_model_name_or_path": sys.argv[1]}, replicas=2)
    with flow:
        print("started", flush=True)
        time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nothing_of_a_flow_outlives_a_parent_that_is_killed(method: str, demo: str, tmp_path: Path) -> None:
    program = tmp_path / "flow.py"
    program.write_text(FLOW)
    running = subprocess.Popen(
        [sys.executable, str(program), demo],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JINA_MP_START_METHOD": method},
    )
    try:
        assert running.stdout is not None
        assert any(line == "started\n" for line in running.stdout)
        family = descendants(running.pid)
        assert len(family) >= 4  # two copies, the gateway and the watchdog
        ended = [os.pidfd_open(process) for process in family]
        running.kill()
        deadline = time.monotonic() + ENDS_S
        for process in ended:
            assert select.select([process], [], [], max(deadline - time.monotonic(), 0))[0]
            os.close(process)
    finally:
        running.kill()
        running.communicate()


@pytest.mark.slow
def test_a_flow_ends_after_a_request_that_its_gateway_could_not_read(
    demo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gateway then turns in circles when it is to end; Jina itself would wait for ever."""
    monkeypatch.setattr(flow, "PATIENCE_S", 3)
    with flow.Flow().add(uses="CLIPImageEncoder", uses_with={"pretrained_model_name_or_path": demo}) as started:
        client = jina.Client(host="127.0.0.1", port=started.port)
        with pytest.raises(jina.excepts.BadServerFlow, match="NaN"):
            client.post("/", DocList[Document]([Document(text="a")]), parameters={"batch_size": float("nan")})
        workers = [pod.worker for node in started._deployment_nodes.values() for pod in flow._pods(node)]
        assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)


def descendants(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found
