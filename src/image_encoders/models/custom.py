"""Your own net: what one of its layers gives for a picture, pooled.

    load("custom", weights="model_state_dict.pth", definition="model.py", class_name="CustomModel", layer="conv1")

Loading runs the definition file, which is meant to: give only one that you would run yourself. The weights file is
read without running anything in it.

Source: CustomImageTorchEncoder of https://github.com/jina-ai/executors (Apache-2.0).
Inputs: arrays as they come, cast to float32: neither scaled nor turned, in whatever shape the net takes. Pictures
    (files, bytes, PIL images, uint8 arrays) where `preprocess` says how they become such arrays.
Output: one number for each channel of the layer, or as `pooling` says; not of unit length.
Differs: the net stops after the layer, so what follows cannot fail; `layer` may be dotted; a layer of one channel gives
    rows of shape (1,), where the original gives no axis at all; outputs of two and three axes are accepted as well.
    How often the layer runs, and what is written into its output afterwards, is observed once for each shape of an
    input: a net in which that depends on the values of its input may need `whole=True`.
    Numbers: none known, tests/golden/test_custom_golden.py.
"""

from __future__ import annotations

import inspect
import logging
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.arrays import as_array, is_tensor
from image_encoders.definition import Definition
from image_encoders.encoder import Encoder, InputSpec, Tower, fingerprint
from image_encoders.engines import PLAIN, Net, Runtime, described, identity, net_key, select_embedder
from image_encoders.engines.precision import probes
from image_encoders.errors import ImageEncodersError, InputError, WeightsError
from image_encoders.models import Variant, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from image_encoders.nets.custom import Tapped

logger = logging.getLogger(__name__)

VARIANTS = (
    Variant(
        "", ("image",), None, "weights=PATH to a state_dict, definition=PATH to a python file, class_name=NAME", "yours"
    ),
)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TRIED_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512)  # [px] of the zeros from which `dim` is learnt


def load(
    variant: str = "",
    *,
    weights: Path | None,
    runtime: Runtime,
    definition: str | Path | None = None,
    class_name: str | None = None,
    layer: str = "features",
    pooling: str | None = "mean",
    class_args: Mapping[str, Any] | Sequence[Any] | None = None,
    preprocess: str | None = None,
    input_shape: Sequence[int] | None = None,
    whole: bool = False,
) -> Encoder:
    """The encoder of a layer of your net.

    weights: `torch.save(model.state_dict(), PATH)`, old or new container, or a `.safetensors` of the same names
    definition: the python file in which the net's class is defined; it is run
    class_name: the class, or a function that makes the net
    layer: which module of the net, by its dotted name, such as "features", "encoder.block.3"
    pooling: what becomes of the layer's output; (B, D) features stay as they are under "mean", "max" and "none"
        "mean"         mean over space of (B, C, H, W), over tokens of (B, L, D)
        "max"          maximum over the same
        "cls"          the first token of (B, L, D)
        "mean-tokens"  mean over the tokens of (B, L, D), nothing else accepted
        "none"         all numbers, flattened in C order; then every input has the same shape
    class_args: what the class is called with: a mapping for keywords, a sequence for positions
    preprocess: how a picture becomes an input: the name of a function in the definition file, which gets (H, W, 3)
        uint8 RGB and returns the net's input for one picture; or one of
        "pixels"    (3, H, W), 0 to 255
        "unit"      (3, H, W), 0 to 1
        "imagenet"  short side to 256 (bilinear), central 224 x 224, ImageNet's mean and deviation
        "clip"      short side to 224 (bicubic), central 224 x 224, CLIP's mean and deviation
        None: pictures are not accepted, arrays are, as they come. Float arrays are taken as they come in any case.
    input_shape: of one input, without batch axis, from which the length of a row is learnt; needed where it cannot be
        guessed, and for "none" where it is not (3, 224, 224)
    whole: run the net to its end every time, whatever the layer

    Raises WeightsError for whatever is wrong with the files or the layer; InputError for an option's value.
    """
    from image_encoders.nets.custom import POOLINGS, Tapped, unsaved

    if variant:
        raise unknown(f"custom/{variant}")
    given = {"weights": weights, "definition": definition, "class_name": class_name}
    lacking = [f"{name}=" for name, value in given.items() if not value]
    if lacking:
        raise WeightsError(f"custom needs {', '.join(lacking)}: a state_dict file, a python file, a class in it")
    assert weights is not None
    assert definition is not None
    assert class_name is not None
    pooling = "none" if pooling is None else pooling
    if pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; accepted: {', '.join(POOLINGS)}", code="option")
    defined = _defined(Path(definition).expanduser())
    with _blamed(defined, "cannot be loaded"):
        module = _run(defined)
        to_input = _preparation(preprocess, module, defined)

        def made() -> nn.Module:
            return _loaded(lambda: _made(module, class_name, class_args, defined), weights, input_shape)

        net = made()
        weakref.finalize(net, defined.forget).atexit = False
        layer = _layer(net, str(layer), f"{defined.path}: {class_name}")
        tapped = Tapped(net, layer, pooling, whole=whole)
        kept = unsaved(net)
        twin = Tapped(made(), layer, pooling, whole=whole) if kept else None
        facts = {"unsaved": _digest_of_both(kept, unsaved(twin.net))} if twin else {}
        shape, dim = _tried(tapped, input_shape, defined)
        _probe(tapped, twin, shape, to_input, defined)
        defined.seal()
        return _encoder(
            "custom",
            tapped,
            dim,
            runtime,
            defined.located,
            to_input,
            shape=shape if pooling == "none" else None,
            example=shape,
            facts={
                "definition": defined.digests,
                "class": [class_name, repr(class_args)],
                "layer": layer,
                "pooling": pooling,
                "preprocess": preprocess,
                **facts,
            },
        )


@contextmanager
def _blamed(defined: Definition, what: str) -> Iterator[None]:
    """Whatever somebody's code raises in the block, an exit of the process too, as a WeightsError."""
    try:
        yield
    except (ImageEncodersError, KeyboardInterrupt):
        defined.forget()
        raise
    except BaseException as error:
        defined.forget()
        raise WeightsError(f"{defined.path}: {what}: {defined.located(error)}") from error


def original(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a state_dict file."""
    return _state(path), {"family": "custom"}


def tiny(runtime: Runtime = PLAIN) -> Encoder:
    """A small random net."""
    import torch
    from torch import nn

    from image_encoders.nets.custom import Tapped

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = nn.Sequential(nn.Conv2d(3, 16, 7, stride=4), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU())
        net = nn.Sequential(OrderedDict(features=features, pool=nn.AdaptiveAvgPool2d(1), classifier=nn.Linear(1, 10)))
    facts = {"definition": "tiny", "class": ["tiny", ""], "layer": "features", "pooling": "mean"}
    tapped = Tapped(net.eval(), "features")
    return _encoder(
        "custom/tiny",
        tapped,
        24,
        runtime,
        repr,
        PRESETS["imagenet"],
        shape=None,
        example=(3, 224, 224),
        facts=facts,
    )


def _encoder(
    name: str,
    tapped: Tapped,
    dim: int,
    runtime: Runtime,
    located: Callable[[BaseException], str],
    to_input: Callable[[np.ndarray], Any] | None,
    *,
    shape: tuple[int, ...] | None,
    example: tuple[int, ...],
    facts: dict[str, Any],
) -> Encoder:
    """example: the shape of an input that the net takes"""
    from image_encoders.weights.digest import weights_digest

    digest = weights_digest(tapped.net.state_dict())
    read, prepare = partial(_read, arrays=to_input is None), partial(_prepare, to_input=to_input)
    key = net_key(family="custom", weights=digest, whole=tapped.whole, **facts)
    embedder = select_embedder(
        runtime,
        Net(
            name, key, lambda: tapped, lambda source: _fitting(prepare(read(source)), example), example, traceable=False
        ),
    )

    def embed(inputs: np.ndarray) -> np.ndarray:
        try:
            rows = embedder(inputs)
        except (ImageEncodersError, KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:  # the net is not ours, and takes what it takes, or ends the process
            # torch's own error for too little memory is a RuntimeError like any other
            if isinstance(error, RuntimeError) and "memory" in str(error):
                raise
            raise InputError(
                f"the net fails for inputs of shape {inputs.shape[1:]}: {located(error)}", code="net"
            ) from error
        if rows.shape[1] != dim:
            raise InputError(
                f"inputs of shape {inputs.shape[1:]} give rows of {rows.shape[1]} numbers; others give {dim}",
                code="shape",
            )
        return rows

    return Encoder(
        name=name,
        dim=dim,
        towers={"image": Tower(InputSpec("image", read, prepare, shape), embed)},
        fingerprint=fingerprint(family="custom", weights=digest, **identity(embedder), **facts),
        **described(embedder),
    )


def _fitting(prepared: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A probe of the shape that the net was tried with; InputError where pictures become another one."""
    if prepared.shape != shape:
        raise InputError(f"a prepared picture of {prepared.shape}; the net was tried with {shape}", code="shape")
    return prepared


# ---------------------------------------------------------------- pictures


def _read(source: Any, arrays: bool) -> np.ndarray:
    """An array or tensor of floats as it is; so is any other where `arrays`; else a picture's pixels."""
    if is_tensor(source):
        source = as_array(source)
    if isinstance(source, np.ndarray) and (arrays or source.dtype.kind == "f"):
        if source.dtype.kind not in "biuf":
            raise InputError(f"an array of {source.dtype}; numbers are accepted", code="dtype")
        return source.astype(np.float32, copy=False)
    if arrays:
        raise InputError(
            f"a {type(source).__name__}; without preprocess= this model takes arrays that its net takes. "
            f"For pictures load it with preprocess=, one of {', '.join(PRESETS)} or a function in the definition file",
            code="type",
        )
    from image_encoders.inputs.image import read_image

    return read_image(source)


def _prepare(item: np.ndarray, to_input: Callable[[np.ndarray], Any] | None) -> np.ndarray:
    """The net's input, float32: from pixels by `to_input`, from floats as they are."""
    if to_input is None or item.dtype == np.float32:
        return np.ascontiguousarray(item)
    return np.ascontiguousarray(to_input(item), np.float32)


def _own(pixels: np.ndarray, function: Callable[[np.ndarray], Any], defined: Definition) -> np.ndarray:
    """What a function of the definition file makes of a picture."""
    try:
        result = function(pixels.copy())  # which it may write to
        return np.asarray(as_array(result), np.float32)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the function is not ours
        raise InputError(f"{function.__name__} fails: {defined.located(error)}", code="preprocess") from error


def _scaled(pixels: np.ndarray, scale: float) -> np.ndarray:
    from image_encoders.inputs.preprocessing import channels_first

    return channels_first(pixels).astype(np.float32) / np.float32(scale)


def _cropped(
    pixels: np.ndarray, target: int, filter: str, colours: tuple[Sequence[float], Sequence[float]]
) -> np.ndarray:
    """As torchvision's Resize(target), CenterCrop(224), ToTensor and Normalize(mean, std) make it."""
    from image_encoders.inputs.preprocessing import Preprocessing, ShortSide

    mean, std = map(tuple, colours)
    steps = Preprocessing(ShortSide(target), filter, (224, 224), mean, std, corner="round")
    return steps.normalised(steps.prepare(pixels).astype(np.float32) / np.float32(255))


PRESETS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pixels": partial(_scaled, scale=1),
    "unit": partial(_scaled, scale=255),
    "imagenet": partial(_cropped, target=256, filter="bilinear", colours=IMAGENET),
    "clip": partial(_cropped, target=224, filter="bicubic", colours=CLIP),
}


def _preparation(name: str | None, module: types.ModuleType, defined: Definition) -> Callable[[np.ndarray], Any] | None:
    if name is None:
        return None
    own = getattr(module, name, None)
    if callable(own):
        return partial(_own, function=own, defined=defined)
    if name not in PRESETS:
        raise InputError(
            f"preprocess is {name!r}; accepted: {', '.join(PRESETS)}, or the name of a function in {defined.path}",
            code="option",
        )
    return PRESETS[name]


# ---------------------------------------------------------------- the definition file


def _defined(path: Path) -> Definition:
    """The definition file, which can be read."""
    try:
        with path.open("rb"):
            return Definition(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: {error.strerror}; definition= is the python file that defines the class"
        ) from error


def _run(defined: Definition) -> types.ModuleType:
    """The definition file as a module."""
    with _blamed(defined, "fails when run"):
        return defined.run()


def _made(
    module: types.ModuleType,
    class_name: str,
    class_args: Mapping[str, Any] | Sequence[Any] | None,
    defined: Definition,
) -> nn.Module:
    """The net that the class, called with `class_args`, makes."""
    from torch import nn

    from image_encoders.nets.custom import closest

    path = defined.path
    make = getattr(module, class_name, None)
    if not callable(make):
        classes = [
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
        ]
        raise WeightsError(f"{path}: defines no class {class_name!r}; {closest(class_name, classes, 'nets in it')}")
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
            f"{path}: {class_name}{signature} is called with other arguments: {error}; "
            'give them as class_args={"name": value}'
        ) from error
    with _blamed(defined, f"{class_name} cannot be made"):
        net = make(*positions, **keywords)
    if not isinstance(net, nn.Module):
        raise WeightsError(f"{path}: {class_name} makes a {type(net).__name__}; a torch.nn.Module is needed")
    return net


def _layer(net: nn.Module, layer: str, whose: str) -> str:
    """`layer`, when the net has it."""
    from image_encoders.nets.custom import closest

    try:
        net.get_submodule(layer)
    except AttributeError as error:
        layers = [name for name, _ in net.named_modules() if name]
        raise WeightsError(f"{whose} has no layer {layer!r}; {closest(layer, layers, 'it has')}") from error
    return layer


# ---------------------------------------------------------------- weights


def _loaded(make: Callable[[], nn.Module], path: Path, input_shape: Sequence[int] | None) -> nn.Module:
    """A net with a checkpoint's tensors; its own initial ones are given up before those are read."""
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
    tried = str(shapes[0]) if len(shapes) == 1 else f"{shapes[0]} and {len(shapes) - 1} other shapes"
    raise WeightsError(
        f"{path}: the net has lazy layers, which do not become the checkpoint's for inputs of shape {tried}. "
        "Give the shape of one input as input_shape=, such as (3, 224, 224)"
    )


def _state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict file."""
    import torch

    from image_encoders.weights import safetensors_file, torch_file

    if _is_safetensors(path):
        return safetensors_file.read(path)[0]
    found = torch_file.read(path)
    wanted = "a state_dict is accepted: torch.save(model.state_dict(), FILE)"
    if not isinstance(found, Mapping):
        raise WeightsError(f"{path}: holds a {type(found).__name__}; {wanted}")
    others = [str(name) for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        inside = next((name for name in found if isinstance(found[name], Mapping) and found[name]), None)
        hint = "" if inside is None else f'; perhaps torch.save(torch.load({path.name!r})["{inside}"], FILE)'
        raise WeightsError(f"{path}: {', '.join(others[:5])} in it are no tensors; {wanted}{hint}")
    return dict(found)


def _is_safetensors(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


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


# ---------------------------------------------------------------- the length of a row


def _tried(tapped: Tapped, input_shape: Sequence[int] | None, defined: Definition) -> tuple[tuple[int, ...], int]:
    """A shape that the net takes, and the length of the row that it gives for it."""
    if input_shape is not None and not all(type(size) is int and size > 0 for size in input_shape):
        raise InputError(f"input_shape is {input_shape!r}; such as (3, 224, 224) is accepted", code="option")
    shapes = list(_likely_shapes(tapped.net)) if input_shape is None else [tuple(input_shape)]
    failure: Exception | None = None
    for shape in shapes:
        try:
            return shape, tapped.dim(shape)
        except WeightsError as error:
            raise WeightsError(f"{defined.path}: {error}") from error
        except Exception as error:  # the net is not ours, and takes what it takes
            failure = failure or error
    assert failure is not None
    tried = str(shapes[0]) if len(shapes) == 1 else f"{shapes[0]} and {len(shapes) - 1} other shapes"
    raise WeightsError(
        f"{defined.path}: the net fails on zeros of shape {tried}, tried to learn the length of a row: "
        f"{defined.located(failure)}. Give the shape of one input as input_shape=, such as (3, 224, 224)"
    ) from failure


def _probe(
    tapped: Tapped,
    twin: Tapped | None,
    shape: tuple[int, ...],
    to_input: Callable[[np.ndarray], Any] | None,
    defined: Definition,
) -> None:
    """WeightsError where the embedding of an image depends on more than the image."""
    import torch

    from image_encoders.nets.custom import why_unsteady

    failure: Exception | None = None
    for images in _probes(shape, to_input, defined):
        try:
            reason = why_unsteady(tapped, torch.from_numpy(images), twin)
        except Exception as error:  # the net is not ours, and takes what it takes
            failure = failure or error
            continue
        if reason:
            raise WeightsError(f"{defined.path}: the embedding of an image {reason}; it has to be the image's alone")
        return
    assert failure is not None
    logger.warning(
        "%s: whether an image has always the same embedding is not known: the net fails on drawn images, on noise and "
        "on zeros of shape %s: %s",
        defined.path,
        shape,
        defined.located(failure),
    )


def _probes(
    shape: tuple[int, ...], to_input: Callable[[np.ndarray], Any] | None, defined: Definition
) -> Iterator[np.ndarray]:
    """Pairs of inputs of that shape: of drawn images, where those become such, of noise, of nothing."""
    if to_input is not None:
        with suppress(InputError):
            prepared = [np.asarray(to_input(pixels), np.float32) for pixels in probes(2)]
            repeated = np.asarray(to_input(probes(2)[1]), np.float32)
            if repeated.shape != prepared[1].shape or not np.allclose(repeated, prepared[1], equal_nan=True):
                raise WeightsError(f"{defined.path}: preprocess= gives another input for the same image each time")
            if prepared[0].shape == prepared[1].shape == shape:
                yield np.stack(prepared)
    yield np.random.default_rng(0).random((2, *shape), np.float32)
    yield np.zeros((2, *shape), np.float32)


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
