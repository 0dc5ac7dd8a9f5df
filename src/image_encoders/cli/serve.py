"""`image-encoders serve`: embeddings over HTTP."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from image_encoders.cli.loading import wishes_of
from image_encoders.cli.options import (
    Calibration,
    Device,
    Engine,
    Offline,
    Options,
    Precision,
    Weights,
    go_offline,
    local_path,
)
from image_encoders.cli.printing import notice, say
from image_encoders.cli.shutdown import terminations
from image_encoders.errors import MissingExtra
from image_encoders.serve.settings import Settings

if TYPE_CHECKING:
    from image_encoders.serve.service import Service

EXAMPLES = """\b
Examples:
  image-encoders serve --model clip/demo                          # bundled; try it out
  image-encoders serve --model clip/openai/clip-vit-base-patch32 --model bit/R50x1 --port 8080
  image-encoders serve --host 0.0.0.0 --api-key "$KEY"            # for other machines
\b
Then, from any language, or with OpenAI's own client:
  curl http://127.0.0.1:8000/v1/embeddings --json '{"input": ["a red circle"]}'
  curl http://127.0.0.1:8000/v1/images --data-binary @photo.jpg -H 'Content-Type: image/jpeg'
Its documentation is at /docs, its metrics at /metrics, its readiness at /health/ready."""

TYPES = typing.get_type_hints(Settings)


def option(one: Field[Any]) -> Any:
    """The command's option for a field of Settings."""
    kind = TYPES[one.name]
    many = kind == tuple[str, ...]
    name = one.name.removesuffix("s") if many else one.name
    if isinstance(kind, types.UnionType):
        kind = next(choice for choice in typing.get_args(kind) if choice is not type(None))
    unit = {"bytes": "BYTES", "px": "PIXELS", "s": "SECONDS"}.get(one.metadata["unit"])
    said = typer.Option(
        f"--{name.replace('_', '-')}",
        help=one.metadata["help"],
        min={int: 0 if one.name == "port" else 1, float: 0.001}.get(kind),
        metavar=None if kind is bool else unit or ("N" if kind is int else name.rpartition("_")[2].upper()),
        envvar=f"IMAGE_ENCODERS_SERVE_{one.name.upper()}",
        show_envvar=False,
    )
    return Annotated[list[str] if many else kind | None if one.default is None else kind, said]


def _takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of Settings in place of its **settings."""
    signature = inspect.signature(command, eval_str=True)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    made = [
        inspect.Parameter(
            one.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=list(one.default) if isinstance(one.default, tuple) else one.default,
            annotation=option(one),
        )
        for one in fields(Settings)
    ]
    command.__signature__ = signature.replace(parameters=[*own, *made])  # type: ignore[attr-defined]
    return command


@_takes_settings
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[ID=]NAME",
            help="A model to serve, and its ID in requests; may be repeated.  [default: the collection's]",
        ),
    ] = None,
    collection: Annotated[
        Path | None,
        typer.Option(metavar="COLLECTION", help="Search this collection, which `encode -o` made.", parser=local_path),
    ] = None,
    weights: Weights = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = None,
    calibration: Calibration = None,
    options: Options = None,
    offline: Offline = False,
    **settings: Any,
) -> None:
    """Serve embeddings and search over HTTP.

    It accepts the requests of OpenAI's and Cohere's clients. With --collection it also offers search, as an API and as
    a web page. Without --host only this machine can connect. Each option can also be set by an environment variable:
    --max-items by IMAGE_ENCODERS_SERVE_MAX_ITEMS. Ctrl-C and SIGTERM stop it after the requests in progress.
    """
    if offline:
        go_offline()
    if not model and collection is None:
        raise typer.BadParameter("give a model: --model clip/demo, which is bundled, or see `image-encoders models`")
    if weights is not None and len(model or ()) != 1:
        raise typer.BadParameter(
            "--weights requires exactly one --model; a folder can also be given as --model clip/./FOLDER"
        )
    wishes = wishes_of(
        options, weights=weights, device=device, precision=precision, engine=engine, calibration=calibration
    )
    _run(_recipes(model or (), wishes), collection, Settings(**{key: _value(one) for key, one in settings.items()}))


def _recipes(named: Sequence[str], wishes: Mapping[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """For each model its id, "" where it has none of its own, its name, and what else it is loaded with."""
    from image_encoders import models

    found = []
    for one in named:
        known = re.fullmatch(r"([\w.-]+)=(.+)", one)
        id, name = (known[1], known[2]) if known else ("", one)
        models.family(name)  # which raises where there is none such
        found.append((id, name, dict(wishes)))
    return found


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _run(recipes: list[tuple[str, str, dict[str, Any]]], folder: Path | None, settings: Settings) -> None:
    try:
        from image_encoders.serve import logs
        from image_encoders.serve.recipe import Recipe
        from image_encoders.serve.server import serve as listen
        from image_encoders.serve.service import Service
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "serve", "serving over HTTP") from error
    from image_encoders.collection import Collection

    logs.configure(as_json=settings.json_logs)
    opened = None if folder is None else Collection.open(folder)
    made = [Recipe(name, wishes, id) for id, name, wishes in recipes]
    if opened is not None and not made:
        made = [Recipe.of(opened)]
    service = Service(settings, made, opened)
    with terminations(), ExitStack() as loading:
        loading.enter_context(notice(f"loading {', '.join(recipe.name for recipe in made)}"))

        def started(address: str) -> None:
            loading.close()
            _announce(service, address)

        listen(service, started)
    say("stopped")


def _announce(service: Service, address: str) -> None:
    """What was loaded, where it listens, and how to try it."""
    for name, served in service.models.items():
        say(
            f"{name}: {', '.join(served.modalities)} -> {served.dim}, {served.precision} by {served.engine} on "
            f"{served.device}, fingerprint {served.fingerprint}"
        )
    say(f"listening on {address}; documentation at {address}/docs; Ctrl-C stops it")
    if service.collection is not None:
        say(f"search {service.collection.folder} at {address}/search")
    key = ' -H "Authorization: Bearer $KEY"' if service.settings.api_keys else ""
    if "text" in service.model().modalities:
        say(f"""try: curl {address}/v1/embeddings{key} --json '{{"input": ["a red circle"]}}'""")
    else:
        say(f"try: curl {address}/v1/images{key} -H 'Content-Type: image/jpeg' --data-binary @photo.jpg")
