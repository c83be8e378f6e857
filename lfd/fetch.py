"""`lfd-train fetch`: a public checkpoint by name or address, or a file that is here, verified and said what it is."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from lfd.download import Limits, download, sha256_of
from lfd.errors import CheckpointError, UsageError, require, unknown
from lfd.files import check_free
from lfd.web import make_request, redact
from lfd.zoo import Checkpoint, checkpoints, find

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[\w+-][\w.+-]{0,199}", re.ASCII)


@dataclass(frozen=True)
class Fetched:
    """A file of weights that is on this disk now.

    Attributes:
        path: Where.
        sha256: Its SHA-256.
        how: `fetched`, `there` (already), or `local` (given as a path).
        pinned: What its SHA-256 was checked against, in words; "" for nothing.
        entry: What the catalogue knows of it; None for nothing.
    """

    path: Path
    sha256: str
    how: str
    pinned: str
    entry: Checkpoint | None

    def lines(self) -> list[str]:
        """Return what a person is told: where, whether verified, what it is, and the next command."""
        megabytes = f"{self.path.stat().st_size / 1e6:.1f} MB"
        where = {
            "fetched": f"fetched  {self.path}: {megabytes}",
            "there": f"there    {self.path}: {megabytes}; nothing was fetched",
            "local": f"file     {self.path}: {megabytes}, {_kind(self.path)}; nothing was copied",
        }[self.how]
        trust = self.pinned or f"checked against nothing: none is published. Pin it: --sha256 {self.sha256}"
        lines = [where, f"sha256   {self.sha256}", f"         {trust}"]
        if self.entry is not None:
            lines += _about(self.entry) + _next(self.entry, self.path)
        return lines


def fetch(
    what: str,
    out: str = "",
    sha256: str = "",
    overwrite: bool = False,
    progress: TextIO | None = None,
    limits: Limits | None = None,
) -> Fetched:
    """Bring a file of weights to this disk, or find it there; nothing is asked of a network in vain.

    Args:
        what: A name in the catalogue, an address, or a file that is here: a path or `file:` address.
        out: File or folder to write; "" takes torch's cache for torchvision's, where torchvision looks for them,
            and the current folder for others.
        sha256: All 64 digits, to hold the file to.
        overwrite: Replace another file of that name.
        progress: Where to show how it goes: one line that changes on a terminal, lines elsewhere.
        limits: Of the download.

    Raises:
        UsageError: No such name, no address, or another file has the name.
        CheckpointError: Not to be had, or not what was expected.
    """
    sha256 = sha256.lower()
    if sha256 and not _SHA256.fullmatch(sha256):
        raise UsageError(f"--sha256 {sha256!r}; expected 64 hexadecimal digits, as sha256sum prints them")
    entry = find(what)
    local = _local(what) if entry is None else None
    if local is not None:
        if out:
            raise UsageError(f"-o {out}: {local} is a file, which is verified where it is. Fix: leave -o away")
        return _identify(local, sha256)
    url = entry.url if entry else what
    if entry is None:
        make_request(url)  # refuses what is no address
    elif sha256 and not sha256.startswith(entry.sha256):
        raise UsageError(f"--sha256 {sha256}: {what} is published with one that begins with {entry.sha256}")
    path = _place(out, entry, url)
    expected = sha256 or (entry.sha256 if entry else "")
    if path.is_file() and (expected or (entry and not overwrite)):
        digest = sha256_of(path)
        if digest.startswith(expected):
            return Fetched(path, digest, "there", _pinned(expected, sha256), entry)
        if not overwrite:
            raise CheckpointError(
                f"{path}: has SHA-256 {digest}; expected {expected}. Fix: --overwrite replaces it, -o writes elsewhere"
            )
    if entry is not None and not url:
        raise CheckpointError(
            f"{what}: is given to persons only, and is not at {path}. Fix: open {entry.page} in a browser, save the "
            f"file as {path}, and run this again"
        )
    check_free(path, overwrite)
    meter = Meter(path.name, progress) if progress else None
    try:
        digest = download(url, path, expected, limits, meter)
    finally:
        if meter:
            meter.clear()
    return Fetched(path, digest, "fetched", _pinned(expected, sha256), entry)


def table() -> list[str]:
    """Return the catalogue, a line an entry."""
    rows = [("name", "for", "MB", "classes", "input", "SHA-256", "published accuracy")]
    rows += [
        (
            entry.name,
            entry.role,
            f"{entry.size_mb:.1f}" if entry.size_mb else "-",
            entry.classes,
            entry.normalize,
            (entry.sha256 or "none") if entry.url else "by hand",
            entry.accuracy or "-",
        )
        for entry in checkpoints().values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([*(f"{v:<{w}}" for v, w in zip(row, widths, strict=False)), row[-1]]) for row in rows]


class Meter:
    """Shows how a download goes: one line that changes on a terminal, else a line every ten seconds."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self.name, self.stream, self.live = name, stream, stream.isatty()
        self.every_s = 0.25 if self.live else 10.0
        self._began: tuple[float, int] | None = None
        self._shown = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        """Note that `done` of `total` bytes are there."""
        now = time.monotonic()
        if self._began is None:  # what an earlier call brought does not count for the rate
            self._began, self._shown = (now, done), now
        if now - self._shown < self.every_s:
            return
        self._shown = now
        rate = max(done - self._began[1], 0) / (now - self._began[0])
        text = f"{self.name}  {done / 1e6:.1f} MB"
        if total:
            text = f"{self.name}  {done / total:4.0%}  {done / 1e6:.1f} of {total / 1e6:.1f} MB"
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        line = f"{text}  {rate / 1e6:.2f} MB/s{left}"
        self.stream.write(f"\r{line}\x1b[K" if self.live else f"{line}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _local(what: str) -> Path | None:
    """Return the file that a path or a `file:` address names; None for anything else."""
    if what.startswith("file:"):
        parts = urlsplit(what)
        path = Path(url2pathname(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_file():
            raise CheckpointError(f"{what}: no such file on this machine; expected file:///PATH")
        return path
    if "://" in what:
        return None
    if Path(what).is_file():
        return Path(what)
    if what.startswith("torchvision:"):
        require("torchvision", "train")
    if "/" in what:
        raise CheckpointError(f"{what}: no such file; expected a file, https://HOST/FILE, or a name of `fetch --list`")
    raise unknown("checkpoint", what, checkpoints())


def _identify(path: Path, sha256: str) -> Fetched:
    digest = sha256_of(path)
    if not digest.startswith(sha256):
        raise CheckpointError(f"{path}: has SHA-256 {digest}; expected {sha256}. It is left as it is: copy it again")
    for candidate in checkpoints().values():
        if candidate.sha256 and digest.startswith(candidate.sha256):
            return Fetched(path, digest, "local", _pinned(candidate.sha256, sha256), candidate)
    return Fetched(path, digest, "local", _pinned("", sha256), None)


def _pinned(expected: str, given: str) -> str:
    if given:
        return "as given by --sha256"
    return f"begins with {expected}, as published" if expected else ""


def _place(out: str, entry: Checkpoint | None, url: str) -> Path:
    """Return the file to write."""
    name = entry.file if entry else unquote(urlsplit(url).path.rpartition("/")[2])
    if out and not out.endswith("/") and not Path(out).is_dir():
        return Path(out)
    if not _FILE.fullmatch(name):
        raise UsageError(f"{redact(url)}: has no plain file name at its end. Fix: -o FILE")
    if out:
        return Path(out) / name
    return (_torch_cache() if entry and entry.name.startswith("torchvision:") else Path()) / name


def _torch_cache() -> Path:
    """Return the folder in which torch.hub, and with it torchvision, looks for a file before it asks a network."""
    from torch import hub  # noqa: PLC0415  slow, and only torchvision's entries need it

    return Path(hub.get_dir()) / "checkpoints"


def _about(entry: Checkpoint) -> list[str]:
    score = f"; {entry.accuracy}" if entry.accuracy else ""
    lines = [
        f"is       {entry.name}, {entry.role}: classes of {entry.classes}, input {entry.normalize}{score}",
        f"from     {entry.page}",
        f"licence  {entry.licence}",
    ]
    return [*lines, f"note     {entry.note}"] if entry.note else lines


def _next(entry: Checkpoint, path: Path) -> list[str]:
    if entry.role == "teacher":
        model = f" --model {entry.network}" if entry.network else ""
        size = f" --size {entry.size}" if entry.size else ""
        file = shlex.quote(str(path))
        command = f"lfd-train import {file}{model} --data {entry.classes}:PATH{size} -o teacher.safetensors"
    elif entry.name.startswith("torchvision:") and path.parent == _torch_cache():
        command = f"--weights imagenet, for a network on {entry.network}; no network needed any more"
    else:
        normalize = "" if entry.normalize == "imagenet" else f" --set data.normalize={entry.normalize}"
        command = f"--weights {shlex.quote(str(path))}{normalize}, for a network on {entry.network}"
    return [f"next     {command}"]


def _kind(path: Path) -> str:
    """Say what a file is by its first bytes."""
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return "a file of torch.save"
    if head.startswith(b"\x80\x02"):
        return "a file of torch.save before PyTorch 1.6"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a .safetensors"
    return "a web page, not weights" if head.lstrip()[:1] == b"<" else "of no known kind of weights"
