"""docs/architecture.md shows the calls between modules of two paths: here they are listed anew, and compared."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image

import image_encoders as ie

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = "image_encoders."
FLOOR = ("cache", "process")

Call = tuple[str, str, str]  # calling module, called module, function


def calls_between_modules(run: Callable[[], Any]) -> list[Call]:
    """The calls from one module of the package into another, each once, in the order in which they are made first.

    What other libraries call counts as called by the module that called them. Not counted: what is run by an import,
    the constructors that dataclasses generate, and a thread's first function.
    """
    calls: dict[Call, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        module, code = frame.f_globals.get("__name__", ""), frame.f_code
        if event != "call" or not module.startswith(PACKAGE) or code.co_filename == "<string>":
            return
        caller = frame.f_back
        while caller is not None and not caller.f_globals.get("__name__", "").startswith(PACKAGE):
            caller = caller.f_back
        if caller is None or "<module>" in (code.co_name, caller.f_code.co_name):
            return
        if caller.f_globals["__name__"] != module:
            called = (caller.f_globals["__name__"].removeprefix(PACKAGE), module.removeprefix(PACKAGE), _name(frame))
            calls.setdefault(called)

    threads = set(threading.enumerate())
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    return list(calls)


def _name(frame: FrameType) -> str:
    """The function's name; that of the class, where it is a constructor."""
    owner = next(iter(frame.f_locals.values()), None) if frame.f_code.co_argcount else None
    return type(owner).__name__ if frame.f_code.co_name == "__init__" else frame.f_code.co_name


def paths(folder: Path) -> dict[str, list[Call]]:
    """The calls of both paths, what they need being in the cache already."""
    image = folder / "image.jpg"
    Image.new("RGB", (300, 200), "teal").save(image)

    def load() -> ie.Encoder:
        return ie.load("clip/demo", device="cpu", precision="float32")

    encoder = load()
    encoder.encode_image([image])
    return {"encode": calls_between_modules(lambda: encoder.encode_image([image])), "load": calls_between_modules(load)}


def is_step(call: Call) -> bool:
    """Whether a call goes from one part of the package to another, and not to the floor that everything stands on."""
    caller, called, _ = call
    return called not in FLOOR and not ("." in caller and caller.partition(".")[0] == called.partition(".")[0])


def line(call: Call) -> str:
    """A call as the page shows it: steps at the left, the others below them."""
    caller, called, function = call
    return f"{'    ' if is_step(call) else '        '}{caller} → {called}.{function}"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Call]]:
    return paths(tmp_path_factory.mktemp("paths"))


@pytest.mark.parametrize("path", ["encode", "load"])
def test_the_page_shows_the_calls_between_modules(path: str, found: dict[str, list[Call]]):
    page = PAGE.read_text("utf-8")
    block = re.search(rf"<!-- {path} -->\n\n(.*?)\n\n<!-- end -->", page, re.DOTALL)
    assert block is not None
    assert sorted(block[1].splitlines()) == sorted(map(line, found[path]))
    assert f"{sum(map(is_step, found[path]))} steps" in page
    assert f"{len(found[path])} calls" in page


@pytest.mark.parametrize("path", ["encode", "load"])
def test_no_call_goes_up_through_the_layers(path: str, found: dict[str, list[Call]]):
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    height = {
        module: -level
        for contract in contracts[:2]
        for level, modules in enumerate(contract["layers"])
        for module in modules.split(" | ")
    }
    for caller, called, function in found[path]:
        (above, *within), (below, *inside) = caller.split("."), called.split(".")
        if above == below and within and inside:  # two files of a package
            above, below = within[0], inside[0]
        assert height.get(above, 0) >= height.get(below, 0), f"{caller} -> {called}.{function}"


@pytest.mark.parametrize("path", ["encode", "load"])
def test_no_module_is_called_by_one_that_it_calls(path: str, found: dict[str, list[Call]]):
    calls: dict[str, set[str]] = {}
    for caller, called, _ in found[path]:
        calls.setdefault(caller, set()).add(called)
    while calls:
        leaves = {called for some in calls.values() for called in some} - set(calls)
        calls = {caller: some - leaves for caller, some in calls.items()}
        ended = {caller for caller, some in calls.items() if not some}
        assert ended, f"a circle among {', '.join(calls)}"
        calls = {caller: some for caller, some in calls.items() if some}


def test_what_the_page_says_to_change_is_there():
    table = PAGE.read_text("utf-8").partition("## Where to change what")[2].partition("\n## ")[0]
    files = [name for name in re.findall(r"`([\w/]+\.py)`", table) if "/" in name]
    assert len(files) >= 9
    assert [name for name in files if not (ROOT / "src" / "image_encoders" / name).is_file()] == []


if __name__ == "__main__":  # what to write into the page
    import tempfile

    for path, some in paths(Path(tempfile.mkdtemp())).items():
        print(f"{path}: {sum(map(is_step, some))} steps, {len(some)} calls", *map(line, some), sep="\n")
