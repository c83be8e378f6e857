"""A network trained in INT8, in every flavour: the graph rounds what training did, by the same grids, and agrees."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import ModelProto

from deploy.session import INT8_TARGET_KEY
from export.calibration import CALIBRATION_KEY
from export.cli import main
from export.fp16 import set_metadata
from export.int8 import build, calibrate, report, trained_for, with_trained_ranges
from export.int8_check import check_trt_structure
from export.int8_graph import Graph, prepare
from export.int8_trained import TRAINED_KEY, Trained, check_grids, read
from export.to_onnx import to_onnx
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.errors import ExportError, ModelError, UsageError
from lfd.models import create_model
from lfd.normalize import Normalize
from lfd.preprocess import Image, fit_frame
from lfd.quantize.observe import observe
from lfd.quantize.student import as_int8, attach
from lfd.quantize.topology import Target
from lfd.spec import ModelSpec, Preprocess
from tests.export.test_int8 import frames_of, logits
from tests.lfd.test_quantize_ranges import Pools

HW = (64, 128)
SMALL = "lraspp_mobilenet_v3_small"
CASES: list[tuple[str, Target]] = [
    *((name, "ort") for name in (SMALL, "deeplabv3_mobilenet_v2_os16", "pspnet_resnet18s_os16", "ddrnet23_slim")),
    (SMALL, "trt"),
    ("deeplabv3_resnet18_os16", "openvino"),
    ("pspnet_resnet18s_os16", "trt"),
    ("ddrnet23_slim", "openvino"),
]
"""TensorRT and OpenVINO share where tensors are rounded; every operation that differs is in one of each."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A network with ranges, its fp32 file, and the logits that it has with the rounding."""

    model: torch.nn.Module
    spec: ModelSpec
    file: Path
    rounded: Any


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Image]:
    data = open_dataset(f"folder:{folder}", "train")
    return [fit_frame(data[i].image, Preprocess(HW)) for i in range(8)]


def make(name: str, target: Target, folder: Path, root: Path, images: list[Image]) -> Made:
    data = open_dataset(f"folder:{folder}", "val")
    torch.manual_seed(0)
    model, _ = create_model(name, len(data.labels))
    with torch.no_grad():  # statistics of its own
        for _ in range(3):
            model.train()(torch.randn(2, 3, *HW) * 2 + 0.5)
    spec = ModelSpec(name, data.labels, Preprocess(HW))
    observe(model.eval(), attach(model, target, spec.preprocess), data, spec.preprocess)
    file = root / f"{name}_{target}.onnx"
    to_onnx(model, spec, file)
    pixels = Normalize(spec.preprocess)(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    with torch.no_grad(), as_int8(model):
        low = model(pixels)["out"]
        found = torch.nn.functional.interpolate(
            low, HW, mode="bilinear", align_corners=bool(getattr(model, "align_corners", False))
        )
    return Made(model, spec, file, (found - found.mean(1, keepdim=True)).double().numpy())


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory, images: list[Image]) -> Made:
    return make(SMALL, "ort", folder, tmp_path_factory.mktemp("made"), images)


@pytest.mark.parametrize(("name", "target"), CASES)
def test_the_graph_rounds_what_training_rounded(
    name: str, target: Target, folder: Path, tmp_path: Path, images: list[Image], made: Made
) -> None:
    item = made if (name, target) == (SMALL, "ort") else make(name, target, folder, tmp_path, images)
    calibrated = with_trained_ranges(item.file, target)
    model = build(calibrated, target)  # which compares every grid
    about = report(calibrated, target, ())
    assert about.in_int8 == about.layers and about.method == "trained" and "ranges of training" in str(about)
    metadata = {e.key: e.value for e in model.metadata_props}
    assert metadata[INT8_TARGET_KEY] == target and json.loads(metadata[CALIBRATION_KEY])["method"] == "trained"
    onnx.checker.check_model(model, full_check=True)
    graph = Graph(prepare(model).graph)
    pairs = [n for n in graph.proto.node if n.op_type == "QuantizeLinear"]
    if target == "ort":
        assert all(graph.constants[n.input[2]].data_type == onnx.TensorProto.UINT8 for n in pairs)
    else:
        assert check_trt_structure(model) == []
    convs = [n for n in graph.proto.node if n.op_type == "Conv"]
    assert all(graph.producer[name].op_type == "DequantizeLinear" for n in convs for name in n.input[:2])
    found, exact = logits(model, images), logits(item.file, images)
    # Two roundings that had nothing to do with each other would be apart by twice the noise of one. Where the order of
    # a sum, or fp16, takes a value near a tie to the other side, an untrained network makes much of it in 60 layers.
    ours, theirs = ((item.rounded - exact) ** 2).sum(), ((found - exact) ** 2).sum()
    apart = ((found - item.rounded) ** 2).sum()
    assert apart < (0.8 if target != "trt" else 1.5) * ours and 0.5 < ours / theirs < 2
    assert 10 * np.log10((exact**2).sum() / apart) > 25


def test_the_fp32_file_is_the_float_network(made: Made, images: list[Image]) -> None:
    proto = onnx.load(made.file)
    kinds = {node.op_type for node in proto.graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear"} and trained_for(made.file) == "ort"
    pixels = Normalize(made.spec.preprocess)(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    with torch.no_grad():
        low = made.model(pixels)["out"]
        exact = torch.nn.functional.interpolate(low, HW, mode="bilinear")
    exact = exact - exact.mean(1, keepdim=True)
    assert np.allclose(logits(made.file, images), exact.numpy(), atol=1e-4 * float(exact.abs().max()))


def test_for_another_target_frames_are_asked_for(made: Made, images: list[Image]) -> None:
    with pytest.raises(UsageError, match=r"was trained in INT8 for ort, not for trt. Fix: --target ort"):
        with_trained_ranges(made.file, "trt")
    measured = calibrate(made.file, frames_of(images), "minmax")
    assert report(measured, "ort", ()).method == "trained" and report(measured, "openvino", ()).method == "minmax"
    assert check_trt_structure(build(measured, "openvino")) == []


def test_layers_can_be_put_back_to_float(made: Made) -> None:
    calibrated = with_trained_ranges(made.file, "ort")
    keep = [calibrated.layers[0], calibrated.layers[7]]
    model = build(calibrated, "ort", keep)
    assert report(calibrated, "ort", keep).in_int8 == 54
    assert len(model.graph.node) < len(build(calibrated, "ort").graph.node)


@pytest.fixture(scope="module")
def pools(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fp32 files of a network whose maximum and slice hand ranges on, by target; `any`: for ort, of open batch."""
    root = tmp_path_factory.mktemp("pools")
    data, preprocess = open_dataset(f"folder:{folder}", "val"), Preprocess((32, 32))
    spec = ModelSpec("pools", data.labels, preprocess)
    found: dict[str, Path] = {}
    targets: tuple[Target, ...] = ("openvino", "ort")
    for target in targets:
        torch.manual_seed(0)
        model = Pools(len(data.labels)).eval()
        observe(model, attach(model, target, preprocess), data, preprocess)
        found[target] = root / f"{target}.onnx"
        to_onnx(model, spec, found[target])
    found["any"] = root / "any.onnx"
    to_onnx(model, spec, found["any"], batch="dynamic")
    return found


@pytest.mark.parametrize(
    ("target", "layer", "holds", "maker"),
    [("ort", 0, "MaxPool", "Relu"), ("openvino", 0, "MaxPool", "Relu"), ("ort", 1, "Slice", "AveragePool")],
)
def test_what_was_handed_on_is_rounded_alike_behind_a_layer_in_float(
    target: Target, layer: int, holds: str, maker: str, pools: dict[str, Path]
) -> None:
    """In float the layer's result has no pair; what holds its values then has one, with the range it was trained in."""
    calibrated = with_trained_ranges(pools[target], target)
    source = Graph(calibrated.model.graph)
    (holder,) = [node for node in source.proto.node if node.op_type == holds]
    assert source.producer[holder.input[0]].op_type == maker and calibrated.trained is not None
    scale, zero = calibrated.trained.grids[holder.input[0]]
    graph = Graph(prepare(build(calibrated, target, [calibrated.layers[layer]])).graph)
    (pair,) = [n for n in graph.proto.node if n.op_type == "QuantizeLinear" and n.input[0] == holder.output[0]]
    assert float(graph.constant(pair.input[1])) == pytest.approx(scale, rel=1e-5)
    assert int(graph.constant(pair.input[2])) == zero
    assert not any(n.op_type == "QuantizeLinear" and n.input[0] == holder.input[0] for n in graph.proto.node)


def test_a_dynamic_batch_keeps_the_ranges(pools: dict[str, Path]) -> None:
    ours, theirs = (read(onnx.load(pools[name]), "x") for name in ("ort", "any"))
    assert ours is not None and theirs is not None and set(ours.grids.values()) == set(theirs.grids.values())
    build(with_trained_ranges(pools["any"], "ort"), "ort")


def test_other_grids_are_seen(made: Made) -> None:
    model = build(with_trained_ranges(made.file, "ort"), "ort")
    trained = read(onnx.load(made.file), "x")
    assert trained is not None
    name = next(iter(trained.grids))
    scale, zero = trained.grids[name]
    check_grids(model, trained)
    for grids, says in [
        ({**trained.grids, name: (scale * 1.01, zero)}, "rounds"),
        ({**trained.grids, name: (scale, zero + 1)}, "rounds"),
        ({k: v for k, v in trained.grids.items() if k != name}, "which training left in float"),
        ({**trained.grids, "nobody": (1.0, 0)}, "which the int8 graph leaves in float"),
    ]:
        with pytest.raises(ExportError, match=says):
            check_grids(model, Trained("ort", grids))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "nonsense",
        '{"target": "tvm", "grids": {}}',
        '{"target": "ort", "grids": {"x": [0.0, 0]}}',
        '{"target": "ort", "grids": {"x": [1e999, 0]}}',
        '{"target": "ort", "grids": {"x": [0.1, 256]}}',
        '{"target": "trt", "grids": {"x": [0.1, 3]}}',
        '{"target": "ort", "grids": {"x": [0.1]}}',
        '{"target": "ort", "grids": 3}',
    ],
)
def test_ranges_from_outside_are_checked(text: str) -> None:
    model = ModelProto()
    set_metadata(model, {TRAINED_KEY: text})
    with pytest.raises(ModelError, match="its trained ranges cannot be read") as caught:
        read(model, "file.onnx")
    assert "\n" not in str(caught.value)


def test_from_a_run_to_a_file_without_calibration(made: Made, folder: Path, tmp_path: Path) -> None:
    """As a user types it; the gate scores the file on the labelled set."""
    run, fp32, out = tmp_path / "model.safetensors", tmp_path / "s.onnx", tmp_path / "i.onnx"
    save_model(run, made.model, made.spec)
    runner = CliRunner()
    result = runner.invoke(main, ["onnx", str(run), "-o", str(fp32), "--data", f"folder:{folder}"])
    assert result.exit_code == 0, result.output
    command = ["int8", str(fp32), "-o", str(out), "--target", "ort", "--data", f"folder:{folder}"]
    for more, says in [
        (["--calib", f"folder:{folder}"], "brings the ranges of its training for ort; leave --calib away"),
        (["--frames", "40"], "no effect without --calib"),
    ]:
        result = runner.invoke(main, [*command, *more])
        assert result.exit_code == 2 and says in result.output, result.output
    result = runner.invoke(main, [*command[:-2]])
    assert result.exit_code == 2 and "give --data" in result.output
    result = runner.invoke(main, [*command[:4], "--target", "trt", "--data", f"folder:{folder}"])
    assert result.exit_code == 2 and "was trained in INT8 for ort" in result.output
    assert not out.exists()
    more = ["--no-speed", "--max-miou-drop", "100", "--report", f"{tmp_path}/r.json"]
    result = runner.invoke(main, [*command, *more])
    assert result.exit_code == 0 and "56 of 56 layers in int8 for ort; ranges of training" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["quantised"]["method"] == "trained"
    plain = tmp_path / "plain.onnx"
    proto = onnx.load(fp32)
    (entry,) = [e for e in proto.metadata_props if e.key == TRAINED_KEY]
    proto.metadata_props.remove(entry)
    onnx.save(proto, plain)
    result = runner.invoke(main, ["int8", str(plain), *command[2:3], str(tmp_path / "p.onnx"), *command[4:]])
    assert result.exit_code == 2 and "brings no trained ranges; give --calib" in result.output
