"""A network as a table of its modules: what a user reads to choose taps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lfd.grids import stride_of, token_grid
from lfd.models.external_outputs import check_input_size
from lfd.profile import count_parameters, macs_by_module, run_copy
from lfd.taps import FeatureTaps

WIDTH = 120
"""Columns of the table."""

_MOST_ENTRIES = 64
"""Entries of one list or dictionary that are listed."""


@dataclass(frozen=True)
class Row:
    """One output: of a module, or an entry of a dictionary or list that a module returns.

    Attributes:
        path: As a tap takes it; "" for the network itself.
        kind: The module's class; "" for an entry.
        depth: Modules on the way to it.
        shape: Of the output without the batch, () where there is no tensor.
        stride: Pixels of the input a cell of the feature map; None where it is no feature map.
        layout: What a tap needs behind the path, such as `@tokens`; None where it cannot be one.
        calls: Times that the module was run in a pass.
        params: Of the module and all inside; None for an entry.
        macs: Likewise, multiply-accumulates of one picture.
        taps: Names under which the network declares it.
    """

    path: str
    kind: str
    depth: int
    shape: tuple[int, ...]
    stride: int | None
    layout: str | None
    calls: int
    params: int | None
    macs: int | None
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A network at an input size.

    Attributes:
        size_hw: Input size.
        rows: Modules in the order in which they are declared, the network itself first.
        taps: Declared features: name to path, channels and stride.
        params: Parameters that take part in inference.
        macs: Multiply-accumulates of one picture.
    """

    size_hw: tuple[int, int]
    rows: tuple[Row, ...]
    taps: Mapping[str, tuple[str, tuple[int, ...], int | None]]
    params: int
    macs: int


def inspect_model(model: nn.Module, size_hw: tuple[int, int]) -> Inspection:
    """Run a copy of a network once, without values where it works so, and note what each module gives.

    Args:
        model: The network, which stays as it is.
        size_hw: Input size.

    Raises:
        UsageError: The network does not take that size.
    """
    check_input_size(model, size_hw)
    return run_copy(model, size_hw, lambda shell, image: _inspect(shell, image, size_hw))


def _inspect(model: nn.Module, image: Tensor, size_hw: tuple[int, int]) -> Inspection:
    outputs: dict[str, list[Any]] = {}

    def note(path: str) -> Any:
        return lambda _module, _inputs, output: outputs.setdefault(path, []).append(_shapes(output))

    declared: dict[str, str] = getattr(model, "taps", {})
    taps = FeatureTaps(model, declared)
    for path, module in model.named_modules():
        module.register_forward_hook(note(path))
    found = taps(image).taps
    counted = macs_by_module(model, image)
    for seen in outputs.values():
        del seen[len(seen) // 2 :]  # the second pass, which counted
    names: dict[str, list[str]] = {}
    for name, path in declared.items():
        names.setdefault(path, []).append(name)
    rows = [
        row
        for path, module in model.named_modules()
        for row in _rows(path, module, outputs.get(path, []), counted[path], names, size_hw)
    ]
    features = {
        name: (declared[name], tuple(value.shape[1:]), stride_of((value.shape[2], value.shape[3]), size_hw))
        for name, value in found.items()
    }
    return Inspection(size_hw, tuple(rows), features, count_parameters(model), counted[""])


def _shapes(value: Any) -> Any:
    """Return a value with its tensors replaced by their shapes, so that none is kept."""
    if isinstance(value, Tensor):
        return value.shape
    if isinstance(value, Mapping):
        return {str(key): _shapes(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(index): _shapes(entry) for index, entry in enumerate(value)}
    return None


def _rows(
    path: str, module: nn.Module, calls: list[Any], macs: int, names: Mapping[str, list[str]], size_hw: tuple[int, int]
) -> Iterator[Row]:
    depth = path.count(".") + 1 if path else 0
    params = sum(p.numel() for p in module.parameters())
    output = calls[-1] if calls else None
    shape, stride, layout = _feature(output, size_hw)
    declared = tuple(names.get(path + (layout or ""), ()))
    yield Row(path, type(module).__name__, depth, shape, stride, layout, len(calls), params, macs, declared)
    for entry, value in _entries(output):
        shape, stride, layout = _feature(value, size_hw)
        text = f"{path}:{entry}"
        declared = tuple(names.get(text + (layout or ""), ()))
        yield Row(text, "", depth, shape, stride, layout, len(calls), None, None, declared)


def _entries(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk through nested entries, those that are shapes."""
    if isinstance(value, dict):
        for key in list(value)[:_MOST_ENTRIES]:
            if isinstance(value[key], dict):
                yield from _entries(value[key], f"{prefix}{key}:")
            elif value[key] is not None:
                yield f"{prefix}{key}", value[key]


def _feature(shape: Any, size_hw: tuple[int, int]) -> tuple[tuple[int, ...], int | None, str | None]:
    """Return the shape without the batch, the stride, and the layout; the last two None where it is no feature map."""
    if not isinstance(shape, tuple):
        return (), None, None
    rest = tuple(int(side) for side in shape[1:])
    if len(rest) == 3 and all(rest):
        stride = stride_of((rest[1], rest[2]), size_hw)
        last = stride_of((rest[0], rest[1]), size_hw)
        return (rest, stride, "") if stride is not None or last is None else (rest, last, "@nhwc")
    grid = token_grid(rest[0], size_hw) if len(rest) == 2 and rest[1] else None
    return (rest, None, None) if grid in (None, (1, 1)) else (rest, stride_of(grid, size_hw), "@tokens")


def to_record(found: Inspection) -> dict[str, Any]:
    """Return an inspection as plain values for JSON."""
    return dataclasses.asdict(found)


def to_text(found: Inspection, name: str, depth: int) -> str:
    """Return an inspection as a table of at most WIDTH columns, but for paths that are longer.

    Args:
        found: The inspection.
        name: What the user calls the network.
        depth: Deepest modules to list, 1 for those that the network itself has.
    """
    height, width = found.size_hw
    rows = [row for row in found.rows if row.depth <= depth]
    head = ("output", "stride", "params", "MACs", "type", "tap", "path")
    lines = [_cells(row, found.size_hw) for row in rows]
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(6)]
    text = [f"{name}, input {height}x{width}: {_short(found.params)} parameters, {_short(found.macs)} MACs", ""]
    text += [_join(line, widths) for line in (head, *lines)]
    hidden = len(found.rows) - len(rows)
    if hidden:
        text.append(f"({hidden} more lie deeper: --depth {depth + 1})")
    text += ["", "declared taps:" if found.taps else "declared taps: none"]
    for tap, (path, shape, stride) in found.taps.items():
        text.append(f"  {tap:<8} {'x'.join(map(str, shape)):<14} stride {stride or '-'!s:<4} {path}")
    usable = (row.path + (row.layout or "") for row in reversed(found.rows) if _usable(row))
    example = found.taps["deep"][0] if "deep" in found.taps else next(usable, "PATH")
    text += ["", f"to use one: --set distill.student_taps.deep={example}", "a module's input is PATH:input"]
    return "\n".join(text)


def _usable(row: Row) -> bool:
    return row.layout is not None and row.stride is not None and row.stride > 1 and row.calls == 1 and bool(row.path)


def _cells(row: Row, size_hw: tuple[int, int]) -> tuple[str, ...]:
    shape = "x".join(map(str, row.shape)) or ("not called" if not row.calls else "-")
    kind = row.kind + (f", {row.calls} calls" if row.calls > 1 and row.kind else "")
    whole = row.stride is not None and row.stride >= max(size_hw)  # one cell for all of the picture
    stride = "all" if whole else str(row.stride or "-")
    costs = ("" if value is None else _short(value) for value in (row.params, row.macs))
    return (shape, stride, *costs, kind, ",".join(row.taps), (row.path or "(network)") + (row.layout or ""))


def _join(cells: tuple[str, ...], widths: list[int]) -> str:
    """Return a line; the path comes last and whole, on a line of its own where it does not fit."""
    right = (False, True, True, True, False, False)
    columns = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells[:-1], widths, right, strict=True)]
    line = "  ".join(columns)
    gap = "\n    " if len(line) + 2 + len(cells[-1]) > WIDTH else "  "
    return f"{line.rstrip() if gap[0] == chr(10) else line}{gap}{cells[-1]}"


def _short(count: int) -> str:
    """Return a count with three digits and its unit: 4.32 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(count)
