from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.data.camvid import LABELS
from lfd.errors import ModelError
from lfd.spec import Labels, ModelSpec, Preprocess

name = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)
color = st.tuples(*[st.integers(0, 255)] * 3)
scalar = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), name
)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    names = draw(st.lists(name, min_size=1, max_size=30, unique=True))
    colors = draw(st.lists(color, min_size=len(names), max_size=len(names)))
    labels = Labels(tuple(names), tuple(colors), draw(st.integers(len(names), 255)))
    unit = st.tuples(*[st.floats(0.01, 2)] * 3)
    preprocess = Preprocess(
        draw(st.tuples(*[st.integers(1, 4096)] * 2)),
        draw(unit),
        draw(unit),
        draw(st.sampled_from(["stretch", "letterbox"])),
        draw(st.sampled_from(["RGB", "BGR"])),
    )
    output = draw(st.sampled_from(["class_map", "logits"]))
    return ModelSpec(draw(name), labels, preprocess, output, draw(st.dictionaries(name, scalar, max_size=4)))


@given(specs())
def test_json_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json(), "x") == spec


GOOD = json.loads(ModelSpec("m", LABELS, Preprocess((4, 4))).to_json())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2"),
        ({"output": "boxes"}, "expected class_map or logits"),
        ({"labels": {"names": ["a"], "colors": [], "ignore_index": 255}}, "0 colors for 1 classes"),
        ({"labels": {"names": ["a", "a"], "colors": [[0, 0, 0]] * 2, "ignore_index": 255}}, "same name"),
        ({"labels": {"names": ["a"], "colors": [[0, 0, 256]], "ignore_index": 255}}, "outside"),
        ({"labels": {"names": ["a"], "colors": [[0, 0, 0]], "ignore_index": 0}}, "ignore_index 0"),
        ({"labels": {"names": ["a\n"], "colors": [[0, 0, 0]], "ignore_index": 255}}, "not printable"),
        ({"preprocess": GOOD["preprocess"] | {"size_hw": [0, 4]}}, "size_hw"),
        ({"preprocess": GOOD["preprocess"] | {"size_hw": [10**9, 4]}}, "size_hw"),
        ({"preprocess": GOOD["preprocess"] | {"std": [0, 1, 1]}}, "std"),
        ({"preprocess": GOOD["preprocess"] | {"resize": "crop"}}, "stretch or letterbox"),
        ({"preprocess": None}, "cannot be read"),
        ({"provenance": {"a": [1]}}, "provenance"),
        ({"model": 7}, "expected text"),
        ({"labels": {"names": ["a" * 65], "colors": [[0, 0, 0]], "ignore_index": 255}}, "longer than 64"),
        ({"provenance": {"miou": float("nan")}}, "not finite"),
    ],
)
def test_a_bad_record_is_named(change: dict[str, object], says: str) -> None:
    with pytest.raises(ModelError, match=r"file\.onnx") as caught:
        ModelSpec.from_json(json.dumps(GOOD | change), "file.onnx")
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "x" * (2 << 20), '{"model": NaN}'])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="where"):
        ModelSpec.from_json(text, "where")
