"""Several processes, one per device, that train as one: sums over them, and means that stay exact.

A loss that is a mean over labelled pixels must be the mean over the pixels of all processes. Each
process divides its own sum by the count of all over the number of processes (`share`); the average
that DistributedDataParallel takes of the gradients is then that of the whole batch, however unevenly
void pixels are spread. With one process everything here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lfd.errors import LfdError, TrainingError, UsageError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of processes in the group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number in the group, 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_world_size() -> int:
    """Return how many of the processes run on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def all_sum(value: Tensor) -> Tensor:
    """Return the sum over all processes, without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def share(total: Tensor) -> Tensor:
    """Return what this process divides its sum by: the total of all over the number of processes."""
    return all_sum(total) / world_size()


def gather(value: Any) -> list[Any]:
    """Return every process's value, by rank; small things only, they are pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast(value: Any) -> Any:
    """Return the first process's value."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def on_first(make: Callable[[], T]) -> T:
    """Return what the first process makes; where it fails, all fail alike, and none waits for it.

    Raises:
        LfdError: The first process's.
    """
    made: Any = None
    error: LfdError | None = None
    if rank() == 0:
        try:
            made = make()
        except LfdError as raised:
            error = raised
    made, error = broadcast((made, error))
    if error is not None:
        raise error
    result: T = made
    return result


def same_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers: running statistics, counters."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


@contextmanager
def group(device: str) -> Iterator[torch.device | None]:
    """Join the group that torchrun started, if it did; yield the device that is this process's own.

    Args:
        device: `auto`, `cpu` or `cuda`, as configured.

    Raises:
        UsageError: A device with a number, or more processes than cards.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        yield None
        return
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"device {device!r} under torchrun, where each process takes its own; expected auto, cpu, cuda"
        )
    own = torch.device("cpu")
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        here, cards = local_world_size(), torch.cuda.device_count()
        if here > cards:
            raise UsageError(f"{here} processes of torchrun for {cards} cards here. Fix: --nproc-per-node {cards}")
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", device_id=own if own.type == "cuda" else None)
    try:
        yield own
    except RuntimeError as error:  # gloo has no type of its own for it, NCCL DistBackendError
        if isinstance(error, dist.DistError) or "closed by peer" in str(error) or "gloo" in str(error):
            raise TrainingError("another process failed and ended the run; its message says why") from error
        raise
    finally:
        dist.destroy_process_group()
