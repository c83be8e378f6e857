"""fp16 in the graph: what is halved, what is not, and that the class maps stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.session import class_map, open_session
from export.fp16 import MIN_AGREEMENT_FP16, checked_fp16, halve, to_fp16
from export.int8_graph import Graph, prepare
from export.parity import compare
from export.to_onnx import to_onnx
from export.trt_graph import read_request
from export.verify import open_runnable
from lfd.data import open_dataset
from lfd.errors import ExportError, ModelError
from lfd.models import create_model
from lfd.normalize import Normalize
from lfd.preprocess import fit_frame
from lfd.spec import ModelSpec, Preprocess

MODELS = ["lraspp_mobilenet_v3_small", "pspnet_resnet18s_os16"]
Exported = tuple[Path, Path, list[str]]


def export(name: str, folder: Path, path: Path, output: Any = "class_map") -> Path:
    """Write a network of random weights that gives every class somewhere, so that a class map can be wrong."""
    data = open_dataset(f"folder:{folder}", "train")
    preprocess = Preprocess((64, 96))
    torch.manual_seed(0)
    model, _ = create_model(name, len(data.labels))
    pictures = np.stack([fit_frame(data[i].image, preprocess) for i in range(4)])
    frames = Normalize(preprocess)(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    with torch.no_grad():
        for _ in range(10):
            model.train()(frames)
        logits = model.eval()(frames)["out"]
        heads = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.out_channels == len(data.labels)]
        next(m.bias for m in heads if m.bias is not None).sub_(logits.mean((0, 2, 3)))  # an auxiliary head comes later
    to_onnx(model, ModelSpec(name, data.labels, preprocess), path, output=output)
    return path


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("fp16")
    source = export(request.param, folder, root / "a.onnx")
    return source, root / "b.onnx", to_fp16(source, root / "b.onnx")


def test_class_maps_stay(exported: Exported, folder: Path) -> None:
    source, out, _ = exported
    data = open_dataset(f"folder:{folder}", "train")
    parity = compare(open_runnable(source), open_runnable(out), data, required=MIN_AGREEMENT_FP16)
    assert parity, str(parity)
    with open_session(source) as session:
        maps = [class_map(session, fit_frame(data[i].image, session.spec.preprocess)).copy() for i in range(4)]
    assert min(np.bincount(np.concatenate(maps).ravel(), minlength=3)) > 100, "every class occurs"


def test_the_file_is_half_and_says_so(exported: Exported) -> None:
    source, out, _ = exported
    assert out.stat().st_size < 0.65 * source.stat().st_size
    with open_session(source) as a, open_session(out) as b:
        assert b.spec == a.spec and b.build.precision == "fp16"
    proto = onnx.load(out)
    assert [e.domain for e in proto.opset_import] == [""]
    assert read_request(out).precision == "fp16", "as TensorRT's builder reads it"


def test_weights_are_fp16_and_the_mean_is_not(exported: Exported) -> None:
    _, out, kept = exported
    graph = Graph(prepare(onnx.load(out)).graph)
    convs = [n for n in graph.proto.node if n.op_type == "Conv"]
    assert all(graph.constants[n.input[1]].data_type == TensorProto.FLOAT16 for n in convs)
    (sub,) = [n for n in graph.proto.node if n.op_type == "Sub"]
    assert graph.constants[sub.input[1]].data_type == TensorProto.FLOAT
    assert f"Sub {sub.name}" in kept and not any(k.startswith("Conv") for k in kept)
    assert {k.split()[0] for k in kept} <= {"Sub", "ReduceMean"}
    for node in graph.proto.node:
        if node.op_type == "ReduceMean":
            assert graph.types[node.input[0]] == TensorProto.FLOAT
    (argmax,) = [n for n in graph.proto.node if n.op_type == "ArgMax"]
    (real,) = graph.consumers[argmax.output[0]]
    assert graph.types[real.output[0]] == TensorProto.FLOAT, "uint8 comes from fp32, as TensorRT takes it"


def test_logits_stay_float32(folder: Path, tmp_path: Path) -> None:
    source = export(MODELS[0], folder, tmp_path / "a.onnx", "logits")
    to_fp16(source, tmp_path / "b.onnx")
    image = open_dataset(f"folder:{folder}", "val")[0].image
    frame = np.ascontiguousarray(np.resize(image, (64, 96, 3)))
    with open_session(source) as a, open_session(tmp_path / "b.onnx") as b:
        exact, half = a.run(frame[None]).copy(), b.run(frame[None])
        assert half.dtype == np.float32 and np.abs(half - exact).max() < 0.01 * np.abs(exact).max()
        assert class_map(b, frame).shape == (64, 96)


def little(weights: Any, op: str = "Conv") -> onnx.ModelProto:
    """Return frame -> float -> Conv -> `op` with these weights."""
    one = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "one")
    second = numpy_helper.from_array(np.asarray(weights, np.float32), "second")
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "one"], ["c"]),
        helper.make_node(op, ["c", "second"], ["y"], "last"),
    ]
    graph = helper.make_graph(
        nodes,
        "little",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, 4, 4, 3))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 4, 4))],
        [one, second],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("weights", "op", "stays"),
    [
        (np.full((3, 3, 1, 1), 1.0), "Conv", False),
        (np.full((3, 3, 1, 1), 1e5), "Conv", True),
        (np.full((3, 3, 1, 1), 1e-6), "Conv", True),
        (np.full(1, 1e-6), "Mul", True),
        (np.full(1, 1e-6), "Add", False),
        (np.full(1, 1e5), "Add", True),
    ],
)
def test_constants_that_fp16_cannot_hold_stay(weights: Any, op: str, stays: bool) -> None:
    model, kept = halve(little(weights, op))
    assert (f"{op} last" in kept) == stays
    onnx.checker.check_model(model, full_check=True)


def test_what_differs_is_not_written(
    exported: Exported, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_dataset(f"folder:{folder}", "val")
    kept, parity = checked_fp16(exported[0], tmp_path / "good.onnx", data)
    assert kept == exported[2] and parity and (tmp_path / "good.onnx").is_file()

    def shifted(source: Path, out: Path) -> list[str]:
        model = onnx.load(source)
        first = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[1] == 3)
        first.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(first), first.name))
        onnx.save(model, out)
        return []

    monkeypatch.setattr("export.fp16.to_fp16", shifted)
    with pytest.raises(ExportError, match="was not written: fp16 changes"):
        checked_fp16(exported[0], tmp_path / "new/bad.onnx", data, required=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["good.onnx"]


@pytest.mark.parametrize("damage", ["missing", "cut", "bare", "fp16"])
def test_bad_sources_are_one_line_and_leave_nothing(exported: Exported, tmp_path: Path, damage: str) -> None:
    source = tmp_path / "in.onnx"
    if damage == "cut":
        source.write_bytes(exported[0].read_bytes()[:5000])
    elif damage == "bare":
        onnx.save(little(np.ones((3, 3, 1, 1))), source)
    elif damage == "fp16":
        source.write_bytes(exported[1].read_bytes())
    says = {"missing": "no such file", "cut": "not a valid ONNX", "bare": "no ModelSpec", "fp16": "is fp16 already"}
    with pytest.raises(ModelError, match=says[damage]) as caught:
        to_fp16(source, tmp_path / "out.onnx")
    assert "\n" not in str(caught.value) and not (tmp_path / "out.onnx").exists()
