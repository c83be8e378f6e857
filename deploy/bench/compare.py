"""Two reports held against each other: what got worse, what is gone, and what cannot be told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.bench.interval import CONFIDENCE, RESAMPLES, Interval, Rounds, rise_of_median
from deploy.bench.record import BenchmarkResult, ModelResult, from_json
from deploy.report.rows import number
from deploy.timing import samples_needed
from lfd.errors import DataError, UsageError

MAX_REPORT_BYTES = 1 << 29
CHUNKS = 6
"""Parts of a stream that stand for rounds: it runs without a break."""


def parse_limit(text: str) -> float:
    """Read "5%" or "5" as 0.05.

    Raises:
        UsageError: Anything else.
    """
    if not re.fullmatch(r"\d{1,4}(\.\d+)?\s*%?", text.strip()):
        raise UsageError(f"--max-regress {text!r}; expected per cent, such as 5%")
    return float(text.strip().rstrip("% ")) / 100


def read_report(path: Path) -> BenchmarkResult:
    """Read a bench.json.

    Raises:
        DataError: No such file, or none of ours.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a bench.json that lfd-bench --out wrote")
    if (size := path.stat().st_size) > MAX_REPORT_BYTES:
        raise DataError(f"{path}: {size} bytes; expected a bench.json of at most {MAX_REPORT_BYTES}")
    return from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


@dataclass(frozen=True)
class Change:
    """One figure of one model.

    Attributes:
        model: Its name.
        what: The figure, with its unit.
        before: In A.
        after: In B.
        loss: By what share it got worse; negative when better.
        interval: Of the loss, for what has samples.
        limit: How much may be lost.
    """

    model: str
    what: str
    before: float
    after: float
    loss: float
    interval: Interval | None
    limit: float

    @property
    def worse(self) -> bool:
        """Whether it lost more than the limit, and surely something."""
        return self.loss > self.limit and (self.interval is None or self.interval.low > 0)

    @property
    def verdict(self) -> str:
        """`worse`; `better`; `same`, within the limit for sure; `not sure`, a loss that may be chance; or `noisy`.

        What is noisy lost no more than the limit as measured, and may have lost more.
        """
        high = self.loss if self.interval is None else self.interval.high
        if self.worse:
            return "worse"
        if self.loss > self.limit:
            return "not sure"
        if self.loss < -self.limit and high <= 0:
            return "better"
        return "same" if high <= self.limit else "noisy"

    def __str__(self) -> str:
        sure = ""
        if self.interval is not None:
            low, high = 100 * self.interval.low, 100 * self.interval.high
            sure = (
                f" ({low:+.1f} to {high:+.1f} % at {CONFIDENCE:.0%}; "
                f"above {100 * self.limit:g} % in {self.interval.above:.0%} of {RESAMPLES} resamples)"
            )
        return (
            f"{self.verdict:8}  {self.model}: {self.what} {number(self.before)} -> {number(self.after)}, "
            f"{100 * (self.after - self.before) / self.before:+.1f} %{sure}"
        )


@dataclass(frozen=True)
class Comparison:
    """All changes, what B has no more, what makes the two reports hard to compare, and the limit."""

    limit: float
    changes: tuple[Change, ...]
    lost: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether anything got worse, or is not there any more."""
        return bool(self.lost) or any(change.worse for change in self.changes)

    def text(self) -> str:
        """Return lines for a terminal, what got worse first; changes are in per cent of what was before.

        Names come from the files, which may be anybody's: what a terminal would obey in them is shown as "?".
        """
        ordered = sorted(self.changes, key=lambda change: not change.worse)
        bad = sum(change.worse for change in self.changes) + len(self.lost)
        lines = [f"note      {remark}" for remark in self.remarks]
        lines += [f"lost      {what}" for what in self.lost] + [str(change) for change in ordered]
        verdicts = [change.verdict for change in self.changes]
        doubts = {
            "not sure": verdicts.count("not sure"),
            f"too noisy to see {100 * self.limit:g} %": verdicts.count("noisy"),
        }
        doubtful = ", ".join(f"{count} {what}" for what, count in doubts.items() if count)
        if bad:
            lines.append(f"{bad} got worse")
        else:
            lines.append(f"nothing shown to be worse; {doubtful}" if doubtful else "nothing got worse")
        return "".join("".join(c if c.isprintable() else "?" for c in line) + "\n" for line in lines)


def compare(before: BenchmarkResult, after: BenchmarkResult, limit: float) -> Comparison:
    """Hold report `after` against report `before`.

    Args:
        before: How it was.
        after: How it is.
        limit: What share of any figure may be lost.

    Raises:
        DataError: They have no model in common.
    """
    old, new = ({m.name: m for m in report.models} for report in (before, after))
    pairs = [(old[name], new[name]) for name in old if name in new]
    if not pairs:
        raise DataError(f"the reports have no model in common: {', '.join(old)} in A, {', '.join(new)} in B")
    same_pictures = before.frames.scored_sha256 == after.frames.scored_sha256
    changes = [change for a, b in pairs for change in _changes(a, b, limit, same_pictures)]
    failed = {f.name: f" ({f.message})" for f in after.failures}
    lost = [f"{name}: is in A and not in B{failed.get(name, '')}" for name in old if name not in new]
    remarks = list(_remarks(before, after, same_pictures))
    for a, b in pairs:
        for what, asked in _gone(a, b, before, after):
            (lost if asked else remarks).append(f"{b.name}: {what}")
        remarks += [f"{b.name}: {what}" for what in _unearned(a, b)]
    return Comparison(limit, tuple(changes), tuple(lost), tuple(remarks))


def _gone(
    a: ModelResult, b: ModelResult, before: BenchmarkResult, after: BenchmarkResult
) -> Iterator[tuple[str, bool]]:
    """Yield what A has and B has not, and whether B was asked for it."""
    reasons = {missing.what: f": {missing.reason}" for missing in b.missing}
    for batch in (offline.batch for offline in a.offline):
        if all(offline.batch != batch for offline in b.offline):
            what = f"offline, batch {batch}"
            yield f"no {what} in B{reasons.get(what, '')}", batch in after.settings.batches
    for one in a.streams:
        other = next((stream for stream in b.streams if stream.fps == one.fps), None)
        if other is None:
            yield f"no stream@{one.fps:g} in B", one.fps in after.settings.streams
        elif one.keeps_up and not other.keeps_up:
            yield f"keeps up with {one.fps:g} frames a second in A and not in B", True
    if a.accuracy is not None and b.accuracy is None:
        yield "no accuracy in B", before.frames.data == after.frames.data
    if a.memory.peak_mb is not None and b.memory.peak_mb is None:
        yield "no memory at its peak in B", False
    if a.memory.gpu_mb is not None and b.memory.gpu_mb is None:
        yield "no memory on the GPU in B", False
    for meter in sorted({power.meter for power in a.power} - {power.meter for power in b.power}):
        yield f"no energy from {meter} in B", False


def _earned(before: Rounds, after: Rounds) -> bool:
    return min(sum(map(len, before)), sum(map(len, after))) >= samples_needed(0.5)


def _unearned(a: ModelResult, b: ModelResult) -> Iterator[str]:
    for what, before, after in _timed(a, b):
        if not _earned(before, after):
            counts = " and ".join(str(sum(map(len, rounds))) for rounds in (before, after))
            yield f"{what} is not compared: {counts} samples, expected {samples_needed(0.5)} in each. Fix: --seconds"


def _changes(a: ModelResult, b: ModelResult, limit: float, same_pictures: bool) -> Iterator[Change]:
    for what, before, after in _timed(a, b):
        if not _earned(before, after):
            continue
        was, now, rise = rise_of_median(before, after, limit)
        yield Change(a.name, what, was, now, rise.rise, rise, limit)
    figures = [
        ("memory at its peak, MB", a.memory.peak_mb, b.memory.peak_mb, 1),
        ("memory on the GPU, MB", a.memory.gpu_mb, b.memory.gpu_mb, 1),
        ("file, MB", a.file_bytes / 1e6, b.file_bytes / 1e6, 1),
    ]
    if same_pictures and a.accuracy and b.accuracy:
        old, new = (None if share is None else 100 * share for share in (a.accuracy.miou, b.accuracy.miou))
        figures.append(("mIoU, %", old, new, -1))
    for power in a.power:
        other = next((p.mj_per_frame for p in b.power if p.meter == power.meter), None)
        figures.append((f"energy a picture, mJ, {power.meter}", power.mj_per_frame, other, 1))
    for name, old, new, sign in figures:
        if old is not None and new is not None and old > 0:
            yield Change(a.name, name, old, new, (new - old) / old * sign + 0.0, None, limit)


def _timed(a: ModelResult, b: ModelResult) -> Iterator[tuple[str, Rounds, Rounds]]:
    """Yield what has samples in both: its name, and durations in ms by round."""
    for what, part in (("end to end", "end_to_end_ms"), ("model alone", "model_ms")):
        rounds = [[getattr(samples, part) for samples in m.single.rounds] for m in (a, b)]
        yield f"median {what}, ms", rounds[0], rounds[1]
    for first in a.offline:
        for second in b.offline:
            if first.batch == second.batch:
                rounds = [[samples.end_to_end_ms for samples in o.rounds] for o in (first, second)]
                yield f"offline, a batch of {first.batch}, ms", rounds[0], rounds[1]
    for one in a.streams:
        for other in b.streams:
            if one.fps == other.fps and one.keeps_up and other.keeps_up:
                latencies = [
                    [w + e for w, e in zip(s.wait_ms, s.samples.end_to_end_ms, strict=True)] for s in (one, other)
                ]
                size = [max(1, -(-len(values) // CHUNKS)) for values in latencies]
                rounds = [[v[i : i + n] for i in range(0, len(v), n)] for v, n in zip(latencies, size, strict=True)]
                yield f"stream@{one.fps:g}, median from arrival, ms", rounds[0], rounds[1]


def _remarks(before: BenchmarkResult, after: BenchmarkResult, same_pictures: bool) -> Iterator[str]:
    """Yield what differs between the circumstances."""
    a, b = before.environment, after.environment
    for what, was, now in (
        ("processor", a.cpu, b.cpu),
        ("cores", a.cores, b.cores),
        ("governor", a.governor, b.governor),
        ("board", a.board, b.board),
        ("GPU", a.gpus, b.gpus),
        ("threads", a.threads, b.threads),
        ("frames for the clock", before.frames.timed_sha256[:12], after.frames.timed_sha256[:12]),
        *((name, a.packages.get(name), b.packages.get(name)) for name in sorted({*a.packages, *b.packages})),
    ):
        if was != now:
            yield f"{what}: {was} in A, {now} in B"
    old = {m.name: m for m in before.models}
    for new in (model for model in after.models if model.name in old):
        for what, key in (("backend", "backend"), ("precision", "precision"), ("input", "size_hw")):
            if (was := getattr(old[new.name], key)) != (now := getattr(new, key)):
                yield f"{new.name}: {what} {was} in A, {now} in B"
    if before.frames.scored_sha256 and after.frames.scored_sha256 and not same_pictures:
        yield "accuracy is not compared: other pictures were scored"
    if before.sweep or after.sweep:
        yield "sweeps are not compared"
    yield from (
        f"{name} was interrupted: {r.interrupted}" for name, r in (("A", before), ("B", after)) if r.interrupted
    )
