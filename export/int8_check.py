"""Whether a quantised graph is one that TensorRT makes fast: rules that can be checked without TensorRT."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from export.int8_graph import BESIDE, PAIR, Graph


def check_trt_structure(model: ModelProto, keep_float: Collection[str] = ()) -> list[str]:
    """Return what is wrong with a Q/DQ graph, one sentence each; nothing when all is well.

    The rules, from TensorRT's guide ("Working with quantized types", explicit quantisation):
    int8 and symmetric: every zero point 0 and of int8; scales positive and finite; weights of convolutions with one
    scale an output channel; every convolution behind Q/DQ pairs, frame and weights, unless kept in float, so that no
    float island lies between two in int8; the skip input of an Add and each input of a Concat between them likewise;
    no pair between a convolution and its own Add, where it hinders fusion; nothing quantised after the last
    convolution, so that the logits, what enlarges them, and ArgMax are outside.

    Args:
        model: Its nodes have names and its shapes are inferred (`int8_graph.prepare`).
        keep_float: Names of nodes that were left in float on purpose.
    """
    check = _Check(Graph(model.graph), keep_float)
    for node in model.graph.node:
        if node.op_type in PAIR:
            check.parameters(node)
            check.not_in_tail(node)
        elif node.name in keep_float or not check.graph.is_float(node.output[0]):
            continue
        elif check.graph.is_core(node):
            check.core(node)
        elif node.op_type in BESIDE and check.graph.between(node, check.outside):
            check.beside(node)
    return check.problems


class _Check:
    """The rules, one method each; `problems` grows."""

    def __init__(self, graph: Graph, keep_float: Collection[str]) -> None:
        self.graph = graph
        self.problems: list[str] = []
        # A Conv whose weights are computed cannot be quantised; the exporter leaves it, and so do the rules.
        self.outside = set(keep_float) | {
            n.name for n in graph.proto.node if n.op_type.startswith("Conv") and not self._weight_is_constant(n)
        }

    def _weight_is_constant(self, node: NodeProto) -> bool:
        name = node.input[1]
        maker = self.graph.producer.get(name)
        while maker is not None and (maker.op_type in PAIR or maker.op_type == "Cast"):
            name = maker.input[0]
            maker = self.graph.producer.get(name)
        return name in self.graph.constants

    def _say(self, node: NodeProto, what: str) -> None:
        self.problems.append(f"{node.op_type} {node.name}: {what}")

    def parameters(self, node: NodeProto) -> None:
        """Symmetric, int8, with scales that can be divided by."""
        if any(name not in self.graph.constants for name in node.input[1:]):
            self._say(node, "its scale or zero point is not a constant")
            return
        scale = self.graph.constant(node.input[1])
        if not (np.isfinite(scale).all() and (scale > np.zeros_like(scale)).all()):
            self._say(node, "a scale is not positive and finite")
        stored = self.graph.constants.get(node.input[0])
        if node.op_type == "DequantizeLinear" and stored is not None and stored.data_type != TensorProto.INT8:
            self._say(node, "its integers are not int8")
        if len(node.input) < 3:
            if node.op_type == "QuantizeLinear":
                self._say(node, "without a zero point it makes uint8; expected int8")
            return
        zero = self.graph.constants[node.input[2]]
        if zero.data_type != TensorProto.INT8:
            self._say(node, "its zero point is not int8")
        if np.count_nonzero(self.graph.constant(node.input[2])):
            self._say(node, "its zero point is not 0")

    def not_in_tail(self, node: NodeProto) -> None:
        """What follows the last convolution stays in float."""
        if not self.graph.has_core_after(node):
            self._say(
                node,
                "stands after the last convolution; the logits, what enlarges them and ArgMax are to stay in float",
            )

    def _dequantizes(self, name: str) -> NodeProto | None:
        node = self.graph.producer.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _covered(self, name: str) -> bool:
        """Tell whether an activation comes out of a whole pair."""
        node = self._dequantizes(name)
        before = None if node is None else self.graph.producer.get(node.input[0])
        return before is not None and before.op_type == "QuantizeLinear"

    def _is_int8(self, node: NodeProto) -> bool:
        return self._covered(node.input[0]) or self._dequantizes(node.input[0]) is not None

    def core(self, node: NodeProto) -> None:
        """Frame and weights quantised, weights per channel, bias in float."""
        if node.name in self.outside:
            return
        found = [self._dequantizes(name) for name in node.input[:2]]
        stored = [d is not None and d.input[0] in self.graph.constants for d in found]
        covered = [self._covered(name) or held for name, held in zip(node.input[:2], stored, strict=True)]
        if not all(covered):
            island = self.graph.between(node, self.outside)
            where = "a float island between two in int8" if island else "not between Q/DQ"
            self._say(node, f"{where}; its {'input' if not covered[0] else 'weights'} has no pair")
        weights = found[1]
        if node.op_type.startswith("Conv") and weights is not None:
            axis = next((a.i for a in weights.attribute if a.name == "axis"), 1)
            if not stored[1]:
                self._say(node, "its weights are float behind a pair; expected int8 with DequantizeLinear")
            elif self.graph.constants[weights.input[1]].dims != [self._channels(weights, node)]:
                self._say(node, "its weights have one scale; expected one a channel")
            elif axis != (1 if node.op_type == "ConvTranspose" else 0):
                self._say(node, f"its weights have scales along axis {axis}")
        if len(node.input) > 2 and self._dequantizes(node.input[2]) is not None:
            self._say(node, "its bias is quantised; TensorRT wants it in float")

    def _channels(self, weights: NodeProto, node: NodeProto) -> int:
        return int(self.graph.constants[weights.input[0]].dims[1 if node.op_type == "ConvTranspose" else 0])

    def beside(self, node: NodeProto) -> None:
        """Every input covered, but that of an Add which its own convolution makes."""
        if self.graph.adds_constant(node):
            return
        bare = [name for name in node.input if not self._covered(name)]
        if node.op_type != "Add":
            if bare:
                self._say(node, f"{len(bare)} of its {len(node.input)} inputs have no pair")
            return
        own = [name for name in node.input if self._made_for(name, node)]
        if not own and bare:
            self._say(node, f"{len(bare)} of its inputs have no pair")
        elif own and not bare:
            self._say(node, "a pair stands between it and its convolution, and hinders their fusion")
        elif len(bare) > 1 or any(name not in own for name in bare):
            self._say(node, "its skip input has no pair")

    def _made_for(self, name: str, add: NodeProto) -> bool:
        """Tell whether one of CORE makes this for the Add alone, directly or through a pair."""
        users = self.graph.consumers[name]
        node = self.graph.producer.get(name)
        while node is not None and node.op_type in PAIR and len(users) == 1:
            name = node.input[0]
            node, users = self.graph.producer.get(name), self.graph.consumers[name]
        return node is not None and self.graph.is_core(node) and len(users) == 1 and add.op_type == "Add"
