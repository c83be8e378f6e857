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
from export.int8_stem import pair_stem
from export.int8_trained import Trained, check_grids, read
from lfd.errors import ExportError, UsageError, require
from lfd.quantize.topology import TARGETS, Target

__all__ = [
    "KEEP_FLOAT_KEY",
    "ORT_TYPES",
    "TARGETS",
    "Calibrated",
    "QuantReport",
    "Target",
    "build",
    "calibrate",
    "quantize",
    "report",
]

KEEP_FLOAT_KEY = "lfd_keep_float"
TRAINED = json.dumps({"source": "training", "method": "trained"})
"""What an int8 file says of its calibration when there was none."""

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
        method: How ranges were chosen; `trained`: by training, and the last four attributes are empty.
        layers: How many convolutions and matrix products there are.
        in_int8: How many of them run in int8.
        kept_float: Those left in float on purpose.
        frames: Calibration frames.
        calibration_sha256: Their hash.
        passes: Runs of the network a frame.
        held_mb: Activations held at once while calibrating, MB.
    """

    target: Target
    method: Method | Literal["trained"]
    layers: int
    in_int8: int
    kept_float: tuple[str, ...]
    frames: int
    calibration_sha256: str
    passes: int
    held_mb: float

    def __str__(self) -> str:
        kept = f", {len(self.kept_float)} kept in float" if self.kept_float else ""
        about = f"{self.in_int8} of {self.layers} layers in int8 for {self.target}{kept}"
        if self.method == "trained":
            return f"{about}; ranges of training"
        return (
            f"{about}; {self.method} of {self.frames} "
            f"frames ({self.calibration_sha256[:12]}), {self.held_mb:.0f} MB of activations at once, {self.passes} pass"
            f"{'es' if self.passes > 1 else ''}"
        )


@dataclass(frozen=True)
class Calibrated:
    """An fp32 graph and the ranges of its activations, from which any number of int8 graphs are made.

    Attributes:
        model: The graph.
        ranges: Measured on frames; of none where training's are to be taken.
        frames: For the ranges, and for ranking layers.
        method: How ranges were chosen.
        trained: What training rounded, for the one target that it was for: there it is taken in place of `ranges`.
    """

    model: ModelProto
    ranges: Ranges
    frames: Frames
    method: Method
    trained: Trained | None = None

    def of_training(self, target: Target) -> Trained | None:
        """Return what training rounded for a target; None where ranges were measured for it."""
        return self.trained if self.trained is not None and self.trained.target == target else None

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
    model, trained = _load(source)
    return Calibrated(model, measure(model, _activations(model), frames, method, progress), frames, method, trained)


def trained_for(source: Path) -> Target | None:
    """Return whose INT8 a file's network was trained in; None where it was trained in float.

    Raises:
        ModelError: The source is missing, not ours, not fp32, or its ranges are not valid.
    """
    trained = read(load_source(source)[0], str(source))
    return None if trained is None else trained.target


def with_trained_ranges(source: Path, target: Target) -> Calibrated:
    """Take the ranges that a file brings from `lfd-train ... --quantize`, and measure none.

    Args:
        source: The file.
        target: Who is to run it.

    Raises:
        ModelError: The source is missing, not ours, not fp32, or its ranges are not valid.
        UsageError: It brings none, or those for another target.
    """
    model, trained = _load(source)
    if trained is None:
        raise UsageError(f"{source} brings no trained ranges; give --calib, frames to measure them on")
    if trained.target != target:
        raise UsageError(
            f"{source} was trained in INT8 for {trained.target}, not for {target}. Fix: --target {trained.target}, or "
            "--calib, frames to measure ranges on"
        )
    none = Frames("training", None, 0, "", lambda: iter(()))
    return Calibrated(model, Ranges(trained.ranges, 0, 0, 0.0), none, "minmax", trained)


def _load(source: Path) -> tuple[ModelProto, Trained | None]:
    original, _ = load_source(source)
    model = prepare(original)
    if not any(node.op_type in CORE for node in Graph(model.graph).int8_nodes(())):
        kinds = ", ".join(sorted({node.op_type for node in model.graph.node}))
        raise ExportError(f"{source}: has no operator that can be quantised, of {', '.join(CORE)}; it has {kinds}")
    return model, read(original, str(source))


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
    if calibrated.of_training(target) is not None:
        return QuantReport(target, "trained", len(calibrated.layers), in_int8, tuple(sorted(keep_float)), 0, "", 0, 0.0)
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
    trained = calibrated.of_training(target)
    ranges = calibrated.ranges.of if trained is None else trained.ranges
    model = ModelProto()
    model.CopyFrom(calibrated.model)
    if not any(node.op_type in CORE for node in Graph(model.graph).int8_nodes(keep_float)):
        raise ExportError("every layer is kept in float; nothing is left for int8. Fix: ship the fp32 or fp16 file")
    if target == "ort":
        model = _for_ort(calibrated.model, ranges, keep_float)
        if trained is not None:
            check_grids(model, trained, keep_float)
    else:
        insert_pairs(model, ranges, keep_float, half_scales=target == "trt")
        if trained is not None:
            check_grids(model, trained, keep_float)
        model = halve(model)[0] if target == "trt" else prepare(model)
        if problems := check_trt_structure(model, keep_float):
            raise ExportError(f"the int8 graph is not what {target} needs ({len(problems)} problems): {problems[0]}")
    values = {
        PRECISION_KEY: "int8",
        INT8_TARGET_KEY: target,
        CALIBRATION_KEY: calibrated.frames.record(calibrated.method) if trained is None else TRAINED,
    }
    set_metadata(model, values | ({KEEP_FLOAT_KEY: json.dumps(sorted(keep_float))} if keep_float else {}))
    return model


def _for_ort(source: ModelProto, ranges: Mapping[str, tuple[float, float]], keep_float: Collection[str]) -> ModelProto:
    """Quantise as ONNX Runtime's kernels on x86 and ARM want it: u8s8 with pairs around each operator."""
    quantization: Any = require("onnxruntime.quantization", "export")
    storage: Any = require("onnxruntime.quantization.calibrate", "export")
    data = {
        name: storage.TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        # It also asks for the ranges of tensors that it does not quantise.
        for name, (low, high) in {**dict.fromkeys(_activations(source), (0.0, 0.0)), **ranges}.items()
    }
    graph = Graph(source.graph)
    inside = {node.name for node in graph.int8_nodes(keep_float)}
    outside = [
        node.name
        for node in graph.proto.node
        # Of what can go to either side, only that stays which ends in logits: 8 bits there are ties between classes.
        if node.op_type in ORT_TYPES and (node.op_type in (*CORE, *BESIDE) and node.name not in inside)
    ]
    model = ModelProto()
    model.CopyFrom(pair_stem(source))
    set_metadata(model, {"onnx.quant.pre_process": "onnxruntime.quant"})  # what it looks for before it complains
    with tempfile.TemporaryDirectory(prefix="lfd-int8-") as folder:
        before, out, cache = (Path(folder) / name for name in ("in.onnx", "out.onnx", "ranges.json"))
        onnx.save(model, str(before))
        storage.save_tensors_data(storage.TensorsData(quantization.CalibrationMethod.MinMax, data), cache)
        quantization.quantize_static(
            str(before),
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
    return _clean(made, {e.key: e.value for e in source.metadata_props})


def _clean(model: ModelProto, metadata: Mapping[str, str]) -> ModelProto:
    """Remove opset domains that no node uses, and what the quantiser says of itself."""
    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain not in used]
    for entry in opsets:
        model.opset_import.remove(entry)
    del model.metadata_props[:]
    set_metadata(model, metadata)
    return model
