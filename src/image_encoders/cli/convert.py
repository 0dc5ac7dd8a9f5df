"""`image-encoders convert`: an original checkpoint to a file that loads faster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from image_encoders.cli.options import Json, Offline, Options, go_offline, parse_options
from image_encoders.cli.printing import print, print_json, shown

EXAMPLES = """\b
Examples:
  image-encoders convert bit/R50x1 --weights BiT-M-R50x1.npz -o R50x1.safetensors
  image-encoders convert vsepp --weights runs/f30k_vse++_vggfull -o f30k.safetensors -O vocabulary=vocab/f30k_vocab.pkl
  image-encoders encode photos/ -o my-photos --model bit/R50x1 --weights R50x1.safetensors"""


def convert(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model, such as bit/R50x1.")],
    weights: Annotated[Path, typer.Option(metavar="PATH", help="The original checkpoint, a file or a folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write, .safetensors.")],
    options: Options = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Convert an original checkpoint to safetensors.

    The converted file loads faster, contains everything that loading needs, such as the vocabulary, and gives the same
    embeddings and the same fingerprint. Both files are loaded and compared before FILE appears.
    """
    if offline:
        go_offline()
    from image_encoders import conversion

    done = conversion.convert(name, weights.expanduser(), out.expanduser(), parse_options(options), overwrite=overwrite)
    if as_json:
        print_json({"model": name, **done._asdict()})
        return
    sizes = f"{done.original_bytes / 1e6:,.0f} MB -> {done.converted_bytes / 1e6:,.0f} MB"
    print(f"{shown(done.path)}: {sizes}, converted in {done.seconds:.1f} s")
    if done.original_load_s is None or done.converted_load_s is None:
        print("same tensors; to load and compare both nets too, add -O definition=FILE -O class_name=NAME")
    else:
        print(
            f"loads in {done.converted_load_s:.2f} s, the original in {done.original_load_s:.2f} s; "
            f"same fingerprint, {done.fingerprint}"
        )
