"""From what a user typed to sinks: judged before a model is loaded, made once the source is open."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import click

from deploy.frames import FrameSink, VideoInfo
from deploy.overlay import Overlay
from deploy.sinks.display import TITLE, DisplaySink, check_display
from deploy.sinks.ffmpeg import find_ffmpeg
from deploy.sinks.film import FilmSink
from deploy.sinks.jsonl import JsonLinesSink
from deploy.sinks.null import NullSink
from deploy.sinks.options import Target, parse_sink
from deploy.sinks.pictures import PictureSink
from deploy.sources import kind_of
from deploy.sources.address import split_file
from deploy.stats import StatsSnapshot
from deploy.texts import redact
from lfd.errors import UsageError, require
from lfd.files import check_free


class About(NamedTuple):
    """What a sink may tell people of the run.

    Attributes:
        model: Its name.
        backend: What runs it.
        source: What was typed, without credentials.
        opacity: Of the colour, as asked for.
    """

    model: str = ""
    backend: str = ""
    source: str = ""
    opacity: float = 0.5


class _Make(Protocol):
    def __call__(
        self, target: Target, overlay: Overlay, info: VideoInfo, stats: Callable[[], StatsSnapshot], about: About
    ) -> FrameSink: ...


class SinkKind(NamedTuple):
    """How a kind of sink is checked and made.

    Attributes:
        check: Takes the target and --overwrite; raises an LfdError before anything is loaded.
        make: Takes the target, the overlay, the source's VideoInfo, the run's counters and what there is to tell.
    """

    check: Callable[[Target, bool], None]
    make: _Make


def _path(target: Target) -> Path:
    assert target.path is not None  # noqa: S101 - `parse_sink` gives one to every kind that has a check below
    return target.path


def _check_nothing(target: Target, overwrite: bool) -> None:
    pass


def _check_display(target: Target, overwrite: bool) -> None:
    check_display()


def _check_file(target: Target, overwrite: bool) -> None:
    path = _path(target)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a file, or {path}/ for pictures")
    check_free(path, overwrite)


def _check_film(target: Target, overwrite: bool) -> None:
    path = _path(target)
    if target.options.get("codec") == "h264":
        find_ffmpeg()
    segments = target.segments()
    if segments is None:
        _check_file(target, overwrite)
        return
    taken = [entry for entry in path.parent.iterdir() if segments.fullmatch(entry.name)] if path.parent.is_dir() else []
    check_free(min(taken, default=path.with_name(f"{path.stem}-00001{path.suffix}")), overwrite)


def _check_pictures(target: Target, overwrite: bool) -> None:
    path = _path(target)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file; expected a folder for pictures")
    if path.is_dir() and not overwrite:
        held = next((entry.name for entry in path.iterdir() if not entry.name.endswith(".partial")), None)
        if held is not None:
            raise UsageError(
                f"{path} is not empty (it holds {held}); choose another folder, or add to it and replace pictures of "
                "the same name with --overwrite"
            )
    check_free(path / "x.png", overwrite=True)


def _check_page(target: Target, overwrite: bool) -> None:
    require("tornado", "web")
    from deploy.web.server import listen  # noqa: PLC0415 - for who has a page only

    assert target.address is not None  # noqa: S101 - `parse_sink` gives one to a page
    for one in listen(*target.address):
        one.close()


def _make_page(
    target: Target, overlay: Overlay, info: VideoInfo, stats: Callable[[], StatsSnapshot], about: About
) -> FrameSink:
    require("tornado", "web")
    from deploy.web.sink import WebSink  # noqa: PLC0415 - likewise

    assert target.address is not None  # noqa: S101 - likewise
    facts = {"model": about.model, "backend": about.backend, "source": about.source}
    say = partial(click.echo, err=True)
    return WebSink(*target.address, overlay.labels, info, stats, say, facts, about.opacity, **target.options)


SINKS: dict[str, SinkKind] = {
    "null": SinkKind(_check_nothing, lambda target, overlay, info, stats, about: NullSink()),
    "display": SinkKind(
        _check_display, lambda target, overlay, info, stats, about: DisplaySink(overlay, **target.options)
    ),
    "page": SinkKind(_check_page, _make_page),
    "film": SinkKind(
        _check_film,
        lambda target, overlay, info, stats, about: FilmSink(_path(target), overlay, info, **target.options),
    ),
    "pictures": SinkKind(
        _check_pictures,
        lambda target, overlay, info, stats, about: PictureSink(_path(target), overlay, info, **target.options),
    ),
    "jsonl": SinkKind(
        _check_file,
        lambda target, overlay, info, stats, about: JsonLinesSink(
            _path(target), overlay.labels, info, stats, **target.options
        ),
    ),
}


class _Claim(NamedTuple):
    """A name that is spoken for, or all those of a film's segments."""

    path: Path
    segments: re.Pattern[str] | None
    what: str

    def meets(self, other: _Claim) -> bool:
        if (self.segments is None) == (other.segments is None):
            return self.path == other.path
        one, many = (self, other) if other.segments is not None else (other, self)
        named = many.segments is not None and many.segments.fullmatch(one.path.name)
        return bool(named) and one.path.parent == many.path.parent


def check_outputs(
    texts: Sequence[str],
    sources: Sequence[str],
    model: Path | None,
    overwrite: bool,
    summary: Path | None = None,
    stats: Path | None = None,
) -> None:
    """Judge all the sinks of a run, before a model is loaded.

    Args:
        texts: Sinks, of all streams together.
        sources: The sources' texts: output in place of one is refused, whatever `overwrite` says.
        model: The model's file, likewise; None where it is open already.
        overwrite: Whether files may be replaced.
        summary: File for the summary, which is held to the same rules.
        stats: File for the statistics, likewise.

    Raises:
        UsageError: A source, a sink or an option is unknown, two write to one place, or one is in the way of a file, or
            in place of a source or the model.
        SinkError: There is no screen for display://, ffmpeg does not answer, or a page's port is taken.
        MissingDependencyError: There is no ffmpeg for codec=h264, or no server for a page.
    """
    origins = [] if model is None else [_Claim(model.resolve(), None, "model")]
    folders: list[_Claim] = []
    for source in sources:
        if kind_of(source) in ("film", "pictures"):
            path = Path(split_file(source)[0]).expanduser()
            origins.append(_Claim(path.resolve(), None, "source"))
            folders += [] if path.is_dir() else [_Claim(path.resolve().parent, None, "source")]
    taken: list[_Claim] = []
    for option, file in (("--json", summary), ("--stats", stats)):
        if file is not None:
            taken.append(_claim(_Claim(file.resolve(), None, f"{option} {file}"), origins, taken))
            check_free(file, overwrite)
    for text in texts:
        target = parse_sink(text)
        if target.path is not None:
            held = [*origins, *(folders if target.kind == "pictures" else ())]
            taken.append(_claim(_Claim(target.path.resolve(), target.segments(), text), held, taken))
        elif target.kind == "display":
            title = target.options.get("title", TITLE)
            taken.append(_claim(_Claim(Path("display://") / title, None, text), (), taken))
        elif target.address is not None and target.address[1]:
            taken.append(_claim(_Claim(Path(f"http://:{target.address[1]}"), None, redact(text)), (), taken))
        SINKS[target.kind].check(target, overwrite)


def _claim(claim: _Claim, origins: Sequence[_Claim], taken: Sequence[_Claim]) -> _Claim:
    for origin in origins:
        if claim.meets(origin):
            raise UsageError(
                f"output {claim.what!r} would write over the {origin.what} {str(origin.path)!r}; choose another name"
            )
    for other in taken:
        if claim.meets(other):
            raise UsageError(f"sink {claim.what!r} writes to the same place as {other.what!r}; give each once")
    return claim


def open_sink(
    text: str, overlay: Overlay, info: VideoInfo, stats: Callable[[], StatsSnapshot], about: About | None = None
) -> FrameSink:
    """Make a sink that `check_outputs` has passed.

    Args:
        text: What was typed.
        overlay: Paints the frames; the sinks of one stream share it.
        info: The source's.
        stats: Returns what the run has done so far.
        about: What a page tells of the run.

    Raises:
        UsageError: It means no kind of sink.
        SinkError: It cannot be opened.
    """
    target = parse_sink(text)
    return SINKS[target.kind].make(target, overlay, info, stats, about or About())
