"""The handler that everybody writes first: FastAPI around transformers' CLIPModel, one image at a time.

python naive_server.py MODEL PORT
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image


def main(model: Path, port: int) -> None:
    transformers.utils.logging.disable_progress_bar()
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    processor = getattr(transformers, name).from_pretrained(model)
    net = transformers.CLIPModel.from_pretrained(model).eval()
    app = FastAPI()

    def embed(content: bytes) -> dict[str, Any]:
        inputs = processor(images=[Image.open(io.BytesIO(content)).convert("RGB")], return_tensors="pt")
        with torch.no_grad():
            features = net.get_image_features(**inputs)
        row = getattr(features, "pooler_output", features)[0]
        return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": row.tolist()}]}

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> dict[str, Any]:
        return embed(base64.b64decode(body["input"][0].partition(",")[2]))

    @app.post("/v1/images")
    async def images(request: Request) -> dict[str, Any]:
        content = await request.body()
        return await transformers_thread(embed, content)

    from starlette.concurrency import run_in_threadpool as transformers_thread

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
