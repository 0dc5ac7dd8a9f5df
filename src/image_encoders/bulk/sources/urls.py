"""Images at URLs in a list or a table: fetched ahead, with the protection of `inputs.urls`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import tenacity

from image_encoders.bulk.sources.contents import Content
from image_encoders.bulk.sources.items import RemoteImage, nothing_known, state_with
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits
from image_encoders.inputs.urls import TemporaryError, UrlLimits, fetch_url
from image_encoders.records import Locator
from image_encoders.tables import id_of

ATTEMPTS = 4  # of each URL, within
PATIENCE_S = 40.0  # after which none is begun
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0  # between two of them, doubling, with as much chance added
POLITE_S = 30.0  # the longest that a server may ask to wait


def is_url(name: str) -> bool:
    """Whether a name in a list is an address of the web."""
    return name[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class UrlEntry:
    """An address that a list or a table names.

    name: the URL
    private: whether addresses that are not public may be reached
    """

    name: str
    metadata: Mapping[str, Any] | None = None
    private: bool = False
    path: None = None
    polite = True

    @property
    def host(self) -> str:
        try:
            return urlsplit(self.name).netloc.lower()
        except ValueError:
            return ""

    def item(self, known: Callable[[str, str], bool] = nothing_known) -> RemoteImage:
        """What the server holds now, fetched unless it is known; takes its time."""
        id = id_of(self.name)
        limits = ImageLimits.from_environment()
        locator = Locator(self.name)
        try:
            content, state = fetch_patiently(
                self.name, limits, self.private, lambda state: known(id, state_with(state, self.metadata))
            )
        except InputError as error:
            return RemoteImage(id, locator, "", self.metadata, self._again, error=error)
        held = None if content is None else Content(content)
        return RemoteImage(id, locator, state_with(state, self.metadata), self.metadata, self._again, held)

    def _again(self, limits: ImageLimits) -> bytes:
        return read_patiently(self.name, limits, self.private)


def read_patiently(url: str, limits: ImageLimits, private: bool) -> bytes:
    """The content of a URL, with retries; InputError in the end."""
    content, _ = fetch_patiently(url, limits, private, lambda state: False)
    assert content is not None
    return content


def fetch_patiently(
    url: str, limits: ImageLimits, private: bool, known: Callable[[str], bool]
) -> tuple[bytes | None, str]:
    """`fetch_url` with retries; InputError in the end."""
    allowed = UrlLimits(max_bytes=limits.max_bytes, private=private)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TemporaryError),
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(PATIENCE_S),
        wait=_wait,
        reraise=True,
    )
    return retrying(fetch_url, url, allowed, known)


def _wait(call: tenacity.RetryCallState) -> float:
    """Exponential backoff with jitter, or the server's Retry-After."""
    backoff = tenacity.wait_exponential(FIRST_WAIT_S, LONGEST_WAIT_S) + tenacity.wait_random(0, FIRST_WAIT_S)
    error = call.outcome.exception() if call.outcome is not None else None
    asked = error.after_s if isinstance(error, TemporaryError) else 0.0
    return max(backoff(call), min(asked, POLITE_S))
