"""One optimiser step: parts of a batch, gradients, clipping, scaling, the moving average."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lfd.config import Config
from lfd.distributed import same_buffers, world_size
from lfd.job import AMP, Job
from lfd.loader import Batch
from lfd.quantize.fold import step_unfolded
from lfd.quantize.student import find
from lfd.schedule import build_optimizer, learning_rate
from lfd.watch import Watch

_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"  # before torch 2.15


class Stepper:
    """Takes the steps of a run; make it after the weights are what they shall be on every process.

    Args:
        job: What is trained; data-parallel where there are several processes, without the teacher.
        config: Of the run.

    Attributes:
        optimizer: Over the student, its adapters and heads.
        scaler: Of the gradient in half precision; does nothing in other types.
        watch: Looks at each step's terms.
    """

    def __init__(self, job: Job, config: Config) -> None:
        self._job = job
        self._config = config
        self.optimizer = build_optimizer(config.optimizer, job.distiller)
        if (int8 := find(job.distiller.student)) is not None:
            step_unfolded(self.optimizer, int8.folded(job.distiller.student))
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=config.train.amp == "fp16")
        self.watch = Watch(job.train, job.device)
        self._trained = [p for p in job.distiller.parameters() if p.requires_grad]
        self._wrapped: nn.Module = job.distiller
        if world_size() > 1:
            card = [job.device] if job.device.type == "cuda" else None
            same_buffers(job.distiller)
            # With synchronised norms every buffer is the same on all processes: queues need not travel at each step.
            # Ranges that follow the activations must: those of the first process count.
            travel: dict[str, Any] = {_BUFFERS: not config.train.sync_bn or bool(config.quantize.to)}
            self._wrapped = DistributedDataParallel(job.distiller, device_ids=card, **travel)

    def step(self, number: int, loader: Iterator[Batch], stop: bool) -> None:
        """Take a step.

        Args:
            number: Steps done before.
            loader: Gives the parts of the batch.
            stop: This process was asked to stop; the watch tells the others.
        """
        o, t = self._config.optimizer, self._config.train
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(o, number, t.steps)
        total, terms, seen = self._backward(number, loader)
        norm = None
        if t.amp != "fp16" or o.clip_norm:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        if o.clip_norm and norm is not None:
            nn.utils.clip_grads_with_norm_(self._trained, o.clip_norm, norm)
        # In half precision the scaler leaves a step with an infinite gradient out, and halves its scale.
        watched = terms if t.amp == "fp16" or norm is None else {**terms, "gradient": norm}
        self.watch.add(number + 1, total, watched, seen, stop)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._job.average is not None:
            self._job.average.update(self._job.distiller.student)

    def _backward(self, number: int, loader: Iterator[Batch]) -> tuple[Tensor, dict[str, Tensor], list[int]]:
        """Add the gradients of a batch, part by part; return its total, its terms and its pictures."""
        t, device, wrapped = self._config.train, self._job.device, self._wrapped
        total = torch.zeros((), device=device)
        terms: dict[str, Tensor] = {}
        seen: list[int] = []
        for part in range(t.accumulate):
            image, target, pictures, unlabelled = next(loader)
            if t.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            last = part == t.accumulate - 1
            # Gradients travel between processes once a step, with the last part.
            with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext():
                with torch.autocast(device.type, AMP[t.amp], enabled=t.amp != "off"):
                    result = wrapped(image, target, number / t.steps, unlabelled)
                self.scaler.scale(result.total / t.accumulate).backward()
            total += result.total.detach() / t.accumulate
            for name, value in result.parts.items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + value / t.accumulate
            seen += pictures
        return total, terms, seen
