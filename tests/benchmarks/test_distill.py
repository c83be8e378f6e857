"""The study: its files, its queue and keys, its figures, and a small one from end to end."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from benchmarks.distill.__main__ import main
from benchmarks.distill.execute import read_metrics
from benchmarks.distill.plots import draw
from benchmarks.distill.record import Scores, step_ratios, study_record
from benchmarks.distill.study import Run, Study, queue, read_study, teacher_run
from benchmarks.distill.tables import report
from lfd.errors import LfdError
from tests.conftest import ROOT

FILES = sorted((ROOT / "benchmarks" / "distill").glob("*.toml"))
STUDENT = "lraspp_mobilenet_v3_small"
TINY = f"""
recipe = "cpu_small"
set = ["data.size=48x64", "train.batch=4", "train.steps=8", "train.eval_every=4", "train.log_every=2",
       "optimizer.warmup=0", "data.scale=[0.9, 1.1]"]
seeds = [0, 1]
methods = ["dist"]
[overrides]
dist = ["distill.weights.dist_inter=2"]
[teacher]
model = "{STUDENT}"
set = ["train.steps=60", "train.eval_every=60"]
[[student]]
model = "{STUDENT}"
[[ablation]]
name = "task"
method = "none"
[[ablation]]
name = "+ KD"
set = ["distill.weights.fea=0", "distill.weights.aux=0", "distill.weights.kl=0"]
seeds = [0]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return read_study(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_committed_studies_are_complete(path: Path) -> None:
    study = read_study(path)
    m = study.matrix
    assert {*m.first, *m.methods} == {
        *("none", "kd", "lfd", "skd", "ifvd", "cwd", "at", "fitnet", "dist", "dsd", "cirkd", "mgd", "attnfd", "afdcd")
    }
    assert len(m.seeds) == 3 and {"none", "kd"} == set(m.equal_time)
    assert all(run.config.train.weights == "none" for run in [teacher_run(study, False), *queue(study, {})])
    lfd = [row for row in study.ablation if row.method == "lfd"]
    masks = {s.partition("=")[2] for row in lfd for s in row.set if s.startswith("loss.lfd.spatial_mask")}
    assert masks == {"uniform", "confidence", "certainty", "gap", "disagreement_correct"}
    balances = {s.partition("=")[2] for row in lfd for s in row.set if s.startswith("distill.balance")}
    assert balances == {"ema", "none"}


def test_the_most_telling_runs_come_first(study: Study) -> None:
    runs = queue(study, {STUDENT: {"none": 0.5, "kd": 1.0, "lfd": 1.25}})
    told = [(run.group, run.label, run.seed) for run in runs]
    assert told == [
        *(("matrix", method, seed) for seed in (0, 1) for method in ("none", "kd", "lfd")),
        ("cost", "none, kd, lfd", 0),
        ("equal time", "none", 0),
        ("equal time", "kd", 0),
        ("matrix", "dist", 0),
        ("cost", "dist", 0),
        ("equal time", "none", 1),
        ("equal time", "kd", 1),
        ("matrix", "dist", 1),
        ("ablation", "task", 0),
        ("ablation", "+ KD", 0),
        ("ablation", "task", 1),
    ]
    steps = {run.label: run.config.train.steps for run in runs if run.group == "equal time"}
    assert steps == {"none": 20, "kd": 10}  # 8 steps of 1.25 take 10; in tens


def test_without_timings_nothing_is_trained_for_equal_time(study: Study) -> None:
    assert not [run for run in queue(study, {}) if run.group == "equal time"]


def test_overrides_reach_their_method_alone(study: Study) -> None:
    weights = {run.label: dict(run.config.distill.weights) for run in queue(study, {}) if run.group == "matrix"}
    assert weights == {"none": {}, "kd": {}, "lfd": {}, "dist": {"dist_inter": 2.0}}


def change_seed(run: Run) -> Run:
    return replace(run, config=replace(run.config, train=replace(run.config.train, seed=5)))


def change_loss(run: Run) -> Run:
    return replace(run, config=replace(run.config, loss={"lfd": {"spatial_mask": "gap"}}))


@pytest.mark.parametrize("change", [change_seed, change_loss])
def test_a_key_is_of_what_determines_a_run(study: Study, change: Callable[[Run], Run]) -> None:
    run = next(run for run in queue(study, {}) if run.label == "lfd")
    assert run.key("d", "t") == replace(run, name="other", label="other", group="ablation").key("d", "t")
    assert len({run.key("d", "t"), run.key("e", "t"), run.key("d", "u"), change(run).key("d", "t")}) == 4


def test_a_student_without_teacher_does_not_depend_on_it(study: Study) -> None:
    keys = {run.name: run.key("d", "t") for run in queue(study, {})}
    other = {run.name: run.key("d", "another") for run in queue(study, {})}
    assert {name for name in keys if keys[name] == other[name]} == {
        *(f"none-{STUDENT}-s{seed}" for seed in (0, 1)),
        *(f"ablation00-s{seed}" for seed in (0, 1)),
    }
    assert keys["ablation00-s0"] == keys[f"none-{STUDENT}-s0"]  # trained once
    assert keys["ablation01-s0"] not in {key for name, key in keys.items() if name != "ablation01-s0"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('recipe = "cpu_small"', "", "names no recipe"),
        ('recipe = "cpu_small"', 'recipe = "cpu_smal"', "Did you mean 'cpu_small'"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "different numbers"),
        ("seeds = [0, 1]", "seed = [0, 1]", "unknown key in [study] 'seed'"),
        ('methods = ["dist"]', 'methods = ["dits"]', "Did you mean 'dist'"),
        ('methods = ["dist"]', 'methods = ["dist", "dist"]', "two runs are called"),
        ("dist = [", "cwd = [", "method in [overrides] 'cwd'"),
        ("dist_inter=2", "dist_outer=2", "dist_outer"),
        ("[[student]]", "[[students]]", "at least one [[student]]"),
        ('[teacher]\nmodel = "lraspp_mobilenet_v3_small"', "[teacher]", "names no network"),
        ('name = "task"', "", "has no name"),
        ("train.steps=8", "train.steps=0", "train.steps = 0"),
        ('name = "task"\nmethod = "none"', 'name = "x"\nset = ["loss.lfd.apply_to=x"]', "loss.lfd.apply_to"),
    ],
)
def test_mistakes_are_found_before_the_first_step(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    assert old in TINY
    path.write_text(TINY.replace(old, new, 1))
    with pytest.raises(LfdError, match=re.escape(message)) as caught:
        read_study(path)
    assert "\n" not in str(caught.value)


def test_a_pause_does_not_change_the_seconds_of_a_step(tmp_path: Path) -> None:
    rates = [20.0] * 5 + [0.001] + [20.0] * 4  # 10 intervals of 10 steps of 8 pictures, one of them paused
    lines: list[dict[str, Any]] = [{"step": 10 * (i + 1), "images_per_s": rate} for i, rate in enumerate(rates)]
    lines.insert(5, {"step": 50, "val_miou": 0.25, "val_best": 0.25})
    lines.append({"step": 100, "val_miou": 0.5, "val_best": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    course = read_metrics(path, batch=8)
    assert course["step_s"] == pytest.approx(0.4)
    points = [(p["step"], p["seconds"], p["val_miou"]) for p in course["curve"]]
    assert points == [(50, pytest.approx(20.0), 0.25), (100, pytest.approx(40.0), 0.5)]


def result(miou: float, steps: int = 8) -> dict[str, Any]:
    return {
        "curve": [{"step": s, "seconds": 0.4 * s, "val_miou": miou * s / steps} for s in (4, steps)],
        "test": {"miou": miou, "iou": {"sky": miou, "pole": None}, "pixel_accuracy": 0.9, "pictures": 4},
        "step_s": 0.4,
        "images_per_s": 10.0,
        "steps": steps,
        "batch": 4,
        "peak_process_mb": 500.0,
        "last_session_s": 9.0,
        "weights_bytes": 1000,
        "code": "c",
    }


def cost(busy: dict[str, float], device: str) -> dict[str, Any]:
    methods = {m: {"step_s": 1.0, "cpu_s": s, "peak_bytes": 10**9} for m, s in busy.items()}
    return {"device": device, "methods": methods, "code": "c"}


def made_up(study: Study) -> dict[str, Any]:
    """Return a record with scores that are set by hand."""
    score = {"none": 0.30, "kd": 0.31, "lfd": 0.33, "dist": 0.325, "task": 0.30, "+ KD": 0.315}
    done: list[tuple[Run, dict[str, Any]]] = []
    for run in queue(study, {STUDENT: {"none": 0.5, "kd": 1.0, "lfd": 1.25}}):
        if run.group == "cost":
            done.append((run, cost(dict.fromkeys(run.costed, 2.0) | {"kd": 1.0}, "cpu")))
        elif run.name != f"dist-{STUDENT}-s1":
            done.append((run, result(score[run.label] + 0.02 * run.seed, run.config.train.steps)))
    teacher = {"model": "big", "test": {"miou": 0.4}}
    return study_record(study, "camvid", teacher, done, [f"dist-{STUDENT}-s1"], {"x": "loss not finite"}, ())


def test_tables_show_what_was_measured(study: Study) -> None:
    record = json.loads(json.dumps(made_up(study)))
    text = report(record)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    rows = [row for row in rows if row[0] != "---"]
    spread = statistics.stdev([33, 35])
    assert rows[1] == ["lfd", "2", f"34.00 ± {spread:.2f}", "+3.00", "1.000", "2.00", "4.0", "1000"]
    assert rows[2][:4] == ["dist", "1", "32.50", "+2.50"]  # its one seed, over none's same seed
    assert rows[4] == ["none", "2", f"31.00 ± {spread:.2f}", "", "1.000", "2.00", "4.0", "1000"]
    assert ["none", "2", rows[4][2], "+0.00", "20"] in rows
    assert ["kd", "2", f"32.00 ± {spread:.2f}", "+1.00", "10"] in rows and "big, 40.00 %" in text
    assert ["lfd", "34.0", "-"] in rows and ["+ KD", "1", "31.50", "+1.50"] in rows
    assert f"Not finished: dist-{STUDENT}-s1." in text and "Failed: x: loss not finite" in text
    assert "several versions" not in text
    record["runs"][0]["code"] = "d"
    assert "several versions" in report(record)


def test_plots_show_every_run(study: Study, tmp_path: Path) -> None:
    record = json.loads(json.dumps(made_up(study)))
    curve, methods = draw(record, tmp_path)
    for path in (curve, methods):
        root = ElementTree.fromstring(path.read_text())  # noqa: S314  our own file
        assert root.tag.endswith("svg") and len(path.read_bytes()) > 5000
    assert draw(record, tmp_path) == [curve, methods] and len(list(tmp_path.glob("*.svg"))) == 2


@pytest.mark.parametrize(("device", "expected"), [("cpu", 2.0), ("cuda", 1.0)])
def test_a_cpu_is_held_to_processor_time(study: Study, device: str, expected: float) -> None:
    timing = next(run for run in queue(study, {}) if run.group == "cost")
    assert step_ratios([(timing, cost({"kd": 0.5, "lfd": 1.0}, device))]) == {STUDENT: {"kd": 1.0, "lfd": expected}}


def test_a_difference_is_over_the_seeds_that_both_have() -> None:
    def line(label: str, mious: dict[int, float]) -> Scores:
        return Scores(label, tuple({"seed": seed, "test": {"miou": miou}} for seed, miou in mious.items()))

    ours, alone = line("lfd", {0: 0.5, 2: 0.6}), line("none", {0: 0.45, 1: 0.1})
    over = ours.over(alone)
    assert over is not None and math.isclose(over[0], 5.0) and over[1] == 1
    assert line("kd", {7: 0.5}).over(alone) is None and line("kd", {7: 0.5}).spread is None


def start(path: Path, out: Path, data: str, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.distill", path, "--data", data, "--out", out, "--device", "cpu", *more]
    return subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


@pytest.mark.slow
def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "tiny.toml", tmp_path / "out"
    path.write_text(TINY.replace("seeds = [0, 1]", "seeds = [0]").replace('methods = ["dist"]', "methods = []"))
    path.write_text(re.sub(r"\[overrides\]\n.*\n", "", path.read_text()))
    data = f"folder:{folder}"
    process = start(path, out, data)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/teacher.*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in said[1], said
    assert not list(out.glob("results/*")) or list(out.glob("results/teacher.*"))

    process = start(path, out, data, "--parallel", 2, "--only", "none-*", "--only", "lfd-*")
    said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert sorted(p.name.split(".")[0] for p in out.glob("results/*")) == [
        *(f"lfd-{STUDENT}-s0", f"none-{STUDENT}-s0", "teacher")
    ]
    record = json.loads((out / "study.json").read_text())
    assert {run["label"] for run in record["runs"]} == {"none", "lfd", "task"}  # the first row is none's run
    assert not list(out.glob("runs/*/resume.pt")) and len(list(out.glob("runs/*/model.safetensors"))) == 3

    before = {path: path.stat().st_mtime_ns for path in out.glob("results/*")}
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # here it runs in this process
    command = [path, "--data", data, "--out", out, "--device", "cpu", "--only", "none-*", "--only", "lfd-*"]
    done = CliRunner().invoke(main, [*map(str, command)])
    assert done.exit_code == 0 and "written" in done.output and "begins" not in done.output, done.output
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("results/*")}
