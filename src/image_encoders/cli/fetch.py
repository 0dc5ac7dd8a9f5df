"""`image-encoders fetch`: a model's files into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from image_encoders.cli.options import Json, Offline
from image_encoders.cli.printing import print, print_json, shown
from image_encoders.errors import WeightsError

EXAMPLES = """\b
Examples:
  image-encoders fetch clip/openai/clip-vit-base-patch32
  image-encoders fetch clip/openai/clip-vit-base-patch32 --offline   # has it been downloaded?"""


def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model; `image-encoders models` lists them.")],
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Download a model's files.

    Then it can be used without a network. Files that have been downloaded before are not downloaded again.
    """
    from image_encoders import models

    family = models.family(name)
    if not hasattr(family, "fetch"):
        raise WeightsError(f"{name} has no published files to download; give its checkpoint with --weights")
    paths = family.fetch(name.partition("/")[2], offline=offline or None)
    if as_json:
        print_json({"model": name, "paths": [str(path) for path in paths]})
    else:
        for path in paths:
            print(shown(path))
