"""A student that never saw a label: distilled on the pictures alone, beside the same student with labels.

    python -m benchmarks.film_only --data camvid:PATH --teacher RUN --out DIR

Same network, steps, batch and seed as in benchmarks.camvid; the pictures are those of the train split, read
as `frames:` so that their labels are not even opened. A run that is finished is kept, one that was
interrupted goes on; the scores on the test split go to benchmarks/results/film_only.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.camvid import SIZE, STUDENT, STUDENT_STEPS, steps_done
from benchmarks.commands import Commands
from deploy.environment import Environment
from lfd.console import guarded
from lfd.files import write_json

RESULTS = Path(__file__).parent / "results" / "film_only.json"

RUNS: dict[str, tuple[str, ...]] = {
    "lfd, teacher's classes for labels": ("--method", "lfd"),
    "kd, teacher's classes for labels": ("--method", "kd"),
}
"""What each run without labels is, and its options."""


@click.command()
@click.option("--data", required=True, help="camvid:PATH")
@click.option("--teacher", type=click.Path(path_type=Path), required=True, help="Run of benchmarks.camvid.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(data: str, teacher: Path, out: Path, results: Path) -> None:
    """Train the student on pictures alone, score it on the test split, write the JSON."""
    commands, table = Commands(), {}
    for number, (name, options) in enumerate(RUNS.items()):
        run = out / f"film{number}"
        typed = ["--student", STUDENT, "--recipe", "cpu_small", "--size", SIZE, "--steps", str(STUDENT_STEPS), *options]
        if steps_done(run) < STUDENT_STEPS:
            pictures = f"frames:{data.partition(':')[2]}/train"
            fresh = ["--teacher", str(teacher), *typed, "--data", pictures, "--val", data, "--overwrite"]
            given = ["--resume"] if (run / "resume.pt").is_file() else fresh
            commands.run(name, "lfd-train", "distill", *given, "--out", run)
        scores = json.loads(
            commands.run(f"score {name}", "lfd-train", "eval", run, "--data", f"{data}@test", "--json", capture=True)
        )
        told = ["--teacher", "runs/teacher", *typed, "--data", "frames:PATH/train", "--val", "camvid:PATH"]
        table[name] = {
            "command": " ".join(["lfd-train distill", *told, "--out", f"runs/film{number}"]),
            "test_miou": scores["miou"],
            "test_iou": scores["iou"],
            "test_pixel_accuracy": scores["pixel_accuracy"],
            "pictures": scores["pictures"],
        }
        click.echo(f"{name:<36} test mIoU {scores['miou']:.2%}")
    write_json(results, {"schema": 1, "environment": asdict(Environment.here(0)), "runs": table})


if __name__ == "__main__":
    main()
