"""Q/DQ pairs as TensorRT and OpenVINO take them: symmetric int8, at the inputs of what runs in int8 and nowhere else.

    activation -> QuantizeLinear -> DequantizeLinear -> Conv     scale per tensor, zero point 0
    int8 weights                 -> DequantizeLinear -> Conv     scale per output channel, zero point 0

Nothing stands between a convolution and the Relu or Add behind it, so that they fuse; the other input of the Add has
its pair, and so has each input of a Concat, since one float input there makes all of it float. Bias stays in float.

Not onnxruntime's `quantize_static`, which serves ONNX Runtime's own kernels: it puts pairs behind convolutions too, in
front of their Relu, and cannot tell an Add's inputs apart; more would have to be taken out than is put in here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from export.int8_graph import CORE, Graph, drop_unused, replace_nodes
from lfd.quantize.rounding import QMAX, held, scale_of
from lfd.quantize.topology import SAME_RANGE, Target


def insert_pairs(
    model: ModelProto, ranges: Mapping[str, tuple[float, float]], keep_float: Collection[str], half_scales: bool
) -> int:
    """Put symmetric Q/DQ pairs into a prepared fp32 graph.

    Args:
        model: Changed in place; prepared by `int8_graph.prepare`.
        ranges: Activation to (lowest, highest).
        keep_float: Names of nodes that stay in float.
        half_scales: Choose scales that fp16 holds exactly, before anything is rounded with them.

    Returns:
        How many of CORE run in int8.
    """
    graph = Graph(model.graph)
    work = _Inserting(graph, dict(ranges), half_scales)
    inside = list(graph.int8_nodes(keep_float))
    for node in inside:
        if node.op_type in SAME_RANGE and node.input[0] in work.ranges:
            work.ranges[node.output[0]] = work.ranges[node.input[0]]
    for node in inside:
        for index in graph.data_inputs(node):
            if node.input[index] in graph.constants:
                node.input[index] = work.weight(node, index)
            else:
                node.input[index] = work.activation(node.input[index])
    behind: list[NodeProto] = list(work.weights)
    for name in (v.name for v in model.graph.input):
        behind += work.pairs.get(name, [])
    for node in model.graph.node:
        behind.append(node)
        for name in node.output:
            behind += work.pairs.get(name, [])
    replace_nodes(model.graph, behind)
    drop_unused(model.graph)
    return sum(node.op_type in CORE for node in inside)


class _Inserting:
    """Makes pairs and int8 weights, each once."""

    def __init__(self, graph: Graph, ranges: dict[str, tuple[float, float]], half: bool) -> None:
        self.graph, self.ranges = graph, ranges
        self.target: Target = "trt" if half else "openvino"
        self.pairs: dict[str, list[NodeProto]] = {}
        self.weights: list[NodeProto] = []
        self._made: dict[tuple[str, int | None], str] = {}

    def activation(self, name: str) -> str:
        """Return the dequantised form of an activation."""
        out = f"{name}_dq"
        if name not in self.pairs:
            low, high = self.ranges[name]
            scale = held(torch.tensor(float(max(-low, high)) / QMAX, dtype=torch.float32), self.target).numpy()
            parameters = self._parameters(name, scale)
            self.pairs[name] = [
                helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"], f"{name}_quantize"),
                helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [out], f"{name}_dequantize"),
            ]
        return out

    def weight(self, node: NodeProto, index: int) -> str:
        """Return the dequantised form of a constant, quantised per output channel."""
        name = node.input[index]
        values = self.graph.constant(name).astype(np.float32)
        axis = _axis(node, index, values.ndim)
        if (name, axis) not in self._made:
            label = name if axis is None else f"{name}_axis{axis}"
            self._made[name, axis] = f"{label}_dq"
            scale = scale_of(torch.from_numpy(values), axis, self.target).numpy()
            along = scale.astype(np.float64).reshape([-1 if a == axis else 1 for a in range(values.ndim)])
            steps = np.clip(np.rint(values / along), -QMAX, QMAX).astype(np.int8)
            self.graph.proto.initializer.append(numpy_helper.from_array(steps, f"{label}_int8"))
            parameters = self._parameters(label, scale.reshape(()) if axis is None else scale)
            dequantize = helper.make_node(
                "DequantizeLinear", [f"{label}_int8", *parameters], [f"{label}_dq"], f"{label}_dequantize"
            )
            if axis is not None:
                dequantize.attribute.append(helper.make_attribute("axis", axis))
            self.weights.append(dequantize)
        return self._made[name, axis]

    def _parameters(self, label: str, scale: NDArray[np.float32]) -> list[str]:
        zero = np.zeros(scale.shape, np.int8)
        names = [f"{label}_scale", f"{label}_zero"]
        self.graph.proto.initializer.append(numpy_helper.from_array(scale, names[0]))
        self.graph.proto.initializer.append(numpy_helper.from_array(zero, names[1]))
        return names


def _axis(node: NodeProto, index: int, ndim: int) -> int | None:
    """Return the axis of a constant's output channels; None where one scale serves all of it."""
    if node.op_type == "Conv":
        return 0
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "ConvTranspose":
        # (in, out / groups, ...): with groups, one of axis 1 stands for several channels, which is still exact.
        return 1
    if node.op_type == "Gemm" and index == 1:
        return 0 if attributes.get("transB") else 1
    if node.op_type == "MatMul" and index == 1 and ndim == 2:
        return 1
    return None
