"""fp16 in the graph: what can be halved is halved, what needs fp32 keeps it, and real frames decide.

onnxruntime's `convert_float_to_float16` does not do for these graphs: it writes casts behind the nodes that use them,
so that the checker refuses the file, and where the mean is to stay in fp32 it rounds it to fp16 all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from deploy.artifact import PRECISION_KEY, check_model_file, read_spec
from export.errors import GateError
from export.int8_graph import CORE, PAIR, Graph, drop_unused, prepare, replace_nodes
from export.parity import Parity, compare
from export.runnable import open_file
from lfd.data import Dataset
from lfd.errors import ExportError, ModelError
from lfd.files import replacing
from lfd.spec import ModelSpec

MIN_AGREEMENT_FP16 = 0.995
"""Share of pixels on which fp16 must give the class of its source; trained networks lose a tenth of that or less."""

FP32_OPS = frozenset(
    {
        # Sums over the whole grid: fp16 has 11 bits, and 65504 is soon reached.
        *("ReduceMean", "ReduceSum", "GlobalAveragePool", "CumSum"),
        # Small differences, squares and exponentials.
        *(
            "BatchNormalization",
            "GroupNormalization",
            "InstanceNormalization",
            "LayerNormalization",
            "Softmax",
            "LogSoftmax",
        ),
        *("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus"),
    }
)
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity")
ALWAYS_FP32_INPUTS = {"Resize": (2,)}
"""Inputs that ONNX fixes to fp32: the scales of Resize."""
LARGEST, SMALLEST = float(np.finfo(np.float16).max), float(np.finfo(np.float16).tiny)


def load_source(path: Path) -> tuple[ModelProto, ModelSpec]:
    """Read an fp32 ONNX file of ours.

    Raises:
        ModelError: It is missing, broken, not one of ours, or not fp32.
    """
    check_model_file(path)
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError and the checker's have no common base
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: is not a valid ONNX file ({reason}). Fix: export the model again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    spec = read_spec(metadata, path)
    inputs = [v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type != TensorProto.UINT8:
        raise ModelError(f"{path}: its graph does not take one uint8 frame. Fix: write it with lfd-export onnx")
    found = metadata.get(PRECISION_KEY, "fp32")
    if any(node.op_type in PAIR for node in model.graph.node):
        found = "int8"
    elif any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer):
        found = "fp16"
    if found != "fp32":
        raise ModelError(
            f"{path}: is {found} already; expected fp32. Fix: start from the file that lfd-export onnx wrote"
        )
    return model, spec


def set_metadata(model: ModelProto, values: Mapping[str, str]) -> None:
    """Set entries of a model's metadata; others stay."""
    for entry in [entry for entry in model.metadata_props if entry.key in values]:
        model.metadata_props.remove(entry)
    for key, value in values.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def save_checked(model: ModelProto, path: Path) -> None:
    """Check a model and write it through `lfd.files.replacing`.

    Raises:
        ExportError: It is not valid ONNX, which is a defect of ours.
        OSError: The disk is full, or the place cannot be written to; nothing is left.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path}: the graph is not valid ONNX ({' '.join(str(error).split())[:300]})") from error
    with replacing(path) as aside:
        aside.write_bytes(model.SerializeToString())


def to_fp16(source: Path, out: Path) -> list[str]:
    """Write an fp32 ONNX file of ours in fp16; the caller compares it on frames (`MIN_AGREEMENT_FP16`).

    Input and output keep their types: uint8 frame, uint8 class map or float32 logits.

    Args:
        source: The file.
        out: The file to write.

    Returns:
        What stayed in fp32, as `Op name`.

    Raises:
        ModelError: The source is missing, not ours, or not fp32.
        ExportError: The result is not valid ONNX.
    """
    model, _ = load_source(source)
    halved, kept = halve(model)
    set_metadata(halved, {PRECISION_KEY: "fp16"})
    save_checked(halved, out)
    return kept


def checked_fp16(
    source: Path,
    out: Path,
    dataset: Dataset,
    pictures: int | None = None,
    required: float = MIN_AGREEMENT_FP16,
) -> tuple[list[str], Parity]:
    """Write an fp32 ONNX file of ours in fp16 once it agrees with its source on real frames.

    Args:
        source: The file.
        out: The file to write.
        dataset: Labelled pictures of the model's classes.
        pictures: At most so many, spread evenly; None takes all.
        required: Share of pixels that must have the same class.

    Returns:
        What stayed in fp32, as `Op name`, and how alike they are.

    Raises:
        ModelError: The source is missing, not ours, or not fp32, or the labels do not fit.
        DataError: A picture cannot be read.
        GateError: They differ too much; nothing was written.
    """
    with replacing(out) as aside:
        kept = to_fp16(source, aside)
        with open_file(source, "ort") as a, open_file(aside, "ort") as b:
            parity = compare(a, b, dataset, pictures, required)
        if not parity:
            raise GateError(
                f"{out} was not written: fp16 changes the classes. {parity}. Fix: ship {source.name}, or allow more"
            )
    return kept, parity


def halve(model: ModelProto) -> tuple[ModelProto, list[str]]:
    """Return a copy in fp16, and what stayed in fp32 as `Op name`.

    fp32 stay: the subtraction of the mean, which is no number of fp16; FP32_OPS; nodes with a constant that fp16 cannot
    hold, or whose factors would all be subnormal numbers. Scales of Q/DQ pairs become fp16.
    """
    copy = prepare(model)
    graph = Graph(copy.graph)
    work = _Halving(graph)
    for node in copy.graph.node:
        work.take(node)
    work.restore_outputs()
    replace_nodes(copy.graph, work.nodes)
    copy.graph.initializer.extend(work.constants)
    drop_unused(copy.graph)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True), work.kept


class _Halving:
    """One pass over the nodes in their order, with the present type of every tensor."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.kept: list[str] = []
        self._half: set[str] = set()
        self._casts: dict[tuple[str, int], str] = {}

    def take(self, node: NodeProto) -> None:
        """Append a node in its type, behind the casts that it needs."""
        floats = [index for index, name in enumerate(node.input) if name and self.graph.is_float(name)]
        makes = [name for name in node.output if self.graph.is_float(name)]
        if node.op_type == "Cast" or not (floats or makes):
            # A cast says its type itself: the frame's to fp32 before the mean, argmax's on the way to uint8.
            self.nodes.append(node)
            return
        keep = self._needs_fp32(node)
        if keep:
            self.kept.append(f"{node.op_type} {node.name}")
        fixed = ALWAYS_FP32_INPUTS.get(node.op_type, ())
        for index in floats:
            wanted = TensorProto.FLOAT if keep or index in fixed else TensorProto.FLOAT16
            node.input[index] = self._as(node.input[index], wanted)
        self.nodes.append(node)
        if not keep:
            self._half.update(makes)
            for attribute in node.attribute:  # ConstantOfShape
                if attribute.t.data_type == TensorProto.FLOAT:
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))

    def _needs_fp32(self, node: NodeProto) -> bool:
        if node.op_type in FP32_OPS:
            return True
        if node.op_type in PAIR:  # scales are chosen to fit
            return False
        if node.op_type not in (*CORE, *MOVES) and not self.graph.has_core_before(node):
            return True  # the mean
        fixed = ALWAYS_FP32_INPUTS.get(node.op_type, ())
        for index, name in enumerate(node.input):
            if name not in self.graph.constants or not self.graph.is_float(name) or index in fixed:
                continue
            largest = float(np.abs(self.graph.constant(name)).max(initial=0.0))
            # What is multiplied must keep its digits; what is added and that small does not matter.
            factor = node.op_type in ("Mul", "Div") or (node.op_type in CORE and index < 2)
            if largest > LARGEST or (factor and 0 < largest < SMALLEST):
                return True
        return False

    def _as(self, name: str, wanted: int) -> str:
        """Return the name of a tensor in a type, made by a cast or a second constant where need be."""
        now = TensorProto.FLOAT16 if name in self._half else TensorProto.FLOAT
        if now == wanted:
            return name
        if (name, wanted) not in self._casts:
            other = f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}"
            self._casts[name, wanted] = other
            if name in self.graph.constants:
                half = self.graph.constant(name).astype(np.float16)
                self.constants.append(numpy_helper.from_array(half, other))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], f"{other}_cast", to=wanted))
        return self._casts[name, wanted]

    def restore_outputs(self) -> None:
        """Give logits back in float32, as the ModelSpec says."""
        for output in self.graph.proto.output:
            if output.name not in self._half:
                continue
            inner = f"{output.name}_half"
            for node in self.nodes:
                for names in (node.input, node.output):
                    for index, name in enumerate(names):
                        if name == output.name:
                            names[index] = inner
            cast = helper.make_node("Cast", [inner], [output.name], f"{output.name}_cast", to=TensorProto.FLOAT)
            self.nodes.append(cast)
