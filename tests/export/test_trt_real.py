"""Engines of a real TensorRT on a real GPU; skipped with the reason where they are not."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from deploy.artifact import engine_info_path, read_engine_info
from deploy.backends.cuda import find_gpu, require_tensorrt
from export.to_trt import EngineReport, Progress, TrtOptions, build_engine
from lfd.errors import LfdError
from tests.export.trt_models import write


@pytest.fixture
def real_tensorrt() -> Any:
    try:
        trt = require_tensorrt()
        find_gpu(trt)
    except LfdError as error:
        pytest.skip(str(error).partition(";")[0])
    return trt


@pytest.mark.trt
@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_engine_has_the_precision_asked_for(
    tmp_path: Path, real_tensorrt: Any, precision: str, batch: int | str
) -> None:
    model = write(tmp_path / "m.onnx", precision, batch)
    options = TrtOptions(
        optimization_level=1, timing_cache=tmp_path / "t.cache", batch=(1, 2, 4) if batch == "N" else None
    )
    report: EngineReport = build_engine(model, tmp_path / "m.engine", options)
    assert report.outcome is not None and precision in report.outcome.ran, str(report)
    assert read_engine_info(report.path) == report.info and (tmp_path / "t.cache").stat().st_size > 0
    build_engine(model, tmp_path / "m.engine", options)


@pytest.mark.trt
@pytest.mark.gpu
def test_a_real_build_can_be_interrupted(tmp_path: Path, real_tensorrt: Any) -> None:
    def interrupt(progress: Progress) -> None:
        if not progress.stopping:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="no engine"):
        build_engine(write(tmp_path / "m.onnx", "fp16"), tmp_path / "m.engine", TrtOptions(), interrupt)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.trt
@pytest.mark.gpu
def test_a_real_version_compatible_engine(tmp_path: Path, real_tensorrt: Any) -> None:
    options = TrtOptions(optimization_level=1, version_compatible=True)
    report = build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.engine", options)
    assert json.loads(engine_info_path(report.path).read_text())["version_compatible"] is True
