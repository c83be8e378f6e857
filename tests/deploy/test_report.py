"""The record survives its JSON, and the pages say what it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.environment import Environment, FramesUsed, Settings
from deploy.record import (
    Accuracy,
    BenchmarkResult,
    Failure,
    Memory,
    ModelResult,
    StudentResult,
    Versus,
    from_json,
    to_json,
)
from deploy.report import check_out, markdown, number, percent, remarks, text_table, write_report
from deploy.timing import Ratio, Samples, SingleStream, WarmUp
from lfd.errors import DataError, UsageError


def model(name: str, ms: float, accuracy: Accuracy | None, count: int = 20) -> ModelResult:
    rounds = [Samples((0.5,) * count, (ms,) * count, (0.25,) * count)] * 2
    return ModelResult(
        name=name,
        sha256="ab" * 32,
        file_bytes=int(ms * 1e6),
        model="lraspp",
        method=None,
        size_hw=(360, 480),
        precision="fp32",
        backend="onnxruntime CPUExecutionProvider",
        params=3_220_000,
        macs=None,
        load_ms=50.0,
        first_ms=25.5,
        memory=Memory(168.0, 89.0),
        single=SingleStream.of(WarmUp((20.0, 21.5), True), rounds),
        accuracy=accuracy,
    )


ENVIRONMENT = Environment(
    "2026-11-22T08:50:00Z", "A CPU", 2, "performance", 2400.0, 8000.0, "Linux", "3.11.7", {"numpy": "2.4.6"}, 2
)
RESULT = BenchmarkResult(
    environment=ENVIRONMENT,
    settings=Settings(5.0, 2, None),
    frames=FramesUsed("camvid@test", 32, "cd" * 32, ((480, 360),), 233, "ef" * 32),
    classes=("road", "sky|blue"),
    teacher=model("teacher.onnx", 400.0, Accuracy(0.7, (0.9, 0.5), 0.9, 1.0)),
    students=(
        StudentResult(
            model("student.onnx", 20.0, Accuracy(0.6, (0.8, None), 0.85, 0.9312)),
            Versus(Ratio(20.0, 19.5, 20.4), Ratio(19.3, 19.0, 19.8), 20.0, 0.1, 6 / 7),
        ),
    ),
    failures=(Failure("broken.onnx", "has no ModelSpec", 4),),
    notes=("a note",),
)


def test_the_record_survives_its_json() -> None:
    assert from_json(to_json(RESULT), "x") == RESULT
    bare = replace(RESULT, teacher=replace(RESULT.teacher, accuracy=None), students=(), failures=(), notes=())
    assert from_json(to_json(bare), "x") == bare


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30),
    st.one_of(st.none(), st.integers(1, 1 << 60)),
    st.text(max_size=20),
)
def test_any_record_survives(samples: list[float], params: int | None, name: str) -> None:
    rounds = [Samples(tuple(samples), tuple(samples), tuple(samples))]
    single = SingleStream.of(WarmUp((), False), rounds)
    teacher = replace(RESULT.teacher, single=single, params=params, name=name)
    result = replace(RESULT, teacher=teacher)
    assert from_json(to_json(result), "x") == result
    assert text_table(result)
    assert markdown(result)


def broken(**changes: Any) -> str:
    return json.dumps({**json.loads(to_json(RESULT)), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.json: not a report of lfd-bench"),
        ("[]", "not a report"),
        ("{}", "not a report .*schema"),
        ("[" * 100_000, "not a report"),
        (broken(schema=2), "schema 2; this version reads 1. Fix: run lfd-bench again"),
        (broken(extra=1), r"result: keys \['extra'\] are missing or unknown"),
        (broken(classes="road"), "result.classes is 'road'"),
        (broken(notes=[1]), r"result.notes\[0\] is 1"),
        (broken(teacher=None), "not a report"),
        (broken(settings={"seconds": "5"}), "result.settings.seconds is '5'"),
        (broken(settings={"threads": True}), "result.settings.threads is True"),
        (broken(settings={"threads": 1.5}), "result.settings.threads is 1.5"),
        (broken(frames=[]), "not a report"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_json(text, "r.json")


def test_raw_samples_and_hashes_are_in_the_file(tmp_path: Path) -> None:
    write_report(RESULT, tmp_path / "new" / "folder")
    record = json.loads((tmp_path / "new" / "folder" / "bench.json").read_text())
    assert record["schema"] == 1
    assert record["teacher"]["single"]["rounds"][1]["model_ms"] == [400.0] * 20
    assert record["teacher"]["single"]["end_to_end"]["latency"]["p50_ms"] == 400.75
    page = (tmp_path / "new" / "folder" / "bench.md").read_text()
    for digest in ("ab" * 32, "cd" * 32, "ef" * 32):
        assert digest in page
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["bench.json", "bench.md"]


def test_a_report_is_not_replaced_unasked(tmp_path: Path) -> None:
    check_out(tmp_path, overwrite=False)
    check_out(tmp_path / "new", overwrite=False)
    (tmp_path / "bench.md").write_text("mine")
    with pytest.raises(UsageError, match=r"bench\.md exists; .* --overwrite"):
        check_out(tmp_path, overwrite=False)
    check_out(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match=r"bench\.md is a file; expected a folder"):
        check_out(tmp_path / "bench.md", overwrite=True)


def cells(table: str, label: str) -> list[str]:
    """Return the cells of a table's first line with this label."""
    line = next(line for line in table.splitlines() if line.strip().startswith(label))
    return line.strip()[len(label) :].split()


def test_the_table_says_what_the_record_holds() -> None:
    table = text_table(RESULT)
    assert cells(table, "times faster, model alone (range of rounds)") == ["20.0", "(19.5-20.4)", "1"]
    assert cells(table, "times smaller, file") == ["20.0", "1"]
    assert cells(table, "mIoU lost, points") == ["10.00", "0"]
    assert cells(table, "mIoU kept, % of the teacher's") == ["85.71", "100"]
    assert cells(table, "pixels of the same class as its, %") == ["93.12", "100.00"]
    assert cells(table, "median (p50), ms") == ["20.8", "401"]
    assert cells(table, "p90, ms") == ["-", "-"]
    assert cells(table, "thrown away: warm-up + one a round") == ["2", "+", "2", "2", "+", "2"]
    assert cells(table, "parameters, million") == ["3.22", "3.22"]
    assert cells(table, "MACs at that input, billion") == ["-", "-"]
    assert cells(table, "of that the model's share, MB") == ["79.0", "79.0"]
    assert cells(table, "sky|blue") == ["-", "50.00"]
    assert "camvid@test: 32 in turns for the clock (480x360), 233 scored" in table
    assert "A CPU, 2 cores, 2400 MHz, governor performance, 8.0 GB; Linux" in table


def test_the_columns_line_up() -> None:
    lines = text_table(RESULT).splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == ["student.onnx", "teacher.onnx"])
    body = [line for line in lines[head : lines.index("IoU by class, %") + 3] if line.startswith("  ")]
    assert len({len(line) for line in body}) == 1
    assert not any(line != line.rstrip() for line in lines)


def test_every_line_of_the_markdown_table_has_its_cells() -> None:
    lines = [line for line in markdown(RESULT).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "| sky\\|blue | - | 50.00 |" in lines


def test_without_labels_there_is_no_accuracy() -> None:
    blind = replace(
        RESULT,
        teacher=replace(RESULT.teacher, accuracy=None),
        students=tuple(replace(s, result=replace(s.result, accuracy=None)) for s in RESULT.students),
        frames=replace(RESULT.frames, scored=0, scored_sha256=None),
    )
    table = text_table(blind)
    assert "mIoU" not in table
    assert "none scored" in table


def test_remarks_warn_of_what_spoils_the_numbers() -> None:
    text = "\n".join(remarks(RESULT))
    assert "Warning" not in text
    assert "student.onnx does not say its MACs" in text
    assert "p50 11, p90 64, p95 130, p99 662" in text
    assert "Note: a note" in text
    assert "Failed: broken.onnx: has no ModelSpec" in text
    shaky = SingleStream.of(WarmUp((), False), [Samples((0.1,) * 40, (10.0,) * 20 + (12.0,) * 20, (0.1,) * 40)])
    text = "\n".join(remarks(replace(RESULT, teacher=replace(RESULT.teacher, single=shaky))))
    assert "Warning: teacher.onnx: times spread by 9.21 % and drift by 20.00 % (above 2.5 %)" in text
    assert "Warning: teacher.onnx: its warm-up did not come to rest in 5 s" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.0, "1.00"),
        (20.75, "20.8"),
        (99.96, "100"),
        (812.4, "812"),
        (12345.6, "12346"),
        (-3.14159, "-3.14"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_are_per_cent() -> None:
    assert (percent(None), percent(0.12345), percent(1.0), percent(-0.05)) == ("-", "12.35", "100.00", "-5.00")
