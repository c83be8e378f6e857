"""lfd-export: from a run to files that devices execute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.bundle_cli import all_command
from export.cli_inputs import check_apart, check_out, data_of, interruptible, need
from export.int8_cli import int8_command
from lfd.console import Group, parse_size
from lfd.errors import ExportError, UsageError, require
from lfd.files import check_free

PARITY_PICTURES = 32


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lfd-toolkit")
def main() -> None:
    """Export trained networks, and prove that nothing was lost."""


@main.command("onnx")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--size", metavar="HxW", help="Input size; the run's own by default.")
@click.option("--output", type=click.Choice(["class_map", "logits"]), default="class_map", show_default=True)
@click.option("--batch", default="1", show_default=True, metavar="N|dynamic", help="Frames that one inference takes.")
@click.option("--data", metavar="NAME:PATH", help="Pictures for the parity check; the run's own by default.")
@click.option("--pictures", default=PARITY_PICTURES, show_default=True, help="Pictures for the parity check.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@interruptible
def onnx_command(
    run: Path, out: Path, size: str | None, output: Any, batch: str, data: str | None, pictures: int, overwrite: bool
) -> None:
    """Write RUN as ONNX: a BGR uint8 frame in, a class map out; checked against PyTorch on real frames.

    The opset is 20: the newest that ONNX Runtime quantises, and one that OpenVINO and TensorRT 10 and 11 read. Height
    and width are constant. lfd-run and lfd-bench take files for one frame and `dynamic` ones, which are for servers and
    for TensorRT engines with a range of batches.
    """
    need()
    from export.parity import compare  # noqa: PLC0415
    from export.runnable import open_file, parse_batch  # noqa: PLC0415
    from export.to_onnx import to_onnx  # noqa: PLC0415
    from export.verify import of_model  # noqa: PLC0415
    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.evaluate import check_labels  # noqa: PLC0415
    from lfd.files import replacing  # noqa: PLC0415

    check_out(out, overwrite)
    if pictures < 1:
        raise UsageError(f"--pictures {pictures}; expected at least 1")
    size_hw, frames = parse_size(size) if size else None, parse_batch(batch)
    model, spec = load_model(run)
    dataset = open_dataset(data_of(run, data), "val", spec.labels)
    check_labels(spec.labels, dataset.labels, "the data set of the parity check")
    with replacing(out) as aside:  # the name appears once parity holds
        exported = to_onnx(model, spec, aside, size_hw, output, frames)
        with open_file(aside) as written:
            parity = compare(of_model(model, exported), written, dataset, limit=pictures)
        if not parity:
            raise ExportError(f"{out} was not written: the graph is not the model. {parity}")
    height, width = exported.preprocess.size_hw
    many = "" if frames == 1 else f", batch {frames}"
    click.echo(f"{out}: {exported.model}, {height}x{width}, {output}{many}, {out.stat().st_size / 1e6:.1f} MB")
    click.echo(f"parity   {parity}")


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="NAME:PATH@SPLIT", help="Labelled set; its test split by default.")
@click.option("--min-agreement", default=0.999, show_default=True, help="Smallest share of equal pixels that passes.")
@click.option("--backend-a", metavar="NAME", help="What runs A, a file; by default what it was made for.")
@click.option("--backend-b", metavar="NAME", help="What runs B: ort, openvino, openvino-bf16 or trt.")
@click.option("--pictures", type=click.IntRange(1), help="Compare on so many, spread over the set; all by default.")
@click.option("--worst", type=click.IntRange(1, 1000), default=8, show_default=True, help="Frames to name or to draw.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New folder for pictures of them.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole record as JSON.")
@interruptible
def verify(
    a: Path,
    b: Path,
    data: str,
    min_agreement: float,
    backend_a: str | None,
    backend_b: str | None,
    pictures: int | None,
    worst: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare two models, runs, .onnx files or engines, pixel by pixel on a labelled set; exit 1 when they differ.

    A is the reference: differences are B less A. With --out, the frames on which they differ most are drawn: frame,
    truth, A, B, and where they differ; verify.json is the record.
    """
    need()
    from export.differences import check_folder, write_folder  # noqa: PLC0415
    from export.parity import compare  # noqa: PLC0415
    from export.runnable import FILES  # noqa: PLC0415
    from export.verify import open_runnable  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.files import to_json  # noqa: PLC0415

    if not 0 <= min_agreement <= 1:
        raise UsageError(f"--min-agreement {min_agreement}; expected 0 to 1")
    if out is not None:
        check_folder(out)
    second = open_runnable(b, backend=backend_b)
    first = open_runnable(a, second.spec.preprocess.size_hw if b.suffix in FILES else None, backend_a)
    if b.suffix not in FILES and a.suffix in FILES:
        second = open_runnable(b, first.spec.preprocess.size_hw)
    dataset = open_dataset(data, "test", first.spec.labels)
    parity = compare(first, second, dataset, pictures, min_agreement)
    sides = {
        letter: {"path": str(path), "model": runnable.spec.model, "runtime": runnable.runtime}
        for letter, path, runnable in (("a", a, first), ("b", b, second))
    }
    record = {"schema": 1, **sides, "data": data, **parity.record(dataset.labels, worst)}
    if out is not None:
        write_folder(out, first, second, (a.name, b.name), dataset, parity, record)
    if as_json:
        click.echo(to_json(record), nl=False)
    else:
        click.echo(f"{parity}\n\n{parity.by_class(dataset.labels)}\n")
        click.echo(f"A  {a} on {first.runtime}\nB  {b} on {second.runtime}")
        for frame in parity.frames[:worst]:
            click.echo(f"{frame.agreement:8.3%}  {frame.name}")
        if out is not None:
            click.echo(f"{out}: {min(worst, parity.pictures)} pictures")
    if not parity:
        raise ExportError(f"{a} and {b} are not the same model within {min_agreement:.2%} of the pixels")


@main.command("fp16")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--data", required=True, metavar="NAME:PATH", help="Labelled set for the parity check; its val split.")
@click.option("--pictures", default=PARITY_PICTURES, show_default=True, help="Pictures for the parity check.")
@click.option("--min-agreement", default=0.995, show_default=True, help="Smallest share of equal pixels that passes.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@interruptible
def fp16_command(source: Path, out: Path, data: str, pictures: int, min_agreement: float, overwrite: bool) -> None:
    """Write SOURCE, an fp32 .onnx of lfd-export, in fp16; checked against it on real frames."""
    need()
    from export.fp16 import checked_fp16  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415

    check_out(out, overwrite, source)
    if pictures < 1 or not 0 <= min_agreement <= 1:
        raise UsageError(f"--pictures {pictures} --min-agreement {min_agreement}; expected at least 1, and 0 to 1")
    kept, parity = checked_fp16(source, out, open_dataset(data, "val"), pictures, min_agreement)
    click.echo(f"{out}: fp16, {out.stat().st_size / 1e6:.1f} MB; in fp32: {', '.join(kept) or 'nothing'}")
    click.echo(f"parity   {parity}")


@main.command("trt")
@click.argument("onnx", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help=".engine or .plan.")
@click.option("--batch", metavar="MIN:OPT:MAX", help="Batches, for a file that leaves them open.")
@click.option("--workspace", "workspace_mib", type=int, metavar="MIB", help="Most memory a layer may use for itself.")
@click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), help="Kernel times, read and written.")
@click.option("--optimization-level", default=3, show_default=True, help="0 is built fast, 5 runs fast.")
@click.option("--version-compatible", is_flag=True, help="Newer TensorRTs load it too.")
@click.option("--hardware-compatible", type=click.Choice(["none", "ampere_plus", "same_cc"]), default="none")
@click.option("--dla-core", type=int, metavar="N", help="Run on this DLA what can run there.")
@click.option(
    "--profiling",
    type=click.Choice(["layer_names_only", "detailed", "none"]),
    default="detailed",
    show_default=True,
    help="Only of detailed engines the precision can be read back.",
)
@click.option("--tf32", is_flag=True, help="Let fp32 convolutions multiply in TF32.")
@click.option("--overwrite", is_flag=True, help="Replace the engine.")
@interruptible
def trt_command(onnx: Path, out: Path, batch: str | None, overwrite: bool, **options: Any) -> None:
    """Build a TensorRT engine from ONNX for this machine's GPU, and check that it has the precision asked for.

    The precision is in the file: fp32, fp16, or int8 with Q/DQ pairs. Beside the engine, which trtexec, DeepStream and
    Triton load as it is, lies a .json with the model's classes and input, and what it was built for.
    """
    require("cv2", "deploy")
    from deploy.artifact import engine_info_path  # noqa: PLC0415
    from export.build_line import BuildLine  # noqa: PLC0415
    from export.to_trt import TrtOptions, build_engine, trtexec_line  # noqa: PLC0415
    from export.trt_graph import read_request  # noqa: PLC0415
    from export.trt_options import parse_batch  # noqa: PLC0415

    wanted = TrtOptions(batch=parse_batch(batch) if batch else None, **options)
    for path in (out, engine_info_path(out)):
        check_apart(path, onnx)
        check_free(path, overwrite)
    if wanted.timing_cache is not None:
        check_apart(wanted.timing_cache, onnx)
    request = read_request(onnx)
    click.echo(trtexec_line(request, out, wanted))  # before the build: useful where TensorRT is not installed, too
    line = BuildLine()
    try:
        report = build_engine(request, out, wanted, line)
    finally:
        line.end()
    click.echo(str(report))


main.add_command(all_command)
main.add_command(int8_command)


if __name__ == "__main__":
    main()
