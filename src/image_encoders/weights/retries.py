"""Which failed downloads of weights are retried, and when: the same for URLs and the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 5  # in a row that bring nothing new
BACKOFF_S = 0.5  # before the second attempt; doubled before each further one
LONGEST_PAUSE_S = 60.0  # that a server may ask for
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class Again(Exception):
    """This attempt failed, but another one may succeed.

    pause: the server's Retry-After [s]
    """

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures in a row."""
        return min(max(self.pause, BACKOFF_S * 2 ** (failures - 1)), LONGEST_PAUSE_S)


def check(response: httpx.Response) -> None:
    """Raise Again for a response that may be temporary."""
    if response.status_code in TRANSIENT:
        asked = response.headers.get("Retry-After") or ""
        pause = float(asked) if asked.isdecimal() and len(asked) <= 18 else 0.0  # it may give a date
        raise Again(f"the server answers {response.status_code}", pause)


def as_again(error: BaseException, answered: bool) -> Again | None:
    """An error as Again; None if another attempt would fail as well.

    answered: whether the server has responded before; one that cannot be reached at all is not retried
    """
    import httpx

    if isinstance(error, Again):
        return error
    if isinstance(response := getattr(error, "response", None), httpx.Response):
        try:
            check(response)
        except Again as again:
            return again
    if isinstance(error, httpx.TransportError):
        unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) and not answered
        return None if unreachable else Again(f"{type(error).__name__}: {error}")
    return None
