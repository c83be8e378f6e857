"""The world of a drive: its weather and camera, and what stands where; all of it follows from the seed.

The street is made of blocks of BLOCK_M. A block's content depends on the drive's seed and the
block's number alone, so any frame can be made without the frames before it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from lfd.data import street_textures as textures
from lfd.data.street_air import Air
from lfd.data.street_cars import BODIES, Car
from lfd.data.street_chance import PAINTS, person, rng
from lfd.data.street_ground import BLOCK_M, GROUNDS, ground
from lfd.data.street_posts import Post
from lfd.data.street_scene import Building, Fence, Thing, Tree
from lfd.data.street_traffic import Traffic
from lfd.data.street_view import BUILDING, FAR, TREE, Camera, Color

FPS = 25
"""Frames a second of a drive's own time."""

ROOFS: tuple[Color, ...] = ((78, 72, 70), (52, 66, 100), (60, 60, 66), (95, 95, 98))


@dataclass(frozen=True)
class Develop:
    """How the sensor turns light into numbers: gain per channel, contrast, blur in px, noise level."""

    gain: Color
    contrast: float
    blur: float
    grain: int


class World:
    """The content of one drive.

    Args:
        seed: Any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        r = rng(seed, "drive")
        self.hand = r.choice((-1, 1))  # the side of the road that is driven on
        self.ground = ground(r.randrange(GROUNDS))
        self.sky = r.randrange(textures.SKIES)
        self.speed = r.uniform(8.0, 12.0)
        self.start = r.uniform(0, 4000)
        self.focal, self.rise = r.uniform(1.05, 1.4), r.uniform(0.42, 0.57)  # in picture heights
        self.up = r.uniform(1.15, 1.9)
        self.curve, self.curve_m = r.choice((0.0, 0.3, 1.0)) * r.uniform(-1, 1) / 500, r.uniform(90, 200)
        self.phases = tuple(r.uniform(0, 6.283) for _ in range(6))
        self.urban, self.green, self.busy = r.random(), r.random(), r.random()
        haze = textures.sky(self.sky)[1]
        sunny = r.random() < (0.75, 0.1, 0.35, 0.75, 0.2)[self.sky % 5]
        angle = r.uniform(0.5, 1.6)
        sun = (r.choice((-1, 1)) * angle * math.sin(2 * angle), r.uniform(-0.8, 1.0)) if sunny else None
        self.air = Air(haze, r.choice((1 / 600, 1 / 350, 1 / 200, 1 / 90)), sun, r.uniform(0.38, 0.62))
        exposure = r.choice((0.52, 0.68, 0.82, 0.95, 1.06, 1.18)) * r.uniform(0.93, 1.07)
        warm = r.uniform(-0.09, 0.09)
        gain = (exposure * (1 - warm), exposure * r.uniform(0.97, 1.02), exposure * (1 + warm))
        grain = r.choice((4, 6, 8, 11))
        self.develop = Develop(gain, r.uniform(0.85, 1.2), r.uniform(0.5, 0.95), grain)
        tone = r.uniform(0.8, 1.2)
        self.ground_tint = (tone * r.uniform(0.96, 1.05), tone, tone * r.uniform(0.96, 1.05))
        self.skyline = tuple(
            (TREE, r.uniform(5, 13)) if r.random() < 0.3 + 0.5 * self.green else (BUILDING, r.uniform(5, 16))
            for _ in range(28)
        )
        self._blocks: dict[int, tuple[Thing, ...]] = {}
        self._traffic = Traffic(seed, self.hand, self.ground, self.busy, r)

    def camera(self, index: int, size_hw: tuple[int, int]) -> Camera:
        """Return where the camera is in frame `index`, with its sway."""
        height, width = size_hw
        t, p = index / FPS, self.phases
        s = self.start + self.speed * t + 1.5 * math.sin(0.35 * t + p[0])
        pitch = 0.004 * math.sin(5.1 * t + p[1]) + 0.003 * math.sin(8.7 * t + p[2])
        yaw = 0.02 * math.sin(0.6 * t + p[3]) + 0.003 * math.sin(4.3 * t + p[4])
        lane = self.hand * (self.ground.half - (2.0 if self.ground.parking else 0.0)) * 0.5
        lat = lane + 0.3 * math.sin(0.45 * t + p[5])
        focal = self.focal * height
        bend = self.curve * math.sin(s / self.curve_m + p[2]) / 2
        return Camera(focal, width / 2 + yaw * focal, self.rise * height + pitch * focal, self.up, lat, s, bend)

    def things(self, index: int, camera: Camera) -> list[Thing]:
        """Return all that may be seen in frame `index`, the farthest first."""
        first, last = int(camera.s // BLOCK_M), int((camera.s + FAR) // BLOCK_M)
        found: list[Thing] = []
        for block in range(first, last + 1):
            if block not in self._blocks:
                while len(self._blocks) >= 8:  # a drive may go on for ever
                    self._blocks.pop(next(iter(self._blocks)))
                self._blocks[block] = tuple(self._block(block))
            found += [x for x in self._blocks[block] if camera.s + 0.5 < x.far < camera.s + FAR + 20]
        found += self._traffic.things(index / FPS, camera.s)
        found.sort(key=lambda thing: -thing.far)
        return found

    def _block(self, block: int) -> Iterator[Thing]:
        start = block * BLOCK_M
        g = self.ground
        end = start + (g.junction[0] if g.junction else BLOCK_M)
        edge = g.half + g.pavement
        for side in (-1, 1):
            r = rng(self.seed, block, side)
            style = r.choices(
                ("terrace", "tall", "detached", "park"), (0.7 + self.urban, self.urban, 0.55, 0.8 * self.green)
            )
            yield from self._houses(r, style[0], start + (4 if g.junction else 0), end, side, edge)
            yield from self._kerbside(r, start, end, side)
            if g.junction:
                yield Post(start + g.junction[0] - 1, side * (g.half + 0.5), "signal", r.uniform(2.9, 3.5), r.random())
            if g.parking:
                yield from self._parked(r, start + 2, end - 6, side)

    def _houses(
        self, r: random.Random, style: str, start: float, end: float, side: int, edge: float
    ) -> Iterator[Thing]:
        s = start
        tint_base = r.uniform(0.75, 1.15)
        kinds = [r.randrange(textures.FACADES) for _ in range(3)]
        if style == "park" or (style == "detached" and r.random() < 0.9):
            yield from self._fences(r, start, end, side * (edge + 0.1))
        while s < end - 3 and style != "park":
            length = min(r.uniform(*{"terrace": (6, 12), "tall": (12, 28), "detached": (8, 14)}[style]), end - s)
            if end - s - length < 5:
                length = end - s
            kind = r.choice(kinds)
            floors = textures.facade_floors(kind)
            height = floors * r.uniform(3.0, 3.8) if style != "tall" else max(3, floors) * r.uniform(3.5, 4.6)
            lat = edge + {"terrace": 0.0, "tall": r.choice((0.0, 1.5)), "detached": r.uniform(3, 6)}[style]
            tone = tint_base * r.uniform(0.85, 1.15)
            tint = (tone * r.uniform(0.93, 1.07), tone, tone * r.uniform(0.93, 1.07))
            pitched = style != "tall" and r.random() < 0.75
            yield Building(
                s,
                s + length,
                side * lat,
                height,
                kind,
                tint,
                r.uniform(1.6, 3.2) if pitched else 0.0,
                r.choice(ROOFS),
                (r.uniform(0.1, 0.9),) if pitched and r.random() < 0.7 else (),
                s + r.uniform(0.2, 0.8) * length if style == "terrace" and r.random() < 0.5 else 0.0,
            )
            gap = r.uniform(2.5, 7) if style == "detached" else 0.0
            if style == "detached":
                yield self._tree(r, s + length + gap / 2, side * (edge + r.uniform(2, 6)))
                if r.random() < 0.6:
                    yield self._bush(r, s + r.uniform(0, length), side * (edge + r.uniform(0.9, 2)))
            s += length + gap
        if style == "park":
            at = start + r.uniform(0, 4)
            while at < end:
                yield self._tree(r, at, side * (edge + r.uniform(1.5, 4)))
                if r.random() < 0.6:
                    yield self._tree(r, at + 2, side * (edge + r.uniform(6, 13)))
                yield self._bush(r, at + 3, side * (edge + r.uniform(1, 9)))
                at += r.uniform(6, 11)

    def _fences(self, r: random.Random, start: float, end: float, lat: float) -> Iterator[Thing]:
        kind, height = r.randrange(textures.FENCES), r.uniform(0.9, 1.7)
        tone = r.uniform(0.7, 1.25)
        s = start
        # Short panels, so that the painter's order by the far end holds among bushes and people.
        while s < end - 2:
            length = min(r.choice((6.0, 8.0)), end - s)
            if r.random() < 0.85:
                yield Fence(s, s + length, lat, height, kind, (tone, tone, tone))
            s += length

    def _tree(self, r: random.Random, s: float, lat: float) -> Tree:
        height = r.uniform(5, 11)
        tone = r.uniform(0.65, 1.2)
        tint = (tone * r.uniform(0.8, 1.2), tone, tone * r.uniform(0.85, 1.2))
        return Tree(s, lat, height, height * r.uniform(0.6, 0.85), r.randrange(14), tint)

    def _bush(self, r: random.Random, s: float, lat: float) -> Tree:
        height, tone = r.uniform(1.0, 2.6), r.uniform(0.6, 1.2)
        return Tree(s, lat, height * 1.3, height * r.uniform(1.2, 2.0), 14 + r.randrange(2), (tone, tone, tone))

    def _kerbside(self, r: random.Random, start: float, end: float, side: int) -> Iterator[Thing]:
        kerb = self.ground.half + 0.45
        s, every, height = start + r.uniform(0, 15), r.uniform(18, 32), r.uniform(5.5, 8.5)
        while s < end:
            yield Post(s, side * kerb, "lamp", height, self.phases[0] / 6.283)
            s += every
        for _ in range(r.choice((1, 2, 3, 4))):
            yield Post(r.uniform(start, end), side * kerb, "sign", r.uniform(2.2, 3.0), r.random())
        if r.random() < 0.25:
            at = r.uniform(start, end - 20)
            for k in range(r.randrange(3, 8)):
                yield Post(at + 2.2 * k, side * kerb, "bollard", 1.0, 0.3)
        if r.random() < 0.2:
            yield from self._fences(r, start + 60, start + 78, side * (self.ground.half + 0.3))
        if r.random() < 0.15 + 0.35 * self.green:
            s, every = start + r.uniform(0, 20), r.uniform(12, 30)
            while s < end:
                yield self._tree(r, s, side * (kerb + 0.3))
                s += every * r.uniform(0.7, 1.3)
        for _ in range(r.choice((0, 1, 2, 3))):  # people who stand
            lat = side * r.uniform(kerb + 0.4, self.ground.half + self.ground.pavement - 0.2)
            yield person(r, r.uniform(start, end), lat, (0.0, 0.0), r.uniform(0, 6))

    def _parked(self, r: random.Random, start: float, end: float, side: int) -> Iterator[Thing]:
        s, share = start + r.uniform(0, 6), r.uniform(0.0, 0.65)
        lat = side * (self.ground.half - 1.05)
        while s < end:
            body = r.choice((0, 0, 1, 2, 3, 4))
            if r.random() < share:
                facing = side * self.hand if r.random() < 0.85 else -side * self.hand
                yield Car(s, lat + r.uniform(-0.12, 0.12), facing, body, r.choice(PAINTS))
            s += BODIES[body].size[0] + r.uniform(0.7, 1.8)
