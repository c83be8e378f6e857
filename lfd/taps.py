"""Reading features out of any network by the path of a module, with forward hooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lfd.errors import UsageError, unknown


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


class FeatureTaps:
    """Runs a network and keeps the features that were asked for.

    Args:
        model: The network; its forward returns a dictionary with `out`, or the logits themselves.
        paths: Feature name to path: `module.path` for a module's output, `module.path:input` for what
            it is given, `module.path:key` for one entry of a dictionary that it returns.

    Raises:
        UsageError: A path names no module of this network.
    """

    def __init__(self, model: nn.Module, paths: Mapping[str, str]) -> None:
        self.model = model
        self._features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        modules = dict(model.named_modules())
        for name, path in paths.items():
            module_path, _, part = path.partition(":")
            if module_path not in modules:
                raise unknown(f"module for the tap {name!r}", module_path, modules)
            self._handles.append(modules[module_path].register_forward_hook(self._keep(name, part)))

    def _keep(self, name: str, part: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            value = inputs[0] if part == "input" else output[part] if part else output
            if not isinstance(value, Tensor) or value.dim() != 4:
                raise UsageError(f"the tap {name!r} is not a feature map (B, C, h, w); name another module")
            self._features[name] = value

        return hook

    def __call__(self, image: Tensor) -> Outputs:
        """Run the network on normalised (B, 3, H, W)."""
        result = self.model(image)
        taps, self._features = self._features, {}
        if isinstance(result, Tensor):
            return Outputs(result, taps, None)
        return Outputs(result["out"], taps, result.get("aux"))

    def remove(self) -> None:
        """Take the hooks off; the network is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def dry_run(taps: FeatureTaps, size_hw: tuple[int, int]) -> dict[str, TapInfo]:
    """Find the shape of each feature, and of `logits`, by one pass without gradient over zeros.

    The network is put into evaluation for it, so that its batch norms keep their statistics.
    """
    model = taps.model
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        outputs = taps(torch.zeros(1, 3, *size_hw, device=device))
    model.train(training)
    found = {"logits": outputs.logits, **outputs.taps}
    return {name: TapInfo(t.shape[1], (t.shape[2], t.shape[3])) for name, t in found.items()}
