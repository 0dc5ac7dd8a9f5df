"""Checkpoints of the Hugging Face hub, fetched into its own cache by its own client."""

from __future__ import annotations

import errno
import logging
import sys
import time
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

from image_encoders.errors import UnknownModel, WeightsError, first_line
from image_encoders.weights.download import TIMEOUT_S
from image_encoders.weights.fetch import is_offline
from image_encoders.weights.retries import ATTEMPTS, Again, as_again

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.txt", "*.model")  # configuration and tokenizer
SAFE_WEIGHTS = "model*.safetensors"
REACHABLE = "These work without it: clip/demo, which is bundled, and local checkpoints (weights=PATH)"


def hub_folder(
    repo_id: str, *, revision: str | None = None, offline: bool | None = None, progress: bool | None = None
) -> Path:
    """The local folder of a Hugging Face checkpoint: its configuration, tokenizer and weights.

    Weights are safetensors; pickled ones are fetched only if there are no others. Kept in Hugging Face's own cache.

    repo_id: such as "openai/clip-vit-base-patch32"
    revision: branch, tag or commit; default: the main branch as it is now
    offline: never use the network; the environment can say the same
    progress: show a bar; default: when stderr is a terminal

    Raises UnknownModel when the hub has no such repository, WeightsError when it is not available.
    """
    why = "network access is off"
    if not is_offline(offline):
        try:
            return _complete(_downloaded(repo_id, revision, progress), repo_id)
        except _Unreachable as error:
            why = str(error)
    return _complete(_cached(repo_id, revision, why), repo_id)


class _Unreachable(Exception):
    """The hub could not be reached; `again` if another attempt may succeed."""

    def __init__(self, what: str, again: Again | None) -> None:
        super().__init__(what)
        self.again = again


def _downloaded(repo_id: str, revision: str | None, progress: bool | None) -> Path:
    """The folder, up to date; _Unreachable if only the network fails.

    Retried as in `retries`, unless the checkpoint is in the cache, which is then used at once.
    """
    for failures in count(1):
        try:
            return _tried(repo_id, revision, progress)
        except _Unreachable as error:
            if error.again is None or failures >= ATTEMPTS or _is_cached(repo_id, revision):
                raise
            logger.info("%s: %s; trying again", repo_id, error)
            time.sleep(error.again.pause_s(failures))
    raise AssertionError


def _tried(repo_id: str, revision: str | None, progress: bool | None) -> Path:
    from huggingface_hub import errors

    shown = sys.stderr.isatty() if progress is None else progress
    try:
        return _from_hub(repo_id, revision, {} if shown else {"tqdm_class": _silent_bar()})
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{repo_id}: a gated repository; request access at https://huggingface.co/{repo_id}, "
            "then log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UnknownModel(f"{repo_id}: the repository exists, but has no revision {revision}") from error
    except errors.RepositoryNotFoundError as error:
        raise UnknownModel(
            f"{repo_id}: Hugging Face has no such public repository; see https://huggingface.co/models"
        ) from error
    except errors.HFValidationError as error:
        raise _not_an_id(repo_id) from error
    except Exception as error:  # of whichever HTTP library this release of the hub's client is built on
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise WeightsError(f"{repo_id}: {error}; set HF_HOME to a writable folder with enough space") from error
        said = f"{type(error).__name__}: {first_line(error)[:120]}"
        causes = [one for one in (error, error.__cause__) if one is not None]
        again = next(filter(None, (as_again(one, answered=False) for one in causes)), None)
        raise _Unreachable(f"Hugging Face cannot be reached ({said})", again) from error


def _cached(repo_id: str, revision: str | None, why: str) -> Path:
    """The folder as the cache has it.

    why: the hub is not asked
    """
    from huggingface_hub import errors, snapshot_download

    patterns = [*HUB_FILES, SAFE_WEIGHTS]  # with them the client knows whether all were fetched
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:
        raise WeightsError(f"{repo_id} is not completely downloaded, and {why}. {REACHABLE}") from error
    except errors.HFValidationError as error:
        raise _not_an_id(repo_id) from error


def _is_cached(repo_id: str, revision: str | None) -> bool:
    try:
        _complete(_cached(repo_id, revision, ""), repo_id)
    except WeightsError:
        return False
    return True


def _not_an_id(repo_id: str) -> UnknownModel:
    return UnknownModel(f"{repo_id}: not a Hugging Face id such as openai/clip-vit-base-patch32")


def _from_hub(repo_id: str, revision: str | None, bar: dict[str, Any]) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT_S)
    patterns = _hub_patterns([file.rfilename for file in found.siblings or []])
    # by the branch's name, not found.sha: only then does the cache remember which commit the branch is
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns, **bar))


def _hub_patterns(files: list[str]) -> list[str]:
    return [*HUB_FILES, SAFE_WEIGHTS if any(fnmatch(file, SAFE_WEIGHTS) for file in files) else "pytorch_model*.bin"]


def _complete(folder: Path, repo_id: str) -> Path:
    """`folder`, when a model can be loaded from it."""
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not (folder / "config.json").is_file() or not weights:
        raise WeightsError(f"{repo_id}: {folder} lacks config.json or weights; fetch it again with network access")
    return folder


def _silent_bar() -> Any:
    """A progress bar's class that shows nothing."""
    from tqdm.auto import tqdm

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    return Silent
