"""Optimisers and learning-rate schedules as functions of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from lfd.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    Linear warm-up from lr / warmup, then `poly` lr (1 - t)^power (Chen et al. 2017), `cosine`
    lr (1 + cos(pi t)) / 2 (Loshchilov and Hutter 2017), or constant; t runs from 0 to 1 after warm-up.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    t = (step - config.warmup) / max(1, steps - config.warmup)
    if config.schedule == "poly":
        return config.lr * math.pow(1 - t, config.power)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * t)) / 2
    return config.lr


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Return SGD or AdamW over all trainable parameters; weight decay on filters, and as configured on the rest."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": config.weight_decay * config.decay_norms},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
