"""An ONNX graph with its tensors by name; which of its nodes run in int8 beside each other, `Topology` says."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from lfd.quantize.topology import BESIDE, CORE, UPSAMPLING, Topology

__all__ = ["BESIDE", "CORE", "PAIR", "Graph", "drop_unused", "prepare", "replace_nodes"]

PAIR = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Graph(Topology[NodeProto]):
    """A graph's tensors by name. It is a view: make a new one after the graph has changed.

    Args:
        proto: The graph; its nodes have names (`prepare`).
    """

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in proto.initializer}
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*proto.value_info, *proto.input, *proto.output)}
        super().__init__(proto.node, self.constants, self.is_float)

    def is_float(self, name: str) -> bool:
        """Tell whether a tensor holds floats; a graph that shapes were inferred for knows all of them."""
        tensor = self.constants.get(name)
        return (self.types.get(name) if tensor is None else tensor.data_type) in FLOATS

    def is_core(self, node: NodeProto) -> bool:
        """Tell whether a node is one of CORE and does not enlarge the logits."""
        enlarges = any(name.removesuffix("_fp16") in UPSAMPLING and name in self.constants for name in node.input)
        return super().is_core(node) and not enlarges

    def constant(self, name: str) -> NDArray[np.generic]:
        """Return a constant's value."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))


def prepare(model: ModelProto) -> ModelProto:
    """Return a copy with shapes inferred, a name for every node, and constants as initializers.

    This is what quant_pre_process does without its optimiser, which has nothing left to do in our graphs and does harm:
    it takes the float cast out of argmax -> float -> uint8, which TensorRT needs, and leaves eight opset domains.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if value is not None and value.type == AttributeProto.TENSOR:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    replace_nodes(graph, kept)
    used: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in used:
            node.name = f"{node.op_type}_{index}"
        used.add(node.name)
    del graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)


def replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Put other nodes into a graph, in this order."""
    copies = []
    for node in nodes:  # before they are deleted: protobuf owns them
        copies.append(NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def drop_unused(graph: GraphProto) -> None:
    """Remove initializers that no node uses."""
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        copies = []
        for tensor in kept:
            copies.append(TensorProto())
            copies[-1].CopyFrom(tensor)
        del graph.initializer[:]
        graph.initializer.extend(copies)
