"""`image-encoders failures`: the files that could not be encoded, and why."""

from __future__ import annotations

from dataclasses import asdict

from image_encoders.cli.options import CollectionFolder, Json
from image_encoders.cli.printing import print_json, print_table, say, shown

EXAMPLES = """\b
Examples:
  image-encoders failures my-photos
  image-encoders failures my-photos --json | jq -r '.[].id'      # only their paths
  image-encoders encode photos/ -o my-photos --retry-failed      # try them again"""


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
            ((shown(one.id), one.stage, one.code, one.message) for one in failed),
        )
    else:
        say("no failures")
