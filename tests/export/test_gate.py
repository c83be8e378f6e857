"""The gates of int8: what is put back to float, what is written, what is said, with scores that are given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from deploy.session import int8_target, open_session
from export.calibration import Frames, open_frames
from export.fp16 import halve
from export.gate import GateReport, gated_int8
from export.int8 import KEEP_FLOAT_KEY, calibrate
from export.int8_rank import rank_layers
from export.int8_runner import DeployRunner
from export.to_onnx import to_onnx
from lfd.data import Dataset, Sample, open_dataset
from lfd.errors import DataError, ExportError, ModelError, UsageError
from lfd.preprocess import Image
from lfd.spec import Labels, ModelSpec, Preprocess

HW = (48, 64)
LAYERS = 9


class Small(nn.Module):
    """Nine convolutions, with a residual Add and a Concat; its first channel is what tells the classes apart."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(8, 8, k, padding=k // 2) for k in (1, 3, 5))
        self.merge, self.last = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 8, 1)
        self.classify = nn.Conv2d(8, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x).relu()
        x = (x + self.b(self.a(x).relu())).relu()
        x = torch.cat([branch(x).relu() for branch in self.branches], 1)
        return {"out": self.classify(self.last(self.merge(x).relu()).relu())}


@pytest.fixture(scope="module")
def labels(folder: Path) -> Labels:
    return open_dataset(f"folder:{folder}", "val").labels


@pytest.fixture(scope="module")
def source(labels: Labels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("gate") / "small.onnx"
    to_onnx(Small(len(labels)).eval(), ModelSpec("small", labels, Preprocess(HW)), path)
    return path


@pytest.fixture(scope="module")
def frames(folder: Path, source: Path) -> Frames:
    with open_session(source) as session:
        return open_frames(f"folder:{folder}", session.spec, minimum=16)


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return open_dataset(f"folder:{folder}", "val")


class Given:
    """Scores by how many layers a file keeps in float; the last one for all that follow.

    Args:
        scores: mIoU of the source, then with 0, 1, 2, ... layers in float.
        times: Source's and file's median; None where the target does not run.
    """

    def __init__(self, scores: list[float], times: tuple[float, float] | None = (10.0, 5.0)) -> None:
        self.scores, self.times = scores, times
        self.kept: list[list[str]] = []

    def source_miou(self) -> float:
        return self.scores[0]

    def miou(self, path: Path) -> float:
        metadata = {e.key: e.value for e in onnx.load(path).metadata_props}
        self.kept.append(json.loads(metadata.get(KEEP_FLOAT_KEY, "[]")))
        return self.scores[min(1 + len(self.kept[-1]), len(self.scores) - 1)]

    def latency_ms(self, path: Path) -> tuple[float, float] | None:
        return None if self.times is None else (self.times[0], self.times[1] + len(self.kept[-1]))


def run(source: Path, out: Path, frames: Frames, data: Dataset, runner: Any, **options: Any) -> GateReport:
    return gated_int8(source, out, frames, options.pop("target", "ort"), "minmax", data, runner=runner, **options)


@pytest.mark.parametrize("target", ["ort", "openvino", "trt"])
def test_what_holds_at_once_is_written(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path, target: Any
) -> None:
    out = tmp_path / "int8.onnx"
    report = run(source, out, frames, data, Given([0.6, 0.59]), target=target)
    assert report and len(report.steps) == 1 and report.ranking == {} and report.faster
    assert report.ship == "int8.onnx" and int8_target(out) == target
    assert report.steps[0].drop == pytest.approx(1.0) and report.steps[0].kept == ()
    assert (report.quantised.layers, report.quantised.in_int8) == (LAYERS, LAYERS)
    assert "2.00 times faster" in str(report) and "written" in str(report)


def test_the_worst_layers_are_put_back_until_it_holds(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path
) -> None:
    runner = Given([0.60, 0.50, 0.55, 0.57, 0.595])
    said: list[str] = []
    report = run(source, tmp_path / "int8.onnx", frames, data, runner, say=said.append)
    assert report and [len(k) for k in runner.kept] == [0, 1, 2, 3]
    worst = list(report.ranking)
    assert list(report.ranking.values()) == sorted(report.ranking.values()) and len(worst) == LAYERS
    assert [step.kept for step in report.steps] == [(), (worst[0],), (worst[1],), (worst[2],)]
    assert [step.bought for step in report.steps] == pytest.approx([0, 5, 2, 2.5])
    assert [step.drop for step in report.steps] == pytest.approx([10, 5, 3, 0.5])
    assert [step.int8_ms for step in report.steps] == [5, 6, 7, 8]
    assert [step.cost_ms for step in report.steps] == [None, 1, 1, 1]
    kept = json.loads({e.key: e.value for e in onnx.load(tmp_path / "int8.onnx").metadata_props}[KEEP_FLOAT_KEY])
    assert kept == sorted(worst[:3]) == list(report.quantised.kept_float)
    assert any("ranking" in line for line in said)
    text = str(report)
    assert text.count("\n") == 7 and worst[0] in text and "57.00" in text


def test_steps_grow_after_the_fourth(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    runner = Given([0.60, *[0.50] * 6, 0.60], (10.0, 1.0))
    report = run(source, tmp_path / "int8.onnx", frames, data, runner)
    assert report and [step.kept_in_all for step in report.steps] == [0, 1, 2, 3, 4, 6]


def test_what_never_holds_is_not_written(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    runner = Given([0.60, 0.50, 0.52, 0.51])
    with pytest.raises(ExportError, match=r"8\.00 points.*1 of 9 layers.*1 are allowed.*ship small\.onnx") as caught:
        run(source, tmp_path / "new/int8.onnx", frames, data, runner)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    assert len(runner.kept[-1]) == LAYERS - 1, "a file without int8 is not tried"


def test_what_is_slower_is_not_written_and_says_what_to_ship(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path
) -> None:
    report = run(source, tmp_path / "int8.onnx", frames, data, Given([0.6, 0.6], (4.0, 5.0)))
    assert not report and report.accurate and report.faster is False and report.ship == "small.onnx"
    assert "NOT written; 1.25 times SLOWER than its source; ship small.onnx" in str(report)
    assert not list(tmp_path.iterdir())


def test_what_is_as_fast_is_not_called_slower(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    report = run(source, tmp_path / "int8.onnx", frames, data, Given([0.6, 0.6], (5.0, 5.0)))
    assert not report and report.speed_note == "no faster than its source" and not list(tmp_path.iterdir())


def test_without_the_target_speed_is_not_judged(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    report = run(source, tmp_path / "a.onnx", frames, data, Given([0.6, 0.6], None), target="trt")
    assert report and report.faster is None and "trt does not run here" in report.speed_note
    report = run(source, tmp_path / "b.onnx", frames, data, Given([0.6, 0.6], (1.0, 9.0)), speed=False)
    assert report and report.faster is None and "not asked for" in report.speed_note and report.ship == "b.onnx"


class Slowing(Given):
    """On a machine that gets twice as slow with each file."""

    def latency_ms(self, path: Path) -> tuple[float, float] | None:
        times = super().latency_ms(path)
        slower = 2.0 ** len(self.kept[-1])
        return None if times is None else (times[0] * slower, times[1] * slower)


@pytest.mark.parametrize("speed", [True, False])
def test_what_floats_cost_is_told_without_a_gate_for_speed_and_without_the_machines_moods(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path, speed: bool
) -> None:
    """5, 6 and 7 ms beside 10: each layer costs 1 ms at the speed of its own moment."""
    report = run(source, tmp_path / "a.onnx", frames, data, Slowing([0.60, 0.50, 0.55, 0.60]), speed=speed)
    assert [step.int8_ms for step in report.steps] == [5, 12, 28]
    assert [step.cost_ms for step in report.steps] == [None, pytest.approx(2), pytest.approx(4)]
    assert (report.faster is None) is not speed and report


def test_what_holds_at_once_is_not_timed_where_speed_is_no_gate(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path
) -> None:
    report = run(source, tmp_path / "a.onnx", frames, data, Given([0.6, 0.6]), speed=False)
    assert report and report.steps[0].int8_ms is None


def test_the_report_is_json(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    report = run(source, tmp_path / "a.onnx", frames, data, Given([0.60, 0.50, 0.60]))
    record = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert record["steps"][1]["bought"] == pytest.approx(10) and record["quantised"]["calibration_sha256"]
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize("drop", [-1.0, float("nan"), float("inf")])
def test_a_drop_that_is_none_is_refused(
    source: Path, frames: Frames, data: Dataset, tmp_path: Path, drop: float
) -> None:
    with pytest.raises(UsageError, match="points of mIoU"):
        run(source, tmp_path / "a.onnx", frames, data, Given([0.6, 0.6]), max_miou_drop=drop)


def test_labels_must_fit_and_be_there(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="classes"):
        run(source, tmp_path / "a.onnx", frames, open_dataset("street:?size=48x64&frames=1", "val"), None)

    class Void:
        labels = data.labels

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Sample:
            sample = data[index]
            return Sample(sample.image, np.full_like(sample.mask, 255), sample.name)

    with pytest.raises(DataError, match="no labelled pixel"):
        run(source, tmp_path / "a.onnx", frames, Void(), None)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_search_leaves_nothing(source: Path, frames: Frames, data: Dataset, tmp_path: Path) -> None:
    def stop() -> Iterator[Image]:
        yield from list(frames)[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "new/a.onnx", replace(frames, read=stop), data, Given([0.6, 0.6]))
    assert not list(tmp_path.iterdir())


def test_the_layer_that_int8_hurts_most_comes_first(labels: Labels, frames: Frames, tmp_path: Path) -> None:
    """One channel a thousand times larger between two layers: the same function, and no bits left for the others."""
    torch.manual_seed(1)
    model = Small(len(labels)).eval()
    with torch.no_grad():
        model.a.weight[0] *= 1000
        model.a.bias[0] *= 1000  # type: ignore[index]
        model.b.weight[:, 0] /= 1000
    to_onnx(model, ModelSpec("small", labels, Preprocess(HW)), tmp_path / "hurt.onnx")
    calibrated = calibrate(tmp_path / "hurt.onnx", frames, "minmax")
    ranking = rank_layers(calibrated, frames.some(2))
    assert next(iter(ranking)) == calibrated.layers[2], "the one that reads the channel"
    assert list(ranking.values()) == sorted(ranking.values()) and len(ranking) == LAYERS


@pytest.mark.parametrize("target", ["ort", "openvino", "trt"])
def test_the_real_runner(source: Path, frames: Frames, data: Dataset, tmp_path: Path, target: Any) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    report = run(source, tmp_path / "a.onnx", frames, data, None, target=target, speed=False, max_miou_drop=20.0)
    assert report and 0 <= report.source_miou <= 1
    runner = DeployRunner(source, data, target, limit=2)
    assert 0 <= runner.miou(tmp_path / "a.onnx") <= 1 and runner.scored().pictures == 2
    assert runner.scored().miou[0] == runner.source_miou() and runner.runtime
    times = runner.latency_ms(tmp_path / "a.onnx")
    assert (times is None) == (target == "trt")
    assert times is None or min(times) > 0


@pytest.mark.parametrize("batch", [2, "dynamic"])
def test_other_batches(labels: Labels, frames: Frames, data: Dataset, tmp_path: Path, batch: Any) -> None:
    path = tmp_path / "small.onnx"
    to_onnx(Small(len(labels)).eval(), ModelSpec("small", labels, Preprocess(HW)), path, batch=batch)
    report = run(path, tmp_path / "a.onnx", frames, data, None, speed=False, max_miou_drop=20.0)
    assert report and report.quantised.in_int8 == LAYERS
    assert halve(onnx.load(path))[1] == ["Sub node_sub"]
