"""`image-encoders failures`: the files that could not be encoded, and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from image_encoders.cli.options import CollectionFolder, Json
from image_encoders.cli.printing import print_json, print_table, say, shown

if TYPE_CHECKING:
    from image_encoders.collection import Failure

EXAMPLES = """\b
Examples:
  image-encoders failures my-photos
  image-encoders failures my-photos --json | jq -r '.[].id'      # only their paths
  image-encoders encode photos/ -o my-photos --retry-failed      # try them again"""

NEXT = {  # by a failure's code: what `encode` does about it, which does not try it again by itself
    "too-many-pixels": "raise it with --max-pixels N and --retry-failed",
    "too-many-bytes": "raise it with --max-bytes N and --retry-failed",
    "too-many-scans": "raise it with IMAGE_ENCODERS_MAX_SCANS=N and --retry-failed",
}
INSTALL = "pip install"  # in the message of a file that needs another package


def failures(
    collection: CollectionFolder,
    as_json: Json = False,
) -> None:
    """List the files that could not be encoded, and why."""
    from image_encoders.collection import Collection

    failed = Collection.open(collection).failures()
    if as_json:
        print_json([asdict(failure) for failure in failed])
    elif failed:
        print_table(
            ("file", "stage", "code", "what is wrong"),
            ((shown(one.id), one.stage, one.code, with_advice(one)) for one in failed),
        )
    else:
        say("no failures")


def with_advice(failure: Failure) -> str:
    """What is wrong with a file, and how to encode it."""
    advice = "then encode it with --retry-failed" if INSTALL in failure.message else NEXT.get(failure.code)
    return failure.message + (f"; {advice}" if advice else "")
