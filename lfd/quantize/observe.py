"""The ranges that a student in INT8 begins with."""

from __future__ import annotations

import numpy as np
import torch

from lfd.data import Dataset
from lfd.normalize import Normalize
from lfd.preprocess import fit_frame
from lfd.quantize.student import MOMENTUM, Int8, as_int8
from lfd.spec import Preprocess

PICTURES = 32


@torch.no_grad()
def observe(student: torch.nn.Module, int8: Int8, data: Dataset, preprocess: Preprocess) -> None:
    """Set each range to the mean of its extremes over pictures, as deployed, spread over a data set.

    Every process of a run sees the same ones.

    Args:
        student: The network.
        int8: Its quantisers.
        data: Pictures; labels are not read.
        preprocess: The network's input.
    """
    device = int8.pixels.device
    normalize = Normalize(preprocess).to(device)
    count = min(PICTURES, len(data))
    training = student.training
    student.eval()
    int8.train()
    int8.observing = True
    with as_int8(student):
        for number, index in enumerate(np.linspace(0, len(data) - 1, count).round().astype(int), 1):
            frame = fit_frame(data[int(index)].image, preprocess)
            int8.set_momentum(1 / number)
            student(normalize(torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None]))
    int8.set_momentum(MOMENTUM)
    int8.observing = False
    student.train(training)
