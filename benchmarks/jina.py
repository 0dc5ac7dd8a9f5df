"""What Jina adds to a document: pixels, bytes and addresses, called directly and through a Flow.

    .venv-jina/bin/python benchmarks/jina.py [--documents 200] [--side 640]

Prints a table of milliseconds per document; the direct call with pixels is what the encoder itself takes.
"""

from __future__ import annotations

import argparse
import base64
import io
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.pop(0)  # this file's folder: there, `import jina` would be this file

import numpy as np
from PIL import Image

from image_encoders.integrations.jina import CLIPImageEncoder, DocList, Document, Flow
from image_encoders.models.clip import DEMO

PARAMETERS = {"pretrained_model_name_or_path": str(DEMO)}


def documents(kind: str, count: int, side: int) -> DocList[Document]:
    """`count` photographs of `side` x `side` px, or rather noise, smooth enough to compress like them."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    data = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    fields = {"pixels": {"blob": pixels}, "bytes": {"buffer": file.getvalue()}, "URI": {"uri": data}}[kind]
    return DocList[Document]([Document(**fields) for _ in range(count)])


def per_document(call: Callable[[DocList[Document]], Any], kind: str, count: int, side: int, repeats: int = 3) -> float:
    """The least milliseconds per document of some calls."""
    best = float("inf")
    for _ in range(repeats):
        docs = documents(kind, count, side)
        start = time.perf_counter()
        call(docs)
        best = min(best, (time.perf_counter() - start) / count * 1000)
    return best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--documents", type=int, default=200, metavar="N", help="in each call")
    arguments.add_argument("--side", type=int, default=640, metavar="PX", help="of the images")
    arguments.add_argument("--request-size", type=int, default=32, metavar="N", help="documents in one request")
    given = arguments.parse_args()
    executor = CLIPImageEncoder(**PARAMETERS)
    with Flow().add(uses="CLIPImageEncoder", uses_with=PARAMETERS) as flow:

        def through(docs: DocList[Document], **parameters: Any) -> None:
            found = flow.post("/encode", docs, request_size=given.request_size, parameters=parameters)
            assert all(doc.embedding is not None for doc in found)

        rows = []
        for kind in ("pixels", "bytes", "URI"):
            sizes = (kind, given.documents, given.side)
            rows.append(
                (
                    kind,
                    per_document(executor.encode, *sizes),
                    per_document(through, *sizes),
                    per_document(lambda docs: through(docs, strip=True), *sizes),
                )
            )
    print(f"{platform.processor() or platform.machine()}, {given.documents} documents of {given.side} px, clip/demo")
    print(f"{'ms per document':16}{'direct':>10}{'Flow':>10}{'Flow, strip':>13}")
    for kind, direct, flowing, stripped in rows:
        print(f"{kind:16}{direct:10.2f}{flowing:10.2f}{stripped:13.2f}")


if __name__ == "__main__":
    main()
