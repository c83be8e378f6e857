"""The folder of collected frames: what is in it, what gives way, and how it stays whole."""

from __future__ import annotations

import glob
import json
import math
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deploy.collect.record import Kept
from deploy.sinks.options import parse_sink
from deploy.sources import kind_of
from deploy.sources.address import split_file
from deploy.texts import check_name
from lfd.errors import UsageError
from lfd.files import check_free, clear_partial, locked, replacing, write_text

INDEX = "collect.jsonl"
SLOT_S = 0.5
"""Length of the first slots: frames that are closer than this show the same."""
MAX_INDEX_BYTES = 64 << 20
MAX_FRAMES = 10_000
"""The index is written anew with every frame: 4 MB then."""
MAX_MB = 10_000_000


@dataclass(frozen=True)
class Bounds:
    """How much a folder may hold.

    Attributes:
        frames: Most frames.
        mb: Most megabytes of pictures.

    Raises:
        UsageError: A number that means nothing.
    """

    frames: int = 500
    mb: float = 1000.0

    def __post_init__(self) -> None:
        for name, value, most in (("frames", self.frames, MAX_FRAMES), ("megabytes", self.mb, MAX_MB)):
            if not 0 < value <= most:
                raise UsageError(f"collecting at most {value} {name}; expected a number above 0, up to {most}")

    @classmethod
    def of(cls, frames: int | None, mb: float | None) -> Bounds:
        """Return bounds of which some were left to the defaults."""
        return cls(cls.frames if frames is None else frames, cls.mb if mb is None else mb)


def check_folder(
    folder: Path, sources: Sequence[str], sinks: Sequence[str], overwrite: bool, files: Sequence[Path] = ()
) -> None:
    """Judge where frames are to be kept, before a model is loaded.

    A folder of earlier runs is continued. Another that holds something is refused, or with `overwrite` added to:
    nothing is removed that was not collected here.

    Args:
        folder: The folder.
        sources: The sources' texts: a folder that is read from is refused.
        sinks: The sinks' texts: one that is written to by another is refused.
        overwrite: Whether other files may be beside the frames.
        files: What else the run writes, likewise.

    Raises:
        UsageError: It cannot be taken.
    """
    check_name(str(folder))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(/|$)", str(folder)):
        raise UsageError(f"--collect {folder}: is an address; expected a folder for pictures")
    folder = folder.expanduser()
    here = folder.resolve()
    if here.exists() and not here.is_dir():
        raise UsageError(f"--collect {folder}: is a file; expected a folder for pictures")
    if folder.is_symlink() and not here.exists():  # to a disk that is not mounted, most likely
        raise UsageError(f"--collect {folder}: is a link to {here}, which is not there; make it, or choose another")
    for text in sources:
        if kind_of(text) in ("film", "pictures"):
            path = Path(split_file(text)[0]).expanduser().resolve()
            if here == path or here in path.parents:
                raise UsageError(f"--collect {folder}: the source {str(path)!r} is in it; choose another folder")
            if glob.has_magic(str(path)) and not path.exists() and _looks_into(path.parts, here.parts):
                raise UsageError(f"--collect {folder}: the source {text!r} reads there too; choose another folder")
    written = {text: parse_sink(text).path for text in sinks} | {str(file): file for file in files}
    for name, target in written.items():
        if target is not None and here in (target.resolve(), *target.resolve().parents):
            raise UsageError(f"--collect {folder}: {name!r} is written there too; choose another folder")
    if here.is_dir() and not overwrite and not (here / INDEX).exists():
        held = next((entry.name for entry in here.iterdir() if ".partial" not in entry.name), None)
        if held is not None:
            raise UsageError(
                f"--collect {folder}: holds {held} and no {INDEX}; choose a new folder, or add to it with --overwrite"
            )
    check_free(here / INDEX, overwrite=True)


def _looks_into(pattern: Sequence[str], folder: Sequence[str]) -> bool:
    """Tell whether a glob pattern finds files that lie in a folder; both as the parts of absolute paths."""
    head, *rest = pattern
    if head == "**":  # any number of folders, or files where it is the last
        return (_looks_into(rest, folder) if rest else not folder) or (
            bool(folder) and _looks_into(pattern, folder[1:])
        )
    if not folder or not rest:
        return not folder and not rest
    return fnmatchcase(folder[0], head) and _looks_into(rest, folder[1:])


class Folder:
    """Frames of any number of sources, of each at most one a slot of time, within bounds.

    All files are written aside, flushed and renamed. A picture gets its name behind its line, and loses it before its
    line goes: whenever the process is killed the pictures are within the bounds, and each has its line. A line that
    has lost its picture goes with the next run. Files that were not made here stay. A lock keeps a second run out.

    Args:
        path: The folder; made if it is not there.
        bounds: How much it may hold.

    Attributes:
        slot_s: Length of a slot.
        too_large: Bytes of the last picture that alone is more than the bounds allow; 0 without one.

    Raises:
        UsageError: Another process is at work in it, or its index is not one of ours.
        OSError: It cannot be made or read.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self.path, self._bounds = path, bounds
        self.slot_s, self.too_large = SLOT_S, 0
        self._kept: dict[tuple[str, int], Kept] = {}
        self._lock = threading.Lock()
        self._made = not path.exists()
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stack.enter_context(locked(path))
            clear_partial(path)
            read = self._read()
            for kept in read:
                picture = path / kept.file
                if picture.is_file():  # who weeds out pictures, or edits them, need not mend the lines
                    self._place(replace(kept, bytes=picture.stat().st_size))
            self._shrink()
            for gone in self._gone(read):
                gone.unlink(missing_ok=True)
            if self.kept != read:
                with suppress(OSError):  # a full disk is to end the collecting, not to keep a run from starting
                    self._write()
            self._held = stack.pop_all()

    def _read(self) -> list[Kept]:
        path = self.path / INDEX
        if not path.exists():
            return []
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise UsageError(f"{path}: more than {MAX_INDEX_BYTES} bytes; choose another folder")
        found = []
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                kept = Kept.from_json(line)
            except (ValueError, TypeError, RecursionError) as error:
                raise UsageError(
                    f"{path}:{number}: is no line of a collected frame ({error}). Fix: choose another folder, or "
                    "remove the line and its picture"
                ) from error
            found.append(kept)
        return found

    @property
    def kept(self) -> list[Kept]:
        """What is there, the oldest first."""
        with self._lock:
            return sorted(self._kept.values(), key=lambda kept: kept.file)

    def slot(self, at_s: float) -> int:
        """Return which slot a time is in."""
        return math.floor(at_s / self.slot_s)

    def wants(self, source: str, at_s: float, score: float) -> bool:
        """Tell whether a frame would be kept now, but for its bytes."""
        with self._lock:
            there = self._kept.get((source, self.slot(at_s)))
            return there is None or score > there.score

    def free_name(self, name: str) -> bool:
        """Tell whether a picture may have a name."""
        return not (self.path / name).exists()

    def add(self, kept: Kept, picture: bytes) -> None:
        """Keep a frame; it takes the place of the one in its slot, and others may give way to stay within the bounds.

        Raises:
            OSError: The disk is full, or refuses; the folder is as it was.
        """
        if kept.bytes > 1e6 * self._bounds.mb:
            self.too_large = kept.bytes
            return  # all others would give way to it, and then it would go too
        with self._lock:
            before = self.slot_s, dict(self._kept)
            self._kept[kept.source, self.slot(kept.at_s)] = kept
            self._shrink()
            stays = kept in self._kept.values()
        try:
            with ExitStack() as stack:
                if stays:
                    stack.enter_context(replacing(self.path / kept.file)).write_bytes(picture)
                for gone in self._gone(before[1].values()):
                    stack.enter_context(_removing(gone))
                self._write()
        except OSError:
            with self._lock:
                self.slot_s = before[0]
                self._kept = {key: one for key, one in before[1].items() if (self.path / one.file).exists()}
            raise

    def _write(self) -> None:
        lines = [json.dumps(asdict(kept), allow_nan=False) + "\n" for kept in self.kept]
        path = self.path / INDEX
        if lines or path.exists():
            write_text(path, "".join(lines))

    def _gone(self, had: Iterable[Kept]) -> list[Path]:
        """Return the pictures that had a line and have none any more."""
        return [self.path / name for name in {kept.file for kept in had} - {kept.file for kept in self.kept}]

    def _place(self, kept: Kept) -> None:
        """Put a frame into its slot where it is the better one; of equals the older."""
        key = kept.source, self.slot(kept.at_s)
        there = self._kept.get(key)
        if there is None or (kept.score, there.at_s) > (there.score, kept.at_s):
            self._kept[key] = kept

    def _shrink(self) -> None:
        """Double the slots, and where each source has one frame left drop the lowest, until the bounds hold."""
        while self._over():
            if max(Counter(source for source, _ in self._kept).values()) > 1:
                self.slot_s *= 2
                kept, self._kept = list(self._kept.values()), {}
                for one in kept:
                    self._place(one)
            else:
                del self._kept[min(self._kept, key=lambda key: self._kept[key].score)]

    def _over(self) -> bool:
        total = sum(kept.bytes for kept in self._kept.values())
        return len(self._kept) > self._bounds.frames or total > 1e6 * self._bounds.mb

    def close(self) -> None:
        """Let another run have the folder; remove it where it was made for nothing."""
        if self._made:
            with suppress(OSError):  # it holds something, which is to stay
                self.path.rmdir()
        self._held.close()


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    """Take a file's name away, and the file when the block succeeds; aside it is called as by `replacing`."""
    aside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with suppress(FileNotFoundError):
        path.replace(aside)
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)
