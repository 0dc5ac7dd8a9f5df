"""What can be set of the service: one field for each flag of `serve`, with what `--help` and docs/serving.md say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _setting(default: Any, help: str, *, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service listens, what it accepts, and when it refuses requests."""

    host: str = _setting("127.0.0.1", "The address to listen on; other machines need an API key.")
    port: int = _setting(8000, "The port to listen on; 0 takes a free one.")
    api_keys: tuple[str, ...] = _setting((), "An API key that requests must send; may be repeated.")
    no_auth: bool = _setting(False, "Accept requests from other machines without an API key.")
    allowed_hosts: tuple[str, ...] = _setting(
        (), "A host name that clients may use for this service, besides its address."
    )
    cors_origins: tuple[str, ...] = _setting((), "A web origin whose pages may call this service.")
    show_paths: bool = _setting(False, "Show file paths to clients on other machines, too.")
    urls: bool = _setting(False, "Fetch images from public URLs that requests contain.")
    json_logs: bool = _setting(False, "Write logs as JSON, one object per line.")

    max_items: int = _setting(2048, "Maximum items per request.")
    max_file_bytes: int = _setting(64 << 20, "Maximum bytes per image or sound.", unit="bytes")
    max_pixels: int = _setting(178_000_000, "Maximum pixels per image.", unit="px")
    max_text_bytes: int = _setting(64 << 10, "Maximum bytes per text.", unit="bytes")
    max_body_bytes: int = _setting(256 << 20, "Maximum bytes per request body.", unit="bytes")
    max_buffered_bytes: int = _setting(1 << 30, "Maximum bytes of request bodies held in memory at once.", unit="bytes")
    max_connections: int = _setting(1024, "Maximum simultaneous connections.")
    max_waiting: int = _setting(256, "Items that may wait for a tower before requests are refused.")
    batch_size: int = _setting(32, "Maximum items per batch.")

    header_timeout: float = _setting(10.0, "How long a client may take to send its headers.", unit="s")
    body_timeout: float = _setting(
        30.0, "How long a client may pause while sending its body or reading the response.", unit="s"
    )
    keep_alive: float = _setting(15.0, "How long an idle connection is kept open.", unit="s")
    deadline: float = _setting(60.0, "How long a request may take, including its time in the queue.", unit="s")
    canary_every: float = _setting(2.0, "How often an idle net is checked with a canary image.", unit="s")
    stuck_after: float = _setting(30.0, "Replace a net that has not answered for this long.", unit="s")
    idle_unload: float | None = _setting(None, "Unload a net that has not been used for this long.", unit="s")
    grace: float = _setting(20.0, "How long requests may take to finish when the service is stopped.", unit="s")
