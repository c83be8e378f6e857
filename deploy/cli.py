"""`lfd-run`: a model on cameras, streams, films, pictures or the built-in scene.

Nothing heavy is imported before the command line has been read: `lfd-run --help` is quick.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.duration import Duration
from deploy.texts import check_name, redact
from lfd.config import within
from lfd.console import Command, guarded
from lfd.errors import LfdError, UsageError, require

if TYPE_CHECKING:
    from deploy.interrupt import Interrupts
    from deploy.reader import Stream
    from deploy.run_console import StatsFile
    from deploy.run_summary import RunSummary

HELP = """Run MODEL on every frame of SOURCE and send the result to each SINK.

\b
MODEL   an .onnx file or a TensorRT engine of lfd-export
SOURCE  0, /dev/video0       a camera; 0?size=1280x720&fps=30; csi://0 one of a Jetson
        rtsp://, http://     a stream; options after #: rtsp://HOST/PATH#transport=udp
        FILE                 a film: every frame, in order
        DIR, 'GLOB'          pictures, in natural order
        street:              the built-in scene; street:?fps=25 makes it a live camera
SINK    FILE.webm .mp4 .avi  a film with the classes in colour and a legend
        DIR/                 a PNG of label values a frame
        FILE.jsonl           a line a frame: time, share of each class, latency, drops
        http://HOST:PORT     a page with the live picture, statistics and /metrics
        display://           a window; q ends the run. The default where there is a screen
        null://              nothing, to measure

Of a live source the newest frame counts: late ones are dropped and counted, and a lost one is opened again. Options
follow a source or sink: 'street:?fps=25', 'rtsp://HOST/PATH#transport=udp', 'out.mp4?codec=h264'; the README has them.

\b
Exit codes: 0 done, 1 failed, 2 usage, 3 source given up or absent, 4 model does not fit,
130 interrupted, with what was written so far kept.
"""


class RunCommand(Command):
    """Ends the process also where a device or a model hangs in a library's code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program; see `click.Command.main`."""
        before = threading.enumerate()
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            from deploy.interrupt import leave_hung_threads  # noqa: PLC0415

            leave_hung_threads(end.code, before)
            raise

    def said(self, message: str) -> str:
        """Return an error without the credentials that somebody put in the wrong place."""
        return redact(message)


@dataclass(frozen=True)
class Options:
    """What the command line says beside the streams; names are those of the options."""

    model: Path
    backend: str | None
    threads: int
    alpha: float
    max_frames: int | None
    duration: float | None
    fps: float | None
    stride: int
    loop: bool
    stats: Path | None
    stats_every: float
    smooth: str | None
    collect: Path | None
    collect_max: int | None
    collect_mb: float | None
    json_path: Path | None
    overwrite: bool
    quiet: bool


@click.command(cls=RunCommand, name="lfd-run", help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source")
@click.argument("sinks", metavar="[SINK ...]", nargs=-1)
@click.option(
    "--add", "added", nargs=2, metavar="SOURCE SINK", multiple=True, help="One more stream, with its sink; repeatable."
)
@click.option(
    "--backend",
    metavar="NAME",
    help="ort, ort-cuda, ort-trt, openvino, openvino-bf16 or trt; auto measures those that run here once. "
    "By default the file's own.",
)
@click.option(
    "--threads",
    type=click.IntRange(0, 1024),
    default=0,
    help="Threads of the model; 0: one a core. Two frames of files share them.",
)
@click.option("--alpha", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Share of the colour.")
@click.option("--max-frames", type=click.IntRange(min=1), help="End each stream after so many frames.")
@click.option("--duration", type=Duration(), help="End after so long: 90, 90s, 10m, 2h.")
@click.option(
    "--fps",
    type=click.FloatRange(0, 1000, min_open=True),
    help="At most so many frames a second: others of a live source are skipped, a file is read at that pace.",
)
@click.option("--stride", type=click.IntRange(min=1), default=1, help="Every so manieth frame only.")
@click.option("--loop", is_flag=True, help="Start films and pictures again at their end.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--stats", type=click.Path(path_type=Path), help="Write a line of JSON every few seconds to this file.")
@click.option("--stats-every", type=Duration(), default="1s", show_default=True, help="How often.")
@click.option(
    "--smooth",
    metavar="[KIND:]TIME",
    help="Steady the result: a pixel keeps its class until the model has not given it for TIME, such as 200ms; a model "
    "with logits a moving average of half-life TIME. What changes to stay is shown TIME later.",
)
@click.option(
    "--collect",
    type=click.Path(path_type=Path),
    help="Keep frames in this folder of which the model is least sure, or whose classes drift, for lfd-train distill "
    "--data frames:FOLDER. One of an earlier run is continued.",
)
@click.option("--collect-max", type=int, metavar="FRAMES", help="Frames that it may hold; 500.")
@click.option("--collect-mb", type=float, metavar="MB", help="Megabytes likewise; 1000.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the summary to this file.")
@guarded
def run_main(source: str, sinks: tuple[str, ...], added: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Parse, check, open, run, print."""
    require("cv2", "deploy")
    from deploy.interrupt import Interrupts  # noqa: PLC0415
    from deploy.run_summary import table  # noqa: PLC0415

    opts = Options(**options)
    streams = [(source, sinks or _default_sinks()), *((extra, (sink,)) for extra, sink in added)]
    _check(streams, opts)
    names = [redact(text) for text, _ in streams]
    with Interrupts() as interrupts:
        summary, model, backend, failure = _run(streams, names, opts, interrupts)
    if opts.json_path is not None:
        from lfd.files import write_json  # noqa: PLC0415

        about = {"model": opts.model.name, "backend": backend, "threads_asked": opts.threads}
        about["error"] = redact(str(failure)) if failure is not None else None
        texts = [
            {"source": name, "sinks": [redact(s) for s in s_]} for name, (_, s_) in zip(names, streams, strict=True)
        ]
        write_json(opts.json_path, {**about, **summary.record(texts)})
    if not opts.quiet:
        click.echo(table(summary, [f"{model} on {name}" for name in names]))
    if failure is not None:
        raise failure
    if summary.interrupted:
        raise KeyboardInterrupt(f"interrupted and flushed: {summary.shown} frames are kept")


def _default_sinks() -> tuple[str, ...]:
    from deploy.sinks import check_display  # noqa: PLC0415
    from lfd.errors import SinkError  # noqa: PLC0415

    try:
        check_display()
    except SinkError as error:
        raise UsageError(f"no sink given, and the default does not work here: {error}") from error
    return ("display://",)


def _check(streams: Sequence[tuple[str, tuple[str, ...]]], opts: Options) -> None:
    """Judge what the user typed before anything is loaded."""
    from deploy.sinks import check_outputs  # noqa: PLC0415

    check_name(str(opts.model))
    within("--alpha", opts.alpha, 0, 1)  # click lets NaN through
    for option, path in (("--json", opts.json_path), ("--stats", opts.stats)):
        if path is not None and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise UsageError(f"{option} {path}: is an address; expected the name of a file")
    sources = [source for source, _ in streams]
    sinks = [sink for _, texts in streams for sink in texts]
    check_outputs(sinks, sources, opts.model, opts.overwrite, opts.json_path, opts.stats)
    if opts.collect is not None:
        from deploy.collect import check_folder  # noqa: PLC0415

        written = [path for path in (opts.json_path, opts.stats) if path is not None]
        check_folder(opts.collect, sources, sinks, opts.overwrite, written)
    elif opts.collect_max is not None or opts.collect_mb is not None:
        raise UsageError(
            "--collect-max and --collect-mb bound a folder, and none is given. Fix: --collect DIR with them"
        )


def _run(
    texts: Sequence[tuple[str, tuple[str, ...]]], names: Sequence[str], opts: Options, interrupts: Interrupts
) -> tuple[RunSummary, str, str, LfdError | None]:
    """Open, run and close; return the summary, the model's name and the backend's, and what failed on the way."""
    from deploy.collect import Bounds  # noqa: PLC0415
    from deploy.opening import open_collector, open_model, open_streams  # noqa: PLC0415
    from deploy.overlay import Overlay  # noqa: PLC0415
    from deploy.pipeline import Pipeline  # noqa: PLC0415
    from deploy.reader import Limits  # noqa: PLC0415
    from deploy.run_console import Console  # noqa: PLC0415
    from deploy.sinks import About  # noqa: PLC0415
    from deploy.smoothing import Smoothing  # noqa: PLC0415

    def say(line: str) -> None:
        if not opts.quiet:
            click.echo(line, err=True)

    limits = Limits(opts.max_frames, opts.duration, opts.fps, opts.stride)
    smoothing = None if opts.smooth is None else Smoothing.parse(opts.smooth)
    bounds = Bounds.of(opts.collect_max, opts.collect_mb)
    sources = [source for source, _ in texts]
    session = open_model(opts.model, opts.backend, opts.threads, sources, say, interrupts)
    pipeline, failure = None, None
    try:
        streams = open_streams(
            sources,
            [sinks for _, sinks in texts],
            lambda: Overlay(session.spec.labels, opts.alpha),
            opts.loop,
            interrupts,
            [About(session.spec.model, session.build.backend, name, opts.alpha) for name in names],
            opts.stride,
        )
        with ExitStack() as undo:
            for stream in streams:
                undo.callback(stream.discard)
            file = _stats_file(opts, names, streams)
            if file is not None:
                undo.callback(file.close)
            collector = None if opts.collect is None else open_collector(opts.collect, bounds, session, names, streams)
            if collector is not None:
                undo.callback(collector.close)
            progress = not opts.quiet and sys.stderr.isatty()
            console = Console(
                names,
                [stream.stats for stream in streams],
                _total(streams, opts),
                progress,
                opts.quiet,
                sys.stderr,
                trouble=lambda: None if collector is None else collector.failure,
            )

            def tick() -> None:
                console.tick()
                if file is not None:
                    file.tick()

            pipeline = Pipeline(session, streams, limits, interrupts, tick, console.status, smoothing, collector)
            undo.pop_all()
        try:
            for _ in pipeline.results():
                pass
        except LfdError as error:
            failure = error
        finally:
            console.end()
            failure = _closed(file, failure)
        for note in (note for stream in streams for sink in stream.sinks for note in getattr(sink, "notes", ())):
            say(f"note: {note}")
        return pipeline.summary(), session.spec.model, session.build.backend, failure
    finally:
        if pipeline is None or not pipeline.busy:
            session.close()


def _stats_file(opts: Options, names: Sequence[str], streams: Sequence[Stream]) -> StatsFile | None:
    from deploy.run_console import StatsFile  # noqa: PLC0415

    if opts.stats is None:
        return None
    return StatsFile(opts.stats, names, [stream.stats for stream in streams], opts.stats_every, opts.overwrite)


def _closed(file: StatsFile | None, failure: LfdError | None) -> LfdError | None:
    """Close the statistics, and return the first failure, which is the one that is said."""
    try:
        if file is not None:
            file.close()
    except LfdError as error:
        return failure or error
    return failure


def _total(streams: Sequence[Stream], opts: Options) -> int | None:
    """Return how many frames will be shown, where that is known."""
    if opts.duration is not None:
        return None
    known = [stream.source.info.frames for stream in streams]
    counts = [-(-frames // opts.stride) if frames else None for frames in known]
    ends = [min(opts.max_frames or n, n) if n else opts.max_frames for n in counts]
    return None if None in ends else sum(end for end in ends if end)


if __name__ == "__main__":
    run_main()
