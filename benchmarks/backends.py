"""Backends x precisions x models on one machine: latency, agreement with fp32 on ONNX Runtime, and accuracy.

    python -m benchmarks.backends MODEL.onnx [MODEL.onnx ...] [--data camvid:PATH] [--out FILE]

A family is a file and those whose names go on after its own: teacher.onnx, teacher_int8_ort.onnx. Every backend that is
installed and takes a file runs it, in a process of its own. Those of a family take turns, the order reversed from turn
to turn; all are timed on the same frames of the data set. Agreement is the share of pixels, at the model's size, with
the class that `ort` gives for the family's first file, and mIoU is at the size of the labels, as lfd-bench has it; both
on the pictures asked for. Families come one after another, and so do numbers of threads.

It writes FILE with every turn's median, and prints a table.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
import numpy as np

from deploy.auto import candidates
from deploy.bench.pictures import spread, timing_frames
from deploy.bench.probe import Probe
from deploy.environment import Environment
from lfd.console import guarded
from lfd.data import open_dataset
from lfd.data.base import Dataset
from lfd.errors import LfdError, UsageError
from lfd.files import check_free, write_json
from lfd.metrics import ConfusionMatrix
from lfd.preprocess import Image, fit_frame, restore_map
from lfd.spec import ModelSpec

REFERENCE = "ort"
STAGES = ("fit_ms", "model_ms", "restore_ms")


@dataclass(frozen=True)
class Row:
    """A file on a backend.

    Attributes:
        family: Name of the family's first file, without its suffix.
        file: Name of the file.
        precision: In which the backend ran it.
        backend: A name in `deploy.session.BACKENDS`.
        threads: For one inference.
        p50_ms: Median of the model alone over all runs, ms.
        turns_ms: Median of each turn, ms, in order.
        agreement: Share of pixels with the reference's class; None where it was not asked for.
        miou: In [0, 1]; None where the data has other classes.
    """

    family: str
    file: str
    precision: str
    backend: str
    threads: int
    p50_ms: float
    turns_ms: tuple[float, ...]
    agreement: float | None
    miou: float | None


@dataclass
class _Case:
    """A file on a backend, while it is measured."""

    path: Path
    backend: str
    probe: Probe
    spec: ModelSpec
    precision: str
    frame_ms: float = 0.0
    turns: list[list[float]] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    confusion: ConfusionMatrix | None = None


def families(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files by family, in the order given; the file that gives it its name comes first.

    Raises:
        UsageError: Two files have one name.
    """
    stems = [path.stem for path in paths]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise UsageError(f"two files are called {sorted(twice)[0]!r}; expected names that tell them apart")
    found: dict[str, list[Path]] = {}
    for path in sorted(paths, key=lambda p: len(p.stem)):
        family = next((name for name in found if path.stem.startswith(f"{name}_")), path.stem)
        found.setdefault(family, []).append(path)
    return {name: found[name] for name in stems if name in found}


def measure(
    family: str,
    paths: Sequence[Path],
    dataset: Dataset,
    threads: int,
    turns: int,
    seconds: float,
    scored: Sequence[int],
    say: Callable[[str], None],
) -> list[Row]:
    """Measure a family, and score it on these pictures of the data set, if any.

    Raises:
        LfdError: The reference cannot run.
    """
    frames = timing_frames(dataset)[0]
    with ExitStack() as stack:
        cases = []
        for path in paths:
            for backend in candidates(path):
                probe = stack.enter_context(Probe(path))
                try:
                    reply = probe.load(frames, threads, backend)
                except LfdError as error:  # such as bf16 on a processor without it
                    if (path, backend) == (paths[0], REFERENCE):
                        raise
                    say(f"{path.name} on {backend}: {error}")
                    continue
                spec = ModelSpec.from_json(reply["spec"], path.name)
                cases.append(_Case(path, backend, probe, spec, reply["build"]["precision"]))
        cases.sort(key=lambda case: (case.path, case.backend) != (paths[0], REFERENCE))
        if not cases or (cases[0].path, cases[0].backend) != (paths[0], REFERENCE):
            raise UsageError(f"{paths[0]}: does not run on {REFERENCE}, which the family is held against")
        for turn in range(-1, turns):  # the first is the warm-up, and says how many runs a turn has
            for case in cases[:: -1 if turn % 2 else 1]:
                say(f"{family}, {threads} threads: turn {turn + 1} of {turns}, {case.path.name} on {case.backend}")
                runs = max(3, round(1e3 * seconds / turns / case.frame_ms)) if case.frame_ms else 5
                reply = case.probe.ask("measure", (), seconds, count=runs, batch=None)[0]
                case.turns.append(list(reply["model_ms"]))
                case.frame_ms = sum(statistics.median(reply[stage]) for stage in STAGES)
        _score(cases, dataset, scored, say)
    return [_row(family, case, threads) for case in cases]


def _score(cases: Sequence[_Case], dataset: Dataset, scored: Sequence[int], say: Callable[[str], None]) -> None:
    for case in cases:
        if scored and case.spec.labels == dataset.labels:
            case.confusion = ConfusionMatrix(len(case.spec.labels))
    for done, index in enumerate(scored):
        say(f"scoring picture {done + 1} of {len(scored)}")
        sample = dataset[index]
        size = (sample.image.shape[0], sample.image.shape[1])
        expected: Image | None = None
        for case in cases:
            found = case.probe.predict(fit_frame(sample.image, case.spec.preprocess))
            expected = found if expected is None else expected  # the reference is the first
            case.same.append(float(np.mean(found == expected)))
            if case.confusion is not None:
                case.confusion.update(sample.mask, restore_map(found, case.spec.preprocess, size))


def _row(family: str, case: _Case, threads: int) -> Row:
    timed = case.turns[1:]
    return Row(
        family=family,
        file=case.path.name,
        precision=case.precision,
        backend=case.backend,
        threads=threads,
        p50_ms=statistics.median([ms for turn in timed for ms in turn]),
        turns_ms=tuple(statistics.median(turn) for turn in timed),
        agreement=statistics.fmean(case.same) if case.same else None,
        miou=case.confusion.miou() if case.confusion is not None else None,
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table; a row has all numbers of threads of a file on a backend."""
    counts = list(dict.fromkeys(row.threads for row in rows))
    lines = [
        "| model | file | backend | runs in | "
        + " | ".join(f"p50 ms, {n} thread{'s' if n > 1 else ''}" for n in counts)
        + " | agrees with ort fp32 | mIoU |",
        "|" + "---|" * 4 + "--:|" * (len(counts) + 2),
    ]
    keys = dict.fromkeys((row.family, row.file, row.backend) for row in rows)
    for key in keys:
        mine = [row for row in rows if (row.family, row.file, row.backend) == key]
        p50 = {row.threads: f"{row.p50_ms:.1f}" for row in mine}
        agreement = next((f"{100 * row.agreement:.2f} %" for row in mine if row.agreement is not None), "")
        miou = next((f"{100 * row.miou:.2f}" for row in mine if row.miou is not None), "")
        cells = [*key, mine[0].precision, *(p50.get(n, "") for n in counts), agreement, miou]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", default="street:", show_default=True, metavar="NAME:PATH[@SPLIT]", help="Pictures to run on.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(2, 1),
    show_default=True,
    help="For one inference.",
)
@click.option("--turns", type=click.IntRange(2, 100), default=8, show_default=True, help="Turns of each.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 600), default=6.0, show_default=True, help="Measuring time of each."
)
@click.option("--images", type=click.IntRange(min=1), help="Score on so many, spread over the set; by default on all.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this file.")
@click.option("--overwrite", is_flag=True, help="Replace it.")
@guarded
def main(
    models: tuple[Path, ...],
    data: str,
    threads: tuple[int, ...],
    turns: int,
    seconds: float,
    images: int | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Measure every backend on every model."""
    if out is not None:
        check_free(out, overwrite)
    groups, dataset = families(models), open_dataset(data, "test")
    chosen, counts = spread(len(dataset), images), tuple(dict.fromkeys(threads))
    rows: list[Row] = []
    for family, paths in groups.items():
        for count in counts:
            # What comes out does not depend on the threads: it is looked at once.
            scored = chosen if count == counts[0] else ()
            rows += measure(family, paths, dataset, count, turns, seconds, scored, _say)
    if out is not None:
        options = {"data": data.partition(":")[0], "scored": len(chosen), "turns": turns, "seconds": seconds}
        environment = asdict(Environment.here(counts[0]))
        write_json(out, {"schema": 1, "environment": environment, **options, "rows": [asdict(row) for row in rows]})
    click.echo(table(rows))


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
