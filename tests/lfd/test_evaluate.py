"""The one accuracy: known maps give known numbers, and what does not fit is said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from lfd.data.base import Sample
from lfd.errors import LfdError, ModelError
from lfd.evaluate import check_labels, evaluate
from lfd.preprocess import Image
from lfd.spec import Labels, Preprocess

LABELS = Labels(("road", "sky", "tree"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))


@dataclass
class Made:
    """Pictures whose blue channel is the label: a model that reads it is always right."""

    masks: list[Image]
    labels: Labels = LABELS

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> Sample:
        mask = self.masks[index]
        return Sample(np.repeat(mask[..., None], 3, 2), mask, f"picture {index}")


def halves(first: int, second: int, size_hw: tuple[int, int] = (8, 8)) -> Image:
    mask: Image = np.full(size_hw, first, np.uint8)
    mask[:, size_hw[1] // 2 :] = second
    return mask


def blue(image: Image) -> Image:
    return np.asarray(image[..., 0], np.uint8)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size_hw", [(8, 8), (4, 8), (16, 16)])
def test_a_perfect_model_is_perfect_at_the_labels_size(resize: str, size_hw: tuple[int, int]) -> None:
    data = Made([halves(0, 1), halves(2, 2, (16, 8))])

    def nearest(image: Image) -> Image:
        # Bilinear edges between 0 and 1 round to one of them; bars of the mean colour are cut off again.
        return np.where(image[..., 0] > 2, 0, image[..., 0]).astype(np.uint8)

    matrix = evaluate(nearest, data, Preprocess(size_hw, resize=resize))  # type: ignore[arg-type]
    assert matrix.counts.sum() == 8 * 8 + 16 * 8
    if size_hw == (8, 8) and resize == "stretch":
        assert matrix.miou() == 1.0
    assert matrix.counts[2, 2] == 16 * 8


def test_known_maps_give_the_known_number() -> None:
    data = Made([halves(0, 1), halves(1, 255)])
    matrix = evaluate(lambda image: np.zeros(image.shape[:2], np.uint8), data, Preprocess((8, 8)))
    # Truth: 32 pixels road, 64 sky, 32 void; all predicted road.
    assert matrix.counts.tolist() == [[32, 0, 0], [64, 0, 0], [0, 0, 0]]
    assert matrix.miou() == pytest.approx((32 / 96 + 0) / 2)


def test_the_size_of_the_model_shows_in_the_number() -> None:
    mask: Image = np.zeros((8, 8), np.uint8)
    mask[:, ::2] = 2
    fine = evaluate(blue, Made([mask]), Preprocess((8, 8)))
    coarse = evaluate(blue, Made([mask]), Preprocess((2, 2)))
    assert fine.miou() == 1.0
    assert coarse.miou() < 0.5


def test_progress_and_no_iteration_protocol() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(blue, Made([halves(0, 1)] * 3), Preprocess((8, 8)), lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"class map of picture 0 has shape \(4, 4\); expected \(8, 8\)"),
        (np.full((8, 8), 3, np.uint8), "class map of picture 0 does not fit .* outside the 3 classes"),
    ],
)
def test_a_map_that_does_not_fit_is_named(made: Image, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate(lambda _: made, Made([halves(0, 1)]), Preprocess((8, 8)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("road", "sky", "bush"), "3 classes and DATA has 3; .* class 2: bush in the model, tree in DATA"),
        (("sky", "road", "tree"), "class 0: sky in the model, road in DATA"),
        (("road", "sky"), "2 classes and DATA has 3; .* class 2: none in the model, tree in DATA"),
        (("road", "sky", "tree", "car"), "4 classes and DATA has 3; .* class 3: car in the model, none in DATA"),
    ],
)
def test_other_classes_are_refused(names: tuple[str, ...], message: str) -> None:
    other = Labels(names, tuple((i, 0, 0) for i in range(len(names))))
    with pytest.raises(LfdError, match=message):
        check_labels(other, LABELS, "DATA")


def test_other_colours_are_not() -> None:
    check_labels(Labels(LABELS.names, ((0, 0, 0),) * 3, 200), LABELS, "DATA")
