"""A suite is checked whole before it begins, goes on where it stopped, and never mixes other measurements in."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import RESULT, model

from deploy.artifact import sha256
from deploy.bench import suite as matrix
from deploy.bench.conditions import Condition
from deploy.bench.pictures import Pictures, Shown
from deploy.bench.record import BenchmarkResult, Failure, StudentResult
from deploy.bench.suite import Suite, read_suite, run_suite
from deploy.environment import Environment, Settings
from deploy.report.pages import FILES
from deploy.report.suite import SUMMARY, circumstances, summary_text
from lfd.errors import LfdError, ModelError, UsageError
from lfd.files import locked

GOOD = """
title = "Two by two"
data = "street:"
seconds = 3
threads = [1, 2]

[[case]]
name = "fp32"
teacher = "teacher.onnx"
students = ["a.onnx", "b.onnx"]
backends = ["ort", "openvino"]
scenarios = ["offline", "stream@30"]
batches = [1, 4]

[[case]]
name = "int8"
teacher = "teacher.onnx"
students = ["a.onnx"]
threads = [4]
seconds = 1.5
max_images = 20
sizes = ["90x120"]
"""


@pytest.fixture
def suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(name.encode())
    path = tmp_path / "suite.toml"
    path.write_text(GOOD)
    return path


def test_a_suite_is_a_matrix(suite_file: Path) -> None:
    suite = read_suite(suite_file)
    assert suite.title == "Two by two"
    assert [run.name for run in suite.runs] == [
        "fp32-ort-1t",
        "fp32-ort-2t",
        "fp32-openvino-1t",
        "fp32-openvino-2t",
        "int8",
    ]
    assert suite.runs[1].settings == Settings(3.0, 2, None, "ort", (1, 4), (30.0,))
    assert suite.runs[4].settings == Settings(1.5, 4, 20, None, (), (), (), ((90, 120),))
    assert {run.case.data for run in suite.runs} == {"street:"}
    assert {run.case.data for run in read_suite(suite_file, "camvid:x").runs} == {"camvid:x"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("students = [", "studnets = [", "without students"),
        ("backends", "backend", r"unknown key in .*suite.toml 'backend'. Did you mean 'backends'\?"),
        ("seconds = 3", "secnds = 3", r"'secnds'. Did you mean 'seconds'\?"),
        ("seconds = 3", 'seconds = "3"', "case.seconds is '3'"),
        ("seconds = 3", "seconds = 0.0", "seconds = 0.0; expected 0.01 to 86400"),
        ("seconds = 3", "seconds = nan", "case.seconds is nan"),
        ("max_images = 20", "max_images = 0", "case int8: max_images = 0; expected 1 to"),
        ("seconds = 3", 'teacher = "t.onnx"', r"teacher stands above the first \[\[case\]\]"),
        ("stream@30", "stream@0.1", "stream@FPS, 1 to 10000 frames a second"),
        ("threads = [1, 2]", "threads = 1", "case.threads is 1"),
        ("threads = [1, 2]", "threads = [1, -2]", "--threads '-2'; expected whole numbers"),
        ("threads = [4]", "threads = []", "case int8: students, backends and threads must not be empty"),
        ('["ort", "openvino"]', '["ort", "openvno"]', r"unknown backend 'openvno'. Did you mean 'openvino'\?"),
        ('["ort", "openvino"]', '["../x"]', "unknown backend"),
        ('data = "street:"', 'data = "camvit:x"', r"unknown data set 'camvit'. Did you mean 'camvid'\?"),
        ("stream@30", "stream@fast", "scenario 'stream@fast'; expected single, offline"),
        ('["90x120"]', '["big"]', "expected HEIGHTxWIDTH"),
        ('name = "int8"', 'name = "../int8"', "expected letters, digits"),
        ('name = "int8"\n', "", "without name"),
        ('backends = ["ort", "openvino"]', 'backends = ["ort", "ort"]', "two reports called fp32-ort-1t"),
        ("[[case]]", "[case]", "cannot be read|expected a title and"),
        (GOOD, 'title = "none"\ncase = []', "has no"),
        (GOOD, "title = ", "cannot be read"),
        (GOOD, "title = 1\ncase = []", "expected a title and"),
    ],
)
def test_a_typo_is_found_before_anything_is_measured(suite_file: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    suite_file.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=message) as found:
        read_suite(suite_file)
    assert "\n" not in str(found.value)


class Measured:
    """Stands for `run_benchmark`, and notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], Settings]] = []
        self.interrupt_at: int | None = None
        self.stop_at: int | None = None
        self.fail: dict[str, LfdError] = {}
        self.failures: tuple[Failure, ...] = ()
        self.environment = Environment.here()
        self.frames_sha256 = RESULT.frames.timed_sha256

    def __call__(
        self, students: Sequence[Path], teacher: Path, pictures: Pictures, settings: Settings, say: Any
    ) -> tuple[BenchmarkResult, list[Shown]]:
        say("measuring, round 1 of 6")
        self.calls.append(([p.name for p in students], settings))
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        if error := self.fail.get(settings.backend or ""):
            raise error
        results = [replace(model(p.name, 20.0, None), sha256=sha256(p)) for p in (teacher, *students)]
        versus = RESULT.students[0].versus
        interrupted = "measuring, round 2 of 6" if len(self.calls) == self.interrupt_at else None
        record = replace(
            RESULT,
            teacher=results[0],
            students=tuple(StudentResult(r, versus) for r in results[1:]),
            settings=settings,
            frames=replace(RESULT.frames, data=pictures.name),
            environment=self.environment,
            interrupted=interrupted,
            failures=self.failures,
        )
        return record, []


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    double = Measured()
    monkeypatch.setattr(matrix, "run_benchmark", double)
    monkeypatch.setattr(matrix, "timing_frames", lambda dataset: ([], double.frames_sha256))
    return double


def go(suite: Suite, out: Path, overwrite: bool = False) -> matrix.Outcome:
    return run_suite(suite, out, overwrite, lambda text: None)


def test_every_report_and_a_summary_are_written(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    done = go(read_suite(suite_file), tmp_path / "out")
    assert [settings.threads for _, settings in measured.calls] == [1, 2, 1, 2, 4]
    for name in done.results:
        assert all((tmp_path / "out" / name / file).is_file() for file in FILES)
    assert all((tmp_path / "out" / file).is_file() for file in SUMMARY)
    page = (tmp_path / "out" / "suite.md").read_text()
    assert page.startswith("# Two by two")
    assert page.count("| fp32-ort-1t |") == 3
    html = (tmp_path / "out" / "suite.html").read_text()
    assert 'href="fp32-ort-1t/bench.html"' in html
    assert not re.search(r"https?://|<script", html)
    assert (tmp_path / "out" / "suite.csv").read_text().startswith("report,model,role,")
    assert "fp32-openvino-2t" in summary_text(done.results, done.failures)


def test_what_is_done_is_not_measured_again(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    suite = read_suite(suite_file)
    go(suite, tmp_path / "out")
    go(suite, tmp_path / "out")
    assert len(measured.calls) == 5
    shutil.rmtree(tmp_path / "out" / "fp32-ort-2t")
    done = go(suite, tmp_path / "out")
    assert len(measured.calls) == 6
    assert list(done.results) == [run.name for run in suite.runs]


def test_an_interrupted_suite_goes_on(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    suite = read_suite(suite_file)
    measured.interrupt_at = 2
    done = go(suite, tmp_path / "out")
    assert list(done.results) == ["fp32-ort-1t", "fp32-ort-2t"]
    assert "fp32-ort-2t: interrupted: measuring, round 2 of 6" in (tmp_path / "out" / "suite.md").read_text()
    measured.interrupt_at = None
    assert not any(result.interrupted for result in go(suite, tmp_path / "out").results.values())
    assert [settings.threads for _, settings in measured.calls] == [1, 2, 2, 1, 2, 4]


def test_killed_before_a_report_had_anything_the_others_stay(
    suite_file: Path, measured: Measured, tmp_path: Path
) -> None:
    suite = read_suite(suite_file)
    measured.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        go(suite, tmp_path / "out")
    assert "fp32-ort-2t" in (tmp_path / "out" / "suite.md").read_text()
    measured.stop_at = None
    go(suite, tmp_path / "out")
    assert len(measured.calls) == 3 + 3


def test_a_report_that_cannot_be_made_leaves_the_others(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    measured.fail["openvino"] = ModelError("teacher.onnx: broken")
    done = go(read_suite(suite_file), tmp_path / "out")
    assert list(done.results) == ["fp32-ort-1t", "fp32-ort-2t", "int8"]
    assert list(done.failures) == ["fp32-openvino-1t", "fp32-openvino-2t"]
    assert "- fp32-openvino-1t: teacher.onnx: broken" in (tmp_path / "out" / "suite.md").read_text()


def test_a_report_with_a_failed_model_is_tried_again(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    measured.failures = (Failure("b.onnx", "broken", 4),)
    suite = read_suite(suite_file)
    go(suite, tmp_path / "out")
    (tmp_path / "b.onnx").rename(tmp_path / "c.onnx")  # a file that is not there stops nothing either
    measured.failures = ()
    with pytest.raises(FileNotFoundError, match=r"b\.onnx"):  # only the double's
        go(suite, tmp_path / "out")
    assert len(measured.calls) == 6
    (tmp_path / "c.onnx").rename(tmp_path / "b.onnx")
    go(suite, tmp_path / "out")
    assert len(measured.calls) == 11


def test_a_report_of_another_machine_is_no_part_of_the_table(
    suite_file: Path, measured: Measured, tmp_path: Path
) -> None:
    suite = read_suite(suite_file)
    measured.environment = replace(measured.environment, cpu="Another")
    go(suite, tmp_path / "out")
    with pytest.raises(UsageError, match=r"fp32-ort-1t: was measured .* on another machine or software"):
        go(suite, tmp_path / "out")


def test_a_place_that_cannot_be_written_to_is_found_before_anything_is_measured(
    suite_file: Path, measured: Measured, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        go(read_suite(suite_file), tmp_path / "out")
    assert measured.calls == []


def test_a_report_that_a_failure_ended_early_does_not_end_the_suite(
    suite_file: Path, measured: Measured, tmp_path: Path
) -> None:
    measured.interrupt_at = 2
    measured.failures = (Failure("teacher.onnx", "died", 4),)
    assert len(go(read_suite(suite_file), tmp_path / "out").results) == 5


def test_two_suites_do_not_share_a_folder(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(UsageError, match="another process is at work in it"):
        go(read_suite(suite_file), tmp_path / "out")
    assert measured.calls == []


def test_the_summary_says_only_what_holds_for_all_its_reports() -> None:
    later = replace(
        RESULT,
        environment=replace(RESULT.environment, date_utc="2026-11-23T09:00:00Z"),
        frames=replace(RESULT.frames, timed=8),
        conditions=(Condition(1.0, 2400.0, None, None, None, None, None, ()),),
    )
    lines = dict(circumstances({"a": RESULT, "b": later}))
    assert lines["Date"] == "2026-11-22T08:50:00Z to 2026-11-23T09:00:00Z"
    assert lines["Machine"].startswith("A CPU")
    assert not {"State", "Pictures"} & set(lines)
    assert dict(circumstances({"a": RESULT}))["Date"] == "2026-11-22T08:50:00Z"
    assert circumstances({}) == []


@pytest.mark.parametrize("change", ["model", "seconds", "data", "pictures"])
def test_a_report_of_something_else_is_refused(
    suite_file: Path, measured: Measured, tmp_path: Path, change: str
) -> None:
    go(read_suite(suite_file), tmp_path / "out")
    if change == "model":
        (tmp_path / "b.onnx").write_bytes(b"other weights")
    elif change == "seconds":
        suite_file.write_text(GOOD.replace("seconds = 3", "seconds = 4"))
    elif change == "pictures":
        measured.frames_sha256 = "other"
    else:
        suite_file.write_text(GOOD.replace('data = "street:"', 'data = "street:@val"'))
    suite = read_suite(suite_file)
    with pytest.raises(
        UsageError, match=r"fp32-ort-1t: was measured with other models, data or settings .* --overwrite"
    ):
        go(suite, tmp_path / "out")
    go(suite, tmp_path / "out", overwrite=True)
    assert len(measured.calls) == 5 + (5 if change in ("data", "pictures") else 4)


def test_a_broken_report_is_not_replaced_unasked(suite_file: Path, measured: Measured, tmp_path: Path) -> None:
    suite = read_suite(suite_file)
    go(suite, tmp_path / "out")
    (tmp_path / "out" / "int8" / FILES[0]).write_text('{"schema": 1}')
    with pytest.raises(LfdError, match="a report with schema 1; this version reads 2"):
        go(suite, tmp_path / "out")
    go(suite, tmp_path / "out", overwrite=True)
    assert len(measured.calls) == 6


@pytest.mark.parametrize("name", ["suite.toml", "jetson.toml"])
def test_the_projects_own_suites_are_valid(name: str) -> None:
    suite = read_suite(Path(__file__).parents[2] / "benchmarks" / name, "street:")
    assert len(suite.runs) >= 3
