"""A request to an Executor: its parameters, its futures, and what its client may see when it fails."""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Optional

from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.integrations.jina.documents import Document, traversal
from image_encoders.legacy_names import ALIASES

log = logging.getLogger(__name__)

PARAMETERS = ("traversal_paths", "batch_size", "strip")


@dataclass
class Call:
    """A request on its way, in a `with` block: what it still waits for when that ends, as its client went, is dropped.

    documents: those that the paths lead to
    remote, fetched: those at other machines' addresses, and what comes from there
    embedding: what waits to be embedded just now
    """

    documents: list[Document]
    remote: list[Document]
    fetched: list["Future[bytes]"]
    batch_size: Optional[int]
    strip: bool
    embedding: Sequence["Future[Any]"] = ()
    left: bool = False

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *exception: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Wait for nothing more."""
        self.left = True
        for future in (*self.fetched, *self.embedding):
            future.cancel()  # which does nothing to those that are done


def read_parameters(
    given: Optional[Mapping[str, Any]], defaults: tuple[list[str], Optional[int]]
) -> tuple[list[str], Optional[int], bool]:
    """Paths, batch size and whether to strip, from a request's parameters; InputError for what is wrong with them."""
    (paths, batch_size), strip = defaults, False
    for name, value in (given or {}).items():
        meant = ALIASES.get(name, name).removeprefix("default_")
        if meant == "traversal_paths":
            paths = paths if value is None else traversal(value)
        elif meant == "batch_size":
            batch_size = read_batch_size(value)
        elif meant == "strip":
            if not isinstance(value, bool):
                raise InputError(f"strip {value!r}; true and false are accepted", code="option")
            strip = value
        elif not isinstance(value, Mapping):  # Jina's way to address one Executor, and results of those before
            raise InputError(
                f"unknown parameter {name!r}; accepted: {', '.join(PARAMETERS)}. Parameters for another Executor "
                f"go under its name: {{'its_name': {{{name!r}: ...}}}}",
                code="option",
            )
    return paths, batch_size, strip


def read_batch_size(value: Any) -> Optional[int]:
    """A whole number of at least 1, which arrives as a float; None: all at once."""
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or value < 1:
        raise InputError(
            f"batch_size {value!r}; a whole number of at least 1 is accepted, or None for all", code="option"
        )
    return int(value)


def reason(error: Exception) -> InputError:
    """What a client may know: our own reasons as they are; others are for the log, as they may name paths."""
    if isinstance(error, InputError) and error.code not in ("unexpected", "out-of-memory"):
        return error
    log.error("a document could not be encoded", exc_info=error)
    code = error.code if isinstance(error, InputError) else "unexpected"
    return InputError(f"the model fails on it: {type(error.__cause__ or error).__name__}", code=code)


def without_traceback(error: Exception) -> Exception:
    """What a client may know of a request that failed: Jina sends the traceback too, with the paths of this machine."""
    if isinstance(error, ImageEncodersError):
        said, kind = str(error), type(error).__name__
    else:
        log.error("a request failed", exc_info=error)
        said, kind = f"the request failed: {type(error).__name__}", "RequestError"
    reported = type(kind, (ImageEncodersError,), {"__traceback__": property(lambda _: None)})
    return reported(said)
