"""The HTTP service: embeddings for programs, and a page where people search their images.

Which process holds what, under `image-encoders serve` and `image-encoders browse`:

    clients ──HTTP──┐
                    │
    front           │  one process: uvicorn, an event loop, a few threads
    │               └→ connections ─→ guards ─→ app: routes ─→ Service, Searcher
    │                  time-outs,     keys,     JSON ↔ calls   queues, the collection in memory,
    │                  header bytes   origins,                 thumbnails, metrics
    │                                 body bytes
    │
    ├─ socket, frames ─→ worker   one process for each tower of each model (worker.py, held by worker_process.py):
    │                             decoders, preprocessing, the batcher, the net. It is started, watched by canaries,
    │                             replaced and unloaded by the tower's queue (towers.py)
    │
    └─ pipe, lines ────→ follow   one process, only under `browse` (follow.py, started by browse.py): it watches the
                                  folder, holds a net of its own, and is the only writer of the collection

The front decodes what becomes a thumbnail, and nothing else, and holds no net. Workers know neither HTTP nor the
collection. Every process but the front may die at any time: requests waiting for a worker get a 503, and a run resumes
from its last commit. None outlives the front: each ends when its end of the socket or the pipe closes.
"""
