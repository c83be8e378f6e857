"""The whole job as one module: a camera's frame in, a class map out."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.errors import ExportError
from lfd.spec import Preprocess


def _first_convolution(model: nn.Module, size_hw: tuple[int, int]) -> nn.Conv2d:
    """Return the convolution that sees the picture, found by running the network once.

    Raises:
        ExportError: The picture goes somewhere else first, or to several convolutions.
    """
    seen: list[nn.Conv2d] = []
    probe = torch.zeros(1, 3, *size_hw)

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if inputs[0].data_ptr() == probe.data_ptr() and isinstance(module, nn.Conv2d):
            seen.append(module)

    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(probe)
    for handle in handles:
        handle.remove()
    if len(seen) != 1 or seen[0].groups != 1 or seen[0].padding_mode != "zeros":
        raise ExportError(
            f"{type(model).__name__}: {len(seen)} convolutions take the picture; expected one plain Conv2d, "
            "into which the channel order and the standard deviation are folded"
        )
    return seen[0]


class DeployGraph(nn.Module):
    """Frame to class map: (B, H, W, 3) BGR uint8 to (B, H, W) uint8, or to (B, K, H, W) float32 logits.

    The channel flip and 1 / (255 std) are folded into the first convolution, which costs nothing at run
    time; the mean stays a subtraction in front of it, because zero padding must stay the mean colour.
    The class map goes through float32 on its way to uint8, since TensorRT takes uint8 only at the border.

    Args:
        model: The network, copied; its forward returns a dictionary with `out`.
        preprocess: Its input.
        output: `class_map` or `logits`.

    Raises:
        ExportError: The network does not begin with one convolution.
    """

    mean: Tensor

    def __init__(self, model: nn.Module, preprocess: Preprocess, output: Literal["class_map", "logits"]) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).cpu().float().eval()
        self.size_hw = preprocess.size_hw
        self.output = output
        self.align_corners = bool(getattr(model, "align_corners", False))
        first = _first_convolution(self.network, preprocess.size_hw)
        order = [2, 1, 0] if preprocess.color == "RGB" else [0, 1, 2]
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        with torch.no_grad():
            first.weight.copy_((first.weight / (255 * std.view(1, 3, 1, 1)))[:, order])
        self.register_buffer("mean", (255 * mean)[order].view(1, 1, 1, 3))

    def forward(self, frame: Tensor) -> Tensor:
        """Return the class map, or the logits, at the frame's size."""
        pixels = (frame.float() - self.mean).permute(0, 3, 1, 2)
        logits: Tensor = self.network(pixels)["out"]
        full = F.interpolate(logits, self.size_hw, mode="bilinear", align_corners=self.align_corners)
        if self.output == "logits":
            return full
        return full.argmax(1).float().to(torch.uint8)
