"""People in the built-in scene, on foot and on bicycles: joints in space, limbs drawn between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from lfd.data.street_view import BICYCLIST, ONE, PEDESTRIAN, ROUND, SHIFT, Color, View

_DARK: Color = (24, 24, 26)


@dataclass(frozen=True)
class Person:
    """Someone on foot; `heading` is (lat, s) of the walking direction, zero when standing."""

    s: float
    lat: float
    height: float
    heading: tuple[float, float]
    phase: float
    top: Color
    legs: Color
    skin: Color
    coat: bool = False

    @property
    def far(self) -> float:
        return self.s

    def cast(self, view: View) -> None:
        _small_shadow(view, self.lat, self.s, self.height, 0.25)

    def draw(self, view: View) -> None:
        h, scale = self.height, view.scale(self.s)
        if self.s < view.camera.s + 1.2 or not view.sees(self.s, self.lat, 0.7):
            return
        view.stand(self.s, self.lat)
        clear = view.clear(self.s)
        if h * scale < 15:
            self._draw_small(view, clear, scale)
            return
        dx, ds = self.heading
        px, ps = (ds, -dx) if dx or ds else (1.0, 0.0)
        swing = 0.5 * math.sin(self.phase) if dx or ds else 0.06
        bob = 0.012 * h * abs(math.cos(self.phase))
        points = []
        for sign in (1, -1):  # hip, knee, foot, shoulder, elbow, hand
            angle = sign * swing
            bend = 0.55 * max(0.0, sign * math.cos(self.phase)) if dx or ds else 0.0
            hip = (self.lat + sign * 0.05 * h * px, 0.5 * h + bob, self.s + sign * 0.05 * h * ps)
            knee = _swing(hip, 0.25 * h, angle + bend * 0.4, dx, ds)
            foot = _swing(knee, 0.25 * h, angle - bend, dx, ds)
            shoulder = (self.lat + sign * 0.115 * h * px, 0.81 * h + bob, self.s + sign * 0.115 * h * ps)
            elbow = _swing(shoulder, 0.17 * h, -angle * 0.8, dx, ds)
            hand = _swing(elbow, 0.16 * h, -angle * 0.8 + 0.35, dx, ds)
            points += [hip, knee, foot, shoulder, elbow, hand]
        points.append((self.lat + 0.01 * dx, 0.925 * h + bob, self.s))
        p = view.corners(points)
        legs, top, skin = (view.ink(c, PEDESTRIAN, clear) for c in (self.legs, self.top, self.skin))
        for k in (0, 6):
            view.limb(p[k], p[k + 1], legs, 0.085 * h * scale)
            view.limb(p[k + 1], p[k + 2], legs, 0.062 * h * scale)
        arm = view.ink(self.top, PEDESTRIAN, clear, 0.82)
        if scale > 9:
            for k in (3, 9):
                view.limb(p[k], p[k + 1], arm, 0.055 * h * scale)
                view.limb(p[k + 1], p[k + 2], arm, 0.045 * h * scale)
        hem = (p[0] + p[1]) // 2 if self.coat else p[0]
        hem2 = (p[6] + p[7]) // 2 if self.coat else p[6]
        view.polygon(np.array([p[3], p[9], hem2, hem]), top)
        view.limb((p[3] + p[9]) // 2, (p[0] + p[6]) // 2, top, 0.15 * h * scale)
        view.ball(p[12], 0.068 * h * scale, skin)
        if scale > 14:
            view.ball(p[12] - (0, int(0.03 * h * scale * ONE)), 0.062 * h * scale, view.ink(_DARK, PEDESTRIAN, clear))

    def _draw_small(self, view: View, clear: float, scale: float) -> None:
        h, stride = self.height, 0.08 * self.height * math.sin(self.phase)
        at = ((0.0, 0.5), (-0.07, 0.0), (0.07, 0.0), (0.0, 0.8), (0.0, 0.93))
        p = view.corners([(self.lat + x * h + math.copysign(stride, x) * (x != 0), y * h, self.s) for x, y in at])
        legs = view.ink(self.legs, PEDESTRIAN, clear)
        view.limb(p[0], p[1], legs, 0.1 * h * scale)
        view.limb(p[0], p[2], legs, 0.1 * h * scale)
        view.limb(p[0], p[3], view.ink(self.top, PEDESTRIAN, clear), 0.28 * h * scale)
        view.ball(p[4], 0.07 * h * scale, view.ink(self.skin, PEDESTRIAN, clear))


def _swing(
    joint: tuple[float, float, float], length: float, angle: float, dx: float, ds: float
) -> tuple[float, float, float]:
    out = length * math.sin(angle)
    return joint[0] + out * dx, joint[1] - length * math.cos(angle), joint[2] + out * ds


def _small_shadow(view: View, lat: float, s: float, height: float, half: float) -> None:
    if not 1.0 < s - view.camera.s < 45:
        return
    view.shadow([(lat + half * math.cos(t), s + half * math.sin(t)) for t in (0, 1, 2, 3, 4, 5)], 0.7)
    if view.air.sun is not None:
        dx, dz = view.air.sun[0] * height, view.air.sun[1] * height
        view.shadow([(lat - half, s), (lat + half, s), (lat + dx + half / 2, s + dz), (lat + dx - half / 2, s + dz)], 1)


@dataclass(frozen=True)
class Cyclist:
    """A rider on a bicycle along the road; `facing` +1 rides away from us."""

    s: float
    lat: float
    facing: int
    phase: float
    top: Color
    legs: Color
    skin: Color
    helmet: Color

    @property
    def far(self) -> float:
        return self.s

    def cast(self, view: View) -> None:
        _small_shadow(view, self.lat, self.s, 1.6, 0.35)

    def draw(self, view: View) -> None:
        scale, clear = view.scale(self.s), view.clear(self.s)
        if self.s < view.camera.s + 1.5 or not view.sees(self.s, self.lat, 0.8):
            return
        view.stand(self.s, self.lat)
        wheel = view.ink(_DARK, BICYCLIST, clear)
        for along in (0.53, -0.53) if self.facing > 0 else (-0.53, 0.53):
            ring = np.empty((12, 3))
            # Wheels are drawn a little skewed: seen exactly from behind a wheel has no area at all.
            ring[:, 0] = self.lat + 0.10 * ROUND[:, 0]
            ring[:, 1] = 0.34 + 0.34 * ROUND[:, 1]
            ring[:, 2] = self.s + self.facing * along + 0.34 * ROUND[:, 0]
            cv2.polylines(view.canvas, [view.corners(ring)], True, wheel, max(1, round(0.05 * scale)), 8, SHIFT)
        f = self.facing

        def at(lat: float, up: float, along: float) -> tuple[float, float, float]:
            return self.lat + lat, up, self.s + f * along

        points = [at(0, 0.34, -0.53), at(0, 0.95, -0.2), at(0, 0.32, 0.0), at(0, 0.95, 0.42), at(0, 0.34, 0.53)]
        points += [at(-0.28, 1.02, 0.42), at(0.28, 1.02, 0.42)]
        for sign in (1, -1):  # hip, knee, foot, shoulder
            turn = self.phase + (math.pi if sign < 0 else 0.0)
            foot = (0.17 * math.cos(turn), 0.32 + 0.17 * math.sin(turn))
            points += [at(sign * 0.1, 1.0, -0.18), at(sign * 0.15, 0.62 + foot[1] * 0.35, 0.22)]
            points += [at(sign * 0.11, foot[1], foot[0]), at(sign * 0.2, 1.45, 0.14)]
        points.append(at(0, 1.66, 0.24))
        p = view.corners(points)
        frame = view.ink((60, 50, 130), BICYCLIST, clear)
        for a, b in ((0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (5, 6)):
            view.limb(p[a], p[b], frame, 0.045 * scale)
        legs, top = view.ink(self.legs, BICYCLIST, clear), view.ink(self.top, BICYCLIST, clear)
        for k in (7, 11):
            view.limb(p[k], p[k + 1], legs, 0.15 * scale)
            view.limb(p[k + 1], p[k + 2], legs, 0.11 * scale)
            view.limb(p[k + 3], p[5 if k == 11 else 6], top, 0.09 * scale)
        view.polygon(np.array([p[10], p[14], p[11], p[7]]), top)
        view.limb((p[10] + p[14]) // 2, (p[7] + p[11]) // 2, top, 0.3 * scale)
        view.ball(p[15], 0.115 * scale, view.ink(self.skin, BICYCLIST, clear))
        view.ball(p[15] - (0, int(0.05 * scale * ONE)), 0.11 * scale, view.ink(self.helmet, BICYCLIST, clear))
