"""Your own net: the output of one of its layers for an image, pooled.

    load("custom", weights="model_state_dict.pth", definition="model.py", class_name="CustomModel", layer="conv1")

Loading executes the definition file: use only one that you would run yourself. The weights file is never executed.

Source: CustomImageTorchEncoder of https://github.com/jina-ai/executors (Apache-2.0).
Inputs: arrays, only cast to float32: not scaled or transposed, in any shape that the net takes. Images
    (files, bytes, PIL images, uint8 arrays) if `preprocess` says how they become such arrays.
Output: one number for each channel of the layer, or as `pooling` says; not of unit length.
Differs: the net stops after the layer, so what follows cannot fail; `layer` may be dotted; a layer of one channel gives
    embeddings of shape (1,), where the original gives no axis at all; outputs of two or three axes are accepted too.
    How often the layer runs, and whether its output is modified afterwards, is observed once for each input shape: a
    net in which that depends on the values of its input may need `whole=True`.
    Numbers: none known, tests/golden/test_custom_golden.py.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from image_encoders.arrays import as_array, is_tensor
from image_encoders.definition import Definition
from image_encoders.encoder import Encoder
from image_encoders.engines.closeness import probes
from image_encoders.engines.select import PLAIN, Runtime
from image_encoders.errors import ImageEncodersError, InputError, WeightsError
from image_encoders.inputs.preprocessing import BICUBIC, BILINEAR, Preprocessing, ShortSide, channels_first
from image_encoders.inputs.spec import InputSpec
from image_encoders.model import Model, Part, Variant, check_option
from image_encoders.models import unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from image_encoders.nets.custom import Tapped

logger = logging.getLogger(__name__)

VARIANTS = (
    Variant(
        "", ("image",), None, "weights=PATH to a state_dict, definition=PATH to a Python file, class_name=NAME", "yours"
    ),
)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PRESETS = {  # the last two as torchvision's Resize, CenterCrop(224), ToTensor and Normalize
    "pixels": None,
    "unit": Preprocessing(None, "", None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": Preprocessing(ShortSide(256), BILINEAR, (224, 224), *IMAGENET, corner="round"),
    "clip": Preprocessing(ShortSide(224), BICUBIC, (224, 224), *CLIP, corner="round"),
}
TRIED_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512)  # [px] of the zeros from which `dim` is learnt


def load(
    variant: str = "",
    *,
    weights: Path | None,
    definition: str | Path | None = None,
    class_name: str | None = None,
    layer: str = "features",
    pooling: str | None = "mean",
    class_args: Mapping[str, Any] | Sequence[Any] | None = None,
    preprocess: str | None = None,
    input_shape: Sequence[int] | None = None,
    whole: bool = False,
) -> Model:
    """The model of a layer of your net.

    weights: `torch.save(model.state_dict(), PATH)`, old or new container, or a `.safetensors` of the same names
    definition: the Python file that defines the net's class; it is executed
    class_name: the class, or a function that returns the net
    layer: which module of the net, by its dotted name, such as "features", "encoder.block.3"
    pooling: of the layer's output; (B, D) features stay as they are under "mean", "max" and "none"
        "mean"         mean over space of (B, C, H, W), over tokens of (B, L, D)
        "max"          maximum over the same
        "cls"          the first token of (B, L, D)
        "mean-tokens"  mean over the tokens of (B, L, D), nothing else accepted
        "none"         all numbers, flattened in C order; then every input has the same shape
    class_args: arguments of the class: a mapping for keyword arguments, a sequence for positional ones
    preprocess: how an image becomes an input: the name of a function in the definition file, which gets (H, W, 3)
        uint8 RGB and returns the net's input for one image; or one of
        "pixels"    (3, H, W), 0 to 255
        "unit"      (3, H, W), 0 to 1
        "imagenet"  short side to 256 (bilinear), central 224 x 224, ImageNet's mean and deviation
        "clip"      short side to 224 (bicubic), central 224 x 224, CLIP's mean and deviation
        None: images are not accepted, only arrays. Float arrays always go to the net unchanged.
    input_shape: of one input, without batch axis, from which `dim` is determined; needed if it cannot be guessed, and
        for "none" if it is not (3, 224, 224)
    whole: always run the whole net, whatever the layer

    Raises WeightsError for whatever is wrong with the files or the layer; InputError for an option's value.
    """
    from image_encoders.nets.custom import POOLINGS, Tapped, unsaved

    if variant:
        raise unknown(f"custom/{variant}")
    if not weights or not definition or not class_name:
        raise _missing(weights=weights, definition=definition, class_name=class_name)
    pooling = "none" if pooling is None else pooling
    check_option("pooling", pooling, POOLINGS)
    if input_shape is not None and not all(type(size) is int and size > 0 for size in input_shape):
        raise InputError(f"input_shape is {input_shape!r}; such as (3, 224, 224) is accepted", code="option")
    source = _open(Path(definition).expanduser())
    with _blamed(source, "cannot be loaded"):
        module = _run(source)
        inputs = _inputs(preprocess, module, source)
        make = partial(_make, source, module, class_name, class_args)

        def tapped() -> Tapped:
            net = _load_checkpoint(make, weights, input_shape)
            return Tapped(net, _checked_layer(net, str(layer), source, class_name), pooling, whole=whole)

        net = tapped()
        weakref.finalize(net.net, source.forget).atexit = False
        held = unsaved(net.net)
        twin = tapped() if held else None  # made again, so that it shows whether what it holds is random
        trial = _try_shapes(net, input_shape, source)
        _check_steady(net, twin, inputs, trial.shape, source)
        source.seal()
        facts = {
            "definition": source.digests,
            "class": [class_name, repr(class_args)],
            "layer": net.layer,
            "pooling": pooling,
            "unsaved": _digest_of_both(held, unsaved(twin.net)) if twin else None,
        }
        inputs = replace(inputs, shape=trial.shape if pooling == "none" else None)
        return _model("custom", net, trial, inputs, facts, source)


def _missing(**given: object) -> WeightsError:
    missing = ", ".join(f"{name}=" for name, value in given.items() if not value)
    return WeightsError(f"custom needs {missing}: a state_dict file, a Python file, a class in it")


def original(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a state_dict file."""
    return _state(path), {"family": "custom"}


def tiny() -> Model:
    """A small random net."""
    import torch
    from torch import nn

    from image_encoders.nets.custom import Tapped

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU())
        net = nn.Sequential(OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), classifier=nn.Linear(1, 10)))
    tapped = Tapped(net.eval(), "features")
    trial = Trial((3, 224, 224), 24)
    return _model("custom/tiny", tapped, trial, _preset_inputs("imagenet"), {})


# ---------------------------------------------------------------- the definition


def _open(path: Path) -> Definition:
    """The definition file, which can be read."""
    try:
        with path.open("rb"):
            return Definition(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: {error.strerror}; definition= is the Python file that defines the class"
        ) from error


@contextmanager
def _blamed(definition: Definition, what: str) -> Iterator[None]:
    """Whatever the definition's code raises in the block, an exit of the process too, as a WeightsError."""
    try:
        yield
    except BaseException as error:
        definition.forget()
        if isinstance(error, (ImageEncodersError, KeyboardInterrupt)):
            raise
        raise WeightsError(f"{definition.path}: {what}: {definition.located(error)}") from error


def _run(definition: Definition) -> ModuleType:
    """The definition file as a module."""
    with _blamed(definition, "fails when run"):
        return definition.run()


def _make(
    definition: Definition,
    module: ModuleType,
    class_name: str,
    class_args: Mapping[str, Any] | Sequence[Any] | None,
) -> nn.Module:
    """The net that the class, called with `class_args`, makes."""
    from torch import nn

    make = getattr(module, class_name, None)
    if not callable(make):
        raise _no_class(definition, module, class_name)
    if class_args is not None and not isinstance(class_args, (Mapping, list, tuple)):
        raise InputError(f"class_args is {class_args!r}; a mapping or a list is accepted", code="option")
    keywords = dict(class_args) if isinstance(class_args, Mapping) else {}
    positions = tuple(class_args) if isinstance(class_args, (list, tuple)) else ()
    try:
        signature = inspect.signature(make)
        signature.bind(*positions, **keywords)
    except ValueError:  # no signature: made by C code
        pass
    except TypeError as error:
        raise WeightsError(
            f"{definition.path}: {class_name}{signature} is called with other arguments: {error}; "
            'give them as class_args={"name": value}'
        ) from error
    with _blamed(definition, f"{class_name} cannot be constructed"):
        net = make(*positions, **keywords)
    if not isinstance(net, nn.Module):
        raise WeightsError(f"{definition.path}: {class_name} gives a {type(net).__name__}, not a torch.nn.Module")
    return net


def _no_class(definition: Definition, module: ModuleType, class_name: str) -> WeightsError:
    from torch import nn

    from image_encoders.nets.custom import closest

    nets = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    ]
    return WeightsError(
        f"{definition.path}: defines no class {class_name!r}; {closest(class_name, nets, 'nets in it')}"
    )


# ---------------------------------------------------------------- the net


def _load_checkpoint(make: Callable[[], nn.Module], path: Path, input_shape: Sequence[int] | None) -> nn.Module:
    """A net with a checkpoint's tensors; its initial ones are freed before those are read."""
    import torch

    from image_encoders.weights.assign import assign

    net = make()
    if _is_lazy(net):
        net = _materialized(make, path, input_shape)
    initial = []
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            initial.append((module, name, weakref.ref(parameter)))
            setattr(module, name, torch.nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
            del parameter
    assign(net, _state(path), path)
    for module, name, initially in initial:
        held = initially()
        if held is not None:  # by a list or tuple of the net's own, say: then it stays the parameter, with new values
            held.requires_grad_(False).copy_(getattr(module, name))
            setattr(module, name, held)
    return net


def _is_lazy(net: nn.Module) -> bool:
    from torch.nn.parameter import is_lazy

    return any(is_lazy(tensor) for tensor in (*net.parameters(), *net.buffers()))


def _materialized(make: Callable[[], nn.Module], path: Path, input_shape: Sequence[int] | None) -> nn.Module:
    """A net with lazy layers after a pass over zeros of a shape for which they become the checkpoint's."""
    import torch

    wanted = {name: tuple(value.shape) for name, value in _state(path).items()}
    shapes = list(_likely_shapes(make())) if input_shape is None else [tuple(input_shape)]
    for shape in shapes:
        made = make().eval()
        with suppress(Exception), torch.no_grad():  # after the last lazy layer it may fail for other reasons
            made(torch.zeros(2, *shape))
        if not _is_lazy(made) and {name: tuple(value.shape) for name, value in made.state_dict().items()} == wanted:
            return made
    raise WeightsError(
        f"{path}: the net's lazy layers do not match the checkpoint for inputs of shape {_some(shapes)}. "
        "Give the shape of one input as input_shape=, such as (3, 224, 224)"
    )


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict file."""
    import torch

    from image_encoders.weights import safetensors_file, torch_file

    if safetensors_file.is_safetensors(path):
        return safetensors_file.read(path)[0]
    found = torch_file.read(path)
    wanted = "a state_dict is accepted: torch.save(model.state_dict(), FILE)"
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path}: holds a {type(found).__name__}; {wanted}")
    others = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        inside = next((name for name in found if isinstance(found[name], Mapping) and found[name]), None)
        hint = "" if inside is None else f'; perhaps torch.save(torch.load({path.name!r})["{inside}"], FILE)'
        raise WeightsError(f"{path}: {', '.join(others[:5])} in it are not tensors; {wanted}{hint}")
    return dict(found)


def _checked_layer(net: nn.Module, layer: str, definition: Definition, class_name: str) -> str:
    """`layer`, when the net has it."""
    from image_encoders.nets.custom import closest

    try:
        net.get_submodule(layer)
    except AttributeError as error:
        layers = [name for name, _ in net.named_modules() if name]
        raise WeightsError(
            f"{definition.path}: {class_name} has no layer {layer!r}; {closest(layer, layers, 'it has')}"
        ) from error
    return layer


# ---------------------------------------------------------------- probes


class Trial(NamedTuple):
    """The shape of an input that a net takes, and the length of the embedding that it gives for it."""

    shape: tuple[int, ...]
    dim: int


def _try_shapes(net: Tapped, input_shape: Sequence[int] | None, definition: Definition) -> Trial:
    """A shape that the net takes, the likeliest first, or the one that is given."""
    shapes = list(_likely_shapes(net.net)) if input_shape is None else [tuple(input_shape)]
    failure: Exception | None = None
    for shape in shapes:
        try:
            return Trial(shape, net.dim(shape))
        except WeightsError as error:
            raise WeightsError(f"{definition.path}: {error}") from error
        except Exception as error:  # the net is not ours, and takes what it takes
            failure = failure or error
    assert failure is not None
    raise WeightsError(
        f"{definition.path}: the net fails on zeros of shape {_some(shapes)}, which were tried to find the size of an "
        f"embedding: {definition.located(failure)}. Give the shape of one input as input_shape=, such as (3, 224, 224)"
    ) from failure


def _some(shapes: Sequence[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else f"{shapes[0]} and {len(shapes) - 1} other shapes"


def _likely_shapes(net: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of an input, judged by the first layer that has weights."""
    from torch import nn

    first = next((one for one in net.modules() if isinstance(one, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        for channels in (3, 1):
            side = round((first.in_features / channels) ** 0.5)
            if channels * side * side == first.in_features:
                yield channels, side, side
        yield (first.in_features,)
    channels = (first.in_channels if isinstance(first, nn.Conv2d) else 0) or 3  # 0: lazy
    for side in TRIED_SIDES:
        yield channels, side, side


def _check_steady(
    net: Tapped, twin: Tapped | None, inputs: InputSpec, shape: tuple[int, ...], definition: Definition
) -> None:
    """Raise WeightsError if the embedding of an image depends on more than the image.

    twin: made and loaded as `net` was; None where a net holds nothing but its checkpoint
    shape: of an input that the net takes
    """
    import torch

    from image_encoders.nets.custom import why_unsteady

    failure: BaseException | None = None
    for pair in _probe_pairs(inputs, shape, definition):
        try:
            reason = why_unsteady(net, torch.from_numpy(pair), twin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the net is not ours, and takes what it takes
            failure = failure or error
            continue
        if reason:
            raise WeightsError(
                f"{definition.path}: the embedding of an image {reason}; it must depend on the image alone"
            )
        return
    assert failure is not None
    logger.warning(
        "%s: it could not be checked that an image always has the same embedding: the net fails on images, noise "
        "and zeros of shape %s: %s",
        definition.path,
        shape,
        definition.located(failure),
    )


def _probe_pairs(inputs: InputSpec, shape: tuple[int, ...], definition: Definition) -> Iterator[np.ndarray]:
    """Two inputs (2, ...) of the shape that the net takes: images where they become such, noise, zeros."""
    with suppress(InputError):
        images = probes(2)
        first, second, repeated = (inputs.input(image) for image in (*images, images[1]))
        if second.shape != repeated.shape or not np.allclose(second, repeated, equal_nan=True):
            raise WeightsError(f"{definition.path}: preprocess= gives a different input for the same image each time")
        for one in (first, second):
            replace(inputs, shape=shape).check(one)
        yield np.stack([first, second])
    yield np.random.default_rng(0).random((2, *shape), np.float32)
    yield np.zeros((2, *shape), np.float32)


def _digest_of_both(tensors: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> str:
    """The digest of the tensors that are the same in two nets."""
    import torch

    from image_encoders.weights.digest import weights_digest

    return weights_digest(
        {
            name: value
            for name, value in tensors.items()
            if name in others
            and value.shape == others[name].shape
            and torch.equal(value.nan_to_num(), others[name].nan_to_num())
        }
    )


# ---------------------------------------------------------------- inputs


def _inputs(preprocess: str | None, module: ModuleType, definition: Definition) -> InputSpec:
    """Sources to inputs: arrays as they come, and images as `preprocess` says."""
    if preprocess is None:
        facts = {"preprocess": None}
        return InputSpec("image", _read_array, np.ascontiguousarray, facts=facts, summary="arrays as they come")
    own = getattr(module, preprocess, None)
    if callable(own):
        prepare = partial(_prepared, to_input=partial(_own, function=own, definition=definition))
        summary = f"by {preprocess} of {definition.path.name}"
        return InputSpec("image", _read_image, prepare, facts={"preprocess": preprocess}, summary=summary)
    if preprocess not in PRESETS:
        raise InputError(
            f"preprocess is {preprocess!r}; accepted: {', '.join(PRESETS)}, or the name of a function in "
            f"{definition.path}",
            code="option",
        )
    return _preset_inputs(preprocess)


def _preset_inputs(name: str) -> InputSpec:
    steps = PRESETS[name]
    prepare = partial(_prepared, to_input=partial(_preset, steps=steps))
    facts = {"preprocess": name, "steps": None if steps is None else steps.facts()}
    return InputSpec("image", _read_image, prepare, facts=facts, summary="RGB" if steps is None else str(steps))


def _read_array(source: Any) -> np.ndarray:
    """An array or tensor of numbers, as float32."""
    array = as_array(source) if is_tensor(source) else source
    if not isinstance(array, np.ndarray):
        raise InputError(
            f"a {type(source).__name__}; without preprocess= this model takes arrays that its net takes. "
            f"For images load it with preprocess=, one of {', '.join(PRESETS)} or a function in the definition file",
            code="type",
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"an array of {array.dtype}; numbers are accepted", code="dtype")
    return array.astype(np.float32, copy=False)


def _read_image(source: Any) -> np.ndarray:
    """An image's pixels; an array or tensor of floats as float32."""
    source = as_array(source) if is_tensor(source) else source
    if isinstance(source, np.ndarray) and source.dtype.kind == "f":
        return source.astype(np.float32, copy=False)
    from image_encoders.inputs.image import read_image

    return read_image(source)


def _prepared(item: np.ndarray, to_input: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The net's input, float32: from pixels by `to_input`, from floats as they are."""
    return np.ascontiguousarray(item if item.dtype == np.float32 else to_input(item), np.float32)


def _preset(pixels: np.ndarray, steps: Preprocessing | None) -> np.ndarray:
    if steps is None:
        return channels_first(pixels)
    return steps.normalised(steps.prepare(pixels).astype(np.float32) / np.float32(255))


def _own(pixels: np.ndarray, function: Callable[[np.ndarray], Any], definition: Definition) -> np.ndarray:
    """What a function of the definition makes of an image."""
    try:
        result = function(pixels.copy())  # which it may write to
        return np.asarray(as_array(result), np.float32)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the function is not ours
        raise InputError(f"{function.__name__} fails: {definition.located(error)}", code="preprocess") from error


# ---------------------------------------------------------------- the model


@dataclass(frozen=True)
class YourModel(Model):
    """A model whose net is the user's: its errors give the place in the definition."""

    definition: Definition | None = None

    def assemble(self, runtime: Runtime = PLAIN) -> Encoder:
        with nullcontext() if self.definition is None else _blamed(self.definition, "cannot be loaded"):
            encoder = super().assemble(runtime)
        (tower,) = encoder.towers.values()
        located = repr if self.definition is None else self.definition.located
        embed = partial(_embed, embedder=tower.embed, dim=self.dim, located=located)
        encoder.towers = {"image": replace(tower, embed=embed)}
        return encoder


def _model(
    name: str,
    net: Tapped,
    trial: Trial,
    inputs: InputSpec,
    facts: Mapping[str, Any],
    definition: Definition | None = None,
) -> Model:
    """trial: engines try the net with inputs of that shape too"""
    from image_encoders.weights.digest import weights_digest

    facts = {"family": "custom", **facts, "weights": weights_digest(net.net.state_dict())}
    examples = _of_shape(inputs, trial.shape)
    part = Part(inputs, lambda: net, {"whole": net.whole}, traceable=False, examples=examples)
    return YourModel(name, trial.dim, facts, [part], definition=definition)


def _of_shape(inputs: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    """Those inputs that have a shape; InputError for others."""
    fitting = replace(inputs, shape=shape)

    def prepare(item: Any) -> np.ndarray:
        prepared = inputs.prepare(item)
        fitting.check(prepared)
        return prepared

    return replace(fitting, prepare=prepare)


def _embed(
    inputs: np.ndarray,
    embedder: Callable[[np.ndarray], np.ndarray],
    dim: int,
    located: Callable[[BaseException], str],
) -> np.ndarray:
    """Embeddings (B, dim) of inputs (B, ...); InputError where the net fails for them."""
    try:
        embeddings = embedder(inputs)
    except (ImageEncodersError, KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the net is not ours, and takes what it takes, or ends the process
        if isinstance(error, RuntimeError) and "memory" in str(error):  # torch's own error for too little of it
            raise
        raise InputError(
            f"the net fails for inputs of shape {inputs.shape[1:]}: {located(error)}", code="net"
        ) from error
    if embeddings.shape[1] != dim:
        raise InputError(
            f"inputs of shape {inputs.shape[1:]} give embeddings of {embeddings.shape[1]} numbers; others give {dim}",
            code="shape",
        )
    return embeddings
