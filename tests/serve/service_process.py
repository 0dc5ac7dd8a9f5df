"""A service in a process of its own, as `image-encoders serve` starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

LISTENING = re.compile(r"listening on (http://\S+?);?(?:\s|$)")


@dataclass
class Server:
    """A service that listens.

    url: such as "http://127.0.0.1:41234"
    said: the lines that it wrote so far
    """

    process: subprocess.Popen[str]
    url: str = ""
    said: list[str] = field(default_factory=list)

    def client(self, **options: object) -> httpx.Client:
        """A client with this service's address; no proxy that the environment names."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=300, **options)  # type: ignore[arg-type]

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> list[int]:
        """The processes that it started and that still run."""
        found = []
        for name in os.listdir("/proc"):
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if int(parent) == self.pid and state != "Z":
                found.append(int(name))
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as an operator does; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(120)


@contextmanager
def serving(*arguments: str, models: tuple[str, ...] = ("clip/demo",), **environment: str) -> Iterator[Server]:
    """A service with these arguments, on a free port; in float32 unless they say otherwise."""
    words = [sys.executable, "-m", "image_encoders", "serve", "--port", "0"]
    words += [word for name in models for word in ("--model", name)]
    words += [*([] if "--precision" in arguments else ["--precision", "float32"]), *arguments]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    server = Server(process)
    listens = threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                server.said.append(line.rstrip("\n"))
                found = LISTENING.search(line)
                if found:
                    server.url = found[1]
                    listens.set()
        listens.set()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        assert listens.wait(300), f"not listening after five minutes: {server.said}"
        assert server.url, f"it ended: {server.said}"
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        thread.join(10)
