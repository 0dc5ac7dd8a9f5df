"""Custom nets: a layer of somebody's class, whatever that class does."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from image_encoders import InputError, UnknownModel, WeightsError, load
from image_encoders.models import custom
from image_encoders.weights import convert

RNG = np.random.default_rng(5)

# As in the documentation of CustomImageTorchEncoder.
EXAMPLE = """
import torch
import torch.nn as nn
import torch.nn.functional as F


class CustomModel(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(10, 16, 5)
        self.fc1 = nn.Linear(16 * 53 * 53, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 53 * 53)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


if __name__ == '__main__':
    # here you can run your training logic
    path = 'model_state_dict.pth'
    model = CustomModel()
    torch.save(model.state_dict(), path)
"""

NET = """
import torch
from torch import nn

from counted import RAN


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        RAN.append(len(x))
        return self.fc(x.mean((2, 3)))


class Net(nn.Module):
    def __init__(self, channels=6):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, channels, 3, stride=2), nn.ReLU(), nn.Conv2d(channels, 6, 3))
        self.unused = nn.Conv2d(6, 6, 1)
        self.single = nn.Conv2d(6, 1, 1)
        self.tokens = nn.Flatten(2)
        self.pair = Pair()
        self.head = Head()

    def forward(self, x):
        x = self.features(x)
        self.single(x)
        self.tokens(x)
        self.pair(x)
        return self.head(x)


class Pair(nn.Module):
    def forward(self, x):
        return x, None


def half(pixels):
    return torch.from_numpy(pixels[::2, ::2]).permute(2, 0, 1) / 255


def wrong(pixels):
    return pixels.no_such_attribute
"""


def write(folder, definition=NET, class_name="Net", *arguments, save=torch.save, **keywords):
    """The two files of a net, and the net."""
    path = folder / "model.py"
    path.write_text(textwrap.dedent(definition))
    scope: dict = {"__name__": "model"}
    exec(path.read_text(), scope)
    torch.manual_seed(0)
    net = scope[class_name](*arguments, **keywords).eval()
    save(net.state_dict(), folder / "state.pth")
    return net


def encoder(folder, class_name="Net", **options):
    return load(
        "custom",
        weights=folder / "state.pth",
        definition=folder / "model.py",
        class_name=class_name,
        device="cpu",
        precision="float32",
        engine="torch",
        **options,
    )


@pytest.fixture(autouse=True)
def ran(monkeypatch):
    """How many images the head of NET ran for, pass by pass."""
    module = types.ModuleType("counted")
    module.RAN = []
    monkeypatch.setitem(sys.modules, "counted", module)
    return module.RAN


@pytest.fixture
def net(tmp_path):
    return write(tmp_path)


@pytest.fixture
def images():
    return RNG.random((5, 3, 40, 56), np.float32)


def test_the_documented_example_runs_as_written(tmp_path):
    (tmp_path / "model.py").write_text(EXAMPLE)
    subprocess.run([sys.executable, "model.py"], cwd=tmp_path, check=True)
    files = {
        "model_state_dict_path": str(tmp_path / "model_state_dict.pth"),
        "model_definition_file": str(tmp_path / "model.py"),
        "model_class_name": "CustomModel",
    }
    rows = load("CustomImageTorchEncoder", layer_name="conv1", **files).encode_image([np.random.rand(3, 224, 224)])
    assert rows.shape == (1, 10)
    assert rows[0].shape == (10,)


def test_an_embedding_is_the_layers_mean_over_space(net, tmp_path, images):
    with torch.no_grad():
        wanted = net.features(torch.from_numpy(images)).mean((2, 3)).numpy()
    one = encoder(tmp_path)
    assert one.dim == 6
    assert one.name == "custom"
    for _ in range(2):
        assert np.allclose(one.embed_image(images), wanted, atol=1e-6)
    assert np.allclose(one.encode_image(list(images)), wanted, atol=1e-6)


@pytest.mark.parametrize("array", [np.arange(3 * 20 * 30).reshape(3, 20, 30) % 251, RNG.random((3, 20, 30))])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, np.float16])
def test_arrays_come_as_they_are_only_cast(array, dtype, net, tmp_path):
    array = array.astype(dtype)
    with torch.no_grad():
        wanted = net.features(torch.from_numpy(array.astype(np.float32))[None]).mean((2, 3)).numpy()
    rows = encoder(tmp_path).encode_image([array, torch.from_numpy(array)])
    assert np.allclose(rows, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("layer", "dim"), [("features", 6), ("features.0", 6), ("head.fc", 4), ("head", 4), ("single", 1), ("", 4)]
)
def test_layers_are_named_with_dots_and_give_one_number_for_each_channel(layer, dim, net, tmp_path, images):
    one = encoder(tmp_path, layer=layer)
    rows = one.embed_image(images)
    assert rows.shape == (5, dim)
    assert one.dim == dim
    assert one.embed_image(images[:1])[0].shape == (dim,)


def test_the_net_stops_after_the_layer(net, ran, tmp_path, images):
    one = encoder(tmp_path)
    for _ in range(3):
        one.embed_image(images)
        one.embed_image(images[:2])
    assert ran == [2, 2, 1, 5]  # the trial and the probes at load, and the first pass over another shape


def test_a_net_that_is_wanted_whole_runs_whole(net, ran, tmp_path, images):
    rows = encoder(tmp_path).embed_image(images)
    ran.clear()
    one = encoder(tmp_path, whole=True)
    for _ in range(3):
        assert np.array_equal(one.embed_image(images), rows)
    assert ran == [2, 2, 1, 1, 5, 5, 5]


def test_what_follows_the_layer_may_fail(tmp_path):
    write(tmp_path, EXAMPLE, "CustomModel")
    one = encoder(tmp_path, "CustomModel", layer="conv2")  # whose fc1 wants 224 x 224
    for size in [(97, 131), (224, 224), (97, 131)]:
        assert one.embed_image(RNG.random((2, 3, *size))).shape == (2, 16)


REPEATED = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        while x.shape[-1] > 8:
            x = F.max_pool2d(self.conv(x), 2)
        y = self.norm(x)
        y += 0.5
        y[:, :1].mul_(-2)
        return self.last(self.relu(y))
"""


def hooked(net, layer, inputs):
    """What a hook that keeps a reference sees when the whole net has run."""
    kept = []
    with net.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output)), torch.no_grad():
        net(torch.from_numpy(inputs))
    return torch.nn.functional.adaptive_avg_pool2d(kept[-1], 1).flatten(1).numpy()


@pytest.mark.parametrize("layer", ["conv", "norm", "relu", "last"])
def test_embeddings_are_what_a_hook_sees_in_the_end(layer, tmp_path):
    net = write(tmp_path, REPEATED)
    one = encoder(tmp_path, layer=layer)
    for size in (8, 16, 40, 64, 16, 8):  # a layer that runs once, twice, three times, or not at all
        inputs = RNG.normal(size=(3, 3, size, size)).astype(np.float32)
        if layer == "conv" and size == 8:
            with pytest.raises(WeightsError, match=r"layer 'conv' never runs.*norm"):
                one.embed_image(inputs)
            continue
        for part in (inputs, inputs[:1], inputs):
            assert np.allclose(one.embed_image(part), hooked(net, layer, part), atol=1e-6)


@pytest.mark.parametrize("written", ["y.data.mul_(3)", "y.detach().numpy()[:] *= 3"])
def test_what_is_written_past_autograd_shows_as_well(written, tmp_path):
    definition = f"""
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.middle = nn.Conv2d(4, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)
        def forward(self, x):
            y = self.features(x)
            z = self.middle(y)
            {written}
            return self.head(z)
    """
    net = write(tmp_path, definition)
    one = encoder(tmp_path)
    x = RNG.random((2, 3, 8, 8), np.float32)
    for _ in range(3):
        assert np.allclose(one.embed_image(x), hooked(net, "features", x), atol=1e-6)


@pytest.mark.parametrize(
    "kept",
    [
        "self.grid = torch.linspace(0, 1, x.shape[-1], device=x.device)",
        "self.register_buffer('grid', torch.linspace(0, 1, x.shape[-1], device=x.device), persistent=False)",
        "float(x.sum()); self.grid = torch.linspace(0, 1, x.shape[-1])",
    ],
)
def test_what_a_net_keeps_of_its_first_pass_is_of_the_first_image(kept, tmp_path):
    definition = f"""
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)
            self.grid = None
        def forward(self, x):
            if self.grid is None:
                del self.grid
                {kept}
            return self.head(self.features(x * self.grid))
    """
    net = write(tmp_path, definition)
    x = RNG.random((2, 3, 8, 40), np.float32)
    one = encoder(tmp_path)
    for _ in range(2):
        assert np.allclose(one.embed_image(x), hooked(net, "features", x), atol=1e-6)


UNSTEADY = {
    "dropout": ("x = F.dropout(self.conv(x), 0.5, training=True)", "differs from pass to pass"),
    "little dropout": ("x = F.dropout(self.conv(x), 0.01, training=True)", "differs from pass to pass"),
    "noise": ("x = self.conv(x + 0.01 * torch.randn_like(x))", "differs from pass to pass"),
    "a counter": ("self.calls += 1; x = self.conv(x) * self.calls", "differs from pass to pass"),
    "batch statistics": (
        "x = F.batch_norm(self.conv(x), None, None, training=True)",
        "depends on the other images of its batch",
    ),
    "the batch's largest": ("x = self.conv(x); x = x / x.max()", "depends on the other images of its batch"),
    "the batch's order": ("x = self.conv(x) + torch.arange(len(x))[:, None, None, None]", "depends on the other"),
    "the first image": (
        "self.offset = self.offset if self.calls else x.mean(); self.calls = 1; x = self.conv(x - self.offset)",
        "depends on the images that the net has seen before",
    ),
}


# A net that cannot be copied has always seen the probes first, so that this does not show in it.
@pytest.mark.parametrize(
    ("kind", "copied"),
    [(kind, copied) for kind in UNSTEADY for copied in (True, False) if copied or "first" not in kind],
)
def test_a_net_whose_embedding_is_not_the_images_alone_is_refused(kind, copied, tmp_path):
    forward, reason = UNSTEADY[kind]
    definition = f"""
    import threading, torch
    from torch import nn
    import torch.nn.functional as F
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.features = nn.Identity()
            self.calls = self.offset = 0
            self.lock = {None if copied else "threading.Lock()"}
        def forward(self, x):
            {forward}
            return self.features(x)
    """
    write(tmp_path, definition)
    with pytest.raises(WeightsError, match=rf"model.py: the embedding of an image {reason}.* \(by [\d.e-]+ of its"):
        encoder(tmp_path)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("nn.BatchNorm2d(16, track_running_stats=False)", "without running statistics: norm"),
        ("nn.BatchNorm2d(16)", "in training mode after eval(): the net itself, conv, norm"),
        ("nn.Dropout(0.3)", "in training mode after eval(): the net itself, conv, norm"),
    ],
)
def test_a_net_that_stays_in_training_mode_says_which_layers_do(layers, said, tmp_path):
    overridden = "def eval(self): return self" if "training" in said else "pass"
    definition = f"""
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.norm = {layers}
            self.features = nn.Identity()
        def forward(self, x):
            return self.features(self.norm(self.conv(x)))
        {overridden}
    """
    write(tmp_path, definition)
    with pytest.raises(WeightsError, match=rf"the embedding of an image .*{re.escape(said)}"):
        encoder(tmp_path)


def test_a_preprocess_that_draws_is_refused(net, tmp_path):
    drawn = "def drawn(pixels):\n    return torch.from_numpy(pixels).permute(2, 0, 1) * torch.rand(())\n"
    (tmp_path / "model.py").write_text(f"{NET}\n\n{drawn}")
    with pytest.raises(WeightsError, match="preprocess= gives a different input for the same image each time"):
        encoder(tmp_path, preprocess="drawn")


HELD = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Identity()
        self.weight = nn.Parameter(torch.ones(1))
        {held}
    def forward(self, x):
        return self.features(x * self.weight * {used})
"""


@pytest.mark.parametrize(
    "held",
    [
        "self.register_buffer('held', torch.randn(3, 1, 1), persistent=False)",
        "self.held = torch.randn(3, 1, 1)",
    ],
)
def test_random_numbers_that_no_checkpoint_holds_are_refused(held, tmp_path):
    write(tmp_path, HELD.format(held=held, used="self.held"))
    with pytest.raises(WeightsError, match="differs each time the class is constructed"):
        encoder(tmp_path)


def test_random_numbers_that_change_nothing_are_no_matter(tmp_path):
    held = "self.register_buffer('held', torch.empty(3, 1, 1).normal_(), persistent=False)"
    write(tmp_path, HELD.format(held=held, used="1"))
    assert encoder(tmp_path).fingerprint == encoder(tmp_path).fingerprint


@pytest.mark.parametrize("kind", ["register_buffer('held', {}, persistent=False)", "held = {}"])
def test_what_a_net_holds_and_no_checkpoint_does_is_in_the_fingerprint(kind, tmp_path):
    beside = "torch.load(__import__('pathlib').Path(__file__).with_name('held.pt'))"
    held = f"self.{kind.format(beside)}"
    torch.save(torch.ones(3, 1, 1), tmp_path / "held.pt")
    (tmp_path / "model.py").write_text(HELD.format(held=held, used="self.held"))
    torch.save({"weight": torch.ones(1)}, tmp_path / "state.pth")
    first = encoder(tmp_path)
    assert encoder(tmp_path).fingerprint == first.fingerprint
    torch.save(torch.full((3, 1, 1), 2.0), tmp_path / "held.pt")
    assert encoder(tmp_path).fingerprint != first.fingerprint


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weights_that_are_made_anew_in_each_pass_are_no_random_numbers(tmp_path):
    definition = """
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.utils.weight_norm(nn.Conv2d(3, 4, 1))
        def forward(self, x):
            return self.features(x)
    """
    net = write(tmp_path, definition)
    x = RNG.random((2, 3, 8, 8), np.float32)
    one = encoder(tmp_path)
    assert np.allclose(one.embed_image(x), hooked(net, "features", x), atol=1e-6)
    assert encoder(tmp_path).fingerprint == one.fingerprint


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("side", [32, 224])
def test_lazy_layers_become_the_checkpoints(side, tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.LazyConv2d(6, 5, stride=4), nn.LazyBatchNorm2d(), nn.ReLU())
            self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
        def forward(self, x):
            return self.head(self.features(x))
    """
    (tmp_path / "model.py").write_text(textwrap.dedent(definition))
    scope: dict = {}
    exec(textwrap.dedent(definition), scope)
    net = scope["Net"]().eval()
    x = RNG.random((2, 3, side, side), np.float32)
    net(torch.from_numpy(x))
    torch.save(net.state_dict(), tmp_path / "state.pth")
    for layer in ("features", "head"):
        with torch.no_grad():
            wanted = (
                net(torch.from_numpy(x)) if layer == "head" else net.features(torch.from_numpy(x)).mean((2, 3))
            ).numpy()
        assert np.allclose(encoder(tmp_path, layer=layer).embed_image(x), wanted, atol=1e-5)
    torch.save({**net.state_dict(), "head.1.weight": torch.zeros(4, 5)}, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match=r"state.pth: the net's lazy layers do not match .* input_shape="):
        encoder(tmp_path)


CLOSURES = {
    "a forward of its own": """
        net = Parts()
        net.forward = lambda x: net.head(net.features(x))
        return net
    """,
    "a hook that keeps": """
        net, kept = Parts(), {}
        net.features.register_forward_hook(lambda module, inputs, output: kept.__setitem__("x", output))
        net.first = net.forward
        net.forward = lambda x: (net.features(x), net.head(kept["x"]))[1]
        return net
    """,
}


@pytest.mark.parametrize("made", CLOSURES)
@pytest.mark.parametrize("layer", ["features", "head"])
def test_functions_may_hold_on_to_the_net_that_they_were_made_for(made, layer, tmp_path):
    definition = f"""
    from torch import nn
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)
        def forward(self, x):
            return self.head(self.features(x))
    def Net():{CLOSURES[made]}
    """
    net = write(tmp_path, definition)
    x = RNG.random((2, 3, 8, 40), np.float32)
    one = encoder(tmp_path, layer=layer)
    for _ in range(2):
        assert np.allclose(one.embed_image(x), hooked(net, layer, x), atol=1e-6)


def test_a_net_that_catches_all_exceptions_stops_as_well(tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.head = nn.Conv2d(4, 2, 1)
        def forward(self, x):
            try:
                return self.head(self.features(x))
            except Exception:
                return None
    """
    net = write(tmp_path, definition)
    one = encoder(tmp_path)
    x = RNG.random((2, 3, 8, 8), np.float32)
    for _ in range(2):
        assert np.allclose(one.embed_image(x), hooked(net, "features", x), atol=1e-6)


def test_eight_threads_agree_on_different_inputs(tmp_path):
    net = write(tmp_path, REPEATED)
    one = encoder(tmp_path, layer="norm")
    inputs = [RNG.normal(size=(2, 3, size, size)).astype(np.float32) for size in (8, 16, 24, 40) * 6]
    start = threading.Barrier(8)

    def embed(numbered):
        if numbered[0] < 8:
            start.wait(120)
        return one.embed_image(numbered[1])

    with ThreadPoolExecutor(8) as pool:
        for rows, x in zip(pool.map(embed, enumerate(inputs)), inputs):
            assert np.allclose(rows, hooked(net, "norm", x), atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "pooling", "reduce"),
    [
        ("features", "mean", lambda x: x.mean((2, 3))),
        ("features", "max", lambda x: x.amax((2, 3))),
        ("features", "none", lambda x: x.flatten(1)),
        ("features", None, lambda x: x.flatten(1)),
        ("tokens", "mean", lambda x: x.flatten(2).mean(1)),
        ("tokens", "mean-tokens", lambda x: x.flatten(2).mean(1)),
        ("tokens", "max", lambda x: x.flatten(2).amax(1)),
        ("tokens", "cls", lambda x: x.flatten(2)[:, 0]),
        ("tokens", "none", lambda x: x.flatten(1)),
    ],
)
def test_poolings(layer, pooling, reduce, net, tmp_path):
    x = RNG.random((3, 3, 32, 24), np.float32)
    with torch.no_grad():
        wanted = reduce(net.features(torch.from_numpy(x))).numpy()
    one = encoder(tmp_path, layer=layer, pooling=pooling, input_shape=(3, 32, 24))
    rows = one.embed_image(x)
    assert np.allclose(rows, wanted, atol=1e-6)
    assert one.dim == wanted.shape[1]


@pytest.mark.parametrize("pooling", ["mean", "max", "none"])
def test_features_without_space_stay_as_they_are(pooling, net, tmp_path, images):
    with torch.no_grad():
        wanted = net(torch.from_numpy(images)).numpy()
    one = encoder(tmp_path, layer="head", pooling=pooling, input_shape=(3, 40, 56))
    assert np.allclose(one.embed_image(images), wanted, atol=1e-6)


@pytest.mark.parametrize(("layer", "pooling"), [("features", "cls"), ("features", "mean-tokens"), ("head", "cls")])
def test_a_pooling_that_does_not_fit_the_layer_is_refused_at_load(layer, pooling, net, tmp_path):
    with pytest.raises(WeightsError, match=rf"{layer}.* gives \(2, .*needs tokens \(B, L, D\)"):
        encoder(tmp_path, layer=layer, pooling=pooling)


def test_unpooled_embeddings_want_one_shape(net, tmp_path):
    one = encoder(tmp_path, pooling="none", input_shape=(3, 32, 32))
    with pytest.raises(
        InputError, match=r"prepared\[0\]: a prepared image of 3 x 40 x 32; this model takes 3 x 32 x 32"
    ):
        one.embed_image(np.zeros((1, 3, 40, 32)))


@pytest.mark.parametrize(
    ("shape", "definition"),
    [
        ((1, 28, 28), "nn.Sequential(nn.Conv2d(1, 4, 5), nn.Flatten(), nn.Linear(4 * 24 * 24, 7))"),
        ((3, 32, 32), "nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7))"),
        ((13,), "nn.Sequential(nn.Linear(13, 9), nn.Linear(9, 7))"),
        ((3, 50, 50), "nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 46 * 46, 7))"),
    ],
)
def test_the_length_of_an_embedding_is_learnt_whatever_the_net_takes(shape, definition, tmp_path):
    write(tmp_path, f"from torch import nn\ndef make():\n    return {definition}\n", "make")
    options = {"input_shape": list(shape)} if shape == (3, 50, 50) else {}
    one = encoder(tmp_path, "make", layer="1" if len(shape) == 1 else "", **options)
    assert one.dim == 7
    assert one.encode_image([np.zeros(shape, np.float32)]).shape == (1, 7)


def test_a_net_whose_inputs_cannot_be_guessed_asks_for_their_shape(tmp_path):
    net = "nn.Sequential(nn.Conv2d(3, 4, 5), nn.Flatten(), nn.Linear(4 * 46 * 46, 7))"
    write(tmp_path, f"from torch import nn\ndef make():\n    return {net}\n", "make")
    with pytest.raises(WeightsError, match=r"fails on zeros of shape \(3, 224, 224\) and \d+ other.*input_shape="):
        encoder(tmp_path, "make", layer="2")


@pytest.mark.parametrize("shape", [(3, 0, 4), "3,32,32", (3.0, 32, 32)])
def test_an_input_shape_is_made_of_sizes(shape, net, tmp_path):
    with pytest.raises(InputError, match="input_shape is"):
        encoder(tmp_path, input_shape=shape)


def test_inputs_that_the_net_cannot_take_name_shape_and_reason(net, tmp_path):
    with pytest.raises(InputError, match=r"inputs of shape \(4, 30, 30\): line \d+: RuntimeError"):
        encoder(tmp_path).embed_image(np.zeros((1, 4, 30, 30)))


# ---------------------------------------------------------------- images


def test_images_need_a_preprocess(net, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    one = encoder(tmp_path)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.new("RGB", (9, 9)), b"PNG"):
        with pytest.raises(InputError, match=r"image\[0\]: .*preprocess=, one of pixels, unit, imagenet, clip"):
            one.encode_image([source])


@pytest.mark.parametrize("size", [(300, 260), (260, 331), (64, 64)])
@pytest.mark.parametrize("preset", ["pixels", "unit", "imagenet", "clip"])
def test_presets_are_torchvisions_transforms(preset, size, net, tmp_path):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = encoder(tmp_path, preprocess=preset).tower("image").input(pixels)
    x = pixels.transpose(2, 0, 1).astype(np.float32)
    if preset in ("imagenet", "clip"):
        target, filter, (mean, std) = {
            "imagenet": (256, Image.Resampling.BILINEAR, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
            "clip": (
                224,
                Image.Resampling.BICUBIC,
                ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
            ),
        }[preset]
        height, width = size
        short, long = sorted(size)
        longer = int(target * long / short)
        new = (target, longer) if width <= height else (longer, target)
        resized = Image.fromarray(pixels).resize(new, filter)
        left, top = (round((n - 224) / 2.0) for n in new)
        x = np.asarray(resized.crop((left, top, left + 224, top + 224))).transpose(2, 0, 1).astype(np.float32)
        wanted = (x / 255 - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    else:
        wanted = x / {"pixels": 1, "unit": 255}[preset]
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= 2e-6 * max(1, np.abs(wanted).max())


def test_a_function_of_the_definition_file_prepares_images(net, tmp_path):
    pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    one = encoder(tmp_path, preprocess="half")
    x = (pixels[::2, ::2].transpose(2, 0, 1) / 255).astype(np.float32)
    rows = one.encode_image([tmp_path / "a.png", pixels, x])
    assert np.allclose(rows, encoder(tmp_path).embed_image(x[None]), atol=1e-6)


def test_a_function_that_fails_names_image_and_line(net, tmp_path):
    line = NET.splitlines().index("    return pixels.no_such_attribute") + 1
    with pytest.raises(InputError, match=rf"image\[0\]: wrong fails: line {line}: AttributeError"):
        encoder(tmp_path, preprocess="wrong").encode_image([np.zeros((8, 8, 3), np.uint8)])


def test_a_preprocess_that_is_nothing_lists_what_is(net, tmp_path):
    with pytest.raises(
        InputError, match="preprocess is 'vgg'; accepted: pixels, unit, imagenet, clip, or the name of a"
    ):
        encoder(tmp_path, preprocess="vgg")


# ---------------------------------------------------------------- what is wrong with the files


def test_a_layer_that_does_not_exist_names_close_ones(net, tmp_path):
    with pytest.raises(WeightsError, match=r"Net has no layer 'feature'; closest: features"):
        encoder(tmp_path, layer="feature")
    with pytest.raises(WeightsError, match=r"no layer 'zzz'; it has: features, features.0"):
        encoder(tmp_path, layer="zzz")


def test_a_layer_that_never_runs_names_those_that_do(net, tmp_path):
    with pytest.raises(WeightsError, match=r"layer 'unused' never runs in this net's forward pass; .*features"):
        encoder(tmp_path, layer="unused")


def test_a_layer_that_gives_no_tensor_says_what_it_gives(net, tmp_path):
    with pytest.raises(WeightsError, match=r"layer 'pair' gives a tuple of Tensor, NoneType; name a layer"):
        encoder(tmp_path, layer="pair")


def test_a_layer_without_the_batch_axis_is_refused(tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Flatten(0)
        def forward(self, x):
            return self.features(x)
    """
    write(tmp_path, definition)
    with pytest.raises(WeightsError, match=r"for 2 inputs; the first axis is not the batch's"):
        encoder(tmp_path)


def test_a_class_that_needs_arguments_says_which(tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self, channels, *, bias):
            super().__init__()
            self.features = nn.Conv2d(3, channels, 1, bias=bias)
        def forward(self, x):
            return self.features(x)
    class Positional(Net):
        def __init__(self, channels):
            super().__init__(channels, bias=True)
    """
    write(tmp_path, definition, "Net", 5, bias=True)
    with pytest.raises(WeightsError, match=r"Net\(channels, \*, bias\).*missing.*'channels'.*class_args="):
        encoder(tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected keyword argument 'size'"):
        encoder(tmp_path, class_args={"channels": 5, "bias": True, "size": 1})
    with pytest.raises(InputError, match="class_args is 5; a mapping or a list is accepted"):
        encoder(tmp_path, class_args=5)
    named = encoder(tmp_path, class_args={"channels": 5, "bias": True})
    assert named.dim == 5
    assert encoder(tmp_path, "Positional", class_args=[5]).fingerprint != named.fingerprint


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("import os\n\nimport no_such_package_at_all\n", r"line 3: ModuleNotFoundError: .*no_such_package_at_all"),
        ("x = 1\nclass Net(:\n", r"line 2: SyntaxError"),
        ("def f():\n    return 1 / 0\n\n\nf()\n", r"line 2: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", r"line 2: SystemExit: 3"),
        (b"\xff\xfe\x00", r"(SyntaxError|ValueError)"),  # as the version of Python has it,
    ],
)
def test_a_definition_that_fails_says_how_and_where(definition, message, net, tmp_path):
    (tmp_path / "model.py").write_bytes(definition if isinstance(definition, bytes) else definition.encode())
    with pytest.raises(WeightsError, match=rf"model.py: fails when run: {message}"):
        encoder(tmp_path)


EXITS = """
import sys
from torch import nn
class Stop(BaseException):
    pass
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {made}
        self.features = nn.Conv2d(3, 4, 1)
    def forward(self, x):
        {run}
        return self.features(x)
def prepare(pixels):
    {prepared}
    return pixels.transpose(2, 0, 1)
"""
SAFE = {"made": "pass", "run": "pass", "prepared": "pass"}


@pytest.mark.parametrize("leaves", ["sys.exit(0)", "raise Stop('enough')", "raise GeneratorExit"])
@pytest.mark.parametrize(
    ("where", "message"), [("made", "Net cannot be constructed: line 9: "), ("run", "cannot be loaded: line 12: ")]
)
def test_a_net_that_ends_the_process_cannot_be_loaded(where, leaves, message, tmp_path):
    write(tmp_path, EXITS.format(**SAFE))
    (tmp_path / "model.py").write_text(EXITS.format(**{**SAFE, where: leaves}))
    with pytest.raises(WeightsError, match=rf"model.py: {message}(SystemExit: 0|Stop: enough|GeneratorExit)"):
        encoder(tmp_path)


@pytest.mark.parametrize("leaves", ["sys.exit(0)", "raise Stop('enough')"])
@pytest.mark.parametrize("where", ["run", "prepared"])
def test_a_net_that_ends_the_process_at_one_image_fails_for_that_image(where, leaves, tmp_path):
    condition = {"run": "if x.shape[-1] == 7: ", "prepared": "if pixels.shape[1] == 7: "}[where]
    write(tmp_path, EXITS.format(**{**SAFE, where: condition + leaves}))
    one = encoder(tmp_path, preprocess="prepare")
    good, bad = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 7, 3), np.uint8)
    with pytest.raises(InputError, match=r"line 1[25]: (SystemExit: 0|Stop: enough)"):
        one.encode_image([good, bad])
    assert one.encode_image([good]).shape == (1, 4)


def test_ctrl_c_in_a_net_is_ctrl_c(tmp_path):
    write(tmp_path, EXITS.format(**SAFE))
    (tmp_path / "model.py").write_text(EXITS.format(**{**SAFE, "made": "raise KeyboardInterrupt"}))
    with pytest.raises(KeyboardInterrupt):
        encoder(tmp_path)


@pytest.mark.parametrize("overridden", ["eval", "state_dict", "named_modules", "requires_grad_"])
def test_whatever_a_net_overrides_fails_as_its_definition(overridden, net, tmp_path):
    method = f"class Net(Net):\n    def {overridden}(self, *args, **kwargs):\n        raise ValueError('mine')\n"
    (tmp_path / "model.py").write_text(f"{NET}\n\n{method}")
    with pytest.raises(WeightsError, match=r"model.py: cannot be loaded: line \d+: ValueError: mine"):
        encoder(tmp_path)


def test_a_definition_without_the_class_names_those_it_has(net, tmp_path):
    with pytest.raises(WeightsError, match=r"defines no class 'Nets'; closest: Net"):
        encoder(tmp_path, "Nets")
    with pytest.raises(WeightsError, match=r"defines no class 'X'; nets in it: Head, Net, Pair"):
        encoder(tmp_path, "X")


def test_a_class_that_cannot_be_made_says_where(net, tmp_path):
    (tmp_path / "model.py").write_text("class Net:\n    def __init__(self):\n        raise OSError('no disk')\n")
    with pytest.raises(WeightsError, match=r"Net cannot be constructed: line 3: OSError: no disk"):
        encoder(tmp_path)
    (tmp_path / "model.py").write_text("def Net():\n    return 5\n")
    with pytest.raises(WeightsError, match=r"Net gives a int, not a torch.nn.Module"):
        encoder(tmp_path)


def test_modules_beside_the_definition_can_be_imported(tmp_path):
    (tmp_path / "parts_of_it.py").write_text("from torch import nn\nmake = lambda: nn.Conv2d(3, 4, 1)\n")
    (tmp_path / "model.py").write_text(
        "import dataclasses\nfrom torch import nn\nimport parts_of_it\n\n"
        "@dataclasses.dataclass\nclass Size:\n    side: 'int' = 3\n\n"
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.features = parts_of_it.make()\n    def forward(self, x):\n        return self.features(x)\n"
    )
    torch.save({f"features.{n}": v for n, v in torch.nn.Conv2d(3, 4, 1).state_dict().items()}, tmp_path / "state.pth")
    before = list(sys.path)
    assert encoder(tmp_path).dim == 4
    assert sys.path == before
    assert "parts_of_it" not in sys.modules


def test_missing_and_surplus_tensors_are_both_listed(net, tmp_path):
    state = net.state_dict()
    state["head.fc.scale"] = state.pop("head.fc.bias")
    torch.save(state, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match=r"state.pth: 1 missing \(head.fc.bias\); 1 .*\(head.fc.scale\)"):
        encoder(tmp_path)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"epoch": 3, "state_dict": {"a": torch.ones(2)}},
            r"epoch, state_dict in it are not tensors.*\[\"state_dict\"\]",
        ),
        ([torch.ones(2)], r"holds a list; a state_dict is accepted"),
    ],
)
def test_a_file_of_something_else_says_what_is_accepted(saved, message, net, tmp_path):
    torch.save(saved, tmp_path / "state.pth")
    with pytest.raises(WeightsError, match=message):
        encoder(tmp_path)


def test_a_pickled_net_is_refused_and_not_run(tmp_path):
    net = write(tmp_path)
    net.__class__.__module__ = "builtins"
    torch.save(torch.nn.Conv2d(3, 3, 1), tmp_path / "state.pth")
    with pytest.raises(WeightsError, match=r"state.pth: holds a pickled .*refused.*state_dict"):
        encoder(tmp_path)


def test_a_net_that_looks_at_its_input_is_tried_on_real_numbers(tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.last = nn.Conv2d(4, 2, 1)
        def forward(self, x):
            x = self.features(x)
            if x.max() > -1e9:
                x.mul_(-3)
            return self.last(x)
    """
    net = write(tmp_path, definition)
    x = RNG.random((2, 3, 8, 8), np.float32)
    for layer in ("features", "last"):
        one = encoder(tmp_path, layer=layer, input_shape=(3, 8, 8))
        for _ in range(2):
            assert np.allclose(one.embed_image(x), hooked(net, layer, x), atol=1e-6)


def test_parameters_that_the_net_holds_twice_are_loaded_everywhere(tmp_path):
    definition = """
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Conv2d(3, 4, 1)
            self.twin = nn.Conv2d(3, 4, 1)
            self.twin.weight = self.features.weight
            self.rnn = nn.GRU(4, 5, batch_first=True)
            self.weights = [self.features.weight, self.features.bias]
            self.last = nn.Identity()
        def forward(self, x):
            weight, bias = self.weights
            x = self.twin(x) + nn.functional.conv2d(x, weight, bias)
            return self.last(self.rnn(x.flatten(2).transpose(1, 2))[0])
    """
    net = write(tmp_path, definition)
    x = RNG.random((2, 3, 8, 8), np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).mean(1).numpy()
    assert np.allclose(encoder(tmp_path, layer="last", input_shape=(3, 8, 8)).embed_image(x), wanted, atol=1e-6)


def test_files_that_are_not_there_are_named(net, tmp_path):
    with pytest.raises(WeightsError, match=r"custom needs weights=, class_name=: "):
        load("custom", definition=tmp_path / "model.py", device="cpu")
    with pytest.raises(WeightsError, match=r"absent.py: No such file"):
        load(
            "custom", weights=tmp_path / "state.pth", definition=tmp_path / "absent.py", class_name="Net", device="cpu"
        )
    (tmp_path / "state.pth").unlink()
    with pytest.raises(WeightsError, match=r"state.pth: No such file"):
        encoder(tmp_path)
    with pytest.raises(UnknownModel, match="custom/x"):
        load("custom/x", device="cpu")


def test_an_unknown_pooling_lists_those_there_are(net, tmp_path):
    with pytest.raises(InputError, match="pooling is 'sum'; accepted: mean, max, cls, mean-tokens, none"):
        encoder(tmp_path, pooling="sum")


# ---------------------------------------------------------------- formats and fingerprints


def test_every_container_gives_the_same_embeddings_and_the_same_space(net, tmp_path, images):
    reference = encoder(tmp_path)
    rows = reference.embed_image(images)
    state = net.state_dict()
    convert.save(tmp_path / "converted", *custom.original(tmp_path / "state.pth"))
    torch.save(state, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safetensors")
    for name in ("converted", "legacy", "safetensors"):
        (tmp_path / name).replace(tmp_path / "state.pth")
        found = encoder(tmp_path)
        assert np.array_equal(found.embed_image(images), rows), name
        assert found.fingerprint == reference.fingerprint, name


def test_what_decides_embeddings_decides_the_fingerprint(net, tmp_path):
    prints = [
        encoder(tmp_path, **options).fingerprint
        for options in ({}, {"layer": "head"}, {"pooling": "max"}, {"preprocess": "unit"}, {"preprocess": "half"})
    ]
    (tmp_path / "model.py").write_text(NET + "\n# another version\n")
    prints.append(encoder(tmp_path).fingerprint)
    torch.save({name: value + 1 for name, value in net.state_dict().items()}, tmp_path / "state.pth")
    prints.append(encoder(tmp_path).fingerprint)
    assert len(set(prints)) == len(prints)
    assert encoder(tmp_path).fingerprint == prints[-1]
