"""ONNX Runtime and OpenVINO give the same class maps: on a small network of the kind that is exported."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.session import class_map, open_session
from lfd.data.street import Street
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

HEIGHT, WIDTH, CLASSES, CHANNELS = 64, 96, 6, 16


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write normalise -> 3x3 convolution, stride 2 -> depthwise -> residual -> 1x1 -> bilinear x2 -> argmax."""
    onnx = pytest.importorskip("onnx", reason="onnx writes the network", exc_type=ImportError)
    helper, kinds, rng = onnx.helper, onnx.TensorProto, np.random.default_rng(0)
    weights: list[Any] = []

    def weight(name: str, *shape: int) -> str:
        # He et al. 2015, eq. 10: variance 2 / fan-in, so that no layer's values fade or explode.
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        weights.append(onnx.numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(np.float32), name))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(onnx.numpy_helper.from_array(value, name))
        return name

    def conv(source: str, out: str, size: int, ins: int, outs: int, stride: int = 1, group: int = 1) -> Any:
        names = [source, weight(f"{out}_w", outs, ins // group, size, size), weight(f"{out}_b", outs)]
        pad = size // 2
        return helper.make_node(
            "Conv", names, [out], kernel_shape=[size, size], strides=[stride] * 2, pads=[pad] * 4, group=group
        )

    node = helper.make_node
    nodes = [
        node("Cast", ["frame"], ["numbers"], to=kinds.FLOAT),
        node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        node("Sub", ["planes", constant("mean", np.float32([104, 116, 124]).reshape(1, 3, 1, 1))], ["centred"]),
        node("Div", ["centred", constant("std", np.float32([57, 57, 58]).reshape(1, 3, 1, 1))], ["normal"]),
        conv("normal", "stem", 3, 3, CHANNELS, stride=2),
        node("HardSwish", ["stem"], ["stem_on"]),
        conv("stem_on", "deep", 3, CHANNELS, CHANNELS, group=CHANNELS),
        node("Relu", ["deep"], ["deep_on"]),
        conv("deep_on", "wide", 1, CHANNELS, CHANNELS),
        node("Add", ["wide", "stem_on"], ["sum"]),
        conv("sum", "scores", 1, CHANNELS, CLASSES),
        node(
            "Resize",
            ["scores", "", constant("scales", np.float32([1, 1, 2, 2]))],
            ["large"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("ArgMax", ["large"], ["class"], axis=1, keepdims=0),
        node("Cast", ["class"], ["class_map"], to=kinds.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("frame", kinds.UINT8, (1, HEIGHT, WIDTH, 3))],
        [helper.make_tensor_value_info("class_map", kinds.UINT8, (1, HEIGHT, WIDTH))],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    labels = Labels(tuple(f"c{i}" for i in range(CLASSES)), tuple((i, i, i) for i in range(CLASSES)))
    spec = ModelSpec("network", labels, Preprocess((HEIGHT, WIDTH)), provenance={"data": "none"})
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    onnx.save(model, str(path))
    return path


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
@pytest.mark.parametrize("threads", [1, 2])
def test_class_maps_agree_in_fp32(network: Path, threads: int) -> None:
    street = Street(3, (HEIGHT, WIDTH))
    same = []
    with open_session(network, "ort", threads) as ort, open_session(network, "openvino", threads) as openvino:
        assert (ort.build.precision, openvino.build.precision) == ("fp32", "fp32")
        for index in range(0, 200, 20):
            image = street.render(index).image
            expected = class_map(ort, image)
            assert len(np.unique(expected)) >= 3, "something to tell apart"
            same.append(np.mean(class_map(openvino, image) == expected))
    assert np.mean(same) >= 0.999
