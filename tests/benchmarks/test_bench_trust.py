"""The parts of the benchmark of the benchmark that need no quiet machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_trust
from benchmarks.bench_trust import Held, overhead, prepare
from deploy.bench.probe import Request
from lfd.errors import LfdError

TINY = Path(__file__).parents[1] / "golden" / "tiny.onnx"


def test_a_held_model_never_takes_less_than_its_time() -> None:
    session = Held(None, exact_ms=1.0)
    for _ in range(5):
        session.run(np.zeros((1, *bench_trust.SIZE_HW, 3), np.uint8))
    assert len(session.own_ms) == 5
    assert min(session.own_ms) >= 1.0


def test_only_a_model_that_is_called_slower_is_held_back(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    for name, held in (("model", False), ("model-slower", True)):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(TINY.read_bytes())
        with prepare(Request(path, None, 1, None))() as session:
            assert isinstance(session, Held) is held
            height, width = session.spec.preprocess.size_hw
            assert session.run(np.zeros((1, height, width, 3), np.uint8)).shape == (1, height, width)


def test_overhead_is_that_of_the_loop_over_the_bare_one() -> None:
    found = overhead(rounds=2, count=3)
    assert min(found["bare_ms"]) >= 1.0
    assert min(found["own_p50_ms"]) >= 1.0
    assert all(reported >= own for reported, own in zip(found["reported_p50_ms"], found["own_p50_ms"], strict=True))


def test_a_tool_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_trust.shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(LfdError, match="benchmark_app is not installed"):
        bench_trust.benchmark_app_ms(TINY, 1, 1.0)
