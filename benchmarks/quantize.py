"""What a student gains by training with the rounding of its INT8 file, over being rounded afterwards.

    python -m benchmarks.quantize --data camvid:PATH --teacher RUN --student RUN@TARGET ... --out DIR [--seeds 3]

By the commands that a user types, for the runtime TARGET, `ort` or `openvino`: INT8 files calibrated; calibrated behind
a gate so tight that layers stay in float; trained with the rounding, by labels alone, under the teacher, and under the
teacher and the float student. The control had as many steps under the teacher in float, and was calibrated afterwards:
its gain is more training's, no rounding's.

mIoU on the val split is the gate's; the same split chose each training's weights. mIoU on the test split and latencies,
taken in turns, are lfd-bench's. Each training is done with so many seeds; the latency is that of the first, for the
files differ in their numbers only. What is finished is kept, so that an interrupted call goes on, and calls with a
student each may share DIR; `--remeasure`, on an idle machine, times and scores the files again. The figures go to
benchmarks/results/quantize.json.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from benchmarks.camvid import steps_done
from benchmarks.commands import Commands, preload
from deploy.bench.compare import read_report
from deploy.bench.record import BenchmarkResult
from lfd.console import guarded
from lfd.errors import UsageError, unknown
from lfd.files import write_json
from lfd.recipe import from_mapping, read_recipe

RESULTS = Path(__file__).parent / "results" / "quantize.json"
RUNTIMES = ("ort", "openvino")
WARMUP = 20
LR = 3e-5
"""A thirtieth of the recipe's: at 1e-4 a hundred steps in float, too, moved the students by a point up or down."""
TIGHT = 0.1
"""Points of mIoU that the gated file may lose; by default a file may lose 1."""

AVERAGE = 0.98
"""Of the weights, over the last 50 steps: what a short run ends with hangs on its last pictures."""
SECOND = 10
"""Weight of the float student. Its divergence is 0.01 to 0.02, where LFD's balanced terms are 1 each."""

TRAININGS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "tuned": ("distill", False, ()),
    "qat_labels": ("teacher", True, ()),
    "qat_lfd": ("distill", True, ()),
    "qat_second": ("distill", True, (f"quantize.second_teacher={SECOND}",)),
}
"""What the student is trained on by: the command, whether with the rounding, and what else is set."""

ROWS: dict[str, tuple[str, str]] = {
    "float": ("float, the student as it is", "plain"),
    "plain": ("INT8, calibrated", "plain"),
    "gated": (f"INT8, calibrated, at most {TIGHT:g} points lost", "gated"),
    "tuned": ("float, LFD for as many steps", "tuned_int8"),
    "tuned_int8": ("INT8 of that, calibrated", "tuned_int8"),
    "qat_labels": ("INT8, trained with its rounding, labels only", "qat_labels"),
    "qat_lfd": ("INT8, trained with its rounding, LFD", "qat_lfd"),
    "qat_second": ("INT8, trained with its rounding, LFD and the float student", "qat_second"),
}
"""A row's meaning, and the INT8 file whose gate scored it: a gate scores its source, too."""
HEADS = ("student", "on", "", "layers in INT8", "val mIoU, %", "test mIoU, %", "same as trained, %", "p50, ms", "times")


@dataclass(frozen=True)
class Student:
    """A run of lfd-train, and the runtime that is to run its INT8 file."""

    run: Path
    target: str

    @classmethod
    def parse(cls, text: str) -> Student:
        """Read RUN@TARGET; UsageError tells of another runtime, or of no run there."""
        run, _, target = text.rpartition("@")
        if target not in RUNTIMES:
            raise unknown("target", target, RUNTIMES)
        if not (Path(run) / "config.toml").is_file():
            raise UsageError(f"--student {text}: no config.toml in {run!r}; expected a run of lfd-train")
        return cls(Path(run), target)

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.run.name}@{self.target}"

    def input(self) -> list[str]:
        """Return the options that give a training this run's input."""
        data = from_mapping(read_recipe(str(self.run / "config.toml"))).data
        sets = (f"data.resize={data.resize}", f"data.normalize={data.normalize}")
        return ["--size", data.size, *(word for each in sets for word in ("--set", each))]


def training(name: str, student: Student, teacher: Path, data: str, steps: int, seed: int) -> list[str]:
    """Return what is typed for a training behind `lfd-train`, without --out."""
    command, rounds, more = TRAININGS[name]
    words = [command, "--init", str(student.run), "--data", data, "--recipe", "cpu_small", *student.input()]
    sets = [f"optimizer.lr={LR}", f"optimizer.warmup={min(WARMUP, steps)}", f"train.ema={AVERAGE}"]
    sets += ["train.eval_every=50", *more]
    words += ["--steps", str(steps), "--seed", str(seed), *(word for each in sets for word in ("--set", each))]
    words += ["--teacher", str(teacher), "--method", "lfd"] if command == "distill" else []
    return words + (["--quantize", "int8", "--quantize-target", student.target] if rounds else [])


@dataclass(frozen=True)
class Work:
    """A student's steps, each skipped when it is done; `data` is NAME:PATH, `steps` are those of each training.

    What no training made is the same for every seed, and made once.
    """

    student: Student
    teacher: Path
    data: str
    out: Path
    steps: int
    seed: int
    commands: Commands

    def path(self, row: str, suffix: str) -> Path:
        """Return where something of a row lies; what was trained for another number of steps lies elsewhere."""
        trained = f"_{self.steps}_{self.seed}" if row not in ("float", "plain", "gated") else ""
        return self.out / self.student.name / f"{row}{trained}{suffix}"

    def run(self, made: Path, *words: object) -> None:
        """Run a command, unless the last thing that it makes is there."""
        if not made.is_file():
            self.commands.run(f"{self.student.name} {made.stem}", *words)

    def export(self, run: Path, row: str) -> Path:
        """Export a run as a row's .onnx file."""
        path = self.path(row, ".onnx")
        self.run(path, "lfd-export", "onnx", run, "-o", path, "--data", self.data)
        return path

    def int8(self, source: Path, row: str, *options: object) -> None:
        """Make a row's INT8 file of a float one."""
        report = self.path(row, ".json")
        told = ["--target", self.student.target, "--data", self.data, "--no-speed", *options]  # slow ones, too, count
        out = ["-o", self.path(row, ".onnx"), "--report", report, "--overwrite"]
        self.run(report, "lfd-export", "int8", source, *out, *told)

    def train(self, name: str) -> Path:
        """Train a run, or go on with it, and return where it is."""
        run = self.path(name, "")
        if steps_done(run) < self.steps:
            words = training(name, self.student, self.teacher, self.data, self.steps, self.seed)
            given = [words[0], "--resume"] if (run / "resume.pt").is_file() else [*words, "--overwrite"]
            self.commands.run(f"{self.student.name} {name}", "lfd-train", *given, "--out", run)
        return run

    def make(self) -> None:
        """Make the file of each row, and hold those trained with the rounding against their network in PyTorch."""
        source, calibrate = self.export(self.student.run, "float"), ("--calib", self.data)
        self.int8(source, "plain", *calibrate)
        self.int8(source, "gated", *calibrate, "--max-miou-drop", TIGHT)
        self.int8(self.export(self.train("tuned"), "tuned"), "tuned_int8", *calibrate)
        for name in (name for name, (_, rounds, _) in TRAININGS.items() if rounds):
            run = self.train(name)
            self.int8(self.export(run, f"{name}_float"), name)
            if not (same := self.path(name, "_verify.json")).is_file():
                told = ["--data", f"{self.data}@val", "--min-agreement", 0, "--backend-b", self.student.target]
                words = ["lfd-export", "verify", run, self.path(name, ".onnx"), *told, "--json"]
                write_json(same, json.loads(self.commands.run(f"{name} verify", *words, capture=True)))

    def measure(self, threads: int, seconds: float, again: bool) -> None:
        """Time the files in turns and score them on the test split, unless that was done."""
        report = self.path("bench", "") / "bench.json"
        done = read_report(report) if report.is_file() else None
        if again or done is None or done.interrupted or done.failures:
            first, *others = (self.path(row, ".onnx") for row in ROWS)
            how = ["--backend", self.student.target, "--threads", threads, "--seconds", seconds]
            told = ["--data", f"{self.data}@test", *how, "--out", report.parent, "--overwrite"]
            self.commands.run(f"{self.student.name} bench", "lfd-bench", *others, "--teacher", first, *told)

    def bench(self) -> BenchmarkResult:
        """Return lfd-bench's record."""
        return read_report(self.path("bench", "") / "bench.json")

    def score(self, row: str) -> dict[str, Any]:
        """Return what a row's network is worth with this seed, in [0, 1]."""
        scored_by = ROWS[row][1]
        gate = json.loads(self.path(scored_by, ".json").read_text(encoding="utf-8"))
        accuracy = next(m.accuracy for m in self.bench().models if m.name == self.path(row, ".onnx").name)
        same = self.path(row, "_verify.json")
        return {
            "val_miou": gate["steps"][-1]["miou"] if row == scored_by else gate["source_miou"],
            "test_miou": accuracy.miou if accuracy else None,
            "agreement": json.loads(same.read_text(encoding="utf-8"))["agreement"] if same.is_file() else None,
        }


def record(works: Sequence[Work]) -> dict[str, Any]:
    """Return what was found for a student, a work a seed, for the JSON file; it does not say where the files were."""
    first = works[0]
    bench = first.bench()
    given = first.student, Path("runs/teacher"), f"{first.data.partition(':')[0]}:PATH", first.steps, 0
    typed = {n: shlex.join(["lfd-train", *training(n, *given), "--out", f"runs/{n}"]) for n in TRAININGS}
    rows = {}
    for row, (meaning, scored_by) in ROWS.items():
        quantised = json.loads(first.path(scored_by, ".json").read_text(encoding="utf-8"))["quantised"]
        name, rounded = first.path(row, ".onnx").name, row == scored_by
        against = next((s.versus for s in bench.students if s.result.name == name), None)
        own = {work.path(row, ".onnx"): work for work in works}  # one, where no training made it
        scores = [work.score(row) for work in own.values()]
        rows[row] = {
            "what": meaning,
            "layers": quantised["layers"],
            "in_int8": quantised["in_int8"] if rounded else 0,
            "kept_float": quantised["kept_float"] if rounded else [],
            **{key: [score[key] for score in scores] for key in scores[0]},
            "p50_ms": next(m for m in bench.models if m.name == name).single.model_alone.latency.p50_ms,
            "times_faster": asdict(against.faster_alone) if against else None,
        }
    return {
        "student": first.student.run.name,
        "target": first.student.target,
        "trainings": {n: words.replace(str(first.student.run), "runs/student") for n, words in typed.items()},
        "rows": rows,
        "environment": asdict(bench.environment),
        "others_cores": max((look.others_cores or 0.0 for look in bench.conditions), default=None),
    }


def said(shares: Sequence[float | None]) -> str:
    """Return the mean in per cent, with the standard deviation where there is one."""
    known = [100 * share for share in shares if share is not None]
    if not known:
        return "-"
    return f"{mean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "")


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the rows of all students as Markdown; "~" marks a time that is not told from the float file's."""
    lines: list[tuple[str, ...]] = [HEADS, ("---",) * 3 + ("--:",) * 6]
    for record in records:
        for row in record["rows"].values():
            shares = [said(row[key]) for key in ("val_miou", "test_miou", "agreement")]
            times = row["times_faster"]
            told = "~" if times and times["low"] <= 1 <= times["high"] else ""
            lines.append((
                record["student"], record["target"], row["what"], f"{row['in_int8']} of {row['layers']}",
                *shares,
                "-" if row["p50_ms"] is None else f"{row['p50_ms']:.2f}",
                f"{told}{times['median']:.2f}" if times else "-",
            ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@click.command()
@click.option("--data", required=True, help="camvid:PATH")
@click.option("--teacher", type=click.Path(path_type=Path, exists=True), required=True, help="Run that teaches.")
@click.option("--student", "students", multiple=True, required=True, metavar="RUN@TARGET", help="Trained in float.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of runs and files.")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Of each training.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Of each training.")
@click.option("--threads", default=2, show_default=True, help="Threads for one inference that is timed.")
@click.option("--seconds", default=10.0, show_default=True, help="Measuring time for each file.")
@click.option("--remeasure", is_flag=True, help="Time the files again.")
@click.option("--result", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(
    data: str, teacher: Path, students: tuple[str, ...], out: Path, steps: int, seeds: int, threads: int,
    seconds: float, remeasure: bool, result: Path,
) -> None:  # fmt: skip
    """Train, export, score and time; write the JSON and print the table."""
    chosen = [Student.parse(text) for text in students]
    if len({student.name for student in chosen}) < len(chosen):
        raise UsageError("--student: two of one name and target; expected runs whose folders have different names")
    preload()
    works = [[Work(student, teacher, data, out, steps, k, Commands()) for k in range(seeds)] for student in chosen]
    for work in (work for each in works for work in each):
        work.make()
    for work in (work for each in works for work in each):
        work.measure(threads, seconds, remeasure)
    records = [record(each) for each in works]
    write_json(result, {"schema": 2, "steps": steps, "threads": threads, "students": records})
    click.echo(f"\n{table(records)}")


if __name__ == "__main__":
    main()
