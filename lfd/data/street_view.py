"""The camera and the canvas of the built-in scene: a pinhole over a flat, gently bending road.

Road coordinates of a point are (lat, up, s) in metres: lat to the right of the road's centre line,
up above the ground, s along the road. With z = s - camera.s and bend = half the curvature:

    u = cx + f (lat - camera.lat + bend z^2) / z        v = horizon + f (camera.up - up) / z

The canvas is (H, W, 4) uint8: blue, green, red and the label. Every polygon, line and sprite writes
the four together, so a picture and its mask cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lfd.data.street_air import Air
from lfd.preprocess import Image

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int32]
Points = Sequence[tuple[float, float, float]]
Color = tuple[float, float, float]
"""Blue, green, red in [0, 255], as if in full daylight; the drive's exposure comes last."""

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

SHIFT = 3
"""Fractional bits of polygon corners: without them slow motion jumps by whole pixels."""

ONE = 1 << SHIFT

NEAR = 0.7
FAR = 135.0
"""Metres: nearer points are clamped, farther things are not drawn."""

ROUND = np.array([(math.cos(math.tau * k / 12), math.sin(math.tau * k / 12)) for k in range(12)])
"""(12, 2): a circle, coarse enough to draw by the hundred."""

_LEVELS = np.arange(256, dtype=np.float32)[:, None]
_REACH = 3000.0  # px; a corner farther out is clamped, so that fixed point cannot overflow


@lru_cache(maxsize=4096)
def table(gain: Color, fog: Color) -> Image:
    """Return the (1, 256, 4) table that multiplies a colour with a gain and adds fog; labels stay."""
    levels = _LEVELS * np.array((*gain, 1.0), np.float32) + np.array((*fog, 0.0), np.float32)
    return np.asarray(np.minimum(levels, 255.0, out=levels)[None], np.uint8)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        focal: Focal length, px.
        cx: Column of the principal point.
        horizon: Row of the horizon.
        up: Height above the road, m.
        lat: Offset from the centre line, m.
        s: Position along the road, m.
        bend: Half the road's curvature, 1/m.
    """

    focal: float
    cx: float
    horizon: float
    up: float
    lat: float
    s: float
    bend: float


class View:
    """A camera, the air and a canvas (H, W, 4) to draw on."""

    def __init__(self, camera: Camera, air: Air, canvas: Image) -> None:
        self.camera = camera
        self.air = air
        self.canvas = canvas
        self.height, self.width = canvas.shape[:2]
        self.shadows: list[tuple[Ints, float]] = []
        self.light = 1.0
        self.lamps: list[tuple[tuple[int, int], float, Color, int]] = []
        self._umbras: list[Ints] = []

    def pixels(self, points: Floats | Points) -> Floats:
        """Project (N, 3) points (lat, up, s) to (N, 2) columns and rows."""
        if not isinstance(points, np.ndarray):
            return np.array(self._few(points))
        c = self.camera
        z = np.maximum(points[:, 2] - c.s, NEAR)
        out = np.empty((len(points), 2))
        out[:, 0] = c.cx + c.focal * ((points[:, 0] - c.lat) / z + c.bend * z)
        out[:, 1] = c.horizon + c.focal * (c.up - points[:, 1]) / z
        np.maximum(out, -_REACH, out=out)
        return np.minimum(out, _REACH, out=out)

    def _few(self, points: Points) -> list[tuple[float, float]]:
        # For the four corners of most things plain Python is three times as fast as numpy's calls.
        c = self.camera
        focal, lat0, s0, bend, up0, cx, horizon = c.focal, c.lat, c.s, c.bend, c.up, c.cx, c.horizon
        out = []
        for lat, up, s in points:
            z = max(s - s0, NEAR)
            u = cx + focal * ((lat - lat0) / z + bend * z)
            v = horizon + focal * (up0 - up) / z
            u = -_REACH if u < -_REACH else min(u, _REACH)
            v = -_REACH if v < -_REACH else min(v, _REACH)
            out.append((u, v))
        return out

    def corners(self, points: Floats | Points) -> Ints:
        """Project (N, 3) points to (N, 2) fixed-point corners for the drawing calls."""
        if isinstance(points, np.ndarray):
            return np.rint(self.pixels(points) * ONE).astype(np.int32)
        return np.array([(round(u * ONE), round(v * ONE)) for u, v in self._few(points)], np.int32)

    def sees(self, s: float, lat: float, reach: float) -> bool:
        """Return whether something `reach` metres to either side of (lat, s) may be in the picture."""
        c = self.camera
        z = s - c.s
        if z < NEAR:
            return False
        u = c.cx + c.focal * ((lat - c.lat) / z + c.bend * z)
        margin = reach * c.focal / z + 2
        return bool(-margin < u < self.width + margin)

    def scale(self, s: float) -> float:
        """Return pixels a metre at s."""
        return self.camera.focal / max(s - self.camera.s, NEAR)

    def clear(self, s: float) -> float:
        """Return the fraction of a thing's daylight colour that reaches the camera from s."""
        return self.through(max(s - self.camera.s, 0.0))

    def through(self, z: float) -> float:
        """Return the fraction of a thing's daylight colour that reaches the camera over z metres."""
        return math.exp(-self.air.density * z) * self.air.lit(z)

    def ink(self, color: Color, label: int, clear: float = 1.0, light: float = 1.0) -> tuple[float, ...]:
        """Return the canvas value of a colour seen through the air."""
        own, fog = clear * light * self.light, 1.0 - clear
        b, g, r = color
        fog_b, fog_g, fog_r = self.air.haze
        return (
            min(255.0, b * own + fog_b * fog),
            min(255.0, g * own + fog_g * fog),
            min(255.0, r * own + fog_r * fog),
            float(label),
        )

    def lut(self, tint: Color, clear: float, light: float = 1.0) -> Image:
        """Return the (1, 256, 4) table that tints a texture (1.0 is unchanged) and lays the air over it."""
        # In steps of 2 %, so that the table lives for many frames of a film.
        clear = round(clear * 50) / 50
        own, fog = light * clear, 1.0 - clear
        h = self.air.haze
        return table((tint[0] * own, tint[1] * own, tint[2] * own), (h[0] * fog, h[1] * fog, h[2] * fog))

    def polygon(self, corners: Ints, ink: tuple[float, ...]) -> None:
        """Fill a polygon of any shape, corners as from `corners`."""
        cv2.fillPoly(self.canvas, [corners], ink, shift=SHIFT)

    def convex(self, corners: Ints, ink: tuple[float, ...]) -> None:
        """Fill a convex polygon."""
        cv2.fillConvexPoly(self.canvas, corners, ink, shift=SHIFT)

    def limb(self, start: Ints, end: Ints, ink: tuple[float, ...], thickness: float) -> None:
        """Draw a thick line between two corners; `thickness` in px, at least one."""
        a, b = (int(start[0]), int(start[1])), (int(end[0]), int(end[1]))
        cv2.line(self.canvas, a, b, ink, max(1, round(thickness)), cv2.LINE_8, SHIFT)

    def ball(self, center: Ints, radius: float, ink: tuple[float, ...]) -> None:
        """Fill a circle; `radius` in px."""
        cv2.circle(self.canvas, (int(center[0]), int(center[1])), max(4, int(radius * ONE)), ink, -1, 8, SHIFT)

    def textured(self, mips: tuple[Image, ...], corners: Floats, part: tuple[float, float], lut: Image) -> None:
        """Map a texture onto a convex quadrilateral.

        Args:
            mips: The texture (h, w, 4), then halved again and again.
            corners: (4, 2) px: left top, right top, right bottom, left bottom of the texture.
            part: The columns of the texture that are shown, as fractions of its width.
            lut: From `lut`.
        """
        x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0).tolist()
        x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (self.width, self.height)).tolist()
        if x1 <= x0 or y1 <= y0:
            return
        spread = float(min(np.abs(corners[1, 0] - corners[0, 0]) * 1.5, np.abs(corners[3, 1] - corners[0, 1])))
        level = 0
        while level + 1 < len(mips) and mips[level].shape[0] > 1.6 * spread:
            level += 1
        texture = mips[level]
        h, w = texture.shape[:2]
        left, right = part[0] * w, part[1] * w
        source = np.array([[left, 0], [right, 0], [right, h], [left, h]], np.float32)
        target = (corners - (x0, y0)).astype(np.float32)
        matrix = cv2.getPerspectiveTransform(source, target)
        size = (x1 - x0, y1 - y0)
        small = texture.shape[0] * texture.shape[1] < size[0] * size[1]
        if small:
            texture = np.asarray(cv2.LUT(texture, lut), np.uint8)
        patch = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        if not small:
            patch = cv2.LUT(patch, lut)
        stencil = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillConvexPoly(stencil, np.rint(target * ONE).astype(np.int32), 255, shift=SHIFT)
        cv2.copyTo(patch, stencil, self.canvas[y0:y1, x0:x1])

    def sprite(self, texture: Image, box: tuple[float, float, float, float], lut: Image) -> None:
        """Draw a picture with holes, upright.

        Args:
            texture: (h, w, 4); where the label is 255 it is see-through.
            box: Left, top, width, height on the canvas, px.
            lut: From `lut`.
        """
        left, top, width, height = box
        x0, y0 = max(0, int(left)), max(0, int(top))
        x1, y1 = min(self.width, int(left + width) + 1), min(self.height, int(top + height) + 1)
        if x1 <= x0 or y1 <= y0:
            return
        h, w = texture.shape[:2]
        matrix = np.array([[w / width, 0, (x0 - left) * w / width], [0, h / height, (y0 - top) * h / height]])
        flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
        patch = cv2.warpAffine(
            texture, matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0, 255)
        )
        patch = cv2.LUT(patch, lut)
        solid = cv2.bitwise_not(cv2.extractChannel(patch, 3))  # 0 where the label is 255
        cv2.copyTo(patch, solid, self.canvas[y0:y1, x0:x1])

    def lamp(self, points: Points, metres: float, color: Color, label: int) -> None:
        """Note lamps of a radius in metres, part of a thing of this label; by day they are no brighter than paint."""
        if self.air.dark:
            for (u, v), (_, _, s) in zip(self._few(points), points, strict=True):
                fade = math.exp(-self.air.density * max(s - self.camera.s, 0.0))
                shown = (color[0] * fade, color[1] * fade, color[2] * fade)
                self.lamps.append(((round(u), round(v)), metres * self.scale(s), shown, label))

    def stand(self, s: float, lat: float) -> None:
        """Set the light for what stands at (lat, s): dim in the shadow of a house."""
        u, v = self._few([(lat, 0.0, s)])[0]
        at = (u * ONE, v * ONE)
        dim = any(cv2.pointPolygonTest(hull, at, False) >= 0 for hull in self._umbras)
        self.light = 0.25 + 0.75 * self.air.shade if dim else 1.0

    def shadow(self, points: Sequence[Sequence[float]], strength: float, umbra: bool = False) -> None:
        """Note a shadow on the ground: the convex hull of (lat, s) points.

        Args:
            points: What it spans.
            strength: 1 is the air's shade.
            umbra: What stands inside is in the dark too.
        """
        if not self.air.bare:  # the air lies over the shadow too
            strength *= math.exp(-self.air.density * max(points[0][1] - self.camera.s, 0.0))
        flat = [(lat, 0.0, s) for lat, s in points]
        hull = cv2.convexHull(self.corners(flat)) if len(flat) > 2 else None
        if hull is not None:
            self.shadows.append((np.asarray(hull, np.int32), strength))
            if umbra:
                self._umbras.append(self.shadows[-1][0])

    def lay_shadows(self) -> None:
        """Darken the ground under the noted shadows; call it between the ground and what stands on it."""
        top = max(0, int(self.camera.horizon) + 1)
        if not self.shadows or top >= self.height:
            return
        shade = np.full((self.height - top, self.width), 255, np.uint8)
        for hull, strength in sorted(self.shadows, key=lambda item: item[1]):
            value = 255.0 * (1.0 - strength * (1.0 - self.air.shade))
            cv2.fillPoly(shade, [hull - (0, top << SHIFT)], (value,), shift=SHIFT)
        shade = cv2.blur(shade, (5, 3))
        ground = self.canvas[top:]
        keep = np.full_like(shade, 255)
        cv2.multiply(ground, cv2.merge([shade, shade, shade, keep]), dst=ground, scale=1 / 255)
