"""What an encoder makes of its sources, whoever else holds them."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import image_encoders as ie
from fake_encoder import SIDE, FakeEncoder
from image_encoders import models
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.audio import read_audio
from image_encoders.inputs.image import read_image

FRAMES = np.random.default_rng(0).integers(0, 256, (40, 30, 20, 3), dtype=np.uint8)


@pytest.fixture
def wanted() -> np.ndarray:
    return FakeEncoder().encode_image(list(FRAMES))


def file_of(frame: np.ndarray, kind: str = "PNG", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, kind, **options)
    file.seek(0)
    return file


# ------------------------------------------------------------------ sources that change


def refilled(make: Any) -> Iterator[Any]:
    """One array again and again, with another frame in it, as readers of video give it."""
    memory = np.empty_like(FRAMES[0])
    source = make(memory)
    for frame in FRAMES:
        memory[:] = frame
        yield source


class Wrapped:
    def __init__(self, array: np.ndarray):
        self._array = array

    def __array__(self, *arguments: object, **options: object) -> np.ndarray:
        return self._array


@pytest.mark.parametrize("make", [lambda array: array, torch.from_numpy, Wrapped, lambda array: array[:, :]])
def test_an_array_that_is_refilled_gives_the_embedding_of_what_it_held(make, wanted: np.ndarray):
    assert np.array_equal(FakeEncoder().encode_image(refilled(make)), wanted)


def test_bytes_that_are_refilled_give_the_embedding_of_what_they_held(wanted: np.ndarray):
    def files() -> Iterator[bytearray]:
        memory = bytearray()
        for frame in FRAMES:
            memory[:] = file_of(frame, "BMP").getvalue()
            yield memory

    assert np.array_equal(FakeEncoder().encode_image(files()), wanted)


def test_a_sound_that_is_refilled_gives_the_embedding_of_what_it_held():
    def mean(sounds: np.ndarray) -> np.ndarray:
        return sounds.mean(axis=1, keepdims=True)

    def sounds() -> Iterator[tuple[np.ndarray, int]]:
        samples = np.empty(500, np.float32)
        for number in range(40):
            samples[:] = number / 40
            yield samples, 8000

    encoder = Encoder(
        "sounds", 1, {"audio": Tower(InputSpec("audio", read_audio, lambda item: item[0]), mean)}, "f" * 32
    )
    assert encoder.encode_audio(sounds())[:, 0] == pytest.approx(np.arange(40) / 40)


def test_a_prepared_image_that_is_refilled_gives_the_embedding_of_what_it_held():
    images = np.random.default_rng(0).random((9, 3, SIDE, SIDE), np.float32)

    def drawn() -> Iterator[np.ndarray]:
        memory = np.empty_like(images[0])
        for image in images:
            memory[:] = image
            yield memory

    assert np.array_equal(FakeEncoder().embed_image(drawn()), FakeEncoder().embed_image(images))


def test_the_images_of_an_animation_may_be_drawn_one_by_one(wanted: np.ndarray):
    others = [Image.fromarray(frame) for frame in FRAMES[1:]]
    animation = file_of(FRAMES[0], "WEBP", save_all=True, append_images=others, lossless=True)
    images = ImageSequence.Iterator(Image.open(animation))
    assert np.array_equal(FakeEncoder().encode_image(images), wanted)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_a_pil_image_that_is_not_decoded_yet_may_come_many_times(kind: str):
    for frame in FRAMES[:10]:
        file = file_of(frame, kind)
        rows = FakeEncoder().encode_image([Image.open(file)] * 16)
        assert np.array_equal(rows, np.repeat(FakeEncoder().encode_image([file.getvalue()]), 16, axis=0))


def test_arrays_of_a_list_are_not_copied():
    read: list[np.ndarray] = []
    inputs = InputSpec("image", read_image, lambda pixels: read.append(pixels) or pixels)
    tower = Tower(inputs, lambda batch: batch[:, 0, 0])
    Encoder("plain", 3, {"image": tower}, "f" * 32).encode_image([FRAMES[0], FRAMES[1]])
    assert sorted(id(pixels.base) for pixels in read) == [id(FRAMES)] * 2


@pytest.mark.parametrize(
    ("given", "read_here"),
    [(list, {"BufferedReader", "PngImageFile"}), (iter, {"BufferedReader", "ndarray", "PngImageFile"})],
)
def test_what_may_be_other_by_then_is_not_left_to_threads(given: Any, read_here: set[str], tmp_path: Path):
    on: dict[str, threading.Thread] = {}

    def read(source: Any) -> np.ndarray:
        on[type(source).__name__] = threading.current_thread()
        return read_image(source)

    path = tmp_path / "image"
    path.write_bytes(file_of(FRAMES[0]).getvalue())
    with open(path, "rb") as file:
        sources = [str(path), path, path.read_bytes(), FRAMES[0], Image.open(path), file]
        FakeEncoder(read=read).encode_image(given(sources))
    here = {kind for kind, thread in on.items() if thread is threading.current_thread()}
    assert here == read_here
    assert set(on) - here == {"str", type(path).__name__, "bytes", "ndarray", "PngImageFile"} - read_here


def test_the_first_wrong_source_is_named_though_a_later_one_is_read_before():
    with pytest.raises(InputError, match=r"^image\[1\]: not an image"):
        FakeEncoder().encode_image([FRAMES[0], b"no image", np.zeros(3), None])


# ------------------------------------------------------------------ open files


def test_open_files_are_read_and_left_open(tmp_path: Path, wanted: np.ndarray):
    path = tmp_path / "image.png"
    path.write_bytes(file_of(FRAMES[0]).getvalue())
    with open(path, "rb") as file, open(path, "rb", buffering=0) as raw:
        rows = FakeEncoder().encode_image([file, raw, file_of(FRAMES[1])])
        assert np.array_equal(rows, wanted[[0, 0, 1]])
        file.seek(0)
        assert file.read() == path.read_bytes()


def test_a_single_open_file_is_not_taken_for_a_list():
    with pytest.raises(InputError, match="wrap a single one"):
        FakeEncoder().encode_image(file_of(FRAMES[0]))


# ------------------------------------------------------------------ lists and what is none


@pytest.mark.parametrize("kind", [str, object, "pandas"])
def test_an_array_or_a_column_of_paths_is_a_list(kind: Any, tmp_path: Path, wanted: np.ndarray):
    paths = []
    for number in range(3):
        paths.append(str(tmp_path / str(number)))
        Path(paths[-1]).write_bytes(file_of(FRAMES[number]).getvalue())
    if kind == "pandas":
        column = pytest.importorskip("pandas").Series(paths)
    else:
        column = np.array(paths, dtype=kind)
    assert np.array_equal(FakeEncoder().encode_image(column), wanted[:3])


@pytest.mark.parametrize(
    "one", [b"", bytearray(), bytearray(9), memoryview(b"")], ids=lambda one: f"{type(one).__name__}({len(one)})"
)
def test_bytes_of_any_kind_are_not_taken_for_a_list(one: Any):
    with pytest.raises(InputError, match=r"takes a list; wrap a single one: encode_image\(\[image\]\)") as caught:
        FakeEncoder().encode_image(one)
    assert caught.value.code == "not-a-list"


@pytest.mark.parametrize(
    "numbers", [np.arange(5), np.zeros(5, np.uint8), torch.zeros(5)], ids=lambda n: type(n).__name__
)
def test_a_row_of_numbers_is_no_list_of_images(numbers: Any):
    with pytest.raises(InputError, match=r"got numbers of shape \(5,\); a list of images is accepted") as caught:
        FakeEncoder().encode_image(numbers)
    assert caught.value.code == "not-a-list"


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize("batch_size", [0, -1, None, "3", 1.5, True, np.float32(2)])
def test_a_batch_size_that_is_no_whole_number_above_zero_is_refused(batch_size: Any):
    encoder = FakeEncoder()
    for encode, sources in ((encoder.encode_image, FRAMES), (encoder.embed_image, np.zeros((2, 3, SIDE, SIDE)))):
        with pytest.raises(InputError, match=r"^batch_size is .*; a whole number of 1 or more is accepted") as caught:
            encode(sources, batch_size=batch_size)
        assert caught.value.code == "batch-size"


def test_a_batch_size_may_be_numpys(wanted: np.ndarray):
    assert np.array_equal(FakeEncoder().encode_image(FRAMES, batch_size=np.int64(7)), wanted)


@pytest.mark.parametrize("prepared", [None, 3.0, np.float32(3), torch.tensor(3.0)])
def test_prepared_images_that_are_no_list_are_refused(prepared: Any):
    with pytest.raises(InputError, match="are accepted") as caught:
        FakeEncoder().embed_image(prepared)
    assert caught.value.code == "not-a-list"


def test_prepared_images_may_be_tensors_of_any_floats():
    prepared = np.random.default_rng(0).integers(0, 99, (3, 3, SIDE, SIDE)).astype(np.float32)
    tensor = torch.from_numpy(prepared)
    wanted = FakeEncoder().embed_image(prepared)
    for same in (tensor, tensor.bfloat16(), tensor.double(), tensor.clone().requires_grad_(), list(tensor)):
        assert np.array_equal(FakeEncoder().embed_image(same), wanted)


def test_a_prepared_image_that_makes_no_array_is_named():
    with pytest.raises(InputError, match=r"^prepared\[0\]: a Tensor that cannot be converted to an array"):
        FakeEncoder().embed_image([torch.zeros(3, SIDE, SIDE, device="meta")])


@pytest.mark.parametrize("family", models.families())
def test_a_tensor_that_makes_no_array_is_named_by_every_family(family: str):
    for tensor in (torch.zeros(40, 40).to_sparse(), torch.zeros(40, 40, 3, device="meta")):
        with pytest.raises(InputError, match=r"^image\[0\]: a Tensor that cannot be converted to an array"):
            models.family(family).tiny().assemble().encode_image([tensor])


# ------------------------------------------------------------------ other processes


@pytest.fixture(scope="module")
def demo() -> Encoder:
    return ie.load("clip/demo", device="cpu")


def test_an_encoder_works_in_a_spawned_process(demo: Encoder):
    content = file_of(FRAMES[0]).getvalue()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rows = pool.submit(demo.encode_image, [content]).result(timeout=300)
    assert np.array_equal(rows, demo.encode_image([content]))


FORKED = """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import numpy as np
import image_encoders as ie
from transformers import CLIPModel  # and torch, which the forked processes need: once for all

encoder = ie.load("clip/demo", device="cpu")
images = [np.full((40, 50, 3), 12 * i, np.uint8) for i in range(20)]
rows = encoder.encode_image(images)
limit = {"float32": 2e-5, "bfloat16": 0.05}[encoder.precision]  # by torch there, by OpenVINO here
with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
    for found in pool.map(encoder.encode_image, [images] * 4):
        assert np.abs(found - rows).max() < limit * np.abs(rows).max()
"""


FORKED_WHILE_READING = """
import io, os, signal, threading
import numpy as np
from PIL import Image
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.inputs.image import read_image

file = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(file, "PNG")
content = file.getvalue()
spec = InputSpec("image", read_image, lambda pixels: pixels)
encoder = Encoder("plain", 3, {"image": Tower(spec, lambda inputs: inputs[:, 0, 0].astype(np.float32))}, "f" * 32)

def encode():
    encoder.encode_image([*(Image.open(io.BytesIO(content)) for _ in range(8)), content, io.BytesIO(content)])

def encode_until_the_end():
    while not ended:
        encode()

ended = []
threads = [threading.Thread(target=encode_until_the_end) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # which ends one that hangs
        encode()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
ended.append(True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_process_forked_while_threads_encode_does_not_wait_for_their_locks():
    done = subprocess.run([sys.executable, "-c", FORKED_WHILE_READING], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["0"] * 30, done.stderr


FORKED_WHILE_A_DECODER_IS_IMPORTED = """
import importlib.machinery, os, signal, sys, threading
import numpy as np
from image_encoders.encoder import Encoder, InputSpec, Tower

importing, forking = threading.Event(), threading.Event()
class Slow:  # a decoder's modules, imported for the first image
    def find_spec(name, path=None, target=None):
        if name == "slow":
            return importlib.machinery.ModuleSpec(name, Slow)
    def create_module(spec):
        return None
    def exec_module(module):
        importing.set()
        assert forking.wait(60)
sys.meta_path.append(Slow)
os.register_at_fork(before=forking.set)

def read(source):
    import slow
    return np.full((2, 2, 3), source, np.uint8)

spec = InputSpec("image", read, lambda pixels: pixels)
encoder = Encoder("plain", 3, {"image": Tower(spec, lambda inputs: inputs[:, 0, 0].astype(np.float32))}, "f" * 32)
thread = threading.Thread(target=encoder.encode_image, args=([1, 2],))
thread.start()
assert importing.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(20)  # which ends one that hangs
    assert (encoder.encode_image([3, 4]) == [[3] * 3, [4] * 3]).all()
    os._exit(0)
thread.join()
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_fork_waits_until_other_threads_have_imported_what_they_decode_with():
    command = [sys.executable, "-c", FORKED_WHILE_A_DECODER_IS_IMPORTED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.usefixtures("bfloat16")
def test_an_encoder_can_be_sent_to_forked_processes():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_what_auto_chose_elsewhere_is_kept_and_remains_autos_choice(demo: Encoder):
    low = ie.load("clip/demo", device="cpu", precision="bfloat16", engine="torch")
    again = models._reloaded(demo.recipe, low.precision, low.fingerprint)  # auto had taken bfloat16 there
    assert (again.precision, again.fingerprint, again.recipe) == ("bfloat16", low.fingerprint, demo.recipe)


def test_a_copy_shares_the_nets(demo: Encoder):
    for other in (copy.copy(demo), copy.deepcopy(demo)):
        assert other == demo
        assert other is not demo
        assert other.towers is demo.towers


def test_an_unpickled_encoder_is_the_same(demo: Encoder):
    again = pickle.loads(pickle.dumps(demo))
    for fact in ("name", "dim", "fingerprint", "device", "engine", "precision", "recipe", "choice", "modalities"):
        assert getattr(again, fact) == getattr(demo, fact), fact
    assert np.array_equal(again.encode_text(["a red circle"]), demo.encode_text(["a red circle"]))


def test_an_encoder_whose_files_have_changed_is_not_unpickled(demo: Encoder):
    changed = pickle.dumps(demo).replace(demo.fingerprint.encode(), b"0" * 32)
    with pytest.raises(WeightsError, match=r"clip/demo is not the encoder that was pickled"):
        pickle.loads(changed)


def test_an_encoder_that_was_not_loaded_says_that_it_cannot_be_pickled():
    with pytest.raises(pickle.PicklingError, match="not created by load"):
        pickle.dumps(models.family("clip").tiny().assemble())
