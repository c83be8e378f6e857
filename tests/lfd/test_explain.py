"""What `explain` writes: pictures that show the loss's own masks, numbers in closed form, and errors."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from lfd.charts import Shown, apart, color_bar, dim, draw_class_weights, heat, key, read_class_weights
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.distiller import Distiller, Teacher
from lfd.errors import CheckpointError, LfdError, ModelError, UsageError
from lfd.explain import Pair, Summary, explain, fit_labels, on_the_grid
from lfd.losses.lfd import LFDOptions
from lfd.losses.masks import SPATIAL
from lfd.methods import plan
from lfd.models import create_model
from lfd.preprocess import fit_frame
from lfd.spec import Labels, ModelSpec, Preprocess
from tests.conftest import make_folder

SMALL = "lraspp_mobilenet_v3_small"
HW = (48, 64)
LABELS = Labels(("ground", "sky", "thing"), ((128, 64, 128), (70, 130, 180), (220, 20, 60)))
HIGH = 3.0


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return create_model(SMALL, 3)[0].eval()


def save(path: Path, model: nn.Module, labels: Labels = LABELS, size_hw: tuple[int, int] = HW) -> Path:
    save_model(path, model, ModelSpec(SMALL, labels, Preprocess(size_hw)))
    return path


def always(path: Path, label: int, size_hw: tuple[int, int] = HW) -> Path:
    """Save a network that gives HIGH to one class and 0 to the others, everywhere."""
    model = network()
    head: Any = model.get_submodule("classifier")
    with torch.no_grad():
        for part in (head.low_classifier, head.high_classifier):
            part.weight.zero_()
            part.bias.zero_()
        head.high_classifier.bias[label] = HIGH
    return save(path, model, size_hw=size_hw)


def a_run(path: Path, model: Path, config: str) -> Path:
    path.mkdir()
    shutil.copy(model, path / "model.safetensors")
    (path / "config.toml").write_text(config)
    return path


def look(run: Path, folder: Path, out: Path, teacher: Path | None = None, **options: Any) -> Summary:
    options = {"count": 2, "device": "cpu", "overwrite": False} | options
    return explain(run, f"folder:{folder}", out, str(teacher) if teacher else None, **options)


def picture(path: Path) -> np.ndarray[Any, Any]:
    found = cv2.imread(str(path))
    assert found is not None
    return found


def test_a_student_like_its_teacher_has_a_flat_mask(folder: Path, tmp_path: Path) -> None:
    model = save(tmp_path / "m.safetensors", network())
    done = look(model, folder, tmp_path / "out", model)
    record = json.loads((tmp_path / "out/summary.json").read_text())
    assert record["overall"]["mean_kl"] == 0
    mask = record["overall"]["mask"]
    assert (mask["min"], mask["mean"], mask["max"]) == (1, 1, 1)  # nothing to tell cells apart by
    assert mask["weight_on_wrong"] == pytest.approx(record["overall"]["wrong_pixels"])
    assert record["overall"]["teacher_pixel_accuracy"] == record["overall"]["student_pixel_accuracy"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(done.files) == set(record["files"])
    assert set(done.files) == {"01_000.png", "01_000.masks.png", "02_003.png", "02_003.masks.png", "summary.json"}
    assert "default options" in done.notes[0] and "no class_weights.png" in done.notes[1]
    for name in ("01_000.png", "01_000.masks.png"):
        assert picture(tmp_path / "out" / name).shape[1] == 3 * 480 + 2 * 4


def test_numbers_and_picture_of_a_case_in_closed_form(folder: Path, tmp_path: Path) -> None:
    """A teacher that says sky everywhere and a student that says ground: `gap` is over the sky alone."""
    teacher = always(tmp_path / "t.safetensors", 1, (96, 128))
    config = f'[distill]\nteacher = "{teacher}"\nmethod = "lfd"\n[loss.lfd]\nspatial_mask = "gap"\nmask_base = 0.25'
    run = a_run(tmp_path / "run", always(tmp_path / "s.safetensors", 0), config)
    done = look(run, folder, run / "explain", count=4)
    truth = np.stack([open_dataset(f"folder:{folder}", "val")[i].mask for i in range(4)])
    known = truth != 255
    cells = truth[:, 4::8, 4::8]  # the label at the centre of each 8x8 cell
    assert (cells != 255).all()
    mask = np.where(cells == 1, 0.25 + 0.75 * min(5.0, cells.size / (cells == 1).sum()), 0.25)

    high, low = math.exp(HIGH) / (math.exp(HIGH) + 2), 1 / (math.exp(HIGH) + 2)
    overall = done.record["overall"]
    assert overall["mean_kl"] == pytest.approx(HIGH * (high - low), rel=1e-5)
    assert overall["teacher_pixel_accuracy"] == pytest.approx((truth == 1)[known].mean())
    assert overall["student_pixel_accuracy"] == pytest.approx((truth == 0)[known].mean())
    assert overall["wrong_pixels"] == pytest.approx((truth != 0)[known].mean())
    assert [overall["mask"][k] for k in ("min", "mean", "max")] == pytest.approx([0.25, mask.mean(), mask.max()])
    weight = mask.repeat(8, 1).repeat(8, 2) * known
    assert overall["mask"]["weight_on_wrong"] == pytest.approx(weight[truth != 0].sum() / weight.sum(), rel=1e-5)
    assert overall["mask"] == overall["masks"]["gap"] and set(overall["masks"]) == set(SPATIAL)
    assert overall["masks"]["disagreement"]["min"] == pytest.approx(1)  # the same KL everywhere
    assert done.record["options"] == {"spatial_mask": "gap", "mask_base": 0.25, "mask_clip": 5.0}
    assert done.record["teacher"]["input_hw"] == (96, 128) and done.record["grid_hw"] == (6, 8)

    shown = picture(run / "explain/03_002.png")[420:780, 484:964].mean(2)  # second row, second column, 480x360
    bright = shown.reshape(6, 60, 8, 60).mean((1, 3)) > 100
    assert (bright == (cells[2] == 1)).all()


def test_masks_are_those_that_training_uses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a teacher of another size, held against what LFD makes inside the distiller."""
    data = open_dataset(f"folder:{folder}", "val")
    student, teacher = network(1), Teacher(network(2), Preprocess((32, 40), color="BGR"))
    here = Preprocess(HW)
    found = on_the_grid(Pair(student, here, teacher, torch.device("cpu")), data, [0, 2], LFDOptions())

    seen: list[torch.Tensor] = []
    from lfd.losses import lfd as loss

    original = loss.spatial_mask
    monkeypatch.setattr(loss, "spatial_mask", lambda *a: seen.append(original(*a)) or seen[-1])
    distiller = Distiller(student, here, 3, plan("lfd"), teacher).eval()
    samples = [data[0], data[2]]
    image = torch.stack([torch.from_numpy(fit_frame(s.image, here)).permute(2, 0, 1) for s in samples])
    distiller(image, torch.stack([fit_labels(s.mask, here, 255) for s in samples]))
    counted = found.counted
    np.testing.assert_allclose(found.masks["disagreement"][counted], seen[0].numpy()[counted], rtol=2e-3)
    assert seen[0].std() > 1e-3


def test_a_mask_finds_its_place_in_a_letterboxed_frame() -> None:
    cells = np.arange(48, dtype=np.float32).reshape(6, 8)
    blank = np.zeros((96, 64), np.uint8)
    shown = Shown(
        np.zeros((96, 64, 3), np.uint8), blank, blank, blank, {"gap": cells}, Preprocess(HW, resize="letterbox"), LABELS
    )
    expected = cells[:, 2:6].repeat(16, 0).repeat(16, 1)  # 48x32 of the 48x64 input, columns 16 to 48
    np.testing.assert_array_equal(shown.mask("gap"), expected)


def test_labels_are_fitted_as_frames_are() -> None:
    mask = np.full((96, 64), 2, np.uint8)
    mask[:48] = 11
    target = fit_labels(mask, Preprocess(HW, resize="letterbox"), void=11).numpy()
    assert (target[24:, 16:48] == 2).all() and (target == 255).sum() == 48 * 64 - 24 * 32


def test_pictures_without_labels_are_shown_without_truth(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "film", {"val": 2})
    for path in (root / "masks/val").iterdir():
        cv2.imwrite(str(path), np.full(HW, 255, np.uint8))
    done = look(
        save(tmp_path / "s.safetensors", network(1)),
        root,
        tmp_path / "out",
        save(tmp_path / "t.safetensors", network(2)),
    )
    overall = done.record["overall"]
    assert overall["student_pixel_accuracy"] is overall["mask"]["weight_on_wrong"] is None
    assert overall["mean_kl"] > 0 and "has no labels" in done.notes[1]
    drawn = picture(tmp_path / "out/01_000.png")
    assert (drawn[420:780, :480] == 24).all() and (drawn[420:780, 968:] == 24).all()


def test_a_mask_may_be_zero_on_all_of_a_picture(tmp_path: Path) -> None:
    """`gap` on nothing but base 0, in a picture that the student has right: no share of it can be given."""
    root = make_folder(tmp_path / "data", {"val": 2})
    cv2.imwrite(str(root / "masks/val/000.png"), np.zeros(HW, np.uint8))
    config = '[distill]\nmethod = "lfd"\n[loss.lfd]\nspatial_mask = "gap"\nmask_base = 0.0'
    run = a_run(tmp_path / "run", always(tmp_path / "s.safetensors", 0), config)
    done = look(run, root, tmp_path / "out", always(tmp_path / "t.safetensors", 1))
    first = done.record["pictures"]["000"]
    assert first["student_pixel_accuracy"] == 1 and first["mask"]["max"] == 0
    assert first["mask"]["weight_on_wrong"] is None and done.record["overall"]["mask"]["weight_on_wrong"] > 0


def test_heat_begins_with_the_ground_and_ends_yellow() -> None:
    ground = dim(np.full((1, 3, 3), 200, np.uint8))
    drawn = heat(ground, np.array([[0.5, 3.0, np.nan]], np.float32), (0.5, 3.0))
    low, high, none = drawn[0].astype(int)
    assert low.max() <= ground.max() and (none == ground[0, 0]).all()
    assert high[2] > 200 and high[1] > 200  # red and green
    bar = color_bar(480, (0.5, 3.0)).sum(2).astype(int)[13]
    assert bar[400] > bar[240] > bar[90]


def test_a_key_takes_as_many_rows_as_it_needs() -> None:
    few, many = ([(f"class {i}", (i, 0, 0)) for i in range(n)] for n in (3, 19))
    assert key(few, 480).shape == (26, 480, 3)
    assert key(many, 480).shape[0] > 52 and key(many, 480).shape[1:] == (480, 3)


@pytest.mark.parametrize(
    ("heights", "gap", "expected"),
    [
        ([0.5, 0.5], 0.1, [0.45, 0.55]),
        ([0.9, 0.1], 0.1, [0.9, 0.1]),
        ([0.0, 0.0, 0.02], 0.1, [0.0, 0.1, 0.2]),
        ([1.0, 1.0, 0.3], 0.2, [0.8, 1.0, 0.3]),
        ([], 0.1, []),
    ],
)
def test_names_are_moved_apart_as_little_as_it_takes(heights: list[float], gap: float, expected: list[float]) -> None:
    assert apart(heights, gap) == pytest.approx(expected)


def test_class_weights_are_drawn_in_their_classes_colours(folder: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    lines: list[dict[str, Any]] = [
        {"step": 10, "loss_task": 1.0},
        {"step": 10, "class_weight": {"sky": 0.9, "thing": 1.5}},
    ]
    lines += [{"step": 20, "class_weight": {"sky": 0.5, "thing": 2.0, "ground": 1.0}}, {"step": 30, "class_weight": 3}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "class_wei')
    steps, weights = read_class_weights(metrics)
    assert steps == [10, 20] and weights["sky"] == [0.9, 0.5] and weights["thing"] == [1.5, 2.0]
    assert math.isnan(weights["ground"][0]) and weights["ground"][1] == 1.0

    run = a_run(tmp_path / "run", save(tmp_path / "m.safetensors", network()), "")
    metrics.rename(run / "metrics.jsonl")
    done = look(run, folder, tmp_path / "out", run, count=1)
    assert "class_weights.png" in done.files
    drawn = picture(tmp_path / "out/class_weights.png")[..., ::-1]
    for name, color in zip(LABELS.names[1:], LABELS.colors[1:], strict=True):
        assert (drawn == color).all(2).sum() > 50, name
    assert not draw_class_weights(tmp_path / "none.jsonl", tmp_path / "none.png", LABELS)
    assert not (tmp_path / "none.png").exists()


def test_a_single_step_and_many_classes_make_a_chart_too(tmp_path: Path) -> None:
    names = [f"a class of some length {i}" for i in range(40)]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 1, "class_weight": dict.fromkeys([*names, "in $x$"], 1.0)}))
    assert draw_class_weights(metrics, tmp_path / "c.png", LABELS)
    assert picture(tmp_path / "c.png").shape[0] > 40 * 15


def test_only_an_earlier_call_is_overwritten(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = save(tmp_path / "m.safetensors", network()), tmp_path / "out"
    look(model, folder, out, model, count=4)
    before = (out / "01_000.png").read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        look(model, folder, out, model)
    with monkeypatch.context() as patch:
        patch.setattr("lfd.explain.all_masks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            look(model, folder, out, model, overwrite=True)
    assert (out / "01_000.png").read_bytes() == before and (out / "03_002.png").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert set(look(model, folder, out, model, count=1, overwrite=True).files) == {p.name for p in out.iterdir()}
    assert len(list(out.iterdir())) == 3
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds 'notes\.txt'"):
        look(model, folder, out, model, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("config", "teacher", "error", "says"),
    [
        ('[distill]\nmethod = "none"', None, UsageError, "names no teacher; give --teacher"),
        (
            '[distill]\nteacher = "gone"',
            None,
            CheckpointError,
            "gone: the teacher of .* is not there any more. Fix: --t",
        ),
        ("", "gone", CheckpointError, "gone: no such run or file"),
        ("", "other.safetensors", ModelError, "the teacher .*other.safetensors: the model has 2 classes and"),
        ("[train]\nstep = 3", "s.safetensors", UsageError, "Did you mean 'steps'"),
        (
            '[loss.lfd]\nmask_bse = 1\n[distill]\nmethod = "lfd"',
            "s.safetensors",
            UsageError,
            "Did you mean 'mask_base'",
        ),
    ],
)
def test_what_cannot_be_explained_says_why(
    folder: Path, tmp_path: Path, config: str, teacher: str | None, error: type[LfdError], says: str
) -> None:
    student = save(tmp_path / "s.safetensors", network())
    save(tmp_path / "other.safetensors", create_model(SMALL, 2)[0], Labels(LABELS.names[:2], LABELS.colors[:2]))
    run = a_run(tmp_path / "run", student, config)
    with pytest.raises(error, match=says):
        look(run, folder, tmp_path / "out", tmp_path / teacher if teacher else None)
    assert not (tmp_path / "out").exists()


def test_other_classes_too_few_pictures_and_no_pictures_say_so(folder: Path, tmp_path: Path) -> None:
    two = save(tmp_path / "two.safetensors", create_model(SMALL, 2)[0], Labels(LABELS.names[:2], LABELS.colors[:2]))
    with pytest.raises(ModelError, match="the model has 2 classes and the data set folder:"):
        look(two, folder, tmp_path / "out", two)
    with pytest.raises(UsageError, match="--count = 0"):
        look(two, folder, tmp_path / "out", two, count=0)
    model = save(tmp_path / "m.safetensors", network())
    assert len(look(model, folder, tmp_path / "out", model, count=99).record["pictures"]) == 4
