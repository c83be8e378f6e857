"""A network's operations, as one pass shows them: functions of torch, called in modules, on tensors.

Modules alone would not do: a residual sum, a concatenation or a pooling by a product is a function's call and no
module. torch.fx and torch.export see calls too, but flatten the modules away, on whose paths features are tapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lfd.profile import run_copy
from lfd.quantize.topology import Topology

PICTURE = "picture"
"""The network's input."""

OPERATIONS = {
    "conv2d": "Conv",
    "conv_transpose2d": "ConvTranspose",
    "linear": "Gemm",
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), "MatMul"),
    **dict.fromkeys(("add", "add_", "__add__", "__iadd__", "__radd__"), "Add"),
    **dict.fromkeys(("cat", "concat", "concatenate"), "Concat"),
    "max_pool2d": "MaxPool",
    "avg_pool2d": "AveragePool",
    **dict.fromkeys(("relu", "relu_"), "Relu"),
    **dict.fromkeys(("relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip"), "Clip"),
    **dict.fromkeys(("reshape", "view", "flatten", "unflatten"), "Reshape"),
    "__getitem__": "Slice",
    "batch_norm": "BatchNormalization",
}
"""A function's name to the operation that the exporter writes; others are in float, whatever they are."""
SAME = frozenset({"dropout", "dropout2d", "contiguous", "clone", "to", "float", "type_as", "detach"})
"""What leaves nothing in an exported graph."""
SHAPES = frozenset({"new_tensor", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"})
"""What reads a tensor's shape and type alone."""


@dataclass(frozen=True)
class Call:
    """A call of a function, as a node of a graph.

    Attributes:
        name: `module.path:function:N`, the N-th such call of one pass in that module.
        op_type: ONNX's name of the operation, or the function's.
        input: Names of its tensors, in the order of `tensors_of`.
        output: Names of what it returned.
    """

    name: str
    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]


class Calls(TorchFunctionMode):
    """Hands each call of a function, while it is on, to a visitor, with the call's name.

    Args:
        visit: Takes name, function, positional and named arguments; returns what the function is to return.
    """

    def __init__(self, visit: Callable[[str, Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.visit = visit
        self.path = [""]
        self._counts: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = f"{self.path[-1]}:{getattr(func, '__name__', type(func).__name__)}"
        count = self._counts.get(place, 0)
        self._counts[place] = count + 1
        return self.visit(f"{place}:{count}", func, args, kwargs or {})

    def begin(self) -> None:
        """Begin a pass."""
        self.path[1:] = []
        self._counts.clear()


def function_of(call: str) -> str:
    """Return the function's name in a call's."""
    return call.rsplit(":", 2)[1]


def module_of(call: str) -> str:
    """Return the module's path in a call's name."""
    return call.rsplit(":", 2)[0]


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in arguments or results: positional ones first, lists and dictionaries opened."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for each in value.values() for tensor in tensors_of(each)]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors_of(each)]
    return []


def trace(model: nn.Module, size_hw: tuple[int, int]) -> Topology[Call]:
    """Return a network's operations, by a pass of a copy in evaluation, without values where it can do without.

    Args:
        model: The network; its forward returns a dictionary with `out`.
        size_hw: Input size.

    Raises:
        UsageError: The network fails on that size.
    """
    return run_copy(model, size_hw, _recorded)


def _recorded(model: nn.Module, picture: Tensor) -> Topology[Call]:
    record = _Record(picture)
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: record.calls.path.append(path))
        module.register_forward_hook(lambda *_: record.calls.path.pop() and None)
    with record.calls:
        model(picture)
    return Topology(record.nodes, record.constants, record.floats.__contains__)


class _Record:
    """Collects calls; tensors are told apart by identity, and kept so that none takes another's."""

    def __init__(self, picture: Tensor) -> None:
        self.calls = Calls(self.visit)
        self.nodes: list[Call] = []
        self.constants: set[str] = set()
        self.floats = {PICTURE}
        self._names = {id(picture): PICTURE}
        self._kept: list[Tensor] = [picture]

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self._names:  # nothing that was called made it: a parameter, a buffer
            name = f"constant {len(self._names)}"
            self.constants.add(name)
            self._put(tensor, name)
        return self._names[id(tensor)]

    def _put(self, tensor: Tensor, name: str) -> None:
        self._names[id(tensor)] = name
        self._kept.append(tensor)
        if tensor.is_floating_point():
            self.floats.add(name)

    def visit(self, call: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call and note it."""
        given = tensors_of((args, kwargs))
        inputs = [self._name(tensor) for tensor in given]
        result = func(*args, **kwargs)
        made = tensors_of(result)
        function = function_of(call)
        if not made:
            return result
        if function in SAME and inputs:
            self._put(made[0], inputs[0])
            return result
        outputs = [call if index == 0 else f"{call}#{index}" for index in range(len(made))]
        for tensor, name in zip(made, outputs, strict=True):
            self._put(tensor, name)
        if function in SHAPES or all(name in self.constants for name in inputs):
            self.constants.update(outputs)
            return result
        self.nodes.append(Call(call, OPERATIONS.get(function, function), tuple(inputs), tuple(outputs)))
        return result
