"""Which layers int8 hurts most: each alone in int8, and what that does to the logits.

onnxruntime's `qdq_loss_debug` compares activations along one quantised network, where a layer carries the errors of all
before it: the last ones look worst whatever they do. One at a time costs a session a layer, and says what keeping it in
float buys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from export.int8 import Calibrated
from export.int8_insert import insert_pairs
from export.runnable import float_options
from lfd.errors import require
from lfd.preprocess import Image

RANK_FRAMES = 8
LARGEST_DB = 200.0
"""Of a layer that int8 leaves as it is."""


def rank_layers(
    calibrated: Calibrated, frames: Sequence[Image], progress: Callable[[int, int], None] | None = None
) -> dict[str, float]:
    """Return each layer's signal-to-noise ratio of the logits, in dB, when it alone is in int8; the worst first.

    What all classes of a pixel have in common is taken off, as it does not change which is largest. Weights and
    activations are symmetric here for every target: unsigned ones gain a bit after a Relu, in all layers alike.

    Args:
        calibrated: The network.
        frames: (H, W, 3) BGR uint8 at its size; a few do.
        progress: Called with how many layers are done, and of how many.
    """
    layers = calibrated.layers
    exact = _logits(calibrated.model, frames)
    power = float(sum((logits**2).sum() for logits in exact))
    found = {}
    for index, name in enumerate(layers):
        model = ModelProto()
        model.CopyFrom(calibrated.model)
        insert_pairs(model, calibrated.ranges.of, [other for other in layers if other != name], half_scales=False)
        pairs = zip(exact, _logits(model, frames), strict=True)
        noise = float(sum(((a - b) ** 2).sum() for a, b in pairs))
        found[name] = min(LARGEST_DB, 10 * float(np.log10(max(power, 1e-30) / max(noise, 1e-30))))
        if progress is not None:
            progress(index + 1, len(layers))
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _logits(model: ModelProto, frames: Sequence[Image]) -> list[NDArray[np.float64]]:
    """Return each frame's logits, (B, K, H, W), less their mean over the classes."""
    ort: Any = require("onnxruntime", "export")
    argmax = next((node for node in model.graph.node if node.op_type == "ArgMax"), None)
    name = model.graph.output[0].name if argmax is None else argmax.input[0]
    opened = ModelProto()
    opened.CopyFrom(model)
    if argmax is not None:
        opened.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(opened.SerializeToString(), float_options(), providers=["CPUExecutionProvider"])
    shape = model.graph.input[0].type.tensor_type.shape
    repeats = max(1, shape.dim[0].dim_value)
    logits = (session.run([name], {model.graph.input[0].name: np.repeat(f[None], repeats, 0)})[0] for f in frames)
    return [(values - values.mean(1, keepdims=True)).astype(np.float64) for values in logits]
