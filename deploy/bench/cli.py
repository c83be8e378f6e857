"""The command lfd-bench."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deploy.bench.signals import stoppable
from lfd.console import EXIT_INTERRUPTED, Command, guarded
from lfd.errors import LfdError, UsageError, require

if TYPE_CHECKING:
    from deploy.bench.record import BenchmarkResult


WITH_SUITE = ("suite", "data", "out", "overwrite")
LONG = 20
"""A count to more than this is not printed line by line."""


class _Progress:
    """One line on stderr: rewritten on a terminal; elsewhere printed, but of a long count only its begin."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def say(self, text: str) -> None:
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        else:
            count = re.search(r" of (\d+)$", text)
            kind = re.sub(r"\d+", "", text) if count and int(count[1]) > LONG else text
            if kind != self._last:
                self._last = kind
                click.echo(text, err=True)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


class _Bench(Command):
    """The benchmark itself, with `compare` as a command beside it: `lfd-bench MODEL ...`, `lfd-bench compare A B`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == [compare.name]:
            return compare.make_context(f"{info_name} {compare.name}", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Also"):
            formatter.write_dl([(f"{ctx.info_name} {compare.name}", compare.get_short_help_str(limit=80))])


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("before", type=click.Path(path_type=Path), metavar="A.json")
@click.argument("after", type=click.Path(path_type=Path), metavar="B.json")
@click.option("--max-regress", default="5%", show_default=True, metavar="P%", help="What may be lost of any figure.")
@guarded
def compare(before: Path, after: Path, max_regress: str) -> None:
    """Hold two reports against each other: exit 1 when something got worse.

    A.json is how it was, B.json how it is; models are paired by name. A time got worse when its median rose by more
    than --max-regress and its interval at 95 % confidence lies above none. A model, and what B was asked for and has no
    more (a batch size, a stream, accuracy), count as worse, too.
    """
    from deploy.bench import compare as comparison  # noqa: PLC0415 - it imports numpy

    limit = comparison.parse_limit(max_regress)
    found = comparison.compare(comparison.read_report(before), comparison.read_report(after), limit)
    click.echo(found.text(), nl=False)
    if found.worse:
        sys.exit(1)


def _end(results: Sequence[BenchmarkResult]) -> None:
    """End with the code of what failed or was interrupted, each failure in a line on stderr."""
    failures = [failure for result in results for failure in result.failures]
    for failure in failures:
        click.echo(f"error: {failure.name}: {failure.message}", err=True)
    if early := [result for result in results if result.interrupted]:
        click.echo("interrupted; the report says how far it came", err=True)
        ended_by = early[-1].ended_by
        sys.exit(ended_by.exit_code if ended_by else EXIT_INTERRUPTED)
    if failures:
        sys.exit(failures[0].exit_code)
    for result in results:
        if result.sweep and all(point.reason for point in result.sweep):
            click.echo(f"error: no point of the sweep could be measured: {result.sweep[0].reason}", err=True)
            sys.exit(LfdError.exit_code)


@click.command(cls=_Bench, name="lfd-bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("students", nargs=-1, type=click.Path(path_type=Path), metavar="STUDENT [MODEL ...]")
@click.option("--teacher", type=click.Path(path_type=Path), help="Model the others are held against.")
@click.option(
    "--data",
    metavar="NAME:PATH[@SPLIT]",
    help="Labelled pictures to time and score on; their test split unless it says another. frames:PATH, pictures or "
    "films without labels, are only timed. Without it, the built-in scene street:.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for bench.json, .md, .csv, .html.")
@click.option(
    "--scenario",
    multiple=True,
    metavar="NAME",
    help="offline or stream@FPS, besides single, which is always measured; may be given several times.",
)
@click.option(
    "--backend",
    metavar="NAME",
    help="ort, ort-cuda, ort-trt, openvino, openvino-bf16, trt, or auto; by default each file's own.",
)
@click.option(
    "--threads",
    default="0",
    metavar="N[,N ...]",
    help="Threads for one inference; 0: the runtime's choice. Further numbers are a sweep.",
)
@click.option("--batch", metavar="N[,N ...]", help="Batch sizes for --scenario offline; 1 by default.")
@click.option("--size", metavar="HxW[,HxW ...]", help="Other input sizes to sweep over; for checkpoints.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 86400),
    default=10.0,
    show_default=True,
    help="Measuring time per model and scenario; up to three times as long where that earns a higher percentile.",
)
@click.option("--max-images", type=click.IntRange(1), help="Score on this many pictures, spread over the set.")
@click.option(
    "--suite",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Measure a whole matrix into --out; paths in it are as on the command line, from the current folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace a report that is in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole record as JSON, not the table.")
@guarded
def main(
    students: tuple[Path, ...],
    teacher: Path | None,
    data: str | None,
    out: Path | None,
    suite: Path | None,
    overwrite: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure models side by side with their teacher: speed, memory, power, size and accuracy.

    Models are .onnx files written by lfd-export, engines, or checkpoints of lfd-train where torch is. Each runs in a
    process of its own, and they take turns, so that all see the same state of the machine.
    """
    require("cv2", "deploy")
    if suite is not None:
        _run_suite(suite, data, out, overwrite)
        return
    if not students or teacher is None:
        missing = "--teacher, the model that the others are held against," if students else "STUDENT"
        raise UsageError(f"{missing} is missing; expected lfd-bench STUDENT ... --teacher MODEL")
    from deploy.bench.benchmark import run_benchmark  # noqa: PLC0415 - it imports OpenCV
    from deploy.bench.record import to_json  # noqa: PLC0415
    from deploy.bench.request import make_settings, open_pictures  # noqa: PLC0415
    from deploy.report import pages  # noqa: PLC0415

    settings = make_settings(**asked)

    if out is not None:
        pages.check_out(out, overwrite)
    pictures, progress = open_pictures(data), _Progress()
    with stoppable() as stop:
        try:
            result, shown = run_benchmark(students, teacher, pictures, settings, progress.say)
        finally:
            progress.clear()
        with stop.held():
            try:
                if out is not None:
                    pages.write_report(result, shown, out, overwrite)
            finally:
                click.echo(to_json(result) if as_json else pages.text_table(result), nl=as_json)
    _end([result])


def _run_suite(path: Path, data: str | None, out: Path | None, overwrite: bool) -> None:
    from deploy.bench import suite as matrix  # noqa: PLC0415 - it imports OpenCV
    from deploy.report.suite import summary_text  # noqa: PLC0415

    context = click.get_current_context()
    others = [
        next((opt for opt in param.opts if opt.startswith("--")), "STUDENT")
        for param in context.command.params
        if (name := param.name or "") not in WITH_SUITE
        and context.params.get(name)  # an argument that was not given is an empty tuple, as if typed
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if others:
        raise UsageError(f"--suite says what is measured, and how; leave {', '.join(others)} away")
    if out is None:
        raise UsageError("--suite needs --out DIR, where it keeps what is done and goes on from")
    progress = _Progress()
    suite = matrix.read_suite(path, data)
    with stoppable() as stop:
        try:
            done = matrix.run_suite(suite, out, overwrite, progress.say, stop.held)
        finally:
            progress.clear()
        with stop.held():
            click.echo(summary_text(done.results, done.failures), nl=False)
    for name, error in done.failures.items():
        click.echo(f"error: {name}: {error}", err=True)
    _end(list(done.results.values()))
    if done.failures:
        sys.exit(next(iter(done.failures.values())).exit_code)


if __name__ == "__main__":
    main()
