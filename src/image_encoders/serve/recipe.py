"""The arguments that a model is loaded with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from image_encoders.errors import CollectionError

if TYPE_CHECKING:
    from image_encoders.collection import Collection


@dataclass(frozen=True)
class Recipe:
    """The arguments of `load`, as plain values that JSON can hold.

    id: the model's ID in requests; default: its name, for a local folder only its last part, to hide paths
    """

    name: str
    wishes: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @classmethod
    def of(cls, collection: Collection) -> Recipe:
        """The recipe of a collection's encoder."""
        match collection.recipe:
            case {"name": str(name), "options": dict(options)}:
                wishes = {key: one for key, one in collection.recipe.items() if key not in ("name", "options")}
                wishes = {key: one for key, one in {**options, **wishes}.items() if one is not None}
                return cls(name, {**wishes, "precision": collection.precision})
        raise CollectionError(f"{collection.folder} does not say how its encoder was loaded; give it with --model")

    @property
    def called(self) -> str:
        """Its ID in requests."""
        family, _, variant = self.name.partition("/")
        if self.id or not variant.startswith((".", "/", "~")):
            return self.id or self.name
        return f"{family}/{os.path.basename(os.path.realpath(os.path.expanduser(variant)))}"
