"""What people type for sources, sinks and files: made fit to be shown, and held against what libraries can take."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from lfd.errors import UsageError

_USERINFO = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)\S*@")
_BARE = re.compile(r"(?<![^\s'\"(/\\])[^\s:/\\@'\"(]+:[^\s/]\S*@")
_SECRET = re.compile(
    r"([/?&;][\w.-]*(?:pas|pass\w*|psw|pwd|token|secret|key|auth\w*|user\w*|loginuse|usr|login|sig\w*)=)[^&#;\s]*",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"\$\{(\w+)\}", re.ASCII)


def redact(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it.

    Everything between `://` and the last `@` of the word goes, because people write passwords with `/` and `#` in
    them. So do the values of keys such as `password=`, `token=` or `user=`, which cameras want in the query or in the
    path, and `NAME:PASSWORD@` where the scheme was forgotten or mistyped.
    """
    return _SECRET.sub(r"\1***", _BARE.sub("***@", _USERINFO.sub(r"\1***@", text)))


def expand(text: str, quote: Callable[[str], str] = str) -> str:
    """Put the values of environment variables in place of `${NAME}`: secrets that are not typed are in no process list.

    What is shown of a text is what was typed, so that no value comes into a message.

    Args:
        text: What was typed.
        quote: Makes a value fit to stand there.

    Raises:
        UsageError: There is no such variable, or it is empty.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise UsageError(
                f"{redact(text)!r}: the environment has {'nothing in' if found == '' else 'no'} {match[1]}. "
                f"Fix: export {match[1]}"
            )
        return quote(found)

    return _VARIABLE.sub(value, text)


def check_name(text: str) -> None:
    """Refuse a text that is no UTF-8: OpenCV and the runtimes end the process on it, or say something else.

    Raises:
        UsageError: It has such bytes, or is in the home of a user that does not exist.
    """
    try:
        text.encode()
        Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise UsageError(f"{redact(text)!a}: is no UTF-8, expected of every name. Fix: rename it") from error
    except RuntimeError as error:
        raise UsageError(f"{redact(text)!r}: there is no such user. Fix: ./~NAME for a name that begins so") from error
