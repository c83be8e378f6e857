"""`lfd-run`: a model on a camera, a film, pictures or the built-in scene.

Nothing heavy is imported before the command line has been read: `lfd-run --help` is quick.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lfd.console import Command, guarded
from lfd.errors import UsageError, require

if TYPE_CHECKING:
    from deploy.pipeline import RunSummary
    from deploy.timing import Percentiles

PROGRESS_S = 0.25

HELP = """Run MODEL on every frame of SOURCE and send the result to each SINK.

\b
MODEL   an .onnx file or a TensorRT engine of lfd-export
SOURCE  0, /dev/video0     a camera: the newest frame counts, late ones are dropped
        FILE               a film: every frame, in order
        DIR, 'GLOB'        pictures, in natural order
        street:            the built-in scene; street:?fps=25 makes it a live camera
SINK    FILE.webm .mp4 .avi  a film with the classes in colour and a legend
        DIR/               a PNG of label values a frame
        display://         a window; q ends the run. The default where there is a screen
        null://            nothing, to measure

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 source lost or absent, 4 model does not fit,
130 interrupted, with what was written so far kept.
"""


@click.command(cls=Command, name="lfd-run", help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source")
@click.argument("sinks", metavar="[SINK ...]", nargs=-1)
@click.option("--backend", metavar="NAME", help="ort, openvino, openvino-bf16 or trt; by default the file's own.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Threads for one inference; 0: one a core.")
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of the colour.")
@click.option("--max-frames", type=click.IntRange(min=1), help="End after so many frames.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the summary to this file.")
@guarded
def run_main(
    model: Path,
    source: str,
    sinks: tuple[str, ...],
    backend: str | None,
    threads: int,
    alpha: float,
    max_frames: int | None,
    overwrite: bool,
    quiet: bool,
    json_path: Path | None,
) -> None:
    """Parse, check, open, run, print."""
    require("cv2", "deploy")
    from deploy.overlay import Overlay  # noqa: PLC0415
    from deploy.pipeline import run  # noqa: PLC0415
    from deploy.session import open_session  # noqa: PLC0415
    from deploy.sinks import check_display, check_outputs, open_sink  # noqa: PLC0415
    from deploy.sources import open_source  # noqa: PLC0415
    from lfd.errors import SinkError  # noqa: PLC0415

    if not sinks:
        try:
            check_display()
        except SinkError as error:
            raise UsageError(f"no sink given, and the default does not work here: {error}") from error
        sinks = ("display://",)
    check_outputs(sinks, source, model, overwrite, json_path)
    with open_session(model, backend, threads) as session:
        frames = open_source(source)
        overlay = Overlay(session.spec.labels, alpha)
        opened = [open_sink(sink, overlay, frames.info) for sink in sinks]
        progress = None if quiet or not sys.stderr.isatty() else _progress(max_frames or frames.info.frames)
        summary = run(session, frames, opened, max_frames, progress)
        if progress is not None:
            click.echo("\r\033[K", nl=False, err=True)
        name, runs_on = session.spec.model, session.build.backend
    if json_path is not None:
        _write_json(json_path, model, source, sinks, runs_on, threads, summary)
    if not quiet:
        click.echo(table(summary, f"{name} on {source}"))
    if summary.interrupted:
        raise KeyboardInterrupt(f"interrupted and flushed: {summary.shown} frames are kept")


def _progress(total: int | None) -> Callable[[int], None]:
    """Return a callback that keeps one line on the terminal up to date."""
    begin = last = time.monotonic()

    def show(shown: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_S:
            last = now
            of = f" of {total}" if total else ""
            click.echo(f"\r\033[K{shown}{of} frames, {shown / (now - begin):.1f} a second", nl=False, err=True)

    return show


def _write_json(
    path: Path, model: Path, source: str, sinks: tuple[str, ...], backend: str, threads: int, summary: RunSummary
) -> None:
    from dataclasses import asdict  # noqa: PLC0415

    from lfd.files import write_json  # noqa: PLC0415

    record = {"model": model.name, "source": source, "sinks": list(sinks), "backend": backend, "threads": threads}
    write_json(path, {"schema": 1, **record, **asdict(summary), "dropped": summary.dropped})


def table(summary: RunSummary, title: str) -> str:
    """Return the summary as an aligned plain-text table.

    A percentile that too few frames have earned is a dash, and the last line says how many it takes.
    """
    from deploy.timing import samples_needed  # noqa: PLC0415

    drops = [(summary.dropped_late, "late"), (summary.dropped_at_end, "at the end")]
    causes = ", ".join(f"{count} {cause}" for count, cause in drops if count)
    lines = [
        title,
        f"frames   {summary.captured} captured, {summary.shown} shown, {summary.dropped} dropped"
        + (f" ({causes})" if causes else ""),
        f"time     {summary.seconds:.2f} s, {summary.fps:.1f} frames a second",
    ]
    if summary.rss_start_mb is not None and summary.rss_end_mb is not None:
        lines.append(f"memory   {summary.rss_start_mb:.0f} MB at the start, {summary.rss_end_mb:.0f} MB at the end")
    if summary.miou is not None:
        lines.append(f"mIoU     {100 * summary.miou:.2f} % against the scene's truth")
    lines += ["", f"{'ms':<8}{'mean':>8}{'p50':>8}{'p90':>8}{'p95':>8}{'p99':>8}{'max':>8}"]
    rows = {**summary.stages, "latency": summary.latency}
    lines += [_row(name, value) for name, value in rows.items()]
    needed = [(f"p{round(100 * p)}", samples_needed(p)) for p in (0.5, 0.9, 0.95, 0.99)]
    missing = [f"{name} needs {count}" for name, count in needed if summary.shown < count]
    if missing:
        lines.append(f"- not enough frames: {', '.join(missing)}")
    return "\n".join(lines)


def _row(name: str, value: Percentiles | None) -> str:
    if value is None:
        return f"{name:<8}" + f"{'-':>8}" * 6
    numbers = (value.mean_ms, value.p50_ms, value.p90_ms, value.p95_ms, value.p99_ms, value.max_ms)
    return f"{name:<8}" + "".join(f"{'-' if n is None else format(n, '.2f'):>8}" for n in numbers)


if __name__ == "__main__":
    run_main()
