"""The study of INT8: what it types, what it does not do twice, its figures and, in small, all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import quantize
from benchmarks.commands import Commands
from deploy.bench.cli import main as lfd_bench
from export.cli import main as lfd_export
from lfd.cli import main as lfd_train
from lfd.config import Config, DataConfig
from lfd.recipe import to_toml
from tests.conftest import ROOT


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What the study reads of a run before it trains."""
    folder = tmp_path / "given" / "student"
    folder.mkdir(parents=True)
    data = DataConfig(source="street:", size="48x64", resize="letterbox", normalize="caffe")
    (folder / "config.toml").write_text(to_toml(Config(data=data)))
    return folder


@pytest.mark.parametrize("name", quantize.TRAININGS)
@pytest.mark.parametrize("steps", [2, 300])
def test_every_training_is_a_command_that_exists(run: Path, name: str, steps: int) -> None:
    student = quantize.Student.parse(f"{run}@openvino")
    words = quantize.training(name, student, Path("teacher"), "street:", steps, 3)
    given = lfd_train.commands[words[0]].make_context(words[0], [*words[1:], "--out", "x"]).params
    assert (given["init"], given["size"], given["steps"], given["seed"]) == (str(run), "48x64", steps, 3)
    assert {"data.resize=letterbox", "data.normalize=caffe"} <= set(given["assignments"])
    rounds, taught = name != "tuned", name != "qat_labels"
    assert (given["quantize"], given["quantize_target"]) == (("int8", "openvino") if rounds else (None, None))
    assert given.get("method") == ("lfd" if taught else None) and ("teacher" in given) == taught


def test_the_control_differs_from_what_it_controls_by_the_rounding_alone(run: Path) -> None:
    student = quantize.Student.parse(f"{run}@ort")
    tuned, rounded = (quantize.training(n, student, Path("t"), "street:", 300, 0) for n in ("tuned", "qat_lfd"))
    assert rounded == [*tuned, "--quantize", "int8", "--quantize-target", "ort"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{run}", "target"),
        ("{run}@trt", "unknown target 'trt'"),
        ("{run}/none@ort", "no config.toml"),
        ("{run}@ort,{run}@ort", "two of one name"),
    ],
)
def test_a_wrong_student_is_one_line(run: Path, tmp_path: Path, text: str, message: str) -> None:
    students = [word for each in text.format(run=run).split(",") for word in ("--student", each)]
    others = ["--data", "street:", "--teacher", str(run), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(quantize.main, [*students, *others])
    assert done.exit_code != 0 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


class Pretending(Commands):
    """Reads a command as the toolkit does, makes the files that it would have made, and remembers which it was."""

    def run(self, name: str, *command: object, capture: bool = False) -> str:
        words = [str(word) for word in command]
        self.typed.append(" ".join(words))
        group = {"lfd-train": lfd_train, "lfd-export": lfd_export}.get(words[0])
        (group.commands[words[1]] if group else lfd_bench).make_context(name, words[2 if group else 1 :])
        if words[0] == "lfd-train":
            out = Path(words[words.index("--out") + 1])
            out.mkdir(parents=True, exist_ok=True)
            (out / "metrics.jsonl").write_text('{"step": 4, "val_miou": 0.5}\n')
        for option in ("-o", "--report"):
            if option in words:
                path = Path(words[words.index(option) + 1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
        return '{"agreement": 0.5}'


def test_what_is_made_is_not_made_again_and_other_steps_are_another_training(run: Path, tmp_path: Path) -> None:
    student = quantize.Student.parse(f"{run}@ort")

    def typed(steps: int, seed: int = 0) -> list[str]:
        work = quantize.Work(student, Path("teacher"), "street:", tmp_path / "out", steps, seed, Pretending())
        work.make()
        work.measure(1, 0.5, False)
        assert work.commands.typed.pop().startswith("lfd-bench"), "nothing was measured yet"
        return work.commands.typed

    first = typed(4)
    assert sum(line.startswith("lfd-train") for line in first) == len(quantize.TRAININGS) == 4
    int8 = [line for line in first if line.startswith("lfd-export int8")]
    assert len(int8) == 6
    assert ["--calib" in line for line in int8] == [True] * 3 + [False] * 3, "training brings its ranges"
    assert [f"--max-miou-drop {quantize.TIGHT}" in line for line in int8] == [False, True, *[False] * 4]
    assert typed(4) == []
    (tmp_path / "out" / student.name / "tuned_int8_4_0.json").unlink()
    assert len(typed(4)) == 1
    for again in (typed(3), typed(4, 1)):
        assert sum(line.startswith("lfd-train") for line in again) == 4
        assert not any(f"/{row}.onnx --report" in line for line in again for row in ("plain", "gated"))


@pytest.mark.parametrize(
    ("again", "interrupted", "failures", "measured"),
    [(False, False, (), False), (True, False, (), True), (False, True, (), True), (False, False, ("one",), True)],
)
def test_what_was_measured_is_measured_again_on_demand_or_when_it_was_not_whole(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool, interrupted: bool, failures: Any,
    measured: bool,
) -> None:  # fmt: skip
    student = quantize.Student.parse(f"{run}@ort")
    work = quantize.Work(student, Path("teacher"), "street:", tmp_path / "out", 4, 0, Pretending())
    report = work.path("bench", "") / "bench.json"
    report.parent.mkdir(parents=True)
    report.touch()
    monkeypatch.setattr(quantize, "read_report", lambda _: SimpleNamespace(interrupted=interrupted, failures=failures))
    work.measure(1, 0.5, again)
    assert [line.split()[0] for line in work.commands.typed] == ["lfd-bench"] * measured


def test_the_table_says_what_is_not_told_apart() -> None:
    row: dict[str, Any] = {
        "what": "INT8",
        "layers": 56,
        "in_int8": 54,
        "val_miou": [0.45221],
        "test_miou": [0.4, 0.5, 0.6],
        "agreement": [0.99999],
        "p50_ms": 4.736,
        "times_faster": {"median": 1.53, "low": 1.52, "high": 1.55},
    }
    near = row | {"agreement": [None], "times_faster": {"median": 1.01, "low": 0.99, "high": 1.02}}
    alone = row | {"in_int8": 0, "times_faster": None}
    records = [{"student": "s", "target": "ort", "rows": {"a": row, "b": near, "c": alone}}]
    assert quantize.table(records).splitlines()[2:] == [
        "| s | ort | INT8 | 54 of 56 | 45.22 | 50.00 ± 10.00 | 100.00 | 4.74 | 1.53 |",
        "| s | ort | INT8 | 54 of 56 | 45.22 | 50.00 ± 10.00 | - | 4.74 | ~1.01 |",
        "| s | ort | INT8 | 0 of 56 | 45.22 | 50.00 ± 10.00 | 100.00 | 4.74 | - |",
    ]


@pytest.mark.slow
def test_the_study_in_small(tmp_path: Path) -> None:
    teacher, result = tmp_path / "student", tmp_path / "quantize.json"
    data, size = "street:?size=64x96&frames=40", ["--size", "64x96"]
    little = ["--recipe", "cpu_small", "--steps", "30", "--set", "optimizer.warmup=2", "--set", "train.eval_every=30"]
    model = ["--model", "lraspp_mobilenet_v3_small", *size, "--data", data]
    done = CliRunner().invoke(lfd_train, ["teacher", *model, *little, "--out", str(teacher)])
    assert done.exit_code == 0, done.output
    command = [sys.executable, "-m", "benchmarks.quantize", "--data", data, "--teacher", str(teacher)]
    command += ["--student", f"{teacher}@ort", "--out", str(tmp_path / "out"), "--steps", "2", "--threads", "1"]
    command += ["--seconds", "0.05", "--result", str(result)]

    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    record = json.loads(result.read_text(encoding="utf-8"))
    rows = record["students"][0]["rows"]
    assert list(rows) == list(quantize.ROWS)
    for name, row in rows.items():
        (val,), (test,), (agreement,) = (row[key] for key in ("val_miou", "test_miou", "agreement"))
        assert 0 <= val <= 1 and 0 <= test <= 1 and row["p50_ms"] > 0
        assert (row["in_int8"] == 0) == (name in ("float", "tuned"))
        assert (agreement is not None) == name.startswith("qat")
        assert agreement is None or agreement > 0.98
    assert str(tmp_path) not in json.dumps(record)
