"""The bundled model `clip/demo` finds scenes it has never seen, and its training program is sound."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest

import image_encoders as ie
from captions import Caption, Claim, caption, describe
from image_encoders.scenes import HELD_OUT, Scene, draw, sample_scene, write_images

PROGRAM = Path(__file__).parents[1] / "training" / "clip_demo.py"


@pytest.fixture(scope="module")
def encoder() -> ie.Encoder:
    return ie.load("clip/demo", device="cpu", precision="float32", engine="torch")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distinct_captions(count: int, seed: int, unseen_pairs: bool) -> list[tuple[Scene, Caption]]:
    """Scenes and captions, each caption true of its own scene alone."""
    rng = Random(seed)
    chosen: list[tuple[Scene, Caption]] = []
    while len(chosen) < count:
        scene = sample_scene(rng, unseen_pairs)
        words = describe(scene, rng)
        if not any(words.holds(other) or said.holds(scene) for other, said in chosen):
            chosen.append((scene, words))
    return chosen


@pytest.mark.parametrize("unseen_pairs", [False, True])
def test_captions_find_their_scenes_and_scenes_their_captions(encoder, unseen_pairs):
    chosen = distinct_captions(200, seed=20, unseen_pairs=unseen_pairs)
    images = unit(encoder.encode_image([draw(scene, 200) for scene, _ in chosen]))
    texts = unit(encoder.encode_text([words.text for _, words in chosen]))
    scores = texts @ images.T
    assert (scores.argmax(1) == np.arange(200)).mean() > 0.9
    assert (scores.argmax(0) == np.arange(200)).mean() > 0.9


def test_captions_find_their_files_among_all_kinds(encoder, tmp_path):
    rng = Random(21)
    written = write_images(tmp_path, 60, seed=21)
    good = [(path, caption(scene, rng)) for path, scene in written if scene is not None]
    images = unit(encoder.encode_image([path for path, _ in good]))
    texts = unit(encoder.encode_text([words for _, words in good]))
    assert ((texts @ images.T).argmax(1) == np.arange(60)).mean() > 0.85


@pytest.mark.parametrize("query", ["a red circle", "a blue star", "yellow heart", "a green square and a pink ring"])
def test_a_short_query_ranks_the_scenes_it_is_true_of_first(encoder, query):
    rng = Random(22)
    claims = tuple(Claim(*part.split()[-2:]) for part in query.split(" and "))
    true: list[Scene] = []
    false: list[Scene] = []
    while len(true) < 10 or len(false) < 290:
        scene = sample_scene(rng)
        (true if Caption(query, claims).holds(scene) else false).append(scene)
    images = unit(encoder.encode_image([draw(scene, 120) for scene in (*true[:10], *false[:290])]))
    ranked = np.argsort(-(images @ unit(encoder.encode_text([query]))[0]))
    assert (ranked[:10] < 10).mean() >= 0.6  # 0.03 by chance
    assert ranked[0] < 10


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_clip_demo", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_table_of_truths_agrees_with_every_caption(program):
    rng = Random(23)
    scenes = [sample_scene(rng, unseen_pairs=rng.random() < 0.3) for _ in range(80)]
    captions = [describe(scene, rng, full=rng.random() < 0.3) for scene in scenes]
    table = program.truth(captions, scenes)
    assert (table == [[words.holds(scene) for scene in scenes] for words in captions]).all()
    assert table.sum() > len(scenes)


def test_a_variant_differs_and_holds_no_unseen_pair(program):
    rng = Random(24)
    for _ in range(300):
        scene = sample_scene(rng)
        other = program.variant(scene, rng)
        assert other != scene
        assert len(other.things) == len(scene.things)
        assert not any(thing.pair in HELD_OUT for thing in other.things)


def test_crowded_images_hold_many_things_and_no_unseen_pair(program):
    rng = Random(27)
    crowds = [program.crowded(rng).things for _ in range(50)]
    assert np.mean([len(things) for things in crowds]) > 5
    assert not any(thing.pair in HELD_OUT for things in crowds for thing in things)


def test_a_batch_holds_every_scene_with_a_variant(program):
    of = program.related_scenes(program.Recipe(batch=24), Random(28))
    assert len(set(of)) == 24
    for scene, other in zip(of[::2], of[1::2], strict=True):
        assert {thing.pair for thing in scene.things} & {thing.pair for thing in other.things} or (
            scene.background == other.background
        )


def test_evaluation_captions_are_true_of_one_scene_each(program):
    chosen = program.evaluation_set("a test", 60, unseen_pairs=True)
    scenes, captions = zip(*chosen, strict=True)
    assert (program.truth(list(captions), list(scenes)) == np.eye(60, dtype=bool)).all()


def test_the_bundled_tokens_are_those_of_the_trainer(program, encoder):
    from transformers import CLIPTokenizer

    from image_encoders.models.clip import DEMO

    vocab, _merges = program.vocabulary()
    tokenizer = CLIPTokenizer.from_pretrained(DEMO)
    assert tokenizer.get_vocab() == vocab
    rng = Random(25)
    texts = [describe(sample_scene(rng, unseen_pairs=True), rng, full=rng.random() < 0.5).text for _ in range(500)]
    assert tokenizer(texts, padding=True, return_tensors="pt").input_ids.equal(program.token_ids(texts, vocab))
    other = "Zwölf Hörnchen & 3 dogs?"
    assert tokenizer.decode(tokenizer(other).input_ids, skip_special_tokens=True).split() == (
        ["zwölf", "hörnchen", "&", "3", "dogs", "?"]
    )


def test_what_is_exported_gives_the_trainers_own_embeddings(program, tmp_path):
    import torch
    from transformers import CLIPModel

    recipe = program.Recipe(crowd_steps=1, crowd_batch=4, steps=1, batch=8, width=32, text_width=24)
    trainer = program.Trainer(recipe, seed=0)
    trainer.step(trainer.crowd_loss(), 1.0)
    trainer.step(sum(trainer.losses()), 1.0)
    program.export(trainer.average, trainer.vocab, trainer.merges, tmp_path)
    loaded = CLIPModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rng = Random(26)
    scenes = [sample_scene(rng) for _ in range(5)]
    ids = program.token_ids([describe(scene, rng).text for scene in scenes], trainer.vocab)
    pixels = program.pixels_of([draw(scene, program.SIZE) for scene in scenes])
    with torch.no_grad():
        text = program.unit_rows(loaded.get_text_features(input_ids=ids))
        image = program.unit_rows(loaded.get_image_features(pixel_values=pixels))
        own_text = program.embed_ids(trainer.average, ids)
        own_image = program.embed_states(trainer.average, program.patch_states(trainer.average, pixels))
    assert (text - own_text).abs().max() < 2e-3  # exported in float16
    assert (image - own_image).abs().max() < 2e-3


def test_training_from_one_seed_gives_one_model(program):
    def trained(seed: int) -> list:
        recipe = program.Recipe(crowd_batch=4, batch=8, width=32, text_width=24)
        trainer = program.Trainer(recipe, seed)
        trainer.step(trainer.crowd_loss(), 1.0)
        trainer.step(sum(trainer.losses()), 1.0)
        return [p.numpy() for p in trainer.average.parameters()]

    first, again, other = trained(1), trained(1), trained(2)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
