"""Running the toolkit's commands as a user types them, shown before they run."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from lfd.errors import LfdError


@dataclass
class Commands:
    """Runs commands and keeps what was typed and how long each took.

    Attributes:
        seconds: Name of a step to its wall time.
        typed: The commands in order.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    typed: list[str] = field(default_factory=list)

    def run(self, name: str, *command: object, capture: bool = False) -> str:
        """Run a command of the toolkit; its output goes to the terminal, or is returned.

        Raises:
            LfdError: It failed; its own message is above.
        """
        words = [str(word) for word in command]
        self.typed.append(shlex.join(words))
        click.secho(f"\n$ {self.typed[-1]}", bold=True)
        began = time.monotonic()
        program = Path(sys.executable).with_name(words[0])
        output = subprocess.PIPE if capture else None
        with subprocess.Popen([program, *words[1:]], text=True, stdout=output) as process:
            try:
                printed, _ = process.communicate()
            except KeyboardInterrupt:
                process.wait()  # the terminal has interrupted it too: let it save what it does
                raise
        self.seconds[name] = time.monotonic() - began
        if process.returncode:
            raise LfdError(f"the step {name!r} ended with exit code {process.returncode}; its message is above")
        return printed or ""
