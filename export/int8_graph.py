"""An ONNX graph with its tensors by name, and which of its nodes run in int8 beside each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

CORE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What int8 makes faster: each is in int8 unless it is kept in float."""
BESIDE = ("Add", "Concat", "MaxPool", "AveragePool")
"""In int8 only where they stand between two of CORE; elsewhere a pair would cost more than it saves. No means over the
whole grid: their one number a channel is wanted in more than 8 bits."""
PAIR = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


class Graph:
    """A graph's tensors by name. It is a view: make a new one after the graph has changed.

    Args:
        proto: The graph; its nodes have names (`prepare`).
    """

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in proto.initializer}
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in proto.node:
            self.producer.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*proto.value_info, *proto.input, *proto.output)}
        self._before: dict[str, set[str]] = {}
        self._after: dict[str, set[str]] = {}
        for node in proto.node:
            self._before[node.name] = self._near(self._from(node), self._before)
        for node in reversed(proto.node):
            self._after[node.name] = self._near(self._to(node), self._after)

    def _from(self, node: NodeProto) -> list[NodeProto]:
        return [self.producer[name] for name in node.input if name in self.producer]

    def _to(self, node: NodeProto) -> list[NodeProto]:
        return [user for name in node.output for user in self.consumers.get(name, ())]

    @staticmethod
    def _near(neighbours: list[NodeProto], known: dict[str, set[str]]) -> set[str]:
        found: set[str] = set()
        for node in neighbours:
            found |= {node.name} if node.op_type in CORE else known.get(node.name, set())
        return found

    def is_float(self, name: str) -> bool:
        """Tell whether a tensor holds floats; a graph that shapes were inferred for knows all of them."""
        tensor = self.constants.get(name)
        return (self.types.get(name) if tensor is None else tensor.data_type) in FLOATS

    def constant(self, name: str) -> NDArray[np.generic]:
        """Return a constant's value."""
        return np.asarray(numpy_helper.to_array(self.constants[name]))

    def between(self, node: NodeProto, keep_float: Collection[str]) -> bool:
        """Tell whether a node has one of CORE in int8 on either side, nothing of CORE in between."""
        return all(near[node.name] - set(keep_float) for near in (self._before, self._after))

    def has_core_after(self, node: NodeProto) -> bool:
        """Tell whether anything of CORE uses what this node makes."""
        return bool(self._after[node.name])

    def has_core_before(self, node: NodeProto) -> bool:
        """Tell whether anything of CORE stands before this node."""
        return bool(self._before[node.name])

    def int8_nodes(self, keep_float: Collection[str]) -> Iterator[NodeProto]:
        """Yield the nodes that run in int8 when `keep_float` stay in float."""
        for node in self.proto.node:
            if node.name in keep_float or not self.is_float(node.output[0]):
                continue
            if node.op_type in CORE:
                # A Conv whose weights are computed has no weights to quantise.
                inside = not node.op_type.startswith("Conv") or node.input[1] in self.constants
            else:
                inside = node.op_type in BESIDE and self.between(node, keep_float) and not self.adds_constant(node)
            if inside:
                yield node

    def adds_constant(self, node: NodeProto) -> bool:
        """Tell whether this is a bias and not a junction."""
        return node.op_type == "Add" and any(name in self.constants for name in node.input)

    def main_input(self, add: NodeProto) -> str | None:
        """Return the input of an Add that its own convolution makes, which fuses with it; None where there is none.

        Where a convolution stands on either side (a block that halves the grid), it is that of the longer branch.
        """
        own = [
            name
            for name in add.input
            if (p := self.producer.get(name)) is not None and p.op_type in CORE and len(self.consumers[name]) == 1
        ]
        return max(own, key=lambda name: len(self.ancestors(self.producer[name])), default=None)

    def ancestors(self, node: NodeProto) -> set[str]:
        """Return the names of all nodes that a node depends on."""
        found: set[str] = set()
        queue = [node]
        while queue:
            for before in self._from(queue.pop()):
                if before.name not in found:
                    found.add(before.name)
                    queue.append(before)
        return found


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
