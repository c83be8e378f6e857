"""What makes a network of somebody else's look like one of ours, without another layer around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lfd.errors import UsageError
from lfd.taps import describe


def adapt(
    network: nn.Module, num_classes: int, taps: dict[str, str], backbone_name: str, multiple: int = 1
) -> nn.Module:
    """Give a network the attributes and the output of `lfd.models.SegmentationModel`.

    The output is changed by a forward hook, so that keys and module paths stay the network's own.

    Args:
        network: Somebody's.
        num_classes: K, which its logits must have.
        taps: Feature names to paths.
        backbone_name: For messages.
        multiple: Of which both sides of its input must be.

    Returns:
        The same network, in training mode. Attributes of these names that it has are kept.
    """
    missing = {
        "taps": taps,
        "backbone": None,
        "backbone_name": backbone_name,
        "align_corners": False,
        "multiple": multiple,
    }
    for key, value in missing.items():
        if not hasattr(network, key):  # setting a property fails, or registers what it returns a second time
            setattr(network, key, value)
    network.register_forward_hook(_as_dictionary(num_classes))
    return network.train()


def _as_dictionary(num_classes: int) -> Callable[[nn.Module, Any, Any], dict[str, Tensor]]:
    def hook(module: nn.Module, _: Any, result: Any) -> dict[str, Tensor]:
        logits, aux = result, None
        if isinstance(result, Mapping):
            logits = result["out"] if "out" in result else result.get("logits")
            aux = result.get("aux") if module.training else None
        elif not isinstance(result, Tensor):
            logits = getattr(result, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 4 or logits.shape[1] != num_classes:
            given = result if logits is None else logits
            raise UsageError(
                f"{type(module).__name__} returns {describe(given)}; expected logits (B, {num_classes}, h, w), as a "
                "tensor, as 'out' or 'logits' of a dictionary, or as an attribute `logits`"
            )
        return {"out": logits} if aux is None else {"out": logits, "aux": aux}

    return hook


def check_input_size(model: nn.Module, size_hw: tuple[int, int]) -> None:
    """Refuse an input size that the network cannot take, before anything runs.

    Raises:
        UsageError: A side is no multiple of the network's `multiple`; the message has the nearest that are.
    """
    multiple = int(getattr(model, "multiple", 1))
    if any(side % multiple for side in size_hw):
        below = tuple(max(multiple, side // multiple * multiple) for side in size_hw)
        above = tuple(-(-side // multiple) * multiple for side in size_hw)
        fixes = " or ".join(dict.fromkeys(f"{height}x{width}" for height, width in (below, above)))
        raise UsageError(
            f"input {size_hw[0]}x{size_hw[1]}: {type(model).__name__} on {getattr(model, 'backbone_name', '')} takes "
            f"sides that are multiples of {multiple}. Fix: {fixes}"
        )
