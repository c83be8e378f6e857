"""What an engine does with the convolutions it was asked for, read from TensorRT's engine inspector."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lfd.errors import ExportError

UNKNOWN = "unknown"

TYPES = (
    ("int8", r"int8"),
    ("fp8", r"fp8|float8"),
    ("bf16", r"bf16|bfloat16"),
    ("fp16", r"fp16|half|float16"),
    ("fp32", r"fp32|float|float32"),
)
"""Precision and the words for it: "Row major linear FP16 format" (10.0), "Half" (later), from narrow to wide."""

TACTICS = (
    ("int8", r"i8(i8|f16|f32)_|int8|i8816|i16832|imma"),
    ("fp8", r"fp8|e4m3"),
    ("bf16", r"bf16"),
    ("fp16", r"(?<![a-z0-9])f16f16|hmma|h884|h1688|h16816|(?<![a-z])fp16"),
    ("tf32", r"tf32"),
    ("fp32", r"(?<![a-z0-9])f32f32|(?<![a-z])fp32|scudnn|sgemm|ffma"),
)
"""Precision and its marks in a kernel's name. In order, since an int8 kernel also names the type that it writes."""

CONVOLUTION = re.compile(r"conv(?!ert)", re.IGNORECASE)
NOT_COMPUTING = re.compile(r"reformat|constant|noop|shuffle|identity", re.IGNORECASE)
ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\s\[]|$)")
JOINED = re.compile(r" \+ | \|\| |\|\|")


@dataclass(frozen=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: Its name in the engine.
        kind: TensorRT's word for it: `CaskConvolution`, `kgen`, `Reformat`, `DLA`.
        precision: In which it computes: `int8`, `fp8`, `fp16`, `bf16`, `tf32`, `fp32` or `unknown`.
        convolution: Whether it is a convolution by its own description.
        onnx: Names of the asked-for convolutions that it holds.
    """

    name: str
    kind: str
    precision: str
    convolution: bool
    onnx: tuple[str, ...]

    @property
    def on_dla(self) -> bool:
        """Whether it runs on a deep learning accelerator, which takes a whole piece of the graph as one layer."""
        return self.kind.upper() == "DLA"


@dataclass(frozen=True)
class Outcome:
    """What became of what was asked for.

    Attributes:
        asked: Precision to number of convolutions that ask for it.
        ran: Precision to number of the engine's layers that are convolutions, or hold them.
        differing: Name, asked and found precision of each convolution that runs in another one.
        on_dla: Layers on a DLA.
    """

    asked: Mapping[str, int]
    ran: Mapping[str, int]
    differing: tuple[tuple[str, str, str], ...]
    on_dla: int

    def __str__(self) -> str:
        asked, ran = (", ".join(f"{n} {p}" for p, n in sorted(c.items())) for c in (self.asked, self.ran))
        text = f"convolutions asked for: {asked}; layers of the engine: {ran or 'none'}"
        if self.on_dla:
            text += f"; {self.on_dla} on the DLA"
        for name, wanted, found in self.differing:
            text += f"; {name} runs in {found}, not {wanted}"
        return text


def read_layers(text: str, convolutions: Collection[str]) -> tuple[Layer, ...]:
    """Read the inspector's answer.

    TensorRT 10 gives a tensor's type in `Format/Datatype`, mixed with its layout, and "N/A due to dynamic shapes"
    where a dimension is open; 11 splits it into `Format` and `Datatype` (Migrating IEngineInspector Usage from
    TensorRT 10.x to 11.x). Weights and the kernel's name tell the type where the tensors do not.

    Args:
        text: JSON of `EngineInspector.get_engine_information`, of an engine built with detailed profiling.
        convolutions: Names of the ONNX file's convolutions.

    Raises:
        ExportError: It is not that JSON, or has only names.
    """
    try:
        records = json.loads(text, strict=False)["Layers"]  # names may hold control characters
        layers = tuple(_layer(record, set(convolutions)) for record in records if isinstance(record, dict))
        total = len(records)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ExportError(
            f"the engine inspector's answer cannot be read ({type(error).__name__}: {error}); nothing is known of the "
            "layers' precision. Fix: report it with the version of TensorRT"
        ) from error
    if not layers:
        raise ExportError(
            f"the engine inspector gives no details of {total} layers; nothing is known of their precision. "
            "Fix: build with detailed profiling"
        )
    return layers


def compare(asked: Mapping[str, str], layers: Iterable[Layer]) -> Outcome:
    """Hold the engine's layers against what the ONNX file asks for.

    Args:
        asked: Name of each convolution to the precision it asks for.
        layers: The engine's.
    """
    layers = tuple(layers)
    computing = [layer for layer in layers if not layer.on_dla and not NOT_COMPUTING.search(layer.kind)]
    holders: dict[str, Layer] = {}
    for layer in computing:
        for name in layer.onnx:
            # Kernels that only move a convolution's weights carry its name too: one that says it convolves goes first.
            if name not in holders or (layer.convolution and not holders[name].convolution):
                holders[name] = layer
    held = [layer for layer in computing if layer.convolution or layer in holders.values()]
    dla = [layer for layer in layers if layer.on_dla]
    differing = [
        (name, asked[name], layer.precision)
        for name, layer in holders.items()
        if not _meets(asked[name], layer.precision) and layer.precision != UNKNOWN
    ]
    ran = Counter(layer.precision for layer in (*held, *dla))
    return Outcome(dict(Counter(asked.values())), dict(ran), tuple(sorted(differing)), len(dla))


def check(outcome: Outcome, what: str) -> None:
    """Fail when what was asked for did not happen.

    A single convolution may run wider than it asked, where no kernel takes it; that is reported. None of them all
    running as asked is a failure: rf-detr gave out an FP32 engine for fp16=True in this way.

    Args:
        outcome: Of the build.
        what: The file, for the message.

    Raises:
        ExportError: Convolutions ask for a precision in which none runs.
    """
    if outcome.asked and set(outcome.ran) <= {UNKNOWN}:
        raise ExportError(
            f"{what} was not written: the engine inspector names no convolution with its type. {outcome}. "
            "Fix: report it with the version of TensorRT"
        )
    for precision in outcome.asked:
        if not any(_meets(precision, ran) for ran in outcome.ran):
            raise ExportError(
                f"{what} was not written: {outcome.asked[precision]} convolutions ask for {precision} and none runs in "
                f"it. {outcome}. Fix: for int8 see where the Q/DQ pairs stand, or build from the fp16 file"
            )


def _meets(asked: str, ran: str) -> bool:
    """TF32 is how tensor cores do fp32 where the build allows it."""
    return asked == ran or (asked, ran) == ("fp32", "tf32")


def _layer(record: Mapping[str, Any], convolutions: Collection[str]) -> Layer:
    name, kind = str(record["Name"]), str(record.get("LayerType", ""))
    sources = set(ONNX_LAYER.findall(str(record.get("Metadata", "")))) or set(JOINED.split(name))
    parameters = (record.get("ParameterType"), record.get("ConvParameterType"))
    convolution = bool(CONVOLUTION.search(kind)) or bool({"Convolution", "Deconvolution"} & set(parameters))
    return Layer(name, kind, _precision(record), convolution, tuple(sorted(sources & set(convolutions))))


def _precision(record: Mapping[str, Any]) -> str:
    """Return the type in which a layer computes.

    Int8 arithmetic needs int8 on both sides: int8 weights under an fp16 frame are unpacked first, so that the wider of
    both counts. Layers without `Weights` (Myelin's) have them among their inputs, in no known order: there the kernel's
    name goes first, then the first input.
    """
    weights = record.get("Weights") or record.get("ConvWeights")
    inputs = record.get("Inputs") or []
    frame = _tensor(inputs[0]) if inputs else UNKNOWN
    tactic = _first(TACTICS, str(record.get("TacticName", "")).lower())
    if isinstance(weights, dict):
        order = [*(precision for precision, _ in TYPES), "tf32"]
        sides = (_word(str(weights.get("Type", ""))), tactic if frame == UNKNOWN else frame)
        widest = max((p for p in sides if p != UNKNOWN), key=order.index, default=UNKNOWN)
        return tactic if (widest, tactic) == ("fp32", "tf32") else widest
    return tactic if tactic != UNKNOWN else frame


def _tensor(tensor: Mapping[str, Any]) -> str:
    for key in ("Datatype", "DataType", "Format/Datatype", "Format"):
        if (word := _word(str(tensor.get(key, "")))) != UNKNOWN:
            return word
    return UNKNOWN


def _word(text: str) -> str:
    return _first(tuple((name, rf"(?<![a-z0-9])({words})(?![a-z0-9])") for name, words in TYPES), text.lower())


def _first(table: Iterable[tuple[str, str]], text: str) -> str:
    return next((name for name, pattern in table if re.search(pattern, text)), UNKNOWN)
