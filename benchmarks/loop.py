"""From deployment back to training: a student that learnt by day meets the night, and what its cameras kept mends it.

    python -m benchmarks.loop --out DIR

On `street:`, by the commands that a user types. A teacher learns in every light, a student from it by day. The student
drives by night, where `lfd-run --collect` keeps some frames; without labels they go back to the same teacher, with
`lfd-train distill --data frames:`, beside pictures of old day drives, and the student goes on from where it was.
Scored are the night and the day of the test split, 150 drives each, and two night drives frame by frame; none of these
was seen before.

The controls: as many frames taken evenly in place of the collected ones, and the collected ones without the day, which
shows what is forgotten. What is finished is kept, so that an interrupted call goes on; the scores go to
benchmarks/results/loop.json.
"""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import cv2

from benchmarks.camvid import steps_done
from benchmarks.commands import Commands, preload
from deploy.environment import Environment
from lfd.console import guarded
from lfd.data.street import Street, parse_options
from lfd.files import write_json

RESULTS = Path(__file__).parent / "results" / "loop.json"
SIZE, LIGHT = "120x160", "night"
TEACHER, STUDENT = "ddrnet23_slim", "lraspp_mobilenet_v3_small"
TRAIN_FRAMES, TEST_FRAMES, DRIVE_FRAMES = 1200, 150, 500
"""Pictures to learn from and to score, each of a drive of its own; and those of a drive, 20 s."""
NEW_DRIVES, OLD_DRIVES, TEST_DRIVES = range(201, 209), range(301, 309), (401, 402)
"""Seeds of drives; those of data sets are others."""
KEPT = 160
"""Frames that are kept of the new drives, and of the old ones."""

ARMS: dict[str, tuple[str, ...]] = {
    "collected and day": ("collected", "day"),
    "even and day": ("even", "day"),
    "collected alone": ("collected",),
}
"""What the student is mended with: folders of pictures."""


def dashed(name: str) -> str:
    """Return a name as that of a folder."""
    return name.replace(", ", "-").replace(" ", "-")


def street(**options: object) -> str:
    """Return the scene with options."""
    return f"street:?size={SIZE}" + "".join(f"&{key}={value}" for key, value in options.items())


def commands_of(out: Path, steps: tuple[int, int, int], seeds: int) -> dict[str, list[str]]:
    """Return the training commands, in order, by the run's name; `steps` are the teacher's, student's and mending."""
    recipe, day = ["--recipe", "cpu_small", "--size", SIZE, "--set", "data.scale=[0.75, 1.5]"], street()
    learn = ["distill", "--teacher", str(out / "teacher"), "--student", STUDENT, *recipe]
    every = street(light="any")
    found = {
        "teacher": [
            *["teacher", "--model", TEACHER, *recipe, "--amp", "bf16", "--steps", str(steps[0])],
            *["--data", f"{every}&frames={TRAIN_FRAMES}", "--val", every],
        ],
        "student": [*learn, "--steps", str(steps[1]), "--data", f"{day}&frames={TRAIN_FRAMES}", "--val", day],
    }
    mend = ["--init", str(out / "student"), "--steps", str(steps[2]), "--set", "optimizer.lr=5e-4"]
    mend += ["--set", "optimizer.warmup=20"]
    for arm in ARMS:
        for seed in range(seeds):
            pictures = ["--data", f"frames:{out / 'pictures' / dashed(arm)}", "--val", day, "--seed", str(seed)]
            found[f"{arm}, seed {seed}"] = [*learn, *mend, *pictures]
    for name, words in found.items():  # but the teacher is scored once, at the end: no label chooses anything
        every_steps = 400 if name == "teacher" else int(words[words.index("--steps") + 1])
        words += ["--set", f"train.eval_every={every_steps}"]
    return found


def save_evenly(sources: list[str], count: int, folder: Path) -> None:
    """Write so many frames, spread evenly over drives, as pictures."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    each = count // len(sources)
    for source in sources:
        asked = parse_options(source.partition(":")[2])
        drive = Street(asked.seed, asked.size_hw, asked.light, asked.weather)
        for k in range(each):
            sample = drive.render((2 * k + 1) * DRIVE_FRAMES // (2 * each))
            cv2.imwrite(str(aside / f"{sample.name}.png"), sample.image)
    aside.replace(folder)


def finished(summary: Path) -> bool:
    """Return whether a run of lfd-run that writes this file came to its end."""
    return summary.is_file() and not json.loads(summary.read_text(encoding="utf-8"))["interrupted"]


class Loop:
    """The steps, each skipped when it is done.

    Args:
        out: Where to.
        steps: Of the trainings, see `commands_of`.
        seeds: Of each way of mending.
    """

    def __init__(self, out: Path, steps: tuple[int, int, int], seeds: int) -> None:
        self.out, self.commands = out, Commands()
        self.trainings = commands_of(out, steps, seeds)

    def run(self, name: str, *words: object) -> dict[str, Any]:
        """Run a command that ends with the JSON file it writes, and return what that says; a run to its end is kept."""
        path = Path(str(words[-1]))
        if not finished(path):
            path.unlink(missing_ok=True)
            self.commands.run(name, *words)
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def train(self, name: str) -> Path:
        """Train a run, or go on with it, and return where it is."""
        run, words = self.out / dashed(name), self.trainings[name]
        if steps_done(run) < int(words[words.index("--steps") + 1]):
            again = (run / "resume.pt").is_file()
            self.commands.run(name, "lfd-train", *([words[0], "--resume"] if again else words), "--out", run)
        return run

    def score(self, run: Path) -> dict[str, float]:
        """Return a run's mIoU by light on the test split."""
        path, found = run / "scores.json", {}
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        for light in (LIGHT, "day"):
            told = ["lfd-train", "eval", run, "--data", street(light=light, frames=TEST_FRAMES) + "@test", "--json"]
            found[light] = json.loads(self.commands.run(f"score {run.name} by {light}", *told, capture=True))["miou"]
        write_json(path, found)
        return found

    def drive(self, run: Path) -> list[float]:
        """Export a run and return its mIoU on each of the new drives that nothing was collected on."""
        model = run / "model.onnx"
        if not model.is_file():
            self.commands.run("export", "lfd-export", "onnx", run, "-o", model, "--data", street(light="any") + "@val")
        sources = [street(seed=seed, light=LIGHT, frames=DRIVE_FRAMES) for seed in TEST_DRIVES]
        added = [word for source in sources[1:] for word in ("--add", source, "null://")]
        told = self.run("drive", "lfd-run", model, sources[0], "null://", *added, "--json", run / "drive.json")
        return [stream["miou"] for stream in told["streams"]]

    def collect(self, run: Path) -> int:
        """Drive by night and gather pictures for each arm; return how many were collected."""
        new = [street(seed=seed, light=LIGHT, frames=DRIVE_FRAMES) for seed in NEW_DRIVES]
        old = [street(seed=seed, frames=DRIVE_FRAMES) for seed in OLD_DRIVES]
        model, kept, summary = run / "logits.onnx", self.out / "collected", self.out / "collect.json"
        if not model.is_file():
            told = ["lfd-export", "onnx", run, "-o", model, "--output", "logits"]
            self.commands.run("export", *told, "--data", street(light="any") + "@val")
        added = [word for source in new[1:] for word in ("--add", source, "null://")]
        if not finished(summary):
            shutil.rmtree(kept, ignore_errors=True)  # the same drive a second time would be another's
        keep = ["--collect", kept, "--collect-max", KEPT]
        self.run("collect", "lfd-run", model, new[0], "null://", *added, *keep, "--json", summary)
        folders = {"collected": kept, "even": self.out / "even", "day": self.out / "day"}
        count = len(list(kept.glob("*.png")))
        for name, sources in (("even", new), ("day", old)):
            if not folders[name].exists():
                save_evenly(sources, count, folders[name])
        for arm, names in ARMS.items():
            for name in names:
                shutil.copytree(folders[name], self.out / "pictures" / dashed(arm) / name, dirs_exist_ok=True)
        return count


def said(miou: list[float]) -> str:
    """Return a mean in per cent, with its standard deviation where there is one."""
    spread = f" ± {100 * stdev(miou):.2f}" if len(miou) > 1 else ""
    return f"{100 * mean(miou):.2f}{spread}"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of runs and pictures.")
@click.option(
    "--steps", type=click.IntRange(1), nargs=3, default=(1600, 800, 150), help="Of teacher, student and each mending."
)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Of each mending.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(out: Path, steps: tuple[int, int, int], seeds: int, results: Path) -> None:
    """Train, deploy, collect, train again; write the JSON."""
    preload()
    loop = Loop(out, steps, seeds)
    teacher = loop.train("teacher")
    student = loop.train("student")
    record: dict[str, Any] = {
        "teacher": loop.score(teacher),
        "before": loop.score(student) | {"drives": loop.drive(student)},
    }
    count = loop.collect(student)
    for arm in ARMS:
        runs = [loop.train(f"{arm}, seed {seed}") for seed in range(seeds)]
        scores = [loop.score(run) for run in runs]
        drives = {"drives": loop.drive(runs[0])} if arm == next(iter(ARMS)) else {}
        record[arm] = {light: [score[light] for score in scores] for light in (LIGHT, "day")} | drives
    click.echo(f"\n{'mIoU, %':<24}{LIGHT:>16}{'day':>16}   drives by {LIGHT}")
    for name, found in record.items():
        shown = [said(v if isinstance(v, list) else [v]) for v in (found[LIGHT], found["day"])]
        drives_of = " ".join(f"{100 * miou:.2f}" for miou in found.get("drives", []))
        click.echo(f"{name:<24}{shown[0]:>16}{shown[1]:>16}   {drives_of}")
    about = {"size": SIZE, "light": LIGHT, "steps": steps, "collected": count, "drive_frames": DRIVE_FRAMES}
    typed = {
        name: shlex.join(["lfd-train", *words, "--out", str(out / dashed(name))]).replace(str(out), "runs")
        for name, words in loop.trainings.items()
    }
    environment = asdict(Environment.here(0))
    write_json(results, {"schema": 1, **about, "environment": environment, "trainings": typed, "miou": record})


if __name__ == "__main__":
    main()
