"""Reading TensorRT's engine inspector, on what it printed for other people.

Sources, cut down to the fields that matter:
  trex   NVIDIA/TensorRT, tools/experimental/trt-engine-explorer/src/examples/pytorch/resnet/A100/qat/
         resnet-qat.onnx.engine.graph.json, and tests/inputs/mobilenet.qat.onnx.engine.graph.json
  3583   NVIDIA/TensorRT issue 3583 (TensorRT 9.1, ResNet-50 in fp32 on an A800)
  3737   NVIDIA/TensorRT issue 3737 (two convolutions merged into one layer)
  4020   NVIDIA/TensorRT issue 4020 (TensorRT 10.1, ResNet-18)
  4397   NVIDIA/TensorRT issue 4397 (Myelin's layers, in which the type stands alone)
  guide  "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x", and the reader of both schemas in NVIDIA's
         TensorRT cookbook: `Format/Datatype` is split into `Format` and `Datatype`, `Bindings` became `I/O Tensors`
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from export.trt_layers import Layer, check, compare, read_layers
from lfd.errors import ExportError

CHW32 = "Thirty-two wide channel vectorized row major {} format"


def record(name: str, kind: str, inputs: list[Any], weights: str | None = None, tactic: str = "", **more: Any) -> Any:
    tensors = [i if isinstance(i, dict) else {"Name": "x", "Location": "Device", "Format/Datatype": i} for i in inputs]
    found = {"Name": name, "LayerType": kind, "Inputs": tensors, "TacticName": tactic, **more}
    return found | ({"Weights": {"Type": weights, "Count": 9408}} if weights else {})


def new(kind: str) -> dict[str, str]:
    return {"Name": "x", "Location": "Device", "Format": "Row major linear format (kLINEAR)", "Datatype": kind}


def one(layer: Any, convolutions: tuple[str, ...] = ()) -> Layer:
    text = json.dumps({"Layers": [layer], "Bindings": ["frame", "class_map"]})
    return read_layers(text, convolutions)[0]


I8 = "sm80_xmma_fprop_implicit_gemm_interleaved_i8{}_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32"
TF32 = "sm80_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize256x64x32_stage3"

CASK, OPEN, FP32 = "CaskConvolution", "N/A due to dynamic shapes", "Channel major FP32 format where channel % 4 == 0"
INT8, FP16 = CHW32.format("Int8"), CHW32.format("FP16")
HALF = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16"
FOUR = "Four wide channel vectorized row major Int8 format"

SAMPLES = [
    ("trex conv", record("w + Conv_9", CASK, [FOUR], "Int8", "ampere_fp32_icudnn_int8x4_128x64_relu"), "int8", True),
    ("trex conv and add", record("w + Conv_34 + Add_36", CASK, [INT8, FP16], "Int8", I8.format("f16")), "int8", True),
    ("trex depthwise", record("w + PWN(Clip_33)", "CudaDepthwiseConvolution", [INT8], "Int8"), "int8", True),
    ("trex quantize", record("QuantizeLinear_2", "Reformat", ["Row major linear FP32"], Origin="QDQ"), "fp32", False),
    ("3583", record("p2o.Conv.6 + p2o.Relu.5", CASK, [FP32], "Float", TF32), "tf32", True),
    ("3583 gemm", record("p2o.Conv.20", "CaskGemmConvolution", [FP32, FP32], "Float", TF32), "tf32", True),
    ("3737", record("/a/Conv + /a/Relu || /b/Conv + /b/Relu", CASK, [INT8], "Int8"), "int8", True),
    ("4020 fused", record("conv0 + relu0 + pool0", "CaskConvActPool", ["Row major Int8 format"]), "int8", True),
    ("4397 gemm", record("/MatMul_myl0_77", "gemm", ["Half"], None, HALF), "fp16", False),
    ("4397 kgen", record("__myl_Add_myl0_78", "kgen", ["Half"], None, "__myl_Add_0xf2543c36ff9f104b"), "fp16", False),
    ("open batch", record("node_Conv_292 + node_relu", CASK, [OPEN], "Half"), "fp16", True),
    ("open batch, int8", record("c", CASK, [OPEN], "Int8", I8.format("i8")), "int8", True),
    ("open batch, int8 weights", record("c", CASK, [OPEN], "Int8", HALF), "fp16", True),
    ("int8 weights, fp16 frame", record("c", CASK, ["Row major linear FP16 format"], "Int8"), "fp16", True),
    ("guide, int8", record("c", CASK, [new("Int8")], "Int8"), "int8", True),
    ("guide, fp16", record("c", CASK, [new("Half")], "Half"), "fp16", True),
    ("guide, bf16", record("c", CASK, [new("BFloat16")], "BFloat16"), "bf16", True),
    ("guide, fp32", record("c", CASK, [new("Float")], "Float"), "fp32", True),
    ("guide, kernel only", record("c_myl0_3", "conv", [], None, HALF), "fp16", True),
    ("nothing said", record("c", CASK, []), "unknown", True),
]


@pytest.mark.parametrize(("sample", "precision", "convolution"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_the_type_in_which_a_layer_computes(sample: Any, precision: str, convolution: bool) -> None:
    layer = one(sample)
    assert (layer.precision, layer.convolution) == (precision, convolution)


@pytest.mark.parametrize(
    ("name", "metadata", "held"),
    [
        ("a + relu", "[ONNX Layer: a]\x1e[ONNX Layer: relu]", ("a",)),  # 10.1 and later
        ("a_b_myl0_3", "[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),  # 4397
        ("w + QuantizeLinear_7 + a", "", ("a",)),  # before there was metadata
        ("a + relu || b + relu", "", ("a", "b")),  # 3737
        ("Reformatting CopyNode for Input Tensor 0 to a", "", ()),
    ],
)
def test_which_convolutions_a_layer_holds(name: str, metadata: str, held: tuple[str, ...]) -> None:
    assert one(record(name, "CaskConvolution", ["Half"], Metadata=metadata), ("a", "b")).onnx == held


def layer(precision: str, *onnx: str, kind: str = "CaskConvolution") -> Layer:
    return Layer(" + ".join(onnx), kind, precision, kind == "CaskConvolution", onnx)


def test_what_was_asked_for_and_happened() -> None:
    layers = [
        layer("fp32", "a", kind="kgen"),  # moves a's weights
        layer("int8", "a", "b"),
        layer("fp16", "c"),
        layer("fp16", "d", kind="gemm"),  # a 1x1 convolution
        layer("fp32", kind="Reformat"),
    ]
    outcome = compare({"a": "int8", "b": "int8", "c": "int8", "d": "fp16"}, layers)
    assert outcome.asked == {"int8": 3, "fp16": 1} and outcome.ran == {"int8": 1, "fp16": 2}
    assert outcome.differing == (("c", "int8", "fp16"),) and "c runs in fp16, not int8" in str(outcome)
    check(outcome, "x.engine")


@pytest.mark.parametrize(
    ("asked", "layers", "says"),
    [
        ({"a": "int8", "b": "fp16"}, [layer("fp16", "a"), layer("fp16", "b")], "1 convolutions ask for int8 and none"),
        ({"a": "fp16"}, [layer("fp32", "a")], "1 convolutions ask for fp16 and none"),
        ({"a": "fp16"}, [layer("tf32", "a")], "a runs in tf32, not fp16"),
        ({"a": "fp32"}, [layer("fp16", "a")], "ask for fp32"),
        ({"a": "fp32"}, [layer("unknown", "a")], "names no convolution with its type"),
        ({"a": "fp32"}, [layer("fp32", kind="Reformat")], "names no convolution with its type"),
    ],
)
def test_what_was_asked_for_and_did_not_happen(asked: dict[str, str], layers: list[Layer], says: str) -> None:
    with pytest.raises(ExportError, match=says) as found:
        check(compare(asked, layers), "x.engine")
    assert str(found.value).startswith("x.engine was not written") and "\n" not in str(found.value)


def test_tf32_is_fp32_where_it_was_allowed_and_layers_of_a_dla_count() -> None:
    check(compare({"a": "fp32"}, [layer("tf32", "a")]), "x")
    outcome = compare({"a": "fp16"}, [Layer("{ForeignNode[a...b]}", "DLA", "fp16", False, ())])
    check(outcome, "x")
    assert outcome.on_dla == 1 and "1 on the DLA" in str(outcome)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"Layers": ["conv0 + relu0", "pool0"]}', "no details of 2 layers.*detailed profiling"),  # 4020, before detail
        ('{"Layers": []}', "no details of 0 layers"),
        ("", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"Layers": [{"LayerType": "x"}]}', "KeyError: 'Name'"),
        ('{"Layers": [{"Name": "x", "Inputs": ["y"]}]}', "AttributeError"),
    ],
)
def test_an_answer_that_says_nothing_of_precision(text: str, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        read_layers(text, ())


def test_control_characters_in_names_are_read() -> None:
    text = '{"Layers": [{"Name": "c", "LayerType": "conv", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: b]"}]}'
    assert read_layers(text, ("a", "b"))[0].onnx == ("a", "b")
