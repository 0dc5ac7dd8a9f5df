"""Nets run by PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from image_encoders.errors import DeviceError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEmbedder:
    """A net on a device, in inference mode: inputs (B, ...) -> rows (B, dim) float32.

    Low precision is autocast's: matrix products and convolutions in `precision`, what would suffer in float32.
    """

    engine = "torch"

    def __init__(self, net: nn.Module, device: str, precision: str):
        if precision == "float16" and device == "cpu":
            raise DeviceError("float16 is not for the CPU; use bfloat16 or float32 there")
        if device != "cpu" and precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # torch would round the inputs of convolutions to 10 bits
        self.device = device
        self.precision = precision
        self._dtype = _DTYPES[precision]
        self._net = net.eval().requires_grad_(False).to(device)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.split(":")[0], self._dtype, enabled=self._dtype != torch.float32),
        ):
            rows = self._net(torch.from_numpy(np.ascontiguousarray(inputs)).to(self.device))
        return rows.float().cpu().numpy()
