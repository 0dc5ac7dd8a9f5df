"""The service's metrics, for Prometheus and for its page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from image_encoders.batching import Embedded
from image_encoders.errors import InputError
from image_encoders.serve.served_model import ServedModel

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
MINUTE = 60.0


class Metrics:
    """Counters of one service; each has its own, so that two may live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry, "namespace": "image_encoders"}
        ProcessCollector(registry=self.registry)
        self._requests = Counter("requests", "Requests answered.", ("route", "method", "status"), **made)
        self._request_seconds = Histogram(
            "request_seconds",
            "Seconds from a request's headers to the end of its response.",
            ("route",),
            buckets=SECONDS,
            **made,
        )
        self._items = Counter("items", "Items, by outcome.", ("model", "modality", "outcome"), **made)
        self._stages = Histogram(
            "stage_seconds",
            "Seconds per item: waiting, preparing, and embedding its batch.",
            ("model", "stage"),
            buckets=SECONDS,
            **made,
        )
        self._batches = Histogram(
            "batch_items", "Size of the batch that an item was embedded in.", ("model",), buckets=SIZES, **made
        )
        self._answered: deque[tuple[float, float]] = deque()  # when, and how long it took
        self._images: deque[tuple[float]] = deque()  # when they were embedded

    def watch(self, models: Sequence[ServedModel]) -> None:
        """Show the state of these models' towers, too."""
        self.registry.register(_Towers(models))  # type: ignore[arg-type]

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if route.startswith(("/v1/", "/v2/", "/search")):
            self._answered.append((time.monotonic(), seconds))
            _forget(self._answered)

    def refused(self, status: int) -> None:
        """Count a request that was refused before it could be read."""
        self._requests.labels("none", "OTHER", str(status)).inc()

    def embedded(self, model: str, modality: str, outcome: Embedded | InputError) -> None:
        """Count an item."""
        said = outcome.code if isinstance(outcome, InputError) else "embedded"
        self._items.labels(model, modality, said).inc()
        if isinstance(outcome, Embedded):
            for stage, seconds in (
                ("queue", outcome.wait_s),
                ("prepare", outcome.prepare_s),
                ("embed", outcome.embed_s),
            ):
                self._stages.labels(model, stage).observe(seconds)
            self._batches.labels(model).observe(outcome.batch)
            if modality == "image":
                self._images.append((time.monotonic(),))
                _forget(self._images)

    def last_minute(self) -> dict[str, float | None]:
        """Requests and images a second, and the median and the 99th percentile of how long requests took [ms]."""
        _forget(self._answered)
        _forget(self._images)
        times = sorted(seconds for _, seconds in self._answered)

        def percentile(share: float) -> float | None:
            return 1000 * times[min(int(share * len(times)), len(times) - 1)] if times else None

        return {
            "requests_per_second": len(times) / MINUTE,
            "images_per_second": len(self._images) / MINUTE,
            "p50_ms": percentile(0.5),
            "p99_ms": percentile(0.99),
        }

    def text(self) -> bytes:
        """All metrics, in Prometheus's format."""
        return generate_latest(self.registry)


def _forget(seen: deque[Any]) -> None:
    """What is older than a minute."""
    while seen and seen[0][0] < time.monotonic() - MINUTE:
        seen.popleft()


class _Towers:
    """The state of towers, read on demand."""

    def __init__(self, models: Sequence[ServedModel]):
        self._models = models

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        labels = ("model", "modality")
        waiting = GaugeMetricFamily(
            "image_encoders_waiting",
            "Waiting items: in the service, for preparation, for the net.",
            labels=(*labels, "queue"),
        )
        inside = GaugeMetricFamily("image_encoders_in_service", "Items without a result yet.", labels=labels)
        ready = GaugeMetricFamily("image_encoders_ready", "Whether a canary succeeded recently.", labels=labels)
        running = GaugeMetricFamily("image_encoders_worker_up", "Whether the worker is running.", labels=labels)
        restarts = GaugeMetricFamily("image_encoders_worker_restarts", "Workers restarted so far.", labels=labels)
        for model in self._models:
            for modality, tower in model.towers.items():
                of = (model.name, modality)
                ready.add_metric(of, float(tower.ready))
                running.add_metric(of, float(tower.pid is not None))
                restarts.add_metric(of, tower.restarts)
                inside.add_metric(of, tower.waiting)
                for queue, count in tower.queues.items():
                    waiting.add_metric((*of, queue), count)
        yield from (waiting, inside, ready, running, restarts)


class Measured:
    """ASGI middleware that counts requests by the route that answered them."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # whose client left

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")  # never what a client made up
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            self._metrics.answered(route, method, status, time.monotonic() - began)


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
