"""The HTTP server: starts, reports its address, and stops cleanly."""

from __future__ import annotations

import asyncio
import errno
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from image_encoders.serve.app import create_app
from image_encoders.serve.connections import limited
from image_encoders.serve.guards import Guards, check_exposure
from image_encoders.serve.metrics import Measured
from image_encoders.serve.service import Service


def serve(service: Service, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; raises ImageEncodersError where a model cannot be loaded, OSError for an address.

    started: called with the address, such as "http://127.0.0.1:8000", when all is ready
    """
    asyncio.run(_serve(service, started))


async def _serve(service: Service, started: Callable[[str], None]) -> None:
    settings = service.settings
    check_exposure(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        message = f"port {settings.port} of {settings.host} is in use by another program; choose another with --port"
        raise OSError(error.errno, f"{message}, and --port 0 takes a free one") from None
    with listening:
        # Its connections inherit this; asyncio sets it only where a socket names its protocol. Without it an answer's
        # body waits until the client has acknowledged its head, 40 ms later.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        host, port = listening.getsockname()[:2]
        await service.start()
        try:
            config = uvicorn.Config(
                Measured(Guards(create_app(service), settings), service.metrics),  # type: ignore[arg-type]
                http=limited(settings, service.metrics.refused),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.grace),
            )
            server = _Server(config, lambda: started(f"http://{f'[{host}]' if ':' in host else host}:{port}"))
            await server.serve(sockets=[listening])
        finally:
            await service.close()


class _Server(uvicorn.Server):
    """Says when it listens, and ends by returning, not by raising the signal again that ended it."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]):
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        signals = [one for one in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(one) != signal.SIG_IGN]
        before = {one: signal.signal(one, self._end) for one in signals}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.handle_exit(number, frame)
