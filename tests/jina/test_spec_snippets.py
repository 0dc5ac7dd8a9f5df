"""The executors' own documents: every Python and YAML block runs as it stands, but for what docs/jina.md lists.

Each block is a program in a process of its own, in a folder with synthetic weights where the defaults look for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

SPEC = Path(__file__).parent / "spec"
MIGRATION = Path(__file__).parents[2] / "docs" / "jina.md"
GPU_ONLY = "/GPU:0"

# class: (length of an embedding, an image as its document wants one)
EXPECTED: dict[str, tuple[int, str]] = {
    "BigTransferEncoder": (2048, "np.ones((96, 96, 3), dtype=np.float32)"),
    "CustomImageTorchEncoder": (10, "np.random.rand(3, 224, 224)"),
    "CLIPImageEncoder": (512, "np.ones((800, 224, 3), dtype=np.uint8)"),
    "VSEImageEncoder": (1024, "np.random.rand(3, 224, 224).astype(np.float32)"),
    "AudioCLIPImageEncoder": (1024, "np.ones((100, 100, 3), dtype=np.uint8)"),
}
CHECK = """
import numpy as np
from image_encoders.integrations.jina import Document, Flow
with f:
    docs = [Document(), Document(blob={image}), Document(blob={image})]
    found = [doc for response in f.post(on='/foo', inputs=docs, return_results=True) for doc in response.docs]
assert found[0].embedding is None
for doc in found[1:]:
    assert "error" not in doc.tags, doc.tags
    assert doc.embedding.shape == ({dim},), doc.embedding.shape
    assert doc.embedding.dtype == np.float32, doc.embedding.dtype
    assert np.isfinite(doc.embedding).all() and np.abs(doc.embedding).max() > 0
print('checked', f.num_deployments)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    document: str
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document}-{self.number}-{self.language}"


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, also those inside lists, without their indentation."""
    text = (SPEC / f"{document}.md").read_text(encoding="utf-8")
    found = re.findall(r"^([ \t]*)(?:- )?```(\w+)\n(.*?)^[ \t]*```", text, re.MULTILINE | re.DOTALL)
    return [
        Block(document, number, language, _dedented(body)) for number, (_, language, body) in enumerate(found, start=1)
    ]


def _dedented(body: str) -> str:
    """`body` without what all its lines begin with; tabs are left to the substitutions."""
    lines = body.split("\n")
    shared = min((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), default=0)
    return "\n".join(line[shared:] if line[:shared].isspace() or not shared else line for line in lines)


def substitutions() -> list[tuple[str, str]]:
    """(as it stands, as it runs), from the table in docs/jina.md; \\n and \\t are spelled out there."""
    table = re.search(r"<!-- substitutions -->\n(.*?)<!-- end -->", MIGRATION.read_text(encoding="utf-8"), re.DOTALL)
    assert table, "docs/jina.md has no table of substitutions"
    rows = re.findall(r"^\| `(.+?)` \| `(.*?)` \|", table[1], re.MULTILINE)
    assert rows
    return [tuple(cell.replace(r"\n", "\n").replace(r"\t", "\t") for cell in row) for row in rows]  # type: ignore[misc]


def substituted(text: str) -> str:
    import torch

    for before, after in substitutions():
        if before == GPU_ONLY and torch.cuda.is_available():
            continue
        left, right = (r"\b" if re.match(r"\w", edge) else "" for edge in (before[0], before[-1]))  # whole words
        text = re.sub(f"{left}{re.escape(before)}{right}", lambda _, after=after: after, text)
    return text


DOCUMENTS = sorted(EXPECTED)
ALL = [block for document in DOCUMENTS for block in blocks(document)]
MODEL = next(block for block in ALL if "torch.save(model.state_dict(), path)" in block.text)


def _marked(block: Block) -> object:
    """Big checkpoints are not for every run."""
    quick = block.document == "CustomImageTorchEncoder" and block.text in (ALL_CUSTOM[0].text, ALL_CUSTOM[-1].text)
    return pytest.param(block, id=block.name, marks=[] if quick else [pytest.mark.golden])


RUN = [block for block in ALL if block.language in ("python", "yaml") and block != MODEL]
ALL_CUSTOM = [block for block in RUN if block.document == "CustomImageTorchEncoder"]


@pytest.fixture(scope="session")
def own_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the custom model of its document, made by running that document's program."""
    folder = tmp_path_factory.mktemp("own-model")
    (folder / "model.py").write_text(MODEL.text)
    subprocess.run([sys.executable, "model.py"], cwd=folder, check=True, timeout=300)
    assert (folder / "model_state_dict.pth").is_file()
    return folder


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest, own_model: Path) -> Callable[[Block, str], str]:
    """run(block, program) -> what the program prints, in the folder that its document supposes."""

    def finished(block: Block, program: str) -> str:
        custom = block.document == "CustomImageTorchEncoder"
        folder = own_model if custom else request.getfixturevalue("workshop")
        if not (folder / "indexer.yml").exists():  # a user's own Executor, which one document adds
            own = request.getfixturevalue("own_executor")
            for file in (own, own.with_name("own.py")):
                (folder / file.name).write_text(file.read_text())
        path = folder / f"{block.name}.py"
        path.write_text(program)
        environment = {name: value for name, value in os.environ.items() if name != "JINA_MP_START_METHOD"}
        ran = subprocess.run(
            [sys.executable, path.name], cwd=folder, env=environment, capture_output=True, text=True, timeout=350
        )
        assert ran.returncode == 0, f"{program}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout

    return finished


@pytest.mark.parametrize("block", [_marked(block) for block in RUN])
def test_a_block_of_the_documents_runs(block: Block, run: Callable[[Block, str], str]) -> None:
    dim, image = EXPECTED[block.document]
    program = substituted(block.text)
    if block.language == "yaml":
        program = f"from image_encoders.integrations.jina import Flow\nf = Flow.load_config({program!r})\n"
    encodes = "\nwith f:" in program
    if not encodes:  # it only describes a Flow: one that gives embeddings
        program += CHECK.format(dim=dim, image=image)
    printed = run(block, program)
    if not encodes:
        assert "checked" in printed
    elif "embedding" in block.text and "assert" not in block.text:
        assert f"({dim},)" in printed


@pytest.mark.golden
def test_the_inline_call_of_a_document_runs(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from image_encoders.integrations.jina import Document, VSEImageEncoder

    text = (SPEC / "VSEImageEncoder.md").read_text()
    (call,) = re.findall(r"`(VSEImageEncoder\(.*?\))`", text)
    monkeypatch.chdir(workshop)
    executor = eval(substituted(call), {"VSEImageEncoder": VSEImageEncoder, "metas": {"name": "vse"}})
    doc = Document(blob=np.random.default_rng(0).normal(size=(3, 224, 224)).astype(np.float32))
    executor.encode([doc])
    assert (doc.embedding.shape, doc.embedding.dtype) == ((1024,), np.float32)
    assert executor.metas.name == "vse"


def test_all_documents_are_read_whole() -> None:
    assert {document: [block.language for block in blocks(document)] for document in DOCUMENTS} == {
        "AudioCLIPImageEncoder": ["python", "yaml", "python", "yaml", "python"],
        "BigTransferEncoder": ["yaml", "yaml", "python", "yaml", "yaml", "yaml", "python"],
        "CLIPImageEncoder": ["python", "yaml", "python", "yaml", "python"],
        "CustomImageTorchEncoder": ["python", "yaml", "python", "yaml", "python", "bash", "python"],
        "VSEImageEncoder": ["bash", "python", "bash", "bash", "bash"],
    }


def test_every_substitution_is_needed() -> None:
    """A row of the table that no document needs any more would hide a difference."""
    inline = re.findall(r"`(VSEImageEncoder\(.*?\))`", (SPEC / "VSEImageEncoder.md").read_text())
    everything = "\n".join([*(block.text for block in RUN), *inline])
    for before, _ in substitutions():
        assert before in everything, before
