"""Tensors in files. Nothing here runs code out of a file: safetensors, or torch's weights_only."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lfd.errors import CheckpointError
from lfd.files import replacing

MAX_BYTES = 8 << 30


def save_tensors(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors.

    Raises:
        CheckpointError: The disk is full or not writable; an older file stays as it was.
    """
    plain: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().contiguous().cpu()
        place = tensor.untyped_storage().data_ptr()
        plain[key] = tensor.clone() if place in places else tensor  # tied weights, which safetensors refuses to write
        places.add(place)
    try:
        with replacing(path) as aside:
            aside.write_bytes(save(plain, metadata=metadata))
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a resume state: tensors, numbers, texts, lists and dictionaries of them.

    Raises:
        CheckpointError: The disk is full or not writable; an older file stays as it was.
    """
    try:
        with replacing(path) as aside:
            torch.save(state, aside)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        raise _not_written(path, error) from error


def _not_written(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:120]
    free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there" if path.parent.is_dir() else "no folder"
    return CheckpointError(
        f"{path}: cannot be written ({reason}; {free}); what was there before is untouched. "
        "Fix: free space on that disk, or write elsewhere with --out"
    )


def _check(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights as .safetensors or .pth")
    if not 0 < path.stat().st_size <= MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; expected 1 byte to 8 GiB of weights")


def load_state(path: Path) -> Any:
    """Read a file of torch.save without running code from it.

    Raises:
        CheckpointError: Missing, broken, or a pickle that holds more than data.
    """
    _check(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error says what matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: is not plain weights: it is broken, or its pickle asks to run code, which is refused. "
            "Fix: save the state_dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # garbage leads the unpickler to any exception there is
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(f"{path}: broken or cut short ({reason}); copy or make it again") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state_dict from .safetensors, or from a .pth that holds one, as it is or as `state_dict`.

    Raises:
        CheckpointError: Missing, broken, or not a state_dict.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    state = load_state(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: holds no state_dict; expected a dictionary of name to tensor")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Raises:
        CheckpointError: Missing or broken.
    """
    _check(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: broken or cut short ({str(error).splitlines()[0][:160]}); copy or make it again"
        ) from error


def check_values(state: dict[str, Tensor], origin: str) -> None:
    """Refuse values that no trained network has.

    Raises:
        CheckpointError: One is not finite, not dense, or a negative variance; the message names the tensor.
    """
    for key, value in state.items():
        if why := _unusable(key, value, value):
            raise CheckpointError(f"{origin}: has {key!r}, {why}; expected the weights of a trained network")


def _unusable(key: str, value: Tensor, like: Tensor) -> str:
    """Return what is wrong with a tensor's values, "" when nothing is."""
    if value.layout != torch.strided or value.is_quantized:
        return "which is not a plain dense tensor"
    if like.is_floating_point() and not value.is_floating_point():
        return f"which holds {value.dtype}"
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        return "which is not finite everywhere"
    if key.endswith("running_var") and bool((value < 0).any()):
        return "a negative variance"
    return ""


def fill(model: nn.Module, state: dict[str, Tensor], origin: str) -> None:
    """Load a state_dict; every key must be there and fit, but for what inference has no use for.

    A model whose file has no auxiliary head loses its own, which is for training alone. Counts of batches, which
    files from before PyTorch 0.4.1 lack and which nothing but momentum=None reads, start at 0.

    Raises:
        CheckpointError: Keys are missing, unknown or of another shape; the message names the first.
    """
    if isinstance(getattr(model, "aux_classifier", None), nn.Module) and not any(
        key.startswith("aux_classifier.") for key in state
    ):
        model.register_module("aux_classifier", None)
    wanted = model.state_dict()
    counts = {k: torch.zeros_like(v) for k, v in wanted.items() if k.endswith("num_batches_tracked")}
    state = {**counts, **state}
    problems = [f"lacks {k!r}" for k in wanted if k not in state]
    problems += [f"has {k!r}, which the model has not" for k in state if k not in wanted]
    problems += [f"has {k!r}, {why}" for k, v in state.items() if k in wanted and (why := _unusable(k, v, wanted[k]))]
    problems += [
        f"{k!r} has shape {tuple(state[k].shape)}, the model {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    if problems:
        raise CheckpointError(f"{origin}: does not fit the model: it {problems[0]} ({len(problems)} problems)")
    model.load_state_dict(state)
