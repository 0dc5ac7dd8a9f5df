"""What a family gives, and the encoder that is made of it.

Model ─assemble(runtime)→ Encoder
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from image_encoders.encoder import Encoder, Tower
from image_encoders.engines.embedder import Net
from image_encoders.engines.select import PLAIN, Runtime, select_embedders
from image_encoders.errors import InputError
from image_encoders.inputs.spec import InputSpec
from image_encoders.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Variant:
    """One line of the table of models.

    name: after the family's, such as "R50x1"; "" where the family has just one
    towers: the modalities
    dim: length of an embedding; None where the checkpoint decides
    weights: what `weights=` takes, or where the weights come from
    licence: of the weights, as their authors state it
    """

    name: str
    towers: tuple[str, ...]
    dim: int | None
    weights: str
    licence: str


@dataclass(frozen=True)
class Part:
    """One modality of a model: what its tower is made from.

    inputs: its sources to the net's inputs
    build: the net: one tensor (B, ...) in, one tensor (B, dim) out; in float32, on the CPU
    key: what else decides what `build` builds, and no image's embedding, as plain values
    traceable: whether a copy of the net can be made by following one pass
    examples: inputs of one shape, for engines to try the net with, where `inputs` leaves it open; None: `inputs`
    """

    inputs: InputSpec
    build: Callable[[], nn.Module]
    key: Mapping[str, Any] = field(default_factory=dict)
    traceable: bool = True
    examples: InputSpec | None = None


@dataclass(frozen=True)
class Model:
    """What a family's `load` gives: all that makes an encoder but what runs it.

    facts: what decides the nets, as plain values: the family, its weights' digest, its options
    parts: one for each modality; the first decides what "auto" selects
    checkpoint: what the parts are built from; released when the encoder is there
    """

    name: str
    dim: int
    facts: Mapping[str, Any]
    parts: Sequence[Part]
    checkpoint: Checkpoint[Any] | None = None

    def assemble(self, runtime: Runtime = PLAIN) -> Encoder:
        """The encoder: each part's net behind a tower, run as `runtime` wishes."""
        embed, side_embeds = select_embedders(runtime, [self._net(part) for part in self.parts])
        if self.checkpoint is not None:
            self.checkpoint.release()
        main, *others = (part.inputs for part in self.parts)
        towers = [Tower(main.at(embed.precision), embed)]
        towers += [Tower(inputs, side_embed) for inputs, side_embed in zip(others, side_embeds)]
        calibration = {"calibration": embed.calibration} if embed.calibration else {}
        inputs = {tower.inputs.modality: tower.inputs.facts for tower in towers}
        return Encoder(
            name=self.name,
            dim=self.dim,
            towers={tower.inputs.modality: tower for tower in towers},
            fingerprint=fingerprint(**self.facts, inputs=inputs, precision=embed.precision, **calibration),
            device=embed.device,
            engine=embed.engine,
            precision=embed.precision,
            calibration=embed.calibration,
            choice=embed.choice,
        )

    def _net(self, part: Part) -> Net:
        inputs, examples = part.inputs, part.examples or part.inputs
        key = json.dumps([self.facts, inputs.modality, inputs.facts, part.key], sort_keys=True)
        return Net(
            name=self.name if part is self.parts[0] else f"{self.name}, {inputs.modality}",
            key=sha256(key.encode()).hexdigest(),
            build=part.build,
            prepare=examples.input,
            shape=examples.shape or (None,),
            modality=inputs.modality,
            traceable=part.traceable,
        )


def fingerprint(**facts: Any) -> str:
    """The digest that names an embedding space: 32 hexadecimal digits over everything that decides its embeddings."""
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return sha256(canonical.encode()).hexdigest()[:32]


def check_option(option: str, value: Any, accepted: Sequence[str]) -> None:
    """Raise InputError for an option's value that is none of those accepted."""
    if value not in accepted:
        raise InputError(f"{option} is {value!r}; accepted: {', '.join(accepted)}", code="option")
