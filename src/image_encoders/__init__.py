"""Turn images, texts and sounds into embeddings.

    import image_encoders as ie
    encoder = ie.load("clip/demo")
    images = encoder.encode_image(["a.jpg", "b.png"])
    words = encoder.encode_text(["a red circle"])

Importing this is cheap: nets and their libraries are loaded when `load` needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_encoders.bulk.run import run
    from image_encoders.collection import Collection, open_collection
    from image_encoders.encoder import Encoder, Tower
    from image_encoders.errors import (
        CollectionError,
        DeviceError,
        ImageEncodersError,
        InputError,
        MissingExtra,
        Overloaded,
        TooManyFailures,
        UnknownModel,
        WeightsError,
    )
    from image_encoders.inputs.audio import read_audio
    from image_encoders.inputs.image import read_image
    from image_encoders.models import load, names
    from image_encoders.records import Locator

__version__ = "0.1.0"

_HOMES = {
    name: module
    for module, names in {
        "bulk.run": "run",
        "collection": "Collection open_collection",
        "encoder": "Encoder Tower",
        "errors": "CollectionError DeviceError ImageEncodersError InputError MissingExtra Overloaded "
        "TooManyFailures UnknownModel WeightsError",
        "inputs.audio": "read_audio",
        "inputs.image": "read_image",
        "models": "load names",
        "records": "Locator",
    }.items()
    for name in names.split()
}

__all__ = [
    "Collection",
    "CollectionError",
    "DeviceError",
    "Encoder",
    "ImageEncodersError",
    "InputError",
    "Locator",
    "MissingExtra",
    "Overloaded",
    "TooManyFailures",
    "Tower",
    "UnknownModel",
    "WeightsError",
    "load",
    "names",
    "open_collection",
    "read_audio",
    "read_image",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
