"""The start's arithmetic, and a real start in the environment that the tests run in."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.startup import STAGES, Start, Variant, call, in_turns, main, sizes_mb, summarise, variants_of
from lfd.errors import LfdError

MODEL = Path(__file__).parents[1] / "golden" / "tiny.onnx"
PYTHON = Path(sys.executable)


def start(*stages: float, command: float = 0.0) -> Start:
    return Start(command, 1.0, dict(zip(STAGES, stages, strict=True)))


def test_a_start_is_its_stages() -> None:
    found = summarise([start(1, 2, 3, 4, command=11), start(2, 2, 3, 5, command=13), start(0, 1, 9, 90, command=12)])
    assert found["to_first_frame_ms"] == {"median": 12, "min": 10, "max": 100}
    assert found["command_ms"] == {"median": 12, "min": 11, "max": 13}
    assert found["stages_ms"] == dict(zip(STAGES, (1, 2, 3, 5), strict=True))


def test_sizes_are_those_of_the_files() -> None:
    sizes = sizes_mb(PYTHON)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    click_files = metadata.files("click")
    assert click_files is not None
    written = {Path(str(path.locate())) for path in click_files if "__pycache__" not in path.parts}
    least = sum(path.stat().st_size for path in written if path.is_file())
    assert least / 1e6 <= sizes["click"] <= 4 * least / 1e6, "with bytecode"


def test_variants(tmp_path: Path) -> None:
    small, large = tmp_path / "a.onnx", tmp_path / "b_int8.onnx"
    small.write_bytes(b"1")
    large.write_bytes(b"22")
    variants = variants_of(Path("film.mp4"), [large, small], PYTHON, tmp_path / "bare" / "python")
    assert [variant.name for variant in variants] == ["b_int8", "a", "a on openvino", "a without bytecode"]
    assert variants[-1].python != PYTHON and "-B" in variants[-1].flags


def test_a_start_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = (str(MODEL), "street:?frames=3&size=48x64", "null://", "--max-frames", "1", "--quiet")
    (found,) = in_turns([Variant("tiny", PYTHON, words)], 1)["tiny"]
    assert list(found.stages) == list(STAGES) and min(found.stages.values()) > 0
    assert found.command > 0 and found.processor > 0


def test_a_program_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LfdError, match=r"exit code 3: no camera$"):
        call(PYTHON, "-c", "import sys; print('x\\nno camera', file=sys.stderr); sys.exit(3)")
    done = CliRunner().invoke(main, [os.fspath(tmp_path / "none.mp4"), os.fspath(MODEL)])
    assert done.exit_code == 2
