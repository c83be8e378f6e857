"""Whole runs whose teacher, data and scores do not come from one place: other classes, no labels, taps by path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lfd.checkpoint import load_model, save_model
from lfd.config import Config
from lfd.errors import ModelError, UsageError
from lfd.spec import Labels
from lfd.trainer import train
from tests.conftest import make_folder
from tests.lfd.test_trainer import QUIET, config


@pytest.fixture(scope="module")
def teacher(toy_run: Path) -> Path:
    return toy_run


@pytest.fixture(scope="module")
def finer(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher, with its class `thing` as two of equal logits, in another order, and with one more."""
    model, spec = load_model(teacher)
    order, names = [1, 2, 0, 2], ("Sky", "dog", "ground", "cat")
    for key in ("classifier.low_classifier", "classifier.high_classifier"):
        layer = model.get_submodule(key)
        layer.weight = torch.nn.Parameter(layer.weight[order])
        layer.bias = torch.nn.Parameter(layer.bias[order])
    out = tmp_path_factory.mktemp("finer") / "finer.safetensors"
    save_model(out, model, dataclasses.replace(spec, labels=Labels(names, tuple((i, i, i) for i in range(4)))))
    return out


def distil(folder: Path | str, teacher: Path, steps: int = 2, **sections: Any) -> Config:
    distill = {"teacher": str(teacher), "method": "kd", **sections.pop("distill", {})}
    return config(folder, steps, distill=distill, **sections)


def logged(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_a_teacher_of_finer_classes_is_brought_together(
    folder: Path, teacher: Path, finer: Path, tmp_path: Path
) -> None:
    classes = {"thing": ["cat", "dog"]}
    train(distil(folder, finer, distill={"classes": classes}), tmp_path / "mapped", False, False, QUIET)
    said = load_model(tmp_path / "mapped")[1].provenance["teacher_miou"]
    # Two equal logits are the class's plus log 2: a prior that moves a few border pixels.
    assert said == pytest.approx(load_model(teacher)[1].provenance["miou"], abs=0.1)
    assert len(load_model(tmp_path / "mapped")[1].labels) == 3


@pytest.mark.parametrize(
    ("classes", "error", "says"),
    [
        ({}, ModelError, "the model has 4 classes and the data set"),
        ({"ground": ["ground"]}, UsageError, "the teacher has no class for 'thing'"),
        ({"thing": ["cta"]}, UsageError, "unknown class of the teacher in distill.classes.thing 'cta'. Did you mean"),
    ],
    ids=str,
)
def test_other_classes_are_an_error_unless_they_are_mapped(
    folder: Path, finer: Path, tmp_path: Path, classes: dict[str, list[str]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        train(distil(folder, finer, distill={"classes": classes}), tmp_path / "run", False, False, QUIET)
    assert not (tmp_path / "run").exists()


def frames(folder: Path) -> str:
    return f"frames:{folder / 'images' / 'train'}"


@pytest.mark.parametrize("method", ["kd", "lfd"])
@pytest.mark.parametrize("unlabelled", ["teacher", "nothing"])
def test_pictures_without_labels_train_a_student(
    folder: Path, teacher: Path, tmp_path: Path, method: str, unlabelled: str
) -> None:
    data = {"source": frames(folder), "val": f"folder:{folder}"}
    chosen = distil(folder, teacher, data=data, distill={"method": method, "unlabelled": unlabelled})
    train(chosen, tmp_path / "run", False, False, QUIET)
    assert load_model(tmp_path / "run")[1].labels.names == ("ground", "sky", "thing")
    task = logged(tmp_path / "run", "loss_task")
    assert all(value > 0 for value in task) if unlabelled == "teacher" else not any(task)
    assert all(value > 0 for value in logged(tmp_path / "run", "loss_kd"))


def test_pictures_without_labels_need_something_to_score(folder: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no labels to choose the best weights by\. Fix: --val"):
        train(distil(folder, teacher, data={"source": frames(folder)}), tmp_path / "run", False, False, QUIET)


def test_the_set_that_is_scored_has_the_same_classes(folder: Path, teacher: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", {"val": 2})
    text = (other / "labels.toml").read_text()
    (other / "labels.toml").write_text(text.replace('"thing"', '"creature"'))
    chosen = distil(folder, teacher, data={"source": f"folder:{folder}", "val": f"folder:{other}"})
    with pytest.raises(UsageError, match=r"data\.val = .* has other classes than data\.source"):
        train(chosen, tmp_path / "run", False, False, QUIET)


def test_taps_by_path_reach_the_losses(folder: Path, teacher: Path, tmp_path: Path) -> None:
    taps = {"deep": "classifier.cbr:input"}
    chosen = distil(folder, teacher, distill={"method": "fitnet", "student_taps": taps, "teacher_taps": taps})
    train(chosen, tmp_path / "run", False, False, QUIET)
    assert all(value > 0 for value in logged(tmp_path / "run", "loss_fitnet"))


@pytest.mark.parametrize(
    ("distill", "error", "says"),
    [
        (
            {"student_taps": {"deep": "classifier.cbrr"}, "method": "fitnet"},
            UsageError,
            "Did you mean 'classifier.cbr'",
        ),
        ({"student_taps": {"deep": "classifier.cbr"}}, UsageError, "distill.student_taps.deep has no effect"),
    ],
    ids=str,
)
def test_taps_that_are_not_there_or_not_read(
    folder: Path, teacher: Path, tmp_path: Path, distill: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        train(distil(folder, teacher, distill=distill), tmp_path / "run", False, False, QUIET)


def test_a_feature_that_a_network_does_not_declare(folder: Path, teacher: Path, tmp_path: Path) -> None:
    chosen = distil(folder, teacher, distill={"method": "at"}, loss={"at": {"taps": ["stage9"]}})
    with pytest.raises(UsageError, match=r"no feature 'stage9'.*distill\.\w+_taps\.stage9=PATH"):
        train(chosen, tmp_path / "run", False, False, QUIET)
