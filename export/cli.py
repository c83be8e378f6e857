"""lfd-export: from a run to files that devices execute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lfd.console import Group, guarded, parse_size
from lfd.errors import ExportError, UsageError, require
from lfd.files import check_free

PARITY_PICTURES = 32


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lfd-toolkit")
def main() -> None:
    """Export trained networks, and prove that nothing was lost."""


def _need() -> None:
    """Say which extra is missing, before an import fails somewhere inside."""
    for module in ("cv2", "torch", "torchvision", "safetensors", "onnx", "onnxscript", "onnxruntime"):
        require(module, "export")


def _data_of(run: Path, data: str | None) -> str:
    """Return the data set to check on: the one given, or the one that the run was trained on."""
    from lfd.recipe import from_mapping, read_recipe  # noqa: PLC0415

    if data is not None:
        return data
    saved = (run if run.is_dir() else run.parent) / "config.toml"
    if not saved.is_file():
        raise UsageError(f"{saved}: no such file to tell the data set; give --data NAME:PATH for the parity check")
    return from_mapping(read_recipe(str(saved))).data.source


@main.command("onnx")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--size", metavar="HxW", help="Input size; the run's own by default.")
@click.option("--output", type=click.Choice(["class_map", "logits"]), default="class_map", show_default=True)
@click.option("--data", metavar="NAME:PATH", help="Pictures for the parity check; the run's own by default.")
@click.option("--pictures", default=PARITY_PICTURES, show_default=True, help="Pictures for the parity check.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@guarded
def onnx_command(
    run: Path, out: Path, size: str | None, output: Any, data: str | None, pictures: int, overwrite: bool
) -> None:
    """Write RUN as ONNX: a BGR uint8 frame in, a class map out; checked against PyTorch on real frames."""
    _need()
    from export.to_onnx import to_onnx  # noqa: PLC0415
    from export.verify import compare, of_model, open_runnable  # noqa: PLC0415
    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.evaluate import check_labels  # noqa: PLC0415
    from lfd.files import replacing  # noqa: PLC0415

    if out.suffix != ".onnx":
        raise UsageError(f"{out}: expected a name that ends in .onnx")
    if pictures < 1:
        raise UsageError(f"--pictures {pictures}; expected at least 1")
    check_free(out, overwrite)
    size_hw = parse_size(size) if size else None
    model, spec = load_model(run)
    dataset = open_dataset(_data_of(run, data), "val")
    check_labels(spec.labels, dataset.labels, "the data set of the parity check")
    with replacing(out) as aside:  # the name appears once parity holds
        exported = to_onnx(model, spec, aside, size_hw, output)
        parity = compare(of_model(model, exported), open_runnable(aside), dataset, limit=pictures)
        if not parity:
            raise ExportError(f"{out} was not written: the graph is not the model. {parity}")
    height, width = exported.preprocess.size_hw
    click.echo(f"{out}: {exported.model}, {height}x{width}, {output}, {out.stat().st_size / 1e6:.1f} MB")
    click.echo(f"parity   {parity}")


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="NAME:PATH@SPLIT", help="Labelled set; its test split by default.")
@click.option("--min-agreement", default=0.999, show_default=True, help="Smallest share of equal pixels that passes.")
@guarded
def verify(a: Path, b: Path, data: str, min_agreement: float) -> None:
    """Compare two models, runs or .onnx files, pixel by pixel on a labelled set; exit 1 when they differ."""
    _need()
    from export.verify import compare, open_runnable  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415

    if not 0 <= min_agreement <= 1:
        raise UsageError(f"--min-agreement {min_agreement}; expected 0 to 1")
    second = open_runnable(b)
    first = open_runnable(a, second.spec.preprocess.size_hw if b.suffix == ".onnx" else None)
    if b.suffix != ".onnx" and a.suffix == ".onnx":
        second = open_runnable(b, first.spec.preprocess.size_hw)
    parity = compare(first, second, open_dataset(data, "test"), required=min_agreement)
    click.echo(str(parity))
    if not parity:
        raise ExportError(f"{a} and {b} are not the same model within {min_agreement:.2%} of the pixels")


if __name__ == "__main__":
    main()
