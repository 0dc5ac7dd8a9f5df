"""What `load` takes and says of names, options and devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import image_encoders as ie
from image_encoders.errors import DeviceError


@pytest.mark.parametrize("name", [None, 3, ["clip/demo"], Path("clip/demo"), "", "clp/demo", "x" * 1000])
def test_what_is_no_model_is_an_unknown_one(name: Any):
    with pytest.raises(ie.UnknownModel, match="there is no model"):
        ie.load(name)


@pytest.mark.parametrize("option", ["foo", "runtime", "variant"])
def test_an_unknown_option_is_refused_with_those_that_there_are(option: str):
    with pytest.raises(TypeError, match=rf"^clip/demo has no option '{option}'; it has: .*\btruncate\b.*, crop\b"):
        ie.load("clip/demo", **{option: 1})


@pytest.mark.parametrize("device", [torch.device("cpu"), "cpu", "/CPU:0"])
def test_a_device_may_be_torchs(device: Any):
    encoder = ie.load("clip/demo", device=device)
    assert encoder.device == "cpu"
    json.dumps(encoder.recipe)


@pytest.mark.parametrize("device", [None, 1.5, True, object(), ["cpu"], 99, torch.device("cuda", 99)])
def test_a_device_that_is_none_or_is_not_here_is_a_device_error(device: Any):
    with pytest.raises(DeviceError, match="device"):
        ie.load("clip/demo", device=device)
