"""Cars, vans and buses of the built-in scene: a side profile, drawn out to a width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lfd.data.street_view import CAR, ROUND, Color, Floats, Ints, View


@dataclass(frozen=True)
class Body:
    """The side of a car from tail to nose.

    Attributes:
        size: Length, width, height, m.
        profile: Outline as fractions of length and height, from the tail's foot over the roof to the nose's.
        rear_glass: The outline's segment, by its first point, that holds the rear window.
        windscreen: Likewise.
    """

    size: tuple[float, float, float]
    profile: tuple[tuple[float, float], ...]
    rear_glass: int
    windscreen: int


BODIES = (
    Body((3.9, 1.7, 1.48), ((0, 0.18), (0, 0.62), (0.08, 0.96), (0.5, 1), (0.7, 0.66), (0.97, 0.5), (1, 0.18)), 1, 3),
    Body(
        (4.5, 1.76, 1.43),
        ((0, 0.18), (0, 0.62), (0.17, 0.67), (0.31, 0.98), (0.58, 1), (0.74, 0.67), (0.97, 0.52), (1, 0.18)),
        2,
        4,
    ),
    Body((4.5, 1.76, 1.5), ((0, 0.18), (0, 0.6), (0.05, 0.97), (0.58, 1), (0.74, 0.66), (0.97, 0.53), (1, 0.18)), 1, 3),
    Body((4.6, 1.86, 1.76), ((0, 0.2), (0, 0.6), (0.04, 0.97), (0.6, 1), (0.74, 0.66), (0.98, 0.58), (1, 0.2)), 1, 3),
    Body((5.0, 1.95, 2.15), ((0, 0.14), (0, 0.6), (0.02, 0.98), (0.74, 1), (0.9, 0.56), (1, 0.42), (1, 0.14)), 1, 3),
    Body((10.5, 2.45, 3.05), ((0, 0.1), (0, 0.5), (0.01, 0.98), (0.97, 1), (1, 0.45), (1, 0.1)), 1, 3),
)
_DARK: Color = (24, 24, 26)


@dataclass(frozen=True)
class Car:
    """A car: `s` is its near end, `facing` +1 when it shows us its tail, -1 its nose."""

    s: float
    lat: float
    facing: int
    body: int
    color: Color
    braking: bool = False

    @property
    def far(self) -> float:
        return self.s + 0.5

    def cast(self, view: View) -> None:
        length, width, height = BODIES[self.body].size
        half = width / 2
        if self.s < view.camera.s + 0.5:
            return
        foot = [(self.lat + x, self.s + z) for x in (-half, half) for z in (0.0, length)]
        view.shadow(foot, 1.15)
        if view.air.sun is not None:
            dx, dz = view.air.sun[0] * height, view.air.sun[1] * height
            view.shadow(foot + [(x + dx * 0.8, z + dz * 0.8) for x, z in foot], 1.0)

    def draw(self, view: View) -> None:
        body = BODIES[self.body]
        length, width, height = body.size
        if self.s < view.camera.s + 0.5 or not view.sees(self.s, self.lat, width + length * 0.6):
            return
        view.stand(self.s, self.lat)
        clear, scale = view.clear(self.s), view.scale(self.s)
        wall = 1 if self.lat < view.camera.lat else -1
        detail = height * scale > 16
        shell = _shell(self.body, self.facing, wall)
        points = shell.points if detail else shell.points[: 2 * shell.count]
        p = view.corners(points + np.array((self.lat, 0.0, self.s)))
        n = shell.count
        lefts, rights = p[:n], p[n : 2 * n]
        dark = view.ink(_DARK, CAR, clear)
        glass = view.ink((52, 48, 45), CAR, clear)
        at = 2 * n
        if detail:
            for _ in range(3):  # tyres and underside; the body covers their upper halves
                view.convex(p[at : at + 4], dark)
                at += 4
        lit = 1.0 if view.air.sun is None else 1.1
        for i in shell.order:
            quad = np.array((lefts[i], rights[i], rights[i + 1], lefts[i + 1]))
            steep = shell.steep[i]
            view.convex(quad, view.ink(self.color, CAR, clear, lit * (1.18 - 0.38 * steep)))
            if i in shell.glass:
                view.convex(_inset(quad), view.ink((88, 78, 68), CAR, clear) if steep < 0.75 else glass)
        view.polygon(rights if wall > 0 else lefts, view.ink(self.color, CAR, clear, 0.72))
        rear = self.facing > 0
        glow: Color = (60, 55, 255 if self.braking else 190) if rear else (255, 250, 235)
        pair = [(self.lat + x, 0.45 * height, self.s) for x in (-0.42 * width, 0.42 * width)]
        view.lamp(pair, 0.09 if rear else 0.14, glow, CAR)
        if not detail:
            view.limb(lefts[0], rights[0], dark, 0.2 * scale)
            return
        for _ in range(2):
            view.convex(p[at : at + 4], glass)
            at += 4
        hub = view.ink((120, 122, 122), CAR, clear, 0.8)
        for _ in range(2):
            view.convex(p[at : at + 12], dark)
            view.convex(p[at + 12 : at + 24], hub)
            at += 24
        lamp: Color = (50, 45, 240 if self.braking else 165) if rear else (225, 230, 230)
        plate: Color = (80, 180, 194) if rear else (194, 198, 198)
        ends = (view.ink(self.color, CAR, clear, 0.5), *(view.ink(c, CAR, clear) for c in (lamp, lamp, plate)))
        for ink in ends:
            view.convex(p[at : at + 4], ink)
            at += 4


@dataclass(frozen=True)
class _Shell:
    """A car's points, seen from one side, relative to its near end; what `Car.draw` consumes in this order.

    Attributes:
        points: (N, 3): the outline left and right, tyres and underside, side windows, wheels, lamps and plate.
        count: Points of the outline.
        order: The outline's segments, the farthest first.
        steep: How upright each segment is, 0 to 1.
        glass: The segments with a window.
    """

    points: Floats
    count: int
    order: tuple[int, ...]
    steep: tuple[float, ...]
    glass: tuple[int, int]


@lru_cache(maxsize=64)
def _shell(body_index: int, facing: int, wall: int) -> _Shell:
    body = BODIES[body_index]
    length, width, height = body.size
    x = width / 2
    z, y = np.array(body.profile).T * ((length,), (height,))
    first, last = body.rear_glass, body.windscreen
    if facing < 0:
        z, y = length - z[::-1], y[::-1]
        first, last = len(z) - 2 - last, len(z) - 2 - first
    # Cars lean in above the belt line.
    half = x * (1 - 0.2 * np.clip((y / height - 0.62) / 0.38, 0, 1) * (1.0 if height < 2 else 0.3))
    left, right = np.column_stack([-half, y, z]), np.column_stack([half, y, z])
    rise, run = np.abs(np.diff(y)), np.abs(np.diff(z))
    parts = [left, right]

    def box(x0: float, x1: float, y0: float, y1: float, s: float) -> None:
        parts.append(np.array([(x0, y0, s), (x1, y0, s), (x1, y1, s), (x0, y1, s)]))

    box(-x + 0.02, -x + 0.24, 0, 0.4, 0.1 * length)
    box(x - 0.24, x - 0.02, 0, 0.4, 0.1 * length)
    box(-x + 0.1, x - 0.1, 0.22, 0.42, 0)
    outer = right if wall > 0 else left
    low0, top0, top1, low1 = outer[first], outer[first + 1], outer[last], outer[last + 1]
    for a, b in ((0.04, 0.5), (0.54, 0.96)):
        low_a, low_b = low0 + (low1 - low0) * a, low0 + (low1 - low0) * b
        top_a, top_b = top0 + (top1 - top0) * a, top0 + (top1 - top0) * b
        rim = 0.12
        parts.append(
            np.array(
                [
                    low_a + (top_a - low_a) * rim,
                    low_b + (top_b - low_b) * rim,
                    top_b + (low_b - top_b) * rim,
                    top_a + (low_a - top_a) * rim,
                ]
            )
        )
    radius = 0.33 if height < 2 else 0.45
    for at in (0.19, 0.81):
        for size in (1.0, 0.55):
            ring = radius * size * ROUND
            parts.append(np.column_stack([np.full(12, wall * x), radius + ring[:, 1], at * length + ring[:, 0]]))
    low, high = (0.44 * height, 0.6 * height) if facing > 0 else (0.36 * height, 0.47 * height)
    box(-0.98 * x, 0.98 * x, 0.2 * height, 0.34 * height, -0.01)
    box(-0.97 * x, -0.7 * x, low, high, -0.01)
    box(0.7 * x, 0.97 * x, low, high, -0.01)
    box(-0.3 * x, 0.3 * x, 0.36 * height, 0.43 * height, -0.01)
    middle = z[:-1] + z[1:]
    order = tuple(sorted(range(len(z) - 1), key=lambda i: -float(middle[i])))
    steep = tuple((rise / (rise + run + 1e-6)).tolist())
    return _Shell(np.concatenate(parts), len(z), order, steep, (first, last))


def _inset(quad: Ints) -> Ints:
    """Shrink a window a little: around it is the body."""
    return (quad * 13 + quad[[2, 3, 0, 1]] * 2 + 7) // 15
