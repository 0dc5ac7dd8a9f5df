"""An original checkpoint as one file of ours: its tensors, and what else the family needs to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_encoders.errors import WeightsError
from image_encoders.weights import safetensors_file

if TYPE_CHECKING:
    import torch

METADATA = "image-encoders"  # the entry of the file's metadata that holds ours, as JSON


def save(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """A safetensors file with these tensors and this metadata, whole or not at all.

    tensors: name -> tensor or ndarray
    metadata: anything JSON can say: family, variant, the checkpoint's own options, a vocabulary

    Raises WeightsError when the file cannot be written.
    """
    safetensors_file.write(path, tensors, {METADATA: json.dumps(metadata, ensure_ascii=False, sort_keys=True)})


def load(path: str | Path, family: str | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, mapped, and the metadata that `save` wrote.

    Raises WeightsError when the file is missing, damaged, not one of ours, or of another family than `family`.
    """
    tensors, metadata = safetensors_file.read(path)
    try:
        found = json.loads(metadata[METADATA])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: no {METADATA} metadata in it; it was not written by `convert`") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: its {METADATA} metadata is not an object")
    if family not in (None, found.get("family")):
        raise WeightsError(f"{path}: converted from a checkpoint of {found.get('family')!r}; {family!r} was expected")
    return tensors, found
