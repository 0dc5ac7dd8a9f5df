"""A `Flow` that understands what the executors' documentation says: names of a hub that is gone, `pods:`, `image=`."""

import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, Optional, TextIO, Union

import yaml
from docarray import DocList
from jina.jaml import JAML

import jina
from image_encoders.encoder import cores
from image_encoders.errors import InputError, UnknownModel
from image_encoders.integrations.jina import watchdog
from image_encoders.integrations.jina.documents import Document
from image_encoders.legacy_names import CLASSES

logger = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
PATIENCE_S = 20  # between asking a process to end and killing it
ELSEWHERE = ("volumes", "gpus", "pull_latest", "force_update", "port_out")  # of containers and of older Jina

_HUB = re.compile(r"jina(?:hub|ai)(?:\+\w+)?://(?P<path>.+)")
_IMAGE = re.compile(r"(?:docker://)?jinahub/pod\.encoder\.(?P<path>.+)")


class Flow(jina.Flow):
    """jina.Flow, on this machine's own address, with the old idioms of `add`, `post` and YAML.

    On Linux its processes end with the one that started them, even where that is killed.
    """

    _watchdog: Optional["subprocess.Popen[str]"] = None

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("host", "127.0.0.1")
        super().__init__(*args, **kwargs)

    def add(self, *args: Any, **kwargs: Any) -> "Flow":
        """Adds an Executor: `uses` may be one of our classes' names, "jinahub://Name" or "jinahub+docker://Name/gpu"."""
        return super().add(*args, **executor_arguments(kwargs))

    def post(self, on: str, inputs: Any = None, *args: Any, return_results: bool = False, **kwargs: Any) -> Any:
        """Sends documents; with `return_results` the answer is a list of responses whose `.docs` are ours.

        Answers come in the order of the documents, unless `results_in_order=False`: then as they are ready.
        """
        _check_parameters(kwargs.get("parameters"))
        kwargs.setdefault("return_type", DocList[Document])
        kwargs.setdefault("results_in_order", True)
        if return_results:
            kwargs["return_responses"] = True
        for name in ("on_done", "on_always"):
            if kwargs.get(name) is not None:
                kwargs[name] = _with_documents(kwargs[name], kwargs["return_type"])
        return super().post(on, inputs, *args, **kwargs)

    def enter_context(self, context: Any) -> Any:
        """Starts a part of the Flow, whose processes are watched from then on."""
        entered = super().enter_context(context)
        if self._watchdog is None and hasattr(os, "pidfd_open"):
            try:
                self._watchdog = _start_watchdog()
            except OSError as error:  # an old kernel, or a sandbox
                logger.warning(
                    "the watchdog cannot start, so the Flow's processes would outlive this one if it is killed (%s)",
                    error,
                )
        if self._watchdog is not None:
            assert self._watchdog.stdin is not None
            with suppress(BrokenPipeError):  # somebody ended it
                self._watchdog.stdin.write("".join(f"{pod.worker.pid}\n" for pod in _pods(context)))
                self._watchdog.stdin.flush()
        return entered

    def __exit__(self, *exception: Any) -> None:
        for deployment in reversed(list(self._deployment_nodes.values())):  # the gateway first, as Jina does
            _end(_pods(deployment))
        try:
            super().__exit__(*exception)
        finally:
            if self._watchdog is not None:
                self._watchdog.kill()
                self._watchdog.communicate()
                self._watchdog = None

    @classmethod
    def load_config(cls, source: Union[str, Path, TextIO, dict], **kwargs: Any) -> "Flow":
        """A Flow from YAML (a file, its text or what it holds), with `executors:` or the older `pods:`."""
        kwargs.setdefault("extra_search_paths", [str(Path(str(source)).parent)] if _is_file(source) else None)
        return super().load_config(flow_config(source), **kwargs)


def _start_watchdog() -> "subprocess.Popen[str]":
    parent = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, str(parent), str(PATIENCE_S)],
            pass_fds=[parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal is not for it
        )
    finally:
        os.close(parent)


def _pods(deployment: Any) -> list[Any]:
    """What runs an Executor, each of its copies, or the gateway, in a process that has been started."""
    names = ("head_pod", "gateway_pod", "uses_before_pod", "uses_after_pod")
    pods = [getattr(deployment, name, None) for name in names]
    pods += [pod for copies in getattr(deployment, "shards", {}).values() for pod in copies._pods]
    return [pod for pod in pods if getattr(getattr(pod, "worker", None), "pid", None) is not None]


def _end(pods: list[Any]) -> None:
    """End processes, by force if need be.

    Jina would wait forever: its gateway loops at its end after a request that could not be parsed.
    """
    for pod in pods:
        pod.worker.terminate()
    deadline = time.monotonic() + PATIENCE_S
    for pod in pods:
        pod.worker.join(max(deadline - time.monotonic(), 0))
        if pod.worker.is_alive():
            pod.worker.kill()
            pod.worker.join()
        pod.is_shutdown.set()


def _check_parameters(parameters: Any) -> None:
    """Raise InputError for parameters that no message can hold: Jina finds it out while it sends them."""
    try:
        json.dumps(parameters, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the parameters cannot be sent: {error}", code="option") from error


def resolve(uses: str) -> str:
    """The config.yml of the Executor that `uses` names; anything that is not a hub's address comes back as it is."""
    found = _HUB.fullmatch(uses) or _IMAGE.fullmatch(uses)
    if found is None and not uses.isidentifier() and not uses.startswith(("jinahub", "jinaai")):
        return uses
    known = {name.lower(): name for name in CLASSES}
    # the name may have its owner before it, and a tag or a secret behind
    named = [known[word] for word in re.split(r"[/:]", (found["path"] if found else uses).lower()) if word in known]
    if named:
        return str(CONFIGS / f"{named[0]}.yml")
    if found is None and uses in JAML.registered_tags():  # a class of the caller's own, or of Jina
        return uses
    raise UnknownModel(
        f"{uses!r} is not an Executor of this package, and Jina's hub no longer exists; "
        f"known: {', '.join(sorted(CLASSES))}"
    )


def executor_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What `jina.Flow.add` takes today, from what was once given to it."""
    arguments = dict(given)
    if "image" in arguments:
        arguments["uses"] = arguments.pop("image")
    if "port_in" in arguments:
        arguments["port"] = arguments.pop("port_in")
    if isinstance(arguments.get("uses"), str) and not arguments.get("py_modules"):
        arguments["uses"] = resolve(arguments["uses"])
    if str(arguments.get("name") or "").replace("-", "_").isidentifier():
        arguments["name"] = arguments["name"].replace("-", "_")  # Jina takes only identifiers today
    ours = Path(str(arguments.get("uses", ""))).parent == CONFIGS
    copies = int(arguments.get("replicas") or 1) * int(arguments.get("shards") or 1)
    if ours and copies > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = str(max(cores() // copies, 1))  # for the processes of the copies alone
        arguments["env"] = {"OMP_NUM_THREADS": threads, **(arguments.get("env") or {})}
    if not str(arguments.get("uses", "")).startswith("docker://"):
        for name in ELSEWHERE:
            if arguments.pop(name, None) is not None:
                warnings.warn(f"{name} has no effect on an Executor that runs in this process", stacklevel=3)
    return arguments


def flow_config(source: Union[str, Path, TextIO, dict]) -> dict[str, Any]:
    """A Flow's YAML as Jina reads it today."""
    config = dict(source) if isinstance(source, dict) else _parse(source)
    if "pods" in config:
        if "executors" in config:
            raise ValueError("the Flow has both pods: and executors:, which mean the same; keep one of them")
        config["executors"] = config.pop("pods")
    executors = _of_type(config.get("executors") or [], list, "a list of executors:")
    config["executors"] = [executor_arguments(_of_type(one, dict, "an executor: a mapping")) for one in executors]
    given = _of_type(config.get("with") or {}, dict, "with: a mapping")
    config["with"] = {"host": "127.0.0.1", **given}
    if (kind := config.pop("jtype", "Flow")) != "Flow":
        raise ValueError(f"jtype: Flow is expected, found {kind!r}")
    return {"jtype": "Flow", **config}  # Jina reads it only on the first line


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, Path)) and "\n" not in str(source) and Path(source).is_file()


def _parse(source: Union[str, Path, TextIO]) -> dict[str, Any]:
    if _is_file(source):
        text = Path(str(source)).read_text(encoding="utf-8")
    elif isinstance(source, (str, Path)):
        text = str(source)
        if "\n" not in text:
            raise FileNotFoundError(f"{text}: no such Flow file")
    else:
        text = source.read()
    where = source if _is_file(source) else "the Flow"
    try:
        config = JAML.load_no_tags(StringIO(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    return _of_type(config, dict, f"{where}: a mapping with executors:")


def _of_type(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} is expected, found {type(value).__name__}")
    return value


def _with_documents(callback: Callable[[Any], Any], return_type: Any) -> Callable[[Any], Any]:
    """A callback whose response gives our documents."""

    def called(response: Any) -> Any:
        response.document_array_cls = return_type
        return callback(response)

    return called
