"""Reading features out of any network by the path of a module, with forward hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lfd.errors import LfdError, UsageError, unknown
from lfd.grids import stride_of, token_grid

LAYOUTS = ("tokens", "nhwc")
"""What may stand behind `@`: (B, N, C), and (B, h, w, C)."""


class Outputs(NamedTuple):
    """What a network gave for a batch.

    Attributes:
        logits: (B, K, h, w).
        taps: Feature name to (B, C, h', w').
        aux: Logits of the network's own auxiliary head (B, K, h', w'), in training, where it has one.
    """

    logits: Tensor
    taps: dict[str, Tensor]
    aux: Tensor | None


@dataclass(frozen=True)
class TapInfo:
    """A feature as a dry run found it: its channels and its grid for the run's input size."""

    channels: int
    grid_hw: tuple[int, int]


@dataclass(frozen=True)
class TapPath:
    """Where a feature is, and how it lies in memory.

    Attributes:
        text: As the user wrote it.
        module: The module's path; "" for the network itself.
        entries: What to take of its output, one after another; `input` first takes what it is given instead.
        layout: "" for (B, C, h, w), or one of LAYOUTS.
    """

    text: str
    module: str
    entries: tuple[str, ...]
    layout: str

    @classmethod
    def parse(cls, text: str) -> TapPath:
        """Read `module.path[:ENTRY ...][@LAYOUT]`.

        Raises:
            UsageError: Another form.
        """
        place, at, layout = text.partition("@")
        if at and layout not in LAYOUTS:
            raise unknown(f"layout in the tap {text!r}", layout, LAYOUTS)
        module, *entries = place.split(":")
        if "" in entries:
            raise UsageError(f"tap {text!r}; expected module.path, module.path:input or module.path:ENTRY")
        return cls(text, module, tuple(entries), layout)


class FeatureTaps:
    """Runs a network and keeps the features that were asked for.

    A path is a module's, such as `backbone.layer4`, for its output. `:input` behind it takes its first argument
    instead, `:KEY` an entry of a dictionary or an attribute, `:3` an entry of a list, and they may follow each other:
    `decoder:input:5`. A transformer's (B, N, C) becomes a feature map by `@tokens`, (B, h, w, C) by `@nhwc`.

    A module that is called several times in one pass has no one output: that is an error, since the last call, or
    any other, would be a guess. A gradient checkpoint's second call, in the backward pass, does not count.

    Args:
        model: The network; its forward returns a dictionary with `out`, or the logits themselves.
        paths: Feature name to path.

    Raises:
        UsageError: A path is of another form, or names no module of this network.
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, str]) -> None:
        self.model = model
        self._paths = {name: TapPath.parse(path) for name, path in paths.items()}
        self._found: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._reading = False
        self._handles: list[RemovableHandle] = []
        modules = dict(model.named_modules())
        for name, path in self._paths.items():
            if path.module not in modules:
                raise unknown(f"module for the tap {name!r}", path.module, modules)
        for name, path in self._paths.items():
            hook = self._keep(name, path)
            self._handles.append(modules[path.module].register_forward_hook(hook, with_kwargs=True))

    def _keep(self, name: str, path: TapPath) -> Any:
        entries = path.entries[1:] if path.entries[:1] == ("input",) else path.entries
        of_input = len(entries) < len(path.entries)

        def hook(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if not self._reading:
                return
            if name in self._found:
                raise UsageError(
                    f"the tap {name!r} = {path.text!r}: that module is called several times in one pass, so it has no "
                    "one output. Fix: tap a module that is called once; `lfd-train inspect` shows the calls"
                )
            if of_input and not inputs and not named:
                raise UsageError(f"the tap {name!r} = {path.text!r}: that module is given nothing. Fix: tap its output")
            value = (*inputs, *named.values())[0] if of_input else output
            for entry in entries:
                value = _entry(value, entry, f"the tap {name!r} = {path.text!r}")
            self._found[name] = value
            # A compiled graph keeps the values apart, and inference mode counts no versions.
            if isinstance(value, Tensor) and not torch.compiler.is_compiling() and not value.is_inference():
                self._versions[name] = value._version

        return hook

    def __call__(self, image: Tensor) -> Outputs:
        """Run the network on normalised (B, 3, H, W).

        Raises:
            UsageError: A tap's module was not run or run several times, has no such entry, is no feature map,
                or was changed in place by what came after it.
        """
        self._found, self._versions = {}, {}
        self._reading = True
        try:
            result = self.model(image)
        finally:
            self._reading = False
            found, self._found = self._found, {}
        size_hw = (image.shape[2], image.shape[3])
        taps = {name: self._feature(name, path, found, size_hw) for name, path in self._paths.items()}
        if isinstance(result, Tensor):
            return Outputs(result, taps, None)
        return Outputs(result["out"], taps, result.get("aux"))

    def _feature(self, name: str, path: TapPath, found: Mapping[str, Any], size_hw: tuple[int, int]) -> Tensor:
        what = f"the tap {name!r} = {path.text!r}"
        if name not in found:
            raise UsageError(
                f"{what}: that module is not run in the forward pass. Fix: tap another; `lfd-train inspect` shows them"
            )
        value = found[name]
        if name in self._versions and value._version != self._versions[name]:
            raise UsageError(
                f"{what}: a later module changes it in place, as an in-place ReLU does, so that its value is lost. "
                "Fix: tap the module that changes it, or build the network without in-place operations"
            )
        return as_feature_map(value, path.layout, size_hw, what)

    def remove(self) -> None:
        """Take the hooks off; the network is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _entry(value: Any, entry: str, what: str) -> Any:
    if isinstance(value, Mapping) and entry in value:
        return value[entry]
    if isinstance(value, (list, tuple)) and entry.isdecimal() and int(entry) < len(value):
        return value[int(entry)]
    if not isinstance(value, Tensor) and hasattr(value, entry):
        return getattr(value, entry)
    raise UsageError(f"{what}: there is no entry {entry!r} in {describe(value)}")


def describe(value: Any) -> str:
    """Return what a value is, for a message: its type, and its shape or its entries."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the entries {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"a {type(value).__name__}"


def as_feature_map(value: Any, layout: str, size_hw: tuple[int, int], what: str) -> Tensor:
    """Return a value as (B, C, h, w).

    Args:
        value: What a module gave.
        layout: "" or one of LAYOUTS.
        size_hw: The network's input, which says how tokens lie.
        what: The tap, for messages.

    Raises:
        UsageError: It is none; the message says what it is, and which suffix would help.
    """
    if isinstance(value, Tensor) and value.numel() and value.is_floating_point():
        if not layout and value.dim() == 4:
            return value
        if layout == "nhwc" and value.dim() == 4:
            return value.permute(0, 3, 1, 2)
        if layout == "tokens" and value.dim() == 3:
            grid = token_grid(value.shape[1], size_hw)
            if grid is not None:
                patches = value[:, value.shape[1] - grid[0] * grid[1] :]
                return patches.transpose(1, 2).reshape(len(value), -1, *grid)
    hint = "tap another module; `lfd-train inspect` shows them"
    if isinstance(value, Tensor) and value.dim() == 3 and not layout and token_grid(value.shape[1], size_hw):
        hint = "@tokens behind the path, if it is (B, N, C)"
    elif isinstance(value, (Mapping, list, tuple)) and value:
        hint = f"name one, such as :{0 if isinstance(value, (list, tuple)) else next(iter(value))}, behind the path"
    expected = {"": "(B, C, h, w)", "nhwc": "(B, h, w, C)", "tokens": "(B, N, C), a token a patch"}[layout]
    raise UsageError(
        f"{what} is {describe(value)}, not a feature map: expected {expected}, for an input of "
        f"{size_hw[0]}x{size_hw[1]}. Fix: {hint}"
    )


def first_line(error: BaseException) -> str:
    """Return an exception of somebody else's code as one line: type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"


def does_not_take(model: nn.Module, size_hw: tuple[int, int], error: Exception) -> UsageError:
    """Return the error for a network that fails on an input size, with what it said."""
    return UsageError(
        f"{type(model).__name__} fails on an input of {size_hw[0]}x{size_hw[1]} ({first_line(error)}). "
        "Fix: another --size, as that network asks"
    )


def dry_run(taps: FeatureTaps, size_hw: tuple[int, int]) -> dict[str, TapInfo]:
    """Find the shape of each feature, and of `logits`, by one pass without gradient over zeros.

    The network is put into evaluation for it, so that its batch norms keep their statistics, and is not compiled.

    Raises:
        UsageError: The network fails on an input of that size, or a tap is none.
    """
    model = taps.model
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            outputs = taps(torch.zeros(1, 3, *size_hw, device=device))
    except LfdError:
        raise
    except Exception as error:  # the network may be anybody's
        raise does_not_take(model, size_hw, error) from error
    finally:
        model.train(training)
    found = {"logits": outputs.logits, **outputs.taps}
    for name, tensor in found.items():
        batch, first, second, last = tensor.shape
        if stride_of((second, last), size_hw) is None and stride_of((first, second), size_hw) is not None:
            raise UsageError(
                f"the tap {name!r} of {type(model).__name__} has shape {(batch, first, second, last)} for an input of "
                f"{size_hw[0]}x{size_hw[1]}: that is (B, h, w, C), not (B, C, h, w). Fix: @nhwc behind its path"
            )
    return {name: TapInfo(t.shape[1], (t.shape[2], t.shape[3])) for name, t in found.items()}
