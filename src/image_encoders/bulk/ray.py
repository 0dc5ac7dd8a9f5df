"""A run, or a step of the user's own pipeline, on a Ray cluster.

    run ─parts, written down→ Workers: an actor on each node, or for each GPU ─results, written→ the run commits them

Only names of parts go through Ray: parts and results are files in a folder that every node sees.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.encode import Encoded, Failed, Outcome, encode
from image_encoders.bulk.parts import Parts, Worker
from image_encoders.bulk.sources.ahead import items_of
from image_encoders.bulk.sources.find import entry_of
from image_encoders.bulk.sources.items import Entry, Ready, Settings
from image_encoders.canaries import drift, embed_canaries
from image_encoders.collection import LOADED
from image_encoders.encoder import Encoder
from image_encoders.engines.openvino import has_bfloat16
from image_encoders.engines.precision import PRECISIONS
from image_encoders.errors import DeviceError, ImageEncodersError, InputError, MissingExtra, first_line
from image_encoders.inputs.files import check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.models import load
from image_encoders.process import handed_on, starting_ray, take_over
from image_encoders.records import Locator
from image_encoders.tables import id_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

LOCAL = "local"  # an address: a Ray of the run's own, on this machine
DEATHS = 3  # of workers at one part, or while they start, before the run is aborted
STORE = 1 << 27  # bytes of the object store of a Ray of the run's own: little goes through it
CONNECT_S = 5.0  # for the head of a cluster to answer
LOOK_S = 0.1  # seconds between looks at the workers
ROWS = 512  # of a dataset that an actor is given at once: whole batches of any size up to that


# ------------------------------------------------------------------ the cluster


@contextmanager
def connected(address: str, **options: Any) -> Iterator[None]:
    """Ray at an address for the block: "local", "auto" for the cluster that this machine belongs to, or HOST:PORT.

    options: of `ray.init`

    Raises MissingExtra without Ray, DeviceError if nothing responds. An existing connection is used.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    here = {"include_dashboard": False, "object_store_memory": STORE}
    place: dict[str, Any] = {"address": address} | (here if address == LOCAL else {})
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        with starting_ray():
            begun = ray.init(**place, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise DeviceError(
            f"no Ray cluster at {address!r}: {first_line(error)}; accepted: {LOCAL}, which starts one on this machine, "
            "auto, on a machine of a cluster, or HOST:PORT of its head"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
        if address == LOCAL:
            shutil.rmtree(begun.address_info["session_dir"], ignore_errors=True)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("Ray", "ray", "a run on a cluster") from error
    return ray


@dataclass(frozen=True)
class Place:
    """Where a worker runs: a node, and how much of it."""

    node: str
    cpus: float
    gpus: float


def places(nodes: Iterable[Mapping[str, Any]], count: int | None, device: str) -> list[Place]:
    """Where workers run: one per GPU if there are any, else one per node, with all its processors.

    nodes: as `ray.nodes()` gives them
    count: how many workers, spread over the nodes; None: as above
    device: "cpu" leaves GPUs alone
    """
    alive = [(node["NodeID"], node["Resources"]) for node in nodes if node["Alive"]]
    cpus = {node: float(found.get("CPU", 0)) for node, found in alive}
    gpus = {node: 0.0 if device == "cpu" else float(found.get("GPU", 0)) for node, found in alive}
    usable = [node for node in cpus if (gpus[node] if any(gpus.values()) else cpus[node])]
    if not usable:
        raise DeviceError("no node of the Ray cluster has a processor or a GPU to compute on")
    if count is None:
        at = [node for node in usable for _ in range(int(gpus[node]) or 1)]
    else:
        at = [usable[number % len(usable)] for number in range(count)]
    share = Counter(at)
    return [Place(node, cpus[node] / share[node], min(1.0, gpus[node] / share[node])) for node in at]


# ------------------------------------------------------------------ what a worker is


@dataclass(frozen=True)
class Recipe:
    """What every worker loads, as where the run was started: the precision is decided once.

    canaries: the starter's embeddings of them
    """

    name: str
    wishes: dict[str, Any]
    precision: str
    fingerprint: str
    canaries: np.ndarray | None
    environment: dict[str, str] = field(default_factory=handed_on)

    @classmethod
    def of(cls, encoder: Encoder) -> Recipe:
        """That of a loaded encoder."""
        recipe = encoder.recipe
        wishes = {key: recipe[key] for key in LOADED if recipe.get(key) is not None}
        if str(wishes.get("device", "auto")).startswith("cuda"):
            wishes["device"] = "cuda"  # Ray says which
        wishes |= {**recipe["options"], "precision": encoder.precision}
        return cls(recipe["name"], wishes, encoder.precision, encoder.fingerprint, embed_canaries(encoder))

    def load(self) -> Encoder:
        """The encoder, in a worker's process; DeviceError if its embeddings differ from the starter's."""
        take_over(self.environment)
        encoder = load(self.name, **self.wishes)
        here = f"on {socket.gethostname()}"
        if encoder.fingerprint != self.fingerprint:
            raise DeviceError(f"{self.name} {here} differs from the model where the run was started: {encoder}")
        canaries = embed_canaries(encoder)
        if self.canaries is not None and canaries is not None:
            found, allowed = drift(canaries, self.canaries), PRECISIONS[self.precision].apart
            if found > allowed:
                raise DeviceError(
                    f"{self.name} {here} gives other embeddings than where the run was started: 1 - cosine "
                    f"{found:.2g} for the same image, and {allowed:g} is allowed in {self.precision}"
                )
        return encoder


def slow(encoder: Encoder) -> str | None:
    """Why an encoder is slow on this machine; None if it is not."""
    if encoder.device != "cpu" or not PRECISIONS[encoder.precision].instructions or has_bfloat16():
        return None
    return f"{socket.gethostname()} computes {encoder.precision} slowly: its processor has no instructions for it"


class _Actor:
    """A worker in a process of its own, somewhere; `_start` makes a Ray actor of it."""

    def __init__(self, recipe: Recipe, parts: Parts, batch_size: int | None, threads: int):
        self.recipe, self.parts, self.batch_size, self.threads = recipe, parts, batch_size, threads

    def ready(self) -> str | None:
        """Load the model; returns why it is slow here, if it is."""
        from ray.util.metrics import Counter as Metric

        encoder = self.recipe.load()
        self.worker = Worker(self.parts, encoder, BatchSizeTuner(self.batch_size), self.threads)
        self.done = Metric("image_encoders_images", "Finished images, by outcome", tag_keys=("outcome",))
        return slow(encoder)

    def encode(self, part: str) -> None:
        self.worker.encode(part, self._count)

    def _count(self, outcomes: list[Outcome]) -> None:
        failed = sum(isinstance(one, Failed) for one in outcomes)
        for outcome, count in (("failed", failed), ("encoded", len(outcomes) - failed)):
            if count:
                self.done.inc(count, {"outcome": outcome})


# ------------------------------------------------------------------ many of them


@dataclass(eq=False)
class _Member:
    place: Place
    actor: Any


class Workers:
    """Actors on a cluster as a run's `Pool`: started when there is work, replaced when they die."""

    def __init__(self, parts: Parts, encoder: Encoder, *, count: int | None = None, batch_size: int | None = None):
        """count: how many, spread over the nodes; None: one for each GPU, or on each node where there is none
        batch_size: as of `run`
        """
        ray = _ray()
        wished = str(encoder.recipe.get("device") or "auto")
        self.parts, self.batch_size, self.recipe = parts, batch_size, Recipe.of(encoder)
        self._free = places(ray.nodes(), count, wished)[::-1]  # where one can be started
        self._idle: list[_Member] = []
        self._busy: dict[Any, tuple[_Member, str | None]] = {}  # a call's reference -> whose it is, and the part
        self._waiting: deque[str] = deque()
        self._deaths: Counter[str | None] = Counter()  # by part; None: of those that were starting
        self._refused: ImageEncodersError | None = None

    def finished(self, parts: Iterable[str | None]) -> Generator[str | None, None, None]:
        """As a `Pool`."""
        source = iter(parts)
        more = True
        try:
            while more or self._waiting or any(part is not None for _, part in self._busy.values()):
                more = more and self._draw(source)
                self._give()
                yield from self._done()
        finally:
            self._end()

    def _draw(self, source: Iterator[str | None]) -> bool:
        """Queue as many parts as could start now; returns whether there may be more."""
        while len(self._waiting) < max(1, len(self._idle) + len(self._free)):
            try:
                part = next(source)
            except StopIteration:
                return False
            if part is None:
                break
            self._waiting.append(part)
        return True

    def _give(self) -> None:
        """Give parts to idle workers, and start more workers for the rest."""
        while self._waiting and self._idle:
            member, part = self._idle.pop(), self._waiting.popleft()
            self._busy[member.actor.encode.remote(part)] = member, part
        starting = sum(part is None for _, part in self._busy.values())
        for _ in range(min(len(self._waiting) - starting, len(self._free))):
            member = self._start(self._free.pop())
            self._busy[member.actor.ready.remote()] = member, None
        if self._waiting and not self._busy:
            raise self._refused or DeviceError("no worker on the cluster could be started")

    def _start(self, place: Place) -> _Member:
        ray = _ray()
        where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.node, soft=True)
        actor = ray.remote(_Actor).options(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=where)
        arguments = self.recipe, self.parts, self.batch_size, max(1, int(place.cpus))
        return _Member(place, actor.remote(*arguments))

    def _done(self) -> Iterator[str | None]:
        """The parts that were done meanwhile; None where none was."""
        ray = _ray()
        done = ray.wait(list(self._busy), timeout=LOOK_S)[0] if self._busy else []
        for call in done:
            member, part = self._busy.pop(call)
            try:
                warning = ray.get(call)
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                self._replace(member, part, error)
                continue
            except ray.exceptions.RayTaskError as error:
                self._raise(member, part, error)
                continue
            except ray.exceptions.RayError as error:
                raise DeviceError(f"a worker failed: {first_line(error)}") from error
            self._deaths.pop(part, None)
            self._idle.append(member)
            if part is not None:
                yield part
            elif warning:
                logger.warning("%s", warning)
        if not done:
            yield None

    def _replace(self, member: _Member, part: str | None, error: Exception) -> None:
        """Give the part of a worker that died to another."""
        self._kill(member)
        self._free.append(member.place)
        self._deaths[part] += 1
        if part is not None:
            self._waiting.appendleft(part)
        if self._deaths[part] >= DEATHS:
            at = f"at the part {part} in {self.parts.folder}" if part else "while they started"
            raise DeviceError(f"{DEATHS} workers died {at}, the last one: {first_line(error)}")

    def _raise(self, member: _Member, part: str | None, error: Any) -> None:
        """Raise a worker's error; continue without one that is refused while it starts."""
        cause = error.cause
        if part is None and isinstance(cause, DeviceError):
            logger.warning("%s; this worker is not used", cause)
            self._refused = cause
            self._kill(member)
        elif isinstance(cause, ImageEncodersError):
            raise cause from error
        else:
            raise DeviceError(f"a worker failed: {first_line(cause)}") from error

    def _kill(self, member: _Member) -> None:
        with suppress(Exception):  # dead already
            _ray().kill(member.actor)

    def _end(self) -> None:
        """Stop all workers; parts that are under way stay recorded."""
        for member in [*self._idle, *(member for member, _ in self._busy.values())]:
            self._kill(member)
        self._idle, self._busy = [], {}


# ------------------------------------------------------------------ datasets


def encode_dataset(
    dataset: Any,
    encoder: Encoder | str,
    *,
    column: str,
    workers: int | None = None,
    batch_size: int | None = None,
    private_urls: bool = False,
) -> Any:
    """A Ray Dataset with an `embedding` and an `error` for each of its rows.

    encoder: a loaded encoder, or a model's name; its precision, as decided here, is used by every worker
    column: the images, as a file's bytes, or as paths and URLs that the nodes reach
    workers, batch_size: as of `Workers`
    private_urls: also fetch from addresses that are not public
    returns: the dataset, not computed yet; `embedding` is a list of dim float32 and `error` None, or `embedding` is
        None and `error` "code: message"

    Embeddings are those of `encode_image`; in float32 they differ at most in their last bits, as the
    batches differ. Raises InputError if there are such columns already.
    """
    ray = _ray()
    encoder = load(encoder) if isinstance(encoder, str) else encoder
    at = places(ray.nodes(), workers, str(encoder.recipe.get("device") or "auto"))
    settings = Settings(private_urls=private_urls)
    return dataset.map_batches(
        _Rows,
        fn_constructor_args=(Recipe.of(encoder), column, settings, batch_size, max(1, int(at[0].cpus))),
        batch_format="pyarrow",
        batch_size=ROWS,
        num_cpus=min(one.cpus for one in at),
        num_gpus=min(one.gpus for one in at) or None,
        compute=ray.data.ActorPoolStrategy(size=len(at)),
    )


class _Rows:
    """Embeds batches of a dataset, in an actor of Ray Data's."""

    def __init__(self, recipe: Recipe, column: str, settings: Settings, batch_size: int | None, threads: int):
        self.encoder, self.column, self.settings, self.threads = recipe.load(), column, settings, threads
        self.tuner = BatchSizeTuner(batch_size)
        if warning := slow(self.encoder):
            logger.warning("%s", warning)

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        taken = {"embedding", "error"} & set(table.column_names)
        if taken or self.column not in table.column_names:
            wrong = f"a column {sorted(taken)[0]} already" if taken else f"no column {self.column}"
            raise InputError(f"the dataset has {wrong}; it has {', '.join(table.column_names)}", code="column")
        found = self._outcomes(table[self.column].to_pylist())
        vectors = [None if isinstance(one, Failed) else one.embedding.tolist() for one in found]
        errors = [f"{one.code}: {one.message}" if isinstance(one, Failed) else None for one in found]
        table = table.append_column("embedding", pa.array(vectors, pa.list_(pa.float32(), self.encoder.dim)))
        return table.append_column("error", pa.array(errors, pa.utf8()))

    def _outcomes(self, values: list[Any]) -> list[Any]:
        """What became of each value; equal names, and equal bytes, are embedded once."""
        entries = [_given(number, value, self.settings) for number, value in enumerate(values)]
        ids = [id_of(entry.name) for entry in entries]
        found: dict[str, Outcome] = {}
        items = items_of(dict(zip(ids, entries)).values())
        for outcomes in encode(items, self.encoder, batch_size=self.tuner, workers=self.threads):
            found.update((one.item.id, one) for one in outcomes)
        embedded = [one for one in found.values() if isinstance(one, Encoded) and one.embedding is not None]
        of_bytes = {one.facts.sha256: one for one in embedded}
        return [of_bytes[one.facts.sha256] if isinstance(one, Encoded) else one for one in map(found.__getitem__, ids)]


def _given(number: int, value: Any, settings: Settings) -> Entry:
    """The image that a cell of a dataset is."""
    if isinstance(value, str):
        return entry_of(value, None, settings)
    return _Given(str(number), value)


@dataclass(frozen=True)
class _Given(Ready):
    """The bytes of an image in a dataset."""

    name: str
    content: Any
    state = ""
    metadata = error = None

    @property
    def locator(self) -> Locator:
        return Locator(self.name)

    def read(self, limits: ImageLimits) -> bytes:
        if not isinstance(self.content, bytes):
            found = "null" if self.content is None else type(self.content).__name__
            raise InputError(f"{found}; the bytes of an image file, a path or a URL is accepted", code="type")
        check_bytes(len(self.content), limits.max_bytes, MAX_BYTES_HINT)
        return self.content
