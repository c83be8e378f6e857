"""INT8 ONNX: calibrated on real frames, with the Q/DQ pairs that its target wants.

    target      activations                weights             remainder   by
    ort         uint8, zero point          int8 per channel    fp32        onnxruntime's quantize_static
    openvino    int8, symmetric            int8 per channel    fp32        export.int8_insert
    trt         int8, symmetric            int8 per channel    fp16        export.int8_insert

One file does not serve all: ONNX Runtime runs the symmetric one 3 times slower than fp32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto

from deploy.artifact import PRECISION_KEY
from deploy.session import INT8_TARGET_KEY
from export.calibration import CALIBRATION_KEY, Frames
from export.fp16 import halve, load_source, save_checked, set_metadata
from export.int8_check import check_trt_structure
from export.int8_graph import BESIDE, CORE, Graph, prepare
from export.int8_insert import insert_pairs
from export.int8_ranges import Method, Ranges, measure
from lfd.errors import ExportError, UsageError, require

Target = Literal["trt", "ort", "openvino"]
TARGETS: tuple[Target, ...] = ("trt", "ort", "openvino")
KEEP_FLOAT_KEY = "lfd_keep_float"

ORT_TYPES = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Concat", "MaxPool", "AveragePool"),
    # Taken into the integers' range where they follow one of the above, or handed through.
    *("Relu", "Clip", "Slice", "Reshape"),
)
"""Not Resize and ArgMax, which the default takes too; HardSwish, HardSigmoid and ReduceMean stay in float."""


@dataclass(frozen=True)
class QuantReport:
    """What was quantised.

    Attributes:
        target: For whom.
        method: How ranges were chosen.
        layers: How many convolutions and matrix products there are.
        in_int8: How many of them run in int8.
        kept_float: Those left in float on purpose.
        frames: Calibration frames.
        calibration_sha256: Their hash.
        passes: Runs of the network a frame.
        held_mb: Activations held at once while calibrating, MB.
    """

    target: Target
    method: Method
    layers: int
    in_int8: int
    kept_float: tuple[str, ...]
    frames: int
    calibration_sha256: str
    passes: int
    held_mb: float

    def __str__(self) -> str:
        kept = f", {len(self.kept_float)} kept in float" if self.kept_float else ""
        return (
            f"{self.in_int8} of {self.layers} layers in int8 for {self.target}{kept}; {self.method} of {self.frames} "
            f"frames ({self.calibration_sha256[:12]}), {self.held_mb:.0f} MB of activations at once, {self.passes} pass"
            f"{'es' if self.passes > 1 else ''}"
        )


@dataclass(frozen=True)
class Calibrated:
    """An fp32 graph and the ranges of its activations, from which any number of int8 graphs are made."""

    model: ModelProto
    ranges: Ranges
    frames: Frames
    method: Method

    @property
    def layers(self) -> list[str]:
        """Names of what runs in int8 when nothing is kept in float, in the graph's order."""
        return [node.name for node in Graph(self.model.graph).int8_nodes(()) if node.op_type in CORE]


def quantize(
    source: Path, out: Path, frames: Frames, target: Target, method: Method, keep_float: Collection[str] = ()
) -> QuantReport:
    """Write an fp32 ONNX file of ours in int8.

    Args:
        source: The file.
        out: The file to write.
        frames: For calibration.
        target: Who is to run it.
        method: `minmax`, `percentile` or `entropy`.
        keep_float: Names of nodes that stay in float.

    Raises:
        ModelError: The source is missing, not ours, or not fp32.
        DataError: A frame cannot be read.
        UsageError: `keep_float` names what is not there.
        ExportError: Nothing in it can be quantised, or the result is not what the target needs.
    """
    calibrated = calibrate(source, frames, method)
    model = build(calibrated, target, keep_float)
    save_checked(model, out)
    return report(calibrated, target, keep_float)


def calibrate(
    source: Path, frames: Frames, method: Method, progress: Callable[[int, int], None] | None = None
) -> Calibrated:
    """Measure the ranges of a file's activations; see `quantize`."""
    original, _ = load_source(source)
    model = prepare(original)
    if not any(node.op_type in CORE for node in Graph(model.graph).int8_nodes(())):
        kinds = ", ".join(sorted({node.op_type for node in model.graph.node}))
        raise ExportError(f"{source}: has no operator that can be quantised, of {', '.join(CORE)}; it has {kinds}")
    return Calibrated(model, measure(model, _activations(model), frames, method, progress), frames, method)


def _activations(model: ModelProto) -> list[str]:
    """Return the float activations whose range any flavour asks for."""
    graph = Graph(model.graph)
    names = [n for node in model.graph.node if node.op_type in ORT_TYPES for n in (*node.input, *node.output)]
    known = dict.fromkeys(n for n in names if n and n not in graph.constants and graph.is_float(n))
    return list(known)


def report(calibrated: Calibrated, target: Target, keep_float: Collection[str]) -> QuantReport:
    """Describe what `build` makes."""
    graph = Graph(calibrated.model.graph)
    in_int8 = sum(node.op_type in CORE for node in graph.int8_nodes(keep_float))
    return QuantReport(
        target,
        calibrated.method,
        len(calibrated.layers),
        in_int8,
        tuple(sorted(keep_float)),
        len(calibrated.frames),
        calibrated.frames.sha256,
        calibrated.ranges.passes,
        calibrated.ranges.held_mb,
    )


def build(calibrated: Calibrated, target: Target, keep_float: Collection[str] = ()) -> ModelProto:
    """Make the int8 graph for a target, checked; see `quantize`."""
    names = {node.name for node in calibrated.model.graph.node}
    if unknown := sorted(set(keep_float) - names):
        raise UsageError(f"keep in float {unknown[0]!r}: no such node in the graph")
    model = ModelProto()
    model.CopyFrom(calibrated.model)
    if not any(node.op_type in CORE for node in Graph(model.graph).int8_nodes(keep_float)):
        raise ExportError("every layer is kept in float; nothing is left for int8. Fix: ship the fp32 or fp16 file")
    if target == "ort":
        model = _for_ort(calibrated, keep_float)
    else:
        insert_pairs(model, calibrated.ranges.of, keep_float, half_scales=target == "trt")
        model = halve(model)[0] if target == "trt" else prepare(model)
        if problems := check_trt_structure(model, keep_float):
            raise ExportError(f"the int8 graph is not what {target} needs ({len(problems)} problems): {problems[0]}")
    values = {
        PRECISION_KEY: "int8",
        INT8_TARGET_KEY: target,
        CALIBRATION_KEY: calibrated.frames.record(calibrated.method),
    }
    set_metadata(model, values | ({KEEP_FLOAT_KEY: json.dumps(sorted(keep_float))} if keep_float else {}))
    return model


def _for_ort(calibrated: Calibrated, keep_float: Collection[str]) -> ModelProto:
    """Quantise as ONNX Runtime's kernels on x86 and ARM want it: u8s8 with pairs around each operator."""
    quantization: Any = require("onnxruntime.quantization", "export")
    storage: Any = require("onnxruntime.quantization.calibrate", "export")
    data = {
        name: storage.TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in calibrated.ranges.of.items()
    }
    graph = Graph(calibrated.model.graph)
    inside = {node.name for node in graph.int8_nodes(keep_float)}
    outside = [
        node.name
        for node in graph.proto.node
        # Of what can go to either side, only that stays which ends in logits: 8 bits there are ties between classes.
        if node.op_type in ORT_TYPES and (node.op_type in (*CORE, *BESIDE) and node.name not in inside)
    ]
    model = ModelProto()
    model.CopyFrom(calibrated.model)
    set_metadata(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # what it looks for before it complains
    with tempfile.TemporaryDirectory(prefix="lfd-int8-") as folder:
        source, out, cache = (Path(folder) / name for name in ("in.onnx", "out.onnx", "ranges.json"))
        onnx.save(model, str(source))
        storage.save_tensors_data(storage.TensorsData(quantization.CalibrationMethod.MinMax, data), cache)
        quantization.quantize_static(
            str(source),
            str(out),
            None,
            calibration_cache_path=cache,
            calibrate_method=quantization.CalibrationMethod.MinMax,  # ranges are chosen already; it only reads them
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(ORT_TYPES),
            nodes_to_exclude=outside,
            per_channel=True,
            reduce_range=False,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        made = onnx.load(str(out))
    return _clean(made, {e.key: e.value for e in calibrated.model.metadata_props})


def _clean(model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
    """Remove opset domains that no node uses, and what the quantiser says of itself."""
    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain not in used]
    for entry in opsets:
        model.opset_import.remove(entry)
    del model.metadata_props[:]
    set_metadata(model, metadata)
    return model
