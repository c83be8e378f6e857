"""Where two models differ, as a folder of pictures: the worst frames of a comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from export.parity import Parity, both_maps, restored
from export.runnable import Runnable
from lfd.charts import dim, key
from lfd.data import Dataset
from lfd.data.base import Sample
from lfd.errors import UsageError
from lfd.files import check_free, replacing, to_json
from lfd.picture import colorize, table
from lfd.preprocess import Image, resize_image, resize_labels
from lfd.spec import Labels

RECORD_FILE = "verify.json"

WIDTH = 384
"""Of a picture in the row that shows a frame."""
ONLY_A, ONLY_B, NEITHER = (230, 159, 0), (86, 180, 233), (204, 121, 167)
"""Which of two models that differ is right, in RGB; apart for the colour-blind."""


def check_folder(out: Path) -> None:
    """Refuse a folder that exists, or that cannot be made.

    Raises:
        UsageError: It is so.
    """
    if out.exists():
        raise UsageError(f"{out} exists; choose a new folder")
    check_free(out, overwrite=False)


def write_folder(
    out: Path,
    a: Runnable,
    b: Runnable,
    names: tuple[str, str],
    dataset: Dataset,
    parity: Parity,
    record: dict[str, Any],
) -> None:
    """Write a folder, all of it or nothing: a picture of each frame in the record's `worst`, and the record.

    Args:
        out: The folder.
        a: The reference.
        b: What was held against it.
        names: What to call them.
        dataset: What was compared on.
        parity: What came out.
        record: What goes into verify.json; the pictures' names are put into it.
    """
    with replacing(out.absolute()) as aside:
        aside.mkdir()
        for place, (entry, frame) in enumerate(zip(record["worst"], parity.frames, strict=False), start=1):
            sample = dataset[frame.position]
            first, second = (restored(found, a, sample) for found in both_maps(a, b, sample))
            entry["file"] = f"{place:02}_{re.sub(r'[^A-Za-z0-9_.-]', '_', sample.name)[-80:]}.png"
            drawn = draw(sample, (first, second), names, dataset.labels, frame.agreement)
            (aside / entry["file"]).write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
        (aside / RECORD_FILE).write_text(to_json(record), encoding="utf-8")


def draw(sample: Sample, maps: tuple[Image, Image], names: tuple[str, str], labels: Labels, agreement: float) -> Image:
    """Return frame, truth, both class maps and where they differ, in a row above a key: BGR uint8.

    Args:
        sample: The picture.
        maps: Of A and B, (H, W) at the labels' size.
        names: Of A and B.
        labels: The classes.
        agreement: Share of equal pixels, for the caption.
    """
    truth, (a, b) = sample.mask, maps
    cell_hw = min(max(1, round(WIDTH * truth.shape[0] / truth.shape[1])), 2 * WIDTH), WIDTH
    known = truth != labels.ignore_index
    where = dim(resize_image(sample.image, cell_hw))
    verdicts = {
        ONLY_A: known & (a == truth),
        ONLY_B: known & (b == truth),
        NEITHER: (a != truth) & (b != truth) | ~known,
    }
    for color, pixels in verdicts.items():
        where[resize_labels(((a != b) & pixels).astype(np.uint8), cell_hw) > 0] = color[::-1]
    right = [f"{float((found == truth)[known].mean()):.1%} right" if known.any() else "no labels" for found in maps]
    captions = [
        _short(sample.name, 44),
        "truth" if known.any() else "no labels",
        *(f"{letter} {_short(name, 24)}, {share}" for letter, name, share in zip("AB", names, right, strict=True)),
        f"they differ on {1 - agreement:.2%}",
    ]
    cells = [sample.image, *(colorize(resize_labels(m, cell_hw), labels) for m in (truth, a, b)), where]
    drawn = table([cells], captions, cell_hw)
    present = np.unique(np.stack([truth, a, b]))
    classes = [(labels.names[i], labels.colors[i]) for i in present if i < len(labels)]
    marks = [("only A is right", ONLY_A), ("only B is right", ONLY_B), ("neither, or no label", NEITHER)]
    return np.vstack([drawn, key([*classes, ("no label", (0, 0, 0))], drawn.shape[1]), key(marks, drawn.shape[1])])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2 - 1]}...{text[2 - most // 2 :]}"
