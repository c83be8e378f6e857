"""lfd-export verify: numbers against closed forms and scikit-learn, pictures, and the command as typed.

The models are single nodes on the largest or smallest channel of a pixel, so that numpy knows what comes out.
"""

from __future__ import annotations

import errno
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import jaccard_score

from deploy.session import INT8_TARGET_KEY, open_session
from export import differences
from export.parity import Frame, Parity, compare
from export.runnable import BATCH_KEY
from export.verify import open_runnable
from lfd.checkpoint import save_model
from lfd.data import open_dataset
from lfd.data.base import Sample
from lfd.errors import ModelError, UsageError
from lfd.models import create_model
from lfd.picture import colorize
from lfd.spec import METADATA_KEY, Labels, ModelSpec, Preprocess
from tests.conftest import make_folder
from tests.export.test_export import invoke

SIZE = (48, 64)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


def model(
    path: Path, labels: Labels, pick: str = "ArgMax", batch: int | str = 1, first_only: bool = False, **metadata: str
) -> Path:
    """Write a model whose class is the largest channel (ArgMax) or the smallest one (ArgMin) of a BGR pixel.

    With `first_only` its class maps are all that of the batch's first frame.
    """
    nodes = [
        helper.make_node("Cast", ["frame"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node(pick, ["numbers"], ["picked"], axis=3, keepdims=0),
        helper.make_node("Cast", ["picked"], ["class_map"], to=TensorProto.UINT8),
    ]
    if first_only:
        nodes[0].input[0] = "spread"
        nodes.insert(0, helper.make_node("Gather", ["frame", "zeros"], ["spread"], axis=0))
    height, width = SIZE
    shapes = (batch, height, width, 3), (batch, height, width)
    graph = helper.make_graph(
        nodes,
        "m",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, shapes[0])],
        [helper.make_tensor_value_info("class_map", TensorProto.UINT8, shapes[1])],
        [numpy_helper.from_array(np.zeros(batch, np.int64), "zeros")] if first_only else [],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = ModelSpec(pick, labels, Preprocess(SIZE), provenance={} if batch == 1 else {BATCH_KEY: batch})
    helper.set_model_props(proto, {METADATA_KEY: spec.to_json()} | metadata)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def labels(folder: Path) -> Labels:
    return open_dataset(f"folder:{folder}", "val").labels


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory, labels: Labels) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("pair")
    return model(root / "max.onnx", labels), model(root / "min.onnx", labels, "ArgMin")


def test_numbers_are_those_of_numpy_and_scikit_learn(pair: tuple[Path, Path], folder: Path) -> None:
    data = open_dataset(f"folder:{folder}", "test")
    parity = compare(*map(open_runnable, pair), data, required=0.5)
    samples = [data[i] for i in range(len(data))]
    maps = [np.stack([pick(s.image.astype(int), 2) for s in samples]) for pick in (np.argmax, np.argmin)]
    truth = np.stack([s.mask for s in samples])
    known = truth != 255
    each = (maps[0] == maps[1]).mean((1, 2))
    assert parity.agreement == pytest.approx(each.mean()) and parity.pictures == 4
    assert [f.position for f in parity.frames] == np.argsort(each, kind="stable").tolist()
    assert parity.worst == (pytest.approx(each.min()), samples[int(each.argmin())].name) == parity.frames[0][:2]
    expected = [jaccard_score(truth[known], m[known], average=None, labels=[0, 1, 2], zero_division=0) for m in maps]
    np.testing.assert_allclose(np.array(parity.iou).T, expected)
    assert parity.miou == pytest.approx([e.mean() for e in expected])


numbers = st.one_of(st.floats(0, 1), st.just(math.nan))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9), st.floats(0, 1), st.integers(1, 5))
def test_any_parity_can_be_printed_and_kept(iou: list[tuple[float, float]], agreement: float, worst: int) -> None:
    names = tuple(f"class{i}" for i in range(len(iou)))
    labels = Labels(names, ((0, 0, 0),) * len(iou))
    frames = tuple(Frame(agreement, f"f{i}", i) for i in range(3))
    parity = Parity(3, agreement, (agreement, "f0"), iou[0], 0.5, tuple(iou), frames)
    record = json.loads(json.dumps(parity.record(labels, worst), allow_nan=False))
    assert [c["name"] for c in record["classes"]] == list(names) and len(record["worst"]) == min(worst, 3)
    assert record["same"] == (agreement >= 0.5) == str(parity).startswith("same")
    for (a, b), entry, line in zip(iou, record["classes"], parity.by_class(labels).splitlines()[1:], strict=True):
        assert (entry["a"] is None, entry["b"] is None) == (math.isnan(a), math.isnan(b))
        assert (entry["difference"] is None) == math.isnan(b - a) == line.endswith("-")
        assert len(line.split()) == 4 and "nan" not in line


# --- several frames at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "first_only", "same"), [(3, False, True), ("n", False, True), (3, True, False)])
def test_every_place_of_a_batch_is_compared(
    pair: tuple[Path, Path],
    labels: Labels,
    folder: Path,
    tmp_path: Path,
    batch: int | str,
    first_only: bool,
    same: bool,
) -> None:
    path = model(tmp_path / "b.onnx", labels, batch=batch, first_only=first_only)
    if batch == "n":
        proto = onnx.load(path)
        proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"n"', '"dynamic"')
        onnx.save(proto, path)
    parity = compare(open_runnable(pair[0]), open_runnable(path), open_dataset(f"folder:{folder}", "test"))
    assert bool(parity) == same
    if not same:
        assert sum(frame.agreement < 1 for frame in parity.frames) == 2, "pictures 1 and 4 are in the first place"


@pytest.mark.parametrize("batch", [0, -1, 2.5, True, "four", 10**9])
def test_a_batch_that_is_none(labels: Labels, tmp_path: Path, batch: Any) -> None:
    path = model(tmp_path / "b.onnx", labels)
    proto = onnx.load(path)
    spec = ModelSpec("x", labels, Preprocess(SIZE), provenance={BATCH_KEY: batch})
    proto.metadata_props[0].value = spec.to_json()
    onnx.save(proto, path)
    with pytest.raises(ModelError, match="expected 1 to"):
        open_runnable(path)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_colours_say_who_is_right(labels: Labels) -> None:
    """Columns of a picture: A alone right, B alone, neither, both, no label but different."""
    truth = np.repeat(np.array([[0, 0, 0, 0, 255]], np.uint8), 2, 0)
    a = np.repeat(np.array([[0, 1, 1, 0, 1]], np.uint8), 2, 0)
    b = np.repeat(np.array([[1, 0, 2, 0, 0]], np.uint8), 2, 0)
    sample = Sample(np.full((2, 5, 3), 255, np.uint8), truth, "x" * 99)
    drawn = differences.draw(sample, (a, b), ("a.onnx", "b" * 99), labels, 0.2)
    width, head, gap = differences.WIDTH, 28, 4
    height = round(width * 2 / 5)
    columns = [(2 * i + 1) * width // 10 for i in range(5)]
    cells = [drawn[head + height // 2, i * (width + gap) :][columns] for i in range(5)]
    wanted = [differences.ONLY_A, differences.ONLY_B, differences.NEITHER, None, differences.NEITHER]
    for found, color in zip(cells[4], wanted, strict=True):
        expected = (89, 89, 89) if color is None else color[::-1]  # white at 0.35 of its brightness
        assert tuple(found.tolist()) == expected
    for cell, found in zip(cells[1:4], (truth, a, b), strict=True):
        np.testing.assert_array_equal(cell, colorize(found[:1], labels)[0])
    assert drawn.shape[1] == 5 * width + 4 * gap


@pytest.mark.parametrize("size", [(1, 400), (400, 1), (7, 9)])
def test_any_shape_can_be_drawn(labels: Labels, size: tuple[int, int]) -> None:
    nothing = np.full(size, 255, np.uint8)
    one = np.zeros(size, np.uint8)
    sample = Sample(np.zeros((*size, 3), np.uint8), nothing, "")
    assert differences.draw(sample, (one, one + 1), ("", ""), labels, 0.0).size


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_all_it_found(pair: tuple[Path, Path], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "seen"
    arguments = ("verify", *pair, "--data", f"folder:{folder}", "--worst", 2, "--out", out, "--json")
    code, text, errors = invoke(*arguments)
    assert code == 1 and "not the same model" in errors and errors.count("\n") == 1
    record = json.loads(text)
    assert record == json.loads((out / "verify.json").read_text())
    assert record["a"]["path"] == str(pair[0]) and "onnxruntime" in record["b"]["runtime"] and record["same"] is False
    assert sorted(p.name for p in out.iterdir()) == sorted([*(w["file"] for w in record["worst"]), "verify.json"])
    assert len(record["worst"]) == 2
    for entry in record["worst"]:
        assert cv2.imread(str(out / entry["file"])).shape[1] == 5 * 384 + 16
    code, _, errors = invoke(*arguments)
    assert code == 2 and "choose a new folder" in errors


def test_the_command_as_text(pair: tuple[Path, Path], folder: Path) -> None:
    code, text, _ = invoke("verify", pair[0], pair[0], "--data", f"folder:{folder}@val", "--pictures", 3, "--worst", 1)
    lines = text.splitlines()
    assert code == 0 and lines[0].startswith("same: 100.0000% of pixels agree on 3 pictures")
    assert [line.split()[0] for line in lines[2:6]] == ["class", "ground", "sky", "thing"]
    assert lines[3].endswith("+0.00") and lines[-1].startswith("100.000%") and len(lines) == 10


def test_without_labels(pair: tuple[Path, Path], tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", {"test": 1})
    mask = next((root / "masks/test").iterdir())
    cv2.imwrite(str(mask), np.full(SIZE, 255, np.uint8))
    code, text, _ = invoke("verify", *pair, "--data", f"folder:{root}", "--min-agreement", 0, "--out", tmp_path / "o")
    assert code == 0 and "no labels" in text.splitlines()[0]
    assert json.loads((tmp_path / "o/verify.json").read_text())["miou"] == {"a": None, "b": None, "difference": None}


def test_a_full_disk_leaves_nothing(
    pair: tuple[Path, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(differences, "to_json", full)
    code, _, errors = invoke("verify", *pair, "--data", f"folder:{folder}", "--out", tmp_path / "a/b")
    assert code == 1 and "No space left" in errors and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{a}", "{run}", "--backend-b", "ort"), 2, "runs on PyTorch; leave the backend 'ort' away"),
        (("{a}", "{b}", "--backend-a", "openvin"), 2, "Did you mean 'openvino'"),
        (("{a}", "{engine}"), 4, "m.engine: has no m.engine.json beside it"),
        (("{a}", "{int8}", "--backend-b", "ort"), 4, "quantised for 'trt'"),
        (("{a}", "{int8}"), 4, "the backend openvino"),
        (("{a}", "{b}", "--worst", "0"), 2, "--worst"),
        (("{a}", "{b}", "--pictures", "0"), 2, "--pictures"),
        (("{a}", "{b}", "--out", "{a}"), 2, "choose a new folder"),
        (("{a}", "{b}", "--out", "{a}/x"), 2, "a file, not a folder"),
    ],
)
def test_bad_input_is_one_line(
    pair: tuple[Path, Path],
    labels: Labels,
    folder: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    names = {"a": pair[0], "b": pair[1], "run": tmp_path / "model.safetensors", "engine": tmp_path / "m.engine"}
    network, _ = create_model("lraspp_mobilenet_v3_small", 3)
    save_model(names["run"], network, ModelSpec("lraspp_mobilenet_v3_small", labels, Preprocess(SIZE)))
    names["engine"].write_bytes(b"ptrt")
    names["int8"] = model(tmp_path / "int8.onnx", labels, **{INT8_TARGET_KEY: "trt"})
    found, _, errors = invoke("verify", *(a.format(**names) for a in arguments), "--data", f"folder:{folder}")
    assert (found, errors.count("\n")) == (code, 1) and says in errors, errors


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


@needs_openvino
def test_one_file_on_two_runtimes(pair: tuple[Path, Path], folder: Path) -> None:
    code, text, errors = invoke("verify", pair[0], pair[0], "--data", f"folder:{folder}", "--backend-b", "openvino")
    assert code == 0 and "on onnxruntime" in text and "on openvino CPU f32, fp32" in text, errors
    with pytest.raises(UsageError, match="unknown backend"):
        open_runnable(pair[0], backend="opencl")


def quantised(path: Path, labels: Labels) -> Path:
    """Write a symmetric Q/DQ model: int8 x int8 on a 3x3 convolution that is the identity."""
    one = {"scale": np.float32(2), "zero": np.int8(0), "center": np.float32(128)}
    weights = np.zeros((3, 3, 3, 3), np.int8)
    weights[range(3), range(3), 1, 1] = 1
    pairs = [
        helper.make_node("QuantizeLinear", ["moved", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "zero"], ["w"]),
    ]
    nodes = [
        helper.make_node("Cast", ["frame"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["numbers", "center"], ["centered"]),
        helper.make_node("Transpose", ["centered"], ["half"], perm=[0, 3, 1, 2]),
        helper.make_node("Add", ["half", "half"], ["moved"]),  # a scale of 1 OpenVINO takes for no quantisation
        *pairs,
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["y"], ["largest"], axis=1, keepdims=0),
        helper.make_node("Cast", ["largest"], ["class_map"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, *SIZE, 3))],
        [helper.make_tensor_value_info("class_map", TensorProto.UINT8, (1, *SIZE))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (one | {"weights": weights}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = ModelSpec("q", labels, Preprocess(SIZE))
    said = {METADATA_KEY: spec.to_json(), "lfd_precision": "int8", INT8_TARGET_KEY: "openvino"}
    helper.set_model_props(proto, said)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


@needs_openvino
@pytest.mark.parametrize("backend", [None, "openvino"])
def test_int8_runs_as_int8(
    pair: tuple[Path, Path], labels: Labels, folder: Path, tmp_path: Path, backend: str | None
) -> None:
    path = quantised(tmp_path / "q.onnx", labels)
    with open_session(path, backend) as session:
        assert session.build.precision == "int8" and session.build.backend.startswith("openvino")
    assert compare(
        open_runnable(pair[0]), open_runnable(path, backend=backend), open_dataset(f"folder:{folder}", "test")
    )
