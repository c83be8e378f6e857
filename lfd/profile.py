"""What a network costs: parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lfd.errors import LfdError
from lfd.taps import does_not_take

T = TypeVar("T")


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters that take part in inference (an auxiliary head does not)."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aux_classifier."))


def count_macs(model: nn.Module, size_hw: tuple[int, int]) -> int:
    """Return multiply-accumulates of one picture: half of torch's FLOP count of convolutions and products.

    Args:
        model: The network.
        size_hw: Input size.

    Raises:
        UsageError: The network fails on that size.
    """
    return run_copy(model, size_hw, macs_by_module)[""]


def macs_by_module(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Run a network and return the multiply-accumulates of each module, with all inside it.

    Args:
        model: The network.
        image: Its input (1, 3, H, W).

    Returns:
        Path of a module to its count; "" for all. A module that has several paths has its count under the first.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    root = type(model).__name__
    counted = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    names: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(f"{root}.{path}")

    def macs(module: nn.Module) -> int:
        own = max(counted.get(name, 0) for name in names[module])
        return own or sum(macs(child) for child in module.children())  # a ModuleList is not run itself

    return {**{path: macs(module) for path, module in model.named_modules()}, "": counter.get_total_flops() // 2}


def run_copy(model: nn.Module, size_hw: tuple[int, int], run: Callable[[nn.Module, Tensor], T]) -> T:
    """Run a copy of a network in evaluation: without values, which takes no time at any size, else on the CPU.

    Args:
        model: The network, which stays as it is.
        size_hw: Input size.
        run: Takes the copy and an input (1, 3, H, W).

    Raises:
        UsageError: The network fails on that size.
    """
    failure: Exception | None = None
    for device in ("meta", "cpu"):
        try:
            shell = copy.deepcopy(model).to(device).eval()
            with torch.no_grad():
                return run(shell, torch.zeros(1, 3, *size_hw, device=device))
        except LfdError:  # noqa: PERF203  two turns at most
            raise
        except Exception as error:  # the network may be anybody's, and read values, which a shell has not
            failure = error
    assert failure is not None  # noqa: S101
    raise does_not_take(model, size_hw, failure) from failure
