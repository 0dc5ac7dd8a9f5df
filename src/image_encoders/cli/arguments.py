"""Options that several commands take, and the encoder that they describe."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.errors import CollectionError

if TYPE_CHECKING:
    from image_encoders.collection import Collection
    from image_encoders.encoder import Encoder

Weights = Annotated[
    str | None, typer.Option(metavar="PATH", help="The model's original checkpoint, a file or a folder.")
]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION",
        help="auto: the fastest that keeps the rows here; float32, bfloat16, float16, or int8.  [default: auto]",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(metavar="ENGINE", help="What runs the nets: auto, torch, torch-compile or openvino.  [default: auto]"),
]
Calibration = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For --precision int8: pictures like those to be encoded, 300 at best."),
]
Options = Annotated[
    list[str] | None,
    typer.Option("-O", "--option", metavar="KEY=VALUE", help="An option of the model's own; may be repeated."),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network: models come from the cache, a folder or the package.")
]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON value on standard output, all else elsewhere.")]


def parsed(options: list[str] | None) -> dict[str, Any]:
    """What the -O options say: KEY=VALUE, the value as JSON where it is that, else as text."""
    values: dict[str, Any] = {}
    for option in options or ():
        key, equals, value = option.partition("=")
        if not equals or not key.isidentifier():
            raise typer.BadParameter(f"-O {option}: write KEY=VALUE, such as -O input_size=480")
        values[key] = _value(value)
    return values


def _value(text: str) -> Any:
    spelled = {"True": True, "False": False, "None": None}
    try:
        return spelled[text] if text in spelled else json.loads(text, parse_constant=_not_a_number)
    except ValueError:
        return text


def _not_a_number(text: str) -> None:
    raise ValueError(text)


def go_offline() -> None:
    """Switch the network off for the rest of this process, for the hub's own client too."""
    os.environ["IMAGE_ENCODERS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"


def load(name: str, options: Mapping[str, Any], *, offline: bool = False, **wishes: Any) -> Encoder:
    """The encoder called `name`; wishes that are None are left to the library.

    options: the family's own, as `parsed` gives them; a usage error where the family has no such option
    offline: keep the network out of it
    """
    if offline:
        go_offline()
    from image_encoders import models

    try:
        models.check_options(name, options)
    except TypeError as error:
        raise typer.BadParameter(str(error)) from error
    return models.load(name, **{key: wish for key, wish in wishes.items() if wish is not None}, **options)


def load_again(opened: Collection, options: Mapping[str, Any], *, offline: bool = False, **wishes: Any) -> Encoder:
    """The encoder that a collection was begun with, with other options, and other wishes where they are not None.

    Raises CollectionError where the collection does not say how.
    """
    recipe = opened.recipe
    match recipe:
        case {"name": str(), "options": dict()}:
            options = {**recipe["options"], **options}
        case _:
            raise CollectionError(
                f"{opened.folder} does not say how its encoder was loaded (the recipe in collection.json); "
                "restore that file from a copy, or encode again into another folder"
            )
    chosen = {key: recipe.get(key) for key in ("weights", "device", "precision", "engine", "calibration")}
    chosen.update((key, wish) for key, wish in wishes.items() if wish is not None)
    encoder = load(recipe["name"], options, offline=offline, **chosen)
    if chosen["precision"] == "auto" and encoder.precision != opened.precision:  # chosen on another machine
        encoder = load(recipe["name"], options, offline=offline, **{**chosen, "precision": opened.precision})
    return encoder
