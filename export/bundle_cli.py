"""lfd-export all, as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.cli_inputs import check_drop, data_of, need
from lfd.console import Command, guarded, parse_size
from lfd.errors import DataError, ExportError, UsageError


@click.command("all", cls=Command)
@click.argument("source", metavar="RUN", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option("--data", metavar="NAME:PATH", help="Labelled set of the gates, its val; the run's own by default.")
@click.option(
    "--calib", metavar="D", help="Frames for int8's ranges, as of `int8`; by default that of --data, its train."
)
@click.option("--size", metavar="HxW", help="Input size; the run's own by default.")
@click.option("--batch", default="1", show_default=True, metavar="N|dynamic", help="Frames that one inference takes.")
@click.option("--max-miou-drop", default=1.0, show_default=True, help="Points of mIoU that a file may lose.")
@click.option("--pictures", type=click.IntRange(1), help="Score on at most so many; all by default.")
@click.option("--frames", default=500, show_default=True, help="At most so many frames for the ranges.")
@click.option(
    "--method", type=click.Choice(["minmax", "percentile", "entropy"]), default="percentile", show_default=True
)
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Threads for one inference; 0: one a core.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run in the folder.")
@guarded
def all_command(
    source: Path,
    out: Path,
    data: str | None,
    calib: str | None,
    size: str | None,
    batch: str,
    max_miou_drop: float,
    pictures: int | None,
    frames: int,
    method: Any,
    threads: int,
    overwrite: bool,
) -> None:
    """Make every file that this machine can make of RUN, a run, its weights or an fp32 .onnx, and say which to ship.

    fp32, fp16, int8 for each runtime that is here and for TensorRT, and engines where TensorRT and a GPU are; each
    behind its gates, scored on the same pictures and timed in turns. DIR/report.json has everything, DIR/report.md the
    table.

    Exit codes: 0 every file was written, refused by a gate, or is for another machine to make; 1 one could not be
    made, or there is none; 130 interrupted, with the files that were finished kept.
    """
    need()
    from export.bundle_shelf import check_folder  # noqa: PLC0415
    from export.calibration import MINIMUM, default_calibration, gate_data, open_frames  # noqa: PLC0415
    from export.runnable import parse_batch  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415

    check_drop(max_miou_drop)
    if frames < MINIMUM:  # before the scoring, which takes minutes
        raise UsageError(f"--frames {frames}; expected at least {MINIMUM}")
    check_folder(out, source, overwrite)
    size_hw, batches = parse_size(size) if size else None, parse_batch(batch)
    labelled = data_of(source, data)
    frames_of = calib or default_calibration(labelled)
    text = gate_data(frames_of, labelled)
    evaluation = open_dataset(text, "val")
    from export.bundle import make_all  # noqa: PLC0415 - seconds of imports, after what is quickly said
    from export.bundle_maker import Wanted  # noqa: PLC0415
    from export.bundle_source import load_original  # noqa: PLC0415
    from export.bundle_table import markdown  # noqa: PLC0415

    loaded = load_original(source, evaluation, size_hw, batches, threads)
    chosen: Any
    try:  # before the scoring: of a film that cannot be decoded nobody wants to hear after it
        chosen = open_frames(frames_of, loaded.spec, frames)
    except DataError as error:
        if calib:  # asked for; by default, a small set is no reason to make nothing
            raise
        click.echo(f"there will be no int8: {error}", err=True)
        chosen = error
    click.echo(f"{loaded.name}: scoring on {text.partition(':')[0]}", err=True)
    original = loaded.scored(evaluation, pictures)
    wanted = Wanted(out, text, max_miou_drop, method, pictures, threads, overwrite)
    report = make_all(original, evaluation, chosen, wanted, lambda line: click.echo(line, err=True))
    click.echo(markdown(report), nl=False)
    if failed := [file for file in report.files if file.state == "failed"]:
        raise ExportError(
            f"{len(failed)} of {len(report.files)} files could not be made; {failed[0].name}: {failed[0].reason}"
        )
    if not any(file.state == "written" for file in report.files):
        raise ExportError(f"no file was written; {report.files[0].name}: {report.files[0].reason}")
