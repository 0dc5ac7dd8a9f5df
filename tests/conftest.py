"""What the tests share: the conformance bundle, its checkpoints made once per machine, and the measure of agreement."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from image_encoders.cache import file_lock
from image_encoders.conformance import bundle
from image_encoders.conformance.agreement import Limits, agreement

collect_ignore = [] if importlib.util.find_spec("docarray") else ["jina"]  # it has an environment of its own

if importlib.util.find_spec("hypothesis"):  # the same examples every time; --hypothesis-profile=default draws others
    from hypothesis import settings

    settings.register_profile("steady", derandomize=True)
    settings.load_profile("steady")

# Threads of torch that wait for others sleep: on a busy machine those that spin keep the others from being done. No
# number depends on it. Torch is not imported yet; processes that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

CHECKPOINTS = bundle.checkpoints()  # before any test chooses another cache


@pytest.fixture(scope="session", autouse=True)
def session_cache() -> Iterator[Path]:
    """A cache of the session's own: what is converted, measured or remembered here is made by the code that is here."""
    with TemporaryDirectory(prefix="image-encoders-tests-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMAGE_ENCODERS_CACHE", folder)
        patch.setenv("IMAGE_ENCODERS_CONVERT_APART", "0")  # this process has imported torch already
        yield Path(folder)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C reaches tests and the commands they start, also in the background of a shell, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=["0", "1"], ids=["without-bfloat16", "with-bfloat16"])
def bfloat16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The test runs twice: on a machine without bfloat16, and on one with it; whether this is the one with it.

    Where the processor has instructions for bfloat16 OpenVINO computes it, as always; elsewhere torch does, slowly.
    Processes that the test starts are on the same machine: it is the environment that says so.
    """
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", request.param)
    return bool(request.param == "1")


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The folder of the conformance bundle: specs/, golden/, images/, audio/."""
    return bundle.FOLDER


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    """Seed, inputs and tolerances of the bundle, as its manifest.json states them."""
    return bundle.manifest()


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], Path]:
    """checkpoint(case) -> the folder with the case's checkpoint, made on first use and kept, as `verify` keeps it."""

    def made(case: str) -> Path:
        with file_lock(CHECKPOINTS / f".{case}.lock"):  # test processes that need it together make it once
            return bundle.checkpoint(case, CHECKPOINTS)

    return made


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """golden(case) -> the arrays of golden/<case>.npz by key."""
    return bundle.golden


@pytest.fixture(scope="session")
def float_inputs() -> Callable[[str, str], np.ndarray]:
    """float_inputs(case, name) -> the generated (N, 3, H, W) float32 images that the reference was run on."""
    return bundle.float_inputs


@pytest.fixture(scope="session")
def assert_embeddings_agree() -> Callable[..., None]:
    """assert_embeddings_agree(found, reference, rel=..., one_minus_cos=...): both measures of the bundle must hold."""

    def check(embeddings: np.ndarray, reference: np.ndarray, *, rel: float, one_minus_cos: float) -> None:
        assert embeddings.shape == reference.shape
        assert embeddings.dtype == np.float32
        found, limits = agreement(embeddings, reference), Limits(rel=rel, one_minus_cos=one_minus_cos)
        assert limits.hold(found), f"{found} exceeds {limits}"

    return check


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)
