"""The state of a run on disk: everything that an exact continuation needs, of all processes."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lfd.checkpoint import model_file
from lfd.config import Config
from lfd.distributed import gather, on_first, rank, world_size
from lfd.errors import CheckpointError, UsageError
from lfd.job import Job
from lfd.recipe import difference, to_toml
from lfd.weights import load_state, save_state


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        best: Best validation mIoU so far, -inf before the first.
        scored: Step of the last validation.
    """

    step: int
    best: float
    scored: int


class RunState:
    """Saves and restores a run: weights, adapters, heads, class statistics, optimiser, scaler, average, random states.

    Which pictures come next follows from the step (`lfd.loader`), so there is no sampler to save.

    Args:
        path: The file.
        config: Of the run.
        job: Its networks.
        optimizer: Its optimiser.
        scaler: Its gradient scaler.
    """

    def __init__(
        self, path: Path, config: Config, job: Job, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.path = path
        self.config = config
        self.job = job
        self.optimizer = optimizer
        self.scaler = scaler
        self.identity = identity(job, config)

    def save(self, progress: Progress) -> None:
        """Write the state; the first process does, with every process's random state.

        Raises:
            CheckpointError: The disk is full or not writable; an older file stays as it was.
        """
        cuda = self.job.device.type == "cuda"
        rng = gather((torch.get_rng_state(), torch.cuda.get_rng_state(self.job.device) if cuda else torch.empty(0)))
        if rank() > 0:
            return
        average = self.job.average
        save_state(
            self.path,
            {
                "config": to_toml(self.config),
                "identity": self.identity,
                "step": progress.step,
                "best": progress.best,
                "scored": progress.scored,
                "distiller": self.job.distiller.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": average.state_dict() if average is not None else {},
                "rng": rng,
            },
        )

    def check_space(self) -> None:
        """Refuse to begin where the disk cannot take the files.

        Raises:
            CheckpointError: Less is free than the old and the new state and the model take together.
        """
        weights = sum(v.nbytes for v in self.job.distiller.state_dict().values())
        trained = sum(p.nbytes for p in self.job.distiller.parameters() if p.requires_grad)
        kept = sum(v.nbytes for v in self.job.kept.state_dict().values())
        moments = 2 if self.config.optimizer.name == "adamw" else 1
        state = weights + moments * trained + (kept if self.job.average is not None else 0)
        needed, free = 2 * (state + kept), shutil.disk_usage(self.path.parent).free
        if free < needed:
            raise CheckpointError(
                f"{self.path.parent}: {free / 1e6:.0f} MB free on that disk; a run of this model keeps up to "
                f"{needed / 1e6:.0f} MB there. Fix: free space, or --out elsewhere"
            )

    def restore(self, console: Console) -> Progress:
        """Load the state in place and return how far the run was.

        Raises:
            CheckpointError: Missing or broken.
            UsageError: Of another configuration.
        """
        state: dict[str, Any] = on_first(lambda: load_resumable(self.path, self.config))
        try:
            if state["identity"] != self.identity:
                raise UsageError(
                    f"{self.path} was made with other pictures, another teacher or another --init than are there now "
                    f"({self.config.data.source}{', ' if self.config.distill.teacher else ''}"
                    f"{self.config.distill.teacher}): a resumed run keeps them. Fix: --data, --teacher and --init"
                )
            self.job.distiller.load_state_dict(state["distiller"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            if self.job.average is not None:
                self.job.average.load_state_dict(state["average"])
            if len(state["rng"]) == world_size():
                host, card = state["rng"][rank()]
                torch.set_rng_state(host)
                if card.numel() and self.job.device.type == "cuda":
                    torch.cuda.set_rng_state(card, self.job.device)
            else:
                console.print(
                    f"resume   {len(state['rng'])} processes before, {world_size()} now: the same pictures, "
                    "but dropout draws anew"
                )
            return Progress(int(state["step"]), float(state["best"]), int(state["scored"]))
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(
                f"{self.path}: is not the state of this run ({reason}); start anew with --overwrite"
            ) from error


def identity(job: Job, config: Config) -> str:
    """Return a hash of what a run learns from, wherever it lies: classes, counts and some pictures, and the teacher."""
    digest = hashlib.sha256()
    for data in (job.train, job.val):
        digest.update(f"{data.labels} {len(data)}".encode())
        for index in (0, len(data) // 2, len(data) - 1):
            sample = data[index]
            digest.update(sample.name.encode() + sample.image.tobytes() + sample.mask.tobytes())
    for path in filter(None, (config.distill.teacher, config.train.init)):
        with model_file(Path(path)).open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def load_resumable(path: Path, config: Config) -> dict[str, Any]:
    """Load a run's state, of this configuration.

    Raises:
        CheckpointError: Missing, broken, or not a state.
        UsageError: Of another configuration.
    """
    state = load_state(path)
    if not isinstance(state, dict) or not isinstance(state.get("config"), str):
        raise CheckpointError(f"{path}: is not the state of a run; start anew with --overwrite")
    check_same(config, state["config"], path)
    return state


def check_same(config: Config, saved: str, path: Path) -> None:
    """Refuse to go on with another configuration than a run began with.

    Raises:
        UsageError: They differ in something that changes the course of the run.
    """
    changed = difference(saved, to_toml(config))
    if changed:
        raise UsageError(
            f"{path} was made with another {changed}: a resumed run keeps its configuration. "
            "Fix: give --out and --resume alone, and leave config.toml as it was"
        )
