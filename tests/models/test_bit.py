"""BiT from small checkpoints in every layout, whose names are those of the big ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_encoders import InputError, UnknownModel, WeightsError, load, names
from image_encoders.models import bit
from image_encoders.nets.bit import BiT, standardize
from image_encoders.weights import convert

sys.path.insert(0, str(Path(__file__).parent.parent / "weights"))
from bundle_writer import trackable_graph, write

sys.path.pop(0)

SMALL = bit.Architecture((2, 1, 1, 1), 0.5)
RNG = np.random.default_rng(3)
IMAGES = [RNG.integers(0, 256, size, dtype=np.uint8) for size in [(120, 90, 3), (33, 47, 3), (96, 96, 3)]]


@pytest.fixture(autouse=True)
def _small_variants(monkeypatch):
    monkeypatch.setitem(bit.ARCHITECTURES, "small", SMALL)
    monkeypatch.setitem(bit.ARCHITECTURES, "deeper", bit.Architecture((2, 2, 1, 1), 0.5))


def variables(architecture=SMALL, seed=0) -> dict[str, np.ndarray]:
    """Random variables by their npz names, with those of a classifier."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        state = BiT(architecture.units, architecture.channels).state_dict()
    made = {"resnet/head/conv2d/kernel": rng.normal(size=(1, 1, 1024, 5)), "resnet/head/conv2d/bias": np.zeros(5)}
    for name, value in state.items():
        shape = tuple(value.shape)
        shape = (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape
        offset = 1.0 if name.endswith("group_norm.weight") else 0.0
        made[bit._npz_name(name)] = rng.normal(offset, 0.3, shape)
    return {name: value.astype(np.float32) for name, value in made.items()}


def npz(path: Path, arrays: dict[str, np.ndarray], save=np.savez) -> Path:
    save(path, **arrays)
    return path


class Graph:
    """An object graph in the making."""

    def __init__(self):
        self.nodes: list[tuple[dict[str, int], str, str]] = [({}, "", "")]

    def add(self, path: str, name: str = "", key: str = "") -> None:
        at = 0
        for part in path.split("/"):
            children = self.nodes[at][0]
            if part not in children:
                children[part] = len(self.nodes)
                self.nodes.append(({}, "", ""))
            at = children[part]
        self.nodes[at] = (self.nodes[at][0], name, key)


def graph_path(name: str) -> str:
    """Where the Keras model keeps a variable, by its npz name."""
    _, block, *rest = name.split("/")
    if block == "root_block":
        return "_root/layer_with_weights-0/kernel"
    if block == "group_norm":
        return f"_pre_head/0/{rest[0]}"
    unit, step, *rest = rest
    place = {
        "a standardized_conv2d kernel": "_unit_a_conv/kernel",
        "a proj standardized_conv2d kernel": "_proj/kernel",
        "b standardized_conv2d kernel": "_unit_b/layer_with_weights-1/kernel",
        "c standardized_conv2d kernel": "_unit_c/layer_with_weights-1/kernel",
    }.get(" ".join((step, *rest)), f"_unit_{step}/layer_with_weights-0/{rest[-1]}")
    return f"_blocks/{int(block[-1]) - 1}/layer_with_weights-{int(unit[-2:]) - 1}/{place}"


def saved_model(folder: Path, arrays: dict[str, np.ndarray], prefix: str = "", named: bool = False) -> Path:
    """A SavedModel whose variables, in an order of no meaning, are identified by the object graph or by their names."""
    graph, tensors = Graph(), {}
    for number, name in enumerate(sorted(arrays, key=lambda name: name[::-1])):
        if name.startswith(bit.HEAD):
            continue
        key = f"variables/{number}/.ATTRIBUTES/VARIABLE_VALUE"
        tensors[key] = arrays[name]
        if named:
            graph.add(f"variables/{number}", name, key)
        else:
            graph.add(prefix + graph_path(name), name.split("/")[-1], key)
    return write(folder, tensors, trackable_graph(graph.nodes))


def encoder(weights: Path, variant="small", **options):
    return load(f"bit/{variant}", weights=weights, device="cpu", precision="float32", engine="torch", **options)


@pytest.fixture
def weights(tmp_path) -> Path:
    return npz(tmp_path / "BiT.npz", variables())


@pytest.mark.parametrize("variant", [name for name in bit.ARCHITECTURES if name.startswith("R")])
def test_every_variant_has_the_names_and_shapes_of_its_published_file(variant, conformance: Path):
    side, spec = (
        conformance / "specs" / f"{path}.json" for path in (f"data/names-BiT-{variant}", f"bit-npz-{variant}")
    )
    if side.exists():
        wanted = {name: tuple(shape) for name, shape in json.loads(side.read_text())["tensors"]}
    else:
        wanted = {one["name"]: tuple(one["shape"]) for one in json.loads(spec.read_text())["tensors"]}
    architecture = bit.ARCHITECTURES[variant]
    with torch.device("meta"):
        state = BiT(architecture.units, architecture.channels).state_dict()
    found = {bit._npz_name(name): tuple(value.permute(2, 3, 1, 0).shape if value.ndim == 4 else value.shape)
             for name, value in state.items()}  # fmt: skip
    assert found == {name: shape for name, shape in wanted.items() if not name.startswith(bit.HEAD)}
    assert str(architecture).startswith(f"{variant} ")


def test_the_six_variants_of_both_data_sets_are_listed():
    listed = [name for name in names() if name.startswith("bit/")]
    assert listed == [
        f"bit/{data}{name}"
        for data in ("", "Imagenet1k/")
        for name in ("R50x1", "R101x1", "R50x3", "R101x3", "R152x2", "R152x4")
    ]


def test_all_file_formats_give_the_same_embeddings_and_the_same_space(tmp_path, weights):
    arrays = variables()
    converted = tmp_path / "bit.safetensors"
    convert.save(converted, *bit.original(weights))
    places = [
        npz(tmp_path / "deflated.npz", arrays, np.savez_compressed),
        saved_model(tmp_path / "keras", arrays),
        saved_model(tmp_path / "wrapped", arrays, prefix="net/model/"),
        saved_model(tmp_path / "named", arrays, named=True),
        converted,
    ]
    reference = encoder(weights)
    rows = reference.encode_image(IMAGES)
    assert rows.shape == (3, reference.dim) == (3, 1024)
    assert (rows >= 0).all()
    assert not np.allclose(rows[0], rows[1], rtol=1e-3)
    for place in places:
        found = encoder(place)
        assert np.array_equal(found.encode_image(IMAGES), rows), place
        assert found.fingerprint == reference.fingerprint, place


def test_a_conversion_remembers_the_range_of_floats(tmp_path, weights):
    floats = RNG.uniform(0, 1, (2, 3, 40, 50)).astype(np.float32)
    for original in (weights, saved_model(tmp_path / "keras", variables())):
        converted = tmp_path / f"{original.stem}.safetensors"
        convert.save(converted, *bit.original(original))
        assert np.array_equal(encoder(converted).embed_image(floats), encoder(original).embed_image(floats))


def test_floats_are_in_the_range_that_the_checkpoints_own_program_takes(tmp_path, weights):
    unit = RNG.uniform(0, 1, (2, 3, 40, 50)).astype(np.float32)
    symmetric = unit * 2 - 1
    folder = saved_model(tmp_path / "keras", variables())
    rows = encoder(weights).embed_image(symmetric)
    assert np.array_equal(encoder(folder).embed_image(unit), rows)
    assert np.array_equal(encoder(weights, input_range="unit").embed_image(unit), rows)
    assert np.array_equal(encoder(folder, input_range="symmetric").embed_image(symmetric), rows)
    assert not np.allclose(encoder(folder).embed_image(symmetric), rows, rtol=1e-2)


def test_embeddings_of_images_do_not_depend_on_the_range_of_floats(weights):
    unit, symmetric = (encoder(weights, input_range=name) for name in ("unit", "symmetric"))
    assert np.array_equal(unit.encode_image(IMAGES), symmetric.encode_image(IMAGES))
    assert unit.fingerprint == symmetric.fingerprint


def test_an_image_is_the_float_array_that_it_stands_for(weights):
    one = encoder(weights, input_size=64)
    resized = np.asarray(Image.fromarray(IMAGES[0]).resize((64, 64), Image.Resampling.BILINEAR))
    prepared = (resized.transpose(2, 0, 1).astype(np.float32) / 255 - 0.5) / 0.5
    rows = one.encode_image([IMAGES[0]])
    assert np.abs(rows - one.embed_image(prepared[None])).max() <= 1e-6 * rows.max()


def test_float_images_of_any_size_are_taken_as_already_scaled(weights):
    one = encoder(weights)
    floats = [RNG.uniform(-1, 1, (*size, 3)) for size in [(33, 47), (9, 5), (160, 192)]]
    rows = one.encode_image(floats)
    for row, array in zip(rows, floats, strict=True):
        assert np.allclose(one.embed_image(array.transpose(2, 0, 1)[None])[0], row, rtol=1e-5)
        assert np.allclose(one.encode_image([torch.from_numpy(array.transpose(2, 0, 1))])[0], row, rtol=1e-5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), r"shape \(4, 4\); \(H, W, 3\) or \(3, H, W\) is accepted"),
        (np.zeros((4, 4, 4)), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3)), r"shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), np.nan), "NaN"),
    ],
)
def test_a_float_array_that_is_no_image_names_its_position(array, message, weights):
    with pytest.raises(InputError, match=rf"image\[1\]: .*{message}"):
        encoder(weights).encode_image([IMAGES[0], array])


@pytest.mark.parametrize(
    ("size", "side"), [((96, 96), 480), ((95, 97), 128), ((1, 1), 128), ((10, 921), 128), ((10, 922), 480)]
)
def test_small_images_become_128_pixels_wide_and_others_480(size, side, weights):
    tower = encoder(weights).tower("image")
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = tower.input(pixels)
    wanted = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
    assert prepared.dtype == np.uint8
    assert np.array_equal(prepared, wanted.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(300, 500), (501, 333), (7, 9), (256, 256)])
@pytest.mark.parametrize("side", [None, 224, 300])
def test_jinas_rule_is_a_short_side_of_256_and_the_middle_of_that(size, side, weights):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    prepared = encoder(weights, preprocessing="jina", input_size=side).tower("image").input(pixels)
    height, width = (round(n * 256 / min(size)) for n in size)
    side = side or 224
    left, top = int((width - side) / 2), int((height - side) / 2)
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
    assert np.array_equal(prepared.transpose(1, 2, 0), np.asarray(resized.crop((left, top, left + side, top + side))))


def test_what_decides_embeddings_decides_the_fingerprint(tmp_path, weights):
    other = npz(tmp_path / "other.npz", variables(seed=1))
    prints = {
        encoder(weights).fingerprint,
        encoder(weights, input_size=224).fingerprint,
        encoder(weights, preprocessing="jina").fingerprint,
        encoder(other).fingerprint,
    }
    assert len(prints) == 4
    jina = encoder(weights, preprocessing="jina", input_size=224)
    assert jina.fingerprint == encoder(weights, preprocessing="jina").fingerprint


def test_kernels_are_standardised_with_the_biased_variance_and_a_tiny_epsilon():
    kernel = torch.randn(4, 3, 2, 2, dtype=torch.float64) * 1e-5
    centred = kernel - kernel.mean((1, 2, 3), keepdim=True)
    wanted = centred / torch.sqrt((centred**2).mean((1, 2, 3), keepdim=True) + 1e-10)
    assert torch.allclose(standardize(kernel.clone()), wanted, rtol=1e-12)
    assert wanted.abs().max() < 3  # the epsilon shows


@pytest.mark.parametrize("make", [npz, saved_model, lambda path, arrays: saved_model(path, arrays, named=True)])
def test_a_checkpoint_of_another_variant_names_both(make: Callable, tmp_path):
    place = make(tmp_path / "BiT.npz", variables())
    with pytest.raises(WeightsError, match=r"R17x0.5 \(units 2-1-1-1\), not of R20x0.5 \(units 2-2-1-1\).*bit/small"):
        encoder(place, "deeper")
    with pytest.raises(WeightsError, match=r"R17x0.5 \(units 2-1-1-1\), not of R50x1 \(units 3-4-6-3\)"):
        encoder(place, "R50x1")


def test_a_conversion_of_another_variant_names_both(tmp_path, weights):
    convert.save(tmp_path / "bit.safetensors", *bit.original(weights))
    with pytest.raises(WeightsError, match=r"R17x0.5 .*not of R20x0.5"):
        encoder(tmp_path / "bit.safetensors", "deeper")


def test_another_width_names_both(tmp_path):
    wide = npz(tmp_path / "wide.npz", variables(bit.Architecture((2, 1, 1, 1), 1)))
    with pytest.raises(WeightsError, match=r"R17x1 .*, not of R17x0.5"):
        encoder(wide)


def test_missing_and_surplus_tensors_are_both_listed(tmp_path):
    arrays = variables()
    del arrays["resnet/block4/unit01/c/group_norm/beta"]
    arrays["resnet/block4/unit01/d"] = np.zeros(3, np.float32)
    place = npz(tmp_path / "BiT.npz", arrays)
    with pytest.raises(WeightsError, match=r"1 missing \(resnet/block4/unit01/c/group_norm/beta\).*unit01/d"):
        encoder(place)
    with pytest.raises(WeightsError, match="1 missing"):
        bit.original(place)


def test_a_tensor_of_a_wrong_shape_is_named(tmp_path):
    arrays = variables()
    arrays["resnet/group_norm/gamma"] = np.ones(7, np.float32)
    with pytest.raises(WeightsError, match=r"group_norm.weight is float32 \(7,\)"):
        encoder(npz(tmp_path / "BiT.npz", arrays))


def test_a_saved_model_that_lacks_a_variable_names_it(tmp_path):
    arrays = variables()
    del arrays["resnet/block1/unit02/b/standardized_conv2d/kernel"]
    with pytest.raises(WeightsError, match=r"missing .*resnet/block1/unit02/b/standardized_conv2d/kernel"):
        encoder(saved_model(tmp_path / "keras", arrays))


def test_a_saved_model_of_something_else_is_refused(tmp_path):
    graph = Graph()
    graph.add("model/dense", "dense/kernel", "model/dense/.ATTRIBUTES/VARIABLE_VALUE")
    folder = write(
        tmp_path / "other", {"model/dense/.ATTRIBUTES/VARIABLE_VALUE": np.ones(3)}, trackable_graph(graph.nodes)
    )
    with pytest.raises(WeightsError, match=r"neither .* names .* nor .* graph.*1 tensors \(dense/kernel"):
        encoder(folder)


def test_a_file_of_another_kind_says_what_is_accepted(tmp_path, weights):
    folder = saved_model(tmp_path / "keras", variables())
    (tmp_path / "empty").mkdir()
    (folder / "saved_model.pb").write_bytes(b"")
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "short.npz").write_bytes(weights.read_bytes()[:-1000])
    for path, message in [
        (tmp_path / "absent.npz", "absent.npz: No such file"),
        (tmp_path / "empty", "a SavedModel has saved_model.pb and variables/"),
        (folder / "saved_model.pb", "give its folder"),
        (tmp_path / "model.h5", "an HDF5 file; accepted: Google's .npz"),
        (tmp_path / "text.npz", "not a numpy archive; accepted"),
        (tmp_path / "short.npz", "short.npz: "),
    ]:
        with pytest.raises(WeightsError, match=message):
            encoder(path)


def test_a_damaged_tensor_is_named(tmp_path, weights):
    raw = bytearray(weights.read_bytes())
    at = raw.index(b"resnet/block2/unit01/b/standardized_conv2d/kernel.npy") + 5000
    raw[at] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"BiT.npz: .*resnet/block2/unit01/b/standardized_conv2d/kernel"):
        encoder(weights)


@pytest.mark.parametrize("variant", ["R50x2", "Imagenet2k/R50x1", "", "R50x1/extra"])
def test_an_unknown_variant_names_close_ones(variant):
    with pytest.raises(UnknownModel, match="there is no model 'bit/"):
        load(f"bit/{variant}", weights="x.npz")


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": 0},
        {"input_size": "224"},
        {"input_size": True},
        {"input_range": "0..1"},
        {"preprocessing": "quick"},
        {"source": "h5"},
    ],
)
def test_an_options_value_that_is_not_accepted_is_named(options, weights):
    given = {"weights": weights} if "source" not in options else {}
    with pytest.raises(InputError, match=next(iter(options))):
        load("bit/R50x1", device="cpu", **given, **options)


def test_the_prefix_of_the_default_data_set_may_be_left_out(tmp_path):
    files = [encoder(npz(tmp_path / "BiT.npz", variables()), variant) for variant in ("small", "Imagenet21k/small")]
    assert files[0].name == files[1].name == "bit/small"
    assert encoder(tmp_path / "BiT.npz", "Imagenet1k/small").name == "bit/Imagenet1k/small"


def test_published_files_are_where_google_put_them(monkeypatch, tmp_path):
    asked = []

    def fetch(url, *, max_bytes, offline, progress):
        asked.append((url, offline))
        return tmp_path / url.partition("//")[2]

    monkeypatch.setattr("image_encoders.weights.fetch.fetch", fetch)
    root = "https://storage.googleapis.com/bit_models"
    assert bit.fetch("R50x1", offline=True) == [tmp_path / "storage.googleapis.com/bit_models/BiT-M-R50x1.npz"]
    bit.fetch("Imagenet1k/R152x2")
    files = bit.fetch("Imagenet1k/R101x3", source="savedmodel")
    folder = f"{root}/Imagenet1k/R101x3/feature_vectors"
    assert asked == [
        (f"{root}/BiT-M-R50x1.npz", True),
        (f"{root}/BiT-S-R152x2.npz", None),
        (f"{folder}/saved_model.pb", None),
        (f"{folder}/variables/variables.index", None),
        (f"{folder}/variables/variables.data-00000-of-00001", None),
    ]
    assert bit._folder(files) == files[0].parent
    with pytest.raises(WeightsError, match="no SavedModel of R152x2 is published"):
        bit.fetch("R152x2", source="savedmodel")
