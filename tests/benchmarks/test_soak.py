"""The soak test's arithmetic, and a small soak."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.soak import Sample, Slope, left_over, main

MODEL = Path(__file__).parents[1] / "golden" / "tiny.onnx"


def samples(rss_mb: list[float], step: int = 100) -> list[Sample]:
    return [Sample(step * i, mb, 5, 7) for i, mb in enumerate(rss_mb)]


@given(slope=st.floats(-5, 5), base=st.floats(50, 500))
def test_a_line_is_found_exactly(slope: float, base: float) -> None:
    found = Slope.of(samples([base + slope * i for i in range(100)]))
    assert found.kb_per_1000 == pytest.approx(1e4 * slope, abs=1e-4)
    assert found.low - 1e-4 <= found.kb_per_1000 <= found.high + 1e-4 and found.high - found.low < 1e-3


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Noise whose neighbours hang together (AR(1), 0.8), as memory's do; 95 % of 400 series, within four deviations."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        noise, value = [], 0.0
        for kick in rng.normal(0, 1, 500):
            value = 0.8 * value + kick
            noise.append(100 + value)
        found = Slope.of(samples(noise))
        covered += found.low <= 0 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.045)


def test_a_leak_is_told_from_noise() -> None:
    rng = np.random.default_rng(0)
    leak = Slope.of(samples([100 + 0.01 * i + x for i, x in enumerate(rng.normal(0, 0.3, 500))]))
    assert leak.low > 0 and leak.low <= 100 <= leak.high, "0.01 MB in 100 frames"


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match="9 samples"):
        Slope.of(samples([1.0] * 9))


def test_what_is_left_over_is_named() -> None:
    assert left_over([Sample(0, 1, 5, 7), Sample(9, 1, 5, 7)]) == []
    assert left_over([Sample(0, 1, 5, 7), Sample(9, 1, 7, 8)]) == ["2 threads", "1 descriptors"]


def test_a_small_soak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "soak.json"
    main([str(MODEL), "--frames", "2000", "--every", "150", "--samples", "100", "--size", "48x64", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["shown"] == 2000 and record["captured"] == record["shown"] + record["dropped"]
    assert record["reconnects"] >= 12 and set(record["losses"]) == {"closed", "timed out", "unreadable"}
    assert record["left_over"] == [] and len(record["samples"]) == 102
    assert record["slope"]["kb_per_1000"] < 2000, "frames are not kept: 2000 of them are 18 MB"
    assert "2000 frames in" in capsys.readouterr().out
