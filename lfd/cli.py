"""lfd-train: supervised training, distillation, evaluation, and looking at what was learnt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from lfd.console import Group, guarded
from lfd.data_cli import check_data_command, fetch_checkpoint
from lfd.errors import UsageError, require, unknown
from lfd.files import check_free
from lfd.model_cli import import_checkpoint, input_size, inspect_command, need

F = TypeVar("F", bound=Callable[..., Any])


def _run_options(command: F) -> F:
    """Add the options that `teacher` and `distill` share."""
    options = [
        click.option("--data", metavar="NAME:PATH", help="Data set, such as camvid:PATH or street:."),
        click.option("--val", metavar="NAME:PATH", help="Labelled set that is scored, in place of --data's val split."),
        click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Run directory."),
        click.option("--recipe", help="Recipe: a name, or a TOML file.  [default: default]"),
        click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Change one value."),
        click.option("--size", metavar="HxW", help="Input size of the network."),
        click.option("--weights", help="Backbone: imagenet, none, or a file: torchvision's, timm's, CIRKD's."),
        click.option("--init", metavar="RUN", help="Begin with the weights of this run, and with its network."),
        click.option("--quantize", metavar="int8", help="Fine-tune --init with the rounding of its INT8 file."),
        click.option("--quantize-target", metavar="NAME", help="Who runs that: ort, openvino, trt.  [default: ort]"),
        click.option("--steps", type=int, help="Optimiser steps."),
        click.option("--batch", type=int, help="Pictures a step."),
        click.option("--seed", type=int, help="Of weights, order and augmentation."),
        click.option("--device", help="auto, cpu, cuda."),
        click.option("--amp", help="Autocast: off, bf16 or fp16."),
        click.option("--compile", is_flag=True, default=None, help="torch.compile the networks."),
        click.option("--resume", is_flag=True, help="Go on with the run in --out."),
        click.option("--overwrite", is_flag=True, help="Replace the run in --out."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_KEYS = {
    "data": "data.source",
    "val": "data.val",
    "size": "data.size",
    "weights": "train.weights",
    "init": "train.init",
    "quantize": "quantize.to",
    "quantize_target": "quantize.target",
    "steps": "train.steps",
    "batch": "train.batch",
    "seed": "train.seed",
    "device": "train.device",
    "amp": "train.amp",
    "compile": "train.compile",
    "model": "train.model",
    "teacher": "distill.teacher",
    "method": "distill.method",
}


def _start(
    out: Path,
    recipe: str | None,
    assignments: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    default_method: str = "",
    **given: Any,
) -> None:
    """Put the configuration together and train; `default_method` is taken where neither option nor recipe says one."""
    need()
    from rich.console import Console  # noqa: PLC0415  torch and rich: not for --help

    from lfd.checkpoint import MODEL_FILE, STATE_FILE  # noqa: PLC0415
    from lfd.init import model_of  # noqa: PLC0415
    from lfd.models import external  # noqa: PLC0415
    from lfd.recipe import apply_set, from_mapping, put, read_recipe  # noqa: PLC0415
    from lfd.trainer import train  # noqa: PLC0415

    saved = out / "config.toml"
    if resume and not (out / STATE_FILE).is_file():
        raise UsageError(f"{out}: no {STATE_FILE} to resume from; expected a run that reached a checkpoint")
    if resume and (recipe is not None or overwrite):
        raise UsageError("--resume goes on with the run as it is; leave --recipe and --overwrite away")
    first = os.environ.get("RANK", "0") == "0"  # under torchrun it makes the run directory, and it speaks
    if not resume and first:
        check_free(out, overwrite)
    record = read_recipe(str(saved) if resume else recipe or "default")
    record = apply_set(record, assignments)
    if default_method and not resume:
        distill_section = record.get("distill", {})
        if isinstance(distill_section, Mapping):
            record["distill"] = {"method": default_method, **distill_section}
    for option, value in given.items():
        if value is not None:
            if any(a.partition("=")[0].strip() == _KEYS[option] for a in assignments):
                raise UsageError(f"{_KEYS[option]} is given twice, as an option and by --set; leave one away")
            put(record, tuple(_KEYS[option].split(".")), value)
    if given.get("init") and given.get("weights"):
        raise UsageError("--init has all weights, --weights those of a backbone; leave one away")
    if given.get("quantize_target") and not record.get("quantize", {}).get("to"):
        raise UsageError("--quantize-target has no effect without --quantize int8")
    config = from_mapping(record)
    if config.train.init and not config.train.model:
        config = replace(config, train=replace(config.train, model=model_of(Path(config.train.init))))
    for name in (given.get("model"), apply_set({}, assignments).get("train", {}).get("model")):
        external.trust(name)  # typed here, and not by a recipe
    _check_names(config, bool(default_method))
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not first)
    best = train(config, out, resume, overwrite, console)
    console.print(f"done     best val mIoU {best:.2%}; weights in {out / MODEL_FILE}")


def _check_names(config: Any, distilling: bool) -> None:
    """Refuse a configuration without data, teacher or network, or with one that is not there."""
    from lfd.methods import find_method  # noqa: PLC0415
    from lfd.models import check_name  # noqa: PLC0415

    if not config.data.source:
        raise UsageError("no data set; give --data NAME:PATH, such as --data street:")
    if distilling and not config.distill.teacher:
        raise UsageError("no teacher; give --teacher RUN, a run of `lfd-train teacher`")
    find_method(config.distill.method)
    if not config.train.model:
        raise UsageError("no model; give --model or --student NAME, as `lfd-train list models` shows them")
    check_name(config.train.model)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="lfd-toolkit")
def main() -> None:
    """Train segmentation networks, and distil compact ones from them."""


@main.command()
@click.option("--model", metavar="NAME", help="Network; `lfd-train list models` shows them.")
@_run_options
@guarded
def teacher(**options: Any) -> None:
    """Train a network on labels alone: a teacher, or a student's own baseline."""
    for assignment in options["assignments"]:
        if assignment.startswith(("distill.", "loss.")):
            raise UsageError(f"--set {assignment!r} has no effect: this trains on labels alone. Fix: lfd-train distill")
    _start(**options, method="none", teacher="")


@main.command()
@click.option("--teacher", metavar="RUN|FILE", help="Its run, model.safetensors, or .pth of the CIRKD family.")
@click.option("--student", "model", metavar="NAME", help="Network; `lfd-train list models` shows them.")
@click.option("--method", help="Distiller; `lfd-train list methods` shows them.  [default: lfd]")
@_run_options
@guarded
def distill(**options: Any) -> None:
    """Train a compact network under a teacher."""
    _start(**options, default_method="lfd")


@main.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="NAME:PATH@SPLIT", help="Labelled set; its test split by default.")
@click.option("--size", metavar="HxW", help="Score at another input size than the run's.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@guarded
def evaluate_run(run: Path, data: str, size: str | None, device: str, as_json: bool) -> None:
    """Score a run, its model.safetensors, or a checkpoint of the CIRKD family: mIoU and IoU a class, as deployed."""
    need()
    import dataclasses  # noqa: PLC0415
    import math  # noqa: PLC0415

    from lfd.checkpoint import load_model  # noqa: PLC0415
    from lfd.console import parse_size  # noqa: PLC0415
    from lfd.data import open_dataset  # noqa: PLC0415
    from lfd.errors import DataError  # noqa: PLC0415
    from lfd.evaluate import check_labels, evaluate  # noqa: PLC0415
    from lfd.job import pick_device  # noqa: PLC0415
    from lfd.normalize import Predictor  # noqa: PLC0415
    from lfd.quantize.student import as_int8  # noqa: PLC0415

    dataset = open_dataset(data, "test")
    model, spec = load_model(run, (dataset.labels, input_size(dataset, size)))
    check_labels(spec.labels, dataset.labels, f"the data set {data}")
    preprocess = dataclasses.replace(spec.preprocess, size_hw=parse_size(size)) if size else spec.preprocess
    where = pick_device(device)
    with as_int8(model.to(where)):
        matrix = evaluate(Predictor(model, preprocess, where), dataset, preprocess)
    if math.isnan(matrix.miou()):
        raise DataError(f"{data}: has no labelled pixel to score on")
    scores = {n: None if math.isnan(v) else float(v) for n, v in zip(spec.labels.names, matrix.iou(), strict=True)}
    if as_json:
        result = {"data": data, "pictures": len(dataset), "miou": matrix.miou(), "iou": scores}
        click.echo(json.dumps({**result, "pixel_accuracy": matrix.pixel_accuracy()}))
        return
    for name, value in scores.items():
        click.echo(f"{name:<20} {'-' if value is None else f'{value:7.2%}'}")
    click.echo(
        f"{'mIoU':<20} {matrix.miou():7.2%}   pixel accuracy {matrix.pixel_accuracy():.2%}, {len(dataset)} pictures"
    )


@main.command("explain")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="NAME:PATH@SPLIT", help="Data set; its val split by default.")
@click.option("--teacher", metavar="RUN|FILE", help="In place of the run's own.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder to write.  [default: RUN/explain]"
)
@click.option("--count", default=6, show_default=True, help="Pictures, spread evenly over the split.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier call wrote to --out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@guarded
def explain_run(
    run: Path, data: str, teacher: str | None, out: Path | None, count: int, overwrite: bool, device: str
) -> None:
    """Show what LFD's masks do: which pixels the student is made to heed, and how the class weights went."""
    need()
    require("matplotlib", "train")
    from lfd.checkpoint import model_file  # noqa: PLC0415
    from lfd.explain import explain  # noqa: PLC0415

    done = explain(run, data, out or model_file(run).with_name("explain"), teacher, count, device, overwrite)
    for note in done.notes:
        click.echo(f"note     {note}")
    click.echo(f"written  {done.out}: {', '.join(done.files)}")
    overall = done.record["overall"]
    if overall["wrong_pixels"] is not None and overall["mask"]["weight_on_wrong"] is not None:
        click.echo(
            f"overall  {overall['mask']['weight_on_wrong']:.1%} of the mask lies on the "
            f"{overall['wrong_pixels']:.1%} of the pixels that the student has wrong"
        )


main.add_command(check_data_command)
main.add_command(fetch_checkpoint)
main.add_command(import_checkpoint)
main.add_command(inspect_command)


@main.command("list")
@click.argument("kind")
@guarded
def list_names(kind: str) -> None:
    """List methods, models, datasets or recipes."""
    kinds = ("methods", "models", "datasets", "recipes")
    if kind not in kinds:
        raise unknown("list", kind, kinds)
    need()
    from lfd.data import DATASETS, UNLABELLED  # noqa: PLC0415
    from lfd.methods import METHODS  # noqa: PLC0415
    from lfd.models import MODELS, external  # noqa: PLC0415
    from lfd.recipe import recipe_names  # noqa: PLC0415

    if kind == "methods":
        for name, method in METHODS.items():
            click.echo(f"{name:<8} {method.about}")
    else:
        models, datasets = [*MODELS, *external.FORMS], [*DATASETS, *UNLABELLED]
        click.echo("\n".join({"models": models, "datasets": datasets, "recipes": recipe_names()}[kind]))


if __name__ == "__main__":
    main()
