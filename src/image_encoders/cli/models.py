"""`image-encoders models`: the table of models."""

from __future__ import annotations

from dataclasses import asdict

from image_encoders.cli.arguments import Json
from image_encoders.cli.printing import print_json, print_table, say

EXAMPLES = """\b
Examples:
  image-encoders models
  image-encoders models --json | jq -r '.[].name'"""


def models(as_json: Json = False) -> None:
    """List the models.

    What they encode, how long their rows are, where their weights come from and under which licence.
    """
    from image_encoders.models import DEFAULT, variants

    if as_json:
        print_json(
            [{**asdict(variant), "name": name, "default": name == DEFAULT} for name, variant in variants().items()]
        )
        return
    print_table(
        ("model", "encodes", "dim", "weights", "licence of the weights"),
        (
            (name, ", ".join(one.towers), "any" if one.dim is None else str(one.dim), one.weights, one.licence)
            for name, one in variants().items()
        ),
    )
    say(f"\nWithout --model: {DEFAULT}")
    say("After clip/ goes any Hugging Face id or folder: clip/google/siglip2-base-patch16-224, clip/./my-clip")
