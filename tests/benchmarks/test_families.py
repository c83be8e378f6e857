"""The table over the families, from reports as `lfd-export all` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import families
from deploy.environment import Environment
from export.bundle_report import Data, File, Latency, Report, Run, Source
from lfd.files import write_json

FP32 = ((10.0, 10.0),) * 6
RUN = Run("ort", "onnxruntime fp32", 0.5, 0.0, {"a": 0.5}, 1.0, (1.0, "x"), True, Latency.of(FP32, None))


def report(times_ms: float, complete: bool = True) -> Report:
    """Half of the pixels right in fp32; in INT8 0.4 points less, `times_ms` a run, and another file refused."""
    rounds = tuple((times_ms + turn, times_ms + turn) for turn in np.linspace(-0.1, 0.1, 6))
    int8 = Run("ort", "int8", 0.496, 0.4, {"a": 0.496}, 0.9912, (0.9, "x"), True, Latency.of(rounds, FP32))
    alien = Run(None, "as written", 0.49, 1.0, {"a": 0.49}, 0.99, (0.9, "x"), True)
    files = (
        File("m_fp32.onnx", "fp32", "any", "written", size=2_000_000, runs=(RUN,)),
        File("m_int8_ort.onnx", "int8", "ort", "written", size=500_000, kept_float=("conv",), runs=(int8,)),
        File("m_int8_openvino.onnx", "int8", "openvino", "refused", "slower", size=500_000, runs=(int8,)),
        File("m_int8_trt.onnx", "int8", "trt", "written", size=500_000, runs=(alien,)),
        File("m_int8.engine", "int8", "trt", "elsewhere", "no TensorRT"),
    )
    source = Source("m", "tiny", "torch", (24, 32), 1, 0.5, {"a": 0.5})
    data = Data("folder", "val", 3, "0" * 64)
    return Report(complete, source, data, data, 1.0, {}, files, {}, None, Environment.here(1))


@pytest.mark.parametrize(("times_ms", "times"), [(4.0, "2.50"), (10.0, "1.00 ~")])
def test_a_row_says_what_a_file_costs_and_gains(times_ms: float, times: str) -> None:
    found = list(families.rows(report(times_ms).to_dict()))
    assert found == [
        ("tiny", "m_fp32.onnx", "ort", "2.00", "50.00", "100.00", "10.00", "-", ""),
        (
            "tiny",
            "m_int8_ort.onnx",
            "ort",
            "0.50",
            "49.60",
            "99.12",
            f"{times_ms - 0.02:.2f}",
            times,
            "1 layers in float",
        ),
        (
            "tiny",
            "m_int8_openvino.onnx",
            "ort",
            "0.50",
            "49.60",
            "99.12",
            f"{times_ms - 0.02:.2f}",
            times,
            "refused: slower",
        ),
    ]


def test_finished_reports_are_kept_and_written_without_their_samples(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_json(tmp_path / "all" / name / "report.json", report(4.0).to_dict())
    arguments = [tmp_path / "runs" / "a", tmp_path / "runs" / "b", "--data", "folder:x", "--out", tmp_path / "all"]
    done = CliRunner().invoke(families.main, [*map(str, arguments), "--results", str(tmp_path / "r.json")])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("| tiny |") == 6
    record = json.loads((tmp_path / "r.json").read_text())
    assert len(record["reports"]) == 2 and "rounds" not in json.dumps(record)
    assert record["reports"][0]["files"][1]["runs"][0]["latency"]["times_faster"]["median"] == pytest.approx(
        2.5, rel=0.01
    )


def test_an_interrupted_report_is_made_again(tmp_path: Path) -> None:
    assert families.read(tmp_path) is None
    write_json(tmp_path / "report.json", report(4.0, complete=False).to_dict())
    assert families.read(tmp_path) is None
    write_json(
        tmp_path / "report.json",
        report(4.0).to_dict(),
    )
    assert families.read(tmp_path) is not None
