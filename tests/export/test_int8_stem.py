"""The first convolution over pairs of pixels: the same sums, on whatever kernel, padding and size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export.int8_graph import prepare
from export.int8_stem import pair_stem


def stem(
    size_hw: tuple[int, int] = (8, 10),
    kernel_hw: tuple[int, int] = (3, 3),
    pads: Sequence[int] = (1, 1, 1, 1),
    strides: Sequence[int] = (2, 2),
    group: int = 1,
    batch: int | str = 1,
    channels_first: bool = True,
    auto_pad: str | None = None,
) -> ModelProto:
    """Make frame -> Cast -> Transpose -> Sub -> Conv of whole numbers, whose sums are exact in any order."""
    random = np.random.default_rng(0)
    mean = np.array([3.0, 5.0, 7.0], np.float32).reshape((1, 3, 1, 1) if channels_first else (1, 1, 1, 3))
    kernel = random.integers(-4, 5, (2 * group, 3 // group, *kernel_hw)).astype(np.float32)
    attributes: dict[str, Any] = {"strides": list(strides), "kernel_shape": list(kernel_hw), "group": group}
    attributes |= {"auto_pad": auto_pad} if auto_pad else {"pads": list(pads)}
    middle = [("Transpose", ["x"], {"perm": [0, 3, 1, 2]}), ("Sub", ["x", "mean"], {})]
    nodes, name = [helper.make_node("Cast", ["frame"], ["a0"], to=TensorProto.FLOAT)], "a0"
    for op_type, inputs, values in middle if channels_first else middle[::-1]:
        nodes.append(helper.make_node(op_type, [name, *inputs[1:]], [f"a{len(nodes)}"], **values))
        name = nodes[-1].output[0]
    nodes.append(helper.make_node("Conv", [name, "kernel", "bias"], ["out"], "first", **attributes))
    graph = helper.make_graph(
        nodes,
        "stem",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, *size_hw, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(mean, "mean"),
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(random.integers(-4, 5, 2 * group).astype(np.float32), "bias"),
        ],
    )
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(model: ModelProto, size_hw: tuple[int, int], batch: int = 1) -> np.ndarray:
    frame = np.random.default_rng(1).integers(0, 256, (batch, *size_hw, 3), np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"frame": frame})[0])


@settings(deadline=None)
@given(
    size_hw=st.tuples(st.integers(8, 25), st.integers(4, 12)).map(lambda hw: (hw[0], 2 * hw[1])),
    kernel_hw=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    pads=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_the_sums_are_the_same(size_hw: tuple[int, int], kernel_hw: tuple[int, int], pads: list[int]) -> None:
    model = stem(size_hw, kernel_hw, pads)
    paired = pair_stem(model)
    assert paired is not model
    np.testing.assert_array_equal(run(paired, size_hw), run(model, size_hw))


def test_an_open_batch_stays_open_and_names_stay() -> None:
    model = stem(batch="N")
    paired = pair_stem(model)
    np.testing.assert_array_equal(run(paired, (8, 10), 3), run(model, (8, 10), 3))
    (before,), (after,) = ([n for n in m.graph.node if n.op_type == "Conv"] for m in (model, paired))
    assert (after.name, after.input, after.output) == (before.name, before.input, before.output)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(stem(size_hw=(8, 11)), id="odd width"),
        pytest.param(stem(strides=(1, 1)), id="stride 1"),
        pytest.param(stem(strides=(2, 1)), id="one stride"),
        pytest.param(stem(group=3), id="depthwise"),
        pytest.param(stem(channels_first=False), id="mean along the other axis"),
        pytest.param(stem(auto_pad="SAME_UPPER"), id="padding by itself"),
    ],
)
def test_another_stem_stays_as_it_is(model: ModelProto) -> None:
    assert pair_stem(model) is model


def test_a_kernel_that_serves_twice_stays_as_it_is() -> None:
    model = stem()
    model.graph.node.append(helper.make_node("Conv", ["a1", "kernel"], ["twin"], "second", kernel_shape=[3, 3]))
    assert pair_stem(prepare(model)).graph.node[0].op_type == "Cast"


def test_an_input_that_something_else_sees_stays_as_it_is() -> None:
    model = stem()
    model.graph.node.append(helper.make_node("Relu", ["a2"], ["seen"], "other"))
    assert pair_stem(prepare(model)).graph.node[0].op_type == "Cast"
