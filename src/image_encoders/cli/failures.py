"""`image-encoders failures`: what could not be encoded, and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from image_encoders.cli.arguments import Json
from image_encoders.cli.printing import print_json, print_table, say, shown

EXAMPLES = """\b
Examples:
  image-encoders failures my-photos
  image-encoders failures my-photos --json | jq -r '.[].id'      # the files alone
  image-encoders encode photos/ -o my-photos --retry-failed      # try them again"""


def failures(
    collection: Annotated[Path, typer.Argument(metavar="COLLECTION", help="The folder that `encode -o` made.")],
    as_json: Json = False,
) -> None:
    """List what could not be encoded, and why."""
    from image_encoders.collection import Collection

    failed = Collection.open(collection).failures()
    if as_json:
        print_json([asdict(failure) for failure in failed])
    elif failed:
        print_table(
            ("file", "stage", "code", "what is wrong"),
            ((shown(one.id), one.stage, one.code, one.message) for one in failed),
        )
    else:
        say("nothing failed")
