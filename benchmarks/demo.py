"""The whole path in a few minutes: teacher, student, export, film, benchmark, on street: or on your data.

`make demo` runs this. Each step is a command as a user types it, shown before it runs.
"""

from __future__ import annotations

import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from benchmarks.commands import Commands, preload
from deploy.session import class_map, open_session
from lfd.console import guarded
from lfd.data import open_dataset
from lfd.errors import UsageError
from lfd.files import replacing, write_json, write_text
from lfd.picture import colorize, table
from lfd.preprocess import fit_frame, restore_map

MARKER = ".lfd-demo"
FILM = "street:?seed=7&frames=200"


def draw(data: str, models: list[Path], path: Path, count: int = 6) -> None:
    """Write frame, truth, teacher and student side by side for pictures spread over the test split."""
    dataset = open_dataset(data, "test")
    sessions = [open_session(model) for model in models]
    rows = []
    for index in np.linspace(0, len(dataset) - 1, count).round().astype(int):
        sample = dataset[int(index)]
        hw = (sample.mask.shape[0], sample.mask.shape[1])
        row = [sample.image, colorize(sample.mask, dataset.labels)]
        for session in sessions:
            preprocess = session.spec.preprocess
            found = restore_map(class_map(session, fit_frame(sample.image, preprocess)), preprocess, hw)
            row.append(colorize(found, dataset.labels))
        rows.append(row)
    with replacing(path) as aside:
        picture = table(rows, ["frame", "truth", "teacher", "student (LFD)"], (240, 320))
        aside.write_bytes(cv2.imencode(".png", picture)[1].tobytes())


@click.command()
@click.option("--data", default="street:", show_default=True, help="Data set, such as camvid:PATH.")
@click.option("--video", help="Film, camera or pictures for the last step; the built-in drive by default.")
@click.option("--teacher", default="deeplabv3_resnet18_os8", show_default=True)
@click.option("--student", default="lraspp_mobilenet_v3_small", show_default=True)
@click.option(
    "--steps", type=click.IntRange(1), help="Steps of each training, for a quick look; the recipes' own by default."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@guarded
def main(data: str, video: str | None, teacher: str, student: str, steps: int | None, out: Path) -> None:
    """Train a teacher, distil a student, export, run and measure both. An earlier demo in --out is replaced."""
    if out.exists() and not (out / MARKER).is_file():
        raise UsageError(f"{out} exists and is not an earlier demo; choose another folder with --out")
    if video is None and not data.startswith("street:"):
        raise UsageError(f"no film for data {data!r}; give --video FILE (make demo VIDEO=FILE)")
    open_dataset(data, "test")
    if out.exists():
        shutil.rmtree(out)
    write_text(out / MARKER, "Made by make demo; the next one replaces this folder.\n")
    began, demo = time.monotonic(), Commands()
    preload()
    runs = {name: out / name for name in ("teacher", "student", "baseline")}
    exports = {name: out / f"{name}.onnx" for name in ("teacher", "student")}
    supervised, on = ["lfd-train", "teacher", "--model"], ["--data", data]
    length = ["--steps", steps, "--set", f"train.eval_every={steps}", "--set", "optimizer.warmup=0"] if steps else []
    pupil = [*on, *length, "--recipe", "demo_student", "--out"]
    demo.run(
        "train the teacher", *supervised, teacher, *on, *length, "--recipe", "demo_teacher", "--out", runs["teacher"]
    )
    learn = ["lfd-train", "distill", "--method", "lfd", "--teacher", runs["teacher"], "--student", student]
    demo.run("distil the student", *learn, *pupil, runs["student"])
    demo.run("train it without a teacher", *supervised, student, *pupil, runs["baseline"])
    for name, path in exports.items():
        demo.run(f"export the {name}", "lfd-export", "onnx", runs[name], "-o", path)
    demo.run("verify the student", "lfd-export", "verify", runs["student"], exports["student"], *on)
    scores = demo.run("score the baseline", "lfd-train", "eval", runs["baseline"], *on, "--json", capture=True)
    demo.run("run the student", "lfd-run", exports["student"], video or FILM, out / "student.webm")
    rivals = ["lfd-bench", exports["student"], "--teacher", exports["teacher"], *on]
    demo.run("benchmark", *rivals, "--seconds", 1 if steps else 4, "--out", out / "bench")
    draw(data, list(exports.values()), out / "side-by-side.png")
    bench = json.loads((out / "bench" / "bench.json").read_text(encoding="utf-8"))
    report(demo, bench, json.loads(scores)["miou"], out, time.monotonic() - began)


def report(demo: Commands, bench: dict[str, Any], baseline: float, out: Path, seconds: float) -> None:
    """Print the table and the paths, and write them down."""
    student, teacher = bench["students"][0], bench["teacher"]
    result, versus = student["result"], student["versus"]
    gain = result["accuracy"]["miou"] - baseline
    columns = ("mIoU, %", "median, ms", "file, MB", "parameters, M")
    widths = [len(column) + 3 for column in columns]
    lines = ["on the test split".ljust(44) + "".join(c.rjust(w) for c, w in zip(columns, widths, strict=True))]
    for role, m in (("teacher", teacher), ("student, LFD", result)):
        median = m["single"]["end_to_end"]["latency"]["p50_ms"]
        cells = (100 * m["accuracy"]["miou"], median, m["file_bytes"] / 1e6, m["params"] / 1e6)
        numbers = (f"{cell:.2f}".rjust(w) for cell, w in zip(cells, widths, strict=True))
        lines.append(f"{role:<16}{m['model']:<28}" + "".join(numbers))
    lines += [
        f"{'student, alone':<16}{result['model']:<28}" + f"{100 * baseline:.2f}".rjust(widths[0]),
        "",
        (
            f"The student is {versus['faster_end_to_end']['median']:.1f} times faster than its teacher and keeps "
            f"{versus['miou_kept']:.1%} of its mIoU; LFD made {100 * gain:+.2f} points of difference to it."
        ),
        "",
        *(f"{name:<28}{value:>8.1f} s" for name, value in demo.seconds.items()),
        (
            f"{'in all':<28}{seconds:>8.1f} s, largest process "
            f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9:.2f} GB"
        ),
    ]
    write_text(out / "summary.txt", "\n".join(lines) + "\n")
    write_json(out / "commands.json", demo.typed)
    click.echo("\n" + "\n".join(lines))
    click.echo(
        f"\nfilm     {out / 'student.webm'}\npicture  {out / 'side-by-side.png'}"
        f"\nreport   {out / 'bench' / 'bench.html'}"
    )


if __name__ == "__main__":
    main()
