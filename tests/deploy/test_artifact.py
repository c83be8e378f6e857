"""What lies beside a TensorRT engine, and whether an engine fits the machine. No TensorRT is needed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from deploy.artifact import (
    Accelerator,
    BuildInfo,
    EngineInfo,
    check_engine_fits,
    engine_info_path,
    read_engine_info,
)
from lfd.errors import ModelError
from lfd.spec import ModelSpec

ORIN = Accelerator("Orin", (8, 7), "10.3.0", "linux-aarch64")


@pytest.fixture
def info(spec: ModelSpec) -> EngineInfo:
    return EngineInfo(
        spec=spec,
        build=BuildInfo("tensorrt", "int8", "0" * 64, {"tensorrt": "10.3.0"}, "Orin"),
        built_on=ORIN,
        version_compatible=False,
        hardware_compatible="none",
        batch=(1, 2, 8),
        onnx="student.onnx",
        engine_sha256=hashlib.sha256(b"engine").hexdigest(),
        options={"workspace_mib": None, "profiling": "detailed", "tf32": False},
        convolutions={"int8": 20, "fp16": 3},
    )


def put(folder: Path, info: EngineInfo) -> Path:
    engine = folder / "student.engine"
    engine.write_bytes(b"engine")
    engine_info_path(engine).write_text(info.to_json())
    return engine


def test_the_record_comes_back_as_it_was(tmp_path: Path, info: EngineInfo) -> None:
    engine = put(tmp_path, info)
    assert engine_info_path(engine).name == "student.engine.json"
    assert read_engine_info(engine) == info


@pytest.mark.parametrize("kind", ["missing", "no record", "cut", "exchanged", "text", "list", "huge"])
def test_files_that_do_not_belong_together(tmp_path: Path, info: EngineInfo, kind: str) -> None:
    engine = put(tmp_path, info)
    beside = engine_info_path(engine)
    {
        "missing": engine.unlink,
        "no record": beside.unlink,
        "cut": lambda: engine.write_bytes(b"engi"),
        "exchanged": lambda: engine.write_bytes(b"other!"),
        "text": lambda: beside.write_text("not a record"),
        "list": lambda: beside.write_text("[]"),
        "huge": lambda: beside.write_text(" " * (1 << 21)),
    }[kind]()
    with pytest.raises(ModelError, match=r"student\.engine") as found:
        read_engine_info(engine)
    assert "\n" not in str(found.value)
    if kind in ("cut", "exchanged"):
        assert f"lfd-export trt student.onnx -o {engine} --overwrite" in str(found.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["schema"], 2),
        (["batch"], [1, 2]),
        (["batch"], [1, 2, "8"]),
        (["batch"], [1, 2, True]),
        (["built_on", "compute_capability"], 87),
        (["built_on", "tensorrt"], 10.3),
        (["build", "versions"], ["tensorrt"]),
        (["convolutions"], {"int8": -1}),
        (["onnx"], None),
        (["spec", "labels"], None),
    ],
)
def test_a_field_that_is_not_valid(tmp_path: Path, info: EngineInfo, path: list[str], value: Any) -> None:
    engine = put(tmp_path, info)
    record = json.loads(info.to_json())
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    engine_info_path(engine).write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"student\.engine\.json"):
        read_engine_info(engine)


@pytest.mark.parametrize(
    ("change", "here", "says"),
    [
        ({}, {}, None),
        ({}, {"tensorrt": "10.3.0.26"}, None),  # the library's version has a build number
        ({}, {"name": "Orin Nano"}, None),
        ({}, {"tensorrt": "10.4.0"}, "TensorRT 10.3.0; here it is 10.4.0"),
        ({}, {"compute_capability": (8, 6), "name": "A10"}, r"SM 8.7 \(Orin\); here it is SM 8.6 \(A10\)"),
        ({}, {"platform": "linux-x86_64"}, "platform linux-aarch64"),
        ({"version_compatible": True}, {"tensorrt": "10.4.0"}, None),
        ({"version_compatible": True}, {"tensorrt": "11.4.0"}, None),
        ({"version_compatible": True}, {"tensorrt": "10.2.0"}, "TensorRT"),
        ({"version_compatible": True}, {"tensorrt": "12.0.0"}, "TensorRT"),
        ({"hardware_compatible": "ampere_plus"}, {"compute_capability": (9, 0)}, None),
        ({"hardware_compatible": "ampere_plus"}, {"compute_capability": (7, 5)}, "SM 7.5"),
        ({"hardware_compatible": "same_cc"}, {"name": "another"}, None),
        ({"hardware_compatible": "same_cc"}, {"compute_capability": (9, 0)}, "SM 9.0"),
        ({"hardware_compatible": "ampere_plus"}, {"compute_capability": (9, 0), "tensorrt": "11.4.0"}, "TensorRT"),
    ],
)
def test_where_an_engine_runs(info: EngineInfo, change: dict[str, Any], here: dict[str, Any], says: str | None) -> None:
    built, running = dataclasses.replace(info, **change), dataclasses.replace(ORIN, **here)
    if says is None:
        check_engine_fits(built, running, Path("x.engine"))
        return
    with pytest.raises(ModelError, match=says) as found:
        check_engine_fits(built, running, Path("x.engine"))
    assert str(found.value).endswith("Fix: build it here with lfd-export trt student.onnx -o x.engine --overwrite")
