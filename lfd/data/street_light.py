"""Light and weather of the built-in scene: `street:?light=night&weather=fog`.

They change how a drive looks and never what is where: its labels are those of the clear day. What differs from
drive to drive, such as how far one sees, follows from the drive's seed.

    day, clear    as the drive's own weather has it
    dusk          after sunset: no shadows, half of the light, blue, and a noisier sensor
    night         headlamps that reach some fifteen metres and little above the horizon, some light from the town, lamps
                  that glow, and the noisiest sensor
    fog           I = J t + A (1 - t), t = exp(-b z) (Koschmieder 1924) over the distance z, with b = 3.912 / V for a
                  visibility V of 50 to 150 m, where a contrast of 2 % is left; no shadows, and the sky is gone
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lfd.data.street_air import Air
from lfd.data.street_chance import rng
from lfd.data.street_view import Color, View
from lfd.data.street_world import Develop, World
from lfd.preprocess import Image

LIGHTS = ("day", "dusk", "night")
WEATHERS = ("clear", "fog")
ANY = "any"
"""In place of a light or a weather: each drive has one by its seed."""

_VISIBILITY_M = (50.0, 150.0)
_DUSK_GRAIN, _NIGHT_GRAIN = 11, 14
_SKYGLOW: Color = (24, 25, 32)
"""What the lamps of a town leave in the air at night."""


@dataclass(frozen=True)
class Look:
    """How a drive looks.

    Attributes:
        air: Between things and camera, with the light that reaches the things.
        develop: The sensor.
        sky: What the sky's colours are multiplied with, and what is added.
    """

    air: Air
    develop: Develop
    sky: tuple[Color, Color] = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def look(world: World, light: str, weather: str) -> Look:
    """Return how a drive looks in a light of LIGHTS and a weather of WEATHERS, either of which may be ANY."""
    r = rng(world.seed, "light")
    drawn = r.choice(LIGHTS), r.choice(WEATHERS)
    light, weather = (d if asked == ANY else asked for asked, d in zip((light, weather), drawn, strict=True))
    visibility, reach, town = r.uniform(*_VISIBILITY_M), r.uniform(12, 20), r.uniform(0.25, 0.5)
    found = Look(world.air, world.develop)
    if weather == "fog":
        found = _fog(found, visibility)
    if light == "dusk":
        air, (tint, added) = replace(found.air, sun=None), found.sky
        return Look(air, _exposed(found.develop, (0.62, 0.5, 0.45), _DUSK_GRAIN), (_scaled(tint, 1.25), added))
    if light == "night":
        haze = _mixed(found.air.haze, _SKYGLOW, 0.96)
        air = replace(found.air, haze=haze, sun=None, bare=0.0, reach=reach, town=town)
        tint, added = found.sky
        sky = _scaled(tint, 0.07), _mixed(added, _SKYGLOW, 0.96)
        return Look(air, _exposed(found.develop, (0.9, 1.05, 1.15), _NIGHT_GRAIN), sky)
    return found


def _fog(clear: Look, visibility: float) -> Look:
    grey = sum(clear.air.haze) / 3
    haze = _mixed(clear.air.haze, (grey, grey, grey), 0.6)
    veil = 0.95  # the way up through the fog is longer than the visibility
    air = replace(clear.air, haze=haze, density=3.912 / visibility, sun=None, bare=0.0)
    return replace(clear, air=air, sky=((1 - veil,) * 3, _scaled(haze, veil)))


def _exposed(develop: Develop, light: Color, grain: int) -> Develop:
    # An exposure by hand of the day is half made up for by the automatic one in little light.
    blue, green, red = (math.sqrt(g) * x for g, x in zip(develop.gain, light, strict=True))
    return replace(develop, gain=(blue, green, red), grain=grain)


def _scaled(color: Color, factor: float) -> Color:
    return color[0] * factor, color[1] * factor, color[2] * factor


def _mixed(a: Color, b: Color, share: float) -> Color:
    """Return a colour that is `share` of b."""
    x, y = _scaled(a, 1 - share), _scaled(b, share)
    return x[0] + y[0], x[1] + y[1], x[2] + y[2]


def shine(image: Image, view: View) -> Image:
    """Return a picture (H, W, 3) under headlamps beside the camera, with the view's lamps and the glare around them.

    The beam ends a little above the horizon and falls off to the sides; half of the light is the town's.
    """
    camera = view.camera
    up = (np.arange(view.height, dtype=np.float32) + 0.5 - camera.horizon) / camera.focal
    side = (np.arange(view.width, dtype=np.float32) + 0.5 - camera.cx) / camera.focal
    beam = np.outer(1 / (1 + np.exp(np.minimum(-up / 0.03, 50))), np.exp(-((side / 0.7) ** 2) / 2))
    share = (255 * (0.5 + 0.5 * beam)).astype(np.uint8)
    lit = cv2.multiply(image, cv2.merge([share, share, share]), scale=1 / 255)
    lamps = np.zeros_like(lit)
    for (x, y), radius, color, label in view.lamps:
        inside = 0 <= x < view.width and 0 <= y < view.height
        if inside and (view.canvas[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, 3] == label).any():  # nothing hides it
            cv2.circle(lamps, (x, y), max(1, round(radius)), color, -1, cv2.LINE_AA)
    glare = cv2.GaussianBlur(lamps, (0, 0), view.height / 60)
    return np.asarray(cv2.addWeighted(cv2.add(lit, lamps), 1.0, glare, 1.5, 0.0), np.uint8)
