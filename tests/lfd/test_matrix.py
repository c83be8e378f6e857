"""Every distiller with unlike pairs of networks: it takes steps, and its loss goes down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lfd.distiller import Distiller, Teacher
from lfd.methods import METHODS, plan
from lfd.models import create_model
from lfd.spec import Preprocess

K, SIZE = 3, Preprocess((64, 64))

PAIRS = {
    "cnn to cnn": ("deeplabv3_resnet18_os16", "lraspp_mobilenet_v3_small"),
    "transformer to cnn": ("smp:Segformer/mit_b0", "lraspp_mobilenet_v3_small"),
    "cnn to transformer": ("deeplabv3_resnet18_os16", "smp:Segformer/mit_b0"),
}
"""Teacher and student."""


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    return {name: create_model(name, K)[0] for name in {name for pair in PAIRS.values() for name in pair}}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].losses])
def test_steps_bring_the_loss_down(method: str, pair: str, networks: dict[str, nn.Module]) -> None:
    teacher, name = (PAIRS[pair][0], PAIRS[pair][1])
    torch.manual_seed(1)
    student = create_model(name, K)[0]
    chosen = plan(method)
    distiller = Distiller(student, SIZE, K, chosen, Teacher(networks[teacher], SIZE)).train()
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    target = torch.randint(0, K, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-4)
    seen = []
    for _ in range(6):
        result = distiller(image, target, 1.0)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        assert all(torch.isfinite(value) for value in result.parts.values()), result.parts
        # Without balance, which makes a constant of the total; a critic rises while its adversary falls.
        seen.append(
            sum(float(chosen.weights[part] * value) for part, value in result.parts.items() if "critic" not in part)
        )
    assert sum(seen[-2:]) < sum(seen[:2]), seen
