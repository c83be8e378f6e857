"""The errors a user can meet, each with the exit code its command ends with.

    LfdError                   1  failed
    |-- UsageError             2  an option, key or name that does not exist or does not fit
    |-- DataError              1  a data set, picture or label that is missing or broken
    |-- CheckpointError        1  weights or a run that cannot be read or written
    |-- TrainingError          1  training cannot start or go on
    |-- ExportError            1  a graph that cannot be made, or differs from its source
    |-- MissingDependencyError 1  a package that is not installed
    |-- SinkError              1  output that cannot be written
    |-- SourceError            3  a source that is absent, lost or not readable
    `-- ModelError             4  a model file that does not fit: truncated, without spec, another size

A message says what is wrong, with the value, what was expected, and how to mend it, in one line.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class LfdError(Exception):
    """Base of every error this toolkit raises on purpose."""

    exit_code = 1


class UsageError(LfdError):
    """An option, key or name that does not exist, or does not fit with another."""

    exit_code = 2


class DataError(LfdError):
    """A data set, picture or label that is missing or broken."""


class CheckpointError(LfdError):
    """Weights or a run directory that cannot be read or written."""


class TrainingError(LfdError):
    """Training that cannot start or cannot go on."""


class ExportError(LfdError):
    """A graph that cannot be made, or that differs from the model it came from."""


class MissingDependencyError(LfdError):
    """A package that this command needs and that is not installed."""


class SinkError(LfdError):
    """Output that cannot be opened or written."""


class SourceError(LfdError):
    """A source of frames that is absent, lost or not readable."""

    exit_code = 3


class ModelError(LfdError):
    """A model file that does not fit: truncated, without a ModelSpec, of another size or kind."""

    exit_code = 4


_MOST_LISTED = 40
"""Names that an error lists; of more, such as the modules of a network, it lists the nearest."""


def unknown(kind: str, value: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not among the known ones, with the closest of them.

    Args:
        kind: What the name stands for, as the user would say it ("method", "key").
        value: What the user typed.
        known: The names that exist.
    """
    names = sorted(known)
    begin = [name for name in names if value and name.startswith(value)]
    close = difflib.get_close_matches(value, names, n=1) or begin
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if len(names) > _MOST_LISTED:
        names = [*difflib.get_close_matches(value, names, n=8, cutoff=0.3), f"... ({len(names)} in all)"]
    return UsageError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names)}")


def require(module: str, extra: str) -> ModuleType:
    """Import a module that belongs to an optional extra.

    Args:
        module: Dotted name, as in an import statement.
        extra: The extra of lfd-toolkit that installs it.

    Raises:
        MissingDependencyError: It is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", 1)[0] != error.name.split(".", 1)[0]:
            raise
        raise MissingDependencyError(
            f"{module} is not installed; it is needed here. Fix: pip install 'lfd-toolkit[{extra}]'"
        ) from error
