"""The embedding step: inputs through a net, each with its embedding or the reason why it has none."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

import numpy as np

from image_encoders.errors import ImageEncodersError, InputError, first_line

log = logging.getLogger(__name__)

# As CUDA, torch on the CPU ("can't allocate memory"), C++ and CUDA's libraries say it.
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|allocate memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE)


def embed_each(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    inputs: Sequence[np.ndarray],
    *,
    dim: int | None = None,
    out_of_memory: Callable[[int], None] | None = None,
) -> list[np.ndarray | InputError]:
    """For each input its embedding, (dim,) and finite, or why there is none.

    embed: inputs -> (len(inputs), dim) float32, such as a tower's
    dim: the length of an embedding, where it is known
    out_of_memory: called with the size of each batch for which the device had no memory

    A batch that fails is halved until only the input that is to blame fails: InputError with the code "unexpected",
    "out-of-memory", "shape" or "not-finite". Its cause is what the net raised, without the traceback, which is logged.
    Once memory ran out, no batch is larger than half of the one that failed. An error that no input is to blame for
    (DeviceError, WeightsError, MissingExtra, KeyboardInterrupt) is raised.
    """
    outcomes: list[np.ndarray | InputError] = []
    waiting = [list(inputs)] if len(inputs) else []
    limit = len(inputs)
    while waiting:
        batch = waiting.pop()
        if len(batch) > limit:
            waiting += reversed([batch[start : start + limit] for start in range(0, len(batch), limit)])
            continue
        outcome = _embed(embed, batch, dim)
        if isinstance(outcome, InputError):
            if outcome.code == "out-of-memory" and out_of_memory is not None:
                out_of_memory(len(batch))
            if len(batch) == 1:
                outcomes.append(outcome)
                continue
            half = (len(batch) + 1) // 2
            if outcome.code == "out-of-memory":
                limit = half
            waiting += [batch[half:], batch[:half]]
            continue
        outcomes += [_finite(embed, batch, position, outcome[position], dim) for position in range(len(batch))]
    return outcomes


def _finite(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    batch: list[np.ndarray],
    position: int,
    embedding: np.ndarray,
    dim: int | None,
) -> np.ndarray | InputError:
    """`embedding`; where it is not finite, what its input has alone: another one of the batch may be to blame."""
    if np.isfinite(embedding).all():
        return embedding
    alone = _embed(embed, [batch[position]], dim) if len(batch) > 1 else None
    if isinstance(alone, InputError):
        return alone
    if alone is not None and np.isfinite(alone).all():
        return alone[0]
    return InputError("the model's embedding is not finite", code="not-finite")


def _embed(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray], batch: list[np.ndarray], dim: int | None
) -> np.ndarray | InputError:
    """(len(batch), dim) embeddings, or why there are none."""
    try:
        embeddings = embed(batch)
    except InputError as error:
        return error
    except ImageEncodersError:  # the engine's failure, and no input's
        raise
    except Exception as error:  # a net may raise anything
        if len(batch) == 1:
            log.info("an input could not be embedded", exc_info=error)
        return as_input_error(error.with_traceback(None))  # whose frames hold the batch
    found = np.shape(embeddings)
    if len(found) != 2 or found[0] != len(batch) or dim not in (None, found[1]):
        wanted = f"({len(batch)}, {'dim' if dim is None else dim})"
        return InputError(f"the model returned embeddings of shape {found}, not {wanted}", code="shape")
    return embeddings


def as_input_error(error: Exception) -> InputError:
    """Any exception as an InputError: itself, or one with the code "unexpected" or "out-of-memory" that it caused."""
    if isinstance(error, InputError):
        return error
    name, said = type(error).__name__, first_line(error)
    message = name if said == name else f"{name}: {said}"
    memory = isinstance(error, MemoryError) or OUT_OF_MEMORY.search(message) is not None
    reason = InputError(message, code="out-of-memory" if memory else "unexpected")
    reason.__cause__ = error
    return reason
