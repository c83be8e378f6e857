"""A network that begins where a run ended: to be fine-tuned on other pictures, or in INT8."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from lfd.checkpoint import load_model, model_file
from lfd.config import Config
from lfd.data import Dataset
from lfd.errors import CheckpointError, UsageError
from lfd.evaluate import check_labels
from lfd.quantize.student import find
from lfd.spec import METADATA_KEY, ModelSpec, Preprocess
from lfd.weights import read_safetensors


def model_of(path: Path) -> str:
    """Return the name of a run's network.

    Raises:
        CheckpointError: It is no run, nor a file that lfd-train wrote.
        ModelError: Its specification is not valid.
    """
    file = model_file(path)
    metadata = read_safetensors(file)[1] if file.suffix == ".safetensors" else {}
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{file}: does not say which network it is. Fix: give --model or --student NAME too")
    return ModelSpec.from_json(metadata[METADATA_KEY], str(file)).model


def load_start(config: Config, data: Dataset, preprocess: Preprocess) -> tuple[nn.Module, str]:
    """Load the network that a run begins with.

    Args:
        config: Names it in `train.init`.
        data: What is to be learnt.
        preprocess: The input that it is to have; its size may be another one than before.

    Returns:
        The network in training, and a sentence on it.

    Raises:
        CheckpointError: It cannot be read.
        ModelError: Its classes are others than the data's.
        UsageError: It is another network, has another input, or was trained in INT8 otherwise than this run is to.
    """
    t, q = config.train, config.quantize
    path = Path(t.init)
    model, spec = load_model(path, (data.labels, preprocess.size_hw))
    if spec.model != t.model:
        raise UsageError(f"--init {path} is {spec.model}, the run's network {t.model}. Fix: give one of them alone")
    check_labels(spec.labels, data.labels, f"the data set {config.data.source}")
    had, has = ((p.mean, p.std, p.color) for p in (spec.preprocess, preprocess))
    if had != has:
        raise UsageError(
            f"--init {path} was trained on other values of a pixel (mean, deviation, order {had}) than "
            f"data.normalize = {config.data.normalize!r} gives. Fix: --set data.normalize=NAME as in its config.toml"
        )
    int8 = find(model)
    if int8 is not None and (not q.to or int8.target != q.target):
        raise UsageError(
            f"--init {path} was trained in INT8 for {int8.target}, its batch norms are folded. Fix: --quantize int8 "
            f"--quantize-target {int8.target}, or begin with the float run"
        )
    return model.train(), f"{spec.model} from {path}"


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a run's weights, its first 16 digits, for the record."""
    digest = hashlib.sha256()
    with model_file(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
