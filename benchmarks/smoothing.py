"""What temporal smoothing does and costs: flicker, mIoU and time a frame with and without `lfd-run --smooth`.

    python -m benchmarks.smoothing MODEL.onnx ... [--light day --light night] [--smooth 0.1s ...]

Each model drives through `street:`, whose truth is known in every frame, at its own input size, on drives that no data
set has. Flicker is the share of the pixels whose truth is the same in two frames in a row and whose class is not; mIoU
is of all frames. A model of classes is smoothed by hysteresis, one exported with `--output logits` exponentially.
Every row is a call of `lfd-run`; means over the drives are printed, and each drive's own figures go to
benchmarks/results/smoothing.json.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import click

from benchmarks.commands import Commands
from deploy.environment import Environment
from deploy.session import open_session
from lfd.console import guarded
from lfd.data.street_light import LIGHTS
from lfd.files import write_json

RESULTS = Path(__file__).parent / "results" / "smoothing.json"
SEEDS = (401, 402, 403, 404)
"""Of the drives."""
TIMES = ("0.05s", "0.1s", "0.2s", "0.4s")


def measure(commands: Commands, model: Path, sources: list[str], smooth: str | None) -> list[dict[str, Any]]:
    """Run a model over drives, one `lfd-run` for all, and return a record for each."""
    added = [word for source in sources[1:] for word in ("--add", source, "null://")]
    words = ["lfd-run", model, sources[0], "null://", *added, "--threads", 1, "--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "run.json"
        commands.run(f"{model} {smooth}", *words, *(["--smooth", smooth] if smooth else []), "--json", told)
        streams = json.loads(told.read_text(encoding="utf-8"))["streams"]
    return [
        {
            "source": stream["source"],
            "frames": stream["shown"],
            "miou": stream["miou"],
            "flicker": stream["flicker"],
            "infer_p50_ms": stream["stages"]["infer"]["p50_ms"],
            "smooth_p50_ms": stream["stages"]["smooth"]["p50_ms"] if smooth else 0.0,
        }
        for stream in streams
    ]


def row(entry: dict[str, Any], plain: dict[str, Any]) -> str:
    """Return an entry as a line of the table, beside the one without smoothing."""
    (miou, flicker, cost), (miou_0, flicker_0, _) = (
        [mean(drive[key] for drive in of["drives"]) for key in ("miou", "flicker", "smooth_p50_ms")]
        for of in (entry, plain)
    )
    kind = (
        f"{entry['model']:<20}{entry['output']:<10}{entry['size']:>9} {entry['light']:<6}{entry['smooth'] or 'off':>6}"
    )
    times = flicker / flicker_0 if flicker_0 else 1.0
    return f"{kind}{100 * miou:9.2f}{100 * (miou - miou_0):+7.2f}{100 * flicker:9.2f}{times:7.2f}{cost:9.3f}"


@click.command()
@click.argument("models", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--light", "lights", type=click.Choice(LIGHTS), multiple=True, default=("day", "night"))
@click.option("--smooth", "times", multiple=True, default=TIMES, show_default=True, help="As lfd-run takes it.")
@click.option("--frames", type=click.IntRange(2), default=250, show_default=True, help="Of each drive, 25 a second.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@guarded
def main(models: tuple[Path, ...], lights: tuple[str, ...], times: tuple[str, ...], frames: int, results: Path) -> None:
    """Run each of MODELS over the drives, without smoothing and with, and write the JSON."""
    commands, entries, lines = Commands(), [], []
    for model in models:
        with open_session(model) as session:
            spec = session.spec
        size = f"{spec.preprocess.size_hw[0]}x{spec.preprocess.size_hw[1]}"
        about = {"model": model.stem, "output": spec.output, "size": size}
        for light in lights:
            drives = [f"street:?size={size}&seed={seed}&light={light}&frames={frames}" for seed in SEEDS]
            own = [
                {**about, "light": light, "smooth": smooth, "drives": measure(commands, model, drives, smooth)}
                for smooth in (None, *times)
            ]
            lines += [row(entry, own[0]) for entry in own]
            entries += own
    head = f"{'model':<20}{'output':<10}{'size':>9} {'light':<6}{'smooth':>6}{'mIoU, %':>9}{'':>7}{'flicker, %':>10}"
    click.echo("\n".join([f"\n{head}{'times':>6}{'ms':>9}", *lines]))
    write_json(results, {"schema": 1, "environment": asdict(Environment.here(1)), "runs": entries})


if __name__ == "__main__":
    main()
