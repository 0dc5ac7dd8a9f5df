"""Options that several commands take."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from image_encoders.engines.precision import CALIBRATED, PRECISIONS
from image_encoders.inputs.files import ADDRESS


def local_path(text: str | Path) -> Path:
    """A path as it was typed; a usage error for a URL, which `Path` would spell otherwise."""
    if ADDRESS.match(str(text)):
        raise typer.BadParameter(f"{text} is a URL; a path on this machine is accepted")
    return Path(text)


CollectionFolder = Annotated[
    Path, typer.Argument(metavar="COLLECTION", help="The folder that `encode -o` made.", parser=local_path)
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="The model's original checkpoint, a file or a folder.", parser=local_path),
]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]")]
Precision = Annotated[
    str | None,
    typer.Option(
        metavar="PRECISION",
        help="auto, the fastest whose embeddings stay close to float32's; or one of "
        f"{', '.join(PRECISIONS)}.  [default: auto]",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINE", help="What runs the model: auto, torch, torch-compile or openvino.  [default: auto]"
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help=f"For --precision {' or '.join(CALIBRATED)}: images like those to be encoded, about 300.",
        parser=local_path,
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "-O", "--option", metavar="KEY=VALUE", help="An option of the model, see `models NAME`; may be repeated."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use no network for models: only bundled, downloaded and local ones.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON value to standard output and everything else to standard error.")
]


def parse_options(options: list[str] | None) -> dict[str, Any]:
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
