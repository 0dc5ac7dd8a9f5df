"""infinity: its asynchronous engine, without the server, on the files' bytes.

bfloat16 is asked for as its documentation has it; version 0.0.78 heeds that for images on a GPU only.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import timed


def load(model: Path, precision: str) -> timed.Embed:
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    chosen = {} if precision == "float32" else {"dtype": precision}
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(model_name_or_path=str(model), device="cpu", batch_size=timed.BATCH, **chosen)
    )
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    async def embed(paths: list[Path]) -> list[Any]:
        rows, _ = await engine.image_embed(images=[path.read_bytes() for path in paths])
        return rows

    return lambda paths: loop.run_until_complete(embed(paths))


if __name__ == "__main__":
    timed.main(load)
