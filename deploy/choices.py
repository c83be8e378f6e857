"""What `deploy.auto` found and chose: how it is said in a line, and remembered in the user's cache folder."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy.session import BACKENDS
from deploy.timing import TOLERANCE
from lfd.files import write_json

BF16 = "openvino-bf16"
"""Another arithmetic than the file's: measured and mentioned, never chosen."""
WORTH_SAYING = 0.85
"""Of the chosen one's time; a bf16 that takes less is mentioned."""
MIN_AGREEMENT = 0.999
"""Of pixels, with the reference, in fp32; what agrees less is broken here."""

SCHEMA = 1
MAX_CHOICES = 64
MAX_MEMORY_BYTES = 256 << 10


@dataclass(frozen=True)
class Finding:
    """What a backend did.

    Attributes:
        backend: Its name.
        ms: Median of the model alone, a frame; None where it could not run.
        agreement: Share of pixels with the reference's class; None likewise.
        reason: Why it could not run.
    """

    backend: str
    ms: float | None = None
    agreement: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    Attributes:
        backend: Its name.
        precision: Of the file, such as `fp32`.
        date_utc: Day of the measurement, such as 2026-11-22.
        findings: Of all candidates.
    """

    backend: str
    precision: str
    date_utc: str
    findings: tuple[Finding, ...]

    def sentence(self, when: str) -> str:
        """Say in one line what was chosen and why."""
        ms = {f.backend: f.ms for f in self.findings if f.ms is not None}
        mine = ms[self.backend]
        right = [f.backend for f in self.findings if f.backend in ms and may_be_chosen(f, self.precision)]
        others = [name for name in right if name != self.backend]
        parts = [f"{self.backend}: {_ms(mine)} ms a frame"]
        if others:
            parts[0] += f" against {', '.join(f'{name} {_ms(ms[name])}' for name in others)}"
        if any(ms[name] < mine for name in others):
            parts[0] += f", which is equal within {100 * TOLERANCE:g} %"
        parts[0] += f" ({when})"
        for f in self.findings:
            if f.reason is not None:
                parts.append(f"{f.backend} failed ({f.reason})")
            elif f.agreement is not None and f.backend == BF16 and ms[BF16] < WORTH_SAYING * mine:
                parts.append(f"{BF16} takes {_ms(ms[BF16])}, and agrees on {100 * f.agreement:.2f} % of pixels")
            elif f.agreement is not None and f.backend != BF16 and f.agreement < MIN_AGREEMENT:
                left_out = " is left out: it" if f.backend not in right else ""
                parts.append(f"{f.backend}{left_out} disagrees on {100 * (1 - f.agreement):.2f} % of pixels")
        return "; ".join(parts)


def may_be_chosen(finding: Finding, precision: str) -> bool:
    """Tell whether a backend computes what a file of this precision says."""
    if finding.backend == BF16 or finding.agreement is None:
        return False
    # What int8 and fp16 round differs by runtime.
    return precision != "fp32" or finding.agreement >= MIN_AGREEMENT


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def memory_path() -> Path:
    """Return the file of what was chosen, by the XDG Base Directory Specification.

    Raises:
        FileNotFoundError: The user has no home folder, as in some containers.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "no home folder", "~") from error
    return base / "lfd-toolkit" / "backends.json"


def recall() -> dict[str, Choice]:
    """Return what the file has of choices that can be believed, the oldest first; none where it cannot be read."""
    choices = {}
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        path = memory_path()
        if path.stat().st_size <= MAX_MEMORY_BYTES:
            record = json.loads(path.read_text(encoding="utf-8"))
            for key, value in record["choices"].items() if record["schema"] == SCHEMA else ():
                with suppress(ValueError, TypeError, KeyError, AttributeError):
                    choices[_line(key)] = _choice(value)
    return choices


def _choice(record: Mapping[str, Any]) -> Choice:
    findings = tuple(_finding(found) for found in record["findings"])
    day = datetime.strptime(record["date_utc"], "%Y-%m-%d").strftime("%Y-%m-%d")
    if not any(found.backend == record["backend"] and found.ms for found in findings):
        raise ValueError(f"{record['backend']!r} was not measured")
    return Choice(record["backend"], _line(record["precision"]), day, findings)


def _finding(record: Mapping[str, Any]) -> Finding:
    reason, ms, agreement = record["reason"], record["ms"], record["agreement"]
    if record["backend"] not in BACKENDS:
        raise ValueError(record["backend"])
    if reason is not None:
        return Finding(record["backend"], reason=_line(reason))
    if not (isinstance(ms, float) and 0 < ms < math.inf and isinstance(agreement, float) and 0 <= agreement <= 1):
        raise ValueError(f"{ms} ms, agreement {agreement}")
    return Finding(record["backend"], ms, agreement)


def _line(text: Any) -> str:
    """Return a text that may be printed; a file of the cache may come from anywhere."""
    if not (isinstance(text, str) and text.isprintable() and len(text) <= 1000):
        raise ValueError("no line of text")
    return text


def remember(key: str, choice: Choice) -> None:
    """Keep a choice, and of the others the newest.

    Raises:
        OSError: The folder cannot be written.
    """
    choices = {k: asdict(v) for k, v in recall().items() if k != key} | {key: asdict(choice)}
    write_json(memory_path(), {"schema": SCHEMA, "choices": dict(list(choices.items())[-MAX_CHOICES:])})
