"""Ranges that were learnt in training: how they come into a file, and out of it into the INT8 graph.

`to_onnx` exports a network of `lfd-train ... --quantize` with a mark at each tensor that training rounded, takes the
marks out again and writes the scales into the fp32 file's metadata, by tensor. So the exporter itself says which tensor
of the graph is which tensor of the network, whatever it renames, folds or reorders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import ModelProto, TensorProto

from export.int8_graph import Graph, drop_unused, prepare, replace_nodes
from lfd.errors import ExportError, ModelError, require
from lfd.quantize.rounding import held
from lfd.quantize.topology import SAME_RANGE, TARGETS, Target

TRAINED_KEY = "lfd_trained_ranges"
MAX_JSON_BYTES = 1 << 20


@dataclass(frozen=True)
class Trained:
    """The grid of each tensor that training rounded.

    Attributes:
        target: For whom it did.
        grids: Tensor name to (scale, zero point): unsigned for ONNX Runtime, else signed with a zero point of 0.
        handed_on: Likewise, of tensors that hold values of those.
    """

    target: Target
    grids: Mapping[str, tuple[float, int]]
    handed_on: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What the exporter makes the same grids of: tensor name to (lowest, highest)."""
        every = {**self.handed_on, **self.grids}
        if self.target == "ort":
            return {name: (-zero * scale, (255 - zero) * scale) for name, (scale, zero) in every.items()}
        return {name: (-127 * scale, 127 * scale) for name, (scale, _) in every.items()}

    def to_json(self) -> str:
        """Return it as JSON text that `read` reads back."""
        return json.dumps({"target": self.target, "grids": {name: list(grid) for name, grid in self.grids.items()}})


def read(model: ModelProto, origin: str) -> Trained | None:
    """Return the trained ranges that a file carries; None where it has none.

    Raises:
        ModelError: They are not valid.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == TRAINED_KEY), None)
    if text is None:
        return None
    try:
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"{len(text)} bytes")
        record = json.loads(text)
        target = next(known for known in TARGETS if known == record["target"])
        grids = {str(name): (float(scale), int(zero)) for name, (scale, zero) in record["grids"].items()}
        low, high = (0, 255) if target == "ort" else (0, 0)
        for name, (scale, zero) in grids.items():
            if not (math.isfinite(scale) and scale > 0 and low <= zero <= high):
                raise ValueError(f"{name}: scale {scale}, zero point {zero}")
        return Trained(target, grids, _handed_on(model, grids) if target == "ort" else {})
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise ModelError(
            f"{origin}: its trained ranges cannot be read ({type(error).__name__}: {error}). "
            "Fix: write the file again with lfd-export onnx"
        ) from error


def _handed_on(model: ModelProto, grids: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    """Return the grids of what holds values of rounded tensors: it is rounded itself once their maker is in float."""
    found: dict[str, tuple[float, int]] = {}
    for node in model.graph.node:
        if node.op_type in (*SAME_RANGE, "Slice", "Reshape") and node.output[0] not in grids:
            grid = grids.get(node.input[0], found.get(node.input[0]))
            if grid is not None:
                found[node.output[0]] = grid
    return found


def mark_table() -> dict[Any, Any]:
    """Return how the exporter is to write a mark: as a Q/DQ pair, whose scale is the mark's number from 1."""
    op: Any = require("onnxscript", "export").opset20

    def mark(tensor: Any, number: int) -> Any:
        scale, zero = op.Constant(value_float=float(number + 1)), op.Cast(op.Constant(value_int=0), to=TensorProto.INT8)
        return op.DequantizeLinear(op.QuantizeLinear(tensor, scale, zero), scale, zero)

    return {torch.ops.lfd.mark.default: mark}


def take_marks(model: ModelProto, target: Target, grids: Sequence[tuple[float, int]], name: str) -> Trained:
    """Take the marks out of a graph and return the grid of each tensor that had one.

    Args:
        model: Exported with them; changed in place to the float graph.
        target: For whom the network was trained.
        grids: Scale and zero point by a mark's number.
        name: The network's, for messages.

    Raises:
        ExportError: The exporter has left a mark out, or made one tensor of two.
    """
    graph = Graph(prepare(model).graph)  # constants as initializers
    source: dict[str, str] = {}  # behind a mark, and what is before it
    found: dict[str, int] = {}
    gone: set[str] = set()
    seen: set[int] = set()
    for node in graph.proto.node:
        before = graph.producer.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None:
            continue
        tensor = source.get(before.input[0], before.input[0])
        number = round(float(graph.constant(before.input[1]))) - 1
        seen.add(number)
        if grids[found.setdefault(tensor, number)] != grids[number]:
            raise ExportError(f"{name}: the exported graph makes one tensor, {tensor}, of two that training rounded")
        source[node.output[0]] = tensor
        gone |= {node.name, before.name}
    missing = len(grids) - len(seen)
    if missing:
        raise ExportError(f"{name}: {missing} of {len(grids)} tensors that training rounded are not in the graph")
    kept = [node for node in graph.proto.node if node.name not in gone]
    for node in kept:
        for index, tensor in enumerate(node.input):
            node.input[index] = source.get(tensor, tensor)
    replace_nodes(model.graph, kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(graph.proto.initializer)
    drop_unused(model.graph)
    made = {tensor for node in kept for tensor in node.output}
    infos = [info for info in model.graph.value_info if info.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos)
    return Trained(target, {tensor: grids[number] for tensor, number in found.items()})


def check_grids(model: ModelProto, trained: Trained, keep_float: Collection[str] = ()) -> None:
    """Refuse an INT8 graph that rounds anything else than what training did.

    Args:
        model: The graph, in fp32 beside its pairs.
        trained: What training rounded.
        keep_float: Nodes that were put back to float.

    Raises:
        ExportError: It does.
    """
    graph = Graph(model.graph)
    pairs = [node for node in graph.proto.node if node.op_type == "QuantizeLinear"]
    found = {node.input[0]: node for node in pairs if node.input[0] not in graph.constants}
    grids = {**trained.handed_on, **trained.grids}
    known = {tuple(node.input[1:]) for tensor, node in found.items() if tensor in grids}
    for tensor, node in found.items():
        if tensor in grids:
            scale, zero = grids[tensor]
            value, wanted = float(graph.constant(node.input[1])), float(held(torch.tensor(scale), trained.target))
            slack = 1e-4 * wanted if trained.target == "ort" else 0.0  # ONNX Runtime makes it of a range again
            if not abs(value - wanted) <= slack or int(graph.constant(node.input[2])) != zero:
                raise ExportError(f"the int8 graph rounds {tensor} by {value:g}, training did by {wanted:g}")
        elif tuple(node.input[1:]) not in known:  # ONNX Runtime hands integers on, with their scale
            raise ExportError(f"the int8 graph rounds {tensor}, which training left in float")
    missing = [tensor for tensor in trained.grids if tensor not in found]
    if missing and not keep_float:
        raise ExportError(f"training rounded {missing[0]}, which the int8 graph leaves in float")
