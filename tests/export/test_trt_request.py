"""What an ONNX file and a user ask of TensorRT, read and checked without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.to_trt import TrtOptions, build_engine, trtexec_line
from export.trt_graph import read_request
from export.trt_options import parse_batch
from lfd.errors import ExportError, LfdError, ModelError, UsageError
from tests.export.trt_models import write


def change(path: Path, how: Callable[[onnx.ModelProto], object]) -> Path:
    proto = onnx.load(str(path))
    how(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make_model", "error", "says"),
    [
        (lambda p: p, ModelError, "no such file"),
        (lambda p: p.write_bytes(b"not a model") and p, ModelError, "is not an ONNX file"),
        (lambda p: change(write(p), lambda m: m.ClearField("metadata_props")), ModelError, "no ModelSpec"),
        (lambda p: write(p, "int8", zero=3), ExportError, "4 of its Q/DQ nodes, such as quantize0.*--target trt"),
        (lambda p: write(p, "int8", unsigned=True), ExportError, "uint8 or a zero point"),
        (lambda p: write(p, "fp32", says="int8"), ModelError, "says that it is int8, but its convolutions are"),
        (lambda p: change(write(p), lambda m: m.graph.input[0].type.tensor_type.shape.dim[1].CopyFrom(
            onnx.TensorShapeProto.Dimension(dim_value=8))), ModelError, r"takes \[8, 64, 3\], but its ModelSpec says"),
        (lambda p: change(write(p), lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 1)), ModelError,
         "does not take one uint8 frame"),
        (lambda p: change(write(p), lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 1)), ModelError,
         "not what its ModelSpec says"),
        (lambda p: change(write(p), lambda m: setattr(m.graph.initializer[0], "data_location", 1)), ModelError,
         "weights in other files"),
        (lambda p: change(write(p), lambda m: setattr(m.graph.initializer[0], "data_type", 11)), ExportError,
         "conv0 has weights of a type other than"),
    ],
)  # fmt: skip
def test_a_file_that_tensorrt_is_not_given(tmp_path: Path, make_model: Any, error: type[LfdError], says: str) -> None:
    with pytest.raises(error, match=says) as found:
        read_request(make_model(tmp_path / "m.onnx"))
    assert "\n" not in str(found.value)


def test_what_a_file_asks_for(tmp_path: Path) -> None:
    assert read_request(write(tmp_path / "a.onnx", "fp16")).convolutions == {"conv0": "fp16", "conv1": "fp16"}
    mixed = read_request(write(tmp_path / "b.onnx", "int8", first="fp32"))
    assert mixed.convolutions == {"conv0": "fp32", "conv1": "int8"} and mixed.precision == "int8"
    weights_only = change(write(tmp_path / "c.onnx", "int8"), lambda m: m.graph.node[5].input.__setitem__(0, "x0"))
    assert read_request(weights_only).convolutions["conv0"] == "fp32", "int8 weights under a float frame are unpacked"


def test_the_line_for_trtexec(tmp_path: Path) -> None:
    model = write(tmp_path / "m m.onnx", batch="N")
    options = TrtOptions(
        workspace_mib=64, timing_cache=Path("t.cache"), version_compatible=True, hardware_compatible="same_cc",
        dla_core=0, batch=(2, 2, 2), tf32=True,
    )  # fmt: skip
    assert trtexec_line(model, Path("m.engine"), options) == (
        f"trtexec '--onnx={model}' --saveEngine=m.engine --stronglyTyped --skipInference "
        "--minShapes=frame:2x32x64x3 --optShapes=frame:2x32x64x3 --maxShapes=frame:2x32x64x3 "
        "--memPoolSize=workspace:64 --timingCacheFile=t.cache --builderOptimizationLevel=3 "
        "--profilingVerbosity=detailed --versionCompatible --hardwareCompatibilityLevel=sameComputeCapability "
        "--useDLACore=0 --allowGPUFallback"
    )
    fixed = write(tmp_path / "f.onnx")
    assert trtexec_line(fixed, Path("f.engine"), TrtOptions()) == (
        f"trtexec --onnx={fixed} --saveEngine=f.engine --stronglyTyped --skipInference "
        "--builderOptimizationLevel=3 --profilingVerbosity=detailed --noTF32"
    )
    with pytest.raises(UsageError, match="leaves the batch open; give its range"):
        trtexec_line(model, Path("m.engine"), TrtOptions())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workspace_mib": 0}, "workspace 0 MiB; expected 1"),
        ({"optimization_level": 6}, "level 6; expected 0 to 5"),
        ({"dla_core": -1}, "DLA core -1"),
        ({"batch": (1, 4, 2)}, "MIN <= OPT <= MAX"),
        ({"batch": (1, 2, 2), "dla_core": 0}, "all a DLA takes"),
        ({"hardware_compatible": "all"}, "expected none or ampere_plus or same_cc"),
        ({"profiling": "all"}, "expected layer_names_only or"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        TrtOptions(**options)


def test_batches_as_typed() -> None:
    assert parse_batch("1:4:8") == (1, 4, 8) and parse_batch("2") == (2, 2, 2)
    for text in ("", "1:2", "a", "1:2:3:4", "-1", "\u0661", "9" * 5000):
        with pytest.raises(UsageError, match="expected MIN:OPT:MAX"):
            parse_batch(text)


def test_a_timing_cache_of_the_engines_own_name(tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    for name in ("m.engine", "m.engine.json"):
        with pytest.raises(UsageError, match="choose another name"):
            build_engine(model, tmp_path / "m.engine", TrtOptions(timing_cache=tmp_path / name))


def test_the_name_of_an_engine(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.engine or \.plan"):
        build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.trt", TrtOptions())
