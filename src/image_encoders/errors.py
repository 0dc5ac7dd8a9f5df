"""The errors this package raises, as a tree.

ImageEncodersError
├── UnknownModel      no such model: the name given, the closest names, how to list them
├── WeightsError      a checkpoint: its path, what was found, what was expected, what to do
├── InputError        one item: which, what was found, what is accepted
├── DeviceError       a device, engine or precision that is not available here
├── TooManyFailures   a run that was aborted: after how many failures, the last of them
├── CollectionError   a collection that is missing, damaged, or of another embedding space
├── Overloaded        a limit, how many are waiting, when to retry
└── MissingExtra      a package that is not installed, and the command that installs it
"""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's type if there is none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class ImageEncodersError(Exception):
    """The root: catch it to catch everything this package raises on purpose."""


class UnknownModel(ImageEncodersError):
    """A model name that does not exist."""


class WeightsError(ImageEncodersError):
    """A checkpoint that cannot be found, fetched, read or assigned."""


class InputError(ImageEncodersError):
    """One item that cannot be encoded.

    message: what was found, what is accepted
    item: which item, a path or a position such as "images[3]"; None if unknown so far
    code: a short stable word for scripts and ledgers, such as "truncated" or "too-many-pixels"
    """

    def __init__(self, message: str, *, item: str | None = None, code: str = "invalid"):
        super().__init__(message if item is None else f"{item}: {message}")
        self.message = message
        self.item = item
        self.code = code

    def named(self, item: str) -> InputError:
        """The same error with its item's name, unless it has one already."""
        if self.item is not None:
            return self
        return type(self)(self.message, item=item, code=self.code).with_traceback(self.__traceback__)

    def __reduce__(self):
        return _rebuild_input_error, (type(self), self.message, self.item, self.code)


def _rebuild_input_error(cls: type[InputError], message: str, item: str | None, code: str) -> InputError:
    return cls(message, item=item, code=code)


class DeviceError(ImageEncodersError):
    """A device, engine or precision that this machine or build does not have."""


class TooManyFailures(ImageEncodersError):
    """A run in which more items failed than were allowed to."""


class CollectionError(ImageEncodersError):
    """A collection that cannot be opened, written or searched."""


class Overloaded(ImageEncodersError):
    """More work is waiting than the limit allows.

    limit, waiting: how many inputs may wait, and how many do
    retry_s: the estimated time until those are done, in seconds
    """

    def __init__(self, *, limit: int, waiting: int, retry_s: float):
        super().__init__(
            f"{waiting} inputs are waiting, of at most {limit}; retry in about {max(retry_s, 0.1):.1f} seconds"
        )
        self.limit, self.waiting, self.retry_s = limit, waiting, retry_s

    def __reduce__(self):
        return _rebuild_overloaded, (self.limit, self.waiting, self.retry_s)


def _rebuild_overloaded(limit: int, waiting: int, retry_s: float) -> Overloaded:
    return Overloaded(limit=limit, waiting=waiting, retry_s=retry_s)


class MissingExtra(ImageEncodersError):
    """An optional package is required but not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(f"{purpose} needs {package}: pip install 'image-encoders[{extra}]'")
        self.package, self.extra, self.purpose = package, extra, purpose

    def __reduce__(self):
        return MissingExtra, (self.package, self.extra, self.purpose)
