"""A whole matrix of benchmarks from one TOML file, for the table of a device; it goes on where it was interrupted.

    title = "CamVid on this board"      # keys before the first case are defaults of all
    data = "camvid:PATH"                # --data replaces it
    seconds = 10.0
    scenarios = ["offline", "stream@30"]

    [[case]]
    name = "fp32"
    teacher = "models/teacher.onnx"     # paths as on the command line, from the current folder
    students = ["models/lfd.onnx"]
    backends = ["ort", "openvino"]      # a report for each, times each of `threads`
    threads = [1, 2]
    batches = [1, 4]
    sizes = ["90x120"]
    max_images = 100

Each report is in a folder of its own in DIR; suite.md, suite.csv and suite.html there hold the rows of all.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from deploy.artifact import sha256
from deploy.bench.benchmark import run_benchmark
from deploy.bench.compare import read_report
from deploy.bench.models import model_file
from deploy.bench.pictures import timing_frames
from deploy.bench.record import BenchmarkResult, read_as
from deploy.bench.request import data_name, make_settings, open_pictures
from deploy.environment import Environment, Settings
from deploy.report.pages import FILES, check_out, write_report
from deploy.report.suite import write_summary
from lfd.config import within
from lfd.errors import LfdError, UsageError, unknown
from lfd.files import locked

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 20
OWN = ("name", "teacher", "students")
"""Keys that every case has of its own."""


@dataclass(frozen=True)
class Case:
    """A [[case]] of the file; every key but name, teacher and students may stand before the first case, too.

    Attributes:
        name: Of its folder; letters, digits, dot, dash and underscore.
        teacher: Model the others are held against.
        students: They.
        data: `NAME:PATH[@SPLIT]`; "" takes the built-in scene.
        backends: Names in `deploy.session.BACKENDS`; "" is each file's own.
        threads: Threads for one inference; each number is a report.
        scenarios: Besides single: `offline`, `stream@FPS`.
        batches: Of `offline`.
        sizes: Other input sizes to sweep over, `HxW`.
        seconds: Measuring time per model and scenario.
        max_images: Pictures to score on; without it all.
    """

    name: str
    teacher: str
    students: tuple[str, ...]
    data: str = ""
    backends: tuple[str, ...] = ("",)
    threads: tuple[int, ...] = (0,)
    scenarios: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    sizes: tuple[str, ...] = ()
    seconds: float = 10.0
    max_images: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name):
            raise UsageError(f"name = {self.name!r}; expected letters, digits, dot, dash or underscore")
        if not self.students or not self.backends or not self.threads:
            raise UsageError(f"case {self.name}: students, backends and threads must not be empty")
        if self.max_images is not None:
            within(f"case {self.name}: max_images", self.max_images, 1, 10**9)


@dataclass(frozen=True)
class Run:
    """One report of a suite."""

    name: str
    case: Case
    settings: Settings


@dataclass(frozen=True)
class Suite:
    """A suite, as read: its title, and its reports in order."""

    title: str
    runs: tuple[Run, ...]


def read_suite(path: Path, data: str | None = None) -> Suite:
    """Read a suite; everything in it is checked before anything is measured.

    Args:
        path: The TOML file.
        data: In place of the file's own data.

    Raises:
        UsageError: No such file, no TOML, an unknown key, or a value that means nothing.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; expected a suite")
        record = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"suite {path}: cannot be read ({error}); expected a TOML file") from error
    title, cases = record.pop("title", path.stem), record.pop("case", None)
    if not isinstance(title, str) or not isinstance(cases, list) or not all(isinstance(c, Mapping) for c in cases):
        raise UsageError(f"{path}: expected a title and [[case]] sections")
    kinds = get_type_hints(Case)
    if own := next((key for key in OWN if key in record), None):
        raise UsageError(f"{path}: {own} stands above the first [[case]]; expected name, teacher and students in each")
    runs: dict[str, Run] = {}
    for values in cases:
        if wrong := next((key for key in OWN if key not in values), None):
            raise UsageError(f"{path}: a [[case]] without {wrong}; expected name, teacher and students in each")
        for key in {**record, **values}:
            if key not in kinds:
                raise unknown(f"key in {path}", key, kinds)
        try:
            case: Case = read_as(Case, {**_DEFAULTS, **record, **values}, "case")
            case = dataclasses.replace(case, data=data or case.data)
            for run in _runs(case):
                data_name(case.data or None)  # a typo in it is found now
                if run.name in runs:
                    raise UsageError(f"two reports called {run.name}; expected a name of its own for each case")
                runs[run.name] = run
        except (ValueError, TypeError, UsageError) as error:
            raise UsageError(f"{path}: {error}") from error
    if not runs:
        raise UsageError(f"{path}: has no [[case]]")
    return Suite(title, tuple(runs.values()))


_DEFAULTS: dict[str, Any] = {
    field.name: list(field.default) if isinstance(field.default, tuple) else field.default
    for field in dataclasses.fields(Case)
    if field.default is not dataclasses.MISSING
}


def _runs(case: Case) -> list[Run]:
    found = []
    for backend in case.backends:
        for threads in case.threads:
            parts = [case.name, backend, f"{threads}t" if len(case.threads) > 1 else ""]
            settings = make_settings(
                seconds=case.seconds,
                max_images=case.max_images,
                backend=backend or None,
                scenario=case.scenarios,
                threads=str(threads),
                batch=",".join(map(str, case.batches)) or None,
                size=",".join(case.sizes) or None,
            )
            found.append(Run("-".join(part for part in parts if part), case, settings))
    return found


@dataclass(frozen=True)
class Outcome:
    """What a suite gave: reports by name, and the reports that there are none of, with the reason."""

    results: Mapping[str, BenchmarkResult]
    failures: Mapping[str, LfdError]


def run_suite(
    suite: Suite,
    out: Path,
    overwrite: bool,
    say: Callable[[str], None],
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Outcome:
    """Measure what is not measured yet; the summary is written anew after each report.

    Args:
        suite: What to measure.
        out: Where reports lie.
        overwrite: Measure again what has other models, data or settings than the suite's, or is of another machine.
        say: Called with one line of progress at a time.
        held: A context in which reports are written; see `deploy.bench.signals.Stop.held`.

    Raises:
        UsageError: A report in `out` is of other models, data, settings or another machine, and `overwrite` is false;
            nothing can be written there, or another suite is at work there.
        KeyboardInterrupt: Interrupted before the report at work had anything to keep.
    """
    for run in suite.runs:
        check_out(out / run.name, overwrite=True)  # whose a report is, says `_kept`
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        return _run_suite(suite, out, overwrite, say, held)


def _run_suite(
    suite: Suite,
    out: Path,
    overwrite: bool,
    say: Callable[[str], None],
    held: Callable[[], AbstractContextManager[None]],
) -> Outcome:
    frames = functools.cache(_frames_sha256)
    kept = {run.name: _kept(run, out / run.name, overwrite, frames) for run in suite.runs}
    results: dict[str, BenchmarkResult] = {}
    failures: dict[str, LfdError] = {}
    for run in suite.runs:
        if (done := kept[run.name]) is not None:
            results[run.name] = done
            continue
        try:
            pictures = open_pictures(run.case.data or None)
            result, shown = run_benchmark(
                [Path(student) for student in run.case.students],
                Path(run.case.teacher),
                pictures,
                run.settings,
                functools.partial(_say, say, run.name),
            )
        except LfdError as error:
            failures[run.name] = error
            continue
        results[run.name] = result
        with held():
            write_report(result, shown, out / run.name, overwrite=True)
            write_summary(suite.title, results, failures, out)
        if result.interrupted and result.ended_by is None:
            break
    write_summary(suite.title, results, failures, out)
    return Outcome(results, failures)


def _say(say: Callable[[str], None], name: str, text: str) -> None:
    say(f"{name}: {text}")


def _frames_sha256(data: str) -> str:
    return timing_frames(open_pictures(data or None).dataset)[1]


def _kept(run: Run, folder: Path, overwrite: bool, frames: Callable[[str], str]) -> BenchmarkResult | None:
    """Return a report that is whole and the suite's; None when it is to be measured.

    Of the pictures, the frames for the clock are held against the report's, not all that is scored besides.

    Raises:
        UsageError: It is of other models, data or settings, or another machine or software, and must not be replaced.
    """
    if not (folder / FILES[0]).is_file():
        return None
    try:
        found = read_report(folder / FILES[0])
        if found.interrupted or found.failures:
            return None
        paths = [Path(run.case.teacher), *map(Path, run.case.students)]
        wanted = [sha256(model_file(path)) for path in paths]
        of_suite = (run.settings, data_name(run.case.data or None), frames(run.case.data), wanted)
    except LfdError:
        if overwrite:
            return None
        raise
    measured = [found.teacher.sha256, *(student.result.sha256 for student in found.students)]
    has = (found.settings, found.frames.data, found.frames.timed_sha256, measured)
    if has == of_suite and found.environment.alike(Environment.here()):
        return found
    if overwrite:
        return None
    raise UsageError(
        f"{folder}: was measured with other models, data or settings than the suite's, or on another machine or "
        "software; choose another --out, or measure it again with --overwrite"
    )
