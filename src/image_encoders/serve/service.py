"""The service behind the routes: models by name, and embeddings of items."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from image_encoders.api.items import Item
from image_encoders.api.requests import Limits
from image_encoders.batching import Embedded
from image_encoders.errors import CollectionError, ImageEncodersError, InputError, UnknownModel
from image_encoders.inputs.urls import UrlFetcher, UrlLimits
from image_encoders.serve.metrics import Metrics
from image_encoders.serve.recipe import Recipe
from image_encoders.serve.served_model import ServedModel
from image_encoders.serve.settings import Settings
from image_encoders.serve.worker_process import Unavailable

if TYPE_CHECKING:
    from image_encoders.collection import Collection

Outcome = Embedded | InputError


class Deadline(ImageEncodersError):
    """A request exceeded its deadline."""


class Service:
    """Models that embed, and the collection that is searched.

    models: by name; the first one is the default
    collection: what is searched; None where nothing is
    collection_model: whose embeddings it holds
    limits: what a request may hold
    title: what the page calls the collection; None: the name of its folder
    run: the progress of the run that fills the collection; None without one
    """

    def __init__(
        self,
        settings: Settings,
        recipes: Sequence[Recipe],
        collection: Collection | None = None,
        title: str | None = None,
    ):
        self.settings, self.title = settings, title
        self._models = {recipe.called: ServedModel(recipe, settings) for recipe in recipes}
        self.collection = collection
        self.collection_model: ServedModel | None = None
        self.run: Callable[[], dict[str, Any]] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.metrics = Metrics()
        self._watched = list(self._models.values())
        self.metrics.watch(self._watched)
        self.limits = Limits(settings.max_items, settings.max_file_bytes, settings.max_text_bytes)
        limits = UrlLimits(max_bytes=settings.max_file_bytes, max_seconds=min(20.0, settings.deadline))
        self._fetcher = UrlFetcher(limits)

    @property
    def models(self) -> Mapping[str, ServedModel]:
        return self._models

    async def start(self) -> None:
        """Load the models, one after the other.

        Raises ImageEncodersError for one that cannot be loaded, CollectionError where none is the collection's.
        """
        try:
            for model in self._models.values():
                await model.start()
            if self.collection is not None:
                self.collection_model = self._model_of(self.collection)
        except BaseException:
            await self.close()
            raise

    def _model_of(self, collection: Collection) -> ServedModel:
        """The model whose embeddings a collection holds; CollectionError where there is none."""
        for model in self._models.values():
            if model.fingerprint == collection.fingerprint:
                return model
        said = "; ".join(f"{name} has {model.fingerprint}" for name, model in self._models.items())
        raise CollectionError(
            f"{collection.folder} holds embeddings of {collection.name} (fingerprint {collection.fingerprint}, "
            f"{collection.precision}), and no model of this service has that fingerprint: {said}. Leave out --model to "
            "serve the collection's own model"
        )

    async def close(self) -> None:
        """End the workers."""
        self._fetcher.close()
        await asyncio.gather(*(model.close() for model in self._models.values()), *self._closing)

    def attach(self, collection: Collection) -> None:
        """Search this collection from now on, instead of another; its model is loaded in the background."""
        before, model = self.collection_model, ServedModel.of(collection, self.settings)
        self._models, self._watched[:] = {model.name: model}, [model]
        self.collection, self.collection_model = collection, model
        if before is not None:
            task = asyncio.create_task(before.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def model(self, name: str | None = None) -> ServedModel:
        """The model called `name`, or the default one; UnknownModel where it was not started."""
        if not self._models:
            raise Unavailable("the model is being loaded", retry_s=2.0)
        if name is None:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise UnknownModel(f"there is no model {name!r} here; there is: {', '.join(self._models)}")
        return self._models[name]

    @property
    def ready(self) -> bool:
        """Whether there are models, and a canary recently passed through all their nets."""
        return bool(self._models) and all(model.ready for model in self._models.values())

    async def embed(self, served: ServedModel, items: Sequence[Item | InputError]) -> list[Outcome]:
        """For each item, in order, its embedding or the reason why there is none; a batch is in progress at a time.

        items: an InputError among them is returned unchanged

        Raises Overloaded, Unavailable, Deadline. Cancelling this cancels what is waiting.
        """
        for modality in {item.modality for item in items if isinstance(item, Item)} & set(served.modalities):
            served.tower(modality).admit()
        try:
            return await asyncio.wait_for(self._embed_all(served, items), self.settings.deadline)
        except asyncio.TimeoutError:  # not the builtin one before Python 3.11
            raise Deadline(f"the request took longer than {self.settings.deadline:g} seconds") from None

    async def _embed_all(self, served: ServedModel, items: Sequence[Item | InputError]) -> list[Outcome]:
        if len(items) == 1:
            return [await self._embed(served, items[0])]
        outcomes: dict[int, Outcome] = {}
        numbered = iter(enumerate(items))
        window = min(self.settings.batch_size, len(items))
        tasks = [asyncio.create_task(self._embed_some(served, numbered, outcomes)) for _ in range(window)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [outcomes[position] for position in range(len(items))]

    async def _embed_some(
        self,
        served: ServedModel,
        numbered: Iterator[tuple[int, Item | InputError]],
        outcomes: dict[int, Outcome],
    ) -> None:
        for position, item in numbered:
            outcomes[position] = await self._embed(served, item)

    async def _embed(self, served: ServedModel, item: Item | InputError) -> Outcome:
        """What becomes of an item, which is counted."""
        if isinstance(item, InputError):
            self.metrics.embedded(served.name, "unknown", item)
            return item
        modality = item.modality
        outcome: Outcome
        try:
            tower = served.tower(modality)
            if item.url is not None:
                item = Item(modality, await self._fetch(item.url))
            outcome = await tower.embed(item)
        except InputError as error:
            outcome = error
        self.metrics.embedded(served.name, modality, outcome)
        return outcome

    async def _fetch(self, url: str) -> bytes:
        """What an address holds, where this service fetches at all."""
        if not self.settings.urls:
            raise InputError(
                "this service does not fetch URLs; send the bytes, for example as a data: URL", code="urls-off"
            )
        (future,) = self._fetcher.fetch([url])
        return await asyncio.wrap_future(future)
