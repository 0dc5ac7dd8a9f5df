"""Whatever `precision="auto"` chooses keeps the rows, judged on other images than it chose by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import image_encoders as ie
from image_encoders.engines import select
from image_encoders.engines.closeness import CLOSEST, FEWEST, PROBES, closeness, example_inputs, probes

pytestmark = pytest.mark.golden

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("clip", "clip-vit-b32", {}),
    "bit": ("bit/R50x1", "bit-npz-R50x1", {"input_size": 160}),
    "audioclip": ("audioclip/full", "audioclip", {}),
    "vsepp": ("vsepp", "vse-resnet152", {}),
    "vsepp vgg": ("vsepp", "vse-vgg19", {}),
}


@pytest.fixture(scope="module")
def load(checkpoint: Callable[[str], Path]) -> Callable[..., ie.Encoder]:
    def loaded(model: str, **wishes: Any) -> ie.Encoder:
        name, case, options = MODELS[model]
        folder = checkpoint(case)
        if name == "clip":
            return ie.load(f"clip/{folder}", device="cpu", **options, **wishes)
        weights = next(folder.glob("*.npz")) if name.startswith("bit") else folder
        return ie.load(name, weights=weights, device="cpu", **options, **wishes)

    return loaded


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are judged on as few images as slow nets are."""
    monkeypatch.setattr(select, "example_inputs", lambda net: example_inputs(net, FEWEST))


@cache
def judged() -> list[np.ndarray]:
    """Eight images that no choice was made by: the probes that come after those."""
    return probes(PROBES + 8)[PROBES:]


@pytest.fixture(scope="module")
def plain(load: Callable[..., ie.Encoder]) -> Callable[[str], tuple[np.ndarray, str]]:
    """plain(model) -> embeddings of `judged()` by torch in float32, and the fingerprint; computed once."""

    @cache
    def embedded(model: str) -> tuple[np.ndarray, str]:
        encoder = load(model, precision="float32", engine="torch")
        return encoder.encode_image(judged()), encoder.fingerprint

    return embedded


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("model", MODELS)
def test_what_auto_chooses_on_this_machine_keeps_the_embeddings(
    model: str, load: Callable[..., ie.Encoder], plain: Callable[[str], tuple[np.ndarray, str]]
) -> None:
    embeddings, fingerprint = plain(model)
    auto = load(model)
    near = closeness(auto.encode_image(judged()), embeddings)
    assert near.centred >= CLOSEST
    assert auto.choice.precision == auto.precision
    assert (auto.fingerprint == fingerprint) == (auto.precision == "float32")
    if auto.precision == "float32":
        assert near.centred > 0.999999
        assert near.neighbours == 1


@pytest.mark.parametrize("model", ["clip", "bit"])
def test_bfloat16_is_chosen_only_where_it_keeps_the_embeddings(
    model: str, load: Callable[..., ie.Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """True bfloat16 arithmetic, by torch, which every processor can do."""
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "1")
    if model == "bit":
        monkeypatch.setitem(MODELS, "bit", (*MODELS["bit"][:2], {"input_size": 64}))
    auto = load(model, engine="torch")
    plain, low = (load(model, precision=one, engine="torch") for one in ("float32", "bfloat16"))
    near = closeness(low.encode_image(judged()), plain.encode_image(judged()))
    if auto.precision == "bfloat16":
        assert auto.choice.closeness.centred >= CLOSEST
        assert near.centred >= CLOSEST - 0.001  # fewer images than a choice is made by
        assert auto.fingerprint == low.fingerprint
    else:
        assert "bfloat16: centred cosine" in auto.choice.refused[0]
        assert auto.fingerprint == plain.fingerprint
    assert auto.precision == ("bfloat16" if model == "clip" else "float32")  # as nets with group norms lose theirs
