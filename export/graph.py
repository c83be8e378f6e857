"""The whole job as one module: a camera's frame in, a class map out."""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.quantize.topology import UPSAMPLING
from lfd.spec import Preprocess

MOST_PRODUCTS = 100
"""Products for one logit of the class map up to which matrices enlarge the logits. Resize and argmax against the
products and argmax, ms, one core, 12 classes, ONNX Runtime; OpenVINO, fp32. To 180x240 from 23x30: 1.1, 0.5; 2.2, 0.4.
To 360x480 from 45x60 (52 products): 4.3, 2.7; 8.6, 1.9. To 180x240 from 90x120 (150): 1.1, 1.2; 2.2, 1.2. To 1080x1920
from 68x120 (76): 54, 62; 113, 58; from 135x240 (165): 54, 84; 120, 69."""


def _first_convolution(model: nn.Module, size_hw: tuple[int, int]) -> nn.Conv2d | None:
    """Return the one plain convolution that is handed the picture, found by running the network; None without one."""
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
    plain = len(seen) == 1 and seen[0].groups == 1 and seen[0].padding_mode == "zeros"
    return seen[0] if plain else None


def _fold(network: nn.Module, preprocess: Preprocess, order: list[int]) -> bool:
    """Fold channel order and 1 / (255 std) into the first convolution, where that leaves the network as it is.

    Somebody else's network may hand the picture to something else as well, which no hook sees: what comes out before
    and after tells. Where it differs, nothing is changed.
    """
    first = _first_convolution(network, preprocess.size_hw)
    if first is None:
        return False
    scale = 255 * torch.tensor(preprocess.std).view(1, 3, 1, 1)
    numbers = torch.Generator().manual_seed(0)
    probe = torch.randn(1, 3, *preprocess.size_hw, generator=numbers)
    before = first.weight.detach().clone()
    with torch.no_grad():
        expected = network(probe)["out"]
        first.weight.copy_((before / scale)[:, order])
        found = network((probe * scale)[:, order])["out"]
        same = torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
        if not same:
            first.weight.copy_(before)
    return same


def _interpolation(small: int, large: int, align_corners: bool) -> Tensor:
    """Return the (large, small) matrix by which bilinear interpolation of one side multiplies: its result for units."""
    units = torch.eye(small)[None, None]
    return F.interpolate(units, (large, small), mode="bilinear", align_corners=align_corners)[0, 0]


class DeployGraph(nn.Module):
    """Frame to class map: (B, H, W, 3) BGR uint8 to (B, H, W) uint8, or to (B, K, H, W) float32 logits.

    The channel flip and 1 / (255 std) are folded into the first convolution, which costs nothing at run
    time; the mean stays a subtraction in front of it, because zero padding must stay the mean colour. A network that
    does not begin with one convolution has both in front of it.
    Logits of a small grid are enlarged by two matrix products, columns and rows, which is bilinear interpolation to the
    last digits and quicker than the Resize of runtimes on a CPU (MOST_PRODUCTS).
    The class map goes through float32 on its way to uint8, since TensorRT takes uint8 only at the border.

    Args:
        model: The network, copied; its forward returns a dictionary with `out`.
        preprocess: Its input.
        output: `class_map` or `logits`.

    Attributes:
        folded: Whether the first convolution has taken flip and deviation.
    """

    mean: Tensor
    scale: Tensor
    upsample_rows: Tensor | None
    upsample_columns: Tensor | None

    def __init__(self, model: nn.Module, preprocess: Preprocess, output: Literal["class_map", "logits"]) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).cpu().float().eval()
        self.size_hw = preprocess.size_hw
        self.output = output
        self.align_corners = bool(getattr(model, "align_corners", False))
        self.flip = preprocess.color == "RGB"
        order = [2, 1, 0] if self.flip else [0, 1, 2]
        self.folded = _fold(self.network, preprocess, order)
        mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
        self.register_buffer("mean", (255 * mean)[order].view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * std)[order].view(1, 3, 1, 1))
        rows, columns = self._interpolations()
        self.register_buffer(UPSAMPLING[0], rows)
        self.register_buffer(UPSAMPLING[1], columns)

    def _interpolations(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return (H, h) and (w, W), between which the logits are multiplied; nothing where that is the longer way."""
        with torch.no_grad():
            logits = self.network(torch.zeros(1, 3, *self.size_hw))["out"]
        (h, w), (height, width) = logits.shape[-2:], self.size_hw
        # 0 times an infinite logit, with which a class may be ruled out, is no number.
        ruled_out = not bool(torch.isfinite(logits).all())
        if ruled_out or (h, w) == (height, width) or h * w / height + h > MOST_PRODUCTS:
            return None, None
        return _interpolation(h, height, self.align_corners), _interpolation(w, width, self.align_corners).T

    def forward(self, frame: Tensor) -> Tensor:
        """Return the class map, or the logits, at the frame's size."""
        # The mean comes off behind the transpose: three numbers at a time, along the last axis, take 20 times as long.
        pixels = frame.float().permute(0, 3, 1, 2) - self.mean
        if not self.folded:
            pixels = pixels * self.scale
            if self.flip:  # by slices: an index would become GatherND
                pixels = torch.cat([pixels[:, 2:], pixels[:, 1:2], pixels[:, :1]], 1)
        logits: Tensor = self.network(pixels)["out"]
        if self.upsample_rows is None or self.upsample_columns is None:
            full = F.interpolate(logits, self.size_hw, mode="bilinear", align_corners=self.align_corners)
        else:
            full = self.upsample_rows @ (logits @ self.upsample_columns)
        if self.output == "logits":
            return full
        return full.argmax(1).float().to(torch.uint8)
