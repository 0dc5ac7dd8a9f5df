"""Nets run by PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from image_encoders.engines.embedder import Choice
from image_encoders.engines.precision import check_computed
from image_encoders.errors import DeviceError, first_line
from image_encoders.process import compute_full_float32, keep_freed_memory, torch_has_computed

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEmbedder:
    """A net on a device, in inference mode: inputs (B, ...) -> embeddings (B, dim) float32.

    Low precision is autocast's: matrix products and convolutions in `precision`, sensitive operations in float32.
    compiled: by torch.compile, which needs a C++ compiler and makes the first batches slow
    """

    calibration = ""
    streams = 1  # all threads share each pass

    def __init__(self, net: nn.Module, device: str, precision: str, compiled: bool = False):
        check_computed(precision, device, "torch")
        torch_has_computed.set()
        self.engine = "torch-compile" if compiled else "torch"
        self.device = device
        self.precision = precision
        self.choice: Choice | None = None
        self._cuda = device != "cpu"
        self._dtype = _DTYPES[precision]
        net = net.eval().requires_grad_(False).to(device)
        if self._cuda:
            if precision == "float32":
                compute_full_float32()
            else:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._copies = torch.cuda.Stream(device)
        else:
            keep_freed_memory()
        self._net: Callable[[Tensor], Tensor] = torch.compile(net) if compiled else net

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        try:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.split(":")[0], self._dtype, enabled=self._dtype != torch.float32),
            ):
                embeddings = self._net(self._on_device(torch.from_numpy(np.ascontiguousarray(inputs))))
            return embeddings.float().cpu().numpy()
        except torch.AcceleratorError as error:  # no input's fault: every later call fails as well
            raise DeviceError(
                f"{self.device} has failed: {first_line(error)}; restart the program, which resumes from there, or "
                "use device='cpu'"
            ) from error

    def _on_device(self, inputs: Tensor) -> Tensor:
        """On a GPU copies have their own stream: one thread's batch is transferred while another's is computed."""
        if not self._cuda:
            return inputs
        with torch.cuda.stream(self._copies):
            there = inputs.pin_memory().to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._copies)
        there.record_stream(now)
        return there
