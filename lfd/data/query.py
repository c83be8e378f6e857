"""The options behind a data set's place: `street:?size=240x320&seed=7`, `voc:PATH?aug=true`."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote

from lfd.errors import UsageError, unknown


def split_query(text: str) -> tuple[str, str]:
    """Take `PATH?OPTIONS` apart at the first question mark; the options are "" where there is none."""
    path, _, query = text.partition("?")
    return path, query


def parse_query(name: str, text: str, known: Collection[str], example: str) -> dict[str, str]:
    """Read `KEY=VALUE&...`, with or without a question mark before it.

    Args:
        name: The data set's, for messages.
        text: The options. In a value, `%26` stands for `&`, as in a URL; a plus is a plus.
        known: The keys that exist.
        example: Options that are right, for messages.

    Returns:
        Key to value, in the order given.

    Raises:
        UsageError: An option that does not exist, is given twice, or is no `KEY=VALUE`.
    """
    fields = text.removeprefix("?").split("&") if text.strip("?") else []
    if not all("=" in field for field in fields):
        raise UsageError(f"{name} options {text[:80]!r}; expected KEY=VALUE&..., such as {example}")
    options: dict[str, str] = {}
    for key, _, value in (field.partition("=") for field in fields):
        if key in options:
            raise UsageError(f"{name} option {key} is given twice in {text[:80]!r}; expected it once")
        if key not in known:
            raise unknown(f"{name} option", key[:40], known)
        options[key] = unquote(value)
    return options


def parse_flag(name: str, key: str, value: str) -> bool:
    """Return whether an option is `true` or `false`.

    Raises:
        UsageError: It is neither.
    """
    if value not in ("true", "false"):
        raise UsageError(f"{name} option {key}={value[:40]!r}; expected true or false")
    return value == "true"
