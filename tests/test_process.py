"""What the package changes in its process, and leaves as it was."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from image_encoders.process import import_openvino, quiet


def printed(code: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env={**os.environ, **environment}
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_openvino_is_imported_without_its_telemetry_which_others_may_still_import():
    code = """
import sys
started = []
def note(event, arguments):
    if event in ("subprocess.Popen", "socket.connect"):
        started.append(arguments)
sys.addaudithook(note)
from image_encoders.process import import_openvino
import_openvino().Core()
print("openvino_telemetry" in sys.modules, started)
"""
    assert printed(code) == "False []"


def test_openvino_is_the_same_for_everybody():
    import openvino

    assert import_openvino() is openvino


def test_quiet_lasts_no_longer_than_its_block():
    levels = [logging.getLogger(name).level for name in ("transformers", "nncf")]
    with quiet():
        warnings.warn("not seen", UserWarning, stacklevel=1)
    assert [logging.getLogger(name).level for name in ("transformers", "nncf")] == levels
    with pytest.warns(UserWarning, match="seen"):
        warnings.warn("seen", UserWarning, stacklevel=1)


def test_the_first_load_and_embedding_leave_the_process_as_it_was_and_need_no_torch_in_it(tmp_path: Path):
    code = """
import logging, os, signal, sys, warnings
import numpy as np
import image_encoders as ie

def state():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    return dict(os.environ), list(warnings.filters), list(sys.meta_path), handlers, logging.root.handlers[:]

before = state()
encoder = ie.load("clip/demo", device="cpu", precision="float32")
assert encoder.engine == "openvino"
assert encoder.encode_image([np.zeros((40, 50, 3), np.uint8)]).shape == (1, 128)
assert encoder.encode_text(["a red circle"]).shape == (1, 128)
print(state() == before, [name for name, module in sys.modules.items() if module is None])
print(*{"torch", "transformers"} & set(sys.modules))
"""
    assert printed(code, IMAGE_ENCODERS_CONVERT_APART="1", IMAGE_ENCODERS_CACHE=str(tmp_path)) == "True []"


@pytest.mark.gpu
def test_float32_on_a_gpu_is_float32():
    import numpy as np
    import torch
    from torch import nn

    from image_encoders.engines.torch import TorchEmbedder

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 256, 9), nn.Flatten(), nn.Linear(256 * 64, 64)).eval()
    inputs = np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        wanted = net.double()(torch.from_numpy(inputs).double()).numpy()
    found = TorchEmbedder(net.float(), "cuda:0", "float32")(inputs)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
