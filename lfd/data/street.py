"""The built-in scene, `street:`: a drive through a painted town with exact labels, from numpy and OpenCV alone.

It is a data set, `street:?size=240x320@val`, whose pictures come each from a drive of its own, and a
camera, `Street(seed, size_hw).render(n)`, a film of 25 frames a second with ground truth. The classes
are CamVid's. What stands where and who moves how follows from the seed and the frame number: the same
bytes each time, in any order, in any process. `street:?light=night&weather=fog` shows the same drives by night
and in fog, with the same labels (`lfd.data.street_light`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from lfd.console import parse_size
from lfd.data import camvid
from lfd.data import street_textures as textures
from lfd.data.base import Dataset, Sample
from lfd.data.query import parse_query
from lfd.data.street_chance import rng
from lfd.data.street_ground import paint_ground
from lfd.data.street_light import ANY, LIGHTS, WEATHERS, look, shine
from lfd.data.street_scene import paint_sky, paint_skyline
from lfd.data.street_view import View, table
from lfd.data.street_world import FPS, World
from lfd.errors import UsageError, unknown
from lfd.preprocess import Image

__all__ = ["FPS", "LABELS", "SPLIT_FRAMES", "Street", "StreetOptions", "open_split", "parse_options"]

LABELS = camvid.LABELS
SPLIT_FRAMES = {"train": 600, "val": 100, "test": 150}
"""Pictures in a split where `frames` does not say."""

MAX_FRAMES = 1_000_000
MAX_SEED = (1 << 31) - 1
MIN_SIDE, MAX_SIDE = 32, 4096
_BOUNDS = {"seed": (0, MAX_SEED), "frames": (1, MAX_FRAMES), "fps": (0, 1000)}
_LOOKS = {"light": (*LIGHTS, ANY), "weather": (*WEATHERS, ANY)}


@dataclass(frozen=True)
class StreetOptions:
    """What follows `street:`.

    Attributes:
        size_hw: Height and width of the pictures, px.
        seed: Chooses the drive, or the drives of a split.
        frames: Pictures in the split or in the film; None: SPLIT_FRAMES, or a film without end.
        fps: Pace as a camera, frames a second; 0: as fast as asked, a film.
        light: `day`, `dusk`, `night`, or `any`, which each drive chooses from by its seed.
        weather: `clear`, `fog`, or `any`.
    """

    size_hw: tuple[int, int] = (360, 480)
    seed: int = 0
    frames: int | None = None
    fps: int = 0
    light: str = "day"
    weather: str = "clear"


def parse_options(text: str) -> StreetOptions:
    """Read the text after `street:`, such as `?size=240x320&seed=7`.

    Raises:
        UsageError: An option that does not exist, or a value that does not fit.
    """
    options = StreetOptions()
    for key, value in parse_query("street", text, ("size", *_BOUNDS, *_LOOKS), "?size=240x320&seed=7").items():
        if key == "size":
            options = replace(options, size_hw=_size(value))
        elif key in _LOOKS:
            if value not in _LOOKS[key]:
                raise unknown(f"street option {key}", value[:40], _LOOKS[key])
            options = replace(options, **{key: value})  # type: ignore[arg-type]
        else:
            low, high = _BOUNDS[key]
            if not (value.isascii() and value.isdecimal() and len(value) < 20 and low <= int(value) <= high):
                raise UsageError(f"street option {key}={value[:40]!r}; expected a whole number from {low} to {high}")
            options = replace(options, **{key: int(value)})  # type: ignore[arg-type]
    return options


def _size(text: str) -> tuple[int, int]:
    height, width = parse_size(text)
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise UsageError(f"street option size={text!r}; expected sides from {MIN_SIDE} to {MAX_SIDE} px")
    return height, width


class StreetSplit:
    """A split: picture i is one frame out of the middle of a drive of its own.

    Args:
        options: Size, seed and number of pictures.
        split: `train`, `val` or `test`; their drives differ, and differ from those of the camera.
    """

    labels = LABELS

    def __init__(self, options: StreetOptions, split: str) -> None:
        self.options = options
        self._frames = SPLIT_FRAMES[split] if options.frames is None else options.frames
        # A camera's seed is at most MAX_SEED, so no drive of a split is also a camera's.
        self._first = ((1 + list(SPLIT_FRAMES).index(split)) << 56) + (options.seed << 20)

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, index: int) -> Sample:
        """Render picture `index`.

        Raises:
            IndexError: There is none.
        """
        if not 0 <= index < self._frames:
            raise IndexError(f"picture {index} of {self._frames}")
        seed, asked = self._first + index, self.options
        return Street(seed, asked.size_hw, asked.light, asked.weather).render(rng(seed, "frame").randrange(2000))


def open_split(path: str, split: str) -> Dataset:
    """Open `train`, `val` or `test`.

    Args:
        path: Options, as `parse_options` reads them.
        split: Its name.

    Raises:
        UsageError: An option or the split does not exist, or a value does not fit.
    """
    if split not in SPLIT_FRAMES:
        raise unknown("split", split, SPLIT_FRAMES)
    return StreetSplit(parse_options(path), split)


class Street:
    """One drive.

    Args:
        seed: Chooses the town, the clouds, the camera and the traffic.
        size_hw: Height and width of the frames, px.
        light: Of LIGHTS, or ANY.
        weather: Of WEATHERS, or ANY.
    """

    def __init__(self, seed: int, size_hw: tuple[int, int], light: str = "day", weather: str = "clear") -> None:
        self.seed = seed
        self.size_hw = size_hw
        self._world = World(seed)
        self._look = look(self._world, light, weather)
        self._sky: Image | None = None
        self._tone = _tone_table(self._look.develop.gain, self._look.develop.contrast)

    def render(self, index: int) -> Sample:
        """Return frame `index`, 0 or more, which is index / FPS seconds into the drive."""
        height, width = self.size_hw
        world = self._world
        camera = world.camera(index, self.size_hw)
        view = View(camera, self._look.air, np.empty((height, width, 4), np.uint8))
        if self._sky is None:
            self._sky = self._stretch_sky()
        paint_sky(view, self._sky)
        paint_ground(view, world.ground, world.ground_tint)
        paint_skyline(view, world.skyline)
        things = world.things(index, camera)
        for thing in things:
            thing.cast(view)
        view.lay_shadows()
        for thing in things:
            view.light = 1.0
            thing.draw(view)
        mask = np.asarray(cv2.extractChannel(view.canvas, 3), np.uint8)
        return Sample(self._develop(view, index), mask, f"street-{self.seed}-{index}")

    def _stretch_sky(self) -> Image:
        height, width = self.size_hw
        picture = cv2.LUT(textures.sky(self._world.sky)[0], table(*self._look.sky))
        if self._world.hand < 0:
            picture = picture[:, ::-1]
        rows = min(height, int((self._world.rise + 0.05) * height) + 4)
        # Wider than the frame, so that yaw can turn it.
        return np.asarray(cv2.resize(picture, (width + max(2, width // 8), rows)), np.uint8)

    def _develop(self, view: View, index: int) -> Image:
        """Return the (H, W, 3) picture that a sensor with a lens would deliver."""
        develop = self._look.develop
        seen = np.asarray(cv2.cvtColor(view.canvas, cv2.COLOR_BGRA2BGR), np.uint8)
        image = cv2.GaussianBlur(shine(seen, view) if view.air.dark else seen, (3, 3), develop.blur)
        image = cv2.LUT(image, self._tone)
        plus, minus = textures.grain(develop.grain)
        h, w = textures.GRAIN_HW
        r = rng(self.seed, "grain", index)
        top, left = -r.randrange(h), -r.randrange(w)
        for y in range(top, image.shape[0], h):
            for x in range(left, image.shape[1], w):
                part = image[max(y, 0) : y + h, max(x, 0) : x + w]
                y0, x0 = max(-y, 0), max(-x, 0)
                own = (slice(y0, y0 + part.shape[0]), slice(x0, x0 + part.shape[1]))
                cv2.subtract(cv2.add(part, plus[own]), minus[own], dst=part)
        return np.ascontiguousarray(image, np.uint8)


def _tone_table(gain: tuple[float, float, float], contrast: float) -> Image:
    x = np.arange(256, dtype=np.float64)[:, None] / 255 * np.array(gain)
    # A shoulder instead of clipping, then contrast about the exposed middle grey.
    x = np.where(x > 0.8, 0.8 + 0.2 * np.tanh((x - 0.8) / 0.2), x)
    pivot = 0.45 * min(1.0, max(gain))
    x = pivot + (x - pivot) * contrast
    return np.asarray(np.clip(x * 255, 4, 255).astype(np.uint8)[None])
