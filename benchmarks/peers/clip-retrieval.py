"""clip-retrieval: `clip_inference` on a folder, with its defaults."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import timed
import torchvision_operators

torchvision_operators.declare()


def load(model: Path, precision: str) -> timed.Embed:
    from all_clip import load_clip
    from clip_retrieval import clip_inference

    name = f"hf_clip:{model}"
    # It keeps what it loaded, by these very arguments.
    load_clip(clip_model=name, use_jit=False, warmup_batch_size=timed.BATCH, clip_cache_path=None)

    def embed(paths: list[Path]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as output:
            clip_inference(
                input_dataset=str(paths[0].parent),
                output_folder=output,
                enable_text=False,
                clip_model=name,
                batch_size=timed.BATCH,
            )
            return np.load(Path(output) / "img_emb" / "img_emb_0.npy")

    return embed


if __name__ == "__main__":
    timed.main(load)
