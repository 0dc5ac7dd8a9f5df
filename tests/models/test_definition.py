"""Definitions of custom nets that import the modules beside them: each its own, and all of them in the fingerprint."""

from __future__ import annotations

import gc
import importlib.util
import multiprocessing
import pickle
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from image_encoders import InputError, WeightsError, load
from image_encoders.definition import Definition

ONES = np.ones((1, 3, 8, 8), np.float32)

NET = """
from torch import nn
{imports}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.weight = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight).detach())
    def forward(self, x):
        return self.features(x * self.weight * {factor})
"""


def write(folder: Path, imports: str, factor: str, **siblings: str) -> Path:
    """A definition whose net multiplies by `factor`, its checkpoint, and the modules beside it by their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(NET.format(imports=imports, factor=factor))
    torch.save({"weight": torch.ones(1, 1)}, folder / "state.pth")
    for name, text in siblings.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def encoder(folder: Path, **options):
    files = {"weights": folder / "state.pth", "definition": folder / "model.py", "class_name": "Net"}
    return load("custom", **files, device="cpu", precision="float32", engine="torch", **options)


def factor(folder: Path, **options) -> float:
    return float(encoder(folder, **options).embed_image(ONES)[0, 0])


def test_two_definitions_have_their_own_modules_of_one_name(tmp_path):
    one = encoder(write(tmp_path / "one", "import blocks", "blocks.FACTOR", blocks="FACTOR = 2"))
    two = encoder(write(tmp_path / "two", "import blocks", "blocks.FACTOR", blocks="FACTOR = 3"))
    assert [float(each.embed_image(ONES)[0, 0]) for each in (one, two, one)] == [2, 3, 2]
    assert one.fingerprint != two.fingerprint


def test_what_a_sibling_says_is_in_the_fingerprint_and_where_it_lies_is_not(tmp_path):
    here = write(
        tmp_path / "here", "import blocks", "blocks.FACTOR", blocks="from deep import FACTOR", deep="FACTOR = 2"
    )
    there = write(
        tmp_path / "a" / "b", "import blocks", "blocks.FACTOR", blocks="from deep import FACTOR", deep="FACTOR = 2"
    )
    (there / "never_imported.py").write_text("FACTOR = 5")
    first = encoder(here).fingerprint
    assert encoder(there).fingerprint == first
    (here / "deep.py").write_text("FACTOR = 3")
    changed = encoder(here)
    assert changed.fingerprint != first
    assert float(changed.embed_image(ONES)[0, 0]) == 3


@pytest.mark.parametrize(
    ("imports", "name"),
    [
        ("import parts.conv as c", "c.FACTOR"),
        ("import parts.conv", "parts.conv.FACTOR"),
        ("import parts", "parts.FACTOR"),
        ("from parts import FACTOR", "FACTOR"),
        ("from parts import conv", "conv.FACTOR"),
        ("from parts import *", "conv.FACTOR"),
        ("from parts.inner.deep import FACTOR", "FACTOR"),
        ("from parts.inner import deep", "deep.FACTOR"),
        ("from .parts import FACTOR", "FACTOR"),
        ("from . import parts", "parts.FACTOR"),
        ("from .parts.conv import FACTOR", "FACTOR"),
        ("from bare.inside import FACTOR", "FACTOR"),
        ("import bare.inside", "bare.inside.FACTOR"),
        ("import importlib\nFACTOR = importlib.import_module('parts.conv').FACTOR", "FACTOR"),
        ("from importlib import import_module\nFACTOR = import_module('.parts', __package__).FACTOR", "FACTOR"),
        ("import importlib, parts", "importlib.import_module('.conv', parts.__name__).FACTOR"),
        ("import importlib, parts", "importlib.import_module(f'{parts.__name__}.conv').FACTOR"),
        ("import importlib.util, parts", "parts.FACTOR if importlib.util.find_spec else 0"),
    ],
)
def test_siblings_are_imported_in_every_way_that_python_has(imports, name, tmp_path):
    siblings = {
        "parts/__init__": "__all__ = ['conv']\nfrom .inner.deep import FACTOR\nfrom . import conv",
        "parts/conv": "from .inner import deep\nfrom parts.inner.deep import FACTOR",
        "parts/inner/__init__": "",
        "parts/inner/deep": "from ..inner import __name__ as own\nFACTOR = 7",
        "bare/inside": "FACTOR = 7",
    }
    folder = write(tmp_path, imports, name, **siblings)
    before = set(sys.modules), list(sys.path), list(sys.meta_path)
    one = encoder(folder)
    assert float(one.embed_image(ONES)[0, 0]) == 7
    added = set(sys.modules) - before[0]
    assert all(module.startswith("image_encoders_definition_") for module in added if "parts" in module)
    assert (sys.path, sys.meta_path) == before[1:]
    changed = folder / ("bare/inside.py" if "bare" in imports else "parts/inner/deep.py")
    changed.write_text(changed.read_text() + "\n# changed")
    assert encoder(folder).fingerprint != one.fingerprint


def test_modules_that_import_each_other_see_one_another(tmp_path):
    siblings = {"left": "import right\nFACTOR = 2", "right": "import left\nfrom model import __file__ as whose"}
    assert factor(write(tmp_path, "import left, right", "left.FACTOR if right.left is left else 0", **siblings)) == 2


def test_what_is_installed_is_shared_and_the_standard_library_goes_first(tmp_path):
    siblings = {"types": "FACTOR = 9", "numpy/core_of_mine": "FACTOR = 9", "wheel_of_mine": "FACTOR = 2"}
    imports = "import types, numpy, wheel_of_mine, collections.abc, sys, torch.nn.functional as F"
    name = "(wheel_of_mine.FACTOR if types is sys.modules['types'] and numpy is sys.modules['numpy'] else 0)"
    assert factor(write(tmp_path, imports, name, **siblings)) == 2


def test_a_sibling_goes_before_what_is_installed_as_it_does_for_a_script(tmp_path):
    assert importlib.util.find_spec("filelock")
    folder = write(tmp_path, "import filelock", "filelock.FACTOR", filelock="FACTOR = 3")
    assert factor(folder) == 3
    import filelock

    assert not hasattr(filelock, "FACTOR")


def test_a_relative_import_stays_within_the_folder(tmp_path):
    (tmp_path / "blocks.py").write_text("FACTOR = 2")
    with pytest.raises(WeightsError, match="line 3: ImportError: attempted relative import beyond the folder of"):
        encoder(write(tmp_path / "net", "from ..blocks import FACTOR", "FACTOR"))


@pytest.mark.parametrize(
    ("sibling", "message"),
    [
        ("x = 1\ny = 1 / 0", r"fails when run: blocks.py, line 2: ZeroDivisionError"),
        ("x = 1\nx = (", r"fails when run: blocks.py, line 2: SyntaxError"),
        ("import no_such_package_at_all", r"blocks.py, line 1: ModuleNotFoundError: .*no_such_package_at_all"),
        ("from . import nothing", r"blocks.py, line 1: ImportError: cannot import name 'nothing'"),
        ("import parts.missing", r"blocks.py, line 1: ModuleNotFoundError: No module named 'parts.missing'"),
        ("import sys\nsys.exit(0)", r"blocks.py, line 2: SystemExit: 0"),
    ],
)
def test_an_error_in_a_sibling_says_where(sibling, message, tmp_path):
    folder = write(tmp_path, "import blocks", "1", blocks=sibling, **{"parts/__init__": ""})
    before = set(sys.modules)
    with pytest.raises(WeightsError, match=message):
        encoder(folder)
    gc.collect()
    assert not [name for name in set(sys.modules) - before if "definition" in name]


def test_a_sibling_that_is_imported_during_a_pass_counts_if_it_was_during_loading(tmp_path):
    late = "__import__('late' if x.shape[-1] != 24 else 'later').FACTOR"
    folder = write(tmp_path, "", late, late="FACTOR = 2", later="FACTOR = 3")
    one = encoder(folder)
    assert float(one.embed_image(ONES)[0, 0]) == 2
    with pytest.raises(InputError, match=r"later is imported for the first time after loading.*at the top of the def"):
        one.embed_image(np.ones((1, 3, 24, 24), np.float32))
    (folder / "late.py").write_text("FACTOR = 4")
    assert encoder(folder).fingerprint != one.fingerprint


def test_the_modules_go_when_the_net_does(tmp_path):
    folder = write(tmp_path, "import dataclasses, blocks", "blocks.FACTOR", blocks="FACTOR = 2")
    before = set(sys.modules)
    one = encoder(folder)
    assert [name for name in sys.modules if name.endswith(".blocks") and name not in before]
    del one
    gc.collect()
    assert not [name for name in set(sys.modules) - before if "definition" in name]


def test_type_hints_and_dataclasses_of_siblings_are_resolved(tmp_path):
    blocks = """
    from __future__ import annotations
    import dataclasses, typing
    @dataclasses.dataclass
    class Size:
        side: Side = 2
    Side = int
    FACTOR = Size().side if typing.get_type_hints(Size) == {"side": int} else 0
    """
    assert factor(write(tmp_path, "import blocks", "blocks.FACTOR", blocks=blocks)) == 2


def test_eight_threads_load_definitions_with_modules_of_one_name(tmp_path):
    folders = [
        write(tmp_path / str(number), "import blocks", "blocks.FACTOR", blocks=f"FACTOR = {number}")
        for number in range(1, 9)
    ]
    start = threading.Barrier(8)

    def loaded(folder):
        start.wait(120)
        return [factor(folder) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(loaded, folders)) == [[number] * 3 for number in range(1, 9)]


def test_threads_that_import_at_once_have_one_module(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(0.05)\nFACTOR = object()\n")
    (tmp_path / "model.py").write_text("def late():\n    import slow\n    return slow.FACTOR\n")
    module = Definition(tmp_path / "model.py").run()
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: module.late(), range(8)))) == 1


def _factor_of(one, results):
    results.put((float(one.embed_image(ONES)[0, 0]), one.fingerprint))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_encoder_keeps_its_modules_in_another_process(method, tmp_path):
    write(tmp_path / "other", "import blocks", "blocks.FACTOR", blocks="FACTOR = 3")
    one = encoder(write(tmp_path / "one", "import blocks", "blocks.FACTOR", blocks="FACTOR = 2"))
    other = encoder(tmp_path / "other")
    if method == "spawn":  # pickled and loaded again, which is what a spawned process does first
        one, other = pickle.loads(pickle.dumps(one)), pickle.loads(pickle.dumps(other))
        assert [float(each.embed_image(ONES)[0, 0]) for each in (one, other)] == [2, 3]
        return
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_factor_of, args=(one, results))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert results.get() == (2, one.fingerprint)


def test_a_pickled_encoder_is_refused_when_a_sibling_has_changed(tmp_path):
    folder = write(tmp_path, "import blocks", "blocks.FACTOR", blocks="FACTOR = 2")
    pickled = pickle.dumps(encoder(folder))
    (folder / "blocks.py").write_text("FACTOR = 3")
    with pytest.raises(WeightsError, match="not the encoder that was pickled"):
        pickle.loads(pickled)


def test_the_definition_runs_as_itself_and_not_as_this_package_is_compiled(tmp_path):
    folder = write(tmp_path, "def f(x: 1 + 1): pass", "f.__annotations__['x']")  # not the text '1 + 1'
    assert factor(folder) == 2
