"""A served model: its towers and their facts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from image_encoders.errors import InputError
from image_encoders.serve.recipe import Recipe
from image_encoders.serve.settings import Settings
from image_encoders.serve.towers import TowerQueue
from image_encoders.serve.worker_process import Facts

if TYPE_CHECKING:
    from image_encoders.collection import Collection


class ServedModel:
    """A model and its towers, the main one first."""

    def __init__(self, recipe: Recipe, settings: Settings):
        self._recipe, self._settings = recipe, settings
        self.towers: dict[str, TowerQueue] = {}

    @classmethod
    def of(cls, collection: Collection, settings: Settings) -> ServedModel:
        """The model of a collection, known before it is loaded; its text tower is loaded now, others when needed."""
        model = cls(Recipe.of(collection), settings)
        begun = collection.mark["encoder"]
        for modality in collection.modalities:
            facts = Facts(
                name=collection.name,
                dim=collection.dim,
                fingerprint=collection.fingerprint,
                device=begun["device"],
                engine=begun["engine"],
                precision=collection.precision,
                modality=modality,
                modalities=collection.modalities,
                seconds=0.0,
                pid=0,
            )
            model.towers[modality] = TowerQueue(model._recipe, modality, settings)
            model.towers[modality].begin(facts, at_once=modality == "text")
        return model

    async def start(self) -> None:
        """Load it: first the main tower, which converts the model if necessary; then the others together."""
        main = TowerQueue(self._recipe, None, self._settings)
        facts = await main.start()
        self.towers[facts.modality] = main
        others = [one for one in facts.modalities if one != facts.modality]
        self.towers.update({one: TowerQueue(self._recipe, one, self._settings) for one in others})
        await asyncio.gather(*(self.towers[one].start() for one in others))

    async def close(self) -> None:
        await asyncio.gather(*(tower.close() for tower in self.towers.values()))

    @property
    def facts(self) -> Facts:
        """What its main tower said when it was ready."""
        facts = next(iter(self.towers.values())).facts
        assert facts is not None, "a model is used once it has started"
        return facts

    @property
    def name(self) -> str:
        """What requests call it."""
        return self._recipe.called

    @property
    def dim(self) -> int:
        return self.facts.dim

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def precision(self) -> str:
        return self.facts.precision

    @property
    def engine(self) -> str:
        return self.facts.engine

    @property
    def device(self) -> str:
        return self.facts.device

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.towers)

    @property
    def ready(self) -> bool:
        return all(tower.ready for tower in self.towers.values())

    @property
    def state(self) -> str:
        """The worst of its towers'; "unhealthy" also if a canary is late."""
        states = [
            tower.state if tower.ready or tower.state == "loading" else "unhealthy" for tower in self.towers.values()
        ]
        order = ("unhealthy", "loading", "ready", "idle")
        return min(states, key=order.index)

    def tower(self, modality: str) -> TowerQueue:
        """The tower of `modality`; InputError where this model has none."""
        if modality not in self.towers:
            raise InputError(f"{self.name} has no {modality} tower; it has: {', '.join(self.towers)}", code="no-tower")
        return self.towers[modality]
