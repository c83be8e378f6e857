"""What a graph must be for every backend: one uint8 frame in, class map or logits out, as its ModelSpec says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lfd.errors import ModelError
from lfd.preprocess import Image
from lfd.spec import ModelSpec

Form = tuple[str, list[int | None]]
"""Type of an input or output, `u8`, `f32` or the runtime's own word, and its shape, None where it is open."""


def check_graph(path: Path, spec: ModelSpec, inputs: Sequence[Form], outputs: Sequence[Form]) -> int | None:
    """Hold a graph against its specification; return its batch, None for an open one.

    Raises:
        ModelError: It takes or gives something else.
    """
    wanted = [*spec.preprocess.size_hw, 3]
    if len(inputs) != 1 or len(outputs) != 1 or inputs[0][0] != "u8":
        raise ModelError(f"{path}: its graph does not take one uint8 frame. Fix: write it with lfd-export onnx")
    taken, (kind, given) = inputs[0][1], outputs[0]
    if taken[1:] != wanted:
        raise ModelError(f"{path}: takes {taken[1:]}, but its ModelSpec says {wanted}. Fix: export again")
    if (kind, len(given)) != {"class_map": ("u8", 3), "logits": ("f32", 4)}[spec.output]:
        raise ModelError(f"{path}: gives {kind} {given}, but its ModelSpec says {spec.output}. Fix: export again")
    if spec.output == "logits" and given[1] != len(spec.labels):
        raise ModelError(
            f"{path}: gives {given[1]} classes, but its ModelSpec names {len(spec.labels)}. Fix: export again"
        )
    return taken[0]


def check_batch(batch: Image, spec: ModelSpec, size: int | None) -> None:
    """Refuse frames that do not fit a model.

    Args:
        batch: (B, H, W, 3).
        spec: The model's.
        size: Its batch, None for an open one.

    Raises:
        ModelError: Another shape.
    """
    wanted = (*spec.preprocess.size_hw, 3)
    if batch.shape[1:] != wanted or size not in (None, len(batch)):
        raise ModelError(f"a batch of shape {batch.shape}; this model takes ({size}, {wanted})")
