"""fastembed: `ImageEmbedding` on paths, with the weights exported to ONNX before (fastembed-onnx.py MODEL TARGET)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import timed

KNOWN = "Qdrant/clip-ViT-B-32-vision"  # fastembed takes a folder only in place of a model that it knows


def load(model: Path, precision: str) -> timed.Embed:
    from fastembed import ImageEmbedding

    net = ImageEmbedding(KNOWN, specific_model_path=str(model))
    return lambda paths: list(net.embed([str(path) for path in paths], batch_size=timed.BATCH))


def export(model: Path, target: Path) -> None:
    """The vision tower of `model` as ONNX, and what prepares its images."""
    import torch
    import transformers

    target.mkdir(parents=True)
    net = transformers.CLIPVisionModelWithProjection.from_pretrained(model, attn_implementation="eager").eval()

    class Rows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.net(pixel_values=pixel_values).image_embeds

    size = net.config.image_size
    torch.onnx.export(
        Rows().eval(),
        (torch.zeros(2, 3, size, size),),
        str(target / "model.onnx"),
        input_names=["pixel_values"],
        output_names=["image_embeds"],
        dynamic_axes={"pixel_values": {0: "batch"}, "image_embeds": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(model / name, target)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        timed.main(load)
