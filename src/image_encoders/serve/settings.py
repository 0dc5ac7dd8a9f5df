"""What can be set of the service: one field for each flag of `serve`, with what `--help` and docs/serving.md say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _setting(default: Any, help: str, *, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service listens, what it accepts, and what it does when too much comes."""

    host: str = _setting("127.0.0.1", "The address to listen on; one beyond this machine needs an API key.")
    port: int = _setting(8000, "The port to listen on; 0 takes a free one.")
    api_keys: tuple[str, ...] = _setting((), "A key that requests must bring; may be repeated.")
    no_auth: bool = _setting(False, "Listen beyond this machine without a key.")
    allowed_hosts: tuple[str, ...] = _setting((), "A name that this service is reached by, beside its address.")
    cors_origins: tuple[str, ...] = _setting((), "An origin whose pages may call this service.")
    show_paths: bool = _setting(False, "Show the paths of files to clients of other machines too.")
    urls: bool = _setting(False, "Fetch images from public web addresses that requests name.")
    json_logs: bool = _setting(False, "Write logs as JSON, one object a line.")

    max_items: int = _setting(2048, "Items of one request.")
    max_file_bytes: int = _setting(64 << 20, "Bytes of one image or sound.", unit="bytes")
    max_pixels: int = _setting(178_000_000, "Pixels of one image.", unit="px")
    max_text_bytes: int = _setting(64 << 10, "Bytes of one text.", unit="bytes")
    max_body_bytes: int = _setting(256 << 20, "Bytes of one request's body.", unit="bytes")
    max_buffered_bytes: int = _setting(1 << 30, "Bytes of all bodies that are held at a time.", unit="bytes")
    max_connections: int = _setting(1024, "Connections at a time.")
    max_waiting: int = _setting(256, "Items of one tower that may wait before requests are refused.")
    batch_size: int = _setting(32, "The most items that go through a net at once.")

    header_timeout: float = _setting(10.0, "How long a client may take to send its headers.", unit="s")
    body_timeout: float = _setting(
        30.0, "How long a client may pause while it sends its body, or reads its answer.", unit="s"
    )
    keep_alive: float = _setting(15.0, "How long an idle connection is kept.", unit="s")
    deadline: float = _setting(60.0, "How long a request may take, waiting included.", unit="s")
    canary_every: float = _setting(
        2.0, "How often each net is tried with an image of its own, while no other comes.", unit="s"
    )
    stuck_after: float = _setting(30.0, "A net that gives no answer for so long is replaced.", unit="s")
    idle_unload: float | None = _setting(None, "A net that was not used for so long gives its memory back.", unit="s")
    grace: float = _setting(20.0, "How long requests may take to end when the service is stopped.", unit="s")
