"""How large the torch-free install is, and how long `lfd-run` takes from its start to the first segmented frame.

    python -m benchmarks.startup FILM MODEL.onnx [MODEL.onnx ...] [--runs 15] [--out FILE]

`.[deploy]` is installed from this checkout into a fresh environment, in the versions of constraints.txt, and its files
are counted by package. Then `lfd-run MODEL FILM null:// --max-frames 1` is started over and over, models and variants
in turns, so that all see the same state of the machine; a first round, which reads everything from the disk, is thrown
away. What is reported of each variant:

- command: the command as a user types it, from the start of the process to its end; nothing is added to it. Its
  processor time, beside it, depends less on what else the machine does.
- the way to the first frame, in a process that notes the clock where functions of lfd-run begin and end:
  interpreter (Python runs its first line), imports (the command line is read and checked, the model comes next),
  model (loaded and compiled, its runtime's import included), first frame (decoded, segmented, at the sink).

Variants: every model on its own backend, those in fp32 on OpenVINO too, which is added to the environment when the rest
has been counted; and the smallest model once more without compiled bytecode, as `uv pip install` leaves it unless told
--compile-bytecode, where who runs it may not write.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from lfd.console import guarded
from lfd.errors import LfdError
from lfd.files import write_json

ROOT = Path(__file__).parents[1]
STAGES = ("interpreter", "imports", "model", "first frame")
"""Each from the end of the one before, the first from the start of the process."""
LIMIT_S = 120.0

MARKED = """
import time
clock = {"interpreter": time.monotonic_ns()}
import os, sys
from deploy import cli, opening
from deploy.sinks import null

def load(*args, load=opening.open_session):
    clock["imports"] = time.monotonic_ns()
    session = load(*args)
    clock["model"] = time.monotonic_ns()
    return session

opening.open_session = load
null.NullSink.write = lambda sink, frame, class_map: clock.setdefault("first frame", time.monotonic_ns())
try:
    cli.run_main.main(sys.argv[1:])
finally:
    print(os.environ["LFD_BEGAN_NS"], *clock.values())
"""
"""`lfd-run` with its clock noted. What it imports early are modules of ours that the command imports anyway."""

SIZES = """
import importlib.metadata, json, os
sizes = {}
for package in importlib.metadata.distributions():
    files = [path.locate() for path in package.files or ()]
    caches = {path.parent / "__pycache__" for path in files if path.suffix == ".py"}
    files += [entry for cache in caches if cache.is_dir() for entry in cache.iterdir()]
    sizes[package.metadata["Name"]] = sum(os.path.getsize(path) for path in set(files) if path.is_file())
print(json.dumps(sizes))
"""

ABOUT = """
import dataclasses, json
from deploy.environment import Environment
print(json.dumps(dataclasses.asdict(Environment.here())))
"""
"""Run in the environment that is measured, whose packages count."""


@dataclass(frozen=True)
class Variant:
    """Something to start.

    Attributes:
        name: For people.
        python: The environment's.
        words: Behind `lfd-run`.
        flags: Of Python.
    """

    name: str
    python: Path
    words: tuple[str, ...]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """One start of a variant, in ms: the plain command, its processor time (user and system), and each of STAGES."""

    command: float
    processor: float
    stages: Mapping[str, float]

    @property
    def to_first_frame(self) -> float:
        """From the start of the process until the first segmented frame is at its sink."""
        return sum(self.stages.values())


def call(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed.

    Raises:
        LfdError: It failed, or took longer than LIMIT_S; with the last line that it wrote.
    """
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=env, check=False)
    except subprocess.TimeoutExpired as error:
        raise LfdError(f"{words[0]}: took longer than {LIMIT_S:g} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise LfdError(f"{words[0]}: ended with exit code {done.returncode}: {last}")
    return done.stdout


def install(folder: Path) -> Path:
    """Make an environment with `.[deploy]` of this checkout; return its Python."""
    call(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    add(python, f"{ROOT}[deploy]")
    return python


def add(python: Path, requirement: str) -> None:
    """Install something, compiled, by a pip that is not in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        call(sys.executable, "-m", "venv", folder)
        pip = (f"{folder}/bin/pip", "--python", python, "--disable-pip-version-check", "install", "--quiet")
        call(*pip, "--constraint", ROOT / "constraints.txt", requirement)


def sizes_mb(python: Path) -> dict[str, float]:
    """Return each package's size with its bytecode, MB, the largest first."""
    found: Mapping[str, int] = json.loads(call(python, "-c", SIZES))
    return {name: size / 1e6 for name, size in sorted(found.items(), key=lambda item: -item[1])}


def interpreter_mb(python: Path) -> float:
    """Return the size of Python itself, MB: program and library, without packages, its tests and what embeds it."""
    code = "import sys, sysconfig; print(sysconfig.get_path('stdlib')); print(sys._base_executable)"
    library, program = map(Path, call(python, "-c", code).splitlines())
    beside = re.compile(r"site-packages|dist-packages|test|config-.*")
    files = [path for path in library.rglob("*") if not any(map(beside.fullmatch, path.relative_to(library).parts))]
    return sum(path.stat().st_size for path in [*files, program.resolve()] if path.is_file()) / 1e6


def start(variant: Variant) -> Start:
    """Start a variant twice: as a user does, and with its clock noted."""
    run: tuple[str | Path, ...] = (variant.python, *variant.flags)
    began, before = time.monotonic_ns(), resource.getrusage(resource.RUSAGE_CHILDREN)
    call(*run, variant.python.parent / "lfd-run", *variant.words)
    command, after = (time.monotonic_ns() - began) / 1e6, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = 1e3 * (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    began = time.monotonic_ns()
    printed = call(*run, "-c", MARKED, *variant.words, env=os.environ | {"LFD_BEGAN_NS": str(began)})
    clock = [int(word) for word in printed.split()]
    if len(clock) != len(STAGES) + 1:
        raise LfdError(f"{variant.name}: came no further than {STAGES[len(clock) - 2]!r}")
    stages = {name: (end - begin) / 1e6 for name, (begin, end) in zip(STAGES, pairwise(clock), strict=True)}
    return Start(command, processor, stages)


def summarise(starts: Sequence[Start]) -> dict[str, Any]:
    """Return medians, and of the sums the range too, in ms."""
    whole, command = [one.to_first_frame for one in starts], [one.command for one in starts]
    return {
        "to_first_frame_ms": {"median": statistics.median(whole), "min": min(whole), "max": max(whole)},
        "processor_ms": statistics.median(one.processor for one in starts),
        "command_ms": {"median": statistics.median(command), "min": min(command), "max": max(command)},
        "stages_ms": {name: statistics.median(one.stages[name] for one in starts) for name in STAGES},
    }


def in_turns(variants: Sequence[Variant], runs: int) -> dict[str, list[Start]]:
    """Start each variant so many times, the order reversed from round to round, after a round that does not count."""
    found: dict[str, list[Start]] = defaultdict(list)
    for index in range(runs + 1):
        for variant in variants if index % 2 else reversed(variants):
            taken = start(variant)
            if index:
                found[variant.name].append(taken)
    return found


def variants_of(film: Path, models: Sequence[Path], python: Path, bare: Path) -> list[Variant]:
    """Return what is to be started.

    Args:
        film: The source.
        models: Each on its own backend, fp32 ones on OpenVINO too.
        python: Of the environment.
        bare: Of one without bytecode.
    """
    variants = []
    for model in models:
        words = (str(model), str(film), "null://", "--max-frames", "1", "--quiet")
        variants.append(Variant(model.stem, python, words))
        if "int8" not in model.stem:
            variants.append(Variant(f"{model.stem} on openvino", python, (*words, "--backend", "openvino")))
    smallest = min(models, key=lambda model: model.stat().st_size)
    first = next(variant for variant in variants if variant.name == smallest.stem)
    return [*variants, Variant(f"{smallest.stem} without bytecode", bare, first.words, ("-B",))]


def without_bytecode(python: Path, folder: Path) -> Path:
    """Copy an environment without the compiled files of its packages; return the copy's Python."""
    shutil.copytree(python.parents[1], folder, symlinks=True)
    for compiled in folder.glob("lib/*/site-packages/**/__pycache__/*.pyc"):
        compiled.unlink()
    return folder / "bin" / "python"


def table(record: Mapping[str, Any]) -> str:
    """Return a record as two Markdown tables: MB by package, and ms on the way to the first frame."""
    size = record["size_mb"]
    lines = ["| package | MB |", "| --- | ---: |"]
    lines += [f"| {name} | {mb:.1f} |" for name, mb in size["packages"].items() if mb >= 0.05]
    lines += [f"| in all | {size['all']:.1f} |", f"| Python itself | {size['python']:.1f} |"]
    lines += [f"| + openvino | {size['openvino']:.1f} |", ""]
    lines += [
        f"| | {' | '.join(STAGES)} | to the first frame | command | processor |",
        f"| --- |{' ---: |' * (len(STAGES) + 3)}",
    ]
    for name, of in record["starts"].items():
        cells = [f"{ms:.0f}" for ms in of["stages_ms"].values()]
        cells += [
            "{median:.0f} ({min:.0f} to {max:.0f})".format(**of[key]) for key in ("to_first_frame_ms", "command_ms")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {of['processor_ms']:.0f} |")
    return "\n".join(lines)


@click.command()
@click.argument("film", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("models", type=click.Path(exists=True, dir_okay=False, path_type=Path), nargs=-1, required=True)
@click.option("--runs", type=click.IntRange(1), default=15, show_default=True, help="Starts of each variant.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON to write.")
@guarded
def main(film: Path, models: tuple[Path, ...], runs: int, out: Path | None) -> None:
    """Count the torch-free install and time `lfd-run` with each of the MODELS on FILM until its first frame."""
    with tempfile.TemporaryDirectory() as folder:
        python = install(Path(folder) / "runtime")
        packages, itself = sizes_mb(python), interpreter_mb(python)
        bare = without_bytecode(python, Path(folder) / "bare")
        add(python, f"{ROOT}[deploy,openvino]")
        with_openvino = sum(sizes_mb(python).values())
        load_before = os.getloadavg()[0]
        found = in_turns(variants_of(film.absolute(), [model.absolute() for model in models], python, bare), runs)
        load_after = os.getloadavg()[0]
        environment = json.loads(call(python, "-c", ABOUT))
    record = {
        "schema": 1,
        "what": "size of the install of .[deploy]; from the start of lfd-run to its first segmented frame, warm disk",
        "film": film.name,
        "runs": runs,
        "size_mb": {
            "packages": packages,
            "all": sum(packages.values()),
            "python": itself,
            "openvino": with_openvino - sum(packages.values()),
        },
        "starts": {
            name: {**summarise(starts), "runs": [asdict(one) for one in starts]} for name, starts in found.items()
        },
        "load_average": {"before": load_before, "after": load_after},
        "environment": environment,
    }
    print(table(record))
    if out:
        write_json(out, record)


if __name__ == "__main__":
    main()
