"""The accuracy of a model as deployed: one measurement for checkpoint, ONNX file and benchmark.

Frames are fitted to the model, class maps are brought back to the size of the labels, and the
pixels are counted there, so that a small input size shows in the number. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lfd.data.base import Dataset
from lfd.errors import ModelError
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, fit_frame, restore_map
from lfd.spec import Labels, Preprocess


def evaluate(
    predict: Callable[[Image], Image],
    dataset: Dataset,
    preprocess: Preprocess,
    progress: Callable[[int, int], None] | None = None,
    indices: Iterable[int] | None = None,
) -> ConfusionMatrix:
    """Score a model on every picture of a data set, at the labels' own size.

    Args:
        predict: Takes a frame, (h, w, 3) BGR uint8 at the model's size; returns its class map,
            (h, w) uint8.
        dataset: Labelled pictures.
        preprocess: How the model's input is made.
        progress: Called after each picture with its number from 1 and how many there are.
        indices: Which pictures; all of them by default.

    Raises:
        DataError: A picture or its labels cannot be read.
        ModelError: `predict` returned something other than a class map of this size and these classes.
    """
    matrix = ConfusionMatrix(len(dataset.labels))
    # By index: a Dataset need not be iterable, and without IndexError plain iteration never ends.
    for index in range(len(dataset)) if indices is None else indices:
        sample = dataset[index]
        class_map = predict(fit_frame(sample.image, preprocess))
        if class_map.shape != preprocess.size_hw:
            raise ModelError(
                f"the class map of {sample.name} has shape {class_map.shape}; expected {preprocess.size_hw}, "
                "the model's size. Fix: export the model again"
            )
        height, width = sample.mask.shape
        try:
            matrix.update(sample.mask, restore_map(class_map, preprocess, (height, width)))
        except ValueError as error:
            raise ModelError(f"the class map of {sample.name} does not fit the data set: {error}") from error
        if progress is not None:
            progress(index + 1, len(dataset))
    return matrix


def check_labels(model: Labels, data: Labels, what: str) -> None:
    """Refuse to score a model on labels that mean something else; colours do not matter.

    Args:
        model: The classes of the model.
        data: The classes it is held against.
        what: Whose classes `data` are, for the message, such as "the data set camvid:PATH".

    Raises:
        ModelError: The class names or their order differ.
    """
    if model.names == data.names:
        return
    pairs = zip(model.names, data.names, strict=False)
    shared = min(len(model), len(data))
    at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), shared)
    ours, theirs = (names[at] if at < len(names) else "none" for names in (model.names, data.names))
    raise ModelError(
        f"the model has {len(model)} classes and {what} has {len(data)}; the first that differs is "
        f"class {at}: {ours} in the model, {theirs} in {what}. Fix: take both from the same data set"
    )
