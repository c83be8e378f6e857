"""What LFD's masks do, to look at: which pixels the student is made to heed, and whether they are those it has wrong.

Predictions are as deployed, each network with its own input. Masks are the loss's own (`lfd.losses.masks`)
with the run's options: from the deep logits of both networks on the student's grid, the teacher seeing the
student's picture at its own size, as in training. All of it is in float32. The pictures shown are one batch:
the mean that a mask is relative to is theirs, so that their masks compare. On the frame each block of one
colour is a cell of the grid (nearest neighbour).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lfd.charts import Bools, Floats, Shown, all_masks, draw_class_weights, overview
from lfd.checkpoint import MODEL_FILE, load_model, model_file
from lfd.config import Config, DataConfig, TrainConfig, within
from lfd.data import Dataset, open_dataset
from lfd.distiller import Teacher, to_scale
from lfd.errors import CheckpointError, ModelError, UsageError
from lfd.evaluate import check_labels
from lfd.files import check_free, replacing, to_json
from lfd.job import load_teacher, pick_device
from lfd.losses.common import IGNORE, UNKNOWN, counted, kl_per_pixel, to_grid
from lfd.losses.lfd import LFDOptions
from lfd.losses.masks import SPATIAL, spatial_mask
from lfd.methods import plan
from lfd.metrics import ConfusionMatrix
from lfd.normalize import Normalize, Predictor
from lfd.preprocess import Image, content_box, fit_frame, resize_labels, restore_map
from lfd.quantize.student import find
from lfd.recipe import from_mapping, read_recipe
from lfd.runlog import METRICS_FILE
from lfd.spec import Labels, Preprocess
from lfd.taps import FeatureTaps

SUMMARY_FILE = "summary.json"
CHART_FILE = "class_weights.png"


class Summary(NamedTuple):
    """What was written: names in `out`, what to know about them, and what summary.json holds."""

    out: Path
    files: list[str]
    notes: list[str]
    record: dict[str, Any]


class Pair(NamedTuple):
    """A student with its input, and its teacher, where they are."""

    student: nn.Module
    preprocess: Preprocess
    teacher: Teacher
    device: torch.device


class Cells(NamedTuple):
    """On the student's grid, each (B, h, w)."""

    kl: Floats  # KL(teacher || student) in nats
    counted: Bools  # by the loss: what is not void
    masks: dict[str, Floats]  # by kind; NaN where nothing is counted


class Numbers:
    """Counts over one picture or many, and what follows from them."""

    def __init__(self, labels: Labels) -> None:
        self.right = {who: ConfusionMatrix(len(labels)) for who in ("teacher", "student")}
        self.cells: dict[str, list[Floats]] = {name: [] for name in ("kl", *SPATIAL)}
        self.weight = {kind: np.zeros(2) for kind in SPATIAL}

    def add(self, shown: Shown, kl: Floats, counted: Bools) -> None:
        """Count a picture, with its KL and what counts of it on the grid."""
        self.right["teacher"].update(shown.truth, shown.teacher)
        self.right["student"].update(shown.truth, shown.student)
        for name, values in {"kl": kl, **shown.masks}.items():
            self.cells[name].append(values[counted])
        for kind in SPATIAL:
            mask = np.nan_to_num(shown.mask(kind)).astype(np.float64)
            self.weight[kind] += mask[shown.known].sum(), mask[shown.wrong].sum()

    def record(self, chosen: str) -> dict[str, Any]:
        """Return the numbers; None where there was nothing to count."""
        right = {who: matrix.pixel_accuracy() for who, matrix in self.right.items()}
        masks = {kind: self._mask(kind) for kind in SPATIAL}
        numbers = {f"{who}_pixel_accuracy": None if math.isnan(share) else share for who, share in right.items()}
        # What a uniform mask lays on wrong pixels is their share, in cells that count: what to compare with.
        numbers |= {"mean_kl": self._over("kl", np.mean), "wrong_pixels": masks["uniform"]["weight_on_wrong"]}
        return {**numbers, "mask": masks[chosen], "masks": masks}

    def _mask(self, kind: str) -> dict[str, float | None]:
        whole, on_wrong = self.weight[kind]
        spread = {name: self._over(kind, how) for name, how in (("min", np.min), ("mean", np.mean), ("max", np.max))}
        return {**spread, "weight_on_wrong": float(on_wrong / whole) if whole > 0 else None}

    def _over(self, name: str, how: Callable[[NDArray[np.float64]], np.float64]) -> float | None:
        values = np.concatenate(self.cells[name]).astype(np.float64)
        return float(how(values)) if values.size else None


def explain(run: Path, data: str, out: Path, teacher: str | None, count: int, device: str, overwrite: bool) -> Summary:
    """Write pictures of a run's masks, its class weights in the course of training, and summary.json.

    Args:
        run: A run, or a model.safetensors.
        data: `NAME:PATH` or `NAME:PATH@SPLIT`; val by default.
        out: The folder to write.
        teacher: In place of the run's own.
        count: Pictures, spread evenly over the split.
        device: auto, cpu or cuda.
        overwrite: Replace what an earlier call wrote to `out`.

    Raises:
        LfdError: A network, the data or `out` cannot be used; `out` is as it was.
    """
    within("--count", count, 1, 1000)
    check_out(out, overwrite)
    where = pick_device(device)
    student, spec = load_model(run)
    if (int8 := find(student)) is not None:
        int8.mode = "simulate"  # as it was trained and scored
    dataset = open_dataset(data, "val", spec.labels)
    check_labels(spec.labels, dataset.labels, f"the data set {data}")
    config, options, notes = read_run(run, data, teacher)
    try:
        taught, name = load_teacher(config, dataset.labels, spec.preprocess, where)
    except ModelError as error:
        raise ModelError(f"the teacher {config.distill.teacher}: {error}") from error
    pair = Pair(student.to(where), spec.preprocess, taught, where)
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    cells = on_the_grid(pair, dataset, indices, options)
    record: dict[str, Any] = {
        "student": {"path": str(run), "model": spec.model, "input_hw": spec.preprocess.size_hw},
        "teacher": {"path": config.distill.teacher, "model": name, "input_hw": taught.preprocess.size_hw},
        "data": data,
        "method": config.distill.method,
        "options": {n: getattr(options, n) for n in ("spatial_mask", "mask_base", "mask_clip")},
        "grid_hw": cells.kl.shape[1:],
    }
    with replacing(out.resolve()) as aside:
        aside.mkdir()
        record |= write_pictures(aside, pair, dataset, indices, cells, options.spatial_mask)
        if record["overall"]["student_pixel_accuracy"] is None:
            notes.append(f"{data} has no labels on these pictures: no accuracy, and no errors to compare with")
        metrics = model_file(run).with_name(METRICS_FILE)
        if not draw_class_weights(metrics, aside / CHART_FILE, dataset.labels):
            notes.append(f"no {CHART_FILE}: {metrics} has no class weights, which a method with a class mask logs")
        files = sorted([p.name for p in aside.iterdir()] + [SUMMARY_FILE])
        (aside / SUMMARY_FILE).write_text(to_json(record | {"notes": notes, "files": files}), encoding="utf-8")
        check_out(out, overwrite)  # somebody may have put something there meanwhile
        if out.exists():
            shutil.rmtree(out.resolve())
    return Summary(out, files, notes, record)


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder that is there, and with `overwrite` one that holds anything that is not of an earlier call.

    Raises:
        UsageError: It is such a folder, or nothing can be written there.
    """
    check_free(out, overwrite)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; expected a folder, or a new name")
    try:
        ours = set(json.loads((out / SUMMARY_FILE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    other = sorted(p.name for p in (out.iterdir() if out.exists() else ()) if p.name not in ours or not p.is_file())
    if other:
        raise UsageError(f"{out} holds {other[0]!r}, which `explain` has not written; choose another folder")


def read_run(run: Path, data: str, teacher: str | None) -> tuple[Config, LFDOptions, list[str]]:
    """Return how to load a run's teacher, the options of its masks, and what to note.

    Raises:
        UsageError: It has no teacher and none is given, or its config.toml cannot be read.
        CheckpointError: Its teacher is no longer where it was.
    """
    file = model_file(run)
    saved = file.with_name("config.toml")
    found = file.name == MODEL_FILE and saved.is_file()
    config = from_mapping(read_recipe(str(saved.absolute()))) if found else Config()
    chosen, method = teacher or config.distill.teacher, config.distill.method
    if not chosen:
        raise UsageError(f"{run} names no teacher; give --teacher RUN|FILE, to see the masks that it would lead to")
    if not teacher and not Path(chosen).exists():
        raise CheckpointError(f"{chosen}: the teacher of {run} is not there any more. Fix: --teacher RUN|FILE")
    losses = plan(method, config.distill.weights, config.distill.balance, config.loss).losses
    if "lfd" in losses:
        options, notes = losses["lfd"], []
    else:
        why = f"was trained with method {method!r}" if found else "does not say how it was trained"
        options, notes = LFDOptions(), [f"{run} {why}: these are the masks that LFD's default options would give"]
    distill = dataclasses.replace(config.distill, teacher=chosen)
    plain = TrainConfig(channels_last=False)  # in float32: not every device has the run's precision
    return Config(train=plain, data=DataConfig(source=data), distill=distill), options, notes


@torch.inference_mode()
def on_the_grid(pair: Pair, dataset: Dataset, indices: list[int], options: LFDOptions) -> Cells:
    """Run both networks as training does, and make every kind of mask over all pictures as one batch."""
    declared: Mapping[str, str] = getattr(pair.student, "taps", {})
    taps = FeatureTaps(pair.student, {"deep": declared["deep"]} if "deep" in declared else {})
    size, own = pair.preprocess.size_hw, pair.teacher.preprocess.size_hw
    normalize, normalize_teacher = (Normalize(p).to(pair.device) for p in (pair.preprocess, pair.teacher.preprocess))
    of_student, of_teacher, targets = [], [], []
    for index in indices:
        sample = dataset[index]
        image = torch.from_numpy(fit_frame(sample.image, pair.preprocess)).permute(2, 0, 1)[None]
        image = image.to(pair.device).float()
        found = taps(normalize(image))
        deep = found.taps.get("deep", found.logits)
        grid = (deep.shape[2], deep.shape[3])
        scaled = to_scale(image, (own[0] / size[0], own[1] / size[1]))
        of_student.append(to_grid(found.logits.float(), grid).cpu())
        of_teacher.append(to_grid(pair.teacher.network(normalize_teacher(scaled))["out"].float(), grid).cpu())
        targets.append(fit_labels(sample.mask, pair.preprocess, dataset.labels.ignore_index))
    taps.remove()
    z_s, z_t, target = torch.cat(of_student), torch.cat(of_teacher), torch.stack(targets)
    counts = counted(target, (z_s.shape[2], z_s.shape[3])).bool()
    masks = {k: spatial_mask(k, z_s, z_t, target, options.mask_base, options.mask_clip) for k in SPATIAL}
    shown = {kind: mask.masked_fill(~counts, math.nan).numpy() for kind, mask in masks.items()}
    return Cells(kl_per_pixel(z_t, z_s).numpy(), counts.numpy(), shown)


def fit_labels(mask: Image, preprocess: Preprocess, void: int) -> Tensor:
    """Return a loss's target at the model's input, (h, w) int64, IGNORE beside the frame."""
    top, left, h, w = content_box((mask.shape[0], mask.shape[1]), preprocess)
    target = np.full(preprocess.size_hw, IGNORE, np.int64)
    content = resize_labels(mask, (h, w))
    without = UNKNOWN if mask.min() == void else IGNORE  # as the loader has it
    target[top : top + h, left : left + w] = np.where(content == void, without, content)
    return torch.from_numpy(target)


def write_pictures(
    folder: Path, pair: Pair, dataset: Dataset, indices: list[int], cells: Cells, chosen: str
) -> dict[str, Any]:
    """Draw every picture into the folder, and return the numbers of all and of each."""
    labels, taught = dataset.labels, pair.teacher
    predict = Predictor(pair.student, pair.preprocess, pair.device)
    predict_teacher = Predictor(taught.network, taught.preprocess, pair.device)
    values = np.concatenate([mask[np.isfinite(mask)] for mask in cells.masks.values()])
    scale = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)  # one, so that all compare
    total, pictures = Numbers(labels), dict[str, Any]()
    for row, index in enumerate(indices):
        image, truth, name = dataset[index]
        hw = (truth.shape[0], truth.shape[1])
        teacher = restore_map(predict_teacher(fit_frame(image, taught.preprocess)), taught.preprocess, hw)
        student = restore_map(predict(fit_frame(image, pair.preprocess)), pair.preprocess, hw)
        masks = {kind: mask[row] for kind, mask in cells.masks.items()}
        shown = Shown(image, truth, teacher, student, masks, pair.preprocess, labels)
        one = Numbers(labels)
        for numbers in (one, total):
            numbers.add(shown, cells.kl[row], cells.counted[row])
        name = re.sub(r"[^\w.-]", "_", name)
        name = name if name not in pictures else f"{name}-{index}"
        record = pictures[name] = one.record(chosen)
        drawn = overview(shown, captions(name, record, chosen), chosen, scale)
        name = f"{row + 1:02}_{name}"  # by number: a picture may be called as another's masks
        for file, picture in (name, drawn), (f"{name}.masks", all_masks(shown, mask_captions(record, chosen), scale)):
            (folder / f"{file}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    return {"overall": total.record(chosen), "pictures": pictures}


def captions(name: str, record: Mapping[str, Any], chosen: str) -> list[str]:
    """Return what stands above the cells of `lfd.charts.overview`."""
    right = {who: record[f"{who}_pixel_accuracy"] for who in ("teacher", "student")}
    wrong, weight = record["wrong_pixels"], record["mask"]["weight_on_wrong"]
    of_mask = "" if weight is None else f", {weight:.1%} of mask"  # none where base is 0 and nothing differs
    return [
        name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}",
        *(who if share is None else f"{who}, {share:.1%} right" for who, share in right.items()),
        "no labels" if wrong is None else "truth",
        f"mask {chosen}" + ("" if record["mean_kl"] is None else f", mean KL {record['mean_kl']:.3f}"),
        "no labels" if wrong is None else f"student wrong: {wrong:.1%} of what counts{of_mask}",
    ]


def mask_captions(record: Mapping[str, Any], chosen: str) -> dict[str, str]:
    """Return the captions of `lfd.charts.all_masks`: kind to text."""
    texts = {kind: f"{kind} (chosen)" if kind == chosen else kind for kind in record["masks"]}
    shares = {kind: mask["weight_on_wrong"] for kind, mask in record["masks"].items()}
    return {k: text if shares[k] is None else f"{text}, {shares[k]:.1%} on wrong pixels" for k, text in texts.items()}
