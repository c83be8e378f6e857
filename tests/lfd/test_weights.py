from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from lfd.checkpoint import load_model, save_model
from lfd.data.camvid import LABELS
from lfd.errors import CheckpointError
from lfd.models import create_model
from lfd.spec import ModelSpec, Preprocess
from lfd.weights import fill, load_state, read_tensors, save_state, save_tensors

SPEC = ModelSpec("lraspp_mobilenet_v3_small", LABELS, Preprocess((32, 32)))


class Payload:
    """Pickles to a call of os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_model_comes_back_with_its_spec_and_a_fresh_students_keys(tmp_path: Path) -> None:
    model, _ = create_model(SPEC.model, len(LABELS))
    save_model(tmp_path / "model.safetensors", model, SPEC)
    loaded, spec = load_model(tmp_path)
    assert spec == SPEC and not loaded.training
    fresh, _ = create_model(SPEC.model, len(LABELS))
    assert set(read_tensors(tmp_path / "model.safetensors")) == set(fresh.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    marker, path = tmp_path / "pwned", tmp_path / f"model{suffix}"
    with path.open("wb") as file:
        pickle.dump({"state_dict": Payload(marker)}, file)
    for read in (read_tensors, load_model):
        with pytest.raises(CheckpointError, match="model"):
            read(path)
    torch.save({"state_dict": Payload(marker)}, path)
    with pytest.raises(CheckpointError, match="model"):
        read_tensors(path)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "missing"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {"a": torch.randn(100, 100)}
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_tensors(path, state, {})
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "noise": os.urandom(5000)}[damage])
    with pytest.raises(CheckpointError, match="weights") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": {"a": 1}}])
def test_data_that_is_no_state_dict_is_named(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_the_usual_wrappings_are_taken_off(tmp_path: Path, wrap) -> None:
    state = {"a.weight": torch.randn(2)}
    torch.save(wrap(state), tmp_path / "x.pth")
    assert torch.equal(read_tensors(tmp_path / "x.pth")["a.weight"], state["a.weight"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("weight"), "lacks 'weight'"),
        (lambda s: s.update(extra=torch.zeros(1)), "has 'extra'"),
        (lambda s: s.update(bias=torch.zeros(9)), r"'bias' has shape \(9,\), the model \(2,\)"),
    ],
)
def test_keys_that_do_not_fit_are_named(change, says: str) -> None:
    model = nn.Linear(3, 2)
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=says):
        fill(model, state, "file")


@pytest.mark.parametrize(
    "save",
    [lambda p: save_tensors(p, {"a": torch.zeros(10**6)}, {}), lambda p: save_state(p, {"a": torch.zeros(10**6)})],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, save) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_model_without_a_spec_is_named(tmp_path: Path) -> None:
    save_tensors(tmp_path / "bare.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="no ModelSpec"):
        load_model(tmp_path / "bare.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="no ModelSpec"):
        load_model(tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        load_model(tmp_path)


def test_tied_weights_are_written_and_come_back(tmp_path: Path) -> None:
    model = nn.Module()
    model.first = model.second = nn.Conv2d(3, 3, 1)
    model.register_buffer("part", model.first.weight.detach()[:2])
    save_tensors(tmp_path / "x.safetensors", model.state_dict(), {})
    state = read_tensors(tmp_path / "x.safetensors")
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_state_round_trip(tmp_path: Path) -> None:
    state = {"step": 3, "best": 0.5, "rng": torch.get_rng_state(), "nested": {"a": [torch.ones(2)]}}
    save_state(tmp_path / "s.pt", state)
    loaded = load_state(tmp_path / "s.pt")
    assert loaded["step"] == 3 and torch.equal(loaded["rng"], state["rng"])
