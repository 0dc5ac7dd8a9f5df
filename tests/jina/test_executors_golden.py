"""The Executors' rows are those of the originals, by the stored rows of the conformance bundle."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_encoders.integrations.jina import (
    AudioCLIPEncoder,
    AudioCLIPImageEncoder,
    AudioCLIPTextEncoder,
    BigTransferEncoder,
    CLIPImageEncoder,
    CustomImageTorchEncoder,
    Document,
    VSEImageEncoder,
    VSETextEncoder,
)

pytestmark = pytest.mark.usefixtures("_in_the_workshop")


@pytest.fixture
def _in_the_workshop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the big checkpoints are needed, their defaults find them."""
    if request.node.get_closest_marker("golden"):
        monkeypatch.chdir(request.getfixturevalue("workshop"))


@pytest.fixture
def agree(manifest: dict[str, Any], assert_embeddings_agree: Callable[..., None]) -> Callable[..., None]:
    def check(docs: list[Document], reference: np.ndarray, case: str, prefix: str = "") -> None:
        stated = manifest["cases"][case]
        assert [doc.tags for doc in docs] == [{}] * len(docs)
        rows = np.stack([doc.embedding for doc in docs])
        assert_embeddings_agree(
            rows, reference, rel=stated[f"{prefix}rel"], one_minus_cos=stated[f"{prefix}one_minus_cos"]
        )

    return check


@pytest.fixture
def pixels(conformance: Path, golden) -> Callable[[str, str], list[Document]]:
    """pixels(case, preprocessing) -> documents with the decoded images, in the order of the stored rows."""

    def documents(case: str, preprocessing: str) -> list[Document]:
        folder = conformance / "images" / "decoded"
        names = golden(case)[f"image/{preprocessing}/names"]
        return [Document(blob=np.array(Image.open(folder / f"{name}.png"))) for name in names]

    return documents


@pytest.mark.parametrize("case", ["clip-tiny-quickgelu", pytest.param("clip-vit-b32", marks=pytest.mark.golden)])
def test_clip(case: str, checkpoint, golden, float_inputs, pixels, agree) -> None:
    # the big one is found in the hub's cache, by the default
    where = {} if case == "clip-vit-b32" else {"pretrained_model_name_or_path": str(checkpoint(case))}
    docs = pixels(case, "clip_pil")
    CLIPImageEncoder(**where).encode(docs)
    agree(docs, golden(case)["image/clip_pil/out"], case)
    floats = float_inputs(case, "float224")
    prepared = CLIPImageEncoder(**where, use_default_preprocessing=False)
    for arrays in (floats, floats.transpose(0, 2, 3, 1)):
        docs = [Document(blob=one) for one in arrays]
        prepared.encode(docs)
        agree(docs, golden(case)["float224/out"], case)


def test_custom(checkpoint, conformance: Path, golden, float_inputs, agree) -> None:
    case = "custom-conv"
    for layer, dim in (("conv1", 10), ("conv2", 16)):
        executor = CustomImageTorchEncoder(
            model_state_dict_path=str(checkpoint(case) / "model_state_dict.pth"),
            model_definition_file=str(conformance / "specs" / "data" / "custom_conv.py"),
            model_class_name="CustomModel",
            layer_name=layer,
        )
        docs = [Document(blob=one) for one in float_inputs(case, "float224")]
        executor.encode(docs)
        assert docs[0].embedding.shape == (dim,)
        agree(docs, golden(case)[f"float224/{layer}/out"], case)


@pytest.mark.golden
def test_vse(golden, float_inputs, pixels, agree) -> None:
    case = "vse-vgg19"
    executor = VSEImageEncoder()
    docs = [Document(blob=one) for one in float_inputs(case, "float224")]
    executor.encode(docs)
    agree(docs, golden(case)["float224/out"], case)
    last = VSEImageEncoder(channel_axis=-1)
    docs = [Document(blob=one.transpose(1, 2, 0)) for one in float_inputs(case, "float224")]
    last.encode(docs)
    agree(docs, golden(case)["float224/out"], case)
    docs = pixels(case, "vse")
    executor.encode(docs)
    agree(docs, golden(case)["image/vse/out"], case)
    captions = [str(caption) for caption in golden(case)["text/captions"]]
    docs = [Document(text=caption) for caption in captions]
    VSETextEncoder().encode(docs)
    there = [i for i, caption in enumerate(captions) if caption]  # an empty text is nothing to encode
    agree([docs[i] for i in there], golden(case)["text/out"][there], case, "text_")


@pytest.mark.golden
def test_big_transfer(golden, float_inputs, pixels, agree) -> None:
    case = "bit-savedmodel-hub"
    executor = BigTransferEncoder()
    for name in ("float224", "float160x192"):
        docs = [Document(blob=one.transpose(1, 2, 0)) for one in float_inputs(case, name)]
        executor.encode(docs)
        agree(docs, golden(case)[f"{name}/out"], case)
    docs = [Document(blob=one) for one in float_inputs(case, "float224")]
    BigTransferEncoder(channel_axis=1).encode(docs)
    agree(docs, golden(case)["float224/out"], case)
    docs = pixels(case, "bit_jina")
    BigTransferEncoder(target_dim=(224, 224, 3)).encode(docs)
    # Images of nearly one colour magnify rounding, here and in TensorFlow alike.
    flat = ("gray16.png.rgb", "one_pixel.png.rgb")
    names = golden(case)["image/bit_jina/names"]
    coloured = [i for i, name in enumerate(names) if not name.startswith("gray") and name not in flat]
    agree([docs[i] for i in coloured], golden(case)["image/bit_jina/out"][coloured], case)
    grey = [i for i, name in enumerate(names) if name.startswith("gray") and name not in flat]
    rows = np.stack([docs[i].embedding for i in grey])
    np.testing.assert_allclose(rows, golden(case)["image/bit_jina/out"][grey], atol=5e-4)


@pytest.mark.golden
def test_audioclip_images(golden, float_inputs, pixels, agree) -> None:
    case = "audioclip"
    docs = pixels(case, "aclip")
    AudioCLIPImageEncoder().encode(docs)
    agree(docs, golden(case)["image/aclip/out"], case)
    docs = [Document(blob=one) for one in float_inputs(case, "float224")]
    AudioCLIPImageEncoder(use_default_preprocessing=False).encode(docs)
    agree(docs, golden(case)["float224/out"], case)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("parameters", "stored"),
    [
        ({}, "eval_bn/unit"),
        ({"amplitude": "int16"}, "eval_bn/int16"),
        ({"batch_norm": "item"}, "batchstat_bn/unit"),
        ({"batch_norm": "item", "amplitude": "int16"}, "batchstat_bn/int16"),
    ],
)
def test_audioclip_sounds(
    parameters: dict[str, str], stored: str, golden, conformance: Path, manifest, assert_embeddings_agree
) -> None:
    tolerance = manifest["cases"]["audioclip"]["audio"][stored]
    names = [str(name) for name in golden("audioclip")["audio/names"]]
    docs = []
    for name in names:
        with wave.open(str(conformance / "audio" / f"{Path(name).stem}.wav")) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768
            docs.append(Document(blob=samples, tags={"sample_rate": sound.getframerate()}))
    AudioCLIPEncoder(**parameters).encode(docs)
    rows, reference = np.stack([doc.embedding for doc in docs]), golden("audioclip")[f"audio/{stored}/out"]
    loud = [i for i, name in enumerate(names) if "silence" not in name]
    assert_embeddings_agree(rows[loud], reference[loud], **tolerance)
    assert np.isfinite(rows).all()


@pytest.mark.golden
def test_audioclip_texts(checkpoint, conformance: Path, golden, agree) -> None:
    docs = [Document(text=str(one)) for one in golden("audioclip")["text/synthetic_bpe/captions"]]
    AudioCLIPTextEncoder(tokenizer_path=str(conformance / "specs" / "data" / "bpe_synthetic.txt.gz")).encode(docs)
    agree(docs, golden("audioclip")["text/synthetic_bpe/out"], "audioclip", "text_")
