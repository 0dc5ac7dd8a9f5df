"""A folder as the executors' documentation supposes one: every model's weights, synthetic, where its defaults look."""

from __future__ import annotations

import faulthandler
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# Many Flows start in one process here. On Linux Jina starts Executors by forking, which gRPC's threads do not survive
# for sure; test_spec_snippets.py has a process for every Flow, and forks.
os.environ.setdefault("JINA_MP_START_METHOD", "spawn")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jina and docarray are frozen, and use what pydantic deprecates
    import image_encoders.integrations.jina  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    """Jina leaves sockets and event loops to the garbage collector, which finds some of them after the last test."""
    config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
    warnings.simplefilter("ignore", ResourceWarning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings that only the authors of jina and docarray could heed are none of these tests'."""
    for item in items:
        if "/jina/" in item.path.as_posix():
            for kind in ("DeprecationWarning", "PendingDeprecationWarning", "ResourceWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


HUB_ID = "openai/clip-vit-base-patch32"
HANGS_S = 400


@pytest.fixture(scope="session", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No executor of these tests looks for a hub; caches are the session's own."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(cache / "hub"))
        patch.setenv("HF_HUB_CACHE", str(cache / "hub"))
        patch.setenv("IMAGE_ENCODERS_CACHE", str(cache / "image-encoders"))
        patch.setenv("IMAGE_ENCODERS_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def demo() -> str:
    """The bundled model's folder."""
    from image_encoders.models.clip import DEMO

    return str(DEMO)


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Images of mixed sizes."""
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (64, 64), (31, 90), (100, 33), (64, 64), (7, 5), (128, 80)]
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path], _offline: None) -> Path:
    """A folder with `pretrained/` (BiT), `.cache/` (AudioCLIP), `runs/` (VSE++); CLIP is in the hub's cache."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "pretrained").symlink_to(_saved_model(checkpoint("bit-savedmodel-hub")))
    (folder / ".cache").symlink_to(checkpoint("audioclip"))
    run = folder / "runs" / "f30k_vse++_vggfull"
    run.mkdir(parents=True)
    for file in checkpoint("vse-vgg19").iterdir():
        (run / file.name).symlink_to(file)
    (folder / "vocab").symlink_to(checkpoint("vse-vgg19"))
    _into_hub_cache(checkpoint("clip-vit-b32"), Path(os.environ["HF_HUB_CACHE"]))
    return folder


def _saved_model(folder: Path) -> Path:
    return next(folder.rglob("saved_model.pb")).parent


def _into_hub_cache(folder: Path, cache: Path) -> None:
    """The checkpoint where huggingface_hub keeps a downloaded HUB_ID."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    commit = "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A test that hangs ends the run and shows where: a Flow that waits for ever can not be interrupted."""
    faulthandler.dump_traceback_later(HANGS_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def own_executor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own Executor and its YAML, which is none of this package's business."""
    tmp_path = tmp_path_factory.mktemp("own")
    (tmp_path / "own.py").write_text(
        "from docarray import DocList\n"
        "from jina import Executor, requests\n"
        "from image_encoders.integrations.jina import Document\n\n\n"
        "class Indexer(Executor):\n"
        "    @requests\n"
        "    def index(self, docs: DocList[Document], **_) -> DocList[Document]:\n"
        "        for doc in docs:\n"
        "            doc.tags['indexed'] = True\n"
        "        return docs\n"
    )
    path = tmp_path / "indexer.yml"
    path.write_text("jtype: Indexer\npy_modules:\n  - own.py\n")
    return path
