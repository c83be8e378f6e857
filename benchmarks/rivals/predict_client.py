"""The process that runs Ultralytics' predict, from this side."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lfd.errors import LfdError

SCRIPT = Path(__file__).with_name("predict_server.py")
STRIDE = 32
"""Its networks take sides that are multiples of this."""


class Ultralytics:
    """Ultralytics' semantic network from its yaml, exported by itself, over a film; for use in a `with`.

    Args:
        python: The interpreter of an environment that has it.
        film: A file.
        size_hw: Size of our model's input, which is rounded up for theirs.
        threads: Of a session; 0 is the runtime's own choice.

    Attributes:
        about: Network, size and versions.

    Raises:
        LfdError: It does not start.
    """

    def __init__(self, python: Path, film: str, size_hw: tuple[int, int], threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        sides = (str(-(-side // STRIDE) * STRIDE) for side in size_hw)
        command = [str(python), str(SCRIPT), str(Path(film).resolve()), self._folder.name, *sides, str(threads)]
        # Nothing is fetched or installed while it is measured, and its settings stay its own.
        alone = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": self._folder.name}
        self._log = Path(self._folder.name, "log").open("wb+")  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=self._folder.name,
                env={**os.environ, **alone},
                text=True,
            )
        except OSError as error:
            self._log.close()
            self._folder.cleanup()
            raise LfdError(f"{python}: cannot be run ({error.strerror}); expected a python with ultralytics") from error
        try:
            self.about = self._answer()
        except LfdError:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self._log.seek(0)
            said = self._log.read().decode(errors="replace").strip().splitlines()
            raise LfdError(f"Ultralytics' process ended: {said[-1] if said else 'it said nothing'}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, case: str) -> dict[str, Any]:
        """Run a case and return frames, wall_ms and cpu_ms.

        Raises:
            LfdError: The process has ended; the message has the last line that it said.
        """
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(BrokenPipeError):  # what it said last is in the answer's error
            print(case, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process and remove what it wrote."""
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Ultralytics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
