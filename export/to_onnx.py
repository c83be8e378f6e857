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
from lfd.errors import ExportError
from lfd.profile import count_macs, count_parameters
from lfd.spec import METADATA_KEY, ModelSpec

OPSET = 20
"""The newest that ONNX Runtime's static quantisation takes; TensorRT 10 and 11 read it."""


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
) -> ModelSpec:
    """Write a network as an ONNX file that takes a frame and gives a class map.

    Args:
        model: The network.
        spec: Its specification.
        path: The file. A caller who keeps an older one there, or checks before it may appear, passes a path
            of `lfd.files.replacing`.
        size_hw: Input size, where it differs from the specification's.
        output: `class_map` or `logits`.

    Returns:
        The specification as embedded in the file.

    Raises:
        ExportError: The exporter failed, or the file does not pass ONNX's own check.
    """
    preprocess = dataclasses.replace(spec.preprocess, size_hw=size_hw or spec.preprocess.size_hw)
    graph = DeployGraph(model, preprocess, output)
    provenance = {
        **spec.provenance,
        "params": count_parameters(model),
        "macs": count_macs(model, preprocess.size_hw),
    }
    exported = dataclasses.replace(spec, preprocess=preprocess, output=output, provenance=provenance)
    frame = torch.zeros(1, *preprocess.size_hw, 3, dtype=torch.uint8)
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (frame,),
                input_names=["frame"],
                output_names=[output],
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=True,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{spec.model}: PyTorch's exporter cannot express it in ONNX ({reason})") from error
    if program is None:
        raise ExportError(f"{spec.model}: PyTorch's exporter returned nothing")
    proto = program.model_proto
    _check_opset(proto, spec.model)
    strip_traces(proto)
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, exported.to_json()
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


def strip_traces(proto: onnx.ModelProto) -> None:
    """Remove source paths and stack traces, which the exporter records for each node."""
    proto.doc_string = ""
    graph = proto.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    del proto.metadata_props[:]
