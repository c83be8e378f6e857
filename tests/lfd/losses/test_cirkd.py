"""CIRKD against the authors' modules, its equations written out in numpy, and its queues against a list."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lfd.errors import UsageError
from lfd.losses import cirkd
from lfd.losses.cirkd import CIRKD, CIRKDOptions
from lfd.losses.class_queue import ClassQueue, pixels_by_class
from lfd.losses.common import IGNORE, UNKNOWN
from lfd.methods import METHODS, plan
from lfd.taps import Outputs
from tests.lfd.losses.cases import SEEDS, Array, Case, cases, make
from tests.lfd.losses.published import filled, networks
from tests.lfd.test_losses import TwoRanks

SMALL = {"pixel_queue": 12, "region_queue": 5, "pixels": 3, "pixel_contrast": 40, "region_contrast": 10}


def build(case: Case, **options: Any) -> CIRKD:
    torch.manual_seed(0)
    return CIRKD(*case.shapes, case.classes, CIRKDOptions(**{**SMALL, **options}))


def values(loss: CIRKD, case: Case, seed: int = 5) -> dict[str, float]:
    torch.manual_seed(seed)
    with torch.no_grad():
        return {k: float(v) for k, v in loss(case.student, case.teacher, case.target, 1.0).items()}


def unit(x: Array, axis: int = 0) -> Array:
    return np.asarray(x / np.maximum(np.sqrt((x**2).sum(axis, keepdims=True)), 1e-6))


def divergence(theirs: Array, ours: Array) -> float:
    def log_softmax(z: Array) -> Array:
        return np.asarray(z - z.max() - np.log(np.exp(z - z.max()).sum()))

    log_t, log_s = log_softmax(theirs), log_softmax(ours)
    return float((np.exp(log_t) * (log_t - log_s)).sum())


# The authors' values


@pytest.mark.parametrize(("cells", "expected"), [(4096, 0.77059567), (24, 0.70568347)])
def test_the_batchs_relations_are_the_authors(cells: int, expected: float) -> None:
    """Of their CriterionMiniBatchCrossImagePair, plain and with its pooling of 2x2 cells."""
    assert values(build(networks(), kind="batch", cells=cells), networks()) == pytest.approx(
        {"cirkd_batch": expected}, rel=1e-5
    )


def test_the_memorys_relations_are_the_authors() -> None:
    """Of their StudentSegContrast for queues that are given, wholly drawn, at T_kd = 2 and with void rows above."""
    case = networks()
    case.target[:, :2] = IGNORE
    sizes = {"pixel_queue": 30, "region_queue": 20, "pixel_contrast": 1000, "region_contrast": 1000}
    loss = build(case, kind="memory", memory_temperature=2.0, **sizes).eval()
    with torch.no_grad():
        loss.project.first.weight.copy_(filled(1, 96, 48, 1, 1) / 4)
        loss.project.last.weight.copy_(filled(2, 96, 96, 1, 1) / 4)
        loss.pixels.vectors[:, :30] = F.normalize(filled(3, 5, 30, 96), dim=2)
        loss.regions.vectors[:, :20] = F.normalize(filled(4, 5, 20, 96), dim=2)
    assert values(loss, case) == pytest.approx({"cirkd_pixel": 1.04364634, "cirkd_region": 0.96994644}, rel=1e-4)


# The equations


def pooled(x: Array, count: Array, side: int) -> tuple[Array, Array]:
    """Return the means of (C, h, w) over the cells of each window that count, (C, n), and which windows have any."""
    columns, there = [], []
    for i in range(0, x.shape[1], side):
        for j in range(0, x.shape[2], side):
            here = count[i : i + side, j : j + side]
            there.append(bool(here.any()))
            columns.append(x[:, i : i + side, j : j + side][:, here].mean(1) if here.any() else np.zeros(len(x)))
    return np.stack(columns, 1), np.array(there)


def batch_reference(case: Case, o: CIRKDOptions) -> float:
    height, width = case.student.taps[o.tap].shape[2:]
    student, teacher, y = case.arrays(o.tap)
    counts = (np.full_like(y, True, bool) if o.void else y != IGNORE).reshape(-1, height, width)
    side = 1
    while -(-height // side) * -(-width // side) > o.cells:
        side += 1
    pictures = []
    for s, t, count in zip(student, teacher, counts, strict=True):
        (ours, there), (theirs, _) = (pooled(x.reshape(-1, height, width), count, side) for x in (s, t))
        if there.any():
            pictures.append((unit(ours[:, there]), unit(theirs[:, there])))
    found = [
        np.mean(
            [divergence(a @ t_j / o.temperature, b @ s_j / o.temperature) for a, b in zip(t_i.T, s_i.T, strict=True)]
        )
        for s_i, t_i in pictures
        for s_j, t_j in pictures
    ]
    return float(np.mean(found)) if found else 0.0


@given(cases(), st.sampled_from(["deep", "stage2"]), st.sampled_from([4096, 20, 5, 1]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_batchs_relations_are_the_equation(case: Case, tap: str, cells: int, void: bool) -> None:
    loss = build(case, kind="batch", tap=tap, cells=cells, void=void)
    assert not loss.state_dict()
    assert values(loss, case)["cirkd_batch"] == pytest.approx(batch_reference(case, loss.options), rel=1e-3, abs=1e-5)


def memory_reference(loss: CIRKD, case: Case, queue: ClassQueue, drawn: Array) -> float:
    """For queues as they are after the step."""
    o = loss.options
    student, teacher, y = case.arrays(o.tap)
    if (y == IGNORE).all():
        return 0.0
    first, last = (
        w.detach().double().numpy()[:, :, 0, 0] for w in (loss.project.first.weight, loss.project.last.weight)
    )
    columns = [np.concatenate([x[:, k] for x, k in zip(of, y != IGNORE, strict=True)], 1) for of in (student, teacher)]
    hidden = first @ columns[0]
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    ours, theirs = unit(last @ np.maximum(hidden, 0)), unit(columns[1])
    vectors = queue.vectors.double().numpy()[:, drawn].reshape(-1, queue.vectors.shape[2])
    t = o.temperature * o.memory_temperature
    kl = [divergence(vectors @ a / t, vectors @ b / t) for a, b in zip(theirs.T, ours.T, strict=True)]
    return float(np.mean(kl)) * o.memory_temperature**2


@given(cases(), st.sampled_from([1.0, 2.0]), st.sampled_from([1, 7, 4096]))
@settings(max_examples=40, deadline=None)
def test_the_memorys_relations_are_the_equations(case: Case, temperature: float, rows: int) -> None:
    """Three steps, and however many anchors are compared at a time."""
    loss = build(case, kind="memory", memory_temperature=temperature, pixel_contrast=10_000, region_contrast=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cirkd, "ROWS", rows)
        for step in range(3):
            found = values(loss, case, step)
            for part, queue in (("cirkd_pixel", loss.pixels), ("cirkd_region", loss.regions)):
                expected = memory_reference(loss, case, queue, np.arange(queue.size))
                assert found[part] == pytest.approx(expected, rel=5e-3, abs=1e-4)


def test_as_many_are_drawn_of_each_class_as_published() -> None:
    """4096 // 19 + 1 and 1024 // 19 + 1, at the same places of every class."""
    queue = ClassQueue(19, 300, 4)
    torch.manual_seed(3)
    drawn = queue.draw(4096 // 19 + 1)
    assert drawn.shape == (19 * 216, 4)
    places = [int((queue.vectors[0] == v).all(1).nonzero()[0]) for v in drawn[:216]]
    assert len(set(places)) == 216 and max(places) < 300
    for k in range(19):
        assert torch.equal(drawn[216 * k : 216 * (k + 1)], queue.vectors[k, places])
    assert queue.draw(1000).shape == (19 * 300, 4)


# The queues


@given(SEEDS, st.integers(1, 4), st.integers(1, 7), st.lists(st.integers(0, 6), min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_a_queue_keeps_the_last_vectors_of_each_class(seed: int, classes: int, size: int, steps: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    queue = ClassQueue(classes, size, 2)
    rings = [[queue.vectors[k, i].tolist() for i in range(size)] for k in range(classes)]
    at = [0] * classes
    for count in steps:
        vectors = torch.randn(classes, count, 2, generator=generator)
        valid = torch.rand(classes, count, generator=generator) < 0.6
        queue.add(vectors, valid)
        for k in range(classes):
            for vector in vectors[k][valid[k]]:
                rings[k][at[k]] = vector.tolist()
                at[k] = (at[k] + 1) % size
    assert queue.vectors[:, :size].tolist() == rings and queue.place.tolist() == at
    assert not queue.vectors[:, size].any()


@given(SEEDS, st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_pixels_are_drawn_of_each_class_as_far_as_there_are(
    seed: int, batch: int, cells: int, classes: int, count: int
) -> None:
    torch.manual_seed(seed)
    target = torch.randint(0, classes + 2, (batch, cells))
    target[target == classes] = UNKNOWN
    target[target == classes + 1] = IGNORE
    drawn, valid = pixels_by_class(target, classes, count)
    for b in range(batch):
        for k in range(classes):
            kept = drawn[b, k][valid[b, k]].tolist()
            held = (target[b] == k).nonzero()[:, 0].tolist()
            assert len(kept) == min(count, len(held)) == len(set(kept)) and set(kept) <= set(held)


def test_every_pixel_of_a_class_is_as_likely() -> None:
    torch.manual_seed(0)
    target = torch.tensor([[0, 1, 1, 0, 1, 1, 2]]).expand(4000, -1)
    drawn, valid = pixels_by_class(target, 3, 2)
    assert valid[:, :2].all() and valid[:, 2].tolist() == [[True, False]] * 4000
    often = torch.bincount(drawn[:, 1].flatten(), minlength=7) / 4000
    torch.testing.assert_close(often, torch.tensor([0, 0.5, 0.5, 0, 0.5, 0.5, 0]), atol=0.04, rtol=0)


def test_what_is_remembered_are_the_teachers_pixels_and_regions() -> None:
    case = make(3, batch=2, grid=(4, 5), teacher_grid=(4, 5), size=(4, 5), void=0)
    case.target[0], case.target[1] = 2, 2
    case.target[0, 0, :3], case.target[1, 1] = 4, IGNORE
    case.target[1, 2] = UNKNOWN
    loss = build(case, kind="memory", pixels=100, pixel_queue=50)
    before = copy.deepcopy(loss)
    values(loss, case)
    teacher = F.normalize(case.teacher.taps["deep"], dim=1)
    for k, held in ((2, [17, 10]), (4, [3, 0])):
        mine = [teacher[b][:, case.target[b] == k].T for b in range(2)]
        assert [len(x) for x in mine] == held and int(loss.pixels.place[k]) == sum(held)
        start = 0
        for pixels in mine:
            kept = loss.pixels.vectors[k, start : start + len(pixels)]
            assert {tuple(v.tolist()) for v in kept} == {tuple(v.tolist()) for v in pixels}
            start += len(pixels)
        regions = torch.stack([F.normalize(x.mean(0), dim=0) for x in mine if len(x)])
        torch.testing.assert_close(loss.regions.vectors[k, : len(regions)], regions)
        assert int(loss.regions.place[k]) == len(regions)
    for k in (0, 1, 3):
        assert torch.equal(loss.pixels.vectors[k], before.pixels.vectors[k])


@pytest.mark.parametrize("kind", ["void", "unlabelled", "evaluation"])
def test_without_labels_or_training_the_queues_stay(kind: str) -> None:
    case = make(1, void=0)
    if kind != "evaluation":
        case.target.fill_(IGNORE if kind == "void" else UNKNOWN)
    loss = build(case).train(kind != "evaluation")
    before = copy.deepcopy(loss.state_dict())
    found = values(loss, case)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    if kind == "void":
        assert found == {"cirkd_batch": 0, "cirkd_pixel": 0, "cirkd_region": 0}
    else:
        assert all(value > 0 for value in found.values()), "unlabelled cells are anchors"


def test_a_resumed_run_goes_on_with_the_queues_and_the_same_draws() -> None:
    case = make(2)
    loss = build(case)
    values(loss, case)
    resumed = build(case)
    resumed.load_state_dict(loss.state_dict())
    for seed in range(3):
        assert values(resumed, case, seed) == values(loss, case, seed)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in loss.state_dict().items())


def test_half_precision_queues_take_half_the_memory_and_cost_little() -> None:
    case = make(2)
    whole, half = build(case, kind="memory"), build(case, kind="memory", queue_dtype="float16")
    half.project.load_state_dict(whole.project.state_dict())
    assert half.pixels.vectors.nbytes * 2 == whole.pixels.vectors.nbytes
    for seed in range(3):
        assert values(half, case, seed) == pytest.approx(values(whole, case, seed), rel=1e-2)


# Two processes, as two threads


class Ranks(TwoRanks):
    def get_rank(self) -> int:
        return int(self.here.rank)


def backward(loss: CIRKD, case: Case) -> list[Tensor]:
    """The gradients of the memory's terms by the student's feature, then the parameters'."""
    feature = case.student.taps["deep"].requires_grad_()
    parts = loss(case.student, case.teacher, case.target, 1.0)
    (parts["cirkd_pixel"] + parts["cirkd_region"]).backward()
    return [x.grad if x.grad is not None else torch.zeros_like(x) for x in (feature, *loss.parameters())]


def test_two_processes_remember_and_learn_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every queue takes in the pixels of both, the projection's norm sees both; void is spread unevenly."""
    case = make(4, void=0.3)
    case.target[0, 8:] = IGNORE
    # Room for all, and all drawn: what is left to chance is the order in the queue alone.
    options = {"kind": "memory", "pixels": 500, "pixel_queue": 500, "pixel_contrast": 10_000, "region_contrast": 10_000}
    whole = build(case, **options)
    losses = [copy.deepcopy(whole) for _ in range(2)]
    halves = [
        Case(
            *(
                Outputs(o.logits[i : i + 1], {k: x[i : i + 1].clone() for k, x in o.taps.items()}, None)
                for o in (case.student, case.teacher)
            ),
            case.target[i : i + 1],
        )
        for i in range(2)
    ]
    expected = backward(whole, case)
    ranks = Ranks()
    monkeypatch.setattr("lfd.distributed.dist", ranks)
    monkeypatch.setattr("lfd.sync_bn.dist", ranks)

    def run(number: int) -> list[Tensor]:
        ranks.here.rank = number
        return backward(losses[number], halves[number])

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    torch.testing.assert_close(torch.cat([first[0], second[0]]) / 2, expected[0], rtol=1e-3, atol=1e-6)
    for one, other, both in zip(first[1:], second[1:], expected[1:], strict=True):
        torch.testing.assert_close((one + other) / 2, both, rtol=1e-3, atol=1e-6)
    for key, value in losses[0].state_dict().items():
        assert torch.equal(value, losses[1].state_dict()[key]), "the same in each process"
    torch.testing.assert_close(losses[0].regions.state_dict(), whole.regions.state_dict())
    for k in range(case.classes):
        mine, theirs = (sorted(map(tuple, x.pixels.vectors[k].tolist())) for x in (losses[0], whole))
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


# Options and methods


@pytest.mark.parametrize("kind", ["both", "batch", "memory"])
def test_a_kind_has_its_parts_and_nothing_of_the_other(kind: str) -> None:
    loss = build(make(0), kind=kind)
    assert tuple(values(loss, make(0))) == CIRKD.active(loss.options)
    assert bool(list(loss.parameters())) == bool(list(loss.buffers())) == (kind != "batch")


def test_the_weights_and_sizes_are_the_published() -> None:
    assert METHODS["cirkd"].weights == {
        "task": 1,
        "kd": 1,
        "cirkd_batch": 1,
        "cirkd_pixel": 0.1,
        "cirkd_region": 0.1,
    }
    o = CIRKDOptions()
    assert (o.temperature, o.memory_temperature, o.pixels) == (0.1, 1, 16)
    assert (o.pixel_queue, o.region_queue, o.pixel_contrast, o.region_contrast) == (20_000, 2000, 4096, 1024)


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        ({"kind": "batch", "pixel_queue": 10}, {}, "loss.cirkd.pixel_queue = 10 has no effect"),
        ({"kind": "memory", "cells": 10}, {}, "loss.cirkd.cells = 10 has no effect"),
        ({"kind": "batch"}, {"cirkd_pixel": 1.0}, "distill.weights.cirkd_pixel = 1 has no effect"),
        ({"region_queue": 10}, {"cirkd_region": 0.0}, "loss.cirkd.region_queue = 10 has no effect"),
    ],
)
def test_what_has_no_effect_is_refused(options: dict[str, Any], weights: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan("cirkd", weights=weights, options={"cirkd": options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "all"}, "loss.cirkd.kind 'all'"),
        ({"queue_dtype": "int8"}, "loss.cirkd.queue_dtype 'int8'"),
        ({"temperature": 0.0}, "loss.cirkd.temperature"),
        ({"memory_temperature": 0.0}, "loss.cirkd.memory_temperature"),
        *(
            ({key: 0}, f"loss.cirkd.{key} = 0; expected 1 to")
            for key in ("cells", "pixels", "pixel_queue", "region_queue", "pixel_contrast", "region_contrast")
        ),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CIRKDOptions(**options)
