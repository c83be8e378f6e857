"""Surfaces of the built-in scene, painted once and shared by all drives: about 45 MB with the ground.

Every texture is (h, w, 4) uint8: blue, green, red and the label, as on the canvas.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from lfd.data.street_view import BUILDING, FENCE, SKY, TREE, Color, Floats
from lfd.preprocess import Image

FACADES, TREES, SKIES, FENCES = 30, 16, 10, 4
Random = np.random.Generator


def clouds(rng: Random, height: int, width: int, cells: int, octaves: int = 4) -> Floats:
    """Return (height, width) value noise in about [0, 1] that wraps around at its edges."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        n = cells << octave
        ny, nx = max(2, min(height, n)), max(2, min(width, n * width // height))
        grid = np.pad(rng.random((ny, nx), np.float32), 2, mode="wrap")
        sy, sx = height / ny, width / nx
        matrix = np.array([[1 / sx, 0, 2], [0, 1 / sy, 2]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        total += cv2.warpAffine(grid, matrix, (width, height), flags=flags) * 0.5 ** (octave + 1)
    return total


def finish(picture: Floats, label: int) -> Image:
    """Return (h, w, 3) colours of any range as (h, w, 4) uint8 with a label."""
    out = np.empty((*picture.shape[:2], 4), np.uint8)
    out[..., :3] = np.clip(picture, 0, 255)
    out[..., 3] = label
    return out


def _mips(texture: Image, count: int) -> tuple[Image, ...]:
    levels = [texture]
    for _ in range(count - 1):
        h, w = levels[-1].shape[:2]
        levels.append(np.asarray(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA), np.uint8))
    return tuple(levels)


def plain(color: Color, rng: Random, size: tuple[int, int], rough: float, grain: float) -> Floats:
    """Return a surface of a colour with stains (`rough`) and grain, (h, w, 3) float."""
    h, w = size
    light = 1.0 + rough * (clouds(rng, h, w, 4) - 0.5) + grain * rng.standard_normal((h, w), np.float32)
    return np.asarray(light[..., None] * np.array(color, np.float32), np.float32)


WALLS: tuple[Color, ...] = (
    (62, 80, 128),  # red brick
    (98, 128, 150),  # yellow brick
    (150, 160, 165),  # render
    (185, 195, 200),  # white render
    (112, 118, 120),  # grey stone
    (95, 92, 88),  # concrete, the colour of the road
    (130, 150, 170),  # sandstone
    (70, 75, 85),  # soot
    (165, 155, 140),  # pale blue render, the colour of the sky
    (120, 105, 90),  # glass and steel
)


def facade_floors(index: int) -> int:
    """Return how many floors facade `index` shows."""
    return (2, 3, 2, 4, 3, 5)[index % 6]


@lru_cache(maxsize=FACADES)
def facade(index: int) -> tuple[Image, ...]:
    """Return facade `index` (256, 256, 4) and its smaller levels: windows, doors, shops, a cornice."""
    rng = np.random.default_rng([11, index])
    wall = WALLS[index % len(WALLS)]
    picture = plain(wall, rng, (256, 256), 0.35, 0.05)
    floors, bays = facade_floors(index), int(rng.integers(2, 6))
    office = index % len(WALLS) in (5, 9)
    if index % len(WALLS) in (0, 1, 6):
        picture[::5] *= 0.86  # courses of brick
    step, bay = 256 / floors, 256 / bays
    trim = np.array((200, 205, 208) if rng.random() < 0.7 else (60, 60, 62), np.float32)
    glass = rng.uniform(25, 75)
    wide, tall = (0.86, 0.7) if office else (rng.uniform(0.34, 0.55), rng.uniform(0.48, 0.62))
    shop = rng.random() < 0.45
    for floor in range(floors):
        y = 256 - (floor + 1) * step
        if floor == 0 and shop:
            _shop(picture, rng, int(y), int(y + step))
            continue
        door = int(rng.integers(0, bays)) if floor == 0 else -1
        for column in range(bays):
            x = column * bay + bay * (1 - wide) / 2
            top, bottom = y + step * (1 - tall) * 0.5, y + step * (1 + tall) * 0.5
            if column == door:
                top, bottom = y + step * 0.3, y + step
            box = (int(x), int(top), int(x + bay * wide), int(bottom))
            _window(picture, rng, box, trim, glass * rng.uniform(0.6, 1.5), column == door)
    picture[:7] *= 0.6  # the shadow of the eaves
    picture[7:10] *= 1.2
    if office:
        picture[:: max(2, round(step))] *= 0.7
    picture[230:] *= np.linspace(1.0, 0.8, 26, dtype=np.float32)[:, None, None]
    return _mips(finish(picture, BUILDING), 5)


def _window(
    picture: Floats, rng: Random, box: tuple[int, int, int, int], trim: Floats, glass: float, door: bool
) -> None:
    x0, y0, x1, y1 = box
    picture[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3] = trim * rng.uniform(0.8, 1.0)
    if door:
        picture[y0:y1, x0:x1] = rng.uniform(20, 130, 3)
        return
    rows = np.linspace(1.5, 0.7, y1 - y0, dtype=np.float32)[:, None, None]
    picture[y0:y1, x0:x1] = rows * np.array((glass * 1.1, glass, glass * 0.9), np.float32)
    if rng.random() < 0.3:  # a curtain or a blind
        cut = int(y0 + (y1 - y0) * rng.uniform(0.2, 0.8))
        picture[y0:cut, x0:x1] = picture[y0:cut, x0:x1] * 0.5 + rng.uniform(50, 110)
    picture[y0:y1, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 1] = trim * 0.8
    picture[(y0 + y1) // 2 : (y0 + y1) // 2 + 2, x0:x1] = trim * 0.8
    picture[y1 + 2 : y1 + 5, max(0, x0 - 4) : x1 + 4] *= 0.6


def _shop(picture: Floats, rng: Random, top: int, bottom: int) -> None:
    height = bottom - top
    board = rng.uniform(20, 200, 3).astype(np.float32)
    picture[top + 4 : top + 4 + height // 4] = board
    for x in range(20, 236, int(rng.integers(9, 15))):  # lettering
        if rng.random() < 0.7:
            picture[top + 8 : top + height // 4, x : x + 6] = 255 - board
    panes = int(rng.integers(2, 5))
    for pane in range(panes):
        x0, x1 = pane * 256 // panes + 5, (pane + 1) * 256 // panes - 5
        inside = clouds(rng, bottom - top - height // 4 - 12, x1 - x0, 4)[..., None]
        picture[top + height // 4 + 8 : bottom - 4, x0:x1] = 25 + 110 * inside * rng.uniform(0.4, 1.0, 3)


@lru_cache(maxsize=TREES)
def tree(index: int) -> tuple[Image, ...]:
    """Return tree `index` (160, 128, 4) and smaller levels, trunk and crown; label 255 is see-through.

    0-7 are in leaf, 8-10 conifers, 11-13 bare, 14 and 15 bushes.
    """
    rng = np.random.default_rng([12, index])
    h, w = 160, 128
    solid = np.zeros((h, w), np.uint8)
    light = np.zeros((h, w), np.float32)
    trunk = np.zeros((h, w), np.uint8)
    bare, bush, conifer = 11 <= index <= 13, index >= 14, 8 <= index <= 10
    if bare:
        _branch(trunk, rng, (64.0, 159.0), -np.pi / 2, 42.0, 7.0)
    elif not bush:
        cv2.line(trunk, (64, 159), (64 + int(rng.integers(-4, 5)), 60), 255, int(rng.integers(5, 9)))
    for blob in range(0 if bare else 420):
        if conifer:
            y = rng.uniform(8, 140)
            x, level = 64 + rng.uniform(-1, 1) * (y - 4) * 0.34, y / 140
        else:
            angle, radius = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
            cy, ry, rx = (105, 52, 60) if bush else (58, 52, 58)
            y, x = cy + ry * radius * np.sin(angle), 64 + rx * radius * np.cos(angle)
            level = (y - cy + ry) / (2 * ry)
        size = int(rng.integers(2, 9))
        value = float(np.clip(1.25 - 0.75 * level + rng.normal(0, 0.16) + 0.0005 * blob, 0.3, 1.5))
        cv2.circle(solid, (int(x), int(y)), size, 255, -1)
        cv2.circle(light, (int(x), int(y)), size, value, -1)
    light *= 1.0 + 0.25 * rng.standard_normal((h, w), np.float32)
    holes = clouds(rng, h, w, 12, 3) < (0.24 if conifer else 0.3)
    solid[holes] = 0
    green = np.array((38, 84, 64), np.float32) * rng.uniform(0.82, 1.18, 3).astype(np.float32)
    if index in (3, 6):
        green = np.array((40, 85, 120), np.float32)  # autumn
    out = finish(light[..., None] * green, TREE)
    wood = (trunk > 0) & (solid == 0)
    out[wood, :3] = (np.array((55, 64, 74)) * rng.uniform(0.5, 1.0, (int(wood.sum()), 1))).astype(np.uint8)
    out[(solid == 0) & (trunk == 0), 3] = 255
    return tuple(np.ascontiguousarray(out[::k, ::k]) for k in (1, 2, 4))


def _branch(
    trunk: Image, rng: Random, start: tuple[float, float], angle: float, length: float, thickness: float
) -> None:
    end = (start[0] + length * float(np.cos(angle)), start[1] + length * float(np.sin(angle)))
    cv2.line(
        trunk, (int(start[0]), int(start[1])), (int(end[0]), int(end[1])), 255, max(1, round(thickness)), cv2.LINE_8
    )
    if length < 7:
        return
    for _ in range(3):
        _branch(trunk, rng, end, angle + rng.normal(0, 0.5), length * rng.uniform(0.62, 0.85), thickness * 0.62)


@lru_cache(maxsize=SKIES)
def sky(index: int) -> tuple[Image, Color]:
    """Return sky `index` (200, 512, 4) and the colour of the haze under it."""
    rng = np.random.default_rng([13, index])
    zenith, low, cloud, amount = (
        ((200, 150, 105), (225, 210, 190), (235, 235, 235), 0.55),
        ((180, 178, 175), (215, 215, 215), (150, 150, 152), 0.6),
        ((235, 232, 228), (245, 245, 245), (225, 225, 225), 0.3),
        ((215, 165, 110), (240, 225, 205), (245, 245, 245), 0.2),
        ((140, 125, 115), (185, 200, 225), (110, 105, 110), 0.7),
    )[index % 5]
    ramp = np.linspace(0, 1, 200, dtype=np.float32)[:, None, None] ** 1.3
    base = np.array(zenith, np.float32) * (1 - ramp) + np.array(low, np.float32) * ramp
    veil = np.clip((clouds(rng, 200, 512, 3, 5)[..., None] - 0.62 + 0.4 * amount) * 4, 0, 1)
    lit = np.array(cloud, np.float32) * (0.85 + 0.3 * clouds(rng, 200, 512, 6, 4)[..., None])
    picture = base * (1 - veil) + lit * veil
    haze = picture[-30:].mean(axis=(0, 1))
    return finish(picture, SKY), (float(haze[0]), float(haze[1]), float(haze[2]))


@lru_cache(maxsize=FENCES)
def fence(index: int) -> tuple[Image, ...]:
    """Return fence `index` (64, 256, 4) and smaller levels: boards, railings, mesh or a panelled barrier."""
    rng = np.random.default_rng([14, index])
    color = ((60, 85, 110), (45, 45, 42), (120, 125, 125), (150, 155, 155))[index % FENCES]
    picture = plain(color, rng, (64, 256), 0.4, 0.08)
    if index % FENCES == 0:
        picture[:, ::12] *= 0.5
    elif index % FENCES == 1:
        gaps = (np.arange(256) % 10) > 3
        picture[8:58, gaps] = picture[8:58, gaps] * 0.3 + 62  # the dim garden between the bars
    elif index % FENCES == 2:
        y, x = np.mgrid[:64, :256]
        net = ((x + y) % 9 > 1) & ((x - y) % 9 > 1)
        picture[net] = picture[net] * 0.25 + 70
        picture[:, ::64] = 140
    else:
        gaps = (np.arange(256) % 16) > 2
        picture[12:54, gaps] = picture[12:54, gaps] * 0.35 + 60
    picture[:3] *= 1.25
    return _mips(finish(picture, FENCE), 4)


GRAIN_HW = (384, 512)


@lru_cache(maxsize=8)
def grain(sigma: int) -> tuple[Image, Image]:
    """Return sensor noise, GRAIN_HW by 3: what is added and what is taken away, uint8."""
    rng = np.random.default_rng([16, sigma])
    luma = rng.standard_normal((*GRAIN_HW, 1), np.float32)
    noise = sigma * (0.8 * luma + 0.6 * rng.standard_normal((*GRAIN_HW, 3), np.float32))
    return np.clip(noise, 0, 255).astype(np.uint8), np.clip(-noise, 0, 255).astype(np.uint8)
