"""Times as people type them."""

from __future__ import annotations

import re
from typing import Any

import click

from lfd.errors import UsageError

_PARTS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"


def parse_duration(text: str) -> float:
    """Read a time above 0, written as 90, 90s, 200ms, 10m, 2h or 1h30m, as seconds.

    Raises:
        UsageError: Anything else.
    """
    parts = "".join(rf"(?:{_NUMBER}{unit})?" for unit in _PARTS_S)
    match = re.fullmatch(parts, f"{text}s" if re.fullmatch(_NUMBER, text, re.ASCII) else text, re.ASCII)
    seconds = sum(float(n) * s for n, s in zip(match.groups("0"), _PARTS_S.values(), strict=True)) if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{text[:40]!r}; expected a time above 0, such as 90, 90s, 200ms, 10m, 2h or 1h30m")
    return seconds


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2, and not for Python
    """Seconds, written as 90, 90s, 200ms, 10m, 2h or 1h30m."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)
