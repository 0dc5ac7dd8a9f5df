"""What is converted and probed is so in a process of its own, which may die without this one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_encoders.child import ChildDied, ChildTooSlow, Unsendable, call_in_child
from image_encoders.errors import MissingExtra


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))


def run(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    apart = {**os.environ, "IMAGE_ENCODERS_CONVERT_APART": "1", **environment}
    return subprocess.run(words, capture_output=True, text=True, timeout=600, env=apart)


def test_a_call_in_a_child_returns_and_raises_as_any_other():
    assert call_in_child("math:hypot", 3.0, 4.0) == 5.0
    assert call_in_child("os:getpid") != os.getpid()
    assert call_in_child("os:getenv", "OF_THE_CHILD", environment={"OF_THE_CHILD": "alone"}) == "alone"
    with pytest.raises(ValueError, match="math domain error"):
        call_in_child("math:sqrt", -1.0)


def test_what_a_child_prints_is_no_answer(capfd):
    assert call_in_child("builtins:print", "printed") is None
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("function", "argument", "how"),
    [("signal:raise_signal", signal.SIGFPE, "SIGFPE"), ("os:_exit", 3, "exit status 3")],
)
def test_a_child_that_dies_says_how(function: str, argument: int, how: str):
    with pytest.raises(ChildDied, match=how):
        call_in_child(function, argument)


def test_a_child_that_takes_too_long_is_ended():
    with pytest.raises(ChildTooSlow, match=r"not done after 0\.5 s"):
        call_in_child("time:sleep", 3600, limit_s=0.5)
    with pytest.raises(ChildTooSlow):
        call_in_child("builtins:len", b"a long question" * 100_000, limit_s=0)
    assert call_in_child("time:sleep", 0, limit_s=3600) is None


SLEEPS = """
import os, sys, time
def sleep(path):
    with open(path + ".part", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".part", path)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_ends_with_its_parent(number: signal.Signals, tmp_path: Path):
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    code = "import sys; sys.path.append(sys.argv[1])\n" + (
        "from image_encoders.child import call_in_child; call_in_child('sleeps:sleep', sys.argv[2])"
    )
    noted = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, tmp_path, noted], stderr=subprocess.DEVNULL)
    try:
        while not noted.exists():
            assert parent.poll() is None
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(300)
        child = int(noted.read_text())
        for _ in range(600):
            if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
                return
            time.sleep(0.1)
        pytest.fail("the child is still there")
    finally:
        parent.kill()
        parent.wait()


def test_what_cannot_be_sent_to_a_child_says_so():
    with open(os.devnull) as file, pytest.raises(Unsendable, match="pickle"):
        call_in_child("builtins:print", file)


DIES = """
import os, signal, sys
if os.environ.get("IMAGE_ENCODERS_CONVERT_APART") == "0":
    def die(event, arguments):
        if event == "import" and arguments[0].startswith("openvino."):
            os.kill(os.getpid(), signal.SIGFPE)
    sys.addaudithook(die)
"""
WITHOUT_OPENVINO = """
import sys
import numpy as np
import image_encoders as ie
from image_encoders.errors import DeviceError

encoder = ie.load("clip/demo", device="cpu", precision=sys.argv[1])
plain = ie.load("clip/demo", device="cpu", precision=encoder.precision, engine="torch")
images = [np.full((40, 50, 3), value, np.uint8) for value in (0, 90, 200)]
assert encoder.engine == "torch"
assert np.array_equal(encoder.encode_image(images), plain.encode_image(images))
assert encoder.encode_text(["a circle"]).shape == (1, 128)
if sys.argv[1] == "auto":
    try:
        ie.load("clip/demo", engine="openvino")
    except DeviceError as error:
        print(error)
assert "openvino" not in sys.modules
"""


@pytest.mark.parametrize(("precision", "bfloat16"), [("auto", "1"), ("float32", "0")])
def test_where_an_engine_kills_its_process_torch_takes_over(precision: str, bfloat16: str, tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(DIES)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    ran = run(WITHOUT_OPENVINO, precision, PYTHONPATH=path, IMAGE_ENCODERS_BFLOAT16=bfloat16)
    assert ran.returncode == 0, ran.stderr
    assert "the model runs in torch instead of OpenVINO: " in ran.stderr
    assert "SIGFPE" in ran.stderr
    if precision == "auto":
        assert "OpenVINO cannot run this model here: " in ran.stdout
        assert "SIGFPE; use engine='torch'" in ran.stdout


def test_an_error_of_the_model_is_raised_as_it_is(tmp_path: Path):
    code = """
import sys
import image_encoders as ie
try:
    ie.load("clip/demo", device="cpu", weights=sys.argv[1])
except ie.WeightsError as error:
    print(error)
"""
    import shutil

    from image_encoders.models.clip import DEMO

    folder = tmp_path / "checkpoint"
    shutil.copytree(DEMO, folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    ran = run(code, folder)
    assert ran.returncode == 0, ran.stderr
    assert str(folder) in ran.stdout


def test_an_error_that_names_an_extra_comes_back_whole():
    missing = MissingExtra("nncf", "int8", "precision='int8'")
    with pytest.raises(MissingExtra, match=r"needs nncf: pip install 'image-encoders\[int8\]'"):
        raise pickle.loads(pickle.dumps(missing))


ODD = """
class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
def fail():
    raise Odd(1, 2)
"""


def test_an_error_that_cannot_be_made_again_comes_back_as_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "odd_errors.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match="1 and 2"):
        call_in_child("odd_errors:fail")
