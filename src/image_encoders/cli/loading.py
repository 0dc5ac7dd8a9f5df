"""The encoder that a command's options ask for, checked before anything slow and loaded with a word about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from image_encoders.cli.options import go_offline, parse_options
from image_encoders.cli.printing import notice
from image_encoders.errors import CollectionError, ImageEncodersError, InputError, WeightsError

if TYPE_CHECKING:
    from image_encoders.collection import Collection
    from image_encoders.encoder import Encoder


def load(name: str, options: Mapping[str, Any], **how: Any) -> Encoder:
    """The encoder called `name`; `how` as of `_load`."""
    from image_encoders import models

    return _load(partial(models.load, name), name, options, **how)


def load_again(opened: Collection, options: Mapping[str, Any], **how: Any) -> Encoder:
    """The encoder that a collection was created with, except for these options; `how` as of `_load`.

    Raises CollectionError where the collection does not say how, or where another space came of the options.
    """
    return _load(opened.load_encoder, opened.name, options, **how)


def _load(
    load: Callable[..., Encoder],
    name: str,
    options: Mapping[str, Any],
    *,
    offline: bool = False,
    quiet: bool = False,
    **wishes: Any,
) -> Encoder:
    """The encoder that `load` gives; wishes that are None are left to it.

    options: the family's own, as `parse_options` gives them; a usage error where the family has no such option
    offline: keep the network out of it
    quiet: say nothing, however long it takes
    """
    if offline:
        go_offline()
    _check_options(name, options)
    check_paths(wishes.get("weights"), wishes.get("calibration"))
    with loading(name, shown=not quiet):
        return load(**options, **{key: wish for key, wish in wishes.items() if wish is not None})


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """A usage error for an option that the model's family does not have."""
    from image_encoders import models

    try:
        models.check_options(name, options)
    except TypeError as error:
        raise typer.BadParameter(str(error)) from error


def wishes_of(options: list[str] | None, **wishes: Any) -> dict[str, Any]:
    """What another process is to pass to `load`: the wishes that are not None and the -O options, paths as text."""
    check_paths(wishes.get("weights"), wishes.get("calibration"))
    asked = {**wishes, **parse_options(options)}
    return {key: str(wish) if isinstance(wish, Path) else wish for key, wish in asked.items() if wish is not None}


def loading(name: str, shown: bool = True) -> AbstractContextManager[None]:
    """A block that loads a model, and says so where it takes long."""
    return notice(f"loading {name}", shown)


def check_paths(weights: Any, calibration: Any) -> None:
    """Raise WeightsError or InputError for a checkpoint or a calibration folder that is not there."""
    if isinstance(weights, Path) and not weights.expanduser().exists():
        raise WeightsError(f"{weights}: no such file or folder; --weights is the model's checkpoint")
    if isinstance(calibration, Path) and not calibration.expanduser().is_dir():
        raise InputError(f"{calibration}: no such folder; --calibration is a folder of images", code="calibration")


def check_goes_on(opened: Collection, model: str | None, weights: Path | None, precision: str | None) -> None:
    """Raise CollectionError where the options cannot mean the collection's own encoder, as far as names show.

    What only the loaded model shows is left to `Collection.check`: other weights and options, other names of the same.
    """
    advice = "leave out --model and --precision to add to the collection, or choose another --output"
    if precision not in (None, "auto", opened.precision):
        raise CollectionError(
            f"{opened.folder} holds embeddings of {opened.name} in {opened.precision}, not in {precision}; {advice}"
        )
    if model is not None and _differs(opened, model, weights):
        raise CollectionError(f"{opened.folder} holds embeddings of {opened.name}, not of {model}; {advice}")


def _differs(opened: Collection, model: str, weights: Path | None) -> bool:
    """Whether a model is not the collection's: its name says so, or it would have to be downloaded to find out."""
    from image_encoders import models
    from image_encoders.legacy_names import CLASSES

    recipe = opened.recipe if isinstance(opened.recipe, dict) else {}
    begun = str(recipe.get("name", opened.name))
    if model in (begun, opened.name) or model in CLASSES:
        return False
    family, (first, _, variant) = models.family(model), model.partition("/")
    if first != begun.partition("/")[0]:
        return True
    if weights is not None or recipe.get("weights") is not None:
        return False
    if {model, begun} <= set(models.names()):
        return True
    try:
        if hasattr(family, "fetch"):
            family.fetch(variant, offline=True)
    except ImageEncodersError:
        return True
    return False
