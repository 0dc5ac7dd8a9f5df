"""Captions of drawn scenes: sentences in many wordings, each with what it claims, so that any scene can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from image_encoders.scenes import Scene, Thing


@dataclass(frozen=True)
class Claim:
    """What a caption says of one thing; None is left unsaid."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    row: int | None = None
    column: int | None = None

    def holds(self, thing: Thing) -> bool:
        said = ((self.colour, thing.colour), (self.shape, thing.shape), (self.size, thing.size))
        placed = ((self.row, thing.row), (self.column, thing.column))
        return all(a is None or a == b for a, b in (*said, *placed))


@dataclass(frozen=True)
class Caption:
    """A sentence and what it says, so that it can be checked on any scene."""

    text: str
    claims: tuple[Claim, ...]
    background: str | None = None
    relation: str | None = None  # of the first claim's thing to the second's: a key of RELATIONS

    def holds(self, scene: Scene) -> bool:
        """Whether the sentence is true of a scene, which may hold more than is said."""
        if self.background not in (None, scene.background):
            return False
        return self._matches(scene.things, ())

    def _matches(self, left: tuple[Thing, ...], chosen: tuple[Thing, ...]) -> bool:
        if len(chosen) == len(self.claims):
            return self.relation is None or related(self.relation, chosen[0], chosen[1])
        claim = self.claims[len(chosen)]
        return any(
            claim.holds(thing) and self._matches(left[:i] + left[i + 1 :], (*chosen, thing))
            for i, thing in enumerate(left)
        )


# name: (words, column step, row step), a step being the sign of the second thing's cell less the first's
RELATIONS = {
    "left": (("to the left of", "left of"), 1, 0),
    "right": (("to the right of", "right of"), -1, 0),
    "above": (("above", "over"), 0, 1),
    "below": (("below", "under"), 0, -1),
}


def related(relation: str, first: Thing, second: Thing) -> bool:
    """Whether the first thing's cell lies so to the second's."""
    _, across, down = RELATIONS[relation]
    return (second.column - first.column) * across + (second.row - first.row) * down > 0


_SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big")}
_ROW_WORDS = ("top", "middle", "bottom")
_COLUMN_WORDS = ("left", "middle", "right")
_NUMBERS = {2: "two", 3: "three"}
_OPENINGS = ("", "", "", "", "a picture of ", "a drawing of ", "there is ", "an image of ", "this shows ")


def caption(scene: Scene, rng: Random, full: bool = True) -> str:
    """A sentence about a scene in one of many wordings; see `describe`."""
    return describe(scene, rng, full).text


def describe(scene: Scene, rng: Random, full: bool = True) -> Caption:
    """A caption and what it claims.

    full: every thing is named with its colour and shape, and some sizes, places and the background; otherwise
        the caption is like a short search query, which leaves out things, colours or shapes
    """
    things = rng.sample(scene.things, len(scene.things))
    if not full:
        return _query(scene, things, rng)
    extras = ["background", *((i, what) for i in range(len(things)) for what in ("size", "place"))]
    fewest, most = {1: (2, 3), 2: (1, 4), 3: (0, 3)}[len(things)]
    said = rng.sample(extras, rng.randint(fewest, most))
    if len(things) == 2 and rng.random() < 0.2:
        return _relation(scene, things, rng, said)
    claims = [
        Claim(
            thing.colour,
            thing.shape,
            thing.size if (i, "size") in said else None,
            *_place(thing, rng, (i, "place") in said),
        )
        for i, thing in enumerate(things)
    ]
    return _sentence(claims, scene.background if "background" in said else None, rng)


def _place(thing: Thing, rng: Random, said: bool) -> tuple[int | None, int | None]:
    """The row and column to name: both in a corner or the middle, else the one that is not the middle."""
    if not said:
        return None, None
    if thing.row == 1 and thing.column == 1:
        return 1, 1
    if thing.row != 1 and thing.column != 1:
        return rng.choice(((thing.row, thing.column),) * 4 + ((thing.row, None), (None, thing.column)))
    return (thing.row, None) if thing.row != 1 else (None, thing.column)


def _query(scene: Scene, things: list[Thing], rng: Random) -> Caption:
    if len(things) > 2 or (len(things) == 2 and rng.random() < 0.6):
        things = things[: rng.randint(1, len(things) - 1)]
    claims = []
    for thing in things:
        known = rng.random()
        colour = thing.colour if known < 0.9 else None
        shape = thing.shape if known > 0.08 else None
        size = thing.size if rng.random() < 0.15 else None
        claims.append(Claim(colour, shape, size, *_place(thing, rng, rng.random() < 0.15)))
    return _sentence(claims, scene.background if rng.random() < 0.15 else None, rng)


def _relation(scene: Scene, things: list[Thing], rng: Random, said: list) -> Caption:
    relation = rng.choice([name for name in RELATIONS if related(name, *things)])
    claims = [
        Claim(thing.colour, thing.shape, thing.size if (i, "size") in said else None) for i, thing in enumerate(things)
    ]
    first, second = (_noun_phrase(claim, 1, rng) for claim in claims)
    body = f"{first} {rng.choice(RELATIONS[relation][0])} {second}"
    background = scene.background if "background" in said else None
    return Caption(_framed(body, background, rng), tuple(claims), background, relation)


def _sentence(claims: list[Claim], background: str | None, rng: Random) -> Caption:
    """Equal claims are counted ("two blue stars"), the rest listed."""
    counts: dict[Claim, int] = {}
    for claim in claims:
        counts[claim] = counts.get(claim, 0) + 1
    phrases = [_noun_phrase(claim, count, rng) for claim, count in counts.items()]
    join = rng.choice((" and ", " and ", " with ", ", "))
    body = phrases[-1] if len(phrases) == 1 else ", ".join(phrases[:-1]) + join + phrases[-1]
    ordered = tuple(claim for claim, count in counts.items() for _ in range(count))
    return Caption(_framed(body, background, rng), ordered, background)


def _noun_phrase(claim: Claim, count: int, rng: Random) -> str:
    noun = claim.shape or rng.choice(("shape", "thing"))
    words = [rng.choice(_SIZE_WORDS[claim.size])] if claim.size else []
    words += [claim.colour] if claim.colour else []
    words += [noun if count == 1 else _plural(noun)]
    if count > 1:
        words.insert(0, _NUMBERS[count])
    elif rng.random() < 0.85:
        words.insert(0, "an" if words[0][0] in "aeiou" else "a")
    place = _place_phrase(claim.row, claim.column, rng)
    if not place:
        return " ".join(words)
    return " ".join((place, *words)) if rng.random() < 0.1 else " ".join((*words, place))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _place_phrase(row: int | None, column: int | None, rng: Random) -> str:
    if row is None and column is None:
        return ""
    if row is None:
        return f"on the {_COLUMN_WORDS[column]}" if column is not None else ""
    if column is None:
        return f"at the {_ROW_WORDS[row]}"
    if row == 1:
        return "in the " + rng.choice(("middle", "centre", "center"))
    return f"{rng.choice(('in', 'at'))} the {_ROW_WORDS[row]} {_COLUMN_WORDS[column]}"


def _framed(body: str, background: str | None, rng: Random) -> str:
    opening = rng.choice(_OPENINGS)
    if background is None:
        return opening + body
    word = rng.choice(("grey", "gray")) if background == "grey" else background
    ending = rng.choice((f"on a {word} background", f"on a {word} background", f"on {word}", f"against {word}"))
    return f"{opening}{body} {ending}"
