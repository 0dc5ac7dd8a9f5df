"""Two-tower checkpoints of Hugging Face load whole or not at all, and their rows are transformers'."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import image_encoders as ie
from image_encoders import models
from image_encoders.errors import InputError, MissingExtra, UnknownModel, WeightsError
from image_encoders.models import clip
from image_encoders.weights.hugging_face import TokenizerFacts, token_encoder, tokenizer_facts

TEXTS = ["a red circle", "Two dogs!", "", "the  sea ,  at NIGHT", "naïve café — 12 horses 🐎"]
SIZES = [(40, 60), (33, 20), (1, 1), (64, 64), (90, 31)]
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CLOSE = {"rel": 2e-5, "one_minus_cos": 1e-9}


def drawn_images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def load(folder: Path | str, **options: Any) -> ie.Encoder:
    return ie.load("clip", weights=folder, device="cpu", precision="float32", engine="torch", **options)


def shuffled(model: torch.nn.Module) -> torch.nn.Module:
    """The net with weights large enough that its inputs show in its rows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
    return model.eval()


def word_tokenizer(folder: Path, *, length: int, **config: Any) -> None:
    """A tokenizer of whole words and single letters in one file, without sentencepiece."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(33, 127)]
    vocabulary = [("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *((letter, -5.0) for letter in letters)]
    vocabulary += [(f"▁{word}", -3.0) for word in ("a", "red", "circle", "dogs", "sea", "the")]
    vocabulary.append(("<pad>", -20.0))
    engine = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    engine.normalizer = normalizers.Lowercase()
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    engine.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    engine.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_max_length": length}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special, **config})


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import SiglipConfig, SiglipModel

    folder = tmp_path_factory.mktemp("siglip")
    config = SiglipConfig(
        text_config={**SMALL, "vocab_size": 104, "max_position_embeddings": 24, "projection_size": 32},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
    )
    shuffled(SiglipModel(config)).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3},
    )
    word_tokenizer(folder, length=24, model_input_names=["input_ids"])
    return folder


@pytest.fixture(scope="module")
def naflex_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Siglip2Config, Siglip2Model

    folder = tmp_path_factory.mktemp("naflex")
    config = Siglip2Config(
        text_config={**SMALL, "vocab_size": 104, "max_position_embeddings": 24, "projection_size": 32},
        vision_config={**SMALL, "num_patches": 16, "patch_size": 8},
    )
    shuffled(Siglip2Model(config)).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 30},
    )
    word_tokenizer(folder, length=10**30, model_input_names=["input_ids"])
    return folder


@pytest.fixture(scope="module")
def chinese_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net whose text tower sees every position at once, so that padding has to be hidden from it."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    folder = tmp_path_factory.mktemp("chinese")
    config = ChineseCLIPConfig(
        text_config={**SMALL, "vocab_size": 104, "max_position_embeddings": 24, "pad_token_id": 103},
        vision_config={**SMALL, "image_size": 32, "patch_size": 8},
        projection_dim=20,
    )
    shuffled(ChineseCLIPModel(config)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor_type": "ChineseCLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": size},
    )
    word_tokenizer(folder, length=24, pad_token="<pad>")
    return folder


@pytest.fixture
def clip_folder(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a small CLIP checkpoint, to be damaged."""
    return Path(shutil.copytree(checkpoint("clip-tiny-gelu"), tmp_path / "clip"))


def reference(folder: Path, *, length: int) -> tuple[np.ndarray, np.ndarray]:
    """transformers' rows of the images and of the texts."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids.pop("token_type_ids", None)
    images = [Image.fromarray(pixels) for pixels in drawn_images()]
    with torch.inference_mode():
        image = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        text = model.get_text_features(**ids).pooler_output
    return image.numpy(), text.numpy()


@pytest.mark.parametrize("kind", ["siglip", "naflex", "chinese"])
def test_embeddings_of_kindred_nets_are_transformers(
    kind: str, request: pytest.FixtureRequest, assert_embeddings_agree
):
    folder = request.getfixturevalue(f"{kind}_folder")
    encoder = load(folder, truncate=True)
    image, text = reference(folder, length=24)
    assert encoder.dim == image.shape[1]
    assert_embeddings_agree(encoder.encode_image(drawn_images()), image, **CLOSE)
    assert_embeddings_agree(encoder.encode_text(TEXTS), text, **CLOSE)


def words_of(folder: Path, **config: Any) -> dict[str, int]:
    """Writes the bundled model's tokenizer, with a config of its own, and a preprocessing; returns the tokens' ids."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(clip.DEMO / name, folder)
    own = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", {**own, **config})
    write_json(
        folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32}
    )
    return json.loads((folder / "vocab.json").read_text())


def rows_alone(folder: Path, texts: Sequence[str] = TEXTS) -> np.ndarray:
    """transformers' rows of texts that are not padded."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        found = [
            model.get_text_features(**tokenizer([text], truncation=True, return_tensors="pt"), return_dict=True)
            for text in texts
        ]
    return torch.cat([getattr(one, "pooler_output", one) for one in found]).numpy()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize("kin", ["MetaClip2", "CLIPSeg", "GroupViT"])
def test_padding_with_the_token_that_ends_a_text_is_hidden_and_the_end_is_not(
    kin: str, engine: str, tmp_path: Path, assert_embeddings_agree
):
    tokens = words_of(tmp_path)
    end = tokens["<|endoftext|>"]
    text = {**SMALL, "vocab_size": len(tokens), "max_position_embeddings": 24, "eos_token_id": end, "pad_token_id": end}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    if kin == "GroupViT":
        vision |= {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4]}
    config = getattr(transformers, f"{kin}Config")(text_config=text, vision_config=vision, projection_dim=20)
    shuffled(getattr(transformers, f"{kin}Model")(config)).save_pretrained(tmp_path)
    encoder = ie.load("clip", weights=tmp_path, device="cpu", precision="float32", engine=engine, truncate=True)
    assert_embeddings_agree(encoder.encode_text(TEXTS), rows_alone(tmp_path), **CLOSE)


@pytest.mark.parametrize(
    "config",
    [
        {"padding_side": "left"},
        {"padding_side": "left", "pad_token": "!"},
        {"pad_token": "<pad>", "added_tokens_decoder": {"PAD": {"content": "<pad>", "special": True}}},
        {"split_special_tokens": True},
    ],
)
@pytest.mark.parametrize("eos", [2, None])
def test_embeddings_of_clips_texts_are_those_of_the_text_alone(
    config: dict[str, Any], eos: int | None, tmp_path: Path, assert_embeddings_agree
):
    tokens = words_of(tmp_path)
    if "added_tokens_decoder" in config:  # a token above all others
        config = {**config, "added_tokens_decoder": {str(len(tokens)): config["added_tokens_decoder"]["PAD"]}}
    words_of(tmp_path, **config)
    end = tokens["<|endoftext|>"]
    text = {**SMALL, "vocab_size": len(tokens) + 1, "max_position_embeddings": 24, "eos_token_id": eos or end}
    net = transformers.CLIPConfig(
        text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=20
    )
    shuffled(transformers.CLIPModel(net)).save_pretrained(tmp_path)
    texts = [*TEXTS, "a<|startoftext|>b"]
    assert_embeddings_agree(load(tmp_path, truncate=True).encode_text(texts), rows_alone(tmp_path, texts), **CLOSE)


def test_clips_texts_are_padded_a_little_which_their_embeddings_do_not_show(clip_folder: Path):
    tower = load(clip_folder).tower("text")
    short = tower.input("a cat")
    assert len(short) == 8
    full = np.concatenate([short, np.full(77 - len(short), short[-1])])
    np.testing.assert_allclose(tower.embeddings([short, short]), tower.embeddings([full, full]), rtol=1e-4, atol=1e-5)


def test_siglips_texts_are_always_padded_to_the_whole_context(siglip_folder: Path):
    ids = load(siglip_folder).tower("text").input("A red circle")
    assert ids.shape == (24,)
    assert (ids[ids.tolist().index(0) :] == 0).all()


def test_images_of_any_grid_share_a_batch(naflex_folder: Path):
    encoder = load(naflex_folder)
    shapes = {encoder.tower("image").input(pixels).shape for pixels in drawn_images()}
    assert len(shapes) > 2
    alone = np.concatenate([encoder.encode_image([pixels]) for pixels in drawn_images()])
    np.testing.assert_allclose(encoder.encode_image(drawn_images()), alone, rtol=0, atol=1e-5 * np.abs(alone).max())


# ------------------------------------------------------------------ names and folders


def test_a_folder_is_named_in_many_ways(clip_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clip_folder.parent)
    monkeypatch.setenv("HOME", str(clip_folder.parent))
    wanted = load(clip_folder)
    for name in (f"clip/{clip_folder}", "clip/./clip", "clip/clip", "clip/~/clip"):
        found = ie.load(name, device="cpu", precision="float32")
        assert found.fingerprint == wanted.fingerprint
        assert found.name == name
    named = ie.load("clip/openai/clip-vit-base-patch32", weights=clip_folder, device="cpu", precision="float32")
    assert named.fingerprint == wanted.fingerprint
    assert named.name == "clip/openai/clip-vit-base-patch32"


def test_the_demo_is_bundled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder = ie.load("clip/demo", device="cpu")
    assert encoder.dim == models.variants()["clip/demo"].dim
    assert encoder.encode_text(["a red circle"]).shape == (1, encoder.dim)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("clip/./nowhere", WeightsError, "nowhere: no such folder"),
        ("clip//nowhere/at/all", WeightsError, "/nowhere/at/all: no such folder"),
        ("clip", UnknownModel, "hub id, a folder or demo"),
        ("clip/no such id", UnknownModel, "a Hugging Face id with its owner"),
        ("clip/demoo", UnknownModel, "did you mean clip/demo?"),
        ("clip/no such/id", UnknownModel, "clip/demo is bundled"),
        ("clip/nobody/nothing", WeightsError, "clip/demo"),
    ],
)
def test_a_checkpoint_that_cannot_be_had_says_what_can(name: str, error: type[Exception], says: str):
    with pytest.raises(error, match=says) as caught:
        ie.load(name, device="cpu", **({"offline": True} if name.startswith("clip/n") else {}))
    assert "\n" not in str(caught.value)


def test_a_file_or_a_folder_of_something_else_is_refused(clip_folder: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"model\.safetensors: a file; a folder with a Hugging Face checkpoint"):
        load(clip_folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no config\.json"):
        load(tmp_path)
    with pytest.raises(WeightsError, match="a folder has no revisions"):
        load(clip_folder, revision="main")


# ------------------------------------------------------------------ weights


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_and_left_over_tensors_are_named(clip_folder: Path):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["visual_projection.wrong"] = tensors.pop("visual_projection.weight")
        tensors["text_projection.weight"] = torch.zeros(3, 4)

    change_weights(clip_folder, damage)
    with pytest.raises(WeightsError) as caught:
        load(clip_folder)
    assert "1 missing (visual_projection.weight)" in str(caught.value)
    assert "1 left over (visual_projection.wrong)" in str(caught.value)
    assert "1 of another shape (text_projection.weight)" in str(caught.value)


def test_only_five_names_are_listed(clip_folder: Path):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("text_model.encoder")]:
            del tensors[name]

    change_weights(clip_folder, damage)
    with pytest.raises(WeightsError, match=r"missing \(([\w.]+, ){5}\.\.\.\)"):
        load(clip_folder)


def test_position_ids_of_old_uploads_are_harmless(clip_folder: Path):
    wanted = load(clip_folder).fingerprint
    change_weights(clip_folder, lambda t: t.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    assert load(clip_folder).fingerprint == wanted


def test_weights_stored_in_half_precision_run_in_float32(clip_folder: Path, assert_embeddings_agree):
    rows = load(clip_folder).encode_text(TEXTS)
    change_weights(clip_folder, lambda t: t.update({name: value.half() for name, value in t.items()}))
    config = json.loads((clip_folder / "config.json").read_text())
    write_json(clip_folder / "config.json", {**config, "dtype": "float16"})
    assert_embeddings_agree(load(clip_folder).encode_text(TEXTS), rows, rel=1e-2, one_minus_cos=1e-4)


def test_pickled_weights_give_the_same_encoder(clip_folder: Path):
    from safetensors.torch import load_file

    wanted = load(clip_folder).fingerprint
    torch.save(load_file(clip_folder / "model.safetensors"), clip_folder / "pytorch_model.bin")
    (clip_folder / "model.safetensors").unlink()
    assert load(clip_folder).fingerprint == wanted


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_is_refused(clip_folder: Path, tmp_path: Path):
    (clip_folder / "model.safetensors").unlink()
    torch.save({"weights": Trap(str(tmp_path / "sprung"))}, clip_folder / "pytorch_model.bin")
    with pytest.raises(WeightsError):
        load(clip_folder)
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_checkpoint_is_never_run(clip_folder: Path, tmp_path: Path):
    config = json.loads((clip_folder / "config.json").read_text())
    write_json(clip_folder / "config.json", {**config, "model_type": "own", "auto_map": {"AutoModel": "own.Net"}})
    (clip_folder / "own.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    with pytest.raises(WeightsError):
        load(clip_folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_cut_short_is_a_weights_error(name: str, clip_folder: Path):
    path = clip_folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError) as caught:
        load(clip_folder)
    assert str(clip_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
def test_a_file_that_is_missing_is_a_weights_error(name: str, clip_folder: Path):
    (clip_folder / name).unlink()
    with pytest.raises(WeightsError, match=name.split(".")[0].replace("model", "model|weights")):
        load(clip_folder)


@pytest.mark.parametrize("left", [(), ("vocab.json",), ("merges.txt",)])
def test_a_folder_without_a_whole_tokenizer_is_a_weights_error(left: tuple[str, ...], clip_folder: Path):
    """transformers would make one of three words, or of single letters."""
    for name in {"tokenizer.json", "vocab.json", "merges.txt"} - set(left):
        (clip_folder / name).unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer: tokenizer\.json, or vocab\.json with merges\.txt"):
        load(clip_folder)


def test_the_tokenizers_two_forms_give_the_same_ids(clip_folder: Path):
    wanted = [load(clip_folder).tower("text").input(text).tolist() for text in TEXTS]
    (clip_folder / "tokenizer.json").unlink()
    assert [load(clip_folder).tower("text").input(text).tolist() for text in TEXTS] == wanted


def test_a_token_that_the_net_does_not_have_is_an_input_error(clip_folder: Path):
    path = clip_folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 755, "content": "<extra>"})
    write_json(path, tokenizer)
    encoder = load(clip_folder)
    assert encoder.encode_text(["a cat"]).shape == (1, encoder.dim)
    with pytest.raises(InputError, match=r"text\[0\]: a text with token id 755; this model has 755 tokens"):
        encoder.encode_text(["a cat <extra>"])


def test_a_net_without_two_towers_is_refused(tmp_path: Path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**SMALL, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="BertModel is not a two-tower net"):
        load(tmp_path)


def test_preprocessing_that_does_not_fit_the_net_is_refused(clip_folder: Path):
    path = clip_folder / "preprocessor_config.json"
    write_json(path, {**json.loads(path.read_text()), "crop_size": {"height": 160, "width": 160}})
    with pytest.raises(WeightsError, match="gives images of 160 x 160, its net takes 224 x 224"):
        load(clip_folder)


def test_loading_is_silent(clip_folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    from transformers.utils import logging as noise

    before = noise.get_verbosity(), noise.is_progress_bar_enabled()
    with caplog.at_level(logging.INFO):
        load(clip_folder)
    assert capfd.readouterr() == ("", "")
    assert (noise.get_verbosity(), noise.is_progress_bar_enabled()) == before


def test_both_towers_use_one_set_of_weights():
    from image_encoders.nets.clip import ImageTower, TextTower

    net = torch.nn.Linear(2, 2)
    weights = [next(tower.parameters()).data_ptr() for tower in (ImageTower(net), TextTower(net, None))]
    assert weights[0] == weights[1] == net.weight.data_ptr()


def test_the_fingerprint_distinguishes_spaces(clip_folder: Path):
    wanted = load(clip_folder).fingerprint
    assert load(clip_folder, truncate=True).fingerprint == wanted
    path = clip_folder / "preprocessor_config.json"
    config = json.loads(path.read_text())
    write_json(path, {**config, "resample": 2})
    assert load(clip_folder).fingerprint != wanted
    write_json(path, config)
    assert load(clip_folder).fingerprint == wanted
    change_weights(clip_folder, lambda t: t["visual_projection.weight"].mul_(1.001))
    assert load(clip_folder).fingerprint != wanted


# ------------------------------------------------------------------ texts


def test_a_long_text_is_refused_or_cut_as_transformers_cuts_it(clip_folder: Path):
    from transformers import AutoTokenizer

    text = "a photo of many things, " * 30
    with pytest.raises(
        InputError, match=r"text\[1\]: a text of \d+ tokens; this model takes 77: .*truncate=True"
    ) as caught:
        load(clip_folder).encode_text(["a cat", text])
    assert caught.value.code == "text-too-long"
    tower = load(clip_folder, truncate=True).tower("text")
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    for one in (text, "a cat", ""):
        wanted = tokenizer(one, padding="max_length", max_length=77, truncation=True)["input_ids"]
        ids = tower.input(one).tolist()
        assert ids == wanted[: len(ids)]
        assert set(wanted[len(ids) :]) <= {ids[-1]}  # nothing but padding, which no token before it sees


def test_a_text_that_just_fits_is_taken(clip_folder: Path):
    tower = load(clip_folder).tower("text")
    fits = " ".join(["1"] * 75)
    assert tower.input(fits).shape == (77,)
    with pytest.raises(InputError, match="78 tokens"):
        tower.input(fits + " 1")


@pytest.mark.parametrize(("source", "code"), [(b"words", "type"), (None, "type"), (3, "type"), ("half \ud83d", "text")])
def test_what_is_not_a_text_is_refused(source: object, code: str):
    with pytest.raises(InputError) as caught:
        clip.tiny().assemble().encode_text(["fine", source])
    assert (caught.value.code, caught.value.item) == (code, "text[1]")


def test_threads_may_cut_texts_at_the_same_time(clip_folder: Path):
    tower = load(clip_folder, truncate=True).tower("text")
    texts = [f"{i} photos of a cat " * (i % 40) for i in range(200)]
    wanted = [tower.input(text) for text in texts]
    barrier = threading.Barrier(8)

    def all_of_them(_: int) -> bool:
        barrier.wait()
        return all(np.array_equal(tower.input(text), one) for text, one in zip(texts, wanted))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(all_of_them, range(8)))


def test_a_tokenizer_written_in_python_gives_the_same_ids(clip_folder: Path):
    """Those that need sentencepiece are; it stands for them, one call at a time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    for truncate in (False, True):
        facts = TokenizerFacts(**tokenizer_facts(tokenizer, ""))
        slow, fast = (
            token_encoder(one, lambda: tokenizer, 77, truncate) for one in (replace(facts, engine=None), facts)
        )
        for text in [*TEXTS, "a photo of " * 40]:
            assert slow(text) == fast(text)


def test_a_tokenizer_that_needs_sentencepiece_says_how_to_get_it(siglip_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(siglip_folder, tmp_path / "siglip"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    write_json(folder / "tokenizer_config.json", {**config, "tokenizer_class": "SiglipTokenizer"})
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    with pytest.raises(MissingExtra, match=r"sentencepiece and protobuf: pip install 'image-encoders\[siglip\]'"):
        load(folder)


# ------------------------------------------------------------------ tiny


def test_tiny_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    state = torch.random.get_rng_state()
    clip.tiny().assemble()
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_listing_models_imports_no_nets():
    import subprocess
    import sys

    program = "import sys, image_encoders.models as m; m.names(); print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "set()"


def test_weights_that_change_under_a_running_encoder_are_never_taken_for_the_old_ones(
    clip_folder: Path, tmp_path: Path
):
    """The text tower is built when the first text comes, which may be long after the checkpoint was replaced."""
    folder = Path(shutil.copytree(clip_folder, tmp_path / "other"))
    ie.load(f"clip/{folder}", device="cpu")  # makes the copy of the image tower
    encoder = ie.load(f"clip/{folder}", device="cpu")  # reads no weights
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # the same, but who knows
    with pytest.raises(WeightsError, match="changed while it was in use"):
        encoder.encode_text(TEXTS[:1])
    assert ie.load(f"clip/{folder}", device="cpu").encode_text(TEXTS[:1]).shape == (1, encoder.dim)


def test_another_activation_is_another_space(clip_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    before = load(folder).fingerprint
    for tower in ("text_config", "vision_config"):
        config[tower] = {**config[tower], "hidden_act": "relu"}
    write_json(folder / "config.json", config)
    assert load(folder).fingerprint != before


def test_what_else_is_written_into_the_checkpoint_s_folder_is_no_change_of_it(clip_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(clip_folder, tmp_path / "other"))
    ie.load(f"clip/{folder}", device="cpu")
    encoder = ie.load(f"clip/{folder}", device="cpu")
    (folder / "collection").mkdir()
    (folder / "collection" / "rows").write_text("more")
    (folder / "notes.txt").write_text("new")
    assert encoder.encode_text(TEXTS[:1]).shape == (1, encoder.dim)
