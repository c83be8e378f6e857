"""What stands still in the built-in scene: sky, skyline, buildings, trees, fences."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from lfd.data import street_textures as textures
from lfd.data.street_view import BUILDING, FAR, FENCE, ONE, SIGN, TREE, Color, View
from lfd.preprocess import Image


class Thing(Protocol):
    """Something that stands or moves on the street."""

    @property
    def far(self) -> float:
        """Its far end along the road, m: the painter starts with the farthest."""

    def cast(self, view: View) -> None:
        """Note its shadow."""

    def draw(self, view: View) -> None:
        """Draw it."""


def paint_sky(view: View, picture: Image) -> None:
    """Fill everything above the horizon, and a little below, from a picture (h, w, 4) wider than the canvas."""
    camera = view.camera
    rows = min(view.height, max(0, math.ceil(camera.horizon) + 2), picture.shape[0])
    margin = picture.shape[1] - view.width
    left = round(min(max(margin / 2 - (camera.cx - view.width / 2), 0), margin))
    # The picture's last row belongs to the horizon; pitch moves it up and down with the road.
    view.canvas[:rows] = picture[picture.shape[0] - rows :, left : left + view.width]


def paint_skyline(view: View, heights: tuple[tuple[int, float], ...]) -> None:
    """Draw the far end of the world, which only turns with the camera.

    Args:
        view: Where to draw.
        heights: (label, metres at the distance FAR) of equal steps from far left to far right.
    """
    camera = view.camera
    step = camera.focal * 9.0 / FAR
    shift = camera.cx + camera.focal * camera.bend * FAR - step * len(heights) / 2
    bottom = int(camera.horizon) + 2
    for i, (label, metres) in enumerate(heights):
        x0 = shift + i * step
        if x0 > view.width or x0 + 2 * step < 0:
            continue
        top = camera.horizon - camera.focal * metres / FAR
        color: Color = (62, 88, 78) if label == TREE else (100, 105, 112)
        ink = view.ink(color, label, view.through(FAR) * 0.85)
        a, b = (int(x0), int(top)), (int(x0 + step) + 1, bottom)
        if label == TREE:
            center, axes = (int(x0 + step / 2), bottom), (int(step * 0.9) + 1, max(1, bottom - a[1]))
            cv2.ellipse(view.canvas, center, axes, 0, 180, 360, ink, -1)
        else:
            cv2.rectangle(view.canvas, a, b, ink, -1)


@dataclass(frozen=True)
class Building:
    """A house along the road; `lat` is that of its facade, its depth goes away from the road."""

    s0: float
    s1: float
    lat: float
    height: float
    facade: int
    tint: Color
    roof: float
    roof_color: Color
    chimneys: tuple[float, ...] = ()
    board: float = 0.0

    @property
    def far(self) -> float:
        return self.s1

    def cast(self, view: View) -> None:
        sun = view.air.sun
        if sun is None or sun[0] * self.lat > 0:
            return
        reach = (self.lat + self.height * sun[0], self.height * sun[1])
        near, end = max(self.s0, view.camera.s + 1), max(self.s1, view.camera.s + 1)
        view.shadow(
            [(self.lat, near), (self.lat, end), (reach[0], end + reach[1]), (reach[0], near + reach[1])], 1.0, True
        )

    def _paint(self) -> Color:
        wall = textures.WALLS[self.facade % len(textures.WALLS)]
        return wall[0] * self.tint[0], wall[1] * self.tint[1], wall[2] * self.tint[2]

    def _light(self, view: View) -> tuple[float, float]:
        sun = view.air.sun
        if sun is None:
            return 1.0, 0.9
        return (1.12 if sun[0] * self.lat > 0 else 0.62), (1.0 if sun[1] > 0 else 0.66)

    def draw(self, view: View) -> None:
        camera, side = view.camera, math.copysign(1.0, self.lat)
        edge = abs(self.lat - camera.lat) * camera.focal / (0.62 * view.width)
        near = max(self.s0, camera.s + max(1.0, edge))
        if near >= self.s1:
            return
        front_light, end_light = self._light(view)
        clear = view.clear((near + self.s1) / 2)
        back = self.lat + side * 9.0
        mips = textures.facade(self.facade)
        lut = view.lut(self.tint, clear, front_light)
        if near == self.s0:  # the wall that faces the camera
            wall = view.pixels([(self.lat, self.height, near), (back, self.height, near), (back, 0, near)])
            corners = np.array([wall[0], wall[1], wall[2], (wall[0][0], wall[2][1])])
            if corners[:, 0].max() > 0 and corners[:, 0].min() < view.width:
                blank = (0.0, 0.02) if self.facade % 3 else (0.0, 0.6)
                view.textured(mips, corners, blank, view.lut(self.tint, clear, end_light * 0.85))
        self._roof(view, near, side, clear, front_light, end_light)
        quad = [(self.lat, self.height, near), (self.lat, self.height, self.s1)]
        quad += [(self.lat, -0.05, self.s1), (self.lat, -0.05, near)]
        corners = view.pixels(quad)
        if abs(corners[1, 0] - corners[0, 0]) < 5:  # too narrow for windows
            view.convex(view.corners(quad), view.ink(self._paint(), BUILDING, clear, front_light * 0.85))
        else:
            part = ((near - self.s0) / (self.s1 - self.s0), 1.0)
            view.textured(mips, corners, part, lut)
        if self.board and near < self.board < self.s1:
            _hanging_sign(view, self.lat, self.board, clear)

    def _roof(self, view: View, near: float, side: float, clear: float, front: float, end: float) -> None:
        top = self.height
        ridge = self.lat + side * 4.5
        if self.roof > 0.4:
            if near == self.s0:
                gable = view.corners(
                    [(self.lat, top, near), (ridge, top + self.roof, near), (self.lat + side * 9, top, near)]
                )
                view.convex(gable, view.ink(self._paint(), BUILDING, clear, end * 0.8))
            eaves = self.lat - side * 0.3
            slope = [(eaves, top - 0.1, near), (ridge, top + self.roof, near)]
            slope += [(ridge, top + self.roof, self.s1), (eaves, top - 0.1, self.s1)]
            view.convex(view.corners(slope), view.ink(self.roof_color, BUILDING, clear, front))
        for at in self.chimneys:
            s = self.s0 + at * (self.s1 - self.s0)
            if s > view.camera.s + 4:
                base = top + self.roof * 0.75
                box = [(ridge - 0.4, base, s), (ridge + 0.4, base, s)]
                box += [(ridge + 0.4, base + 1.8, s), (ridge - 0.4, base + 1.8, s)]
                view.convex(view.corners(box), view.ink((60, 75, 105), BUILDING, clear, front))


def _hanging_sign(view: View, lat: float, s: float, clear: float) -> None:
    inward = lat - math.copysign(1.2, lat)
    box = view.corners([(lat, 3.8, s), (inward, 3.8, s), (inward, 2.7, s), (lat, 2.7, s)])
    hue = s * 7.3 % 1.0
    view.convex(box, view.ink((60 + 150 * hue, 60, 200 - 150 * hue), SIGN, clear))


@dataclass(frozen=True)
class Tree:
    """A tree or a bush, always turned to the camera."""

    s: float
    lat: float
    height: float
    width: float
    kind: int
    tint: Color

    @property
    def far(self) -> float:
        return self.s

    def cast(self, view: View) -> None:
        sun = view.air.sun
        if sun is None or self.s < view.camera.s + 1.5:
            return
        up = self.height * 0.6
        lat, s, r = self.lat + up * sun[0], self.s + up * sun[1], self.width * 0.45
        turn = [0.7 * k for k in range(9)]
        if s > view.camera.s + r + 1:
            strength = 0.5 if 11 <= self.kind <= 13 else 0.9
            view.shadow([(lat + r * math.cos(t), s + r * math.sin(t) * 1.1) for t in turn], strength)
        view.shadow([(self.lat - 0.15, self.s), (self.lat + 0.15, self.s), (lat, s)], 0.9)

    def draw(self, view: View) -> None:
        if not view.sees(self.s, self.lat, self.width / 2):
            return
        foot = view.pixels([(self.lat, 0.0, self.s)])[0]
        scale = view.scale(self.s)
        w, h = self.width * scale, self.height * scale
        mips = textures.tree(self.kind)
        level = 0 if h > 110 else 1 if h > 50 else 2
        light = 1.0 if view.air.sun is None else 1.15
        lut = view.lut(self.tint, view.clear(self.s), light)
        view.sprite(mips[level], (foot[0] - w / 2, foot[1] - h + 1, max(w, 1.0), max(h, 1.0)), lut)


@dataclass(frozen=True)
class Fence:
    """A fence, a railing or a hoarding along the road."""

    s0: float
    s1: float
    lat: float
    height: float
    kind: int
    tint: Color

    @property
    def far(self) -> float:
        return self.s1

    def cast(self, view: View) -> None:
        sun = view.air.sun
        if sun is not None and self.s0 > view.camera.s + 1 and sun[0] * self.lat < 0:
            lat, ds = self.lat + self.height * sun[0], self.height * sun[1]
            view.shadow([(self.lat, self.s0), (self.lat, self.s1), (lat, self.s1 + ds), (lat, self.s0 + ds)], 0.6)

    def draw(self, view: View) -> None:
        camera = view.camera
        near = max(self.s0, camera.s + max(1.0, abs(self.lat - camera.lat) * camera.focal / (0.62 * view.width)))
        if near >= self.s1:
            return
        quad = [(self.lat, self.height, near), (self.lat, self.height, self.s1)]
        corners = view.pixels([*quad, (self.lat, 0, self.s1), (self.lat, 0, near)])
        clear = view.clear((near + self.s1) / 2)
        if abs(corners[1, 0] - corners[0, 0]) < 5:
            tone = 85 * self.tint[0]
            view.convex(np.rint(corners * ONE).astype(np.int32), view.ink((tone, tone, tone), FENCE, clear))
            return
        lut = view.lut(self.tint, clear)
        part = ((near - self.s0) / (self.s1 - self.s0), 1.0)
        view.textured(textures.fence(self.kind), corners, part, lut)
