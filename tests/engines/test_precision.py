"""What `precision="auto"` chooses, and that every wish that cannot be met is one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from image_encoders.engines import machine, openvino, select
from image_encoders.engines import torch as torch_engine
from image_encoders.engines.closeness import CLOSEST, PROBES, closeness, probes
from image_encoders.engines.embedder import Choice, Net
from image_encoders.engines.precision import PRECISIONS, RANKED
from image_encoders.engines.select import Runtime, select_embedder
from image_encoders.errors import DeviceError, InputError

Make = Callable[..., Net]


@pytest.fixture
def matrix_units(monkeypatch) -> None:
    """A processor that multiplies bfloat16 matrices."""
    monkeypatch.delenv("IMAGE_ENCODERS_BFLOAT16", raising=False)
    monkeypatch.setattr(openvino, "multiplies_bfloat16", lambda: True)


@pytest.fixture
def noisy(monkeypatch) -> Callable[[float], list[tuple[str, str]]]:
    """noisy(x): low precision adds noise of x times the rows' spread; returns the list of what was made."""
    real = select._build

    def set_up(noise: float) -> list[tuple[str, str]]:
        made: list[tuple[str, str]] = []

        def make(runtime: Runtime, net: Net, way: tuple[str, str]):
            made.append(way)
            engine, wanted = way
            embed = real(runtime, net, ("torch", "float32"))
            if wanted == "float32":
                return embed
            rng = np.random.default_rng(0)

            def embedded(inputs: np.ndarray) -> np.ndarray:
                rows = embed(inputs)
                return rows + noise * (rows - rows.mean(0)).std() * rng.normal(size=rows.shape).astype(np.float32)

            class Noisy:
                device, precision, calibration, choice = "cpu", wanted, "", None

                def __init__(self) -> None:
                    self.engine = engine

                def __call__(self, inputs: np.ndarray) -> np.ndarray:
                    return embedded(inputs)

            return Noisy()

        monkeypatch.setattr(select, "_build", make)
        return made

    return set_up


def test_closeness_is_of_embeddings_without_their_mean():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(50, 8)).astype(np.float32) + 100
    near = closeness(reference + rng.normal(size=reference.shape).astype(np.float32), reference)
    assert near.cosine > 0.999
    assert near.centred < 0.9
    assert near.neighbours < 0.9
    exact = closeness(reference, reference)
    assert exact.centred == pytest.approx(1, abs=1e-6)
    assert exact.neighbours == 1
    assert exact.images == 50


def test_probes_are_the_same_every_time_and_differ_among_themselves():
    first, again = probes(6), probes(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert first[0].shape == (240, 320, 3)
    assert first[0].dtype == np.uint8
    flat = np.stack(first).reshape(6, -1).astype(float)
    assert np.abs(np.corrcoef(flat) - np.eye(6)).max() < 0.9


def test_the_environment_says_whether_a_machine_computes_bfloat16(bfloat16: bool, net: Make, inputs):
    embed = select_embedder(Runtime.resolve("cpu"), net())
    assert embed.precision == ("bfloat16" if bfloat16 else "float32")
    assert embed(inputs).shape == (21, 12)


@pytest.mark.parametrize(
    ("variable", "instructions", "wish", "offered"),
    [
        ("", True, "auto", [("openvino", "bfloat16"), ("openvino", "float32")]),
        ("", False, "auto", [("openvino", "float32")]),
        ("0", True, "auto", [("openvino", "float32")]),
        ("0", True, "torch", [("torch", "float32")]),
        ("1", True, "auto", [("openvino", "bfloat16"), ("openvino", "float32")]),
        ("1", False, "auto", [("torch", "bfloat16"), ("openvino", "float32")]),
        ("1", False, "torch", [("torch", "bfloat16"), ("torch", "float32")]),
        ("1", False, "openvino", [("openvino", "float32")]),
    ],
)
def test_bfloat16_is_computed_by_openvino_where_it_can_be(net, monkeypatch, variable, instructions, wish, offered):
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", variable)
    monkeypatch.setattr(openvino, "multiplies_bfloat16", lambda: instructions)
    monkeypatch.setattr(select, "has_bfloat16_instructions", lambda: instructions)
    assert select.ways(Runtime(engine=wish), net()) == offered


def test_another_word_in_the_environment_is_refused(net: Make, monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "yes")
    with pytest.raises(DeviceError, match="IMAGE_ENCODERS_BFLOAT16 is 'yes'; accepted: 1, 0"):
        select_embedder(Runtime.resolve("cpu"), net())


@pytest.mark.usefixtures("matrix_units")
def test_the_fast_precision_is_taken_where_it_keeps_the_embeddings(net: Make, noisy):
    made = noisy(0.005)
    embed = select_embedder(Runtime.resolve("cpu"), net())
    assert embed.precision == "bfloat16"
    assert embed.choice.closeness.centred >= CLOSEST
    assert embed.choice.closeness.images == PROBES
    assert made == [("openvino", "float32"), ("openvino", "bfloat16")]


@pytest.mark.usefixtures("matrix_units")
def test_float32_stays_where_the_fast_precision_would_lose_embeddings_and_choice_says_so(net: Make, noisy):
    noisy(0.3)
    embed = select_embedder(Runtime.resolve("cpu"), net())
    assert embed.precision == "float32"
    assert embed.choice.closeness is None
    assert "bfloat16: centred cosine 0." in embed.choice.refused[0]


@pytest.mark.usefixtures("matrix_units")
@pytest.mark.parametrize("noise", [0.005, 0.3])
def test_the_verdict_is_kept(net: Make, noisy, noise: float):
    noisy(noise)
    before = select_embedder(Runtime.resolve("cpu"), net()).choice
    made = noisy(noise)
    after = select_embedder(Runtime.resolve("cpu"), net()).choice
    assert after == before
    assert made == [("openvino", before.precision)] if before.precision == "bfloat16" else len(made) == 1
    noisy(noise)
    assert select_embedder(Runtime.resolve("cpu"), net(key="another")).choice.precision == before.precision


@pytest.mark.usefixtures("matrix_units")
def test_a_verdict_that_cannot_be_read_is_found_anew(net: Make, noisy, cache):
    noisy(0.005)
    select_embedder(Runtime.resolve("cpu"), net())
    (path,) = cache.rglob("choices/*.json")
    path.write_text('{"engine": 7')
    made = noisy(0.005)
    assert select_embedder(Runtime.resolve("cpu"), net()).precision == "bfloat16"
    assert len(made) == 2


def test_without_matrix_units_auto_is_float32(net: Make, monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "0")
    embed = select_embedder(Runtime.resolve("cpu"), net())
    assert (embed.engine, embed.precision) == ("openvino", "float32")
    assert embed.choice == Choice("openvino", "float32")


def test_a_net_that_cannot_be_traced_is_torch_s(net: Make, monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "0")
    one = net()
    stranger = Net(one.name, one.key, one.build, one.prepare, one.shape, traceable=False)
    assert select_embedder(Runtime.resolve("cpu"), stranger).engine == "torch"


@pytest.mark.usefixtures("bfloat16")
def test_float32_is_computed_by_the_fastest_engine_where_none_is_asked_for(net: Make, inputs, rows):
    embed = select_embedder(Runtime.resolve("cpu", "float32"), net())
    assert (embed.engine, embed.precision) == ("openvino", "float32")
    assert embed.choice == Choice("openvino", "float32")
    assert np.abs(embed(inputs) - rows).max() < 1e-5


@pytest.mark.usefixtures("bfloat16")
def test_float32_by_torch_gives_torch_s_digits(net: Make, inputs, rows):
    embed = select_embedder(Runtime.resolve("cpu", "float32", "torch"), net())
    assert (embed.engine, embed.precision) == ("torch", "float32")
    assert np.array_equal(embed(inputs), rows)


def test_bfloat16_by_torch_is_near(net: Make, inputs, rows):
    embed = select_embedder(Runtime.resolve("cpu", "bfloat16", "torch"), net())
    near = closeness(embed(inputs), rows)
    assert near.centred > 0.99
    assert embed.precision == "bfloat16"


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"precision": "float64"}, "unknown precision 'float64'; accepted: auto, float32"),
        ({"engine": "tensorrt"}, "unknown engine 'tensorrt'; accepted: auto, torch"),
        ({"device": "tpu"}, "unknown device 'tpu'; accepted: auto, cpu"),
        ({"device": "cpu", "precision": "float16"}, "float16 is not available on the CPU"),
        ({"precision": "int8", "engine": "torch"}, "int8' is computed by OpenVINO"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(wish: dict[str, str], message: str):
    with pytest.raises(DeviceError, match=message):
        Runtime.resolve(**wish)


def test_bfloat16_by_openvino_needs_a_processor_for_it(monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "0")
    with pytest.raises(DeviceError, match="no instructions for bfloat16"):
        Runtime.resolve("cpu", "bfloat16", "openvino")


def test_int8_and_calibration_go_together():
    with pytest.raises(InputError, match="needs calibration="):
        Runtime.resolve("cpu", "int8")
    with pytest.raises(InputError, match="is for precision='int8'"):
        Runtime.resolve("cpu", "float32", calibration=[])


def test_every_precision_is_known_to_the_engines_that_compute_it():
    for name, one in PRECISIONS.items():
        assert name in torch_engine._DTYPES or "torch" not in (*one.cpu, *one.cuda)
        assert name in openvino._HINTS or "openvino" not in one.cpu
    assert RANKED[-1] == "float32"


def test_a_new_precision_is_a_line_of_the_table():
    code = """
import sys
from image_encoders.engines.precision import PRECISIONS, Precision
PRECISIONS["fp8"] = Precision(cpu=(), cuda=(), rank=3)
from image_encoders import DeviceError, load
for wish in ("fp8", "fp7"):
    try:
        load("clip/demo", device="cpu", precision=wish)
    except DeviceError as error:
        print(error)
from image_encoders.cli import app
for command in ("encode", "verify"):
    app([command, "--help"], standalone_mode=False)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    refused, unknown, *helped = ran.stdout.splitlines()
    assert refused == "no engine computes precision='fp8'; use float32 or bfloat16"
    assert unknown == "unknown precision 'fp7'; accepted: auto, float32, bfloat16, float16, int8, fp8"
    assert re.sub(r"\s+", " ", " ".join(helped)).count("float16, int8, fp8") == 1  # verify: float16, fp8
    assert re.sub(r"\s+", " ", " ".join(helped)).count("float16, fp8") == 1


def test_a_driver_without_a_usable_device_is_the_cpu(monkeypatch):
    import torch

    monkeypatch.setattr(machine, "_has_cuda_driver", lambda: True)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: False))
    assert Runtime.resolve().device == "cpu"
