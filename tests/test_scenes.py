"""The drawn scenes, their captions, and the collection of files made of them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from PIL import Image, ImageOps

from captions import Caption, Claim, caption, describe
from image_encoders.scenes import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw,
    sample_scene,
    write_images,
)


def thing(shape="circle", colour="red", size="large", row=1, column=1) -> Thing:
    x, y, radius = (0.19 + 0.31 * column), (0.19 + 0.31 * row), sum(SIZES[size]) / 2
    return Thing(shape, colour, size, row, column, x, y, radius, 0.0, COLOURS[colour])


def scene(*things: Thing, background="white") -> Scene:
    return Scene(things, background, BACKGROUNDS[background], (0.0, 0.0))


def test_the_held_out_pairs_leave_every_colour_and_shape_to_be_seen():
    assert Counter(colour for colour, _ in HELD_OUT) == dict.fromkeys(COLOURS, 1)
    assert Counter(shape for _, shape in HELD_OUT) == dict.fromkeys(SHAPES, 1)


def test_held_out_pairs_appear_only_where_they_are_asked_for():
    rng = Random(1)
    for _ in range(500):
        assert not any(t.pair in HELD_OUT for t in sample_scene(rng).things)
        assert any(t.pair in HELD_OUT for t in sample_scene(rng, unseen_pairs=True).things)


def test_scenes_hold_all_shapes_colours_sizes_places_backgrounds_and_counts():
    rng = Random(2)
    scenes = [sample_scene(rng) for _ in range(1000)]
    things = [t for s in scenes for t in s.things]
    assert {t.shape for t in things} == set(SHAPES)
    assert {t.colour for t in things} == set(COLOURS)
    assert {t.size for t in things} == set(SIZES)
    assert {(t.row, t.column) for t in things} == {(r, c) for r in range(3) for c in range(3)}
    assert {s.background for s in scenes} == set(BACKGROUNDS)
    assert {len(s.things) for s in scenes} == {1, 2, 3}
    assert any(s.things[0].pair == s.things[1].pair for s in scenes if len(s.things) > 1)


def test_things_of_a_scene_never_touch_and_stay_in_the_image():
    rng = Random(3)
    for _ in range(300):
        things = sample_scene(rng).things
        for i, a in enumerate(things):
            assert a.radius < a.x + 0.03
            assert a.x - 0.03 < 1 - a.radius
            for b in things[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_a_seed_gives_the_same_scenes_and_captions():
    def drawn(seed: int) -> list:
        rng = Random(seed)
        return [(s := sample_scene(rng), caption(s, rng), caption(s, rng, full=False)) for _ in range(20)]

    assert drawn(4) == drawn(4)
    assert drawn(4) != drawn(5)


@pytest.mark.parametrize("size", [1, 17, 64, 200, (120, 80), (80, 120)])
def test_an_image_has_the_size_asked_for(size):
    pixels = draw(sample_scene(Random(0)), size)
    width, height = size if isinstance(size, tuple) else (size, size)
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "ring"])
def test_a_thing_has_its_colour_in_its_middle_and_the_background_around(shape):
    pixels = draw(scene(thing(shape, "red", row=0, column=2)), 200)
    assert tuple(pixels[38, 162]) == COLOURS["red"]
    assert tuple(pixels[150, 50]) == BACKGROUNDS["white"]


def test_a_ring_is_open_in_the_middle():
    pixels = draw(scene(thing("ring", "blue")), 200)
    assert tuple(pixels[100, 100]) == BACKGROUNDS["white"]
    assert tuple(pixels[100, 100 + round(0.7 * 0.1525 * 200)]) == COLOURS["blue"]


def test_no_two_shapes_look_alike():
    images = {shape: draw(scene(thing(shape)), 64).astype(int) for shape in SHAPES}
    inked = min(int((p != 248).any(-1).sum()) for p in images.values())
    for a in SHAPES:
        for b in SHAPES:
            if a != b:
                assert (abs(images[a] - images[b]).max(-1) > 64).sum() > inked / 5, (a, b)


def test_a_drawing_is_the_same_at_every_size_but_for_its_edges():
    for seed in range(10):
        one = sample_scene(Random(seed))
        small = draw(one, 64).astype(int)
        large = np.asarray(Image.fromarray(draw(one, 256)).resize((64, 64), Image.Resampling.BOX)).astype(int)
        assert (abs(small - large).max(-1) > 40).mean() < 0.005


def test_a_wide_image_shows_the_scene_in_its_middle_square():
    one = sample_scene(Random(8))
    assert abs(draw(one, (100, 64))[:, 18:82].astype(int) - draw(one, 64)).max() <= 1


def test_every_caption_is_true_of_its_scene_and_full_ones_name_everything():
    rng = Random(9)
    for _ in range(1000):
        s = sample_scene(rng, unseen_pairs=rng.random() < 0.5)
        full, query = describe(s, rng), describe(s, rng, full=False)
        assert full.holds(s)
        assert query.holds(s)
        assert Counter((c.colour, c.shape) for c in full.claims) == Counter(t.pair for t in s.things)
        for t in s.things:
            assert t.colour in full.text
            assert t.shape in full.text


def test_captions_are_worded_in_many_ways():
    one, rng = sample_scene(Random(11)), Random(12)
    assert len({caption(one, rng) for _ in range(200)}) > 100


def test_captions_use_plain_words_and_fit_the_model():
    rng = Random(13)
    for _ in range(3000):
        text = caption(sample_scene(rng), rng, full=rng.random() < 0.5)
        assert re.fullmatch(r"[a-z]+(,? [a-z]+)*", text), text
        assert len(re.findall(r"[a-z]+|,", text)) <= 30  # + start and end = 32 tokens


def test_a_caption_does_not_hold_of_a_scene_that_differs_in_what_it_says():
    s = scene(thing("circle", "red", "large", 0, 0), thing("square", "blue", "small", 2, 2))
    red = Claim("red", "circle", "large", 0, 0)
    blue = Claim("blue", "square")
    assert Caption("", (red, blue), "white").holds(s)
    assert Caption("", (blue, red)).holds(s)
    assert not Caption("", (red, blue), "black").holds(s)
    for change in ({"colour": "blue"}, {"shape": "square"}, {"size": "small"}, {"row": 2}, {"column": 1}):
        assert not Caption("", (replace(red, **change), blue)).holds(s)


def test_swapped_colours_make_a_caption_false():
    s = scene(thing("circle", "red", column=0), thing("square", "blue", column=2))
    assert Caption("", (Claim("red", "circle"), Claim("blue", "square"))).holds(s)
    assert not Caption("", (Claim("blue", "circle"), Claim("red", "square"))).holds(s)


def test_two_things_cannot_be_one():
    star = thing("star", "blue", row=0)
    two = Caption("two blue stars", (Claim("blue", "star"),) * 2)
    assert not two.holds(scene(star))
    assert two.holds(scene(star, thing("star", "blue", row=2)))


def test_relations_hold_one_way_round():
    s = scene(thing("circle", "red", column=0, row=0), thing("square", "blue", column=2, row=1))
    red, blue = Claim("red", "circle"), Claim("blue", "square")
    for relation, right_way in (("left", True), ("above", True), ("right", False), ("below", False)):
        assert Caption("", (red, blue), None, relation).holds(s) is right_way
        assert Caption("", (blue, red), None, relation).holds(s) is not right_way


def test_written_images_mix_formats_sizes_and_modes(tmp_path):
    written = write_images(tmp_path / "new", 36, seed=1)
    good = [(path, drawn) for path, drawn in written if drawn is not None]
    assert len(good) == 36
    formats, modes, sizes, turned = Counter(), set(), set(), 0
    for path, _ in good:
        with Image.open(path) as image:
            formats[image.format] += 1
            modes.add(image.mode)
            sizes.add(image.size)
            turned += image.getexif().get(0x0112, 1) != 1
            assert ImageOps.exif_transpose(image).convert("RGB").size
    assert set(formats) == {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"}
    assert {"RGB", "RGBA", "P"} <= modes
    assert len(sizes) > 30
    assert all(96 <= side <= 640 for size in sizes for side in size)
    assert turned == 3


def test_a_turned_image_shows_its_scene_upright(tmp_path):
    for path, drawn in write_images(tmp_path, 60, seed=2):
        if path.suffix == ".jpeg" and drawn is not None:
            with Image.open(path) as image:
                shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
                stored = np.asarray(image.convert("RGB")).astype(int)
            assert shown.shape[:2] == stored.shape[1::-1]
            assert (shown == np.rot90(stored, -1)).all()


def test_the_names_of_written_images_do_not_show_what_is_in_them_and_a_seed_repeats_them(tmp_path):
    first = write_images(tmp_path / "a", 24, seed=3)
    second = write_images(tmp_path / "b", 24, seed=3)
    assert [drawn for _, drawn in first] == [drawn for _, drawn in second]
    for (one, _), (other, _) in zip(first, second, strict=True):
        assert one.relative_to(tmp_path / "a") == other.relative_to(tmp_path / "b")
        assert one.read_bytes() == other.read_bytes()
        names = str(one.relative_to(tmp_path / "a"))
        assert not any(word in names for word in (*COLOURS, *SHAPES, *BACKGROUNDS, *SIZES))
    assert len({path.parent for path, _ in first}) > 3
    assert len({path for path, _ in first}) == len(first)


def test_two_written_files_cannot_be_read(tmp_path):
    broken = [path for path, drawn in write_images(tmp_path, 3, seed=4) if drawn is None]
    assert len(broken) == 2
    for path in broken:
        with pytest.raises(OSError), Image.open(path) as image:
            image.load()
