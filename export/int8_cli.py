"""lfd-export int8, as typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.cli_inputs import check_apart, check_drop, check_out, interruptible, need
from lfd.console import Command
from lfd.errors import ExportError, UsageError
from lfd.files import check_free


@click.command("int8", cls=Command)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--calib", metavar="D", help="Frames for the ranges: NAME:PATH[@SPLIT] (train), a folder, or a film.")
@click.option("--target", type=click.Choice(["trt", "ort", "openvino"]), required=True, help="Who is to run it.")
@click.option(
    "--method", type=click.Choice(["minmax", "percentile", "entropy"]), help="Of the ranges.  [default: percentile]"
)
@click.option("--frames", type=int, help="At most so many frames for the ranges.  [default: 500]")
@click.option(
    "--data", metavar="NAME:PATH", help="Labelled set of the accuracy gate; that of --calib by default, its val."
)
@click.option("--pictures", type=int, help="Score at most so many of its pictures.")
@click.option("--max-miou-drop", default=1.0, show_default=True, help="Points of mIoU that it may lose.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="It must be faster than SOURCE.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as JSON, of a refusal too."
)
@click.option("--overwrite", is_flag=True, help="Replace the files.")
@interruptible
def int8_command(
    source: Path,
    out: Path,
    calib: str | None,
    target: Any,
    method: Any,
    frames: int | None,
    data: str | None,
    pictures: int | None,
    max_miou_drop: float,
    speed: bool,
    report: Path | None,
    overwrite: bool,
) -> None:
    """Write SOURCE, an fp32 .onnx of lfd-export, in INT8 for one target, when it is accurate and fast enough.

    A network of `lfd-train ... --quantize int8` brings its ranges: leave --calib away, and give --data for the gate.
    """
    need()
    from export.calibration import LIMIT, default_calibration, gate_data, open_frames  # noqa: PLC0415
    from export.errors import GateError  # noqa: PLC0415
    from export.fp16 import load_source  # noqa: PLC0415
    from export.gate import gated, gated_int8  # noqa: PLC0415
    from export.int8 import trained_for, with_trained_ranges  # noqa: PLC0415
    from export.int8_rank import RANK_FRAMES, rank_layers  # noqa: PLC0415
    from export.int8_runner import DeployRunner  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.files import write_json  # noqa: PLC0415

    check_out(out, overwrite, source)
    if pictures is not None and pictures < 1:
        raise UsageError(f"--pictures {pictures}; expected at least 1")
    if report is not None:
        if report.resolve() == out.resolve():
            raise UsageError(f"--report {report} is the model's own name; choose another")
        check_apart(report, source)
        check_free(report, overwrite)
    check_drop(max_miou_drop)
    _, spec = load_source(source)

    def say(line: str) -> None:
        click.echo(line, err=True)

    try:
        if calib is None:
            if method is not None or frames is not None:
                raise UsageError("--method and --frames have no effect without --calib")
            calibrated = with_trained_ranges(source, target)
            if data is None:
                raise UsageError("give --data NAME:PATH, labelled pictures for the accuracy gate")
            runner = DeployRunner(source, open_dataset(data, "val"), target, pictures)
            found = gated(
                calibrated, source, out, target, runner, max_miou_drop, speed, say,
                lambda: rank_layers(calibrated, open_frames(default_calibration(data), spec).some(RANK_FRAMES)),
            )  # fmt: skip
        else:
            if trained_for(source) == target:
                raise UsageError(f"{source} brings the ranges of its training for {target}; leave --calib away")
            evaluation = open_dataset(gate_data(calib, data), "val")
            runner = DeployRunner(source, evaluation, target, pictures)
            chosen = open_frames(calib, spec, LIMIT if frames is None else frames)
            found = gated_int8(
                source, out, chosen, target, method or "percentile", evaluation, max_miou_drop, speed, runner, say
            )
    except GateError as error:  # what was tried is worth most where it was in vain
        if report and error.report is not None:
            write_json(report, error.report)
        raise
    click.echo(str(found))
    if report:
        write_json(report, found.to_dict())
    if not found:
        raise ExportError(f"{out} was not written: it is {found.speed_note}. Fix: ship {source}, or --no-speed")
