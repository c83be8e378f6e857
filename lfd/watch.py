"""Looking at each step's terms without making a GPU wait: they are read one step later there."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lfd.data import Dataset
from lfd.distributed import world_size
from lfd.errors import TrainingError


@dataclass
class _Pending:
    step: int
    names: tuple[str, ...]
    own: Tensor
    overall: Tensor
    copied: torch.cuda.Event | None
    pictures: list[int]


@dataclass(frozen=True)
class Settled:
    """A step that has been looked at.

    Attributes:
        step: Its number, from 1.
        terms: Raw terms over all processes, with the gradient's norm before clipping as `gradient`.
        stop: A process was asked to stop by then.
    """

    step: int
    terms: dict[str, float]
    stop: bool


class Watch:
    """Checks that every term is finite, and agrees among the processes on stopping.

    On a GPU the terms are copied beside the computation and looked at after the next step has been
    queued, since reading a value at once would leave the GPU idle while Python prepares that step.

    Args:
        data: Names the pictures of a failed step.
        device: Where the terms are.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self._data = data
        self._cuda = device.type == "cuda"
        self._pending: deque[_Pending] = deque()

    def add(self, step: int, total: Tensor, terms: Mapping[str, Tensor], pictures: list[int], stop: bool) -> None:
        """Note a step's terms.

        Args:
            step: Its number, from 1.
            total: The scalar that was differentiated.
            terms: This process's shares of the raw terms.
            pictures: Indices of its pictures.
            stop: This process was asked to stop.
        """
        values = [total.detach().float(), *(term.float() for term in terms.values())]
        own = torch.stack([*values, values[0].new_full((), float(stop))])  # filled there: a copy would wait for the GPU
        overall = own
        if world_size() > 1:
            overall = own / world_size()
            dist.all_reduce(overall)
        copied = None
        if self._cuda:
            own, overall = (v.to("cpu", non_blocking=True) for v in (own, overall))
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._pending.append(_Pending(step, tuple(terms), own, overall, copied, pictures))

    def settle(self, everything: bool) -> list[Settled]:
        """Return the steps that have been looked at since, in order.

        Args:
            everything: Wait for the latest step too.

        Raises:
            TrainingError: A term of a step is not finite.
        """
        settled = []
        while len(self._pending) > (1 if self._cuda and not everything else 0):
            entry = self._pending.popleft()
            if entry.copied is not None:
                entry.copied.synchronize()
            *overall, stop = entry.overall.tolist()
            if not all(math.isfinite(value) for value in overall):
                raise TrainingError(self._not_finite(entry))
            settled.append(Settled(entry.step, dict(zip(entry.names, overall[1:], strict=True)), stop > 0))
        return settled

    def _not_finite(self, entry: _Pending) -> str:
        own = entry.own.tolist()
        bad = [name for name, value in zip(entry.names, own[1:-1], strict=True) if not math.isfinite(value)]
        if not bad and math.isfinite(own[0]):
            return f"step {entry.step}: a term is not finite on another process, whose message says which"
        names = ", ".join(self._data[i].name for i in entry.pictures)
        return (
            f"step {entry.step}: {', '.join(bad) or 'the sum of the terms'} is not finite, on the pictures {names}. "
            "Fix: look at those pictures, or start anew with --overwrite and a lower optimizer.lr, or without train.amp"
        )
