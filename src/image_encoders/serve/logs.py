"""The service's log: lines of text or of JSON, each with its request's id.

It never contains request data: no images, texts, queries or keys. Of exceptions that are not ours it has the type and
the stack frames, since their messages may quote request data.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, TextIO

from image_encoders.errors import ImageEncodersError

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being answered


def configure(*, as_json: bool, stream: TextIO | None = None) -> None:
    """Have this process write its log to `stream`, or standard error, and only there."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if as_json else _Text())
    handler.addFilter(_with_request_id)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("image_encoders").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.args != (0,))  # it cancels 0 running tasks


def _with_request_id(record: logging.LogRecord) -> bool:
    if not hasattr(record, "request_id"):
        record.request_id = request_id.get()
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")


class _Text(logging.Formatter):
    """`TIME LEVEL [REQUEST] MESSAGE NAME=VALUE ...`, and an exception's frames on lines below it."""

    def format(self, record: logging.LogRecord) -> str:
        said = [_time(record), f"{record.levelname:7}"]
        if record.request_id:  # type: ignore[attr-defined]
            said.append(f"[{record.request_id}]")  # type: ignore[attr-defined]
        said.append(_one_line(record.getMessage()))
        said += [f"{name}={_one_line(str(value))}" for name, value in _fields(record).items()]
        line = " ".join(said)
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "\n".join(f"    {part}" for part in described(record.exc_info[1]))
        return line


class _Json(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if record.request_id:  # type: ignore[attr-defined]
            found["request_id"] = record.request_id  # type: ignore[attr-defined]
        found["message"] = record.getMessage()
        found.update(_fields(record))
        if record.exc_info and record.exc_info[1] is not None:
            found["exception"] = described(record.exc_info[1])
        return json.dumps(found, default=str)


def described(error: BaseException) -> list[str]:
    """An exception and what caused it: of each its type, the frames it came through, and our own errors' messages."""
    lines: list[str] = []
    one: BaseException | None = error
    while one is not None:
        message = f": {one}" if isinstance(one, (ImageEncodersError, OSError)) else ""
        lines.append(_one_line(f"{type(one).__module__}.{type(one).__qualname__}{message}"))
        lines += [
            f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
            for frame in traceback.extract_tb(one.__traceback__)
        ]
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return lines


def _one_line(text: str) -> str:
    """The text with whatever could begin a line or command a terminal written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
