"""Nets run from a converted copy: the rows are torch's, the copy is kept, checked, and made again where it must be."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_net import Small, small_input
from torch import Tensor, nn

from image_encoders.engines import openvino
from image_encoders.engines.closeness import closeness, probes
from image_encoders.engines.embedder import Net
from image_encoders.engines.int8 import int8_embedder
from image_encoders.engines.openvino import ABOUT, ALONE, BIN, OpenVinoEmbedder
from image_encoders.engines.select import Runtime, select_embedder
from image_encoders.engines.torch import TorchEmbedder
from image_encoders.errors import DeviceError, InputError, WeightsError
from image_encoders.models import load

Make = Callable[..., Net]


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return found.shape == wanted.shape and found.dtype == np.float32 and bool(np.abs(found - wanted).max() < 1e-5)


def never() -> nn.Module:
    raise AssertionError("the net was built, though its copy is there")


def made_copies(cache: Path) -> list[Path]:
    return sorted(path.parent for path in cache.rglob(ABOUT))


def test_the_copy_gives_torch_s_embeddings_for_any_batch(net: Make, inputs, rows):
    embed = OpenVinoEmbedder(net(), "float32")
    for count in (1, 2, 7, 8, 9, 21):
        assert close(embed(inputs[:count]), rows[:count])


def test_the_second_time_the_net_is_not_built(net: Make, inputs, rows):
    OpenVinoEmbedder(net(), "float32")
    assert close(OpenVinoEmbedder(net(never), "float32")(inputs), rows)


def test_another_key_is_another_copy(net: Make, inputs, cache):
    OpenVinoEmbedder(net(), "float32")
    other = OpenVinoEmbedder(net(lambda: Small(seed=1), key="other"), "float32")
    with torch.inference_mode():
        assert close(other(inputs), Small(seed=1)(torch.from_numpy(inputs)).numpy())
    assert len(made_copies(cache)) == 2


@pytest.mark.parametrize("file", ["net.bin", "net.xml", ABOUT])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_copy_is_made_again(net: Make, inputs, rows, cache, caplog, file: str, damage: str):
    OpenVinoEmbedder(net(), "float32")
    (folder,) = made_copies(cache)
    content = (folder / file).read_bytes()
    if damage == "gone":
        (folder / file).unlink()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 64]) + content[-2:]
        (folder / file).write_bytes(flipped if damage == "flipped" else content[: len(content) // 2])
    assert close(OpenVinoEmbedder(net(), "float32")(inputs), rows)
    if (file, damage) != (ABOUT, "gone"):
        assert "converting the model again" in caplog.text
    assert close(OpenVinoEmbedder(net(never), "float32")(inputs), rows)


def test_a_cache_that_cannot_be_written_costs_a_warning(net: Make, inputs, rows, cache, caplog):
    cache.write_text("a file where the folder should be")
    assert close(OpenVinoEmbedder(net(), "float32")(inputs), rows)
    assert "every start converts again" in caplog.text


def test_a_full_disk_costs_a_warning(net: Make, inputs, rows, cache, caplog, monkeypatch):
    monkeypatch.setattr(openvino.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert close(OpenVinoEmbedder(net(), "float32")(inputs), rows)
    assert "1 MB are free" in caplog.text
    assert made_copies(cache) == []


def test_threads_that_come_together_make_one_copy(net: Make, inputs, rows):
    built = []

    def build() -> nn.Module:
        built.append(1)
        return Small()

    with ThreadPoolExecutor(4) as pool:
        embedders = list(pool.map(lambda _: OpenVinoEmbedder(net(build), "float32"), range(4)))
    assert len(built) == 1
    assert all(close(embed(inputs), rows) for embed in embedders)


def test_more_callers_than_requests_all_get_their_own_embeddings(net: Make, inputs, rows):
    embed = OpenVinoEmbedder(net(), "float32")
    with ThreadPoolExecutor(16) as pool:
        for start, found in enumerate(pool.map(lambda i: embed(inputs[i % 5 :]), range(64))):
            assert close(found, rows[start % 5 :])


def test_images_that_keep_coming_alone_get_all_threads(net: Make, inputs, rows, monkeypatch):
    monkeypatch.setattr(openvino, "_threads", lambda: 2)
    streams: list[int | None] = []
    compile_model = openvino._Compiled.__init__

    def noted(self, model, precision, wanted=None):
        streams.append(wanted)
        compile_model(self, model, precision, wanted)

    monkeypatch.setattr(openvino._Compiled, "__init__", noted)
    embed = OpenVinoEmbedder(net(), "float32")
    for _ in range(3 * ALONE):  # batches between them: a folder's last and smaller ones
        assert close(embed(inputs[:2]), rows[:2])
        assert close(embed(inputs), rows)
    assert streams == [None]
    for number in range(2 * ALONE):
        assert close(embed(inputs[number : number + 1]), rows[number : number + 1])
    assert streams == [None, 1]
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(lambda i: embed(inputs[i % 16 :][: 1 + i % 3]), range(200))):
            assert close(found, rows[number % 16 :][: 1 + number % 3])
    assert streams == [None, 1]


def test_no_room_for_a_second_compilation_costs_a_warning(net: Make, inputs, rows, monkeypatch, caplog):
    monkeypatch.setattr(openvino, "_threads", lambda: 2)
    embed = OpenVinoEmbedder(net(), "float32")
    assert close(embed(inputs), rows)

    def no_room(*_):
        raise RuntimeError("Cannot allocate memory")

    monkeypatch.setattr(openvino._Compiled, "__init__", no_room)
    for _ in range(3 * ALONE):
        assert close(embed(inputs[:1]), rows[:1])
    assert caplog.text.count("Cannot allocate memory") == 1


@pytest.fixture
def converted_once(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that a test starts load models whose copies are there, as all but the first process on a machine do."""
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(session_cache))
    load("clip/demo", device="cpu", precision="float32")


def ends_well(code: str, *arguments: object) -> str:
    """What the code prints, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


AFTER_A_FORK = """
import os, sys
import numpy as np
import image_encoders as ie

images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(20)]
encoder = ie.load("clip/demo", device="cpu")
if sys.argv[1] == "used":  # both engines, each with threads of its own
    encoder.encode_image(images)
    ie.load("clip/demo", device="cpu", engine="torch").encode_image(images)
else:
    from transformers import CLIPModel  # and torch, which the forked processes need: once for all
precision = encoder.precision
assert precision == ("bfloat16" if os.environ["IMAGE_ENCODERS_BFLOAT16"] == "1" else "float32")
for then in ("only leaves", "goes on", "loads again"):
    child = os.fork()
    if child == 0:
        if then == "loads again":
            del encoder
            encoder = ie.load("clip/demo", device="cpu")
            assert encoder.precision == precision
        if then != "only leaves":
            np.save(f"{sys.argv[2]}/{then}.npy", encoder.encode_image(images))
            assert len(encoder.encode_text(["a red circle"])) == 1
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0, then
rows = encoder.encode_image(images)
limit = {"float32": 2e-5, "bfloat16": 0.05}[encoder.precision]  # by torch there, by OpenVINO here
for then in ("goes on", "loads again"):
    found = np.load(f"{sys.argv[2]}/{then}.npy")
    assert np.abs(found - rows).max() < limit * np.abs(rows).max(), then
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.parametrize(("before", "bfloat16"), [("used", "0"), ("loaded", "1")])
@pytest.mark.usefixtures("converted_once")
def test_a_forked_process_embeds_and_ends_as_any_other(
    before: str, bfloat16: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The other two of the four: `test_an_encoder_can_be_sent_to_forked_processes`, and below."""
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", bfloat16)
    ends_well(AFTER_A_FORK, before, tmp_path)


FORKED_AT_ONCE = """
import os, sys, threading
import numpy as np
import image_encoders as ie
from image_encoders.engines import openvino
from image_encoders.engines.closeness import probes

go, read = threading.Event(), openvino.read
def slowly(*arguments):
    assert go.wait(280)  # until the other process is done, which imports torch
    return read(*arguments)
openvino.read = slowly
encoder = ie.load("clip/demo", precision="float32")  # OpenVINO is being started
child = os.fork()
if child == 0:
    assert np.isfinite(encoder.encode_image(probes(1))).all()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
go.set()
assert np.isfinite(encoder.encode_image(probes(1))).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.usefixtures("converted_once")
def test_a_process_forked_while_openvino_starts_embeds():
    ends_well(FORKED_AT_ONCE)


FORKED_WHILE_IMPORTED = """
import importlib.machinery, os, sys, threading
import image_encoders as ie
from image_encoders.engines import openvino
from image_encoders.engines.closeness import probes

importing = threading.Event()
class Slow:  # the modules that OpenVINO imports, and others may import too
    def find_spec(name, path=None, target=None):
        if name == "slow":
            return importlib.machinery.ModuleSpec(name, Slow)
    def create_module(spec):
        return None
    def exec_module(module):
        importing.set()
        threading.Event().wait(0.5)
sys.meta_path.append(Slow)
import_openvino = openvino.import_openvino
def slowly():
    import slow
    return import_openvino()
openvino.import_openvino = slowly
encoder = ie.load("clip/demo", precision="float32")  # OpenVINO is being imported
assert importing.wait(60)
child = os.fork()
if child == 0:
    import slow
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
encoder.encode_image(probes(1))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.usefixtures("converted_once")
def test_a_process_forked_while_openvino_is_imported_can_import_the_same_modules():
    ends_well(FORKED_WHILE_IMPORTED)


INT8_AFTER_A_FORK = """
import os, sys
import numpy as np
import image_encoders as ie
from image_encoders.engines.closeness import probes
from image_encoders.errors import DeviceError

encoder = ie.load("clip/demo", precision="int8", calibration=probes(16))
child = os.fork()
if child == 0:
    try:
        encoder.encode_image(probes(1))
    except DeviceError as error:
        print(error)
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert np.isfinite(encoder.encode_image(probes(1))).all()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.usefixtures("converted_once")
def test_int8_in_a_forked_process_is_an_error_that_names_the_remedy():
    pytest.importorskip("nncf")
    assert "start processes by spawn, load only after forking" in ends_well(INT8_AFTER_A_FORK)


def test_nets_that_are_built_at_once_are_built_one_after_the_other(net: Make, inputs, rows):
    with ThreadPoolExecutor(6) as pool:  # torch cannot trace two at a time
        made = pool.map(lambda number: OpenVinoEmbedder(net(key=str(number)), "float32"), range(12))
        assert all(close(embed(inputs), rows) for embed in made)


def test_other_types_and_shapes_go_through_torch(net: Make, inputs, rows):
    embed = OpenVinoEmbedder(net(), "float32")
    assert close(embed(inputs.astype(np.float32)), rows)
    with pytest.raises(RuntimeError):
        embed(np.zeros((1, 3, 20, 20), np.uint8))  # torch's own refusal
    assert close(embed(inputs), rows)


def test_other_types_are_computed_in_the_same_precision(net: Make, inputs):
    floats = inputs.astype(np.float32)
    found = OpenVinoEmbedder(net(), "bfloat16")(floats)
    assert np.array_equal(found, TorchEmbedder(Small(), "cpu", "bfloat16")(floats))


def test_sides_of_any_length_stay_so(inputs):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.float()).mean((2, 3))

    torch.manual_seed(0)
    module = Pooled().eval()
    embed = OpenVinoEmbedder(Net("pooled", "pooled", lambda: module, small_input, (3, None, None)), "float32")
    for shape in ((2, 3, 5, 9), (1, 3, 31, 17), (9, 3, 16, 16)):
        batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        with torch.inference_mode():
            wanted = module(torch.from_numpy(batch)).numpy()
        assert np.abs(embed(batch) - wanted).max() < 1e-4 * np.abs(wanted).max()


class Moody(nn.Module):
    """Python decides by what is in the batch, which a copy of one pass cannot know."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float().flatten(1)
        return flat[:, :5] * 3 if len(x) == 2 else flat[:, :5]


def test_a_copy_that_would_give_other_embeddings_is_refused(net: Make):
    with pytest.raises(DeviceError, match="different embeddings"):
        OpenVinoEmbedder(net(Moody), "float32")


def test_auto_says_so_and_takes_torch_where_no_copy_can_be_had(net: Make, inputs, caplog):
    embed = select_embedder(Runtime.resolve("cpu"), net(Moody))
    assert (embed.engine, embed.precision) == ("torch", "float32")
    assert embed(inputs).shape == (21, 5)
    assert "using torch instead" in caplog.text


def test_an_engine_that_was_asked_for_is_never_replaced(net: Make):
    with pytest.raises(DeviceError, match="engine='torch'"):
        select_embedder(Runtime.resolve("cpu", engine="openvino"), net(Moody))


# ---------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return probes(40)


def test_int8_keeps_near_and_is_calibrated_once(net: Make, images, capfd):
    pytest.importorskip("nncf")
    inputs = np.stack([small_input(one) for one in images[:20]])
    with torch.inference_mode():
        rows = Small().eval()(torch.from_numpy(inputs)).numpy()
    embed = int8_embedder(net(), images)
    found = embed(inputs)
    assert closeness(found, rows).centred > 0.95
    assert embed.choice.precision == "int8"
    assert embed.choice.closeness.centred > 0.9
    assert capfd.readouterr().out == ""
    again = int8_embedder(net(never), embed.calibration)
    assert again.calibration == embed.calibration
    assert np.array_equal(again(inputs), found)


def test_int8_that_loses_the_embeddings_is_warned_of(net: Make, images, caplog):
    pytest.importorskip("nncf")

    class Far(nn.Module):
        """Differences of large numbers: eight bits leave nothing of them."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 64, 8, stride=8)
            self.fc = nn.Linear(64 * 4, 8)
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                self.conv.weight.normal_(0, 1)
                self.conv.bias.normal_(0, 1000)
                self.fc.weight.normal_(0, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.conv(x.float() / 255)).flatten(1))

    far = Far().eval()
    embed = int8_embedder(net(lambda: far, key="far"), images)
    assert embed.choice.closeness.centred < 0.95
    assert "int8 changes its embeddings much" in caplog.text


def test_too_few_images_to_calibrate_on_are_an_error(net: Make, images):
    unreadable = [*images[:10], "gone.jpg"]

    def prepare(source: object) -> np.ndarray:
        if isinstance(source, str):
            raise InputError("no such file", item=source)
        return small_input(source)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="10 images to calibrate"):
        int8_embedder(Net("small", "small", Small, prepare, (3, 16, 16)), unreadable)


def test_a_calibration_that_is_gone_is_an_error_that_says_what_to_do(net: Make, images, cache):
    with pytest.raises(WeightsError, match="calibrate again"):
        int8_embedder(net(), "0123456789abcdef")
    pytest.importorskip("nncf")
    digest = int8_embedder(net(), images).calibration
    (folder,) = (one for one in made_copies(cache) if digest in one.name)
    (folder / BIN).unlink()  # what the first one maps, perhaps just now, stays as it is
    (folder / BIN).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="calibrate again"):
        int8_embedder(net(), digest)(np.zeros((1, 3, 16, 16), np.uint8))
    shutil.rmtree(folder)


def test_nothing_is_logged_when_all_is_well(net: Make, inputs, caplog):
    with caplog.at_level(logging.WARNING):
        OpenVinoEmbedder(net(), "float32")(inputs)
    assert caplog.text == ""
