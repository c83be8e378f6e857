"""The ground of the built-in scene: a street painted once as seen from above, mapped under the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from lfd.data.street_textures import Random, clouds, finish, plain
from lfd.data.street_view import FAR, PAVEMENT, ROAD, TREE, Color, Floats, View
from lfd.preprocess import Image

GROUNDS = 8
BLOCK_M = 96.0
"""Length of a street block, and of the ground texture that repeats with it, m."""

GROUND_HALF_M, GROUND_LAT_PPM, GROUND_S_PPM = 20.0, 16, 8
GROUND_STRIDES = (1, 4, 16)
"""Rows of the ground texture averaged into one, a level: distance squeezes s far more than lat."""


@dataclass(frozen=True)
class Ground:
    """A street seen from above.

    Attributes:
        levels: (rows, columns, 4) textures, s by lat, averaged over GROUND_STRIDES rows.
        half: Half the width of the carriageway, m.
        pavement: Width of a pavement, m.
        parking: There is room for parked cars along the kerbs.
        junction: Where in the block a side street leaves, (s0, s1) in m; None without.
    """

    levels: tuple[Image, ...]
    half: float
    pavement: float
    parking: bool
    junction: tuple[float, float] | None


@lru_cache(maxsize=GROUNDS)
def ground(index: int) -> Ground:
    """Paint ground `index`: asphalt with marks, cracks and patches, kerbs, slabs, verges, a side street."""
    rng = np.random.default_rng([15, index])
    parking = index % 4 != 1
    half = (5.1 if parking else 3.6) + float(rng.uniform(-0.2, 0.2))
    pavement = float(rng.uniform(2.3, 4.3))
    junction = (80.0, 92.0) if index % 3 != 2 else None
    rows, cols = int(BLOCK_M * GROUND_S_PPM), int(2 * GROUND_HALF_M * GROUND_LAT_PPM)
    lat = (np.arange(cols) + 0.5) / GROUND_LAT_PPM - GROUND_HALF_M
    away, s = np.abs(lat)[None, :], (np.arange(rows) + 0.5)[:, None] / GROUND_S_PPM
    tone = float(rng.uniform(82, 118))
    asphalt = _asphalt(rng, rows, cols, tone)
    _paint(asphalt, rng, lat[None, :], s, half, parking, junction)
    slabs = plain((tone * 1.22, tone * 1.25, tone * 1.28), rng, (rows, cols), 0.5, 0.07)
    slabs[:: int(rng.integers(4, 8))] *= 0.8
    slabs[:, :: int(rng.integers(8, 14))] *= 0.8
    grass = bool(index % 2)
    verge = plain((45, 88, 80), rng, (rows, cols), 0.9, 0.2) if grass else slabs * 0.88
    outer = half + pavement
    side = (s > junction[0]) & (s < junction[1]) if junction else np.zeros_like(s, dtype=bool)
    road = (away < half) | (side & (away > 0))
    walk = ~road & (away < outer)
    picture = np.where(road[..., None], asphalt, np.where(walk[..., None], slabs, verge))
    kerb = ~road & (away < half + 0.16)
    picture[kerb] = picture[kerb] * 0.4 + 95
    gutter = (away > half - 0.22) & (away < half) & ~side
    picture[np.broadcast_to(gutter, road.shape)] *= 0.72
    out = finish(picture, ROAD)
    # Along lat the labels are Road 3, Pavement 4, Tree 5 in this order, so that the interpolation of
    # the label channel, rounded, never yields a class that is not there.
    out[walk, 3] = PAVEMENT
    out[~road & ~walk, 3] = TREE if grass else PAVEMENT
    levels = []
    for stride in GROUND_STRIDES:
        mean = out.reshape(rows // stride, stride, cols, 4).mean(axis=1)
        mean[..., 3] = out[stride // 2 :: stride, :, 3]
        levels.append(mean.astype(np.uint8))
    return Ground(tuple(levels), half, pavement, parking, junction)


def _asphalt(rng: Random, rows: int, cols: int, tone: float) -> Floats:
    out = plain((tone, tone * 0.99, tone * 0.97), rng, (rows, cols), 0.4, 0.08)
    for _ in range(14):  # repaired trenches
        y, x = int(rng.integers(0, rows)), int(rng.integers(200, cols - 200))
        out[y : y + int(rng.integers(10, 90)), x : x + int(rng.integers(10, 40))] *= rng.uniform(0.72, 1.15)
    cracks = np.ones((rows, cols), np.float32)
    for _ in range(40):
        points = np.cumsum(rng.normal(0, 9, (12, 2)) + rng.normal(0, 4, 2), axis=0)
        points += (rng.uniform(150, cols - 150), rng.uniform(0, rows))
        cv2.polylines(cracks, [points.astype(np.int32)], False, 0.6, 1)
    for _ in range(6):  # manholes
        spot = (int(rng.integers(240, cols - 240)), int(rng.integers(0, rows)))
        cv2.ellipse(cracks, spot, (6, 3), 0, 0, 360, 0.55, -1)
    return np.asarray(out * cracks[..., None], np.float32)


def _paint(
    asphalt: Floats,
    rng: Random,
    lat: Floats,
    s: Floats,
    half: float,
    parking: bool,
    junction: tuple[float, float] | None,
) -> None:
    """Lay road marks: centre dashes, edge lines, bays, a zebra, all a little worn."""
    lines = (np.abs(lat) < 0.07) & (s % 6 < 3.4)
    if rng.random() < 0.3:
        lines = (np.abs(np.abs(lat) - 0.15) < 0.06) & (s >= 0)
    if parking:
        lines |= (np.abs(np.abs(lat) - (half - 2.0)) < 0.05) & (s % 1.5 < 0.8)
    if rng.random() < 0.6:
        zebra = (s > 70) & (s < 73.5) & (np.abs(lat) < half - 0.3) & (lat % 1.1 < 0.55)
        lines |= zebra | ((np.abs(s - 68.5) < 0.15) & (lat > 0) & (lat < half))
    between = (s < junction[0]) | (s > junction[1]) if junction else s >= 0
    worn = clouds(rng, asphalt.shape[0], asphalt.shape[1], 24, 3)[..., None] > 0.3
    white = np.broadcast_to(lines, asphalt.shape[:2])[..., None] & worn
    np.copyto(asphalt, asphalt * 0.3 + 145, where=white)
    if rng.random() < 0.6:
        edge = (np.abs(np.abs(lat) - (half - 0.4)) < 0.05) & between
        if rng.random() < 0.5:
            edge |= (np.abs(np.abs(lat) - (half - 0.62)) < 0.05) & between
        yellow = np.broadcast_to(edge, asphalt.shape[:2])[..., None] & worn
        np.copyto(asphalt, asphalt * 0.4 + np.array((20, 95, 110), np.float32), where=yellow)


def paint_ground(view: View, ground: Ground, tint: Color) -> None:
    """Map the street as seen from above onto everything below the horizon."""
    camera = view.camera
    first = max(0, math.floor(camera.horizon) + 1)
    rows = np.arange(first, view.height, dtype=np.float32)
    if not rows.size:
        return
    z = camera.focal * camera.up / (rows + 0.5 - camera.horizon)
    lat0 = camera.lat - camera.bend * z * z + GROUND_HALF_M
    columns = np.arange(view.width, dtype=np.float32) + np.float32(0.5 - camera.cx)
    lat_px = (z[:, None] / camera.focal) * columns[None, :] + lat0[:, None]
    edge = 2 * GROUND_HALF_M * GROUND_LAT_PPM - 2
    lat_px = np.clip(lat_px * GROUND_LAT_PPM, 0, edge).astype(np.float32)
    along = (camera.s % BLOCK_M + z) % BLOCK_M * GROUND_S_PPM
    footprint = z * z / (camera.focal * camera.up) * GROUND_S_PPM
    # A row that covers many rows of the texture reads one that was averaged beforehand.
    levels = np.searchsorted(np.array([2.5, 10.0]), footprint)
    for level, stride in enumerate(GROUND_STRIDES):
        (own,) = np.nonzero(levels == level)
        if not own.size:
            continue
        a, b = int(own[0]), int(own[-1]) + 1
        s_px = np.repeat((along[a:b, None] / stride - 0.5).astype(np.float32), view.width, axis=1)
        picture = cv2.remap(ground.levels[level], lat_px[a:b], s_px, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        view.canvas[first + a : first + b] = picture
    near = view.canvas[first:]
    cv2.LUT(near, view.lut(tint, 1.0), dst=near)
    far = z > view.air.bare
    band = near[: int(far.sum())]
    if band.size:
        z = np.minimum(z[far], 2 * FAR)
        clear = (np.exp(-view.air.density * z) * view.air.lit(z))[:, None, None]
        fog = np.array(view.air.haze) * (1 - clear)
        band[..., :3] = np.minimum(band[..., :3] * clear + fog, 255)
