from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lfd.config import OptimizerConfig
from lfd.schedule import build_optimizer, learning_rate


@pytest.mark.parametrize("name", ["poly", "cosine", "constant"])
def test_warm_up_rises_in_a_line_and_the_rest_falls(name: str) -> None:
    config = OptimizerConfig(lr=1.0, schedule=name, warmup=10)
    rates = [learning_rate(config, s, 100) for s in range(100)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10] == 1
    assert all(a >= b for a, b in itertools.pairwise(rates[10:])) and rates[-1] > 0


def test_poly_and_cosine_are_torchs() -> None:
    """Against torch.optim.lr_scheduler, stepped once a step."""
    theirs = {
        "poly": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 50, 0.9),
        "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50),
    }
    for name, make in theirs.items():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
        scheduler = make(optimizer)
        for step in range(50):
            ours = learning_rate(OptimizerConfig(lr=0.02, schedule=name), step, 50)
            assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_norms(name: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module[0].weight.requires_grad_(True)
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.5), module)
    decays = {p.shape: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {(4, 3, 3, 3): 0.5, (4,): 0.0}
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4
