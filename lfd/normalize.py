"""From pixels to a network's input, and from logits to a class map, in torch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfd.preprocess import Image
from lfd.spec import Preprocess


class Normalize(nn.Module):
    """(B, 3, H, W) BGR in [0, 255] to what a network was trained on, by its own mean, std and order."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.flip = preprocess.color == "RGB"
        self.register_buffer("mean", 255 * torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return float of the same shape and memory format."""
        pixels = image.flip(1) if self.flip else image
        return (pixels.float() - self.mean) / self.std


class Predictor:
    """A network as a function from a frame to a class map, as `lfd.evaluate.evaluate` takes it.

    Args:
        model: The network; put into evaluation for each call, and back.
        preprocess: Its input.
        device: Where it is.
        amp: Autocast type, or None for float32.
    """

    def __init__(
        self, model: nn.Module, preprocess: Preprocess, device: torch.device, amp: torch.dtype | None = None
    ) -> None:
        self.model = model
        self.size_hw = preprocess.size_hw
        self.normalize = Normalize(preprocess).to(device)
        self.device = device
        self.amp = amp
        self.align_corners = bool(getattr(model, "align_corners", False))

    @torch.inference_mode()
    def __call__(self, frame: Image) -> Image:
        """Map (h, w, 3) BGR uint8 at the model's size to (h, w) uint8 classes."""
        training = self.model.training
        self.model.eval()
        pixels = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device).permute(2, 0, 1)[None]
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = self.model(self.normalize(pixels))["out"].float()
        self.model.train(training)
        full = F.interpolate(logits, self.size_hw, mode="bilinear", align_corners=self.align_corners)
        return full.argmax(1)[0].to(torch.uint8).cpu().numpy()
