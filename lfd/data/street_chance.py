"""Chance in the built-in scene: the generator that belongs to a key, and how people and cars look by it."""

from __future__ import annotations

import random

from lfd.data.street_people import Person
from lfd.data.street_view import Color

PAINTS: tuple[Color, ...] = (
    (40, 38, 38),
    (62, 58, 56),
    (105, 105, 105),  # as grey as the road
    (165, 168, 168),
    (205, 208, 210),
    (30, 30, 130),
    (110, 60, 30),
    (60, 75, 40),
    (130, 120, 100),
    (50, 90, 150),
    (45, 30, 70),
)
CLOTHES: tuple[Color, ...] = (
    (35, 33, 33),
    (60, 45, 38),
    (90, 85, 80),
    (45, 60, 80),
    (70, 95, 125),
    (40, 40, 140),
    (150, 150, 150),
    (120, 70, 40),
    (60, 90, 60),
    (90, 160, 190),
    (95, 55, 100),
)
TROUSERS = CLOTHES[:5] + CLOTHES[:3] + CLOTHES[6:8]
SKINS: tuple[Color, ...] = ((140, 165, 205), (105, 135, 180), (60, 85, 120), (45, 60, 85))


def rng(*key: int | str) -> random.Random:
    """Return the generator of a key; a text seeds it by SHA-512, the same in every process."""
    return random.Random("/".join(map(str, key)))  # noqa: S311 - scenery, not secrets


def person(r: random.Random, s: float, lat: float, heading: tuple[float, float], phase: float) -> Person:
    """Return a child or an adult, dressed by chance; `phase` is that of the stride."""
    child = r.random() < 0.12
    height = r.uniform(1.1, 1.4) if child else r.uniform(1.58, 1.88)
    return Person(
        s, lat, height, heading, phase, r.choice(CLOTHES), r.choice(TROUSERS), r.choice(SKINS), r.random() < 0.35
    )
