"""open_clip: its own net and transform behind a `DataLoader` with two worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timed
import torch
import torchvision_operators
from PIL import Image
from safetensors.torch import load_file

torchvision_operators.declare()

WORKERS = 2
NAMES = {  # inside the vision model: Hugging Face's, then open_clip's
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "self_attn.": "attn.",
}
VISION = "vision_model."


class Images(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path], transform: Any):
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[number]))


def load(model: Path, precision: str) -> timed.Embed:
    import open_clip

    config = json.loads((model / "config.json").read_text())["vision_config"]
    quick = config.get("hidden_act", "quick_gelu") == "quick_gelu"
    net, _, transform = open_clip.create_model_and_transforms(
        "ViT-B-32-quickgelu" if quick else "ViT-B-32",
        precision="fp32" if precision == "float32" else "bf16",
        load_weights=False,
    )
    net.visual.load_state_dict(renamed(load_file(model / "model.safetensors")))
    net.eval()
    dtype = getattr(torch, precision)

    def embed(paths: list[Path]) -> torch.Tensor:
        batches = torch.utils.data.DataLoader(Images(paths, transform), batch_size=timed.BATCH, num_workers=WORKERS)
        with torch.inference_mode():
            return torch.cat([net.encode_image(batch.to(dtype)).float() for batch in batches])

    return embed


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision tower of Hugging Face's CLIPModel under open_clip's names."""
    here = {"proj": state["visual_projection.weight"].T}
    thirds: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        if not name.startswith(VISION) or name.endswith("position_ids"):
            continue
        name = name.removeprefix(VISION)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        layer, projection, kind = name.rpartition("_proj.")
        if projection and layer[-1] in "qkv" and layer[-2] == ".":
            thirds.setdefault(f"{layer[:-1]}in_proj_{kind}", {})[layer[-1]] = value
        else:
            here[name] = value
    return here | {name: torch.cat([parts[one] for one in "qkv"]) for name, parts in thirds.items()}


if __name__ == "__main__":
    timed.main(load)
