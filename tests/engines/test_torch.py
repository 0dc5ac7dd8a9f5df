"""Nets run by PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from image_encoders.engines.torch import TorchEmbedder
from image_encoders.errors import DeviceError


class Failing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_device_that_fails_is_no_input_s_fault():
    with pytest.raises(DeviceError, match=r"cpu has failed: CUDA error: an illegal memory access.*restart the program"):
        TorchEmbedder(Failing(), "cpu", "float32")(np.zeros((1, 3), np.float32))
