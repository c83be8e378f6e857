"""What a model is and how to use it: the one value that travels from the data set to the report.

It is born with the data set, saved in the checkpoint, embedded in the ONNX file, obeyed by the
runtime and printed in the report, so that nobody types a mean or a class name twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lfd.errors import ModelError

SCHEMA = 1
METADATA_KEY = "lfd_model_spec"
"""Key under which ONNX and safetensors files carry the specification as JSON."""

MAX_JSON_BYTES = 1 << 20
MAX_SIDE = 1 << 14
MAX_NAME = 64

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Attributes:
        names: One name a class; the position is the label value.
        colors: One RGB colour a class, each component in [0, 255].
        ignore_index: Label value of void pixels, which are neither trained on nor scored.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255

    def __post_init__(self) -> None:
        _check(1 <= len(self.names) <= 255, f"{len(self.names)} classes; expected 1 to 255")
        _check(len(set(self.names)) == len(self.names), "two classes have the same name")
        named = all(0 < len(name) <= MAX_NAME and name.isprintable() for name in self.names)
        _check(named, f"a class name is empty, not printable or longer than {MAX_NAME} characters")
        _check(len(self.colors) == len(self.names), f"{len(self.colors)} colors for {len(self.names)} classes")
        _check(all(0 <= v <= 255 for c in self.colors for v in c), "a color component outside [0, 255]")
        _check(len(self.names) <= self.ignore_index <= 255, f"ignore_index {self.ignore_index} is a class or above 255")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Preprocess:
    """How a frame becomes the network's input.

    Attributes:
        size_hw: Height and width that the network takes.
        mean: Per channel, in the order of `color`, for values in [0, 1].
        std: Likewise; the input is (value / 255 - mean) / std.
        resize: `stretch` to the size, or `letterbox`: keep the aspect and pad.
        color: Channel order that the network was trained on.
    """

    size_hw: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: Literal["stretch", "letterbox"] = "stretch"
    color: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        _check(all(0 < side <= MAX_SIDE for side in self.size_hw), f"size_hw {self.size_hw}; expected 1 to {MAX_SIDE}")
        _check(all(-1e4 < m < 1e4 for m in self.mean), f"mean {self.mean} is not finite or too large")
        _check(all(1e-6 < s < 1e4 for s in self.std), f"std {self.std}; expected positive numbers")
        _check(self.resize in ("stretch", "letterbox"), f"resize {self.resize!r}; expected stretch or letterbox")
        _check(self.color in ("RGB", "BGR"), f"color {self.color!r}; expected RGB or BGR")


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, classes, input, output and origin.

    Attributes:
        model: Name that `lfd.models.create_model` takes.
        labels: Its classes.
        preprocess: Its input.
        output: `class_map`, (B, H, W) uint8; or `logits`, (B, K, H, W) float32.
        provenance: Where it came from, scalars only: data, method, teacher, miou, params, macs, ...
        schema: Version of this record.
    """

    model: str
    labels: Labels
    preprocess: Preprocess
    output: Literal["class_map", "logits"] = "class_map"
    provenance: Mapping[str, Scalar] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _check(self.schema == SCHEMA, f"schema {self.schema}; this version reads {SCHEMA}. Fix: export the model again")
        _check(self.output in ("class_map", "logits"), f"output {self.output!r}; expected class_map or logits")
        scalars = all(isinstance(k, str) and isinstance(v, Scalar) for k, v in self.provenance.items())
        _check(scalars, "provenance holds something other than text, numbers and truth values")
        finite = all(math.isfinite(v) for v in self.provenance.values() if isinstance(v, float))
        _check(finite, "provenance holds a number that is not finite")

    def to_json(self) -> str:
        """Return the record as JSON text that `from_json` reads back to an equal value."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> ModelSpec:
        """Read a record; every field is validated, since the file may come from anywhere.

        Args:
            text: JSON text.
            origin: The file it was found in, for the error message.

        Raises:
            ModelError: It is not a specification, or of another schema.
        """
        try:
            _check(len(text) <= MAX_JSON_BYTES, f"{len(text)} bytes; expected at most {MAX_JSON_BYTES}")
            record = json.loads(text)
            return cls(
                model=_text(record["model"]),
                labels=_labels(record["labels"]),
                preprocess=_preprocess(record["preprocess"]),
                output=record["output"],
                provenance=dict(record["provenance"]),
                schema=int(record["schema"]),
            )
        except ModelError as error:
            raise ModelError(f"{origin}: its ModelSpec is not valid: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{origin}: its ModelSpec cannot be read ({type(error).__name__}: {error}). "
                "Fix: make the file again with lfd-train or lfd-export"
            ) from error


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ModelError(message)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _labels(record: Mapping[str, Any]) -> Labels:
    colors = tuple((int(r), int(g), int(b)) for r, g, b in record["colors"])
    return Labels(tuple(_text(name) for name in record["names"]), colors, int(record["ignore_index"]))


def _preprocess(record: Mapping[str, Any]) -> Preprocess:
    height, width = record["size_hw"]
    m0, m1, m2 = record["mean"]
    s0, s1, s2 = record["std"]
    return Preprocess(
        (int(height), int(width)),
        (float(m0), float(m1), float(m2)),
        (float(s0), float(s1), float(s2)),
        record["resize"],
        record["color"],
    )
