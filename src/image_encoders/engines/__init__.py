"""What runs a net on a device.

    Runtime.resolve(device, precision, engine)   the caller's wish, checked
    select_embedder(runtime, net)                the function that a `Tower` calls

A `Net` says how to build a net; engines that keep a converted copy of it on disk build it only once. The files, each
importing only those before it:

    process.py     what is changed in the process, and why
    machine.py     devices and instructions
    child.py       calls in a process of their own
    embedder.py    Net, Embedder, and values made when they are needed
    precision.py   how near embeddings come to float32's
    torch.py       nets run by PyTorch
    copies.py      converted copies for OpenVINO, in the cache
    int8.py        copies in 8 bits
    openvino.py    nets run by OpenVINO
    select.py      which of them runs a net
"""

from image_encoders.engines.child import call_in_child
from image_encoders.engines.embedder import (
    Choice,
    Embedder,
    Lazy,
    LazyEmbedder,
    Net,
    Shared,
    described,
    identity,
    net_key,
)
from image_encoders.engines.machine import device_name, system_lines
from image_encoders.engines.process import forked
from image_encoders.engines.select import PLAIN, Runtime, select_embedder, select_side_embedder, with_conversions

__all__ = [
    "PLAIN",
    "Choice",
    "Embedder",
    "Lazy",
    "LazyEmbedder",
    "Net",
    "Runtime",
    "Shared",
    "call_in_child",
    "described",
    "device_name",
    "forked",
    "identity",
    "net_key",
    "select_embedder",
    "select_side_embedder",
    "system_lines",
    "with_conversions",
]
