"""The loop, end to end on a toy data set: what a run leaves, resumes and refuses."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lfd.checkpoint import CONTENTS, load_model
from lfd.config import Config
from lfd.errors import CheckpointError, DataError, TrainingError, UsageError
from lfd.files import locked
from lfd.models import create_model
from lfd.recipe import from_mapping, to_toml
from lfd.trainer import train
from lfd.weights import load_state, read_tensors
from tests.conftest import make_folder

QUIET = Console(quiet=True)


def config(folder: Path, steps: int = 6, **sections: Any) -> Config:
    record = {
        "train": {
            "model": "lraspp_mobilenet_v3_small",
            "weights": "none",
            "steps": steps,
            "batch": 4,
            "eval_every": 3,
            "log_every": 1,
            "device": "cpu",
        },
        "data": {"source": f"folder:{folder}"},
        "optimizer": {"name": "adamw", "lr": 2e-3},
        "distill": {},
        "loss": {},
    }
    for name, values in sections.items():
        record[name] = record[name] | values
    return from_mapping(record)


@pytest.fixture(scope="module")
def teacher(toy_run: Path) -> Path:
    """A teacher that has learnt the toy data."""
    return toy_run


def distilling(folder: Path, teacher: Path, sections: dict[str, Any] | None = None, **train_values: Any) -> Config:
    """LFD on the toy data; `sections` adds to a recipe's sections."""
    more = sections or {}
    return config(
        folder,
        train=more.get("train", {}) | train_values,
        distill={"teacher": str(teacher), "method": "lfd"} | more.get("distill", {}),
        **{name: values for name, values in more.items() if name not in ("train", "distill")},
    )


def test_a_run_leaves_what_it_promises(folder: Path, teacher: Path) -> None:
    assert {p.name for p in teacher.iterdir()} == set(CONTENTS)
    model, spec = load_model(teacher)
    fresh, _ = create_model(spec.model, 3)
    assert set(read_tensors(teacher / "model.safetensors")) == set(fresh.state_dict())
    assert spec.preprocess.size_hw == (48, 64) and spec.labels.names == ("ground", "sky", "thing")
    assert spec.provenance["data"] == "folder" and str(folder) not in spec.to_json()
    assert 0.6 < float(spec.provenance["miou"]) <= 1  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss_task" in line] == list(range(1, 61))
    assert [line["step"] for line in lines if "val_miou" in line] == [30, 60]
    assert not model.training


@pytest.mark.parametrize("method", ["kd", "lfd"])
def test_distilling_learns_and_logs_every_term(folder: Path, teacher: Path, tmp_path: Path, method: str) -> None:
    run = config(folder, 30, train={"eval_every": 30}, distill={"teacher": str(teacher), "method": method})
    best = train(run, tmp_path / "run", False, False, QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    terms = {"kd": {"loss_task", "loss_kd"}, "lfd": {f"loss_{n}" for n in ("task", "kd", "fea", "aux", "kl")}}[method]
    logged = [line for line in lines if "loss_task" in line]
    assert terms <= set(logged[-1])
    assert logged[20]["loss_kd"] < logged[0]["loss_kd"] and best > 0.3
    weights = [line["class_weight"] for line in lines if "class_weight" in line]
    assert len(weights) == (30 if method == "lfd" else 0) and all(set(w) == {"ground", "sky", "thing"} for w in weights)
    _, spec = load_model(tmp_path / "run")
    assert spec.provenance["method"] == method and spec.provenance["teacher"] == "lraspp_mobilenet_v3_small"


EVERYTHING = {
    "train": {"ema": 0.9, "accumulate": 2, "amp": "fp16"},
    "optimizer": {"clip_norm": 1.0, "warmup": 2, "schedule": "cosine"},
    "distill": {"balance": "ema"},
    "loss": {"lfd": {"class_mask": "kl", "shared_head": "teacher", "aux_bn": "joint", "aux_resolution": "feature"}},
    "data": {"size": "32x32"},
}
"""Whatever has a state of its own."""


@pytest.mark.parametrize(
    ("model", "stop", "sections"),
    [
        ("lraspp_mobilenet_v3_small", 3, {}),
        ("deeplabv3_resnet18_os16", 4, {"data": {"size": "32x32"}}),
        ("lraspp_mobilenet_v3_small", 4, EVERYTHING),
    ],
)
def test_resuming_equals_the_uninterrupted_run_bit_for_bit(
    folder: Path, teacher: Path, tmp_path: Path, model: str, stop: int, sections: dict[str, Any]
) -> None:
    """Where a validation was due at the stop; with dropout, which draws from torch's generator; with all states."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = distilling(folder, teacher, sections, model=model)
    train(run, whole, False, False, QUIET)
    stop_after(stop, lambda: train(run, parts, False, False, QUIET))
    assert load_state(parts / "resume.pt")["step"] == stop
    train(run, parts, True, False, QUIET)
    a, b = load_state(whole / "resume.pt"), load_state(parts / "resume.pt")
    assert a["step"] == b["step"] == 6 and a["best"] == b["best"]
    for part in ("distiller", "average"):
        assert set(a[part]) == set(b[part]) and all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert str(a["optimizer"]) == str(b["optimizer"]) and a["scaler"] == b["scaler"]
    assert bool(a["average"]) == (sections is EVERYTHING) == bool(a["scaler"])
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    steps = [
        json.loads(line)["step"] for line in (parts / "metrics.jsonl").read_text().splitlines() if "loss_task" in line
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_stop_at_the_last_step_still_gets_its_validation(folder: Path, tmp_path: Path) -> None:
    run = config(folder, 4)
    stop_after(4, lambda: train(run, tmp_path / "run", False, False, QUIET))
    train(run, tmp_path / "run", True, False, QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val_miou" in line] == [3, 4]


def test_a_log_that_cannot_be_written_is_one_error(folder: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = config(folder, 40, train={"eval_every": 40})
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(to_toml(given)) + 50, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: the log cannot be written"):
            train(given, tmp_path / "run", False, False, QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_edited_configuration_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(config(folder, 3), out, False, False, QUIET)
    with pytest.raises(UsageError, match=r"another train\.batch"):
        train(config(folder, 3, train={"batch": 8}), out, True, False, QUIET)
    train(config(folder, 3, data={"workers": 1}), out, True, False, QUIET)


def test_two_runs_in_one_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another process"):
        train(config(folder, 3), tmp_path, False, True, QUIET)


def test_a_run_that_fails_before_its_first_state_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("no space")

    monkeypatch.setattr("lfd.trainer.save_model", full)
    with pytest.raises(CheckpointError, match="no space"):
        train(config(folder, 3), tmp_path / "a/run", False, False, QUIET)
    assert not (tmp_path / "a/run").exists()


def stop_after(steps: int, run: Any) -> None:
    """Send this process Ctrl-C when a step has been logged, as a user would."""
    from lfd.runlog import RunLog

    original = RunLog.step

    def step(self: RunLog, number: int, *args: Any) -> None:
        original(self, number, *args)
        if number == steps:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "step", step)
        with pytest.raises(KeyboardInterrupt, match=f"stopped after step {steps}"):
            run()


def test_a_teacher_like_chance_stops_the_run_before_it_starts(folder: Path, tmp_path: Path) -> None:
    from lfd.checkpoint import save_model
    from lfd.data import open_dataset
    from lfd.spec import ModelSpec, Preprocess

    torch.manual_seed(0)
    model, _ = create_model("lraspp_mobilenet_v3_small", 3)
    labels = open_dataset(f"folder:{folder}", "val").labels
    save_model(tmp_path / "t.safetensors", model, ModelSpec("lraspp_mobilenet_v3_small", labels, Preprocess((48, 64))))
    with pytest.raises(TrainingError, match="nothing can be learnt"):
        train(distilling(folder, tmp_path / "t.safetensors"), tmp_path / "run", False, False, QUIET)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_its_term_and_pictures(folder: Path, tmp_path: Path) -> None:
    wild = config(folder, 20, optimizer={"name": "sgd", "lr": 100.0, "momentum": 0.99})
    with pytest.raises(TrainingError, match=r"step \d+: (task|gradient) is not finite, on the pictures 0\d\d, "):
        for _ in range(5):
            train(wild, tmp_path / "run", False, True, QUIET)


def test_too_few_pictures_for_a_batch(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "tiny", {"train": 3, "val": 2})
    with pytest.raises(DataError, match="3 training pictures; a batch has 4"):
        train(config(root), tmp_path / "run", False, False, QUIET)


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_and_end_with_130(folder: Path, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        out = tmp_path / number.name
        command = [
            sys.executable,
            "-m",
            "lfd.cli",
            "teacher",
            "--model",
            "lraspp_mobilenet_v3_small",
            "--weights",
            "none",
        ]
        command += ["--data", f"folder:{folder}", "--out", str(out), "--steps", "100000", "--batch", "4"]
        command += ["--set", "data.workers=0", "--set", "train.log_every=1", "--device", "cpu"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not ((out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "Traceback" not in errors and "--resume" in errors
        assert load_state(out / "resume.pt")["step"] >= 1
        assert not list(out.glob(".*partial*"))
