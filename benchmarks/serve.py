"""How many images a second a service embeds, how long its clients wait, and what it does when too many come.

    python benchmarks/serve.py [--seconds 20] [--clients 1 8 32] [--infinity .venv-peers/infinity/bin/infinity_emb]

In one run, on the same JPEG files of about 100 kB and CLIP ViT-B/32 with random weights: `image-encoders encode`, the
library with one image at a time, `image-encoders serve`, and a FastAPI handler around CLIPModel; each server in a
process of its own, sent images over connections that are kept, as JSON with base64 and as raw bytes. Then overload:
four times as many requests a second as were answered at most, whether or not they are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import models_at_hand
import numpy as np
from PIL import Image

import bulk

NAIVE = Path(__file__).parent / "peers" / "naive_server.py"
BYTES = 100_000  # of a JPEG file
FEW = 8  # images of the runs that show what starting costs
WARM_S = 3.0
OVERLOAD = 4.0  # times the capacity


@dataclass
class Run:
    """What came of some load.

    seconds: that it lasted
    answers: how many, by status
    times: of those with status 200 [s]
    refused: of the others [s]
    """

    seconds: float
    answers: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def note(self, status: int, seconds: float) -> None:
        self.answers[status] += 1
        (self.times if status == 200 else self.refused).append(seconds)

    @property
    def rate(self) -> float:
        """Embeddings a second."""
        return len(self.times) / self.seconds


def percentile(times: Sequence[float], share: float) -> float:
    return 1000 * float(np.quantile(times, share)) if len(times) else float("nan")


# ------------------------------------------------------------------ load


class Requests:
    """The requests to one server, whole, ready to be written."""

    def __init__(self, port: int, contents: Sequence[bytes], kind: str, model: str):
        self.port = port
        self._raw = [self._request(port, content, kind, model) for content in contents]
        self._next = count()

    def next(self) -> bytes:
        return self._raw[next(self._next) % len(self._raw)]

    @staticmethod
    def _request(port: int, content: bytes, kind: str, model: str) -> bytes:
        if kind == "raw bytes":
            path, media, body = "/v1/images", "image/jpeg", content
        else:
            url = "data:image/jpeg;base64," + base64.b64encode(content).decode()
            asked = {"model": model, "input": [url], **({"modality": "image"} if model else {})}
            path, media, body = "/v1/embeddings", "application/json", json.dumps(asked).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {media}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """The status of the answer to a request."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    if length is None:
        raise RuntimeError(f"an answer without a length: {head!r}")
    body = await reader.readexactly(int(length[1]))
    status = int(head.split(b" ", 2)[1])
    if status == 200 and b"embedding" not in body:
        raise RuntimeError(f"no embedding: {body[:200]!r}")
    return status


async def closed_loop(requests: Requests, clients: int, seconds: float) -> Run:
    """Clients each of which sends its next request when it has the answer to the last one."""
    run = Run(seconds)
    begins = time.perf_counter() + WARM_S
    ends = begins + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", requests.port, limit=1 << 24)
        while (began := time.perf_counter()) < ends:
            status = await exchange(reader, writer, requests.next())
            now = time.perf_counter()
            if begins <= now <= ends:
                run.note(status, now - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return run


async def open_loop(requests: Requests, rate: float, seconds: float) -> Run:
    """`rate` requests a second, each on a connection that is free or new, whatever becomes of those before."""
    run = Run(seconds)
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    begins = time.perf_counter() + 2 * WARM_S
    ends = begins + seconds

    async def one() -> None:
        began = time.perf_counter()
        try:
            pair = free.pop() if free else await asyncio.open_connection("127.0.0.1", requests.port, limit=1 << 24)
            status = await exchange(*pair, requests.next())
            free.append(pair)
        except (OSError, asyncio.IncompleteReadError):
            status = 0  # the connection was closed
        now = time.perf_counter()
        if begins <= now <= ends:
            run.note(status, now - began)

    tasks = set()
    started = time.perf_counter()
    for number in count():
        at = started + number / rate
        if at > ends:
            break
        await asyncio.sleep(max(at - time.perf_counter(), 0))
        task = asyncio.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for _, writer in free:
        writer.close()
    return run


# ------------------------------------------------------------------ servers


@contextmanager
def running(words: Sequence[str], port: int, path: str = "/docs") -> Iterator[int]:
    """A server in a process of its own, that answers; its process's number."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(list(words), stdout=said, stderr=said)
        try:
            ends = time.monotonic() + 300
            while not answers(port, path):
                if process.poll() is not None or time.monotonic() > ends:
                    said.seek(0)
                    raise bulk.Failed(bulk.last_words(said.read()) or "the server does not start")
                time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            return b" 200 " in connection.recv(100)
    except OSError:
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def family(pid: int) -> list[int]:
    """A process and those that it started."""
    pids = [pid]
    for name in os.listdir("/proc"):
        try:
            if int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                pids.append(int(name))
        except (OSError, ValueError):
            continue
    return pids


def memory(pid: int) -> float:
    """Of a process and those that it started [MB]."""
    said = [Path(f"/proc/{one}/status").read_text() for one in family(pid)]
    return sum(int(found[1]) / 1024 for text in said if (found := re.search(r"VmRSS:\s+(\d+)", text)))


def core_seconds(pid: int) -> float:
    """Processor time of a process and those that it started."""
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13] for one in family(pid)]
    return sum(int(user) + int(system) for user, system in fields) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------ the run


def draw(folder: Path, number: int) -> list[bytes]:
    """JPEG files of about 100 kB."""
    folder.mkdir()
    contents = []
    for one in range(number):
        image = Image.fromarray(models_at_hand.draw(0, one)).resize((800, 600), Image.Resampling.BICUBIC)
        for quality in range(98, 40, -4):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality)
            if file.tell() <= BYTES:
                break
        content = file.getvalue()
        (folder / f"{one:04}.jpg").write_bytes(content)
        contents.append(content)
    return contents


def library(model: Path, photos: Path) -> None:
    """Print the median milliseconds of an image by itself; in a process of its own."""
    import image_encoders

    encoder = image_encoders.load(f"clip/{model}")
    contents = [path.read_bytes() for path in sorted(photos.iterdir())]
    times = []
    for content in (contents * 100)[:100]:
        began = time.perf_counter()
        encoder.encode_image([content], batch_size=1)
        times.append(time.perf_counter() - began)
    print(json.dumps({"p50": percentile(times[40:], 0.5)}))


def by_hand(work: Path, model: Path, images: int, start_s: float) -> list[dict]:
    """What the bulk command and the library take.

    start_s: core-seconds that starting costs
    """
    encoded = bulk.encode(work / "photos", work / "index", f"clip/{model}", [], quiet=True)
    spent = 1000 * (encoded["cores"] - start_s) / (images - FEW)
    alone = bulk.measured([sys.executable, __file__, "--library", str(model), str(work / "photos")])["p50"]
    rows = [
        {"who": "image-encoders encode", "images/s": images / encoded["seconds"], "core ms/image": spent},
        {"who": "library, one image", "p50 ms": alone},
    ]
    for row in rows:
        tell(row)
    return rows


def measure(
    who: str, pid: int, port: int, model: str, contents: list[bytes], options: argparse.Namespace
) -> list[dict]:
    """Images a second and waiting times, for each way to send images and each number of clients."""
    table = []
    for kind in ("JSON base64", "raw bytes"):
        if kind == "raw bytes" and who == "infinity":
            continue  # it has no such endpoint
        requests = Requests(port, contents, kind, model)
        for clients in options.clients:
            before = core_seconds(pid)
            run = asyncio.run(closed_loop(requests, clients, options.seconds))
            spent = core_seconds(pid) - before
            row = {"who": who, "as": kind, "clients": clients, "images/s": run.rate}
            row |= {"p50 ms": percentile(run.times, 0.5), "p99 ms": percentile(run.times, 0.99)}
            row["core ms/image"] = 1000 * spent / max(run.rate * (run.seconds + WARM_S), 1)
            table.append(row)
            tell(row)
    return table


def overload(port: int, pid: int, contents: list[bytes], peak: float, seconds: float) -> dict:
    """What becomes of a service that is sent four times what it can do."""
    before = memory(pid)
    run = asyncio.run(open_loop(Requests(port, contents, "raw bytes", ""), OVERLOAD * peak, seconds))
    row = {
        "sent/s": OVERLOAD * peak,
        "images/s": run.rate,
        "of peak": run.rate / peak,
        "answers": dict(run.answers),
        "refused p50 ms": percentile(run.refused, 0.5),
        "refused p99 ms": percentile(run.refused, 0.99),
        "MB before": before,
        "MB after": memory(pid),
    }
    tell(row)
    return row


def tell(row: dict) -> None:
    print(
        ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        ),
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--turns", type=int, default=1, help="of the service and the bulk command, one after the other")
    parser.add_argument("--only", nargs="+", default=["serve", "naive", "infinity"])
    parser.add_argument("--infinity", type=Path, help="its command, where it is installed")
    parser.add_argument("--serve", default="", help="more options of `image-encoders serve`")
    parser.add_argument("--model", type=Path, help="a folder of CLIP; made if it is not given")
    parser.add_argument("--library", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        library(*options.library)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers end, too
    print(json.dumps(bulk.machine()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = options.model.resolve() if options.model else bulk.apart(bulk.random_clip, work / "model")
        table, extra = run_all(work, model, options)
    for row in (*table, *extra):
        print(json.dumps(row))


def run_all(work: Path, model: Path, options: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    contents = draw(work / "photos", options.images)
    tell({"bytes of a file, median": statistics.median(map(len, contents))})
    draw(work / "few", FEW)
    bulk.encode(work / "few", work / "index", f"clip/{model}", [], quiet=True)  # converts
    start = bulk.encode(work / "few", work / "index", f"clip/{model}", [], quiet=True)  # what starting costs
    extra = by_hand(work, model, options.images, start["cores"])
    table: list[dict] = []
    if "serve" in options.only:
        port = free_port()
        words = [sys.executable, "-m", "image_encoders", "serve", "--model", f"bench=clip/{model}", "--port", str(port)]
        with running([*words, *options.serve.split()], port, "/health/ready") as pid:
            for _ in range(options.turns):
                table += measure("image-encoders serve", pid, port, "bench", contents, options)
                extra += by_hand(work, model, options.images, start["cores"])
            peak = max(row["images/s"] for row in table if row["who"] == "image-encoders serve")
            extra.append(overload(port, pid, contents, peak, options.seconds))
    if "naive" in options.only:
        port = free_port()
        with running([sys.executable, str(NAIVE), str(model), str(port)], port) as pid:
            table += measure("FastAPI around CLIPModel", pid, port, "", contents, options)
    if "infinity" in options.only and options.infinity:
        port = free_port()
        words = [str(options.infinity), "v2", "--model-id", str(model), "--port", str(port), "--device", "cpu"]
        with running(
            [*words, "--host", "127.0.0.1", "--url-prefix", "/v1", "--served-model-name", "m"], port, "/health"
        ) as pid:
            table += measure("infinity", pid, port, "m", contents, options)
    return table, extra


if __name__ == "__main__":
    main()
