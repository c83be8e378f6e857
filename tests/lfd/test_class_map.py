"""A teacher of other classes: who stands for whom, and what its probabilities become."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lfd.class_map import LEFT_OUT, Merged, match
from lfd.distiller import Distiller, Teacher
from lfd.errors import UsageError
from lfd.losses.common import UNKNOWN
from lfd.methods import plan
from lfd.spec import Labels, Preprocess


def labels(*names: str) -> Labels:
    return Labels(names, tuple((i, i, i) for i in range(len(names))))


TEACHER = labels("road", "sidewalk", "car", "truck", "Sky", "train")


@pytest.mark.parametrize(
    ("data", "given", "expected"),
    [
        (("road", "car"), {}, ((0,), (2,))),
        (("ROAD", "sky"), {}, ((0,), (4,))),
        (("ground", "vehicle"), {"ground": ["road", "Sidewalk"], "vehicle": ["truck", "car"]}, ((0, 1), (3, 2))),
        (("car", "road"), {"car": ["car", "truck", "train"]}, ((2, 3, 5), (0,))),
        (("sky",), {"sky": ["train"]}, ((5,),)),
    ],
    ids=str,
)
def test_classes_are_matched_as_given_else_by_name(
    data: tuple[str, ...], given: Mapping[str, list[str]], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert match(TEACHER, labels(*data), given) == expected


@pytest.mark.parametrize(
    ("data", "given", "says"),
    [
        (("road", "tree"), {}, "the teacher has no class for 'tree' of the data; it knows road, sidewalk"),
        (("road",), {"rode": ["road"]}, "unknown class of the data in distill.classes 'rode'. Did you mean 'road'"),
        (("tree",), {"tree": ["skye"]}, "unknown class of the teacher in distill.classes.tree 'skye'"),
        (("tree",), {"tree": []}, "the teacher has no class for 'tree'"),
        (("car", "bus"), {"bus": ["car"]}, "'car' stands for 'car' and for 'bus'"),
        (("car",), {"car": ["car", "car"]}, "'car' stands for 'car' and for 'car'"),
    ],
    ids=str,
)
def test_what_does_not_match_is_said_in_one_line(
    data: tuple[str, ...], given: Mapping[str, list[str]], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        match(TEACHER, labels(*data), given)
    assert says in str(caught.value) and "\n" not in str(caught.value)


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.taps = {"deep": "layer"}
        self.align_corners = True

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"out": self.logits}


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 30.0, 1000.0]))
def test_probabilities_of_a_group_add_up(seed: int, scale: float) -> None:
    logits = scale * torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(seed))
    groups = ((0, 1), (2,), (3, 5, 4))
    found = Merged(Fixed(logits), 6, groups)(torch.zeros(1))["out"]
    p = F.softmax(logits.double(), 1)
    expected = torch.stack([p[:, group].sum(1) for group in groups], 1)
    torch.testing.assert_close(F.softmax(found.double(), 1), expected, atol=1e-5, rtol=1e-4)


def test_classes_that_stand_for_nothing_leave_their_probability_to_the_rest() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.2])).view(1, 3, 1, 1)
    found = Merged(Fixed(logits), 3, ((0,), (2,)))(torch.zeros(1))["out"]
    assert F.softmax(found, 1).flatten().tolist() == pytest.approx([5 / 7, 2 / 7])


def test_taps_and_resizing_are_the_networks() -> None:
    merged = Merged(Fixed(torch.zeros(1, 2, 1, 1)), 2, ((0,), (1,)))
    assert merged.taps == {"deep": "network.layer"} and merged.align_corners


@pytest.mark.parametrize(
    ("path", "expected"),
    [("layer", "network.layer"), ("a.b:input:0@nhwc", "network.a.b:input:0@nhwc"), (":out", "network:out")],
)
def test_a_path_of_the_network_stays_one(path: str, expected: str) -> None:
    merged = Merged(Fixed(torch.zeros(1, 2, 1, 1)), 2, ((0,), (1,)))
    assert merged.path(path) == expected


def test_what_is_left_out_is_told_apart() -> None:
    logits = torch.tensor([[0.0, 3.0, -1.0, 2.0]]).view(1, 4, 1, 1)
    merged = Merged(Fixed(logits), 4, ((0, 2),))
    assert merged.left_out == [1, 3] and merged.taps[LEFT_OUT] == f":{LEFT_OUT}"
    assert merged(torch.zeros(1))[LEFT_OUT].flatten().tolist() == [3.0]


@pytest.mark.parametrize("labels", [True, False])
def test_an_unlabelled_pixel_whose_first_choice_is_left_out_counts_nowhere(labels: bool) -> None:
    """Left: the mapped class wins. Right: one that stands for nothing does, though the mapped one has the rest."""
    logits = torch.tensor([[4.0, 1.0], [0.0, 5.0], [1.0, 2.0]]).view(1, 3, 1, 2)
    student = nn.Module()
    network = nn.Conv2d(3, 2, 1)
    student.forward = lambda image: {"out": network(image)}  # type: ignore[method-assign]
    student.network = network
    teacher = Merged(Fixed(logits), 3, ((0,), (2,)))
    teacher.weight = nn.Parameter(torch.zeros(1))
    size = Preprocess((1, 2))
    distiller = Distiller(student, size, 2, plan("kd"), Teacher(teacher, size, labels=labels))
    image, target = torch.zeros(1, 3, 1, 2, dtype=torch.uint8), torch.full((1, 1, 2), UNKNOWN)
    parts = distiller(image, target, 1.0, True).parts
    z = distiller.student(distiller.normalize(image))["out"][0, :, 0, 0].detach()
    said = F.log_softmax(teacher(image)["out"][0, :, 0, 0], 0)
    kl = float((said.exp() * (said - F.log_softmax(z, 0))).sum())
    assert float(parts["kd"]) == pytest.approx(kl, rel=1e-4)
    assert float(parts["task"]) == pytest.approx(float(F.cross_entropy(z, torch.tensor(0))) if labels else 0, rel=1e-4)
