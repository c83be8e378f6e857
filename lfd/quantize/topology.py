"""Which operations run in int8 beside each other: one set of rules for ONNX graphs and for networks in training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, Literal, Protocol, TypeVar

Target = Literal["trt", "ort", "openvino"]
TARGETS: tuple[Target, ...] = ("trt", "ort", "openvino")

CORE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What int8 makes faster: each is in int8 unless it is kept in float."""
UPSAMPLING = ("upsample_rows", "upsample_columns")
"""Constants that enlarge the logits by matrix products (`export.graph.DeployGraph`), which stay in float: 8 bits there
are ties between classes."""
BESIDE = ("Add", "Concat", "MaxPool", "AveragePool")
"""In int8 only where they stand between two of CORE; elsewhere a pair would cost more than it saves. No means over the
whole grid: their one number a channel is wanted in more than 8 bits."""
SAME_RANGE = ("MaxPool",)
"""What gives back values it was given: one scale before and behind it, so that it runs on the integers."""


class Node(Protocol):
    """An operation, as ONNX's NodeProto names its parts."""

    @property
    def name(self) -> str: ...

    @property
    def op_type(self) -> str: ...

    @property
    def input(self) -> Sequence[str]: ...

    @property
    def output(self) -> Sequence[str]: ...


N = TypeVar("N", bound=Node)


class Topology(Generic[N]):
    """Operations and the tensors between them. It is a view: make a new one after they have changed.

    Args:
        nodes: In an order in which they can be run; each has a name of its own.
        constants: Names of tensors that do not depend on the input.
        is_float: Tells of a tensor's name whether it holds floats.
    """

    def __init__(self, nodes: Sequence[N], constants: Collection[str], is_float: Callable[[str], bool]) -> None:
        self.nodes = nodes
        self.fixed = constants
        self._floats = is_float
        self.producer: dict[str, N] = {}
        self.consumers: dict[str, list[N]] = {}
        for node in nodes:
            self.producer.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self._before: dict[str, set[str]] = {}
        self._after: dict[str, set[str]] = {}
        for node in nodes:
            self._before[node.name] = self._near(self._from(node), self._before)
        for node in reversed(nodes):
            self._after[node.name] = self._near(self._to(node), self._after)

    def _from(self, node: N) -> list[N]:
        return [self.producer[name] for name in node.input if name in self.producer]

    def _to(self, node: N) -> list[N]:
        return [user for name in node.output for user in self.consumers.get(name, ())]

    def is_core(self, node: N) -> bool:
        """Tell whether a node is one of CORE."""
        return node.op_type in CORE

    def _near(self, neighbours: list[N], known: dict[str, set[str]]) -> set[str]:
        found: set[str] = set()
        for node in neighbours:
            found |= {node.name} if self.is_core(node) else known.get(node.name, set())
        return found

    def between(self, node: N, keep_float: Collection[str]) -> bool:
        """Tell whether a node has one of CORE in int8 on either side, nothing of CORE in between."""
        return all(near[node.name] - set(keep_float) for near in (self._before, self._after))

    def has_core_after(self, node: N) -> bool:
        """Tell whether anything of CORE uses what this node makes."""
        return bool(self._after[node.name])

    def has_core_before(self, node: N) -> bool:
        """Tell whether anything of CORE stands before this node."""
        return bool(self._before[node.name])

    def int8_nodes(self, keep_float: Collection[str]) -> Iterator[N]:
        """Yield the nodes that run in int8 when `keep_float` stay in float."""
        for node in self.nodes:
            if node.name in keep_float or not self._floats(node.output[0]):
                continue
            if self.is_core(node):
                # A Conv whose weights are computed has no weights to quantise.
                inside = not node.op_type.startswith("Conv") or node.input[1] in self.fixed
            else:
                inside = node.op_type in BESIDE and self.between(node, keep_float) and not self.adds_constant(node)
            if inside:
                yield node

    def adds_constant(self, node: N) -> bool:
        """Tell whether this is a bias and not a junction."""
        return node.op_type == "Add" and any(name in self.fixed for name in node.input)

    def main_input(self, add: N) -> str | None:
        """Return the input of an Add that its own convolution makes, which fuses with it; None where there is none.

        Where a convolution stands on either side (a block that halves the grid), it is that of the longer branch.
        """
        own = [
            name
            for name in add.input
            if (p := self.producer.get(name)) is not None and self.is_core(p) and len(self.consumers[name]) == 1
        ]
        return max(own, key=lambda name: len(self.ancestors(self.producer[name])), default=None)

    def data_inputs(self, node: N) -> list[int]:
        """Return which inputs of a node in int8 are quantised where pairs stand at inputs alone.

        All but a bias, and but the one that fuses into an Add.
        """
        if node.op_type in CORE:
            return [0, 1]
        main = self.main_input(node) if node.op_type == "Add" else None
        return [index for index, name in enumerate(node.input) if name != main]

    def ancestors(self, node: N) -> set[str]:
        """Return the names of all nodes that a node depends on."""
        found: set[str] = set()
        queue = [node]
        while queue:
            for before in self._from(queue.pop()):
                if before.name not in found:
                    found.add(before.name)
                    queue.append(before)
        return found
