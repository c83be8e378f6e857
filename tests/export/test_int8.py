"""INT8 ONNX: the structure each target wants, rule by rule, ranges against other people's code, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.session import INT8_TARGET_KEY, class_map, int8_target, open_session
from export.calibration import CALIBRATION_KEY, Frames
from export.int8 import KEEP_FLOAT_KEY, Calibrated, build, calibrate, quantize
from export.int8_check import check_trt_structure
from export.int8_graph import Graph, prepare
from export.int8_ranges import Histogram, measure
from export.int8_rank import float_options
from export.to_onnx import to_onnx
from export.trt_graph import read_request
from lfd.data import open_dataset
from lfd.errors import DataError, ExportError, ModelError, UsageError
from lfd.models import create_model
from lfd.preprocess import Image, fit_frame
from lfd.quantize.topology import UPSAMPLING
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

HW = (64, 96)
MODELS = {
    "deeplabv3_resnet18_os16": 28,  # residual, concat, dilation
    "lraspp_mobilenet_v3_small": 56,  # hard-swish, squeeze and excitation, depthwise
    "pspnet_resnet18s_os16": 31,  # pooling by MatMul, concat
}
RESIDUAL = "deeplabv3_resnet18_os16"


def frames_of(images: list[Image]) -> Frames:
    def read() -> Iterator[Image]:
        return iter(images)

    return Frames("test", None, len(images), "0" * 64, read)


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Image]:
    data = open_dataset(f"folder:{folder}", "train")
    return [fit_frame(data[i].image, Preprocess(HW)) for i in range(8)]


@pytest.fixture(scope="module")
def sources(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("int8")
    labels = open_dataset(f"folder:{folder}", "val").labels
    found = {}
    for name in MODELS:
        torch.manual_seed(0)
        model, _ = create_model(name, len(labels))
        with torch.no_grad():
            for _ in range(3):
                model.train()(torch.randn(2, 3, *HW) * 2 + 0.5)
        to_onnx(model.eval(), ModelSpec(name, labels, Preprocess(HW)), root / f"{name}.onnx")
        found[name] = root / f"{name}.onnx"
    return found


@pytest.fixture(scope="module")
def calibrated(sources: dict[str, Path], images: list[Image]) -> dict[str, Calibrated]:
    return {name: calibrate(path, frames_of(images), "minmax") for name, path in sources.items()}


@pytest.fixture(scope="module")
def for_trt(calibrated: dict[str, Calibrated]) -> dict[str, ModelProto]:
    return {name: build(item, "trt") for name, item in calibrated.items()}


def logits(model: ModelProto | Path, images: list[Image]) -> Any:
    """Return what goes into argmax, less its mean over the classes."""
    import onnxruntime

    proto = onnx.load(model) if isinstance(model, Path) else ModelProto.FromString(model.SerializeToString())
    (argmax,) = [n for n in proto.graph.node if n.op_type == "ArgMax"]
    proto.graph.output.append(helper.make_value_info(argmax.input[0], onnx.TypeProto()))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), float_options())
    found = np.concatenate([session.run([argmax.input[0]], {"frame": image[None]})[0] for image in images])
    return (found - found.mean(1, keepdims=True)).astype(np.float64)


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_for_tensorrt_is_as_it_wants_it(
    name: str, for_trt: dict[str, ModelProto], tmp_path: Path, sources: dict[str, Path]
) -> None:
    model = for_trt[name]
    assert check_trt_structure(model) == []
    onnx.checker.check_model(model, full_check=True)
    assert [e.domain for e in model.opset_import] == [""]
    onnx.save(model, tmp_path / "trt.onnx")
    asked = read_request(tmp_path / "trt.onnx")  # what the builder reads
    assert asked.precision == "int8" and set(asked.convolutions.values()) == {"int8"}
    graph = Graph(model.graph)
    for node in graph.proto.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert graph.constants[node.input[1]].data_type == TensorProto.FLOAT16
    (argmax,) = [n for n in graph.proto.node if n.op_type == "ArgMax"]
    (real,) = graph.consumers[argmax.output[0]]
    (last,) = graph.consumers[real.output[0]]
    assert [real.op_type, last.op_type] == ["Cast", "Cast"] and graph.types[real.output[0]] == TensorProto.FLOAT
    before = {n.op_type: sum(m.op_type == n.op_type for m in graph.proto.node) for n in graph.proto.node}
    source = onnx.load(sources[name])
    for kind in ("Conv", "Relu", "HardSwish", "HardSigmoid", "ReduceMean", "Concat", "Add", "MaxPool"):
        assert before.get(kind, 0) == sum(n.op_type == kind for n in source.graph.node), kind


@pytest.mark.parametrize("target", ["trt", "ort", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_survive(
    name: str, target: Any, calibrated: dict[str, Calibrated], sources: dict[str, Path], images: list[Image]
) -> None:
    exact, found = logits(sources[name], images), logits(build(calibrated[name], target), images)
    ratio = 10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum())
    assert ratio > 15, f"{ratio:.1f} dB"


@pytest.mark.parametrize("name", MODELS)
def test_the_file_for_onnx_runtime_has_its_flavour(
    name: str, calibrated: dict[str, Calibrated], tmp_path: Path, images: list[Image]
) -> None:
    model = build(calibrated[name], "ort")
    graph = Graph(prepare(model).graph)
    for node in graph.proto.node:
        if node.op_type == "QuantizeLinear":
            assert graph.constants[node.input[2]].data_type == TensorProto.UINT8
        if node.op_type == "Conv":
            weights = graph.producer[node.input[1]]
            assert weights.op_type == "DequantizeLinear"
            stored = graph.constants[weights.input[0]]
            assert stored.data_type == TensorProto.INT8
            assert list(graph.constants[weights.input[1]].dims) == [stored.dims[0]]
            assert graph.producer[node.input[0]].op_type == "DequantizeLinear"
    enlarging = [node for node in graph.proto.node if set(node.input) & set(UPSAMPLING)]
    assert [node.op_type for node in enlarging] == ["MatMul", "MatMul"]
    for node in enlarging:
        makers = [graph.producer[name].op_type for name in node.input if name in graph.producer]
        constants = [graph.constants[name].data_type for name in node.input if name in graph.constants]
        assert constants == [TensorProto.FLOAT] and set(makers) <= {"DequantizeLinear", "Add", "Conv", "MatMul"}
        assert all(user.op_type in ("MatMul", "ArgMax") for user in graph.consumers[node.output[0]]), (
            "no pair behind it"
        )
    assert {n.op_type for n in graph.proto.node} & {"Relu"} == set() or name.startswith("lraspp")
    assert [e.domain for e in model.opset_import] == [""]
    onnx.save(model, tmp_path / "x.onnx")
    assert int8_target(tmp_path / "x.onnx") == "ort"
    with open_session(tmp_path / "x.onnx") as session:
        assert session.build.precision == "int8"
        assert class_map(session, images[0]).shape == HW


def test_the_file_says_how_it_was_made(sources: dict[str, Path], images: list[Image], tmp_path: Path) -> None:
    name = "lraspp_mobilenet_v3_small"
    first = next(n.name for n in prepare(onnx.load(sources[name])).graph.node if n.op_type == "Conv")
    out = tmp_path / "new/x.onnx"
    report = quantize(sources[name], out, frames_of(images), "openvino", "percentile", [first])
    metadata = {e.key: e.value for e in onnx.load(out).metadata_props}
    assert metadata[METADATA_KEY] == onnx.load(sources[name]).metadata_props[0].value
    assert metadata["lfd_precision"] == "int8" and metadata[INT8_TARGET_KEY] == "openvino"
    assert json.loads(metadata[CALIBRATION_KEY])["method"] == "percentile"
    assert json.loads(metadata[KEEP_FLOAT_KEY]) == [first]
    assert (report.layers, report.in_int8, report.frames) == (56, 55, 8) and report.kept_float == (first,)
    assert "55 of 56 layers in int8 for openvino" in str(report)
    types = {t.data_type for t in onnx.load(out).graph.initializer}
    assert TensorProto.FLOAT16 not in types, "OpenVINO's remainder is fp32"


@pytest.mark.parametrize("target", ["trt", "ort"])
def test_layers_kept_in_float_are_float(target: Any, calibrated: dict[str, Calibrated]) -> None:
    layers = calibrated[RESIDUAL].layers
    keep = [layers[0], layers[5], layers[-1]]
    model = build(calibrated[RESIDUAL], target, keep)
    graph = Graph(prepare(model).graph)
    for node in graph.proto.node:
        if node.op_type == "Conv":
            makers = [graph.producer.get(name) for name in node.input[:2]]
            quantised = [m is not None and m.op_type == "DequantizeLinear" for m in makers]
            assert quantised[1] == (node.name not in keep)
    if target == "trt":
        assert check_trt_structure(model, keep) == []
        assert any("island" in p for p in check_trt_structure(model, keep[:1] + keep[2:]))


# Each rule of the structure, broken by hand.


def convs(model: ModelProto) -> list[NodeProto]:
    return [n for n in model.graph.node if n.op_type == "Conv"]


def maker(model: ModelProto, tensor: str) -> NodeProto:
    return next(n for n in model.graph.node if tensor in n.output)


def replace(model: ModelProto, name: str, values: Any) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def value(model: ModelProto, name: str) -> Any:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def bare(model: ModelProto, node: NodeProto, index: int) -> None:
    """Take the pair away in front of one input."""
    dequantize = maker(model, node.input[index])
    node.input[index] = maker(model, dequantize.input[0]).input[0]


def pair_on(model: ModelProto, node: NodeProto, index: int) -> None:
    """Put a pair in front of one input."""
    scale = next(n for n in model.graph.node if n.op_type == "QuantizeLinear").input
    name = node.input[index]
    pair = [
        helper.make_node("QuantizeLinear", [name, *scale[1:]], [f"{name}_Q"], "extra_q"),
        helper.make_node("DequantizeLinear", [f"{name}_Q", *scale[1:]], [f"{name}_DQ"], "extra_dq"),
    ]
    at = list(model.graph.node).index(node)
    for extra in reversed(pair):
        model.graph.node.insert(at, extra)
    model.graph.node[at + 2].input[index] = f"{name}_DQ"


def a_zero_point(model: ModelProto) -> None:
    node = maker(model, convs(model)[3].input[0])
    replace(model, node.input[2], np.array(3, np.int8))


def an_unsigned_zero_point(model: ModelProto) -> None:
    node = maker(model, convs(model)[3].input[0])
    replace(model, node.input[2], np.array(0, np.uint8))


def no_zero_point(model: ModelProto) -> None:
    node = maker(model, maker(model, convs(model)[3].input[0]).input[0])
    del node.input[2:]


def a_scale_of(number: float) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        name = maker(model, convs(model)[3].input[1]).input[1]
        scales = value(model, name).copy()
        scales[1] = number
        replace(model, name, scales)

    return change


def one_scale_for_all_weights(model: ModelProto) -> None:
    node = maker(model, convs(model)[3].input[1])
    replace(model, node.input[1], np.array(0.01, np.float16))
    replace(model, node.input[2], np.array(0, np.int8))


def scales_along_the_inputs(model: ModelProto) -> None:
    node = next(
        d for c in convs(model) for d in [maker(model, c.input[1])] if len(set(value(model, d.input[0]).shape[:2])) == 1
    )
    next(a for a in node.attribute if a.name == "axis").i = 1


def float_weights(model: ModelProto) -> None:
    node = convs(model)[3]
    dequantize = maker(model, node.input[1])
    shape = value(model, dequantize.input[0]).shape
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float16), "float_weights"))
    node.input[1] = "float_weights"


def float_weights_behind_a_pair(model: ModelProto) -> None:
    node = convs(model)[3]
    dequantize = maker(model, node.input[1])
    shape = value(model, dequantize.input[0]).shape
    model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float16), "float_weights"))
    quantize = helper.make_node("QuantizeLinear", ["float_weights", *dequantize.input[1:]], ["stored"], "wq", axis=0)
    dequantize.input[0] = "stored"
    model.graph.node.insert(0, quantize)


def a_quantised_bias(model: ModelProto) -> None:
    pair_on(model, convs(model)[3], 2)


def a_bare_convolution(model: ModelProto) -> None:
    bare(model, convs(model)[3], 0)


def a_bare_first_convolution(model: ModelProto) -> None:
    bare(model, convs(model)[0], 0)


def a_bare_skip(model: ModelProto) -> None:
    add = next(n for n in model.graph.node if n.op_type == "Add")
    bare(model, add, next(i for i, name in enumerate(add.input) if maker(model, name).op_type == "DequantizeLinear"))


def a_pair_before_the_add(model: ModelProto) -> None:
    add = next(n for n in model.graph.node if n.op_type == "Add")
    pair_on(model, add, next(i for i, name in enumerate(add.input) if maker(model, name).op_type == "Conv"))


def a_bare_concat_input(model: ModelProto) -> None:
    bare(model, next(n for n in model.graph.node if n.op_type == "Concat"), 1)


def a_bare_pooling(model: ModelProto) -> None:
    bare(model, next(n for n in model.graph.node if n.op_type == "MaxPool"), 0)


def a_pair_before_the_enlarging(model: ModelProto) -> None:
    pair_on(model, next(n for n in model.graph.node if n.op_type == "MatMul"), 0)


def a_pair_before_argmax(model: ModelProto) -> None:
    pair_on(model, next(n for n in model.graph.node if n.op_type == "ArgMax"), 0)


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (a_zero_point, "zero point is not 0"),
        (an_unsigned_zero_point, "zero point is not int8"),
        (no_zero_point, "makes uint8"),
        (a_scale_of(0.0), "not positive and finite"),
        (a_scale_of(-0.01), "not positive and finite"),
        (a_scale_of(float("inf")), "not positive and finite"),
        (a_scale_of(float("nan")), "not positive and finite"),
        (one_scale_for_all_weights, "expected one a channel"),
        (scales_along_the_inputs, "along axis 1"),
        (float_weights, "its weights has no pair"),
        (float_weights_behind_a_pair, "float behind a pair"),
        (a_quantised_bias, "bias is quantised"),
        (a_bare_convolution, "a float island between two in int8"),
        (a_bare_first_convolution, "not between Q/DQ"),
        (a_bare_skip, "skip input has no pair"),
        (a_pair_before_the_add, "between it and its convolution"),
        (a_bare_concat_input, "1 of its 5 inputs have no pair"),
        (a_bare_pooling, "1 of its 1 inputs have no pair"),
        (a_pair_before_the_enlarging, "after the last convolution"),
        (a_pair_before_argmax, "after the last convolution"),
    ],
)
def test_each_broken_rule_is_seen(
    breaks: Callable[[ModelProto], None], says: str, for_trt: dict[str, ModelProto]
) -> None:
    model = ModelProto.FromString(for_trt[RESIDUAL].SerializeToString())
    breaks(model)
    problems = check_trt_structure(prepare(model) if breaks is not an_unsigned_zero_point else model)
    assert any(says in problem for problem in problems), problems


def test_the_exporter_raises_what_the_check_finds(
    calibrated: dict[str, Calibrated], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.int8.check_trt_structure", lambda *_: ["Conv x: broken"])
    with pytest.raises(ExportError, match="Conv x: broken"):
        build(calibrated[RESIDUAL], "trt")


# Ranges.


def test_min_max_is_that_of_onnxruntime(sources: dict[str, Path], images: list[Image], tmp_path: Path) -> None:
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = [{"frame": image[None]} for image in images]

        def get_next(self) -> Any:
            return self.rest.pop() if self.rest else None

    source = sources["lraspp_mobilenet_v3_small"]
    model = prepare(onnx.load(source))
    onnx.save(model, tmp_path / "in.onnx")
    theirs = MinMaxCalibrater(tmp_path / "in.onnx", ["Conv"], str(tmp_path / "augmented.onnx"))
    theirs.augment_graph()
    theirs.create_inference_session()
    theirs.collect_data(Reader())
    wanted = {name: [float(np.squeeze(v)) for v in data.range_value] for name, data in theirs.compute_data().items()}
    assert len(wanted) > 100
    found = measure(model, list(wanted), images, "minmax").of
    for name, (low, high) in wanted.items():
        assert found[name] == pytest.approx((min(low, 0), max(high, 0)), rel=1e-4, abs=1e-5)


def test_memory_is_bounded_by_passes(sources: dict[str, Path], images: list[Image]) -> None:
    model = prepare(onnx.load(sources["lraspp_mobilenet_v3_small"]))
    names = [n.output[0] for n in model.graph.node if n.op_type == "Conv"]
    whole = measure(model, names, images, "percentile")
    parts = measure(model, names, images, "percentile", max_bytes=200_000)
    assert whole.passes == 1 and parts.passes > 3 and parts.held_mb <= 0.2 < whole.held_mb
    assert whole.of.keys() == parts.of.keys()
    assert all(whole.of[n] == pytest.approx(parts.of[n], rel=1e-5) for n in names)


def test_histogram_percentile_against_numpy() -> None:
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=60_000).astype(np.float32) * k for k in (1, 2, 5)]
    histogram = Histogram()
    for frame in frames:
        histogram.add(frame)
    wanted = np.percentile(np.abs(np.concatenate(frames)), 99.99)
    assert histogram.threshold("percentile") == pytest.approx(wanted, rel=0.02)
    assert histogram.threshold("minmax") == pytest.approx(max(np.abs(f).max() for f in frames))


def test_entropy_clips_an_outlier_and_keeps_a_flat_distribution() -> None:
    rng = np.random.default_rng(0)
    outlier, flat = Histogram(), Histogram()
    outlier.add(np.append(rng.normal(size=60_000), 60).astype(np.float32))
    flat.add(rng.uniform(0, 1, 60_000).astype(np.float32))
    assert 2.5 < outlier.threshold("entropy") < 10
    assert flat.threshold("entropy") > 0.95


def test_ranges_hold_zero_and_refuse_what_is_not_finite() -> None:
    histogram = Histogram()
    histogram.add(np.array([2.0, 3.0], np.float32))
    assert histogram.low == 0.0 and histogram.high == 3.0
    with pytest.raises(DataError, match="not finite"):
        histogram.add(np.array([np.inf], np.float32))
    zeros = Histogram()
    zeros.add(np.zeros(4, np.float32))
    assert zeros.threshold("entropy") == 0.0


def test_no_frames_are_refused(sources: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="no calibration frames"):
        calibrate(sources[RESIDUAL], frames_of([]), "minmax")


# What is refused.


def test_bad_input_is_one_line_and_leaves_nothing(
    sources: dict[str, Path], calibrated: dict[str, Calibrated], images: list[Image], tmp_path: Path
) -> None:
    frames, out = frames_of(images), tmp_path / "out.onnx"
    int8, cut, bare_file, none = (tmp_path / f"{name}.onnx" for name in ("int8", "cut", "bare", "none"))
    onnx.save(build(calibrated["lraspp_mobilenet_v3_small"], "ort"), int8)
    cut.write_bytes(sources[RESIDUAL].read_bytes()[:5000])
    proto = onnx.load(sources["lraspp_mobilenet_v3_small"])
    spec = proto.metadata_props[0].value
    del proto.metadata_props[:]
    onnx.save(proto, bare_file)
    nothing = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
                helper.make_node("ArgMax", ["x"], ["a"], axis=3, keepdims=0),
                helper.make_node("Cast", ["a"], ["class_map"], to=TensorProto.UINT8),
            ],
            "nothing",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, *HW, 3))],
            [helper.make_tensor_value_info("class_map", TensorProto.UINT8, (1, *HW))],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    helper.set_model_props(nothing, {METADATA_KEY: spec})
    onnx.save(nothing, none)
    before = sorted(tmp_path.iterdir())
    for source, kind, says in [
        (int8, ModelError, "is int8 already"),
        (cut, ModelError, "not a valid ONNX file"),
        (bare_file, ModelError, "no ModelSpec"),
        (tmp_path / "missing.onnx", ModelError, "no such file"),
        (none, ExportError, "no operator that can be quantised"),
    ]:
        with pytest.raises(kind, match=says) as caught:
            quantize(source, out, frames, "ort", "minmax")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="no such node"):
        build(calibrated[RESIDUAL], "ort", ["nobody"])
    with pytest.raises(ExportError, match="every layer is kept in float"):
        build(calibrated[RESIDUAL], "ort", calibrated[RESIDUAL].layers)
    assert sorted(tmp_path.iterdir()) == before


def test_a_full_disk_leaves_nothing(
    sources: dict[str, Path], images: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left.*out\.onnx"):
        quantize(sources["lraspp_mobilenet_v3_small"], tmp_path / "out.onnx", frames_of(images), "trt", "minmax")
    assert not list(tmp_path.iterdir())


def test_labels_of_the_source_are_kept(for_trt: dict[str, ModelProto], folder: Path) -> None:
    labels = open_dataset(f"folder:{folder}", "val").labels
    text = next(e.value for e in for_trt[RESIDUAL].metadata_props if e.key == METADATA_KEY)
    assert isinstance(labels, Labels) and ModelSpec.from_json(text, "x").labels == labels


def test_the_smallest_numbers_have_a_range() -> None:
    """An activation that is as good as dead: what scales its bins is more than fp32 holds."""
    histogram = Histogram()
    values = np.geomspace(1e-38, 1e-37, 1000).astype(np.float32)
    histogram.add(values)
    assert histogram.counts.sum() == 1000 and histogram.threshold("percentile") == pytest.approx(float(values.max()))
