"""Whether lfd-bench can be trusted: what it adds, whether it repeats itself, and what others' tools say of the same.

    python -m benchmarks.bench_trust MODEL.onnx --out benchmarks/results/bench_trust.json

`overhead`: a model of exactly 1 ms, in a bare loop and in lfd-bench's, in turns.
`repeatability`: the whole benchmark ten times over a model, the same model again, and one that takes 3 % longer for
every picture: how far the medians are apart, and which of the two is told from the first.
`side_by_side`: model alone, in turns with onnxruntime_test and OpenVINO's benchmark_app, on the same threads and
session options. onnxruntime_test prints a mean and benchmark_app a median; each is held against ours of the same kind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from deploy.artifact import BuildInfo
from deploy.bench import benchmark
from deploy.bench.loops import measure, warm_up
from deploy.bench.pictures import timing_frames
from deploy.bench.probe import Probe, Request, prepare_file
from deploy.bench.probe import main as serve
from deploy.bench.request import open_pictures
from deploy.environment import Environment, Settings
from deploy.session import InferenceSession, open_session
from lfd.errors import LfdError
from lfd.files import write_json
from lfd.preprocess import Image, fit_frame
from lfd.spec import Labels, ModelSpec, Preprocess

SLOWER = "-slower"
"""In a file's name: its model is run 3 % slower than it is."""
APART = 1.03
SIZE_HW = (180, 240)


class Held:
    """A session that takes its time: each run lasts `factor` times as long, or exactly `exact_ms`."""

    def __init__(self, session: InferenceSession | None, factor: float = 1.0, exact_ms: float = 0.0) -> None:
        self._session, self._factor, self._exact_ns = session, factor, round(exact_ms * 1e6)
        labels = Labels(("a", "b"), ((0, 0, 0), (255, 255, 255)))
        self.spec = session.spec if session else ModelSpec("exact", labels, Preprocess(SIZE_HW))
        self.build = session.build if session else BuildInfo("none", "fp32", "0" * 64, {}, "none")
        self.batch = session.batch if session else 1
        self.parallel = 1
        self.own_ms: list[float] = []

    def run(self, batch: Image) -> Any:
        """Run, and wait for what is left of the time."""
        begin = time.perf_counter_ns()
        found = self._session.run(batch) if self._session else np.zeros((1, *SIZE_HW), np.uint8)
        due = begin + (self._exact_ns or round((time.perf_counter_ns() - begin) * self._factor))
        while (now := time.perf_counter_ns()) < due:
            pass
        self.own_ms.append((now - begin) / 1e6)
        return found

    def close(self) -> None:
        """Free the model's memory."""
        if self._session:
            self._session.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(request: Request) -> Callable[[], InferenceSession]:
    """Prepare as lfd-bench does, and hold the model back where its name says so."""
    load = prepare_file(request)
    return (lambda: Held(load(), APART)) if SLOWER in request.path.stem else load


def overhead(rounds: int, count: int) -> dict[str, Any]:
    """Run a model of 1 ms bare and measured, in turns."""
    session = Held(None, exact_ms=1.0)
    frame = np.zeros((*SIZE_HW, 3), np.uint8)
    found: dict[str, list[float]] = {"bare_ms": [], "in_harness_ms": [], "reported_p50_ms": [], "own_p50_ms": []}
    for _ in range(rounds):
        begin = time.perf_counter_ns()
        for _ in range(count):
            session.run(frame[None])
        found["bare_ms"].append((time.perf_counter_ns() - begin) / 1e6 / count)
        session.own_ms.clear()
        begin = time.perf_counter_ns()
        samples = measure(session, [frame], count)
        found["in_harness_ms"].append((time.perf_counter_ns() - begin) / 1e6 / count)
        found["reported_p50_ms"].append(statistics.median(samples.model_ms))
        found["own_p50_ms"].append(statistics.median(session.own_ms))
    added = [h / b - 1 for h, b in zip(found["in_harness_ms"], found["bare_ms"], strict=True)]
    off = [r / o - 1 for r, o in zip(found["reported_p50_ms"], found["own_p50_ms"], strict=True)]
    print(f"overhead: {statistics.median(added):.3%} of a 1 ms model, reported {statistics.median(off):+.3%}")
    return {
        **found,
        "runs_a_round": count,
        "added_median": statistics.median(added),
        "reported_above_own_median": statistics.median(off),
    }


def repeatability(model: Path, data: str | None, threads: int, seconds: float, runs: int) -> dict[str, Any]:
    """Benchmark a model against itself and against itself held back, again and again."""
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(benchmark, "Probe", partial(Probe, module=__spec__.name)),
    ):
        paths = [Path(folder) / f"model{suffix}.onnx" for suffix in ("", "-again", SLOWER)]
        for path in paths:
            shutil.copyfile(model, path)
        for number in range(runs):
            settings = Settings(seconds, threads, max_images=1)
            result, _ = benchmark.run_benchmark(paths[1:], paths[0], open_pictures(data), settings, lambda text: None)
            again, slower = (student.versus.faster_alone for student in result.students)
            rows.append(
                {
                    "medians_ms": [m.single.model_alone.latency.p50_ms for m in (result.teacher, *result.models[:-1])],
                    "again": {**asdict(again), "told_apart": again.decided},
                    "slower": {**asdict(slower), "told_apart": slower.decided},
                    "others_cores": [look.others_cores for look in result.conditions],
                }
            )
            print(f"run {number + 1}: {rows[-1]['medians_ms']}, {again}, {slower}", flush=True)
    medians = [row["medians_ms"][0] for row in rows]
    summary = {
        "median_ms": statistics.median(medians),
        "spread": (max(medians) - min(medians)) / statistics.median(medians),
        "variation": statistics.stdev(medians) / statistics.fmean(medians) if runs > 1 else None,
        "equal_told_apart": sum(row["again"]["told_apart"] for row in rows),
        "three_per_cent_told_apart": sum(row["slower"]["told_apart"] for row in rows),
        "slower_by_median": statistics.median(1 / row["slower"]["median"] - 1 for row in rows),
    }
    print(f"repeatability: {summary}")
    return {"runs": rows, **summary}


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        yield text


def onnxruntime_test_ms(model: Path, frame: Image, threads: int, count: int) -> float:
    """Return the mean latency that onnxruntime's own tool prints, with the session options of lfd-run."""
    import onnxruntime  # noqa: PLC0415
    from onnxruntime.tools.onnxruntime_test import run_model  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made = onnxruntime.InferenceSession
    name = made(str(model), options, providers=["CPUExecutionProvider"]).get_inputs()[0].name

    def session(path: str, **_: Any) -> Any:
        return made(path, options, providers=["CPUExecutionProvider"])

    with _quiet() as text, patch.object(onnxruntime, "InferenceSession", session):
        run_model(str(model), count, feeds={name: frame[None]})
    return float(re.search(r"avg latency: ([\d.]+) ms", text.getvalue())[1])  # type: ignore[index]


def benchmark_app_ms(model: Path, threads: int, seconds: float) -> float:
    """Return the median latency that OpenVINO's own tool prints."""
    tool = shutil.which("benchmark_app", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if tool is None:
        raise LfdError("benchmark_app is not installed. Fix: pip install openvino")
    command = [tool, "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nireq", "1"]
    command += ["-nthreads", str(threads), "-infer_precision", "f32", "-pin", "NO", "-t", str(max(1, round(seconds)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if (found := re.search(r"Median:\s+([\d.]+) ms", done.stdout)) is None:
        raise LfdError(f"benchmark_app gave no median: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    return float(found[1])


def side_by_side(model: Path, frames: list[Image], threads: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure in turns with the runtimes' own tools."""
    found: dict[str, dict[str, list[float]]] = {}
    for backend in ("ort", "openvino"):
        series: dict[str, list[float]] = {"ours_ms": [], "theirs_ms": []}
        with open_session(model, backend, threads) as session:
            fitted = [fit_frame(frame, session.spec.preprocess) for frame in frames]
            durations, _ = warm_up(session, fitted, seconds / 2, 2 * seconds)
            count = max(11, round(seconds * 1e3 / statistics.median(durations)))
            for turn in range(rounds):
                for ours in (True, False) if turn % 2 == 0 else (False, True):
                    if ours:
                        samples = measure(session, fitted, count).model_ms
                        summary = statistics.fmean if backend == "ort" else statistics.median
                        series["ours_ms"].append(summary(samples))
                    elif backend == "ort":
                        series["theirs_ms"].append(onnxruntime_test_ms(model, fitted[0], threads, count))
                    else:
                        series["theirs_ms"].append(benchmark_app_ms(model, threads, seconds))
        ratios = [a / b - 1 for a, b in zip(series["ours_ms"], series["theirs_ms"], strict=True)]
        found[backend] = {**series, "ours_above_theirs": ratios}
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{backend}: ours above theirs by {middle:+.2%}, {low:+.2%} to {high:+.2%}")
    medians = {backend: statistics.median(series["ours_above_theirs"]) for backend, series in found.items()}
    return {**found, "ours_above_theirs_median": medians}


def main() -> None:
    """Measure, print and, with --out, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", help="Frames, such as camvid:PATH; the built-in scene by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=10, help="Benchmarks for repeatability")
    parser.add_argument("--rounds", type=int, default=10, help="Turns of the other two")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    frames, _ = timing_frames(open_pictures(args.data).dataset)
    record = {
        "what": "what lfd-bench adds to a 1 ms model, how far it repeats itself, and beside the runtimes' own tools",
        "model": args.model.name,
        "settings": {"threads": args.threads, "seconds": args.seconds, "runs": args.runs, "rounds": args.rounds},
        "load_average_before": load_before,
        "overhead": overhead(args.rounds, round(args.seconds * 1000 / 2)),
        "side_by_side": side_by_side(args.model, frames, args.threads, args.seconds, args.rounds),
        "repeatability": repeatability(args.model, args.data, args.threads, args.seconds, args.runs),
        "environment": asdict(Environment.here(args.threads)),
    }
    if args.out:
        write_json(args.out, record)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve(prepare)  # as the measuring process of `repeatability`
    else:
        main()
