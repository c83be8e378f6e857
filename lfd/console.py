"""The edge between a person and the toolkit: one place turns errors into a line and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from lfd.errors import LfdError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

EXIT_INTERRUPTED = 130
_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), " Fix: free space on that disk, or write elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), " Fix: choose a place that you may write to"),
}


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a click callback so that a failure is one line on stderr and the documented exit code.

    LfdError gives its own code; Ctrl-C 130; a full disk, a refused permission, a missing file or too little memory 1.
    Anything else is a defect of ours and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except LfdError as error:
            _end(_said(str(error)), error.exit_code)
        except KeyboardInterrupt as error:
            _end(str(error) or "interrupted", EXIT_INTERRUPTED)
        except BrokenPipeError:
            # `command | head`: the reader has gone; the default action is the quiet one.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            sys.exit(141)
        except MemoryError:
            _end(_said("not enough memory. Fix: a smaller size or batch"), 1)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(_said(f"{where}{error.strerror or error}.{_FIXES.get(error.errno or 0, '')}"), 1)

    return run


class _OneLine(click.Command):
    """Makes click's own usage errors one line, as all others are."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as a program; see `click.Command.main`."""
        call = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return call()
        try:
            sys.exit(call() or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            name = context.command_path if context else self.name
            _end(f"{self.said(error.format_message()).rstrip('.')}. See: {name} --help", error.exit_code)
        except click.Abort:
            _end("interrupted", EXIT_INTERRUPTED)

    def said(self, message: str) -> str:
        """Return an error as it may be shown; a command that takes credentials hides them here."""
        return message


class Command(_OneLine):
    """A command of the toolkit."""


class Group(_OneLine, click.Group):
    """A command of the toolkit with subcommands."""


def _said(message: str) -> str:
    context = click.get_current_context(silent=True)
    return context.command.said(message) if context and isinstance(context.command, _OneLine) else message


def _end(message: str, code: int) -> NoReturn:
    # Under torchrun all processes share their arguments and stop together: one a machine says it for all.
    if code in (UsageError.exit_code, EXIT_INTERRUPTED) and os.environ.get("LOCAL_RANK", "0") != "0":
        sys.exit(code)
    click.echo(f"error: {' '.join(message.split())}" if code != EXIT_INTERRUPTED else message, err=True)
    sys.exit(code)


def parse_size(text: str) -> tuple[int, int]:
    """Read `HxW` ("360x480") as (height, width).

    Raises:
        UsageError: Anything else.
    """
    height, cross, width = text.lower().partition("x")
    if not (
        cross and all(t.isascii() and t.isdecimal() and len(t) < 6 and 0 < int(t) <= 16384 for t in (height, width))
    ):
        raise UsageError(f"size {text!r}; expected HEIGHTxWIDTH in pixels, such as 360x480")
    return int(height), int(width)
