"""How much of this machine's memory pictures may take."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lfd.errors import UsageError

_CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Bytes that this process's container may have (cgroup v2)."""


def check_memory(wanted: int, fix: str) -> None:
    """Refuse to keep pictures in more than half of the machine's memory.

    Args:
        wanted: Bytes that they take decoded, in all processes of this machine.
        fix: What to do about it, for the message.

    Raises:
        UsageError: They are more than that.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit, which reads "max"
        memory = min(memory, int(_CONTAINER.read_text(encoding="ascii")))
    if wanted > memory / 2:
        raise UsageError(
            f"the pictures take {wanted / 1e9:.1f} GB decoded, and this machine has {memory / 1e9:.1f} GB. Fix: {fix}"
        )
