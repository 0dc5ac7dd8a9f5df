"""One layer of any net as an encoder: what the layer gives, pooled; the net runs no further than that needs."""

from __future__ import annotations

import copy
import difflib
import logging
import math
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_encoders.errors import WeightsError

logger = logging.getLogger(__name__)

POOLINGS = ("mean", "max", "cls", "mean-tokens", "none")
# How far embeddings of one image may be apart, in units of their length:
REPEATED = 1e-6  # in two passes over the same input; float32 kernels repeat themselves to the bit, or nearly
BATCHED = 1e-4  # alone and beside another image; twenty ordinary nets: 2e-7 at most
NUDGE = 1e-6  # of an input: about ten times what float32 rounds off


class _Stop(BaseException):
    """Ends a forward pass. Not an Exception, so that no handler in somebody's net stops it."""


class _Run:
    """One forward pass of one thread.

    stop: the step to stop at; None for a whole pass
    watched: whether to find out which step that is
    """

    def __init__(self, stop: int | None = None, watched: bool = False):
        self.stop = stop
        self.watched = watched
        self.steps = 0
        self.calls = 0  # of the layer
        self.map: Any = None  # what its latest call gave
        self.settled = 0  # the first step at which the map had its final content
        self.content: object = None
        self.first: Tensor | None = None  # a copy of the map's first item
        self.ran: list[nn.Module] = []

    def changed(self) -> bool:
        """Whether the map is another one, or was written to, since this was last asked."""
        version, same = None, True
        if isinstance(self.map, Tensor) and not self.map.is_meta:
            # Tensors made in inference mode do not count what is written to them: they never look settled.
            version = object() if self.map.is_inference() else self.map._version
            # Nor is counted what goes through `.data` or a numpy view: that shows in the numbers of the first item.
            first = self.map[:1] if self.map.ndim else self.map
            same = self.first is not None and _equal(first, self.first)
            if not same:
                self.first = first.clone()
        before, self.content = self.content, (self.calls, version)
        return self.content != before or not same


class Tapped(nn.Module):
    """A batch (B, ...) -> embeddings (B, dim): what `layer` of `net` gives for it, pooled.

    As with a hook that keeps a reference, a layer that runs several times counts with its last call, and what is
    written into its output in place afterwards shows. Both can only be known by running the rest of the net, so that
    happens once for each shape of an input; later passes stop where the output had its final content. A pass is
    counted in steps: the beginnings and ends of modules' calls.

    layer: dotted name of a module in `net`
    pooling: one of POOLINGS, see `pool`
    whole: never stop early

    Raises WeightsError when the layer never runs, or gives something that cannot be pooled so.
    """

    def __init__(self, net: nn.Module, layer: str, pooling: str = "mean", whole: bool = False):
        super().__init__()
        self.net = net
        self.layer = layer
        self.pooling = pooling
        self.whole = whole
        self._stops: dict[tuple[int, ...], int | None] = {}
        self._local = threading.local()
        net.get_submodule(layer).register_forward_hook(self._capture)
        for module in net.modules():
            module.register_forward_pre_hook(self._begins)
            module.register_forward_hook(self._ends)

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        if shape in self._stops:
            run = _Run(self._stops[shape])
            self._pass(run, x)
        else:
            run = self._watch(x)
        if not run.calls:
            raise WeightsError(f"layer {self.layer!r} did not run for inputs of shape {shape}, though it did before")
        return self._pooled(run.map, len(x))

    def dim(self, shape: tuple[int, ...]) -> int:
        """The length of the embedding of an input of that shape; computes nothing where the net allows it.

        Raises WeightsError, and whatever the net itself raises for such an input.
        """
        # A copy is run, as nets may keep something of their first pass, which then would be of this one; and itself
        # where that fails, as it does for nets whose functions hold on to the net that they were made for.
        # Meta tensors have shapes and no content; a net that looks at content fails on them and is run on zeros.
        meta = {name: _moved(value) for name, value in (*self.named_parameters(), *self.named_buffers())}
        nothing, zeros = torch.zeros(2, *shape, device="meta"), torch.zeros(2, *shape)
        for embeddings in (
            lambda: self.copied(meta=True)(nothing),
            lambda: self.copied()(zeros),
            lambda: torch.func.functional_call(self, meta, nothing),
        ):
            try:
                found = embeddings().shape[1]
            except Exception:
                continue
            self._stops.clear()  # what follows the layer may have failed for want of content only
            return found
        return self(zeros).shape[1]

    def copied(self, meta: bool = False) -> Tapped:
        """Another one, with the same parameters and with buffers of its own; or with all of them without content."""
        memo: dict[int, Any] = {id(one): _moved(one) if meta else one.clone() for one in self.buffers()}
        memo |= {id(one): _moved(one) if meta else one for one in self.parameters()}
        memo[id(self._local)] = threading.local()
        return copy.deepcopy(self, memo)

    def _watch(self, x: Tensor) -> _Run:
        """A whole pass, from which the step to stop at is learnt."""
        run = _Run(watched=True)
        failure = None
        with torch.inference_mode(False), torch.no_grad():
            try:
                self._pass(run, x.clone())
            except Exception as error:
                failure = error
            late = run.changed()
        if not run.calls:
            raise failure or self._never(run)
        if failure:
            if late or self.whole:
                raise failure
            logger.info("layer %r has run; what follows it fails and is left out: %s", self.layer, failure)
        self._stops[tuple(x.shape[1:])] = None if late or self.whole else run.settled
        return run

    def _pass(self, run: _Run, x: Tensor) -> None:
        self._local.run = run
        try:
            self.net(x)
        except _Stop:
            pass
        finally:
            self._local.run = None

    def _capture(self, module: nn.Module, args: Any, output: Any) -> None:
        run = getattr(self._local, "run", None)
        if run is not None:
            run.calls += 1
            run.map = output

    def _begins(self, module: nn.Module, args: Any) -> None:
        self._step(module)

    def _ends(self, module: nn.Module, args: Any, output: Any) -> None:
        self._step(module)

    def _step(self, module: nn.Module) -> None:
        run = getattr(self._local, "run", None)
        if run is None:
            return
        run.steps += 1
        if run.watched:
            run.ran.append(module)
            if run.changed():
                run.settled = run.steps
        elif run.steps == run.stop:
            raise _Stop

    def _never(self, run: _Run) -> WeightsError:
        names = {module: name for name, module in self.net.named_modules() if name}
        ran = list(dict.fromkeys(names[module] for module in run.ran if module in names))
        return WeightsError(
            f"layer {self.layer!r} never runs in this net's forward pass; {closest(self.layer, ran, 'layers that do')}"
        )

    def _pooled(self, output: Any, batch: int) -> Tensor:
        if not isinstance(output, Tensor):
            raise WeightsError(
                f"layer {self.layer!r} gives {_said(output)}; name a layer that gives one tensor, such as one inside it"
            )
        shape = tuple(output.shape)
        if not shape or shape[0] != batch:
            raise WeightsError(
                f"layer {self.layer!r} gives {shape} for {batch} inputs; the first axis is not the batch's"
            )
        try:
            return pool(output, self.pooling)
        except ValueError as error:
            raise WeightsError(f"layer {self.layer!r} gives {shape}: {error}") from None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether they hold the same numbers; what is not a number equals itself."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _moved(tensor: Tensor) -> Tensor:
    """One like it, without content."""
    moved = tensor.detach().to("meta")
    return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved


def why_unsteady(tapped: Tapped, images: Tensor, twin: Tapped | None = None) -> str | None:
    """Why the embedding of an image is not a function of the image; None where it is, as far as three passes show.

    One, halved, is embedded beside another one of stronger contrast, alone, and once more.

    images: (2, ...), two different inputs
    twin: the same class made again, with the same checkpoint; None where all that a net holds is in its checkpoint

    Raises whatever the net raises for these inputs.
    """
    with torch.inference_mode():
        one = images[1:] / 2
        two = torch.cat([images[:1], one])
        try:  # copies, as nets may keep something of what they see, which then would be of these images
            first = tapped.copied()
            beside = first(two)[1:]
            second = tapped.copied() if twin is None else twin
        except Exception:  # functions may hold on to the net that they were made for
            first = tapped
            beside = first(two)[1:]
            second = tapped if twin is None else twin
        alone, again = second(one), second(one)
        length = max(_length(beside), _length(alone))

        def said(reason: str, apart: float) -> str:
            return f"{reason} (by {apart / length:.2g} of its length){_suspects(tapped.net)}"

        if (apart := _length(alone - again)) > REPEATED * length:
            return said("differs from pass to pass: something in the net is random, or changes with every pass", apart)
        if (apart := _length(beside - alone)) <= BATCHED * length:
            return None
        if apart <= 10 * _length(alone - second(one * (1 + NUDGE))):  # as a rounded input changes it, in this net
            return None
        if _length(first(one) - alone) <= BATCHED * length:
            return said("depends on the other images of its batch", apart)
        if twin is not None:
            return said("differs each time the class is constructed, or depends on earlier images", apart)
        return said("depends on the images that the net has seen before", apart)


def _length(embedding: Tensor) -> float:
    """0 where a number is not finite: such embeddings are refused later."""
    length = float(embedding.float().norm())
    return length if math.isfinite(length) else 0.0


def _suspects(net: nn.Module) -> str:
    """Modules that are known to give what depends on chance or on the batch, as the end of a message."""
    training = [f"{name or 'the net itself'}" for name, module in net.named_modules() if module.training]
    batch = [
        name
        for name, module in net.named_modules()
        if getattr(module, "track_running_stats", True) is False and getattr(module, "running_mean", 0) is None
    ]
    found = [
        f"; {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("in training mode after eval()", training), ("without running statistics", batch))
        if names
    ]
    return "".join(found)


def unsaved(net: nn.Module) -> dict[str, Tensor]:
    """The tensors that a net holds and no checkpoint of it has: buffers that are not persistent, plain attributes."""
    saved = net.state_dict()
    found = {name: buffer for name, buffer in net.named_buffers() if name not in saved}
    for prefix, module in net.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}".lstrip(".")] = value
    return {name: value.to_dense() if value.layout != torch.strided else value for name, value in found.items()}


def pool(x: Tensor, pooling: str) -> Tensor:
    """Embeddings (B, dim) of what a layer gives.

    x: (B, D) features, (B, L, D) tokens or (B, C, H, W) maps
    pooling:
        "mean"         over space, or over tokens
        "max"          over space, or over tokens
        "cls"          the first token; tokens only
        "mean-tokens"  over tokens; tokens only
        "none"         everything, flattened in C order
        (B, D) features stay as they are under "mean", "max" and "none".

    Raises ValueError when the pooling is not for this number of axes.
    """
    if pooling == "none" and x.ndim >= 2:
        return x.flatten(1)
    if pooling in ("mean", "max") and x.ndim == 2:
        return x
    if pooling == "mean" and x.ndim == 4:
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
    if pooling == "max" and x.ndim == 4:
        return x.amax(dim=(2, 3))
    if pooling in ("mean", "mean-tokens") and x.ndim == 3:
        return x.mean(dim=1)
    if pooling == "max" and x.ndim == 3:
        return x.amax(dim=1)
    if pooling == "cls" and x.ndim == 3:
        return x[:, 0]
    wanted = "tokens (B, L, D)" if pooling in ("cls", "mean-tokens") else "(B, D), (B, L, D) or (B, C, H, W)"
    raise ValueError(f"pooling {pooling!r} needs {wanted}")


def closest(name: str, names: list[str], what: str) -> str:
    """The names that look most like `name`, or else the first ones: the end of a message."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"closest: {', '.join(close)}"
    return f"{what}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else f"no {what}"


def _said(output: Any) -> str:
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {', '.join(type(one).__name__ for one in output) or 'nothing'}"
    return f"a {type(output).__name__}"
