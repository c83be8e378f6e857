from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.frames import Frame
from deploy.sources import open_source
from lfd.data import camvid, open_dataset
from lfd.data.base import Sample
from lfd.data.street import FPS, SPLIT_FRAMES, Street, StreetOptions, open_split, parse_options
from lfd.data.street_ground import paint_ground
from lfd.data.street_light import LIGHTS, WEATHERS, look
from lfd.data.street_view import Camera, View
from lfd.data.street_world import World
from lfd.errors import UsageError

SIZE = (120, 160)
K = len(camvid.LABELS)


def digest(sample: Sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes()).hexdigest()


def shares(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of the pixels of each class, and of the pictures that show it."""
    data = open_split(f"?size=180x240&frames={count}", split)
    counts = np.stack([np.bincount(data[i].mask.ravel(), minlength=K) for i in range(count)])
    return counts.sum(axis=0) / counts.sum(), (counts > 0).mean(axis=0)


def test_a_frame_has_the_same_bytes_in_any_order_and_from_any_object() -> None:
    forward = Street(5, SIZE)
    films = [digest(forward.render(i)) for i in range(6)]
    backward = Street(5, SIZE)
    assert [digest(backward.render(i)) for i in reversed(range(6))] == films[::-1]
    # After many other blocks of the street have come and gone.
    forward.render(100_000)
    assert digest(forward.render(3)) == films[3]
    assert len(set(films)) == 6


def test_a_frame_has_the_same_bytes_in_a_new_process() -> None:
    code = (
        "import hashlib; from lfd.data.street import Street; s = Street(9, (120, 160)).render(77);"
        "print(hashlib.sha256(s.image.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == digest(Street(9, SIZE).render(77))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    height=st.integers(32, 150),
    width=st.integers(32, 200),
    index=st.integers(0, 10_000),
)
def test_any_size_and_seed_gives_a_picture_with_its_mask(seed: int, height: int, width: int, index: int) -> None:
    sample = Street(seed, (height, width)).render(index)
    assert sample.image.shape == (height, width, 3)
    assert sample.mask.shape == (height, width)
    assert sample.image.dtype == sample.mask.dtype == np.uint8
    assert sample.image.flags.c_contiguous and sample.mask.flags.c_contiguous
    assert int(sample.mask.max()) < K
    assert sample.name == f"street-{seed}-{index}"


@pytest.mark.parametrize("size", [(32, 32), (33, 1001), (999, 35), (720, 1280)])
def test_extreme_sizes(size: tuple[int, int]) -> None:
    sample = Street(1, size).render(12)
    assert sample.mask.shape == size
    assert int(sample.mask.max()) < K
    assert float(sample.image.std()) > 5


def test_the_classes_come_in_the_shares_of_a_real_street() -> None:
    share, present = shares("val", 150)
    percent = dict(zip(camvid.LABELS.names, (100 * share).round(3).tolist(), strict=True))
    # CamVid's shares; a factor of two either way.
    real = (17, 23, 1, 32, 4.5, 10, 1.2, 1.1, 6, 0.6, 0.3)
    for value, expected in zip(percent.values(), real, strict=True):
        assert expected / 2 < value < expected * 2, percent
    assert float(present.min()) > 0.3, "each class is worth training on"


def test_drives_differ_in_light_and_layout() -> None:
    data = open_split("?size=60x80&frames=30", "train")
    means = np.array([data[i].image.mean() for i in range(30)])
    road = np.array([(data[i].mask == 3).mean() for i in range(30)])
    assert means.std() > 15
    assert road.std() > 0.03


def test_no_picture_is_in_two_splits() -> None:
    seen: set[str] = set()
    names: set[str] = set()
    for split in SPLIT_FRAMES:
        for seed in (0, 1):
            data = open_split(f"?size=32x48&frames=8&seed={seed}", split)
            samples = [data[i] for i in range(8)]
            seen.update(digest(sample) for sample in samples)
            names.update(sample.name.rsplit("-", 1)[0] for sample in samples)
    assert len(seen) == len(names) == 48
    # A camera's seed has 31 bits.
    assert all(int(name.removeprefix("street-")) >= 2**31 for name in names)


@pytest.mark.parametrize("seed", [2, 5, 11])
def test_a_film_moves_but_does_not_jump(seed: int) -> None:
    street = Street(seed, SIZE)
    masks = [street.render(i).mask for i in range(5)]
    for before, after in pairwise(masks):
        assert 0.85 < (before == after).mean() < 1.0
    later = street.render(2 * FPS).mask
    assert (masks[0] == later).mean() < min((a == b).mean() for a, b in pairwise(masks))
    assert (masks[0] == later).mean() < 0.93


def test_the_picture_agrees_with_the_mask() -> None:
    """Edges of the mask are edges of the picture: the gradient is larger there than elsewhere."""
    on, off = [], []
    data = open_split("?frames=6", "val")
    for i in range(6):
        sample = data[i]
        gray = sample.image.astype(np.float32).mean(axis=2)
        step = np.abs(np.diff(gray, axis=1))
        edge = np.diff(sample.mask.astype(int), axis=1) != 0
        on.append(step[edge].mean())
        off.append(step[~edge].mean())
    assert np.mean(on) > 1.5 * np.mean(off)


def test_the_data_set_is_a_data_set() -> None:
    data = open_dataset("street:?size=48x64@val", "train")
    assert len(data) == SPLIT_FRAMES["val"]
    assert data.labels == camvid.LABELS
    assert data[0].image.shape == (48, 64, 3)
    for index in (-1, SPLIT_FRAMES["val"]):
        with pytest.raises(IndexError):
            data[index]
    assert len(open_dataset("street:", "train")) == SPLIT_FRAMES["train"]
    assert sum(1 for _ in iter(open_split("size=32x32&frames=3", "test"))) == 3  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="unknown split 'valid'"):
        open_split("", "valid")


LOOKS = [(light, weather) for light in LIGHTS for weather in WEATHERS if (light, weather) != ("day", "clear")]


@pytest.mark.parametrize(("light", "weather"), LOOKS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), index=st.integers(0, 10_000), size=st.sampled_from([SIZE, (33, 101), (96, 64)]))
def test_another_light_changes_the_picture_and_not_the_truth(
    light: str, weather: str, seed: int, index: int, size: tuple[int, int]
) -> None:
    day, other = Street(seed, size).render(index), Street(seed, size, light, weather).render(index)
    assert np.array_equal(day.mask, other.mask) and other.name == day.name
    assert other.image.shape == (*size, 3) and other.image.dtype == np.uint8 and other.image.flags.c_contiguous
    assert np.abs(day.image.astype(int) - other.image).mean() > 1
    assert digest(Street(seed, size, light, weather).render(index)) == digest(other)


@pytest.mark.parametrize("light", ["dusk", "night"])
def test_less_light_is_darker(light: str) -> None:
    """Over many drives: one that was underexposed by day may gain by the automatic exposure."""
    day, other = ([Street(seed, SIZE, kind).render(50).image.mean() for seed in range(12)] for kind in ("day", light))
    assert np.mean(other) < 0.7 * np.mean(day)


def test_fog_is_koschmieders_law_over_the_ground() -> None:
    """I = J t + A (1 - t), t = exp(-b z), z = f up / (v - horizon); at the visibility 2 % of the contrast is left."""
    camera = Camera(focal=200.0, cx=80.0, horizon=50.0, up=1.5, lat=1.0, s=12.0, bend=0.0)
    for seed in range(3):
        world = World(seed)
        fog = look(world, "day", "fog").air
        clear = replace(fog, density=0.0)
        bare, seen = (View(camera, air, np.zeros((120, 160, 4), np.uint8)) for air in (clear, fog))
        for view in (bare, seen):
            paint_ground(view, world.ground, (1.0, 1.0, 1.0))
        z = camera.focal * camera.up / (np.arange(52, 120) + 0.5 - camera.horizon)
        t = np.exp(-fog.density * z)[:, None, None]
        expected = bare.canvas[52:, :, :3] * t + np.array(fog.haze) * (1 - t)
        assert np.abs(expected - seen.canvas[52:, :, :3]).max() < 1.5
        assert np.array_equal(bare.canvas[..., 3], seen.canvas[..., 3])
        assert 50 <= -math.log(0.02) / fog.density <= 150.1


def test_headlamps_fall_off_with_distance() -> None:
    air = look(World(4), "night", "clear").air
    at = [air.lit(z) for z in (0.0, air.reach, 100 * air.reach)]
    assert at == pytest.approx([1.0, (1 + air.town) / 2, air.town], abs=1e-3)
    assert look(World(4), "day", "clear").air.lit(500.0) == 1.0


def test_lamps_are_the_brightest_at_night_and_show_their_own_class() -> None:
    """Where a night picture saturates, the truth is a car, a pole or a sign, or their glare beside them."""
    for seed in (3, 7, 12):
        sample = Street(seed, (180, 240), "night").render(100)
        bright = sample.image.max(axis=2) > 230
        assert 0 < bright.mean() < 0.05
        near = cv2.dilate(np.isin(sample.mask, (2, 6, 8)).astype(np.uint8), np.ones((9, 9), np.uint8))
        assert near[bright].mean() > 0.95


def test_a_light_has_the_same_bytes_in_any_order_and_in_a_new_process() -> None:
    forward = Street(5, SIZE, "night", "fog")
    films = [digest(forward.render(i)) for i in range(4)]
    backward = Street(5, SIZE, "night", "fog")
    assert [digest(backward.render(i)) for i in reversed(range(4))] == films[::-1]
    code = (
        "import hashlib; from lfd.data.street import Street; s = Street(5, (120, 160), 'night', 'fog').render(2);"
        "print(hashlib.sha256(s.image.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == films[2]


def test_any_light_is_one_of_them_by_the_drive() -> None:
    text = "?size=32x48&frames=24"
    seen: dict[tuple[str, str], int] = {}
    mixed = open_split(f"{text}&light=any&weather=any", "train")
    every = {
        (light, weather): open_split(f"{text}&light={light}&weather={weather}", "train")
        for light in LIGHTS
        for weather in WEATHERS
    }
    for i in range(24):
        image = mixed[i].image
        (found,) = [look for look, data in every.items() if np.array_equal(data[i].image, image)]
        seen[found] = seen.get(found, 0) + 1
    assert len(seen) >= 5


def test_a_camera_has_the_light_that_was_asked_for() -> None:
    source = open_source("street:?size=48x64&frames=2&seed=1&light=night&weather=fog")
    frames = [frame for frame in source if isinstance(frame, Frame)]
    street = Street(1, (48, 64), "night", "fog")
    for index, frame in enumerate(frames):
        sample = street.render(index)
        assert frame.truth is not None and np.array_equal(frame.truth, sample.mask)
        assert np.array_equal(frame.image, sample.image)
    assert len(frames) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", StreetOptions()),
        ("?", StreetOptions()),
        ("?size=240x320", StreetOptions(size_hw=(240, 320))),
        ("size=240X321&seed=7&frames=500&fps=30", StreetOptions((240, 321), 7, 500, 30)),
        ("?fps=0&seed=0", StreetOptions()),
        ("?frames=1000000", StreetOptions(frames=1_000_000)),
        ("?light=night&weather=any", StreetOptions(light="night", weather="any")),
    ],
)
def test_options(text: str, expected: StreetOptions) -> None:
    assert parse_options(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?sizes=240x320", r"unknown street option 'sizes'. Did you mean 'size'\?"),
        ("?size=240", "size '240'; expected HEIGHTxWIDTH"),
        ("?size=16x320", "size='16x320'; expected sides from 32"),
        ("?size=9000x320", "size='9000x320'; expected sides from 32 to"),
        ("?seed=-1", "seed='-1'; expected a whole number from 0 to 2147483647"),
        ("?seed=2147483648", "expected a whole number from 0 to 2147483647"),
        ("?seed=x", "seed='x'; expected a whole number"),
        ("?seed=\u0663", "expected a whole number"),
        ("?seed=" + "9" * 5000, "expected a whole number"),
        ("?frames=0", "frames='0'; expected a whole number from 1 to 1000000"),
        ("?frames=1000001", "expected a whole number from 1 to 1000000"),
        ("?frames=", "frames=''; expected"),
        ("?fps=-3", "fps='-3'; expected"),
        ("?fps=2.5", "fps='2.5'; expected"),
        ("?seed", "expected KEY=VALUE"),
        ("/some/path", "expected KEY=VALUE"),
        ("?seed=1&seed=2", "seed.*twice"),
        ("?light=nigth", r"unknown street option light 'nigth'. Did you mean 'night'\?"),
        ("?weather=snow", "unknown street option weather 'snow'. Known: any, clear, fog"),
    ],
)
def test_bad_options_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse_options(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
