"""The two towers of one transformers model: pixels or token ids in, embeddings out.

The model itself is shared: two towers hold its weights once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ImageTower(nn.Module):
    """Prepared images (B, 3, H, W) -> embeddings (B, dim)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return _rows(self.model.get_image_features(pixel_values=pixels, return_dict=True))


class FlexibleImageTower(nn.Module):
    """Prepared images of one shape (B, 3, H, W), H and W whole numbers of patches -> embeddings (B, dim).

    For nets that take patches of any grid (SigLIP 2 NaFlex). The original pads every image to the same number of
    patches and masks what it added; images of one shape need neither.
    """

    def __init__(self, model: Any, patch: int):
        super().__init__()
        self.model = model
        self.patch = patch

    def forward(self, pixels: Tensor) -> Tensor:
        batch, channels, height, width = pixels.shape
        rows, columns = height // self.patch, width // self.patch
        patches = pixels.reshape(batch, channels, rows, self.patch, columns, self.patch)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)  # (B, L, patch * patch * C)
        return _rows(
            self.model.get_image_features(
                pixel_values=patches,
                pixel_attention_mask=torch.ones(batch, rows * columns, dtype=torch.int32, device=pixels.device),
                spatial_shapes=torch.tensor([[rows, columns]]).expand(batch, 2),
                return_dict=True,
            )
        )


class TextTower(nn.Module):
    """Token ids (B, L) -> embeddings (B, dim).

    padding: the id that stands where ids are negative, and is hidden from the others; None: nothing is hidden
    """

    def __init__(self, model: Any, padding: int | None):
        super().__init__()
        self.model = model
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        mask = None
        if self.padding is not None:  # not known by its id: many tokenizers pad with the token that ends a text
            mask = (ids >= 0).long()
            ids = torch.where(ids >= 0, ids, self.padding)
        return _rows(self.model.get_text_features(input_ids=ids, attention_mask=mask, return_dict=True))


def _rows(output: Any) -> Tensor:
    """The pooled, projected features, which some models give alone and others among more."""
    return output if isinstance(output, Tensor) else output.pooler_output
