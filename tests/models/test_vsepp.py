"""VSE++ from small checkpoints of precomputed features, whose layout is that of the big ones."""

from __future__ import annotations

import argparse
import io
import logging
import pickle
import tarfile
import types

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from image_encoders import InputError, UnknownModel, WeightsError, load
from image_encoders.encoder import Encoder
from image_encoders.engines.select import Runtime
from image_encoders.models import vsepp
from image_encoders.weights import convert
from vocabulary_file import vocabulary_bytes

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "man", "is", "n't", "riding", "the", "wave", ",", ".", "dog"]
OPTIONS = {
    "data_name": "f30k_precomp",
    "cnn_type": "vgg19",
    "img_dim": 10,
    "embed_size": 8,
    "word_dim": 6,
    "num_layers": 1,
    "measure": "cosine",
    "use_abs": False,
    "no_imgnorm": False,
    "learning_rate": 0.0002,
    "resume": "",
}


def towers(options=OPTIONS, seed=0):
    """The tensors of both towers, random."""
    generator = torch.Generator().manual_seed(seed)
    rnn = torch.nn.GRU(options["word_dim"], options["embed_size"], options["num_layers"])
    image = {"fc.weight": (options["embed_size"], options["img_dim"]), "fc.bias": (options["embed_size"],)}
    text = {"embed.weight": (len(WORDS), options["word_dim"])}
    text |= {f"rnn.{name}": tuple(value.shape) for name, value in rnn.state_dict().items()}
    return [{n: torch.randn(shape, generator=generator) for n, shape in part.items()} for part in (image, text)]


@pytest.fixture
def run(tmp_path):
    """run(folder, content, vocabulary, zip, state, **options) -> the path of a checkpoint, its vocabulary beside it."""

    def write(folder="run", content=None, vocabulary=b"", zip=True, state=None, **changes):
        options = {**OPTIONS, **changes}
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        path = home / "model_best.pth.tar"
        whole = {
            "epoch": 1,
            "model": state or towers(options),
            "best_rsum": 1.5,
            "opt": argparse.Namespace(**options),
            "Eiters": 3,
        }
        torch.save({**whole, **(content or {})}, path, _use_new_zipfile_serialization=zip)
        if vocabulary is not None:
            (home / f"{options['data_name']}_vocab.pkl").write_bytes(vocabulary or vocabulary_bytes(WORDS))
        return path

    return write


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def features(count=5):
    return np.random.default_rng(0).normal(size=(count, OPTIONS["img_dim"])).astype(np.float32)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("use_abs", [False, True])
@pytest.mark.parametrize("no_imgnorm", [False, True])
def test_options_decide_what_becomes_of_embeddings(run, use_abs, no_imgnorm):
    encoder = load("vsepp", weights=run(use_abs=use_abs, no_imgnorm=no_imgnorm), device="cpu", precision="float32")
    fc, _ = towers()
    expected = features() @ fc["fc.weight"].numpy().T + fc["fc.bias"].numpy()
    expected = expected if no_imgnorm else unit(expected)
    expected = np.abs(expected) if use_abs else expected
    assert np.allclose(encoder.embed_image(features()), expected, atol=1e-6)
    assert np.allclose(encoder.encode_image(list(features())), expected, atol=1e-6)
    text = encoder.encode_text(["a man", "the wave"])
    assert np.allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)
    assert (text.min() >= 0) == use_abs


@pytest.mark.parametrize("layers", [1, 2])
def test_a_caption_has_the_embedding_of_the_padded_and_packed_batch(run, layers):
    options = {**OPTIONS, "num_layers": layers}
    encoder = load("vsepp", weights=run(num_layers=layers))
    captions = ["A man is riding a wave.", "dog", "the man isn't riding, a dog's riding", "the wave ."]
    rows = encoder.encode_text(captions)

    _, state = towers(options)
    rnn = torch.nn.GRU(options["word_dim"], options["embed_size"], layers, batch_first=True)
    rnn.load_state_dict({name.removeprefix("rnn."): t for name, t in state.items() if name.startswith("rnn.")})
    ids = [torch.from_numpy(encoder.tower("text").input(caption)) for caption in captions]
    lengths = torch.tensor([len(one) for one in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    packed = pack_padded_sequence(state["embed.weight"][padded], lengths, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        states, _ = pad_packed_sequence(rnn(packed)[0], batch_first=True)
    expected = unit(states[torch.arange(len(ids)), lengths - 1].numpy())
    assert np.allclose(rows, expected, atol=1e-6)


def test_a_caption_becomes_the_ids_of_its_lower_case_words_between_start_and_end(run):
    prepare = load("vsepp", weights=run()).tower("text").input
    ids = prepare("A MAN isn't surfing the Wave.")
    assert ids.dtype == np.int64
    assert [WORDS[i] for i in ids] == ["<start>", "a", "man", "is", "n't", "<unk>", "the", "wave", ".", "<end>"]


def test_zip_and_legacy_files_and_old_vocabularies_give_the_same_encoder(run):
    one = load("vsepp", weights=run("new", zip=True))
    two = load("vsepp", weights=run("old", zip=False, vocabulary=vocabulary_bytes(WORDS, protocol=2)))
    assert one.fingerprint == two.fingerprint
    assert np.array_equal(one.embed_image(features()), two.embed_image(features()))
    assert np.array_equal(one.encode_text(["a man"]), two.encode_text(["a man"]))


def test_a_converted_checkpoint_gives_the_same_bits_and_needs_no_vocabulary_file(run, tmp_path):
    source = run(use_abs=True, measure="order")
    there = tmp_path / "elsewhere" / "vsepp.safetensors"
    convert.save(there, *vsepp.original(source))
    one, two = load("vsepp", weights=source), load("vsepp", weights=there)
    assert np.array_equal(one.embed_image(features()), two.embed_image(features()))
    assert np.array_equal(one.encode_text(["a man", "dog"]), two.encode_text(["a man", "dog"]))
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_distinguishes_weights_vocabularies_measures_and_precisions(run):
    shuffled = [*WORDS[:4], *reversed(WORDS[4:])]
    encoders = [
        load("vsepp", weights=run("a"), precision="float32"),
        load("vsepp", weights=run("a"), precision="bfloat16"),
        load("vsepp", weights=run("b", state=towers(seed=1)), precision="float32"),
        load("vsepp", weights=run("c", vocabulary=vocabulary_bytes(shuffled)), precision="float32"),
        load("vsepp", weights=run("d", measure="order"), precision="float32"),
    ]
    prints = [encoder.fingerprint for encoder in encoders]
    assert len(set(prints)) == len(prints)
    assert load("vsepp", weights=run("e"), precision="float32").fingerprint == prints[0]


def test_options_that_older_programs_lacked_have_the_authors_defaults(run):
    path = run(content={"opt": argparse.Namespace(data_name="f30k_precomp", img_dim=10, embed_size=8, word_dim=6)})
    assert np.allclose(np.linalg.norm(load("vsepp", weights=path).embed_image(features()), axis=1), 1, atol=1e-6)


# ---------------------------------------------------------------- images, by the small net


def test_images_are_prepared_as_torchvision_does(conformance):
    from PIL import Image

    tower = vsepp.tiny().assemble().tower("image")
    with np.load(conformance / "golden" / "preprocess.npz", allow_pickle=False) as golden:
        assert len(golden["vse/names"]) == 15
        for i, name in enumerate(golden["vse/names"]):
            with Image.open(conformance / "images" / "decoded" / f"{name}.png") as image:
                prepared = tower.prepare(np.asarray(image))
            assert prepared.shape == (3, 224, 224)
            assert prepared.dtype == np.uint8
            scaled = vsepp.PREPROCESSING.normalised(prepared.astype(np.float32) / np.float32(255))
            assert np.abs(scaled[:, ::8, ::8] - golden["vse/sub"][i]).max() < 2e-6
            assert np.abs(scaled[:, :4, :4] - golden["vse/corner"][i]).max() < 2e-6
            assert np.allclose(scaled.mean((1, 2)), golden["vse/mean"][i], atol=1e-5)


def test_raw_pixels_and_prepared_floats_give_the_same_embedding():
    encoder = vsepp.tiny().assemble()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 300, 3), np.uint8)
    prepared = encoder.tower("image").input(pixels)
    floats = vsepp.PREPROCESSING.normalised(prepared.astype(np.float32) / np.float32(255))
    assert np.allclose(encoder.encode_image([pixels]), encoder.embed_image(floats[None]), atol=1e-5)


def test_prepared_images_may_have_other_sizes_but_not_tiny_ones():
    encoder = vsepp.tiny().assemble()
    assert encoder.embed_image(np.zeros((1, 3, 96, 160), np.float32)).shape == (1, encoder.dim)
    with pytest.raises(InputError, match="31 x 64"):
        encoder.embed_image(np.zeros((1, 3, 31, 64), np.float32))


def test_the_small_net_distinguishes_images_and_captions():
    encoder = vsepp.tiny().assemble()
    random = np.random.default_rng(0)
    images = encoder.encode_image([random.integers(0, 256, (60, 80, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)])
    texts = encoder.encode_text(["a red circle", "a blue square"])
    assert images.shape == texts.shape == (2, encoder.dim)
    assert images[0] @ images[1] < 0.999
    assert texts[0] @ texts[1] < 0.999


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("cnn.features.module.0.weight", "cnn.features.0.weight"),
        ("cnn.classifier.1.weight", "cnn.classifier.0.weight"),
        ("cnn.classifier.4.bias", "cnn.classifier.3.bias"),
        ("fc.bias", "fc.bias"),
    ],
)
def test_old_names_of_vgg_are_understood(name, ours):
    assert vsepp._renaming({"cnn.classifier.1.weight": 0})(name) == ours


@pytest.mark.parametrize(
    "name", ["cnn.classifier.0.weight", "cnn.classifier.3.bias", "cnn.features.0.weight", "cnn.layer3.35.bn1.bias"]
)
def test_new_names_stay_with_and_without_data_parallel(name):
    rename = vsepp._renaming({})
    assert rename(name) == name
    assert rename(name.replace("cnn.features", "cnn.features.module")) == name
    assert rename(name.replace("cnn.layer", "cnn.module.layer")) == name


def test_the_nets_have_torchvisions_sizes():
    from image_encoders.nets.vsepp import ResNet152, Vgg19

    with torch.device("meta"):
        vgg, resnet = Vgg19(), ResNet152()
        assert vgg(torch.empty(2, 3, 224, 224)).shape == (2, 4096)
        assert resnet(torch.empty(2, 3, 224, 224)).shape == (2, 2048)
    # torchvision states 143,667,240 and 60,192,808 parameters, the last linear layer included
    assert sum(p.numel() for p in vgg.parameters()) == 143_667_240 - 4097 * 1000
    assert sum(p.numel() for p in resnet.parameters()) == 60_192_808 - 2049 * 1000


# ---------------------------------------------------------------- the vocabulary


@pytest.mark.parametrize("place", [".", "vocab", "../vocab", "../../vocab"])
def test_the_vocabulary_is_found_near_the_checkpoint(run, tmp_path, place):
    home = tmp_path / "a" / "b"
    home.mkdir(parents=True)
    path = run(vocabulary=None).rename(home / "model_best.pth.tar")
    (home / place).resolve().mkdir(exist_ok=True)
    (home / place / "f30k_precomp_vocab.pkl").write_bytes(vocabulary_bytes(WORDS))
    assert load("vsepp", weights=path).modalities == ("image", "text")


def test_a_folder_stands_for_the_checkpoint_in_it(run):
    assert load("vsepp", weights=run().parent).modalities == ("image", "text")


def test_without_a_vocabulary_there_is_no_text_tower_and_a_line_says_so(run, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = load("vsepp", weights=run(vocabulary=None))
    assert encoder.modalities == ("image",)
    assert "f30k_precomp_vocab.pkl" in caplog.text
    with pytest.raises(InputError, match="no text tower"):
        encoder.encode_text(["a man"])


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(run, tmp_path):
    other = tmp_path / "coco_vocab.pkl"
    other.write_bytes(vocabulary_bytes([*WORDS, "cat"]))
    with pytest.raises(WeightsError, match=rf"coco_vocab.pkl: a vocabulary of {len(WORDS) + 1} words .* {len(WORDS)};"):
        load("vsepp", weights=run(), vocabulary=other)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (vocabulary_bytes(["unk", *WORDS[1:3], "x", *WORDS[4:]]), "no <unk>"),
        (vocabulary_bytes(WORDS, word2idx={word: 7 * i for i, word in enumerate(WORDS)}), "each once"),
        (vocabulary_bytes(WORDS, word2idx=dict.fromkeys(WORDS, 0)), "each once"),
        (vocabulary_bytes(WORDS, word2idx=list(WORDS)), "word2idx"),
        (vocabulary_bytes(WORDS, word2idx={word: str(i) for i, word in enumerate(WORDS)}), "word2idx"),
        (pickle.dumps(["a", "list"]), "word2idx"),
        (vocabulary_bytes(WORDS)[:-40], "damaged"),
        (b"", "empty|damaged"),
    ],
)
def test_a_damaged_vocabulary_is_refused(run, tmp_path, content, reason):
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(content)
    with pytest.raises(WeightsError, match=f"bad.pkl: .*({reason})"):
        load("vsepp", weights=run(), vocabulary=bad)


def test_a_vocabulary_that_would_run_code_is_refused_and_does_not_run(run, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    bad = tmp_path / "f30k_vocab.pkl"
    bad.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(WeightsError, match="refused"):
        load("vsepp", weights=run(), vocabulary=bad)
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------- bad captions and features


@pytest.mark.parametrize("caption", ["zebra xylophone", "", "  ", "<start> zebra", "???"])
def test_a_caption_with_no_known_word_is_refused_unless_accepted(run, caption):
    path = run()
    with pytest.raises(InputError) as caught:
        load("vsepp", weights=path).encode_text(["a man", caption])
    assert caught.value.item == "text[1]"
    assert caught.value.code == "unknown-words"
    row = load("vsepp", weights=path, unknown_words="accept").encode_text([caption])
    assert np.isclose(np.linalg.norm(row), 1)


def test_the_refusal_names_the_words_and_the_way_out(run):
    with pytest.raises(InputError, match=r"zebra, xylophone.*unknown_words='accept'"):
        load("vsepp", weights=run()).encode_text(["Zebra xylophone"])


@pytest.mark.parametrize("caption", [None, 5, b"a man", ["a man"], "a man " * 2000])
def test_what_is_not_a_text_of_sensible_length_is_refused(run, caption):
    with pytest.raises(InputError, match=r"text\[0\]"):
        load("vsepp", weights=run()).encode_text([caption])


@pytest.mark.parametrize(
    "source",
    [
        "photo.jpg",
        b"bytes",
        np.zeros(9, np.float32),
        np.zeros((10, 1), np.float32),
        np.full(10, np.nan, np.float32),
        np.array(["a"] * 10),
        object(),
    ],
)
def test_what_is_not_a_row_of_features_is_refused(run, source):
    with pytest.raises(InputError, match=r"image\[1\]: .*10 precomputed features"):
        load("vsepp", weights=run()).encode_image([features(1)[0], source])


# ---------------------------------------------------------------- bad checkpoints


def test_missing_and_left_over_tensors_are_both_listed(run):
    image, text = towers()
    del image["fc.bias"]
    image["fc.scale"] = torch.zeros(3)
    with pytest.raises(WeightsError, match=r"fc\.bias.*fc\.scale"):
        load("vsepp", weights=run(state=[image, text]))


def test_a_checkpoint_that_lost_its_cnn_is_not_taken_for_a_smaller_model(run):
    with pytest.raises(WeightsError, match=r"missing.*cnn\.features\.0\.weight"):
        load("vsepp", weights=run(data_name="f30k"))


def test_a_name_that_disagrees_with_the_checkpoint_names_both(run):
    with pytest.raises(WeightsError, match=r"vsepp/coco-resnet152.*precomputed features.*plain 'vsepp'"):
        load("vsepp/coco-resnet152", weights=run())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"embed_size": 9}, "do not fit|embed_size"),
        ({"embed_size": "8"}, "embed_size is '8'; a number"),
        ({"embed_size": 1 << 40}, "embed_size"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_layers": True}, "num_layers"),
        ({"use_abs": "no"}, "use_abs is 'no'; a bool"),
        ({"data_name": None}, "data_name"),
        ({"data_name": "f30k", "cnn_type": "alexnet"}, "alexnet.*vgg19 and resnet152"),
    ],
)
def test_options_that_make_no_sense_are_refused(run, changes, match):
    path = run(state=towers(), content={"opt": argparse.Namespace(**{**OPTIONS, **changes})})
    with pytest.raises(WeightsError, match=match):
        load("vsepp", weights=path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"opt": None}, "no options"),
        ({"model": {"fc.weight": torch.zeros(1)}}, "two towers"),
        ({"model": [{}]}, "two towers"),
        ({"model": [torch.zeros(1), torch.zeros(2)]}, "two towers"),
        ({"model": [towers()[0], {}]}, r"embed\.weight"),
        ({"model": [towers()[0], {"embed.weight": 3}]}, r"embed\.weight"),
    ],
)
def test_a_checkpoint_of_another_layout_is_refused(run, content, match):
    with pytest.raises(WeightsError, match=match):
        load("vsepp", weights=run(content=content))


def test_a_plain_state_dict_is_refused_with_what_it_holds(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match=r"1 entries \(conv1.weight\); a VSE\+\+ checkpoint"):
        load("vsepp", weights=path)


def test_a_truncated_checkpoint_is_refused(run):
    path = run()
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WeightsError, match=r"model_best\.pth\.tar"):
        load("vsepp", weights=path)


def test_a_converted_checkpoint_of_another_family_is_refused(tmp_path):
    path = tmp_path / "bit.safetensors"
    convert.save(path, {"a": np.zeros(2, np.float32)}, {"family": "bit"})
    with pytest.raises(WeightsError, match="'bit'; 'vsepp' was expected"):
        load("vsepp", weights=path)


def test_unknown_names_and_options_are_refused(run):
    with pytest.raises(UnknownModel, match="f30k-vgg19"):
        load("vsepp/f30k-vgg16", weights=run())
    with pytest.raises(InputError, match="refuse, accept"):
        load("vsepp", weights=run(), unknown_words="maybe")


# ---------------------------------------------------------------- what the authors publish


@pytest.fixture
def published(run, tmp_path, monkeypatch):
    """The two archives as the authors publish them, a local copy of each; yields the names that were fetched."""
    checkpoint, fetched = run().read_bytes(), []
    folder = tmp_path / "cache" / "www.cs.toronto.edu" / "~faghri" / "vsepp"
    folder.mkdir(parents=True)
    for name, members in {
        "runs.tar": {"runs/other/model_best.pth.tar": b"x", "./runs/f30k_vse++_vggfull/model_best.pth.tar": checkpoint},
        "vocab.tar": {"vocab/f30k_vocab.pkl": vocabulary_bytes(WORDS), "vocab/../../evil": b"x"},
    }.items():
        with tarfile.open(folder / name, "w") as tar:
            for member, content in members.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

    def fetch(url, *, max_bytes, offline=None, progress=None):
        fetched.append(url)
        return folder / url.rpartition("/")[2]

    monkeypatch.setattr("image_encoders.weights.fetch.fetch", fetch)
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    return types.SimpleNamespace(fetched=fetched, folder=folder)


def test_a_published_run_is_taken_out_of_the_archives(published):
    paths = vsepp.fetch("f30k-vgg19")
    assert published.fetched == [f"{vsepp.PUBLISHED}/runs.tar", f"{vsepp.PUBLISHED}/vocab.tar"]
    assert [path.relative_to(published.folder).as_posix() for path in paths] == [
        "runs/f30k_vse++_vggfull/model_best.pth.tar",
        "vocab/f30k_vocab.pkl",
    ]
    encoder = load("vsepp", weights=paths[0], vocabulary=paths[1])
    assert encoder.modalities == ("image", "text")
    assert sorted(p.name for p in published.folder.rglob("*") if p.is_file()) == sorted(
        ["runs.tar", "vocab.tar", "model_best.pth.tar", "f30k_vocab.pkl"]
    )


def test_files_that_were_taken_out_are_used_without_their_archives(published):
    paths = vsepp.fetch("f30k-vgg19")
    for archive in published.folder.glob("*.tar"):
        archive.unlink()
    assert vsepp.fetch("f30k-vgg19") == paths
    assert len(published.fetched) == 2


def test_an_archive_without_the_run_says_which_it_has(published):
    with pytest.raises(WeightsError, match=r"f30k_vse\+\+_vggfull_finetune.*it has .*f30k_vse\+\+_vggfull/"):
        vsepp.fetch("f30k-vgg19-finetune")


def test_a_truncated_archive_leaves_nothing_behind(published):
    archive = published.folder / "runs.tar"
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(WeightsError, match=r"runs\.tar"):
        vsepp.fetch("f30k-vgg19")
    assert not [path for path in published.folder.rglob("*") if "model_best" in path.name]


@pytest.mark.parametrize("variant", ["", "coco-vgg19"])
def test_a_run_that_nobody_named_asks_for_weights(variant):
    with pytest.raises(WeightsError, match="weights=PATH"):
        load(f"vsepp/{variant}".rstrip("/"))


def test_the_table_lists_every_variant_and_the_plain_family():
    names = [variant.name for variant in vsepp.VARIANTS]
    assert names[0] == ""
    assert set(names[1:]) == set(vsepp.RUNS)
    assert all(variant.towers == ("image", "text") for variant in vsepp.VARIANTS)


def test_the_small_encoder_is_the_same_every_time():
    one, two = vsepp.tiny().assemble(), vsepp.tiny().assemble()
    assert isinstance(one, Encoder)
    assert one.fingerprint == two.fingerprint
    assert one.device == Runtime().device
