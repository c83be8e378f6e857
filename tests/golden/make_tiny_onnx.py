"""Make tiny.onnx: a frame-to-map graph of three nodes, so that the tests of `deploy` need no onnx package.

    python tests/golden/make_tiny_onnx.py

Its class is the position of the largest channel of a BGR pixel: 0 blue, 1 green, 2 red, the first
one where they are equal.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess

HEIGHT, WIDTH = 24, 32
SPEC = ModelSpec(
    "tiny",
    Labels(("blue", "green", "red"), ((0, 0, 255), (0, 255, 0), (255, 0, 0))),
    Preprocess((HEIGHT, WIDTH)),
    provenance={"data": "none"},
)


def make() -> onnx.ModelProto:
    """Build the model."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["frame"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ArgMax", ["numbers"], ["largest"], axis=3, keepdims=0),
            helper.make_node("Cast", ["largest"], ["class_map"], to=TensorProto.UINT8),
        ],
        "tiny",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, HEIGHT, WIDTH, 3))],
        [helper.make_tensor_value_info("class_map", TensorProto.UINT8, (1, HEIGHT, WIDTH))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: SPEC.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(make(), str(Path(__file__).with_name("tiny.onnx")))
