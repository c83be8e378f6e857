"""What is thin and stands along the kerb of the built-in scene: lamps, signs, signals, bollards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lfd.data.street_view import POLE, SIGN, Color, Ints, View


@dataclass(frozen=True)
class Post:
    """Something thin: `lamp`, `sign`, `signal` or `bollard`."""

    s: float
    lat: float
    kind: str
    height: float
    look: float

    @property
    def far(self) -> float:
        return self.s

    def cast(self, view: View) -> None:
        sun = view.air.sun
        if sun is not None and self.s > view.camera.s + 1:
            tip = (self.lat + self.height * sun[0], self.s + self.height * sun[1])
            view.shadow([(self.lat - 0.08, self.s), (self.lat + 0.08, self.s), tip, (tip[0] - 0.1, tip[1])], 0.8)

    def draw(self, view: View) -> None:
        if not view.sees(self.s, self.lat, 2.0):
            return
        clear, scale = view.clear(self.s), view.scale(self.s)
        tones: tuple[Color, ...] = ((60, 60, 58), (125, 128, 128), (45, 62, 45), (150, 152, 152))
        ink = view.ink(tones[int(self.look * 97) % 4], POLE, clear)
        inward = -math.copysign(1.0, self.lat)
        points = [(self.lat, 0.0, self.s), (self.lat, self.height, self.s)]
        points += [(self.lat + inward * 1.5, self.height + 0.25, self.s)]
        foot, top, arm = view.corners(points)
        thick = {"lamp": 0.14, "sign": 0.08, "signal": 0.13, "bollard": 0.17}[self.kind] * scale
        view.limb(foot, top, ink, max(thick, 1.0))
        if self.kind == "lamp":
            view.limb(foot, (foot * 7 + top) // 8, ink, thick * 1.7)
            view.limb(top, arm, ink, thick * 0.7)
            view.limb((top + arm * 3) // 4, arm, view.ink((165, 170, 170), POLE, clear), thick * 1.5)
            view.lamp([(self.lat + inward * 1.3, self.height + 0.2, self.s)], 0.2, (150, 205, 255), POLE)
        elif self.kind == "sign":
            _plate(view, self, clear)
        elif self.kind == "signal":
            _signal(view, self, clear)


def _box(view: View, lat: float, low: float, high: float, half: float, s: float) -> Ints:
    return view.corners([(lat - half, high, s), (lat + half, high, s), (lat + half, low, s), (lat - half, low, s)])


def _plate(view: View, post: Post, clear: float) -> None:
    s, lat, top = post.s - 0.05, post.lat, post.height
    kind = (0, 1, 2, 3, 4, 0, 1, 2)[int(post.look * 8)]
    white, red, blue = (view.ink(c, SIGN, clear) for c in ((225, 228, 228), (40, 35, 190), (170, 90, 30)))
    scale = view.scale(s)
    if kind <= 1:  # a prohibition, or a mandatory sign
        center = view.corners([(lat, top, s)])[0]
        away = post.look * 97 % 1 < 0.3  # its grey back
        grey = view.ink((128, 130, 130), SIGN, clear)
        view.ball(center, max(0.42 * scale, 1.5), grey if away else red if kind else blue)
        if not away:
            view.ball(center, 0.28 * scale, white)
    elif kind == 2:
        for size, ink in ((0.55, red), (0.33, white)):
            low = top - size * 0.6
            view.convex(view.corners([(lat - size, low, s), (lat + size, low, s), (lat, top + size, s)]), ink)
    elif kind == 3:
        view.convex(_box(view, lat, top - 0.9, top + 0.2, 0.4, s), blue)
        view.convex(_box(view, lat, top - 0.5, top - 0.1, 0.2, s), white)
    else:  # a direction board
        view.convex(_box(view, lat, top - 0.7, top + 0.6, 0.95, s), blue)
        view.convex(_box(view, lat, top - 0.1, top + 0.1, 0.7, s), white)


def _signal(view: View, post: Post, clear: float) -> None:
    s, lat, top = post.s - 0.05, post.lat, post.height
    view.convex(_box(view, lat, top - 1.15, top + 0.1, 0.26, s), view.ink((28, 28, 28), SIGN, clear))
    lamps: tuple[Color, ...] = ((40, 40, 235), (40, 160, 240), (150, 225, 60))
    lit = int(post.look * 30) % 3
    for i, color in enumerate(lamps):
        center = view.corners([(lat, top - 0.15 - 0.38 * i, s - 0.02)])[0]
        view.ball(center, 0.13 * view.scale(s), view.ink(color, SIGN, clear, 1.0 if i == lit else 0.2))
    view.lamp([(lat, top - 0.15 - 0.38 * lit, s)], 0.13, lamps[lit], SIGN)
