"""The record survives its JSON, and the pages say what it holds."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from bench_doubles import RESULT, full_result, shown
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.bench.record import from_json, to_json
from deploy.bench.scenarios import SingleStream, Stream, WarmUp
from deploy.report.pages import FILES, check_out, markdown, text_table, write_report
from deploy.report.remarks import remarks
from deploy.report.rows import number, percent
from deploy.timing import Ratio, Samples
from lfd.errors import DataError, LfdError, SinkError, UsageError


def test_the_record_survives_its_json() -> None:
    assert from_json(to_json(RESULT), "x") == RESULT
    assert from_json(to_json(full_result()), "x") == full_result()
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


def test_a_name_that_looks_like_a_list_is_left_alone() -> None:
    result = replace(RESULT, notes=("a[ 1 ].onnx and [ 1,  2 ]",))
    assert from_json(to_json(result), "x") == result


def broken(**changes: Any) -> str:
    return json.dumps({**json.loads(to_json(RESULT)), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.json: not a report of lfd-bench"),
        ("[]", "not a report"),
        ("{}", "not a report .*schema"),
        ("[" * 100_000, "not a report"),
        (broken(schema=1), "schema 1; this version reads 2. Fix: run lfd-bench again"),
        (broken(extra=1), r"result: keys \['extra'\] are missing or unknown"),
        (broken(classes="road"), "result.classes is 'road'"),
        (broken(notes=[1]), r"result.notes\[0\] is 1"),
        (broken(teacher=None), "not a report"),
        (broken(settings={"seconds": "5"}), "result.settings.seconds is '5'"),
        (broken(settings={"threads": True}), "result.settings.threads is True"),
        (broken(settings={"threads": 1.5}), "result.settings.threads is 1.5"),
        (broken(frames=[]), "not a report"),
        (broken(settings={"seconds": float("nan")}), "result.settings.seconds is nan"),
        (broken(settings={"seconds": 1e999}), "result.settings.seconds is inf"),
        (broken(settings={"seconds": 10**400}), "not a report"),
        (broken(settings={"threads": 10**400}), "result.settings.threads is 1000"),
        (to_json(RESULT).replace('"fit_ms": [0.5, ', '"fit_ms": [', 1), "stages of different length"),
        (to_json(full_result()).replace('"wait_ms": [0.0, ', '"wait_ms": [', 1), "waits and samples of different"),
        (to_json(full_result()).replace('"wait_ms": [0.0, ', '"wait_ms": [-1.0, ', 1), "a wait below 0 ms"),
        (to_json(RESULT).replace('"fit_ms": [0.5, ', '"fit_ms": [-0.5, ', 1), "r.json: .* a duration below 0 ms"),
        (to_json(RESULT).replace('"model_ms": [400.0, ', '"model_ms": [0.0, ', 1), "r.json: .* took 0 ms"),
        (
            re.sub(r'"rounds": \[.*?\n {6}\]', '"rounds": []', to_json(RESULT), count=1, flags=re.DOTALL),
            "without samples",
        ),
        (to_json(RESULT).replace('"miou": 0.7', '"miou": 70.0'), "share 70.0; expected 0 to 1"),
        (broken(settings={"seconds": "5"}), "expected a number"),
        (broken(classes="road"), "expected a list"),
        (broken(notes=[1]), "expected a text"),
    ],
)
def test_what_is_no_record_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_json(text, "r.json")


def test_raw_samples_and_hashes_are_in_the_file(tmp_path: Path) -> None:
    write_report(RESULT, shown(), tmp_path / "new" / "folder", overwrite=False)
    record = json.loads((tmp_path / "new" / "folder" / "bench.json").read_text())
    assert record["schema"] == 2
    assert record["teacher"]["single"]["rounds"][1]["model_ms"] == [400.0] * 20
    assert record["teacher"]["single"]["end_to_end"]["latency"]["p50_ms"] == 400.75
    page = (tmp_path / "new" / "folder" / "bench.md").read_text()
    for digest in ("ab" * 32, "cd" * 32, "ef" * 32):
        assert digest in page
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)


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
    assert cells(table, "times faster, model alone (median of the rounds' ratios, range)") == [
        "20.0",
        "(19.5-20.4)",
        "1",
    ]
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


def test_names_are_no_markup_in_markdown() -> None:
    page = markdown(replace(RESULT, classes=("<script>", "two\nlines"), notes=("<b>\n# a",)))
    assert "<" not in page
    assert "| &lt;script> |" in page
    assert "| two lines |" in page
    assert "- Note: &lt;b> # a" in page


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
    assert "Note: power is not known here: no meter" in text
    assert "Note: memory on the GPU: no NVIDIA card here" in text
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


def test_two_that_are_not_told_apart_are_marked() -> None:
    student = RESULT.students[0]
    equal = replace(student.versus, faster_end_to_end=Ratio(1.0, 0.97, 1.04))
    table = text_table(replace(RESULT, students=(replace(student, versus=equal),)))
    label = "times faster, end to end (median of the rounds' ratios, range)"
    assert cells(table, label) == ["~1.00", "(0.970-1.04)", "1"]


def test_few_samples_a_round_and_a_late_clock_are_told() -> None:
    short = SingleStream.of(WarmUp((), True), [Samples((0.1,) * n, (10.0,) * n, (0.1,) * n) for n in (20, 4)])
    text = "\n".join(remarks(replace(RESULT, teacher=replace(RESULT.teacher, single=short))))
    assert "Warning: teacher.onnx: 4 samples in a round, expected 5 at least" in text
    samples = Samples((0.0,) * 40, (10.0,) * 40, (0.0,) * 40)
    for late, told in ((0.05, False), (0.5, True)):
        stream = Stream.of(50.0, samples, (late,) * 40, 0)
        assert stream.late_ms == late
        text = "\n".join(remarks(replace(RESULT, teacher=replace(RESULT.teacher, streams=(stream,)))))
        assert ("Note: teacher.onnx: stream@50: the clock woke up late by 0.500 ms" in text) is told


def test_a_wait_for_the_frame_before_is_not_the_clocks() -> None:
    services = (10.0, 50.0, 10.0, 10.0)
    stream = Stream.of(50.0, Samples((0.0,) * 4, services, (0.0,) * 4), (0.1, 0.3, 30.0, 20.0), 0)
    assert stream.late_ms == 0.3  # of the second frame alone: the third and the fourth waited for their turn


@pytest.mark.parametrize("cause", ["meanwhile", "full"])
def test_a_report_that_cannot_be_written_is_kept_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / "report"
    if cause == "meanwhile":
        folder.mkdir()
        (folder / "bench.csv").write_text("somebody's")
        error: type[LfdError] = UsageError
    else:
        monkeypatch.setattr("deploy.report.pages.write_texts", Mock(side_effect=OSError(28, "No space left on device")))
        error = SinkError
    with pytest.raises(error, match=r"bench\.csv exists|No space left") as found:
        write_report(RESULT, shown(), folder, overwrite=False)
    saved = Path(str(found.value).rpartition("The record is in ")[2])
    assert from_json(saved.read_text(), "x") == RESULT
    assert not (folder / "bench.json").exists()


def test_a_place_that_takes_nothing_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", Mock(side_effect=OSError(30, "Read-only file system")))
    with pytest.raises(UsageError, match=r"--out .*new/deep: cannot be written to \(Read-only file system\)"):
        check_out(tmp_path / "new" / "deep", overwrite=False)
    assert not (tmp_path / "new").exists()


def test_shares_are_per_cent() -> None:
    assert (percent(None), percent(0.12345), percent(1.0), percent(-0.05)) == ("-", "12.35", "100.00", "-5.00")
