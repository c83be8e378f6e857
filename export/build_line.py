"""An engine's build, on the terminal or in a log."""

from __future__ import annotations

import sys
from typing import Any

import click


class BuildLine:
    """Shows a build: on a terminal one line that changes, in a log a line for each phase."""

    def __init__(self) -> None:
        self._phase, self._tty = "", sys.stderr.isatty()

    def __call__(self, state: Any) -> None:
        if self._tty:
            click.echo(f"\r\x1b[K{state}", err=True, nl=False)
        elif state.phase != self._phase or state.stopping:
            click.echo(str(state), err=True)
        self._phase = state.phase

    def end(self) -> None:
        """Clear the terminal's line."""
        if self._tty:
            click.echo("\r\x1b[K", err=True, nl=False)
