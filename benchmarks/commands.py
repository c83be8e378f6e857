"""Running the toolkit's commands as a user types them, shown before they run."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shlex
import tempfile
import time
from dataclasses import dataclass, field

import click

from lfd.errors import LfdError

ENTRIES = {
    "lfd-train": "lfd.cli:main",
    "lfd-export": "export.cli:main",
    "lfd-run": "deploy.cli:run_main",
    "lfd-bench": "deploy.bench.cli:main",
}


def preload() -> None:
    """Import what the commands need: torch and torchvision take seconds, and a forked command has them already."""
    for module in ("lfd.trainer", "export.to_onnx", "export.verify"):
        importlib.import_module(module)


def _call(words: list[str], output: int | None) -> None:
    if output is not None:
        os.dup2(output, 1)
    module, _, name = ENTRIES[words[0]].partition(":")
    getattr(importlib.import_module(module), name).main(words[1:], prog_name=words[0])


@dataclass
class Commands:
    """Runs commands, each in a process of its own, and keeps what was typed and how long each took.

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
        with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
            output = file.fileno() if capture else None
            # Forked, not spawned: what `preload` imported is there. No thread has been started yet.
            process = multiprocessing.get_context("fork").Process(target=_call, args=(words, output))
            process.start()
            try:
                process.join()
            except KeyboardInterrupt:
                process.join()  # the terminal has interrupted it too: let it save what it does
                raise
            file.seek(0)
            printed = file.read()
        self.seconds[name] = time.monotonic() - began
        if process.exitcode:
            raise LfdError(f"the step {name!r} ended with exit code {process.exitcode}; its message is above")
        return printed
