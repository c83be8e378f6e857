"""Two processes under torchrun against one with the same batch; and what goes wrong there."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rich.console import Console

from lfd.distributed import all_sum, broadcast, gather, group, rank, share, world_size
from lfd.errors import UsageError
from lfd.models import create_model
from lfd.recipe import from_mapping, read_recipe, to_toml
from lfd.trainer import train
from lfd.weights import load_state, read_tensors
from tests.conftest import make_folder
from tests.lfd.test_trainer import QUIET, config, stop_after

STEPS = 2
"""The second has momentum, moved class weights, and the term that begins late."""


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of which every second is void almost everywhere: means over processes differ from the overall mean."""
    root = make_folder(tmp_path_factory.mktemp("uneven") / "toy", {"train": 16, "val": 5, "test": 2})
    for index, path in enumerate(sorted((root / "masks/train").iterdir())):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if index % 2:
            mask[:, : 40 + index] = 255
        cv2.imwrite(str(path), mask)
    return root


@pytest.fixture(scope="module")
def teacher(toy_run: Path) -> Path:
    return toy_run


def recipe(uneven: Path, teacher: Path, path: Path, more: dict[str, Any] | None = None, **train_values: Any) -> Path:
    """LFD with SGD, whose step shows a difference in a gradient in proportion, where AdamW's hides its size.

    Two steps at a low rate, because a fresh network multiplies rounding errors: weights that begin 1e-5 apart
    end four steps 4e-4 apart in one process.
    """
    sections: dict[str, dict[str, Any]] = {
        "train": {"batch": 8, "eval_every": 1, "ema": 0.5} | train_values,
        "data": {"scale": (0.8, 1.25)},
        "optimizer": {"name": "sgd", "lr": 5e-4, "momentum": 0.9},
        "distill": {"teacher": str(teacher), "method": "lfd"},
    }
    for name, values in (more or {}).items():
        sections[name] = sections.get(name, {}) | values
    run = config(uneven, STEPS, **sections)
    path.write_text(to_toml(run))
    return path


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "lfd.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "train": {"accumulate": 2},
            "distill": {"balance": "ema"},
            "optimizer": {"clip_norm": 1.0},
            "loss": {"lfd": {"class_mask": "kl", "aux_bn": "joint", "aux_resolution": "feature"}},
        },
    ],
    ids=["defaults", "all states"],
)
def test_two_processes_equal_one_with_the_same_batch(
    uneven: Path, teacher: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    path = recipe(uneven, teacher, tmp_path / "r.toml", more)
    two = torchrun("distill", "--recipe", str(path), "--out", f"{tmp_path}/two")
    run = from_mapping(read_recipe(str(tmp_path / "r.toml")))
    best = train(run, tmp_path / "one", False, False, QUIET)
    output, errors = two.communicate(timeout=200)
    assert two.returncode == 0 and "Warning" not in errors, errors
    assert output.count("model    lraspp") == 1, "one process speaks"
    a, b = (load_state(tmp_path / name / "resume.pt") for name in ("one", "two"))
    for part in ("distiller", "average"):
        assert set(a[part]) == set(b[part])
        for key, value in a[part].items():
            assert torch.allclose(value.float(), b[part][key].float(), rtol=1e-5, atol=1e-5), key
    torch.manual_seed(0)
    fresh = create_model("lraspp_mobilenet_v3_small", 3)[0].state_dict()
    moved = max(float((b["distiller"][f"student.{k}"].float() - v.float()).abs().max()) for k, v in fresh.items())
    assert moved > 1e-3, "the steps are far larger than the tolerance"
    scaffolding = {"class_mask.weight", "adapter.weight", "head.0.weight", "head.1.running_var"}
    assert scaffolding <= {key.removeprefix("losses.1.") for key in a["distiller"]}
    assert len(b["rng"]) == 2 and b["best"] == pytest.approx(best, abs=1e-3)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    terms = [[line for line in log if "loss_task" in line] for log in lines]
    assert len(terms[1]) == STEPS
    for one, other in zip(*terms, strict=True):
        assert all(other[key] == pytest.approx(one[key], rel=1e-4) for key in one if key.startswith("loss_"))
    model = read_tensors(tmp_path / "two/model.safetensors")
    assert set(model) == set(read_tensors(tmp_path / "one/model.safetensors"))


@pytest.mark.slow
def test_sigterm_stops_both_and_one_process_goes_on(uneven: Path, teacher: Path, tmp_path: Path) -> None:
    path = recipe(uneven, teacher, tmp_path / "r.toml", steps=100_000, eval_every=100_000)
    out = tmp_path / "run"
    process = torchrun("distill", "--recipe", str(path), "--out", str(out))
    deadline = time.monotonic() + 120
    while not ((out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert "Traceback (most recent call last):\n  File" not in errors.split("torch/distributed")[0]
    assert "stopped after step" in errors
    state = load_state(out / "resume.pt")
    assert state["step"] >= 1 and len(state["rng"]) == 2
    said = Console(record=True, width=200, file=io.StringIO())
    go_on = from_mapping(read_recipe(str(out / "config.toml")))
    stop_after(state["step"] + 1, lambda: train(go_on, out, True, False, said))
    assert "2 processes before, 1 now" in said.export_text()
    assert load_state(out / "resume.pt")["step"] == state["step"] + 1


@pytest.mark.parametrize("device", ["cuda:1", "meta"])
def test_a_numbered_device_is_refused_where_each_process_takes_its_own(
    monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="expected auto, cpu, cuda"), group(device):
        pass


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--nproc-per-node 1"), group("cuda"):
        pass


def test_alone_everything_is_the_identity() -> None:
    value = torch.tensor([1.0, 2.0])
    assert torch.equal(all_sum(value), value) and torch.equal(share(value), value)
    assert gather(3) == [3] and broadcast("x") == "x" and (world_size(), rank()) == (1, 0)
    with group("cpu") as own:
        assert own is None
