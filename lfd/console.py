"""The edge between a person and the toolkit: one place turns errors into a line and an exit code."""

from __future__ import annotations

import errno
import functools
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import click

from lfd.errors import LfdError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

EXIT_INTERRUPTED = 130
_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a click callback so that a failure is one line on stderr and the documented exit code.

    LfdError gives its own code; Ctrl-C 130; a full disk, a refused permission or a missing file 1.
    Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except LfdError as error:
            _end(str(error), error.exit_code)
        except KeyboardInterrupt as error:
            _end(str(error) or "interrupted", EXIT_INTERRUPTED)
        except BrokenPipeError:
            # `command | head`: the reader has gone; the default action is the quiet one.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            sys.exit(141)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fix = " Fix: free space on that disk, or write elsewhere" if error.errno in _SPACE else ""
            _end(f"{where}{error.strerror or error}.{fix}", 1)

    return run


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}" if code != EXIT_INTERRUPTED else message, err=True)
    sys.exit(code)


def parse_size(text: str) -> tuple[int, int]:
    """Read `HxW` ("360x480") as (height, width).

    Raises:
        UsageError: Anything else.
    """
    height, cross, width = text.lower().partition("x")
    if not (
        cross and height.isdecimal() and width.isdecimal() and 0 < int(height) <= 16384 and 0 < int(width) <= 16384
    ):
        raise UsageError(f"size {text!r}; expected HEIGHTxWIDTH in pixels, such as 360x480")
    return int(height), int(width)
