"""A first convolution of stride 2 as one over pairs of pixels side by side: the same sums, in fewer, longer runs.

ONNX Runtime's int8 convolution gathers the pixels under its kernel channel run by channel run. The picture has runs of
three bytes; of two pixels side by side, which are side by side in memory too, they have six, and there are about half
as many. (Half of what is known as "space to depth", Ying et al. 2018, "Image classification at supercomputer scale";
the other half would have to move the pixels first.) It is exact: taps that the wider kernel has besides are zero.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from export.int8_graph import Graph, prepare, replace_nodes

TO_NCHW = [0, 3, 1, 2]


class _Stem(NamedTuple):
    """What makes the first convolution's input of the frame, and it."""

    cast: NodeProto
    transpose: NodeProto
    sub: NodeProto
    conv: NodeProto


def pair_stem(model: ModelProto) -> ModelProto:
    """Return a prepared fp32 graph with its first convolution over pairs of pixels.

    It must be as `export.graph.DeployGraph` makes it, of stride 2 and on a frame of even width; any other comes back as
    it is. Names of nodes, of constants and of the convolution's input and output stay.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    view = Graph(graph)
    stem = _find(view)
    if stem is None:
        return model
    frame = stem.cast.input[0]
    height, width = _frame_hw(view)
    mean, kernel = stem.sub.input[1], stem.conv.input[1]
    constants = {
        f"{frame}_shape": np.array([0, height, width // 2, 6], np.int64),
        mean: np.tile(view.constant(mean).reshape(3), (1, 1, width // 2, 2)),
        kernel: _pair_kernel(view.constant(kernel), _ints(stem.conv, "pads")[1]),
    }
    pads = _pair_pads(_ints(stem.conv, "pads"), _ints(stem.conv, "kernel_shape")[1], width)
    pairs = helper.make_node("Reshape", [frame, f"{frame}_shape"], [f"{frame}_pairs"], f"{frame}_pairs")
    # The mean comes off in front of the transpose, which then meets the one that ONNX Runtime puts before its int8
    # convolution, and both go. It is as long as a row, since six numbers at a time take much longer.
    stem.cast.input[0] = f"{frame}_pairs"
    stem.sub.input[0], stem.transpose.output[0] = stem.cast.output[0], stem.sub.output[0]
    stem.sub.output[0] = stem.transpose.input[0] = f"{frame}_centred"
    _set_ints(stem.conv, "pads", pads)
    _set_ints(stem.conv, "strides", [2, 1])
    _set_ints(stem.conv, "kernel_shape", list(constants[kernel].shape[2:]))
    for name, value in constants.items():
        tensor = view.constants.get(name) or graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
    first = (stem.cast, stem.sub, stem.transpose)
    replace_nodes(graph, [pairs, *first, *(node for node in graph.node if node not in first)])
    return prepare(copy)


def _find(graph: Graph) -> _Stem | None:
    """Return the first nodes, where they are frame -> Cast -> Transpose -> Sub -> Conv and nothing else sees them."""
    chain: list[NodeProto] = []
    name = graph.proto.input[0].name
    for op_type in ("Cast", "Transpose", "Sub", "Conv"):
        users = [node for node in graph.proto.node if name in node.input]
        if len(users) != 1 or users[0].op_type != op_type or users[0].input[0] != name:
            return None
        chain.append(users[0])
        name = users[0].output[0]
    stem = _Stem(*chain)
    height, width = _frame_hw(graph)
    return stem if _fits(graph, stem) and width % 2 == 0 and height * width > 0 else None


def _fits(graph: Graph, stem: _Stem) -> bool:
    mean, weight = stem.sub.input[1], stem.conv.input[1]
    shared = sum(name in (mean, weight) for node in graph.proto.node for name in node.input) > 2
    return (
        not shared
        and _ints(stem.transpose, "perm") == TO_NCHW
        and mean in graph.constants
        and graph.constant(mean).shape == (1, 3, 1, 1)
        and weight in graph.constants
        and graph.constant(weight).shape[1] == 3
        and _ints(stem.conv, "strides") == [2, 2]
        and set(_ints(stem.conv, "dilations")) <= {1}
        and len(_ints(stem.conv, "pads")) == 4
        and all(a.s in (b"", b"NOTSET") for a in stem.conv.attribute if a.name == "auto_pad")
    )


def _frame_hw(graph: Graph) -> tuple[int, int]:
    """Return height and width of the (B, H, W, 3) input; 0 where they are open."""
    sides = graph.proto.input[0].type.tensor_type.shape.dim
    return (sides[1].dim_value, sides[2].dim_value) if len(sides) == 4 else (0, 0)


def _pair_kernel(kernel: NDArray[Any], left: int) -> NDArray[Any]:
    """Return a kernel (O, 3, h, w) over pixels as one (O, 6, h, w') over pairs of them; channel 3 dx + c."""
    out, channels, rows, columns = kernel.shape
    lead = left % 2  # so that it begins with a pair
    whole = np.pad(kernel, ((0, 0), (0, 0), (0, 0), (lead, (columns + lead) % 2)))
    taps = whole.shape[3] // 2
    cells = whole.reshape(out, channels, rows, taps, 2).transpose(0, 4, 1, 2, 3)
    return np.asarray(cells.reshape(out, 2 * channels, rows, taps))


def _pair_pads(pads: list[int], columns: int, width: int) -> list[int]:
    """Return the padding, [top, left, bottom, right], sideways in pairs, that gives as many outputs as before."""
    top, left, bottom, right = pads
    outputs = (width + left + right - columns) // 2 + 1
    lead = (left + 1) // 2
    taps = (columns + left % 2 + 1) // 2
    return [top, lead, bottom, outputs - 1 + taps - width // 2 - lead]


def _ints(node: NodeProto, name: str) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == name), [])


def _set_ints(node: NodeProto, name: str, values: list[int]) -> None:
    kept = [a for a in node.attribute if a.name != name]
    made: AttributeProto = helper.make_attribute(name, values)
    del node.attribute[:]
    node.attribute.extend([*kept, made])
