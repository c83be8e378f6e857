"""PyTorch to ONNX: the graph, its specification, and the checks that it is the model it came from."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import nn

from export.graph import DeployGraph
from export.int8_trained import TRAINED_KEY, mark_table, take_marks
from export.runnable import BATCH_KEY, DYNAMIC, MAX_BATCH
from lfd.errors import ExportError
from lfd.models.external_outputs import check_input_size
from lfd.profile import count_macs, count_parameters
from lfd.quantize.student import as_int8, find
from lfd.spec import METADATA_KEY, ModelSpec

OPSET = 20
"""The newest that ONNX Runtime's static quantisation takes, and old enough for OpenVINO and for TensorRT 10 and 11: one
number serves all that follows, so that it is no option."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's progress and advice, which are about its insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def to_onnx(
    model: nn.Module,
    spec: ModelSpec,
    path: Path,
    size_hw: tuple[int, int] | None = None,
    output: Literal["class_map", "logits"] = "class_map",
    batch: int | Literal["dynamic"] = 1,
) -> ModelSpec:
    """Write a network as an ONNX file that takes frames and gives class maps.

    A network that was trained in INT8 is written in fp32 too, with its ranges in the metadata (`export.int8_trained`).

    The exporter's own optimiser simplifies it. Another round of onnxscript's finds nothing more, and onnxslim removes
    nothing from LRASPP and DeepLabV3 and 4 of PSPNet's 84 nodes, at the same latency: neither is worth a dependency.

    Args:
        model: The network.
        spec: Its specification.
        path: The file. A caller who keeps an older one there, or checks before it may appear, passes a path
            of `lfd.files.replacing`.
        size_hw: Input size, where it differs from the specification's.
        output: `class_map` or `logits`.
        batch: Frames that one run takes; `dynamic` leaves it to the run. Height and width are always constant.

    Returns:
        The specification as embedded in the file.

    Raises:
        UsageError: The network does not take this size.
        ExportError: The exporter failed, or the file does not pass ONNX's own check.
    """
    check_input_size(model, size_hw or spec.preprocess.size_hw)
    preprocess = dataclasses.replace(spec.preprocess, size_hw=size_hw or spec.preprocess.size_hw)
    graph = DeployGraph(model, preprocess, output)
    provenance = {
        **spec.provenance,
        "params": count_parameters(model),
        "macs": count_macs(model, preprocess.size_hw),
    }
    if batch != 1:
        provenance[BATCH_KEY] = batch
    exported = dataclasses.replace(spec, preprocess=preprocess, output=output, provenance=provenance)
    # In memory the channels come first, so that the network sees the layout it was trained in. Given channels last,
    # PyTorch writes every pooling to one cell as ReduceMean, Reshape and Gather: 20 nodes more in LRASPP, which also
    # hold the batch's size as a constant. Two frames stand for any number; one would be taken for a constant.
    frame = torch.zeros(2 if isinstance(batch, str) else batch, 3, *preprocess.size_hw, dtype=torch.uint8).permute(
        0, 2, 3, 1
    )
    int8 = find(graph.network)
    if int8 is not None and bool(int8.plan.first) != graph.folded:
        raise ExportError(f"{spec.model}: its first convolution is not the one that was trained in INT8")
    try:
        with _quiet(), as_int8(graph.network, "mark"):
            program = torch.onnx.export(
                graph,
                (frame,),
                input_names=["frame"],
                output_names=[output],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=True,
                custom_translation_table=None if int8 is None else mark_table(),
                dynamic_shapes={"frame": {0: torch.export.Dim("batch", max=MAX_BATCH)}} if batch == DYNAMIC else None,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{spec.model}: PyTorch's exporter cannot express it in ONNX ({reason})") from error
    if program is None:
        raise ExportError(f"{spec.model}: PyTorch's exporter returned nothing")
    proto = program.model_proto
    _check_opset(proto, spec.model)
    _check_batch(proto, spec.model, batch)
    strip_traces(proto)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, exported.to_json()
    if int8 is not None:
        entry = proto.metadata_props.add()
        entry.key = TRAINED_KEY
        entry.value = take_marks(proto, int8.target, int8.grids(), spec.model).to_json()
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{spec.model}: the graph is not valid ONNX ({' '.join(str(error).split())[:300]})"
        ) from error
    onnx.save(proto, str(path))
    return exported


def _check_opset(proto: onnx.ModelProto, name: str) -> None:
    """The exporter raises a low opset in silence, so it is read back."""
    opset = {entry.domain: entry.version for entry in proto.opset_import}
    if opset.get("") != OPSET:
        raise ExportError(f"{name}: exported with opset {opset.get('')}; expected {OPSET}")


def _check_batch(proto: onnx.ModelProto, name: str, batch: int | str) -> None:
    """An open batch that some operation has closed is read back too."""
    for value in (*proto.graph.input, *proto.graph.output):
        side = value.type.tensor_type.shape.dim[0]
        found = DYNAMIC if side.HasField("dim_param") else side.dim_value
        if found != batch:
            raise ExportError(f"{name}: {value.name} was exported with a batch of {found}; expected {batch}")


def strip_traces(proto: onnx.ModelProto) -> None:
    """Remove source paths and stack traces, which the exporter records for each node."""
    proto.doc_string = ""
    graph = proto.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    del proto.metadata_props[:]
