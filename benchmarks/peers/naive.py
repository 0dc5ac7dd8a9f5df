"""The loop that everybody writes first: PIL decodes, transformers prepares and embeds, batch by batch."""

from __future__ import annotations

from pathlib import Path

import timed


def load(model: Path, precision: str) -> timed.Embed:
    import torch
    import transformers
    from PIL import Image

    transformers.utils.logging.disable_progress_bar()
    # The class that works on PIL images got a name of its own in transformers 5.
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    processor = getattr(transformers, name).from_pretrained(model)
    net = transformers.CLIPModel.from_pretrained(model, dtype=precision).eval()

    def embed(paths: list[Path]) -> torch.Tensor:
        rows = []
        for start in range(0, len(paths), timed.BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + timed.BATCH]]
            inputs = processor(images=images, return_tensors="pt").to(net.dtype)
            with torch.no_grad():
                features = net.get_image_features(**inputs)
            rows.append(getattr(features, "pooler_output", features).float())  # transformers 5 wraps it, 4 did not
        return torch.cat(rows)

    return embed


if __name__ == "__main__":
    timed.main(load)
