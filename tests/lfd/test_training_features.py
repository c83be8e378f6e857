"""What a run can be told to do beside plain steps: each against what it is equal to."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lfd.checkpoint import load_model, save_model
from lfd.data import open_dataset
from lfd.ema import Average
from lfd.errors import CheckpointError, DataError, TrainingError, UsageError
from lfd.models import create_model
from lfd.spec import ModelSpec, Preprocess
from lfd.trainer import train
from lfd.weights import load_state
from tests.conftest import make_folder
from tests.lfd.test_trainer import QUIET, config


def state(folder: Path, out: Path, steps: int = 3, **sections: Any) -> dict[str, Any]:
    train(config(folder, steps, **sections), out, False, False, QUIET)
    found: dict[str, Any] = load_state(out / "resume.pt")
    return found


def test_the_average_is_the_recursion_of_its_formula() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False), torch.nn.BatchNorm2d(1))
    values = [1.0, 2.0, 4.0, 8.0]
    average = Average(model, 0.3)
    expected = values[0]
    for n, value in enumerate(values):
        with torch.no_grad():
            model[0].weight.fill_(value)
            model[1].running_mean.fill_(value)
            model[1].num_batches_tracked.fill_(n)
        average.update(model)
        if n:  # the first update copies
            decay = min(0.3, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        assert float(average.module[0].weight.detach()) == pytest.approx(expected, rel=1e-6)
        assert float(average.module[1].running_mean) == pytest.approx(expected, rel=1e-6)
        assert int(average.module[1].num_batches_tracked) == n


def test_the_average_is_what_is_kept(folder: Path, tmp_path: Path) -> None:
    found = state(folder, tmp_path / "run", train={"ema": 0.9})
    model, spec = load_model(tmp_path / "run")
    kept = model.state_dict()
    fresh, _ = create_model(spec.model, 3)
    assert set(kept) == set(fresh.state_dict())
    key = "classifier.high_classifier.weight"
    assert torch.equal(kept[key], found["average"][f"module.{key}"])
    assert not torch.equal(kept[key], found["distiller"][f"student.{key}"])


def test_accumulating_two_parts_is_the_mean_of_their_gradients() -> None:
    """With batch norm in evaluation, where parts do not see each other, they make the whole batch's step."""
    from lfd.distiller import Distiller
    from lfd.methods import plan
    from lfd.spec import Preprocess

    torch.manual_seed(0)
    distiller = Distiller(create_model("lraspp_mobilenet_v3_small", 3)[0], Preprocess((48, 64)), 3, plan("none")).eval()
    image = torch.randint(0, 256, (4, 3, 48, 64), dtype=torch.uint8)
    target = torch.randint(0, 3, (4, 48, 64))
    distiller(image, target).total.backward()
    whole = [p.grad.clone() for p in distiller.parameters() if p.grad is not None]
    distiller.zero_grad()
    for part in (slice(0, 2), slice(2, 4)):
        (distiller(image[part], target[part]).total / 2).backward()
    parts = [p.grad for p in distiller.parameters() if p.grad is not None]
    assert len(whole) == len(parts) > 100
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(whole, parts, strict=True))


def test_accumulation_shows_the_same_pictures_and_logs_their_mean(folder: Path, tmp_path: Path) -> None:
    frozen = {"optimizer": {"lr": 0.0}}
    for name, parts in (("one", 1), ("two", 2)):
        state(folder, tmp_path / name, train={"accumulate": parts}, **frozen)
    task = [
        [json.loads(line).get("loss_task") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    a, b = ([v for v in values if v is not None] for values in task)
    # Not equal: each part is normalised by its own batch statistics.
    assert len(a) == len(b) == 3 and a == pytest.approx(b, rel=0.2) and a != b


def test_clipping_bounds_the_step(folder: Path, tmp_path: Path) -> None:
    """SGD without momentum, decay or batch-norm buffers: the weights move by at most lr times the norm."""
    sgd = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    moved = {}
    for norm in (0.5, 0.0):
        before = state(folder, tmp_path / f"a{norm}", 1, optimizer={**sgd, "lr": 0.0})["distiller"]
        after = state(folder, tmp_path / f"b{norm}", 1, optimizer={**sgd, "clip_norm": norm})["distiller"]
        names = [k for k in before if "running" not in k and "tracked" not in k]
        moved[norm] = float(torch.sqrt(sum(((after[k] - before[k]) ** 2).sum() for k in names)))
    assert moved[0.5] == pytest.approx(0.5, rel=1e-3) and moved[0.0] > 0.6


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_trains_and_stays_near_float(folder: Path, tmp_path: Path, amp: str) -> None:
    half = state(folder, tmp_path / amp, 2, train={"amp": amp})
    full = state(folder, tmp_path / "off", 2)
    assert bool(half["scaler"]) == (amp == "fp16")
    for key, value in full["distiller"].items():
        assert torch.isfinite(half["distiller"][key]).all() and half["distiller"][key].dtype == value.dtype


def test_decay_of_norms_and_biases_is_a_choice(folder: Path, tmp_path: Path) -> None:
    """Weights that get no gradient in a step of rate lr shrink by 1 - lr * decay: AdamW, with lr only."""
    from lfd.config import OptimizerConfig
    from lfd.schedule import build_optimizer

    model = torch.nn.BatchNorm2d(2)
    for decay_norms, expected in ((False, 1.0), (True, 1 - 0.5 * 0.1)):
        torch.nn.init.ones_(model.weight)
        optimizer = build_optimizer(
            OptimizerConfig(name="adamw", lr=0.5, weight_decay=0.1, decay_norms=decay_norms), model
        )
        model.weight.grad = torch.zeros(2)
        model.bias.grad = torch.zeros(2)
        optimizer.step()
        assert model.weight.tolist() == pytest.approx([expected] * 2)


def test_checkpoints_between_validations(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfd.resume import RunState

    saved: list[int] = []
    monkeypatch.setattr(RunState, "save", lambda _, progress: saved.append(progress.step))
    train(config(folder, 8, train={"eval_every": 4, "save_every": 3}), tmp_path / "run", False, False, QUIET)
    assert saved == [3, 4, 6, 8]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"train": {"batch": 6, "accumulate": 4}}, "not a multiple of train.accumulate = 4"),
        ({"train": {"batch": 4, "accumulate": 4}}, "leaves 1 picture to a batch norm at a time"),
        ({"distill": {"balance": "ema"}}, "method 'none' balances nothing"),
        ({"distill": {"weights": {"fea": 1.0}}}, "loss weight of method 'none' 'fea'"),
        ({"loss": {"lfd": {"spatial_mask": "gap"}}}, r"\[loss.lfd\] has no effect"),
        ({"loss": {"ldf": {}}}, "Did you mean 'lfd'"),
        ({"distill": {"method": "lfd"}}, "needs a teacher"),
        ({"distill": {"teacher": "t"}}, "method 'none' has no use for a teacher"),
        ({"distill": {"weights": {"task": 0.0}}}, "every loss weight of method 'none' is 0"),
        ({"train": {"weights": "imagenet"}, "data": {"normalize": "caffe"}}, "--set data.normalize=imagenet"),
    ],
)
def test_what_has_no_effect_is_refused_before_anything_is_read(
    tmp_path: Path, sections: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        train(config(tmp_path / "nowhere", **sections), tmp_path / "run", False, False, QUIET)
    assert not (tmp_path / "run").exists()


def test_a_state_without_its_average_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = state(folder, out, train={"ema": 0.9})
    torch.save({**found, "average": {}}, out / "resume.pt")
    with pytest.raises(CheckpointError, match="not the state of this run"):
        train(config(folder, 3, train={"ema": 0.9}), out, True, False, QUIET)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: float
) -> None:
    """The loss of that step is finite; without this the next step's pictures would be blamed, and the state spoilt."""
    from lfd.stepper import Stepper

    original = Stepper._backward

    def spoil(self: Stepper, number: int, loader: Any) -> Any:
        found = original(self, number, loader)
        if number == 2:
            self._trained[5].grad[:] = float("nan")
        return found

    monkeypatch.setattr(Stepper, "_backward", spoil)
    run = config(folder, 6, train={"save_every": 1}, optimizer={"clip_norm": clip})
    with pytest.raises(TrainingError, match=r"step 3: gradient is not finite, on the pictures 0\d\d, "):
        train(run, tmp_path / "run", False, False, QUIET)
    found = load_state(tmp_path / "run/resume.pt")
    assert found["step"] == 2 and all(torch.isfinite(v).all() for v in found["distiller"].values())


def test_a_step_that_nobody_has_looked_at_is_not_saved_on_stopping(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a step's terms are read after the next step is queued."""
    from lfd.stepper import Stepper
    from lfd.watch import Watch

    original, settle = Stepper._backward, Watch.settle

    def spoil(self: Stepper, number: int, loader: Any) -> Any:
        total, terms, seen = original(self, number, loader)
        if number == 2:
            signal.raise_signal(signal.SIGTERM)
            terms["task"] = terms["task"] * float("nan")
        return total, terms, seen

    def late(self: Watch, everything: bool) -> Any:
        return settle(self, everything) if everything else []

    monkeypatch.setattr(Stepper, "_backward", spoil)
    monkeypatch.setattr(Watch, "settle", late)
    with pytest.raises(TrainingError, match="step 3: task is not finite"):
        train(config(folder, 6, train={"save_every": 2}), tmp_path / "run", False, False, QUIET)
    assert load_state(tmp_path / "run/resume.pt")["step"] == 2


def test_a_val_split_without_labels_is_said_before_training(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "film", {"train": 4, "val": 2})
    for path in (root / "masks/val").iterdir():
        cv2.imwrite(str(path), np.full((48, 64), 255, np.uint8))
    with pytest.raises(DataError, match="no labelled pixel in its 2 pictures for choosing the best weights"):
        train(config(root), tmp_path / "run", False, False, QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_compiled_training_stays_near_plain_training(
    folder: Path, toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Dynamo with all hooks, in the backend that needs no compiler."""
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: plain(module, backend="eager"))
    distill = {"teacher": str(toy_run), "method": "lfd"}
    a, b = (
        state(folder, tmp_path / str(on), 2, train={"compile": on, "ema": 0.5}, distill=distill) for on in (True, False)
    )
    assert set(a["distiller"]) == set(b["distiller"])
    for key, value in b["distiller"].items():
        assert torch.allclose(a["distiller"][key].float(), value.float(), rtol=1e-3, atol=1e-4), key


def test_train_pictures_without_labels_need_a_teacher(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "film", {"train": 4, "val": 2})
    for path in (root / "masks/train").iterdir():
        cv2.imwrite(str(path), np.full((48, 64), 255, np.uint8))
    with pytest.raises(DataError, match="no labelled pixel in its 4 pictures for training without a teacher"):
        train(config(root), tmp_path / "run", False, False, QUIET)


def test_a_crop_that_no_picture_fills_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.crop = '97x128'; expected at most 96x128"):
        train(config(folder, data={"crop": "97x128"}), tmp_path / "run", False, False, QUIET)
    state(folder, tmp_path / "run", 1, data={"crop": "96x128"})


def test_a_disk_too_small_is_said_before_the_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    monkeypatch.setattr("lfd.resume.shutil.disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    with pytest.raises(CheckpointError, match=r"3 MB free on that disk; a run of this model keeps up to \d\d MB"):
        train(config(folder), tmp_path / "run", False, False, QUIET)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_pictures_and_teacher(folder: Path, toy_run: Path, tmp_path: Path) -> None:
    for name in ("a", "moved"):
        shutil.copytree(toy_run, tmp_path / name)
    model, spec = load_model(toy_run)
    with torch.no_grad():
        next(model.parameters())[0] *= 1.001
    save_model(tmp_path / "b/model.safetensors", model, spec)
    shutil.copytree(folder, tmp_path / "data")

    def run(teacher: str, data: Path = folder) -> Any:
        return config(data, 1, distill={"teacher": str(tmp_path / teacher), "method": "kd"})

    out = tmp_path / "run"
    train(run("a"), out, False, False, QUIET)
    train(run("moved", tmp_path / "data"), out, True, False, QUIET)
    assert "moved" in (out / "config.toml").read_text()
    for other in (run("b"), run("a", make_folder(tmp_path / "other", {"train": 16, "val": 4}, seed=1))):
        with pytest.raises(UsageError, match="other pictures, another teacher or another --init"):
            train(other, out, True, False, QUIET)
    with pytest.raises(CheckpointError, match="no such run or file; --teacher RUN"):
        train(run("gone"), out, True, False, QUIET)


def test_a_resumed_run_keeps_the_weights_that_it_began_with(folder: Path, tmp_path: Path) -> None:
    """Wherever they lie now: which ones they are, and not the path, is what a run is of."""
    labels = open_dataset(f"folder:{folder}", "val").labels
    for seed in (0, 1):
        torch.manual_seed(seed)
        model, name = create_model("lraspp_mobilenet_v3_small", 3)[0], "lraspp_mobilenet_v3_small"
        save_model(tmp_path / f"{seed}.safetensors", model, ModelSpec(name, labels, Preprocess((48, 64))))
    shutil.copy(tmp_path / "0.safetensors", tmp_path / "moved.safetensors")

    def begun(by: str) -> Any:
        return config(folder, 1, train={"init": str(tmp_path / f"{by}.safetensors")})

    out = tmp_path / "run"
    train(begun("0"), out, False, False, QUIET)
    train(begun("moved"), out, True, False, QUIET)
    assert "moved" in (out / "config.toml").read_text()
    for other in (begun("1"), config(folder, 1)):
        with pytest.raises(UsageError, match="another --init than are there now"):
            train(other, out, True, False, QUIET)
    with pytest.raises(CheckpointError, match="no such run"):
        train(begun("gone"), out, True, False, QUIET)


def test_a_run_never_replaces_its_teacher_nor_what_is_no_run(folder: Path, toy_run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(toy_run, teacher)
    for named in (teacher, teacher / "model.safetensors"):
        run = config(folder, 3, distill={"teacher": str(named), "method": "kd"})
        with pytest.raises(UsageError, match="is the teacher"):
            train(run, teacher, False, True, QUIET)
    mine = tmp_path / "mine"
    (mine / "tensorboard").mkdir(parents=True)
    (mine / "config.toml").write_text("mine")
    with pytest.raises(UsageError, match="not a run of lfd-train"):
        train(config(folder, 3), mine, False, True, QUIET)
    assert (mine / "config.toml").read_text() == "mine"
    notes = [teacher / "tensorboard/mine.txt", teacher / "explain/mine.txt", teacher / "mine.txt"]
    (teacher / "explain").mkdir()
    (teacher / "explain/summary.json").write_text('{"files": ["a.png", "summary.json", "../../mine/config.toml"]}')
    for path in (*notes, teacher / "explain/a.png"):
        path.write_text("x")
    train(config(folder, 3), teacher, False, True, QUIET)
    assert all(path.is_file() for path in notes) and not (teacher / "explain/a.png").exists()
    assert (mine / "config.toml").is_file()


def test_a_failing_start_leaves_the_older_run_as_it_was(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = state(folder, out)
    with pytest.raises(DataError):
        train(config(tmp_path / "nowhere"), out, False, True, QUIET)
    assert load_state(out / "resume.pt")["step"] == before["step"] and (out / "model.safetensors").is_file()
