"""Items that a client sends for embedding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One thing to embed, as received.

    modality: "image", "text" or "audio"
    content: of a text, the text; of an image or a sound, the bytes of its file
    url: where the bytes have yet to be fetched from; content is then empty
    """

    modality: str
    content: bytes | str = b""
    url: str | None = None
