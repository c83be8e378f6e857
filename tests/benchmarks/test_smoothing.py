"""The smoothing benchmark on a model of one convolution."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.smoothing import SEEDS, row
from lfd.data.street import LABELS
from lfd.spec import METADATA_KEY, ModelSpec, Preprocess
from tests.conftest import ROOT

H, W, K = 48, 64, len(LABELS)


def save(path: Path, output: str) -> Path:
    """Write a model that tells classes by colour alone, and so flickers with the noise."""
    spec = ModelSpec("colours", LABELS, Preprocess((H, W)))
    weights = np.random.default_rng(0).normal(0, 1, (K, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["frame"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["logits"]),
    ]
    info = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, K, H, W))
    if output == "class_map":
        nodes += [
            helper.make_node("ArgMax", ["logits"], ["largest"], axis=1, keepdims=0),
            helper.make_node("Cast", ["largest"], ["class_map"], to=TensorProto.UINT8),
        ]
        info = helper.make_tensor_value_info("class_map", TensorProto.UINT8, (1, H, W))
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, H, W, 3))
    graph = helper.make_graph(nodes, "colours", [frame], [info], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    said = replace(spec, output="logits") if output == "logits" else spec
    helper.set_model_props(model, {METADATA_KEY: said.to_json()})
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("output", ["class_map", "logits"])
def test_smoothing_takes_flicker_away_and_every_figure_is_written(tmp_path: Path, output: str) -> None:
    model, results = save(tmp_path / "colours.onnx", output), tmp_path / "smoothing.json"
    command = [sys.executable, "-m", "benchmarks.smoothing", model, "--light", "night", "--smooth", "0.4s"]
    done = subprocess.run(
        [*map(str, command), "--frames", "20", "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(results.read_text(encoding="utf-8"))
    plain, smooth = record["runs"]
    assert (plain["smooth"], smooth["smooth"]) == (None, "0.4s") and record["environment"]["cpu"]
    for run in (plain, smooth):
        assert (run["output"], run["light"], run["size"]) == (output, "night", f"{H}x{W}")
        assert [drive["frames"] for drive in run["drives"]] == [20] * len(SEEDS)
        assert all(0 < drive["miou"] < 1 for drive in run["drives"])
    for before, after in zip(plain["drives"], smooth["drives"], strict=True):
        assert before["source"] == after["source"] and "light=night" in after["source"]
        assert after["flicker"] < 0.5 * before["flicker"]
        assert before["smooth_p50_ms"] == 0 < after["smooth_p50_ms"]
    assert done.stdout.count("colours ") == 2


def test_a_row_compares_means_over_the_drives() -> None:
    def entry(smooth: str | None, *drives: tuple[float, float, float]) -> dict[str, object]:
        keys = ("miou", "flicker", "smooth_p50_ms")
        about = {"model": "m", "output": "logits", "size": "2x3", "light": "day", "smooth": smooth}
        return about | {"drives": [dict(zip(keys, drive, strict=True)) for drive in drives]}

    plain, smooth = entry(None, (0.4, 0.02, 0), (0.6, 0.04, 0)), entry("0.1s", (0.5, 0.01, 0.2), (0.6, 0.02, 0.4))
    assert row(plain, plain).split() == ["m", "logits", "2x3", "day", "off", "50.00", "+0.00", "3.00", "1.00", "0.000"]
    assert row(smooth, plain).split() == [
        "m",
        "logits",
        "2x3",
        "day",
        "0.1s",
        "55.00",
        "+5.00",
        "1.50",
        "0.50",
        "0.300",
    ]
