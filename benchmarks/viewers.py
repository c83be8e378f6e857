"""What viewers of the page cost the pipeline: its frame rate with some against its frame rate with none, in turns.

    python -m benchmarks.viewers MODEL.onnx FILM [--rounds 8] [--seconds 4] [--out FILE]

The film is run in a loop to a page. In each round every case has its turn, the order reversed from round to round:

- none: nobody looks.
- hangs: a viewer that asks for the stream and never reads.
- reads: one that reads all of it, in a process of its own, as a browser does.
- 500 connections: so many at once that ask for the stream; 100 are served, the others refused, none reads.

Rates are compared round by round; the interval of the median is the sign test's, as in lfd-bench.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import click

import deploy
from deploy.environment import Environment
from deploy.timing import Ratio
from lfd.console import guarded
from lfd.files import write_json

REQUEST = b"GET /stream.mjpg HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
SETTLE_S = 0.5
MANY = 500
MANY_NAME = f"{MANY} connections"
READER = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as viewer:
    viewer.sendall(sys.argv[2].encode())
    while viewer.recv(1 << 20):
        pass
"""


@contextmanager
def hanging(port: int, count: int) -> Iterator[None]:
    """Hold viewers that ask for the stream and never read."""
    with ExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):  # refused, or reset while it asks: that is the case
                viewer = stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=5)))
                viewer.sendall(REQUEST)
        yield


@contextmanager
def reading(port: int) -> Iterator[None]:
    """Hold a viewer that reads all it is sent."""
    process = subprocess.Popen([sys.executable, "-c", READER, str(port), REQUEST.decode()])
    try:
        yield
    finally:
        process.kill()
        process.wait()


class Counter:
    """Counts a run's frames in a thread of its own."""

    def __init__(self, run: deploy.Run) -> None:
        self.frames, self._run = 0, run
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _count(self) -> None:
        for _ in self._run:
            self.frames += 1
            if self._stopping.is_set():
                break

    def rate(self, seconds: float) -> tuple[float, float]:
        """Return frames a second, and this process's processor milliseconds a frame, over the next seconds."""
        frames, began, cpu = self.frames, time.perf_counter(), time.process_time()
        time.sleep(seconds)
        passed, took = time.perf_counter() - began, time.process_time() - cpu
        return (self.frames - frames) / passed, 1e3 * took / max(1, self.frames - frames)

    def stop(self) -> None:
        """End the run."""
        self._stopping.set()
        self._thread.join()


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("film", type=click.Path(exists=True, dir_okay=False))
@click.option("--rounds", type=click.IntRange(2), default=8, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.5), default=4.0, show_default=True, help="Of each turn.")
@click.option("--threads", type=click.IntRange(0), default=0, help="Of the model; 0: one a core.")
@click.option(
    "--viewers", type=click.Choice(["hangs", "reads", MANY_NAME]), multiple=True, help="Which; by default all."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
@guarded
def main(
    model: Path, film: str, rounds: int, seconds: float, threads: int, viewers: tuple[str, ...], out: Path | None
) -> None:
    """Run FILM through MODEL to a page, and print the frame rate with viewers against that with none."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    load = os.getloadavg()[0]
    counter = Counter(deploy.run(model, film, f"http://127.0.0.1:{port}", threads=threads, loop=True))
    cases: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "none": lambda: hanging(port, 0),
        "hangs": lambda: hanging(port, 1),
        "reads": lambda: reading(port),
        MANY_NAME: lambda: hanging(port, MANY),
    }
    cases = {name: case for name, case in cases.items() if not viewers or name in ("none", *viewers)}
    counter.rate(3.0)  # warms up
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for index in range(rounds):
        for name in reversed(list(cases)) if index % 2 else cases:
            with cases[name]():
                time.sleep(SETTLE_S)
                found[name].append(counter.rate(seconds))
            time.sleep(SETTLE_S)
    counter.stop()
    summary = {}
    for name, samples in found.items():
        without, with_ = ([[1 / fps] for fps, _ in taken] for taken in (found["none"], samples))
        ratio = Ratio.paired(without, with_)
        summary[name] = {
            "fps": statistics.median(fps for fps, _ in samples),
            "cpu_ms": statistics.median(ms for _, ms in samples),
            "of_none": ratio.median,
            "of_none_low": ratio.low,
            "of_none_high": ratio.high,
        }
        row = summary[name]
        click.echo(
            f"{name:16} {row['fps']:6.2f} frames a second, {row['cpu_ms']:5.1f} ms of processor a frame; "
            f"{row['of_none']:.3f} of the rate without ({row['of_none_low']:.3f} to {row['of_none_high']:.3f})"
        )
    if out is not None:
        record = {
            "schema": 2,
            "model": model.name,
            "film": Path(film).name,
            "seconds": seconds,
            "load_average_before": load,
            "summary": summary,
            "rounds": {name: [{"fps": fps, "cpu_ms": ms} for fps, ms in samples] for name, samples in found.items()},
            "environment": asdict(Environment.here(threads)),
        }
        write_json(out, record)


if __name__ == "__main__":
    main()
