"""The runtime and the benchmark: numpy, OpenCV and one inference runtime, never torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lfd  # noqa: F401  sets OpenCV's limits before it is loaded

if TYPE_CHECKING:
    from deploy.api import Result, Run, run

__all__ = ["Result", "Run", "run"]


def __getattr__(name: str) -> Any:
    """Import what the Python API needs when it is asked for: commands have their help without it."""
    if name in __all__:
        from deploy import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
