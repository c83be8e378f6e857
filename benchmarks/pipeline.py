"""What the pipeline costs beside the model, and what others cost: a film, frame by frame, in one run.

    python -m benchmarks.pipeline FILM MODEL.onnx [MODEL.onnx ...] [--threads 1,2] [--ultralytics PYTHON] [--out FILE]

Every case runs over the whole film, from opening it to the finished output, in turns, the order reversed from round to
round. Each is held against the session alone of its own kind, one inference after another on frames that are ready:
`kept` is the session's time over the frame's. What a case costs outside the model is the difference, in wall and in
processor milliseconds; in the latter from the session as the case uses it. A model that takes all cores must share them
with decoder, overlay and encoder, whoever calls it; with a thread less the rest has a core.

- session: one inference after another by all threads; and, with two threads, as the pipeline uses it for films: two
  inferences side by side, a thread each.
- pipeline: `lfd-run FILM null://`; the same with the overlay painted and nothing written; and with the overlay written
  to an .mp4. The first two also on a 1280x720 copy of the film (mp4v, made on the spot).
- loop: `benchmarks.rivals.opencv_loop`, on the same session; and on ONNX Runtime's own defaults, whose threads spin.
- Ultralytics: its predict on its semantic network from its yaml (random weights), exported by itself, on ONNX Runtime
  with our session's settings. It writes Motion JPEG, which is cheaper to encode than mp4v. It wants an environment of
  its own:

    uv venv /tmp/ultralytics
    uv pip install --python /tmp/ultralytics/bin/python ultralytics onnx onnxslim onnxruntime==1.31.1
    python -m benchmarks.pipeline ... --ultralytics /tmp/ultralytics/bin/python
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2

from benchmarks.pipeline_table import Case, Cost, markdown, summarise
from benchmarks.rivals.opencv_loop import default_run, loop
from benchmarks.rivals.predict_client import Ultralytics
from deploy.bench.request import whole_numbers
from deploy.environment import Environment
from deploy.frames import Frame, FrameSink, StreamStatus
from deploy.opening import open_model
from deploy.overlay import Overlay
from deploy.pipeline import run
from deploy.session import InferenceSession, class_map, open_session
from deploy.sinks import NullSink
from deploy.sinks.film import FilmSink
from deploy.sources import open_source
from lfd.console import guarded
from lfd.errors import LfdError
from lfd.files import write_json
from lfd.picture import palette
from lfd.preprocess import Image, fit_frame

HD_WH = (1280, 720)


class PaintSink:
    """Paints the overlay, as a window would get it, and drops it."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def write(self, frame: Frame, class_map: Image) -> None:
        """Paint the frame."""
        self._overlay.paint(frame, class_map)

    def show_status(self, status: StreamStatus) -> None:
        """Do nothing."""

    def close(self, complete: bool) -> None:
        """Do nothing."""


def cost(job: Callable[[], int]) -> Cost:
    """Run a job that returns its number of frames."""
    begin, cpu = time.perf_counter(), time.process_time()
    frames = job()
    wall_ms, cpu_ms = (time.perf_counter() - begin) * 1e3, (time.process_time() - cpu) * 1e3
    return Cost(frames, wall_ms / frames, cpu_ms / frames)


def busy_s() -> float:
    """Return the processor seconds that everybody on this machine has used."""
    text = Path("/proc/stat").read_text(encoding="ascii")
    user, nice, system, _, _, irq, softirq = (int(x) for x in text.split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def frames_of(film: str) -> Iterator[Frame]:
    """Read a film as the pipeline does."""
    source = open_source(film)
    try:
        yield from (item for item in source if isinstance(item, Frame))
    finally:
        source.close()


def resized(film: str, out: Path, size_wh: tuple[int, int]) -> str:
    """Write a film again at another size, as mp4v; return its path.

    Raises:
        LfdError: OpenCV cannot write it.
    """
    writer = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), 25, size_wh)
    if not writer.isOpened():
        raise LfdError(f"{out}: this OpenCV cannot write mp4v")
    for frame in frames_of(film):
        writer.write(cv2.resize(frame.image, size_wh))
    writer.release()
    return str(out)


def piped(session: InferenceSession, film: str, sink: str, folder: Path) -> int:
    """Run the pipeline on a film into `null`, `overlay` or `film`; return the frames shown."""
    source, overlay = open_source(film), Overlay(session.spec.labels)
    sinks: dict[str, Callable[[], FrameSink]] = {
        "null": NullSink,
        "overlay": lambda: PaintSink(overlay),
        "film": lambda: FilmSink(folder / "pipeline.mp4", overlay, source.info, codec="mp4v"),
    }
    return run(session, source, [sinks[sink]()]).shown


def all_maps(session: InferenceSession, frames: Sequence[Image]) -> int:
    """Run a session on frames that have its size, as many side by side as it takes; return their number."""
    with ThreadPoolExecutor(session.parallel) as pool:
        return sum(found is not None for found in pool.map(partial(class_map, session), frames))


def our_cases(
    session: InferenceSession, side_by_side: InferenceSession, films: Mapping[str, str], folder: Path
) -> dict[str, Case]:
    """Return the cases on our sessions.

    Args:
        session: The model, for one inference at a time.
        side_by_side: Likewise as the pipeline runs it on films.
        films: "" and "1280x720 " to a film each.
        folder: For what is written.
    """
    frames = [fit_frame(frame.image, session.spec.preprocess) for frame in frames_of(films[""])]
    alone, used = "session alone", "session alone, side by side"
    jobs: dict[str, Callable[[], int]] = {
        alone: partial(all_maps, session, frames),
        used: partial(all_maps, side_by_side, frames),
    }
    for size, film in films.items():
        jobs[f"{size}decode alone"] = partial(lambda film: sum(1 for _ in frames_of(film)), film)
        for sink in ("null", "overlay") if size else ("null", "overlay", "film"):
            jobs[f"{size}pipeline, {sink}"] = partial(piped, side_by_side, film, sink, folder)
    plain = partial(loop, films[""], session.run, session.spec.preprocess.size_hw, palette(session.spec.labels)[:, 0])
    cases = {
        name: Case(partial(cost, job)) if "decode" in name or name == alone else Case(partial(cost, job), alone, used)
        for name, job in jobs.items()
    }
    loops = {"loop, null": plain, "loop, film": partial(plain, folder / "loop.mp4")}
    return cases | {name: Case(partial(cost, job), alone, alone) for name, job in loops.items()}


def default_cases(model: Path, session: InferenceSession, film: str, folder: Path) -> dict[str, Case]:
    """Return the loop on ONNX Runtime's defaults."""
    alone = "ONNX Runtime's defaults: session alone"
    default, size_hw = default_run(model)
    frames = [fit_frame(frame.image, session.spec.preprocess) for frame in frames_of(film)]
    plain = partial(loop, film, default, size_hw, palette(session.spec.labels)[:, 0])
    return {
        alone: Case(partial(cost, lambda: sum(default(frame[None]) is not None for frame in frames))),
        "ONNX Runtime's defaults: loop, null": Case(partial(cost, plain), alone, alone),
        "ONNX Runtime's defaults: loop, film": Case(
            partial(cost, partial(plain, folder / "default.mp4")), alone, alone
        ),
    }


def their_cases(rival: Ultralytics) -> dict[str, Case]:
    """Return Ultralytics' cases, which run in its process."""
    alone = "Ultralytics: session alone"
    return {
        alone: Case(lambda: Cost(**rival.ask("session alone"))),
        "Ultralytics: predict, null": Case(lambda: Cost(**rival.ask("null")), alone, alone),
        "Ultralytics: predict, film": Case(lambda: Cost(**rival.ask("film")), alone, alone),
    }


def one_round(cases: Mapping[str, Case], backwards: bool) -> dict[str, dict[str, float]]:
    """Measure each case once."""
    found = {}
    for name in reversed(list(cases)) if backwards else cases:
        begin, busy = time.perf_counter(), busy_s()
        took = cases[name].measure()
        others_s = busy_s() - busy - took.cpu_ms * took.frames / 1e3
        found[name] = {**asdict(took), "others_cores": max(0.0, others_s / (time.perf_counter() - begin))}
    return found


def measure(model: Path, film: str, rounds: int, threads: int, python: Path | None) -> dict[str, Any]:
    """Measure a model's cases in turns; print the table and return the record."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = stack.enter_context(open_session(model, threads=threads))
        side_by_side = stack.enter_context(closing(open_model(model, None, threads, [film])))
        films = {"": film, f"{HD_WH[0]}x{HD_WH[1]} ": resized(film, folder / "hd.mp4", HD_WH)}
        cases = our_cases(session, side_by_side, films, folder)
        if session.build.backend.startswith("onnxruntime"):
            cases |= default_cases(model, session, film, folder)
        about: dict[str, Any] = {"skipped": "no --ultralytics PYTHON was given"}
        if python:
            rival = stack.enter_context(Ultralytics(python, film, session.spec.preprocess.size_hw, threads))
            cases, about = cases | their_cases(rival), rival.about
        piped(session, film, "null", folder)  # warms the sessions up
        piped(side_by_side, film, "null", folder)
        found = []
        for index in range(rounds):
            found.append(one_round(cases, index % 2 == 1))
            print(f"{model.name}: round {index + 1} of {rounds}", flush=True)
        summary = summarise(cases, found)
        asked = f"{threads or 'default'} threads"
        print(f"\n{model.name}, {session.build.backend}, {asked}\n\n{markdown(summary)}\n", flush=True)
        return {
            "threads_asked": threads,
            "side_by_side": side_by_side.parallel,
            "model": session.spec.model,
            "model_size_hw": session.spec.preprocess.size_hw,
            "build": asdict(session.build),
            "ultralytics": about,
            "summary": summary,
            "rounds": found,
        }


@click.command()
@click.argument("film", type=click.Path(exists=True, dir_okay=False))
@click.argument("models", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", default="0", show_default=True, help="Of a session, N,N,... in turn; 0: one a core.")
@click.option("--ultralytics", type=click.Path(path_type=Path), help="The python of an environment that has it.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
@guarded
def main(
    film: str, models: tuple[Path, ...], rounds: int, threads: str, ultralytics: Path | None, out: Path | None
) -> None:
    """Measure FILM on each of the MODELS, print a Markdown table each and, with --out, write the JSON."""
    load_before = os.getloadavg()[0]
    counts = whole_numbers(threads, "--threads", 0, 1024)
    record = {
        "schema": 4,
        "what": "a film to null://, painted, and to a film, against the session alone on its frames, in turns",
        "film": Path(film).name,
        "load_average_before": load_before,
        "models": [measure(model, film, rounds, count, ultralytics) for model in models for count in counts],
        "environment": asdict(Environment.here(0)),
    }
    if out:
        write_json(out, record)


if __name__ == "__main__":
    main()
