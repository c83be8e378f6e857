"""One file over HTTP: resumed where it was cut, verified before it gets its name.

Bytes go to FILE.part, whose neighbour FILE.part.json says what it is a part of. A later call asks for the rest with
Range and If-Range (RFC 9110, 13.1.5 and 14.2), so that a file that has changed meanwhile, or a server without ranges,
starts again from the first byte. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import IO

from lfd.errors import CheckpointError
from lfd.files import write_json
from lfd.web import RangeError, Redirects, TransientError, UnreachableError, make_request, open_response, read, redact

_BLOCK = 1 << 20
_SPAN = re.compile(r"bytes (\d{1,18})-\d+/(\d{1,18})")

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the bytes of the whole, None where the server does not say."""


@dataclass(frozen=True)
class Limits:
    """When to give up.

    Attributes:
        max_bytes: Largest file; what `lfd.weights` reads.
        timeout_s: Without a byte, or without a connection.
        attempts: In a row that bring nothing new.
        backoff_s: Before the second attempt; it doubles with each, up to 30 s, scattered by half.
    """

    max_bytes: int = 8 << 30
    timeout_s: float = 30.0
    attempts: int = 5
    backoff_s: float = 1.0


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str, path: Path, sha256: str = "", limits: Limits | None = None, progress: Progress | None = None
) -> str:
    """Fetch a file and give it its name once it is whole; an older one is replaced then.

    Args:
        url: http or https. Of `user:password@` the server that is named gets to know, none it redirects to.
        path: The file's; its folder is made.
        sha256: What its SHA-256 begins with, in lower case; "" takes what comes.
        limits: Size, time and attempts.
        progress: Called after each block.

    Returns:
        Its SHA-256.

    Raises:
        UsageError: The address is none.
        CheckpointError: Not reachable, not there, too large, not what was expected, or no place on the disk.
        KeyboardInterrupt: With a message that says what is kept.
    """
    request = make_request(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _Part.held(path) as part:
        try:
            _fill(part, request, sha256, limits or Limits(), progress or (lambda done, total: None))
            os.fsync(part.file.fileno())
            found = sha256_of(part.path)
            if not part.size:
                raise CheckpointError(f"{redact(url)}: is empty; expected a file of weights")
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; {part.kept()}") from None
        except UnreachableError as error:
            raise CheckpointError(
                f"{redact(url)}: cannot be fetched ({error}); {part.kept()}. Fix: on a machine with a network run "
                f"`curl -fL -o {path.name} {redact(url)}`, copy the file to {path}, and run this again to verify it"
            ) from error
        if not found.startswith(sha256):
            part.remove()
            raise CheckpointError(
                f"{redact(url)}: came with SHA-256 {found}; expected {sha256}. It was removed. Fix: fetch it again; if "
                "it is the same again, another file stands at that address: do not use it"
            )
        part.finish()
    return found


class _Part:
    """FILE.part, open and locked, and the note beside it: address, validator and size of what it is a part of."""

    def __init__(self, whole: Path, path: Path, file: IO[bytes]) -> None:
        self.whole, self.path, self.file = whole, path, file
        self.note = path.with_name(f"{path.name}.json")

    @classmethod
    @contextmanager
    def held(cls, whole: Path) -> Iterator[_Part]:
        """Open FILE.part for one process; the lock is on it, not on a folder that other downloads share."""
        path = whole.with_name(f"{whole.name}.part")
        while True:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise CheckpointError(
                        f"{path}: another process is fetching it; wait for that one, or choose another -o"
                    ) from error
                # Between open and lock another process may have finished: what we hold then has its final name.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    part = cls(whole, path, file)
                    if part.size and not part.note.exists():
                        raise CheckpointError(
                            f"{path}: was not left by this command. Fix: move it, or choose another -o"
                        )
                    try:
                        yield part
                    except BaseException:
                        if not part.size:
                            part.remove()
                        raise
                    return

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return os.fstat(self.file.fileno()).st_size

    def kept(self) -> str:
        """Say what a stopped download leaves."""
        if not self.size:
            return "nothing of it has come"
        return f"{self.size / 1e6:.1f} MB are kept in {self.path}, from where the same command goes on"

    def known(self, url: str) -> tuple[int, str, int | None]:
        """Return from where to go on, under which validator, and the whole size; (0, "", None) to start again."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(self.note.read_text(encoding="utf-8"))
            validator, total, size = str(note["validator"]), note["total"], self.size
            if note["address"] == _fingerprint(url) and (size == total or (validator and (not total or size < total))):
                return size, validator, total
        return 0, "", None

    def restart(self, url: str, validator: str = "", total: int | None = None) -> None:
        """Empty it, and note what it is to become a part of."""
        self.file.truncate(0)
        write_json(self.note, {"address": _fingerprint(url), "validator": validator, "total": total})

    def write(self, block: bytes, at: int) -> None:
        """Write a block.

        Raises:
            CheckpointError: The disk is full, or a quota is reached.
        """
        try:
            self.file.seek(at)
            while block:
                block = block[self.file.write(block) :]
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: cannot be written ({error.strerror}); {self.kept()}. Fix: free space there, or choose "
                "another place with -o"
            ) from error

    def finish(self) -> None:
        """Give it its name."""
        self.path.replace(self.whole)
        self.note.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove it and its note."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fingerprint(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()  # of an address that may hold a secret


def _fill(part: _Part, request: urllib.request.Request, sha256: str, limits: Limits, progress: Progress) -> None:
    """Bring the whole file, over as many connections as it takes."""
    best, failures = part.size, 0
    opener = urllib.request.build_opener(Redirects)  # proxies as the environment has them
    while True:
        try:
            _attempt(part, request, opener, sha256, limits, progress)
            return
        except TransientError as error:  # noqa: PERF203  a loop of attempts
            if isinstance(error, RangeError):
                part.restart(request.full_url)
            failures = 1 if part.size > best else failures + 1
            best = max(best, part.size)
            if failures >= limits.attempts:
                raise UnreachableError(f"{error}, {failures} times in a row") from error
            pause = min(30.0, limits.backoff_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
            time.sleep(max(pause, min(error.wait_s, 60.0)))


def _attempt(
    part: _Part,
    request: urllib.request.Request,
    opener: urllib.request.OpenerDirector,
    sha256: str,
    limits: Limits,
    progress: Progress,
) -> None:
    """Bring as much as comes over one connection; return when the file is whole."""
    url = request.full_url
    position, validator, total = part.known(url)
    if position and position == total:  # stopped between the last byte and the rename
        return
    request.remove_header("Range")
    request.remove_header("If-range")  # as urllib spells it
    if position:
        request.add_header("Range", f"bytes={position}-")
        request.add_header("If-Range", validator)
    with contextlib.closing(open_response(request, opener, limits.timeout_s)) as response:
        _check_kind(response, url)
        current = _validator(response.headers)
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            span = _SPAN.fullmatch(response.headers.get("Content-Range", ""))
            same = current in ("", validator)  # If-Range lets a server leave it out
            if not span or int(span[1]) != position or not same or total not in (None, int(span[2])):
                raise RangeError("the server answers with a range of another file")
            total = int(span[2])
        else:
            position, total = 0, response.length  # before anything is read: Content-Length
            if total is None and not response.chunked and not sha256:
                raise CheckpointError(
                    f"{redact(url)}: the server does not say how long it is, so that a cut would look like its end. "
                    "Fix: --sha256 HEX, of the whole file"
                )
            part.restart(url, current, total)
        _check_room(part, url, position, total, limits)
        while block := read(response, _BLOCK):
            if position + len(block) > limits.max_bytes:
                raise _too_large(part, url, limits)
            part.write(block, position)
            position += len(block)
            progress(position, total)
    if total is not None and position < total:
        raise TransientError(f"the connection ends at {position} of {total} bytes")


def _validator(headers: Message) -> str:
    """Return a strong ETag, else the time of change, else ""; a weak ETag must not go into If-Range."""
    etag: str = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _check_kind(response: HTTPResponse, url: str) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise CheckpointError(f"{redact(url)}: the server sends it compressed; expected the file as it is")
    if response.headers.get_content_type() == "text/html":
        raise CheckpointError(
            f"{redact(url)}: is a web page, not a file of weights. Fix: open it in a browser; fetch what it links to"
        )


def _check_room(part: _Part, url: str, position: int, total: int | None, limits: Limits) -> None:
    if total is not None and total > limits.max_bytes:
        raise _too_large(part, url, limits)
    missing, free = (total or 0) - position, shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise CheckpointError(
            f"{part.path.parent}: {free / 1e6:.1f} MB are free; expected {missing / 1e6:.1f} MB for {part.whole.name}; "
            f"{part.kept()}. Fix: free space there, or choose another place with -o"
        )


def _too_large(part: _Part, url: str, limits: Limits) -> CheckpointError:
    part.remove()
    return CheckpointError(f"{redact(url)}: is larger than {limits.max_bytes} bytes; expected a file of weights")
