"""What an ONNX file asks of TensorRT: its input, and the precision of each convolution."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.artifact import PRECISION_KEY, check_model_file, read_spec
from lfd.errors import ExportError, ModelError, require
from lfd.spec import ModelSpec

CONVOLUTIONS = ("Conv", "ConvTranspose")
PASSES = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
"""Nodes between a weight and its convolution that leave its type as it is."""


@dataclass(frozen=True)
class Request:
    """What an ONNX file asks for.

    Attributes:
        path: The file.
        data: Its bytes: what is hashed, read and built is one and the same.
        spec: Its ModelSpec.
        input_name: Name of the frame's tensor.
        input_shape: (B, H, W, 3); B is None where the file leaves the batch open.
        convolutions: Name of each convolution to the precision it asks for: `int8` where Q/DQ pairs stand before both
            frame and weights, otherwise the type of its weights (`fp32`, `fp16`, `bf16`).
    """

    path: Path
    data: bytes = field(repr=False)
    spec: ModelSpec
    input_name: str
    input_shape: tuple[int | None, int, int, int]
    convolutions: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def precision(self) -> str:
        """The lowest precision that any convolution asks for."""
        asked = set(self.convolutions.values())
        return next((p for p in ("int8", "fp16", "bf16") if p in asked), "fp32")


class _Graph:
    """A graph with its tensors by name."""

    def __init__(self, proto: Any, onnx: Any) -> None:
        self.nodes = list(proto.graph.node)
        self.onnx = onnx
        self.types = onnx.TensorProto
        self.constants = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producer: dict[str, Any] = {}
        for node in self.nodes:
            self.producer.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant":
                self.constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")

    def source(self, name: str) -> Any:
        """Return the node that makes a tensor, past those that only move it; None for a constant or an input."""
        node = self.producer.get(name)
        while node is not None and node.op_type in PASSES and node.input[0] not in self.constants:
            node = self.producer.get(node.input[0])
        return node

    def precision(self, weight: str) -> str:
        """Return the type in which a weight reaches its convolution."""
        node = self.source(weight)
        kind = None
        if node is not None and node.op_type in PASSES:
            kind = self.constants[node.input[0]].data_type
        elif weight in self.constants:
            kind = self.constants[weight].data_type
        elif node is not None and node.op_type == "DequantizeLinear" and node.input[1] in self.constants:
            kind = self.constants[node.input[1]].data_type  # a dequantised tensor has its scale's type
        elif node is not None and node.op_type == "Cast":
            kind = next(a.i for a in node.attribute if a.name == "to")
        names = {self.types.FLOAT: "fp32", self.types.FLOAT16: "fp16", self.types.BFLOAT16: "bf16"}
        return names.get(kind, "another type")

    def convolutions(self) -> dict[str, str]:
        """Return what each convolution asks for."""
        asked = {}
        for node in self.nodes:
            if node.op_type in CONVOLUTIONS:
                before = [self.source(name) for name in node.input[:2]]
                quantised = all(n is not None and n.op_type == "DequantizeLinear" for n in before)
                name = node.name or f"{node.op_type} of {node.output[0]}"
                asked[name] = "int8" if quantised else self.precision(node.input[1])
        return asked

    def asymmetric(self) -> list[str]:
        """Return the Q/DQ nodes that TensorRT cannot take: of uint8, or with a zero point other than 0."""
        found = []
        for node in self.nodes:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            zero = self.constants.get(node.input[2]) if len(node.input) > 2 else None
            if zero is None:  # the standard's default: uint8 for QuantizeLinear, 0 of the input's type for the other
                wrong = node.op_type == "QuantizeLinear"
            else:
                signed = zero.data_type not in (self.types.UINT8, self.types.UINT16)
                wrong = not signed or bool(self.onnx.numpy_helper.to_array(zero).any())
            if wrong:
                found.append(node.name or node.output[0])
        return found


def read_request(path: Path) -> Request:
    """Read what an ONNX file asks for.

    Args:
        path: A file written by lfd-export: one uint8 frame in, a class map or logits out, weights inside.

    Raises:
        ModelError: It is missing, broken, or not such a file.
        ExportError: TensorRT cannot take it.
        MissingDependencyError: onnx is not installed.
    """
    onnx = require("onnx", "trt")
    check_model_file(path)
    data = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError, whose package we do not depend on by ourselves
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: is not an ONNX file ({reason}). Fix: export the model again") from error
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    spec = read_spec(metadata, path)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        raise ModelError(f"{path}: keeps weights in other files; expected one file. Fix: write it with lfd-export onnx")
    graph = _Graph(proto, onnx)
    name, shape = _frame(proto, graph, spec, path)
    if asymmetric := graph.asymmetric():
        raise ExportError(
            f"{path}: {len(asymmetric)} of its Q/DQ nodes, such as {asymmetric[0]}, use uint8 or a zero point other "
            "than 0; TensorRT takes symmetric int8. Fix: quantise with lfd-export int8 --target trt"
        )
    request = Request(path, data, spec, name, shape, graph.convolutions())
    if strange := [name for name, kind in request.convolutions.items() if kind == "another type"]:
        raise ExportError(f"{path}: {strange[0]} has weights of a type other than fp32, fp16, bf16 and int8 with Q/DQ")
    if (said := metadata.get(PRECISION_KEY, request.precision)) != request.precision:
        counts = dict(Counter(request.convolutions.values()))
        raise ModelError(
            f"{path}: says that it is {said}, but its convolutions are {counts}. Fix: make it again with lfd-export"
        )
    return request


def _frame(proto: Any, graph: _Graph, spec: ModelSpec, path: Path) -> tuple[str, tuple[int | None, int, int, int]]:
    """Return the input's name and (B, H, W, 3), checked against the specification, as is the output."""
    inputs = [value for value in proto.graph.input if value.name not in graph.constants]
    outputs = list(proto.graph.output)
    forms = {"class_map": (graph.types.UINT8, 3), "logits": (graph.types.FLOAT, 4)}
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0].type.tensor_type.elem_type != graph.types.UINT8:
        raise ModelError(f"{path}: its graph does not take one uint8 frame. Fix: write it with lfd-export onnx")
    shape = [d.dim_value or None for d in inputs[0].type.tensor_type.shape.dim]
    wanted = [*spec.preprocess.size_hw, 3]
    if len(shape) != 4 or shape[1:] != wanted:
        raise ModelError(f"{path}: takes {shape[1:]}, but its ModelSpec says {wanted}. Fix: export again")
    kind = outputs[0].type.tensor_type
    if (kind.elem_type, len(kind.shape.dim)) != forms[spec.output]:
        raise ModelError(f"{path}: its output is not what its ModelSpec says: {spec.output}. Fix: export again")
    return inputs[0].name, (shape[0], *spec.preprocess.size_hw, 3)
