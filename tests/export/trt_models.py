"""Small ONNX files in the forms that lfd-export writes, frame in, class map out: fp32, fp16, and with Q/DQ pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

HEIGHT, WIDTH, CHANNELS = 32, 64, 16
SPEC = ModelSpec(
    "two_convolutions",
    Labels(tuple(f"class {i}" for i in range(CHANNELS)), tuple((i, i, i) for i in range(CHANNELS))),
    Preprocess((HEIGHT, WIDTH)),
)


def write(
    path: Path,
    precision: str = "fp32",
    batch: int | str = 1,
    zero: int = 0,
    unsigned: bool = False,
    says: str | None = None,
    first: str | None = None,
) -> Path:
    """Write a model of two convolutions.

    Args:
        path: The file.
        precision: `fp32`, `fp16` or `int8`.
        batch: A number, or a name for an open batch.
        zero: Zero point of the activations' Q/DQ pairs.
        unsigned: They are uint8.
        says: Precision in the metadata.
        first: Precision of the first convolution, where it differs.
    """
    rng = np.random.default_rng(0)
    real = np.float16 if precision == "fp16" else np.float32
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    nodes: list[Any] = [
        helper.make_node("Cast", ["frame"], ["numbers"], "in", to=kind),
        helper.make_node("Transpose", ["numbers"], ["x0"], "nchw", perm=[0, 3, 1, 2]),
    ]
    constants: dict[str, Any] = {}
    for index, inputs in enumerate((3, CHANNELS)):
        x, weight = f"x{index}", (rng.normal(size=(CHANNELS, inputs, 3, 3)) / 10).astype(real)
        w = f"w{index}"
        form = first if index == 0 and first else precision
        if form == "int8":
            constants[f"{w}q"] = np.clip(np.round(weight / 0.01), -127, 127).astype(np.int8)
            constants[f"{w}scale"], constants[f"{w}zero"] = np.full(CHANNELS, 0.01, real), np.zeros(CHANNELS, np.int8)
            constants[f"{x}scale"] = np.array(0.5, real)
            constants[f"{x}zero"] = np.array(zero, np.uint8 if unsigned else np.int8)
            pair = [f"{x}scale", f"{x}zero"]
            nodes += [
                helper.make_node("QuantizeLinear", [x, *pair], [f"{x}q"], f"quantize{index}"),
                helper.make_node("DequantizeLinear", [f"{x}q", *pair], [f"{x}d"], f"dequantize{index}"),
                helper.make_node(
                    "DequantizeLinear", [f"{w}q", f"{w}scale", f"{w}zero"], [w], f"weights{index}", axis=0
                ),
            ]
            x = f"{x}d"
        else:
            constants[w] = weight
        nodes.append(helper.make_node("Conv", [x, w], [f"x{index + 1}"], f"conv{index}", pads=[1, 1, 1, 1]))
    nodes += [
        helper.make_node("ArgMax", ["x2"], ["largest"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["largest"], ["real"], "real", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["real"], ["class_map"], "out", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "two_convolutions",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (batch, HEIGHT, WIDTH, 3))],
        [helper.make_tensor_value_info("class_map", TensorProto.UINT8, (batch, HEIGHT, WIDTH))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    metadata = {METADATA_KEY: SPEC.to_json()} | ({"lfd_precision": says} if says else {})
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path
