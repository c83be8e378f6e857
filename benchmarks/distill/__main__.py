"""Run a study, or go on with it, and write its tables and plots.

python -m benchmarks.distill STUDY.toml --data camvid:PATH --out DIR
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.distill.execute import Runner, StoppedError, say
from benchmarks.distill.plots import draw
from benchmarks.distill.record import code_digest, data_identity, step_ratios, study_record
from benchmarks.distill.study import Run, Study, queue, read_study, teacher_run
from benchmarks.distill.tables import report
from lfd.checkpoint import load_model, model_file
from lfd.console import guarded
from lfd.data import parse_data
from lfd.errors import LfdError
from lfd.files import locked, write_json, write_text

Done = list[tuple[Run, Mapping[str, Any]]]


@dataclass
class Session:
    """One call of the command.

    Attributes:
        study: What is wanted.
        runner: What does it.
        identity: Of the pictures.
        only: Patterns of the names of runs to do; () for all.
        failed: Name to message.
    """

    study: Study
    runner: Runner
    identity: str
    only: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._given = self.runner.teacher is not None
        self._teacher_hash = ""

    def teacher(self) -> tuple[Run, str, Path | None]:
        """Return what makes the teacher with its key, and its result, if that is there."""
        run = teacher_run(self.study, self._given)
        key = self.key(run)
        result = self.runner.result(key)
        if result is not None and not self._given:
            self.runner.teacher = self.runner.folder(run, key)
        return run, key, result

    def runs(self) -> list[tuple[Run, str]]:
        """Return the runs under the teacher with their keys, in order; those at equal time once steps are timed."""
        ratios = step_ratios(self.finished([(run, self.key(run)) for run in queue(self.study, {})]))
        return [(run, self.key(run)) for run in queue(self.study, ratios)]

    def key(self, run: Run) -> str:
        """Return the key of a run's files."""
        if self.runner.teacher is not None and not self._teacher_hash:
            self._teacher_hash = hashlib.sha256(model_file(self.runner.teacher).read_bytes()).hexdigest()
        return run.key(self.identity, self._teacher_hash if run.group != "teacher" else "")

    def finished(self, keyed: list[tuple[Run, str]]) -> Done:
        """Return the finished ones of some runs, with their results."""
        found = [(run, self.runner.result(key)) for run, key in keyed]
        return [(run, json.loads(path.read_text(encoding="utf-8"))) for run, path in found if path is not None]

    def left(self) -> list[tuple[Run, str]]:
        """Return what is wanted, not finished, and can begin; a key that runs share is there once."""
        teacher, key, result = self.teacher()
        found = {} if result is not None else {key: teacher}
        for run, key in self.runs():
            wanted = not self.only or any(fnmatchcase(run.name, pattern) for pattern in self.only)
            if wanted and (result is not None or not run.taught) and self.runner.result(key) is None:
                found.setdefault(key, run)
        return [(run, key) for key, run in found.items() if run.name not in self.failed]

    def do(self, run: Run, key: str) -> None:
        """Do a run; a failure is noted, and the others go on."""
        began = time.monotonic()
        say(f"begins   {run.name}")
        try:
            self.runner.execute(run, key)
            say(f"finished {run.name} in {time.monotonic() - began:.0f} s")
        except StoppedError:
            say(f"stopped  {run.name}; the same command goes on with it")
        except LfdError as error:
            self.failed[run.name] = str(error)
            say(f"failed   {run.name}: {error}")

    def work(self, parallel: int, seconds: float | None) -> None:
        """Do what is left, some at a time; timings have the machine to themselves.

        Args:
            parallel: How many.
            seconds: Until all are told to save and stop; None for never.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        active: dict[Future[None], Run] = {}
        keys: dict[Future[None], str] = {}
        with ThreadPoolExecutor(parallel) as pool:
            try:
                while True:
                    for run, key in self.left() if not self.runner.stopped.is_set() else ():
                        if key in keys.values():
                            continue
                        alone = "cost" in (run.group, *(other.group for other in active.values()))
                        if len(active) >= parallel or (alone and active):
                            break
                        future = pool.submit(self.do, run, key)
                        active[future], keys[future] = run, key
                    if not active:
                        return
                    wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                    ended, _ = wait(active, timeout=wait_s, return_when=FIRST_COMPLETED)
                    for future in ended:
                        del active[future], keys[future]
                        future.result()
                    if not ended:
                        deadline = None
                        self.runner.stop()
            except BaseException:
                self.runner.stop()
                raise

    def write(self, data_name: str) -> None:
        """Write study.json, the tables and the plots of what is finished."""
        out = self.runner.out
        _, _, result = self.teacher()
        if result is None:
            say("the teacher is not finished: there is nothing to show yet")
            return
        test = json.loads(result.read_text(encoding="utf-8"))["test"]
        model = load_model(self.runner.teacher)[1].model if self.runner.teacher else self.study.teacher.model
        keyed = self.runs()
        done = self.finished(keyed)
        names = {run.name for run, _ in done}
        missing = [run.name for run, _ in keyed if run.name not in names]
        gpus = (torch.cuda.get_device_name(),) if torch.cuda.is_available() and self.runner.device != "cpu" else ()
        record = study_record(self.study, data_name, {"model": model, "test": test}, done, missing, self.failed, gpus)
        write_json(out / "study.json", record)
        write_text(out / "study.md", report(record))
        drawn = draw(record, out)
        say(f"written  {out}: study.json, study.md{''.join(f', {path.name}' for path in drawn)}")


@click.command()
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--data", required=True, help="camvid:PATH, or any labelled set with a test split.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the study.")
@click.option(
    "--teacher", type=click.Path(path_type=Path, exists=True), help="A run or checkpoint, in place of its own."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--parallel", default=1, show_default=True, type=click.IntRange(1, 64), help="Runs at once.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Save and stop after so long.")
@click.option("--only", multiple=True, metavar="RUN", help="Do these alone; patterns such as 'lfd-*'.")
@click.option("--list", "listing", is_flag=True, help="Show the queue, and do nothing.")
@click.option(
    "--render", is_flag=True, help="Write study.json, tables and plots of what is finished, and do nothing else."
)
@guarded
def main(
    study: Path,
    data: str,
    out: Path,
    teacher: Path | None,
    device: str,
    parallel: int,
    minutes: float | None,
    only: tuple[str, ...],
    listing: bool,
    render: bool,
) -> None:
    """Run a study, or go on with it: what is finished is kept, what was interrupted goes on."""
    plan = read_study(study)
    identity = data_identity(data)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: runs save their state
    out.mkdir(parents=True, exist_ok=True)
    session = Session(plan, Runner(out, data, device, code_digest(), teacher), identity, only)
    if listing:
        _list(session)
        return
    with nullcontext() if render else locked(out):  # beside a session that trains, too
        try:
            if not render:
                session.work(parallel, None if minutes is None else 60 * minutes)
        finally:
            session.write(parse_data(data).name)
    if session.failed:
        raise LfdError(f"{len(session.failed)} runs failed: {', '.join(session.failed)}; their messages are above")


def _list(session: Session) -> None:
    """Show the queue."""
    teacher, teacher_key, _ = session.teacher()
    waiting = {run.name for run, _ in session.left()}
    for run, key in [(teacher, teacher_key), *session.runs()]:
        done = session.runner.result(key) is not None
        state = "finished" if done else "next" if run.name in waiting else "waits"
        click.echo(f"{state:<9} {run.name:<44} {run.group:<11} {run.config.train.steps:>6} steps  {run.label}")


if __name__ == "__main__":
    main()
