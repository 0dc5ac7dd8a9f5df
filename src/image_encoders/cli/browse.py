"""`image-encoders browse`: from a folder of images to a page that searches them."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.loading import check_goes_on, wishes_of
from image_encoders.cli.options import (
    Device,
    Engine,
    Offline,
    Options,
    Precision,
    Weights,
    go_offline,
    local_path,
)
from image_encoders.cli.printing import say, shown
from image_encoders.cli.serve import option
from image_encoders.cli.shutdown import terminations
from image_encoders.errors import ImageEncodersError, InputError, MissingExtra, WeightsError
from image_encoders.serve.settings import Settings

if TYPE_CHECKING:
    from image_encoders.collection import Collection
    from image_encoders.serve.browse import Follower, Job
    from image_encoders.serve.service import Service

EXAMPLES = """\b
Examples:
  image-encoders browse photos/                       # embeds them, and opens a page that searches them
  image-encoders browse photos/ --model clip/demo     # with the bundled model, which knows drawn shapes only
  image-encoders browse photos/ -o my-photos          # keeps the embeddings in the collection my-photos
  image-encoders browse photos/ --no-open --port 9000 # opens no browser
\b
Ctrl-C and SIGTERM end it. The same command resumes, and the page is available at once."""

IDLE_S = 900.0  # after which an idle net that serves queries is unloaded
SETTINGS = {one.name: one for one in fields(Settings)}


def _said(name: str) -> Any:
    """What the command line says about a field of Settings."""
    return typing.get_args(option(SETTINGS[name]))[1]


def browse(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder of images, searched recursively.", parser=local_path)
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="The model; `image-encoders models` lists them.  [default: the one used last for this folder, or "
            "else clip/openai/clip-vit-base-patch32 where it has been downloaded]",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="COLLECTION",
            help="Where the embeddings go: a new collection, or one to add to.  [default: one beside the cache]",
            parser=local_path,
        ),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a web browser.")] = False,
    host: Annotated[str, _said("host")] = Settings.host,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65535, help="The port to listen on.  [default: 8000, or else a free one]"),
    ] = None,
    api_key: Annotated[list[str], _said("api_keys")] = [],  # noqa: B006
    no_auth: Annotated[bool, _said("no_auth")] = False,
    show_paths: Annotated[bool, _said("show_paths")] = False,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = None,
    options: Options = None,
    offline: Offline = False,
) -> None:
    """Search a folder of images on a page in the web browser.

    A separate process embeds the images in the background; those already embedded can be searched at once. The folder
    is watched: the page shows added, changed and deleted images. If the folder, or a disk below it, is unmounted,
    nothing is removed.
    """
    if offline:
        go_offline()
    wishes = wishes_of(options, weights=weights, device=device, precision=precision, engine=engine)
    from image_encoders.serve import browse as browsing

    job, known = _job(folder, model, output, wishes)
    settings = Settings(
        host=host,
        port=_port(host, port),
        api_keys=tuple(api_key),
        no_auth=no_auth,
        show_paths=show_paths,
        idle_unload=IDLE_S,
    )
    try:
        with browsing.browsing(job) as listening:
            _serve(job, known, settings, listening, opens=not no_open)
    except browsing.BrowsedAlready as already:
        if already.address is None:
            raise
        say(f"{already}")
        if not no_open:
            _open(already.address)


def _job(
    folder: Path, model: str | None, output: Path | None, wishes: Mapping[str, Any]
) -> tuple[Job, Collection | None]:
    """The job, and its collection if it exists already.

    Raises ImageEncodersError if it cannot be browsed, before anything is started.
    """
    from image_encoders import models
    from image_encoders.collection import MARK, Collection, check_new
    from image_encoders.serve.browse import Job, known_collection, place_of

    real = os.path.realpath(folder.expanduser())
    place = place_of(real) if output is None else None
    known: Collection | None = None
    if place is not None:
        known = known_collection(place, model, wishes)
    elif output is not None and (output / MARK).exists():
        known = Collection.open(output)
        check_goes_on(known, model, wishes.get("weights"), wishes.get("precision"))
    elif output is not None:
        check_new(output)
    if not os.path.isdir(real) and (known is None or os.path.exists(real)):
        found = "a file" if os.path.exists(real) else "no such folder"
        raise InputError(f"{folder}: {found}; name a folder of images", code="folder")
    if known is None:
        models.family(model or models.DEFAULT)
        if model is None:
            _check_default()
    collection = output if output is not None or known is None else known.folder
    return (
        Job(
            folder=real,
            collection=None if collection is None else os.path.abspath(collection),
            place=None if place is None else str(place),
            model=model or (known.name if known is not None else None),
            wishes=wishes,
        ),
        known,
    )


def _check_default() -> None:
    """Raise WeightsError unless the default model is on this machine."""
    from image_encoders import models

    family, variant = models.family(models.DEFAULT), models.DEFAULT.partition("/")[2]
    try:
        family.fetch(variant, offline=True)
    except WeightsError as error:
        raise WeightsError(
            f"the default model, {models.DEFAULT}, has not been downloaded: `image-encoders fetch {models.DEFAULT}` "
            "downloads it once, 0.6 GB. Without a network, use --model clip/demo, bundled, for drawn shapes only"
        ) from error


def _port(host: str, port: int | None) -> int:
    """The requested port, or the default one, or, if that is in use, any: 0."""
    if port is not None:
        return port
    try:
        with socket.create_server((host, Settings.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return Settings.port
    except OSError:
        return 0


def _serve(job: Job, known: Collection | None, settings: Settings, listening: Any, *, opens: bool) -> None:
    """Serve the page, and have the folder followed, until Ctrl-C or SIGTERM."""
    try:
        from image_encoders.serve.server import serve
        from image_encoders.serve.service import Service
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "serve", "browsing") from error
    service = Service(settings, [], title=os.path.basename(job.folder) or job.folder)
    browser = _Browser(service, job, known, listening, opens)
    try:
        with terminations():
            serve(service, browser.started)
    except KeyboardInterrupt:  # before it listened
        pass
    finally:
        browser.follower.stop()
    if browser.follower.error is not None and service.collection is None:
        raise ImageEncodersError(browser.follower.error)
    say("stopped; run the same command again to resume")


class _Browser:
    """Joins the service, which searches the collection, and the follower, which fills it."""

    def __init__(self, service: Service, job: Job, known: Collection | None, listening: Any, opens: bool):
        from image_encoders.serve.browse import Follower

        self.service, self.job, self.known, self.listening, self.opens = service, job, known, listening, opens
        self.follower: Follower = Follower(job, self._found, self._failed)
        service.run = self.follower.status

    def started(self, address: str) -> None:
        """The page is there: in the thread of the event loop."""
        import asyncio

        self.loop = asyncio.get_running_loop()
        if self.known is not None:
            self.service.attach(self.known)
        self.follower.start()
        page = f"{address}/search"
        self.listening(page)
        say(f"browse {shown(self.job.folder)} at {page}; Ctrl-C stops it")
        if self.opens:
            threading.Thread(target=_open, args=(page,), daemon=True).start()

    def _found(self, folder: Path) -> None:
        """The follower says where the embeddings go: on a thread of its own."""
        from image_encoders.collection import Collection

        opened = Collection.open(folder)
        if self.known is None or self.known.folder.resolve() != folder.resolve():
            self.known = opened
            self.loop.call_soon_threadsafe(self.service.attach, opened)

    def _failed(self, message: str) -> None:
        """The follower has given up; without a collection there is nothing to show."""
        if self.service.collection is not None:
            say(f"no longer watching the folder: {message}")
        else:
            os.kill(os.getpid(), signal.SIGTERM)


def _open(page: str) -> None:
    """Show the page in a web browser, where there is a display."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    import webbrowser

    try:
        webbrowser.open(page)
    except (webbrowser.Error, OSError) as error:
        say(f"no web browser could be opened: {error}")
