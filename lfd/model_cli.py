"""lfd-train's commands about one model: make one of bare weights, and look at its modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lfd.console import Command, guarded, parse_size
from lfd.errors import UsageError, require
from lfd.files import check_free


def need() -> None:
    """Say which extra is missing, before an import fails somewhere inside."""
    for module in ("cv2", "torch", "torchvision", "safetensors", "tomli_w", "rich", "tensorboard"):
        require(module, "train")


def input_size(dataset: Any, size: str | None) -> tuple[int, int]:
    """Return the size given, or that of the first picture."""
    height, width = parse_size(size) if size else dataset[0].image.shape[:2]
    return height, width


@click.command("import", cls=Command)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Its network; left away, one of the CIRKD family is known by its keys.")
@click.option("--data", required=True, metavar="NAME:PATH", help="Data set whose classes it knows.")
@click.option("--size", metavar="HxW", help="Its input size.  [default: of the data set's first picture]")
@click.option(
    "--normalize",
    metavar="NAME|M,M,M/S,S,S",
    help="With --model: imagenet, caffe, half, unit, or mean and deviation of RGB in [0, 1].  [default: imagenet]",
)
@click.option("--out", "-o", type=click.Path(path_type=Path, dir_okay=False), required=True, help="A .safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
@guarded
def import_checkpoint(
    checkpoint: Path, model: str | None, data: str, size: str | None, normalize: str | None, out: Path, overwrite: bool
) -> None:
    """Make bare weights a model that knows its network, classes and input.

    CHECKPOINT is a state_dict: .pth, which is read without running code from it, or .safetensors. Every tensor must
    fit --model, but for the auxiliary head, which may be absent.
    """
    need()
    from lfd.checkpoint import import_weights, load_model, parse_normalize, save_model  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.models import external  # noqa: PLC0415

    if out.suffix != ".safetensors":
        raise UsageError(f"--out {out}; expected a name that ends in .safetensors")
    check_free(out, overwrite)
    if checkpoint.is_dir() or (checkpoint.suffix == ".safetensors" and model is None):
        raise UsageError(
            f"{checkpoint}: knows its classes and input already; use it as it is. Fix: bare weights need --model NAME"
        )
    if normalize is not None and model is None:
        raise UsageError(
            f"--normalize {normalize} without --model: the CIRKD family's input is known. Fix: give --model"
        )
    dataset = open_dataset(data, "val")
    size_hw = input_size(dataset, size)
    if model is None:
        network, spec = load_model(checkpoint, (dataset.labels, size_hw))
    else:
        external.trust(model)
        preprocess = parse_normalize(normalize or "imagenet", size_hw)
        network, spec = import_weights(checkpoint, model, dataset.labels, preprocess)
    save_model(out, network, spec)
    seen = spec.preprocess
    mean, std = (", ".join(f"{255 * value:.4g}" for value in values) for values in (seen.mean, seen.std))
    click.echo(
        f"written  {out}: {spec.model}, {len(spec.labels)} classes, input {size_hw[0]}x{size_hw[1]}, "
        f"{seen.color} less ({mean}) over ({std})"
    )
    click.echo(f"score it with: lfd-train eval {out} --data {data}")


@click.command("inspect", cls=Command)
@click.argument("model", metavar="MODEL")
@click.option("--size", metavar="HxW", help="Input size.  [default: the run's; 512x512 for a name]")
@click.option("--classes", type=click.IntRange(1, 255), help="Of a network by name.  [default: 19]")
@click.option("--depth", type=click.IntRange(1, 50), default=2, show_default=True, help="Deepest modules to list.")
@click.option("--json", "as_json", is_flag=True, help="Print all modules as JSON.")
@guarded
def inspect_command(model: str, size: str | None, classes: int | None, depth: int, as_json: bool) -> None:
    """List the modules of MODEL, a name, run or file: shapes, strides, parameters, MACs, and the taps it declares."""
    need()
    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.inspect_model import inspect_model, to_record, to_text  # noqa: PLC0415
    from lfd.models import create_model, external  # noqa: PLC0415

    size_hw = parse_size(size) if size else (512, 512)
    if Path(model).exists():
        if classes is not None:
            raise UsageError(f"--classes {classes} has no effect: {model} knows its classes; leave it away")
        network, spec = load_model(Path(model))
        size_hw = size_hw if size else spec.preprocess.size_hw
    else:
        external.trust(model)
        network, _ = create_model(model, classes or 19)
    found = inspect_model(network, size_hw)
    click.echo(json.dumps(to_record(found)) if as_json else to_text(found, model, depth))
