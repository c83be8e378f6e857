"""What a training step of each method costs: networks, pictures and loader as in the runs, steps taken in turn.

    python -m benchmarks.distill.cost RECIPE.toml ... --out FILE.json

One process a method, as `benchmarks.training_cost` does it, so that all see the same state of the machine. The
steps are those of the middle of the run, where every term of a loss is at work.
"""

from __future__ import annotations

import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import click
from rich.console import Console

from benchmarks.training_cost import in_turns, peak_bytes
from lfd.config import Config
from lfd.console import guarded
from lfd.files import write_json
from lfd.job import pick_device, prepare
from lfd.loader import MicroBatches, batches
from lfd.recipe import from_mapping, read_recipe
from lfd.stepper import Stepper


def serve(config: Config, pipe: Connection) -> None:
    """Take as many steps as asked for, and answer with their seconds, processor seconds and the peak of memory."""
    job = prepare(config, Console(quiet=True))
    job.distiller.train()
    stepper, t = Stepper(job, config), config.train
    number = t.steps // 2
    loader = batches(job.stream, MicroBatches(t.batch, number, 10**9, accumulate=t.accumulate), 0, job.device)
    while (count := pipe.recv()) > 0:
        times, busy = [], []
        for _ in range(count):
            begin, cpu = time.perf_counter(), time.process_time()
            stepper.step(number, loader, False)
            stepper.watch.settle(everything=True)  # waits for the GPU
            times.append(time.perf_counter() - begin)
            busy.append(time.process_time() - cpu)
        pipe.send((times, busy, peak_bytes(job.device)))


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rounds", default=6, show_default=True, help="Rounds that count; one more warms up.")
@click.option("--steps", default=4, show_default=True, help="Steps of each method a round.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@guarded
def main(recipes: tuple[Path, ...], rounds: int, steps: int, out: Path) -> None:
    """Time the steps of complete recipes, each called by its file's name."""
    configs = {path.stem: from_mapping(read_recipe(str(path))) for path in recipes}
    found = in_turns({name: partial(serve, config) for name, config in configs.items()}, rounds, steps)
    columns = {"step_s": "median_s", "cpu_s": "median_cpu_s", "peak_bytes": "peak_bytes"}
    methods = {name: {key: took[old] for key, old in columns.items()} for name, took in found.items()}
    device = pick_device(next(iter(configs.values())).train.device).type  # now: CUDA does not survive a fork
    write_json(out, {"device": device, "methods": methods})


if __name__ == "__main__":
    main()
