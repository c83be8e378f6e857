"""The command lfd-bench."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from lfd.console import Command, guarded
from lfd.errors import require

BUILT_IN = "street:"


class _Progress:
    """One line on stderr: rewritten on a terminal; elsewhere only printed when it says something new."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def say(self, text: str) -> None:
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif (kind := re.sub(r"\d+", "", text)) != self._last:
            self._last = kind
            click.echo(text, err=True)

    def clear(self) -> None:
        if self._terminal:
            click.echo("\r\x1b[K", nl=False, err=True)


@click.command(cls=Command, name="lfd-bench", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("students", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="STUDENT [MODEL ...]")
@click.option("--teacher", required=True, type=click.Path(path_type=Path), help="Model the others are held against.")
@click.option(
    "--data",
    metavar="NAME:PATH[@SPLIT]",
    help="Labelled pictures to time and score on; their test split unless it says another. "
    "Without it, the built-in scene street:.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write bench.json and bench.md to."
)
@click.option("--backend", metavar="NAME", help="ort, openvino or openvino-bf16; by default each file's own.")
@click.option(
    "--threads", type=click.IntRange(0, 1024), default=0, help="Threads for one inference; 0: the runtime's choice."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 86400),
    default=10.0,
    show_default=True,
    help="Measuring time per model, at least; up to three times as long where that earns a higher percentile.",
)
@click.option("--max-images", type=click.IntRange(1), help="Score on this many pictures, spread over the set.")
@click.option("--overwrite", is_flag=True, help="Replace a report that is in DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole record as JSON, not the table.")
@guarded
def main(
    students: tuple[Path, ...],
    teacher: Path,
    data: str | None,
    out: Path | None,
    backend: str | None,
    threads: int,
    seconds: float,
    max_images: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure models side by side with their teacher: speed, memory, size and accuracy.

    Models are .onnx files written by lfd-export. Each runs in a process of its own, and they take
    turns, so that all see the same state of the machine.
    """
    require("cv2", "deploy")
    from deploy import bench, report  # noqa: PLC0415 - they import OpenCV
    from deploy.environment import Settings  # noqa: PLC0415
    from deploy.pictures import Pictures  # noqa: PLC0415
    from deploy.record import to_json  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415

    if out is not None:
        report.check_out(out, overwrite)
    text = data or BUILT_IN
    dataset = open_dataset(text, "test")
    split = re.search(r"@([a-z]+)$", text)
    name = f"{text.partition(':')[0]}@{split[1] if split else 'test'}"
    progress = _Progress()
    try:
        result = bench.run_benchmark(
            students,
            teacher,
            Pictures(dataset, name, must_score=data is not None),
            Settings(seconds, threads, max_images, backend),
            progress.say,
        )
    finally:
        progress.clear()
    if out is not None:
        report.write_report(result, out)
    click.echo(to_json(result) if as_json else report.text_table(result), nl=as_json)
    for failure in result.failures:
        click.echo(f"error: {failure.name}: {failure.message}", err=True)
    if result.failures:
        sys.exit(result.failures[0].exit_code)


if __name__ == "__main__":
    main()
