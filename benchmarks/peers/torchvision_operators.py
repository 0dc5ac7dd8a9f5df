"""Lets `import torchvision` go on where its compiled part does not load, as beside a build of torch for the CPU.

The part in Python then wants to describe operators that are not there. None of them is needed for preparing images.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")


def declare() -> None:
    """Declare what torchvision's import looks for, unless it is there."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
