"""`image-encoders models`: the table of models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from image_encoders.cli.options import Json
from image_encoders.cli.printing import in_flags, print_json, print_table, say

EXAMPLES = """\b
Examples:
  image-encoders models                        # all of them
  image-encoders models bit/R50x1              # one of them: where its weights come from, its options
  image-encoders models --json | jq -r '.[].name'"""


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Describe this model only.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models.

    What they encode, the size of their embeddings, and the licence of their weights; with NAME also where the weights
    come from, and the options that -O takes.
    """
    from image_encoders.models import DEFAULT, options_of, unknown, variants

    listed = {key: {**asdict(one), "name": key, "default": key == DEFAULT} for key, one in variants().items()}
    if name is not None:
        if name not in listed:
            raise unknown(name)
        described = {**listed[name], "options": options_of(name)}
        if as_json:
            print_json(described)
        else:
            _describe(described)
    elif as_json:
        print_json(list(listed.values()))
    else:
        print_table(("model", "encodes", "dim", "licence of weights"), map(_cells, listed.values()))
        say(f"\nWithout --model: {DEFAULT}")
        say("Also any CLIP or SigLIP of Hugging Face, as clip/OWNER/NAME, or of a folder, as clip/./FOLDER")
        say("More about one of them: image-encoders models NAME")


def _cells(model: dict[str, Any]) -> tuple[str, ...]:
    licence = model["licence"].partition(" (")[0]
    return model["name"], ", ".join(model["towers"]), str(model["dim"] or "any"), licence


def _describe(model: dict[str, Any]) -> None:
    """One model, fact by fact."""
    rows = [
        ("model", model["name"]),
        ("encodes", ", ".join(model["towers"])),
        ("dim", model["dim"] or "as the checkpoint has it"),
        ("weights", in_flags(model["weights"])),
        ("licence of the weights", model["licence"]),
        (
            "options (-O)",
            ", ".join(key if value is None else f"{key}={value}" for key, value in model["options"].items()) or "none",
        ),
    ]
    print_table((), rows)
