"""What a step of every distiller costs beside one of plain KD, and what loading costs over a batch held in memory.

    python -m benchmarks.training_cost [--device cpu|cuda] [--crop 256x512] [--batch 4] [--rounds 7] [--out FILE.json]

Each variant trains in a process of its own, which takes steps in turn with the others of its group, so that
all see the same state of the machine. Each group has KD in it, and a ratio is to that: of the medians of one
step's time. Processor time stands beside
the clock's, for machines that others use too. Memory is the process's
peak over what it had before the networks were made; on CUDA the allocator's own peak.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from deploy.environment import Environment
from lfd.config import Config
from lfd.console import parse_size
from lfd.data import open_dataset
from lfd.distiller import Distiller, Teacher
from lfd.files import write_json
from lfd.job import AMP, Job
from lfd.loader import Batch, Cached, MicroBatches, TrainStream, batches
from lfd.methods import METHODS, plan
from lfd.models import create_model
from lfd.normalize import Predictor
from lfd.recipe import from_mapping
from lfd.spec import ModelSpec, Preprocess
from lfd.stepper import Stepper

TEACHER, STUDENT = "deeplabv3_resnet101s_os8", "deeplabv3_resnet18s_os8"
FAST_STUDENT = "lraspp_mobilenet_v3_small"
"""The network that learns fastest here, which loading delays most."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS if name not in ("kd", "lfd")},
    "lfd, aux_resolution feature": ("lfd", {"lfd": {"aux_resolution": "feature", "kl_start": 0.0}}),
    "lfd, aux_resolution full": ("lfd", {"lfd": {"aux_resolution": "full", "kl_start": 0.0}}),
}
"""Name to method and options."""

GROUP = 4
"""Variants that are measured beside KD at a time: what fits into memory."""


def make_job(config: Config, device: torch.device, crop: tuple[int, int]) -> Job:
    """Return a run without its checks: random networks on the built-in street."""
    torch.manual_seed(0)
    data = Cached(open_dataset(f"street:?size={crop[0]}x{crop[1]}&frames=24", "train"))
    data.fill()
    preprocess = Preprocess(crop)
    classes = len(data.labels)
    student = create_model(config.train.model, classes)[0].to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher = None
    if config.distill.method != "none":
        network = create_model(TEACHER, classes)[0].to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        teacher = Teacher(network, preprocess, AMP[config.train.amp])
    chosen = plan(config.distill.method, options=config.loss)
    distiller = Distiller(student, preprocess, classes, chosen, teacher).to(device).train()
    predictor = Predictor(student, preprocess, device)
    spec = ModelSpec(config.train.model, data.labels, preprocess)
    stream = TrainStream(data, config.data, preprocess, 0)
    return Job(device, data, data, distiller, student, None, predictor, spec, stream)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory so far: of the process, or of torch's allocator on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(pipe: Connection, config: Config, where: str, crop: tuple[int, int], held: bool) -> None:
    """Take as many steps as asked for, and answer with their times and the peak of memory."""
    device = torch.device(where)
    before = peak_bytes(device)
    job = make_job(config, device, crop)
    stepper = Stepper(job, config)
    loader: Iterator[Batch] = batches(job.stream, MicroBatches(config.train.batch, 0, 10**6), 0, device)
    if held:
        loader = itertools.repeat(next(loader))
    number = 0
    while (count := pipe.recv()) > 0:
        times, cpu = [], []
        for _ in range(count):
            begin, busy = time.perf_counter(), time.process_time()
            stepper.step(number, loader, False)
            stepper.watch.settle(everything=True)
            times.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - busy)
            number += 1
        pipe.send((times, cpu, peak_bytes(device) - before))


def in_turns(jobs: dict[str, Callable[[Connection], None]], rounds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Let the processes take steps in turn and return each one's times in seconds and peak in bytes."""
    fork = multiprocessing.get_context("fork")
    pipes: dict[str, Connection] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        ours, theirs = fork.Pipe()
        fork.Process(target=job, args=(theirs,), daemon=True).start()
        pipes[name] = ours
        found[name] = {"step_s": [], "cpu_s": [], "peak_bytes": 0}
    for index in range(rounds + 1):  # the first round warms up
        for name in list(jobs) if index % 2 else list(reversed(jobs)):
            pipes[name].send(steps)
            times, cpu, found[name]["peak_bytes"] = pipes[name].recv()
            found[name]["step_s"] += times if index else []
            found[name]["cpu_s"] += cpu if index else []
    for pipe in pipes.values():
        pipe.send(0)
    for result in found.values():
        result["median_s"] = statistics.median(result["step_s"])
        result["median_cpu_s"] = statistics.median(result["cpu_s"])
    return found


def configuration(model: str, batch: int, amp: str, method: str, options: dict[str, Any]) -> Config:
    """Return a configuration with what a step depends on."""
    train = {"model": model, "batch": batch, "amp": amp, "steps": 10**6}
    # Weights stay where they are: what a step costs does not depend on them, and random networks would run away.
    record: dict[str, Any] = {
        "optimizer": {"lr": 1e-9},
        "train": train,
        "distill": {"method": method, "teacher": "x" if method != "none" else ""},
    }
    return from_mapping(record | {"loss": options, "data": {"jitter": 0.2}})


def main() -> None:
    """Measure, print and, with --out, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--crop", default="256x512")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--amp", default="off")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    crop = parse_size(args.crop)

    def job(config: Config, size: tuple[int, int], held: bool) -> Callable[[Connection], None]:
        return lambda pipe: serve(pipe, config, args.device, size, held)

    def step(method: str, options: dict[str, Any]) -> Callable[[Connection], None]:
        return job(configuration(STUDENT, args.batch, args.amp, method, options), crop, True)

    names, cost = list(VARIANTS), dict[str, dict[str, Any]]()
    for first in range(0, len(names), GROUP):
        group = {name: step(*VARIANTS[name]) for name in names[first : first + GROUP]}
        found = in_turns({"kd": step("kd", {}), **group}, args.rounds, 1)
        kd = found["kd"]
        for name, result in found.items():
            result["time_over_kd"] = result["median_s"] / kd["median_s"]
            result["cpu_over_kd"] = result["median_cpu_s"] / kd["median_cpu_s"]
            result["peak_over_kd"] = result["peak_bytes"] / kd["peak_bytes"]
            print(
                f"{name:<30} {result['median_s'] * 1e3:8.1f} ms  x{result['time_over_kd']:.3f}  "
                f"(processor time x{result['cpu_over_kd']:.3f})   "
                f"{result['peak_bytes'] / 2**20:7.0f} MiB  x{result['peak_over_kd']:.3f}",
                flush=True,
            )
        cost |= {name if name != "kd" else f"kd, group {first // GROUP + 1}": found[name] for name in found}
    small = (180, 240)
    plain = configuration(FAST_STUDENT, 8, "off", "none", {})
    turns = in_turns({"held": job(plain, small, True), "loaded": job(plain, small, False)}, args.rounds, 10)
    ratio, busy = (turns["loaded"][key] / turns["held"][key] for key in ("median_s", "median_cpu_s"))
    print(
        f"loading: a step takes x{ratio:.3f} (processor time x{busy:.3f}) of one with the batch held in memory "
        f"({FAST_STUDENT}, 8 of 180x240)"
    )
    loading = {"student": FAST_STUDENT, "size_hw": small, "batch": 8, "loaded_over_held": ratio}
    if args.out:
        write_json(
            args.out,
            {
                "what": "one training step: each distiller beside KD, and loading beside a batch held in memory",
                "teacher": TEACHER,
                "student": STUDENT,
                "crop_hw": crop,
                "batch": args.batch,
                "amp": args.amp,
                "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
                "torch": torch.__version__,
                "methods": cost,
                "loading": {**loading, "cpu_loaded_over_held": busy, **turns},
                "environment": asdict(Environment.here(0)),
            },
        )


if __name__ == "__main__":
    main()
