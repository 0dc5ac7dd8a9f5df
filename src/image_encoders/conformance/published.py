"""Embeddings published for real weights, which are not part of this package.

Source: jina-hub (Apache-2.0), whose encoders' tests hold the embeddings that their maintainers got, as
    tests/expected.npy of encoders/image/VSEImageEncoder, encoders/nlp/VSETextEncoder, encoders/image/CLIPImageEncoder
    and encoders/nlp/CLIPTextEncoder. Of each the first four values and the length are kept here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from image_encoders.cache import running_sha256
from image_encoders.errors import InputError

if TYPE_CHECKING:
    from image_encoders.encoder import Encoder

IMAGE = "man_piercing.jpg"  # of jina-hub, encoders/image/VSEImageEncoder/tests/imgs
IMAGE_SHA256 = "d75d99fcf43bcb3e9a989377ea7a60173e35809e38ae7143be7dd3e02d4c43f2"


@dataclass(frozen=True)
class PublishedEmbedding:
    """The beginning of an embedding.

    model: whose weights it was made with
    modality: "image", of IMAGE, or "text"
    text: of a text, its words
    first: the first values
    norm: its length
    limit: by how much a value or the length may differ, as a part of the largest value or the length
    options: of `load`, that it was made with
    """

    model: str
    modality: str
    first: tuple[float, ...]
    norm: float
    limit: float
    text: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"the image {IMAGE}" if self.modality == "image" else f"the text {self.text!r}"


# A text's embedding is another machine's float32; an image's may be another JPEG decoder's as well.
TEXT_LIMIT, IMAGE_LIMIT = 1e-3, 2e-2
EMBEDDINGS = (
    PublishedEmbedding("vsepp/f30k-vgg19", "image", (0.02056654, 0.07162702, 0.02590806, 0.0084742), 1.0, IMAGE_LIMIT),
    PublishedEmbedding(
        "vsepp/f30k-vgg19",
        "text",
        (0.07765759, 0.02404535, -0.00854425, 0.01632042),
        1.0,
        TEXT_LIMIT,
        text="the man with pierced ears is wearing glasses and an orange hat.",
    ),
    PublishedEmbedding(
        "clip/openai/clip-vit-base-patch32",
        "image",
        (-0.18277736, -0.07135036, 0.0427517, 0.0579781),
        10.268855,
        IMAGE_LIMIT,
        options={"crop": "round"},  # OpenAI's code made it
    ),
    PublishedEmbedding(
        "clip/openai/clip-vit-base-patch32",
        "text",
        (-0.06970268, -0.33675033, 0.23307934, 0.25717327),
        8.831447,
        TEXT_LIMIT,
        text="Han likes eating pizza",
    ),
)


class Comparison(NamedTuple):
    """A published embedding beside the one found; `found` is None where the image is not at hand."""

    published: PublishedEmbedding
    found: np.ndarray | None = None

    @property
    def max_abs(self) -> float:
        """How far the first values are from the published ones."""
        assert self.found is not None
        return float(np.abs(self.found[: len(self.published.first)] - np.array(self.published.first)).max())

    @property
    def norm_error(self) -> float:
        """How far the length is from the published one, as a part of it."""
        assert self.found is not None
        return abs(float(np.linalg.norm(self.found.astype(np.float64))) / self.published.norm - 1)

    @property
    def passed(self) -> bool:
        return (
            self.max_abs <= self.published.limit * max(map(abs, self.published.first))
            and self.norm_error <= self.published.limit
        )


def of_model(model: str) -> list[PublishedEmbedding]:
    """What is published for a model's weights."""
    return [one for one in EMBEDDINGS if one.model == model]


def is_published_file(model: str, weights: Path) -> bool | None:
    """Whether a checkpoint is, by size and sha256, the published one; None where neither is published or it is none.

    Of BiT and VSE++ neither is published, and a Hugging Face folder's files are checked by the hub's client.
    """
    family, _, variant = model.partition("/")
    if family != "audioclip" or not weights.is_file() or weights.suffix == ".safetensors":
        return None
    from image_encoders.models.audioclip import CHECKPOINTS

    file = CHECKPOINTS[variant]
    return weights.stat().st_size == file.size and running_sha256(weights).hexdigest() == file.sha256


def check_image(path: Path) -> None:
    """Raise InputError unless the file is the image that the embeddings were made of."""
    try:
        digest = running_sha256(path).hexdigest()
    except OSError as error:
        raise InputError(f"{error.strerror}", item=str(path), code="unreadable") from error
    if digest != IMAGE_SHA256:
        raise InputError(f"not {IMAGE}: it has sha256 {digest}, expected {IMAGE_SHA256}", item=str(path), code="other")


def compare(model: str, load: Any, image: Path | None) -> Iterator[Comparison]:
    """Each published embedding of a model beside the one that its weights give.

    load: options -> encoder
    """
    for one in of_model(model):
        if one.modality == "image" and image is None:
            yield Comparison(one)
            continue
        encoder: Encoder = load(one.options)
        if one.modality == "image":
            yield Comparison(one, encoder.encode_image([image])[0])
        else:
            yield Comparison(one, encoder.encode_text([one.text])[0])
