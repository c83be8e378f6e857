"""Networks with their ModelSpec on disk, alone or in a run directory.

A run directory holds

    config.toml            the configuration as run; `--recipe RUN/config.toml` repeats it
    model.safetensors      the best weights so far, a bare network; its metadata has the ModelSpec
    resume.pt              everything needed to go on exactly: weights, losses, optimiser, counters
    metrics.jsonl          one line a logged step or validation
    tensorboard/           the same for TensorBoard
    predictions.png        frame, truth and prediction for some validation pictures
    explain/               what `lfd-train explain` wrote about it
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from torch import Tensor, nn

from lfd.errors import CheckpointError, ModelError, UsageError, unknown
from lfd.models import cirkd, create_model
from lfd.models.external_outputs import check_input_size
from lfd.quantize.student import attach, find, target_in
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess
from lfd.weights import fill, read_safetensors, read_tensors, save_tensors

MODEL_FILE = "model.safetensors"
STATE_FILE = "resume.pt"

_WRAPPERS = ("module.", "model.", "network.")
"""What trainers put before every key."""

CONTENTS = ("config.toml", MODEL_FILE, STATE_FILE, "metrics.jsonl", "tensorboard", "predictions.png")


def check_run(out: Path) -> None:
    """Refuse to take a folder for a run that is none, before its files are replaced.

    Raises:
        UsageError: It has files, but not those that every run has.
    """
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and not found & {MODEL_FILE, STATE_FILE} and not {"config.toml", "metrics.jsonl"} <= found:
        raise UsageError(f"{out}: not a run of lfd-train, so --overwrite replaces nothing there; choose another folder")


def clear_run(out: Path) -> None:
    """Remove the files that a run, and `explain` in it, wrote to its directory, and nothing else."""
    explained = out / "explain" / "summary.json"
    names = []
    if explained.is_file():
        with suppress(ValueError, KeyError, TypeError):  # somebody's own file of that name stays
            names = [Path(str(name)).name for name in json.loads(explained.read_text(encoding="utf-8"))["files"]]
    for path in [out / name for name in CONTENTS] + [out / "explain" / name for name in names]:
        if path.is_file():
            path.unlink()
    for events in (out / "tensorboard").glob("events.out.tfevents.*"):
        events.unlink()
    for folder in (out / "tensorboard", out / "explain"):
        with suppress(OSError):  # not there, or with files of somebody else
            folder.rmdir()


def save_model(path: Path, model: nn.Module, spec: ModelSpec) -> None:
    """Write a network's weights with its ModelSpec as safetensors.

    Raises:
        CheckpointError: The disk is full or not writable; an older file stays as it was.
    """
    save_tensors(path, model.state_dict(), {METADATA_KEY: spec.to_json()})


def model_file(path: Path) -> Path:
    """Return the weights file of a run directory, or the path itself.

    Raises:
        CheckpointError: A folder that is not a run, or nothing there.
    """
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise CheckpointError(f"{path}: no {MODEL_FILE} in this folder; expected a run of lfd-train")
        return path / MODEL_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or file; expected a run of lfd-train, a .safetensors or a .pth")
    return path


def load_model(path: Path, adopt: tuple[Labels, tuple[int, int]] | None = None) -> tuple[nn.Module, ModelSpec]:
    """Load a network from a run directory, a .safetensors file that lfd-train wrote, or the CIRKD family's .pth.

    Args:
        path: Run or file.
        adopt: Classes and input size for a checkpoint of the CIRKD family, which does not say its own; None
            refuses such a file.

    Returns:
        The network in evaluation mode, and its specification. One that was trained in INT8 has its batch norms folded
        and computes in float until `lfd.quantize.student.as_int8` lets it do otherwise.

    Raises:
        CheckpointError: Missing, broken, without specification, or not fitting.
        MissingDependencyError: It was trained in INT8, and torchao is not installed.
    """
    file = model_file(path)
    if file.suffix != ".safetensors":
        return _adopt(file, adopt)
    state, metadata = read_safetensors(file)
    if METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{file}: has no ModelSpec in its metadata; expected a file written by lfd-train. "
            "Fix: `lfd-train import FILE --model NAME` makes one"
        )
    try:
        spec = ModelSpec.from_json(metadata[METADATA_KEY], str(file))
    except ModelError as error:
        raise CheckpointError(str(error)) from error
    try:
        model, _ = create_model(spec.model, len(spec.labels))
        if (target := target_in(state)) is not None:
            attach(model, target, spec.preprocess)
    except UsageError as error:
        raise CheckpointError(f"{file}: its network cannot be built here: {error}") from error
    fill(model, state, str(file))
    if (int8 := find(model)) is not None and not int8.sound():
        raise CheckpointError(
            f"{file}: its INT8 has a range or a factor that is none; expected positive ones, zero points inside"
        )
    return model.eval(), spec


def _adopt(file: Path, given: tuple[Labels, tuple[int, int]] | None) -> tuple[nn.Module, ModelSpec]:
    """Load a checkpoint of the CIRKD family with the classes and size that it does not say."""
    state = read_tensors(file)
    if cirkd.recognise(state) is None:
        raise CheckpointError(
            f"{file}: has weights but no ModelSpec (classes, input), and is not of the CIRKD family, whose "
            f"DeepLabV3 and PSPNet are known by their keys; expected a run of lfd-train or its {MODEL_FILE}. "
            "Fix: `lfd-train import FILE --model NAME` makes one of any network's state_dict"
        )
    if given is None:
        raise CheckpointError(
            f"{file}: a checkpoint of the CIRKD family, which does not say its classes and input size. "
            "Fix: `lfd-train import` makes a file that does"
        )
    labels, size_hw = given
    model, name, num_classes = cirkd.load(state, str(file))
    if num_classes != len(labels):
        raise CheckpointError(
            f"{file}: has {num_classes} classes, the data set {len(labels)}; expected a checkpoint of that data set"
        )
    return model, ModelSpec(name, labels, cirkd.preprocess(size_hw), provenance={"weights": "cirkd"})


NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation of RGB in [0, 1], by the names that networks' authors use; `caffe` is the CIRKD family's BGR."""


def parse_normalize(text: str, size_hw: tuple[int, int]) -> Preprocess:
    """Read how a network's authors prepared its input.

    Args:
        text: A name in NORMALIZATIONS, `caffe` (BGR, its mean subtracted, not divided), or mean and deviation of RGB
            in [0, 1] as `M,M,M/S,S,S`.
        size_hw: Input size.

    Raises:
        UsageError: Anything else.
    """
    if text == "caffe":
        return cirkd.preprocess(size_hw)
    if text in NORMALIZATIONS:
        return Preprocess(size_hw, *NORMALIZATIONS[text])
    if "/" not in text:
        raise unknown("normalization", text, ["caffe", *NORMALIZATIONS, "M,M,M/S,S,S"])
    try:
        (m0, m1, m2), (s0, s1, s2) = ([float(part) for part in half.split(",")] for half in text.split("/"))
        found = Preprocess(size_hw, (m0, m1, m2), (s0, s1, s2))
    except (ValueError, ModelError) as error:
        raise UsageError(
            f"normalization {text!r}; expected three means and three positive deviations of RGB, such as "
            "0.485,0.456,0.406/0.229,0.224,0.225"
        ) from error
    if max(*found.mean, *found.std) > 1:
        raise UsageError(f"normalization {text!r}; expected values for pixels in [0, 1]. Fix: divide them by 255")
    return found


def import_weights(path: Path, name: str, labels: Labels, preprocess: Preprocess) -> tuple[nn.Module, ModelSpec]:
    """Make a model of a bare state_dict.

    Args:
        path: A .pth or .safetensors.
        name: The network, as `lfd.models.create_model` takes it.
        labels: The classes it knows.
        preprocess: Its input.

    Returns:
        The network in evaluation mode, and its specification.

    Raises:
        CheckpointError: The file is missing or broken, or a tensor is missing, too much, or of another shape.
        UsageError: There is no such network, it does not take that size, or the file has a specification already.
    """
    if path.suffix == ".safetensors" and METADATA_KEY in read_safetensors(path)[1]:
        raise UsageError(f"{path}: knows its classes and input already; use it as it is")
    state = read_tensors(path)
    model, _ = create_model(name, len(labels))
    check_input_size(model, preprocess.size_hw)
    try:
        fill(model, _strip(state, model.state_dict()), str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}, as {name} of {len(labels)} classes") from error
    return model.eval(), ModelSpec(name, labels, preprocess, provenance={"weights": "import"})


def _strip(state: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Take off what trainers put around a network: a prefix that every key has, and the network's own have not."""
    for prefix in _WRAPPERS * 2:  # a trainer's module around DistributedDataParallel's
        if all(key.startswith(prefix) for key in state) and not all(key.startswith(prefix) for key in wanted):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
