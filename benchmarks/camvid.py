"""Teacher, plain student, KD and LFD on CamVid for equal steps, on a CPU, from random weights.

    python -m benchmarks.camvid --data camvid:PATH --out DIR

A run that is finished is kept, one that was interrupted goes on; the scores on the test split go to
benchmarks/results/camvid_cpu.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from benchmarks.commands import Commands
from deploy.environment import Environment
from lfd.console import guarded
from lfd.files import write_json
from lfd.runlog import METRICS_FILE

SIZE = "180x240"
TEACHER, TEACHER_STEPS = "deeplabv3_resnet18_os16", 3000
STUDENT, STUDENT_STEPS = "lraspp_mobilenet_v3_small", 1600
RESULTS = Path(__file__).parent / "results" / "camvid_cpu.json"


def runs(out: Path) -> dict[str, list[str]]:
    """Return the command of each run, without data and directory."""
    common = ["--recipe", "cpu_small", "--size", SIZE]
    student = [*common, "--steps", str(STUDENT_STEPS)]
    distill = ["distill", "--teacher", str(out / "teacher"), "--student", STUDENT, *student]
    teacher = ["teacher", "--model", TEACHER, *common, "--amp", "bf16", "--steps", str(TEACHER_STEPS)]
    return {
        "teacher": teacher,
        "baseline": ["teacher", "--model", STUDENT, *student],
        "kd": [*distill, "--method", "kd"],
        "lfd": [*distill, "--method", "lfd"],
    }


def steps_done(run: Path) -> int:
    """Return the last step that a run has validated, 0 when there is none."""
    path = run / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if "val_miou" in line), default=0)


@click.command()
@click.option("--data", required=True, help="camvid:PATH")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(data: str, out: Path, results: Path) -> None:
    """Train the four, score them on the test split, write the JSON."""
    commands, table = Commands(), {}
    for name, command in runs(out).items():
        run = out / name
        if steps_done(run) < int(command[command.index("--steps") + 1]):
            again = (run / "resume.pt").is_file()
            given = [command[0], "--resume"] if again else [*command, "--data", data, "--overwrite"]
            commands.run(f"train {name}", "lfd-train", *given, "--out", run)
        scores = json.loads(
            commands.run(f"score {name}", "lfd-train", "eval", run, "--data", f"{data}@test", "--json", capture=True)
        )
        typed = ["lfd-train", *command, "--data", "camvid:PATH", "--out", f"runs/{name}"]
        table[name] = {
            "command": " ".join(typed).replace(str(out), "runs"),
            "test_miou": scores["miou"],
            "test_iou": scores["iou"],
            "test_pixel_accuracy": scores["pixel_accuracy"],
            "pictures": scores["pictures"],
        }
        click.echo(f"{name:<10} test mIoU {scores['miou']:.2%}")
    write_json(results, {"schema": 1, "environment": asdict(Environment.here(0)), "runs": table})


if __name__ == "__main__":
    main()
