"""How much of the model's own pace the pipeline keeps: `lfd-run FILE null://` against the session alone.

    python -m benchmarks.pipeline MODEL.onnx FILM [--rounds 5] [--out benchmarks/results/pipeline.json]

Both take the same frames in the same process on the same session, in turns, so that the state of the
machine is the same for both; the efficiency is the ratio of their frames a second in a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.environment import Environment
from deploy.pipeline import run
from deploy.session import InferenceSession, class_map, open_session
from deploy.sinks import NullSink
from deploy.sources import open_source
from lfd.files import write_json
from lfd.preprocess import Image, fit_frame


def fitted_frames(film: str, session: InferenceSession) -> list[Image]:
    """Return the film's frames at the model's size."""
    source = open_source(film)
    try:
        return [fit_frame(frame.image, session.spec.preprocess) for frame in source]
    finally:
        source.close()


def alone_fps(session: InferenceSession, frames: list[Image]) -> float:
    """Return the pace of the session on frames that are ready, one after another."""
    begin = time.perf_counter()
    for frame in frames:
        class_map(session, frame)
    return len(frames) / (time.perf_counter() - begin)


def busy_cores_s() -> float:
    """Return the processor seconds that everybody on this machine has used."""
    user, nice, system, _, _, irq, softirq = (
        int(x) for x in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measure(session: InferenceSession, film: str, rounds: int) -> list[dict[str, float]]:
    """Run both in turns and return each round's frames a second."""
    frames = fitted_frames(film, session)
    for frame in frames[:20]:
        class_map(session, frame)
    results = []
    for index in range(rounds):
        pair: dict[str, float] = {}
        for name in ("alone", "pipeline") if index % 2 == 0 else ("pipeline", "alone"):
            busy, everybody = os.times(), busy_cores_s()
            begin = time.perf_counter()
            if name == "alone":
                pair["alone_fps"] = alone_fps(session, frames)
            else:
                summary = run(session, open_source(film), [NullSink()])
                pair["pipeline_fps"] = summary.fps
                infer = summary.stages["infer"]
                pair["infer_in_pipeline_ms"] = infer.mean_ms if infer else float("nan")
            now = os.times()
            cpu_s = now.user - busy.user + now.system - busy.system
            seconds = time.perf_counter() - begin
            pair[f"{name}_cores"] = cpu_s / seconds
            pair[f"{name}_cores_others"] = max(0.0, (busy_cores_s() - everybody - cpu_s) / seconds)
        pair["efficiency"] = pair["pipeline_fps"] / pair["alone_fps"]
        results.append(pair)
        print("  ".join(f"{key} {value:.2f}" for key, value in pair.items()), flush=True)
    return results


def main() -> None:
    """Measure, print and, with --out, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("film")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    with open_session(args.model, threads=args.threads) as session:
        rounds = measure(session, args.film, args.rounds)
        ratios = [pair["efficiency"] for pair in rounds]
        record: dict[str, Any] = {
            "what": "frames a second of `lfd-run FILM null://` over those of the session alone, same frames, in turns",
            "model": session.spec.model,
            "model_size_hw": session.spec.preprocess.size_hw,
            "build": {**asdict(session.build)},
            "film": Path(args.film).name,
            "load_average_before": load_before,
            "rounds": rounds,
            "efficiency_median": statistics.median(ratios),
            "efficiency_min": min(ratios),
            "efficiency_max": max(ratios),
            "environment": asdict(Environment.here(args.threads)),
        }
    print(f"efficiency: median {record['efficiency_median']:.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    if args.out:
        write_json(args.out, record)


if __name__ == "__main__":
    main()
