"""Which tensors are rounded to 8 bits for a target, as the exporter's Q/DQ pairs will stand.

trt, openvino   where a tensor goes into an operation in int8; others read it in float
ort             where a tensor is made, for all that read it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lfd.quantize.topology import BESIDE, CORE, SAME_RANGE, Target, Topology
from lfd.quantize.trace import PICTURE, Call

ACTIVATIONS = ("Relu", "Clip")
"""ONNX Runtime takes them into the range of what stands before them."""
HANDED_ON = ("MaxPool", "AveragePool", "Slice", "Reshape")
"""ONNX Runtime hands them integers and takes integers of the same scale back."""


@dataclass(frozen=True)
class Plan:
    """Where a network's tensors are rounded.

    Attributes:
        target: For whom.
        tensors: Those that have a range of their own, in the order in which they are made.
        inputs: Call to (number of a tensor among its inputs, whose range).
        outputs: Call to (number of a tensor among what it returns, whose range).
        weights: Call to (number of a constant among its inputs, the axis of its channels; None: one scale for all).
        biases: Call to the tensor whose step, times that of the weights, is the bias's; others keep it in float.
        first: The convolution into which the exporter folds the picture's deviation, or "".
    """

    target: Target
    tensors: tuple[str, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]]
    weights: Mapping[str, Mapping[int, int | None]]
    biases: Mapping[str, str]
    first: str


@dataclass
class _Draft:
    inputs: dict[str, dict[int, str]] = field(default_factory=dict)
    outputs: dict[str, dict[int, str]] = field(default_factory=dict)
    weights: dict[str, dict[int, int | None]] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)


def plan(network: Topology[Call], target: Target) -> Plan:
    """Return where a network's tensors are rounded for a target."""
    draft = _Draft()
    for node in network.int8_nodes(()):
        for index in network.data_inputs(node):
            if node.input[index] in network.fixed:
                draft.weights.setdefault(node.name, {})[index] = _axis(node, index, target)
    if target == "ort":
        _where_made(network, draft)
    else:
        _where_used(network, draft)
    used = {owner for part in (draft.inputs, draft.outputs) for owners in part.values() for owner in owners.values()}
    order = [PICTURE, *(name for node in network.nodes for name in node.output)]
    tensors = tuple(name for name in dict.fromkeys(order) if name in used)
    return Plan(target, tensors, draft.inputs, draft.outputs, draft.weights, draft.biases, _first(network))


def _where_used(network: Topology[Call], draft: _Draft) -> None:
    owner: dict[str, str] = {}
    inside = list(network.int8_nodes(()))
    for node in inside:
        if node.op_type in SAME_RANGE:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    for node in inside:
        for index in network.data_inputs(node):
            name = node.input[index]
            if name not in network.fixed:
                draft.inputs.setdefault(node.name, {})[index] = owner.get(name, name)


def _where_made(network: Topology[Call], draft: _Draft) -> None:
    owner = _marked(network)
    for node in network.nodes:
        for index, name in enumerate(node.output):
            # What is handed on as it was is on the grid already; means are not.
            if name in owner and (owner[name] == name or node.op_type == "AveragePool"):
                draft.outputs.setdefault(node.name, {})[index] = owner[name]
        for index, name in enumerate(node.input):
            if name == PICTURE and name in owner:
                draft.inputs.setdefault(node.name, {})[index] = name
        if node.name in draft.weights and node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2:
            draft.biases[node.name] = owner[node.input[0]]


def _marked(network: Topology[Call]) -> dict[str, str]:
    """Return the tensors that onnxruntime's QDQQuantizer rounds, and whose range each has.

    It goes from node to node: an operator marks its inputs and its output, what hands integers on marks its output
    when its input is marked, and an activation takes the place of what it alone reads.
    """
    inside = {node.name for node in network.int8_nodes(())}
    owner: dict[str, str] = {}
    for node in network.nodes:
        before, after = node.input[0] if node.input else "", node.output[0]
        if node.op_type in (*CORE, *BESIDE) and node.name not in inside:
            continue
        if node.op_type in HANDED_ON and before in owner:
            owner.setdefault(after, owner[before])
        elif node.op_type in ACTIVATIONS and before in owner:
            if len(network.consumers[before]) == 1:
                del owner[before]
            owner.setdefault(after, after)
        elif node.name in inside and node.op_type not in HANDED_ON:
            read = node.input[:2] if node.op_type in CORE else node.input  # a bias is int32
            owner.update({name: name for name in (*read, after) if name not in network.fixed and name not in owner})
    return owner


def _axis(node: Call, index: int, target: Target) -> int | None:
    """Return the axis of a constant's output channels; None where one scale serves all of it."""
    if node.op_type in ("Conv", "Gemm"):
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    return 1 if index == 1 or target == "ort" else None


def _first(network: Topology[Call]) -> str:
    """Return the one convolution that is handed the picture, "" where something else is too."""
    users = network.consumers.get(PICTURE, [])
    return users[0].name if len(users) == 1 and users[0].op_type == "Conv" and users[0].input[0] == PICTURE else ""
