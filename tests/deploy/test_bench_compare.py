"""Regressions are found, equals are not, and what is doubtful is said to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from bench_doubles import RESULT, full_result, model

from deploy.bench import interval
from deploy.bench.compare import compare, parse_limit
from deploy.bench.interval import CONFIDENCE, rise_of_median
from deploy.bench.record import Accuracy, BenchmarkResult, Failure, Memory, Missing, StudentResult
from deploy.bench.scenarios import Offline, SingleStream, Stream, WarmUp
from deploy.timing import Samples
from lfd.errors import DataError, UsageError

Rounds = list[list[float]]


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interval, "RESAMPLES", 200)


def rounds(ms: float, seed: int, state: float = 0.01, noise: float = 0.01, count: int = 40) -> Rounds:
    """Six rounds of a model of `ms`, each in a state of the machine of its own."""
    rng = np.random.default_rng(seed)
    return [list(ms * s * rng.normal(1, noise, count)) for s in rng.normal(1, state, 6)]


def of(measured: Rounds, result: BenchmarkResult = RESULT) -> BenchmarkResult:
    """A report whose student was measured so."""
    samples = [Samples((0.0,) * len(r), tuple(r), (0.0,) * len(r)) for r in measured]
    student = result.students[0]
    single = SingleStream.of(WarmUp((), True), samples)
    return replace(result, students=(replace(student, result=replace(student.result, single=single)),))


@pytest.mark.parametrize(("text", "limit"), [("5%", 0.05), ("5", 0.05), ("2.5 %", 0.025), ("0%", 0.0), ("100", 1.0)])
def test_a_limit_is_per_cent(text: str, limit: float) -> None:
    assert parse_limit(text) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["", "%", "-5%", "5%%", "nan", "1e3", "five"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UsageError, match="expected per cent, such as 5%"):
        parse_limit(text)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """States of 2 %, truth +4 %; six rounds make a bootstrap's interval somewhat too narrow, not more."""
    covered = 0
    for seed in range(60):
        found = rise_of_median(rounds(10, seed, 0.02), rounds(10.4, 1000 + seed, 0.02), 0.05)[2]
        covered += found.low <= 0.04 <= found.high
    assert 0.85 <= covered / 60 <= 1
    assert CONFIDENCE == 0.95


@pytest.mark.parametrize(
    ("factor", "state", "worse", "said"),
    [
        (1.0, 0.01, False, "same"),
        (1.03, 0.001, False, "same"),
        (1.10, 0.005, True, "worse"),
        (0.80, 0.005, False, "better"),
    ],
)
def test_what_is_said_of_a_change(factor: float, state: float, worse: bool, said: str) -> None:
    before, after = of(rounds(20, 1, state)), of(rounds(20 * factor, 3, state))
    found = compare(before, after, 0.05)
    change = next(c for c in found.changes if c.model == "student.onnx" and c.what == "median end to end, ms")
    assert str(change).startswith(said), str(change)
    assert found.worse is worse
    assert ("got worse" in found.text()) is True


def test_a_rise_that_two_of_six_rounds_deny_is_doubtful() -> None:
    after = rounds(26, 1, 0.001)[:4] + rounds(18, 2, 0.001)[:2]
    found = compare(of(rounds(20, 3, 0.001)), of(after), 0.05)
    change = next(c for c in found.changes if c.what == "median end to end, ms")
    assert change.loss > 0.25
    assert str(change).startswith("not sure  student.onnx: median end to end, ms 20.0 -> 2")
    assert not found.worse
    assert found.text().splitlines()[-1] == "nothing shown to be worse; 2 not sure"


def test_equal_models_are_never_said_to_differ() -> None:
    for seed in range(12):
        assert not compare(of(rounds(20, seed)), of(rounds(20, 100 + seed)), 0.05).worse


def test_the_same_reports_always_give_the_same_answer() -> None:
    before, after = of(rounds(20, 1)), of(rounds(21, 2))
    assert compare(before, after, 0.05).text() == compare(before, after, 0.05).text()


def test_a_median_that_was_not_earned_is_not_compared() -> None:
    few = [[10.0], [10.0]]
    found = compare(of(few), of([[90.0], [90.0]]), 0.05)
    assert "student.onnx: median end to end, ms is not compared: 2 and 2 samples, expected 11 in each" in found.text()
    assert not any(c.model == "student.onnx" and "median" in c.what for c in found.changes)


def changed(result: BenchmarkResult, **fields: object) -> BenchmarkResult:
    student = result.students[0]
    return replace(result, students=(replace(student, result=replace(student.result, **fields)),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"file_bytes": 22_000_000}, "file, MB"),
        ({"accuracy": Accuracy(0.5, (0.5, 0.5), 0.8, 0.9)}, "mIoU, %"),
        ({"memory": replace(RESULT.students[0].result.memory, peak_mb=200.0)}, "memory at its peak, MB"),
    ],
)
def test_sizes_and_accuracy_count_too(fields: dict[str, object], what: str) -> None:
    found = compare(RESULT, changed(RESULT, **fields), 0.05)
    assert [c.what for c in found.changes if c.worse] == [what]
    assert not compare(changed(RESULT, **fields), RESULT, 0.05).worse


def test_every_scenario_is_compared() -> None:
    full = full_result()
    whats = {c.what for c in compare(full, full, 0.05).changes if c.model == "student.onnx"}
    assert {"offline, a batch of 4, ms", "energy a picture, mJ, rail VDD_IN", "memory on the GPU, MB"} <= whats
    assert not any(what.startswith("stream") for what in whats)  # it did not keep up: its latencies mean nothing
    slow = [Samples((1.0,) * 12, (60.0,) * 12, (1.0,) * 12)] * 2
    worse = compare(full, changed(full, offline=(Offline.of(4, slow),)), 0.05)
    assert [c.what for c in worse.changes if c.worse] == ["offline, a batch of 4, ms"]


def test_a_scenario_that_is_gone_is_worse() -> None:
    full = full_result()
    samples = Samples((0.5,) * 40, (20.0,) * 40, (0.25,) * 40)
    steady = changed(full, streams=(Stream.of(30.0, samples, (0.0,) * 40, 0),))
    assert "stream@30, median from arrival, ms" in {c.what for c in compare(steady, steady, 0.05).changes}
    found = compare(steady, full, 0.05)
    assert found.worse
    assert "lost      student.onnx: keeps up with 30 frames a second in A and not in B" in found.text()
    assert not compare(full, steady, 0.05).worse
    found = compare(full, changed(full, offline=(), missing=(Missing("offline, batch 4", "takes 1"),)), 0.05)
    assert found.worse
    assert "lost      student.onnx: no offline, batch 4 in B: takes 1" in found.text()


SAMPLES = Samples((0.5,) * 40, (20.0,) * 40, (0.25,) * 40)
WHOLE = changed(
    replace(RESULT, settings=replace(RESULT.settings, batches=(4,), streams=(30.0,))),
    streams=(Stream.of(30.0, SAMPLES, (0.0,) * 40, 0),),
    offline=(Offline.of(4, [SAMPLES] * 2),),
    power=full_result().students[0].result.power,
    memory=Memory(168.0, 89.0, 512.0),
)


@pytest.mark.parametrize(
    ("fields", "asked", "line"),
    [
        ({"offline": ()}, {}, "lost      student.onnx: no offline, batch 4 in B"),
        ({"offline": ()}, {"batches": ()}, "note      student.onnx: no offline, batch 4 in B"),
        ({"streams": ()}, {}, "lost      student.onnx: no stream@30 in B"),
        ({"streams": ()}, {"streams": ()}, "note      student.onnx: no stream@30 in B"),
        ({"accuracy": None}, {}, "lost      student.onnx: no accuracy in B"),
        ({"power": ()}, {}, "note      student.onnx: no energy from rail VDD_IN in B"),
        ({"memory": Memory(168.0, 89.0)}, {}, "note      student.onnx: no memory on the GPU in B"),
        ({"memory": Memory(None, None, 512.0)}, {}, "note      student.onnx: no memory at its peak in B"),
    ],
)
def test_what_is_gone_is_said_and_lost_where_it_was_asked_for(
    fields: dict[str, object], asked: dict[str, object], line: str
) -> None:
    after = changed(replace(WHOLE, settings=replace(WHOLE.settings, **asked)), **fields)  # type: ignore[arg-type]
    found = compare(WHOLE, after, 0.05)
    assert line in found.text().splitlines()
    assert found.worse is line.startswith("lost")
    assert not compare(after, WHOLE, 0.05).worse


def test_accuracy_on_other_data_is_not_lost() -> None:
    blind = changed(replace(RESULT, frames=replace(RESULT.frames, data="frames", scored_sha256=None)), accuracy=None)
    found = compare(RESULT, blind, 0.05)
    assert "note      student.onnx: no accuracy in B" in found.text()
    assert not found.worse


def test_sweeps_are_said_not_to_be_compared() -> None:
    assert "note      sweeps are not compared" in compare(full_result(), full_result(), 0.05).text()
    assert "sweeps" not in compare(RESULT, RESULT, 0.05).text()


def test_what_is_too_noisy_is_not_called_the_same() -> None:
    found = compare(of(rounds(20, 1, 0.15)), of(rounds(20, 1, 0.15)), 0.05)
    assert [c.verdict for c in found.changes if c.model == "student.onnx" and "median" in c.what] == ["noisy"] * 2
    assert found.text().splitlines()[-1] == "nothing shown to be worse; 2 too noisy to see 5 %"
    assert not found.worse


def test_accuracy_is_told_in_per_cent_with_the_sign_of_its_change() -> None:
    worse = changed(RESULT, accuracy=Accuracy(0.54, (0.5, 0.5), 0.8, 0.9))
    assert "worse     student.onnx: mIoU, % 60.0 -> 54.0, -10.0 %" in compare(RESULT, worse, 0.05).text()
    assert "better    student.onnx: mIoU, % 54.0 -> 60.0, +11.1 %" in compare(worse, RESULT, 0.05).text()


def test_names_from_a_file_do_not_reach_the_terminal_as_commands() -> None:
    evil = changed(RESULT, name="a\x1b[2J\nnothing got worse")
    lines = compare(evil, evil, 0.05).text().splitlines()
    assert all(line.isprintable() for line in lines)
    assert lines.count("nothing got worse") == 1


def test_durations_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="a duration of 0 ms or less"):
        rise_of_median([[1.0] * 20], [[1.0] * 19, [0.0]], 0.05)


def test_a_model_that_is_gone_is_worse() -> None:
    other = replace(RESULT, students=(StudentResult(model("new.onnx", 5.0, None), RESULT.students[0].versus),))
    found = compare(RESULT, other, 0.05)
    assert found.worse
    assert "lost      student.onnx: is in A and not in B" in found.text()
    failing = replace(other, failures=(Failure("student.onnx", "no such file", 4),))
    assert "lost      student.onnx: is in A and not in B (no such file)" in compare(RESULT, failing, 0.05).text()


def test_reports_of_nothing_in_common_are_refused() -> None:
    names: Sequence[str] = ("x", "y")
    other = replace(
        RESULT,
        teacher=model(names[0], 5.0, None),
        students=(StudentResult(model(names[1], 5.0, None), RESULT.students[0].versus),),
    )
    with pytest.raises(DataError, match="no model in common"):
        compare(RESULT, other, 0.05)


def test_other_circumstances_are_told() -> None:
    elsewhere = replace(
        RESULT,
        environment=replace(RESULT.environment, cpu="Another", packages={"numpy": "3.0"}, threads=4),
        frames=replace(RESULT.frames, scored_sha256="00" * 32),
        interrupted="measuring, round 2 of 6",
    )
    elsewhere = changed(elsewhere, size_hw=(180, 240), precision="int8")
    text = compare(RESULT, elsewhere, 0.05).text()
    for line in (
        "note      processor: A CPU in A, Another in B",
        "note      numpy: 2.4.6 in A, 3.0 in B",
        "note      threads: 2 in A, 4 in B",
        "note      accuracy is not compared: other pictures were scored",
        "note      student.onnx: precision fp32 in A, int8 in B",
        "note      student.onnx: input (360, 480) in A, (180, 240) in B",
        "note      B was interrupted: measuring, round 2 of 6",
    ):
        assert line in text
    assert "mIoU" not in text
