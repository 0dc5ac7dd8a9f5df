"""What a client outside gets from the Executor in a container: python containers/client.py HOST:PORT

Waits until the Executor listens, and compares the embeddings that it gives documents with those computed here.
"""

import os
import socket
import sys
import time

os.environ["JINA_OPTOUT_TELEMETRY"] = "1"  # read when jina is imported

import numpy as np

import image_encoders as ie
import jina
from image_encoders.integrations.jina import Document

PATIENCE_S = 180.0  # for an image that starts on a busy machine
CLOSEST = 0.99  # the least cosine: the processor in the container may choose another precision

address = sys.argv[1]
rng = np.random.default_rng(0)
pixels = [rng.integers(0, 256, (side, 64, 3), np.uint8) for side in (48, 64, 96)]
started = time.monotonic()
while True:
    try:
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), timeout=1).close()
        break
    except OSError as error:
        if time.monotonic() - started > PATIENCE_S:
            sys.exit(f"no Executor answers at {address} after {PATIENCE_S:.0f} s: {error}")
        time.sleep(1)
client = jina.Client(host=f"grpc://{address}")
docs = client.post("/encode", inputs=[Document(blob=one) for one in pixels], results_in_order=True)
found = np.stack([doc.embedding for doc in docs])
wanted = ie.load("clip/demo", crop="round", device="cpu", precision="float32").encode_image(pixels)
cosines = (found * wanted).sum(1) / (np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1))
if found.shape != wanted.shape or not cosines.min() >= CLOSEST:
    sys.exit(f"the Executor's embeddings are not those computed here: cosines {cosines.round(4).tolist()}")
print(f"{len(docs)} documents encoded after {time.monotonic() - started:.0f} s, least cosine {cosines.min():.6f}")
