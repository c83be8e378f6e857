"""Pictures for viewers, encoded once for all who want the same, when they want it."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import cv2
import numpy as np

from deploy.overlay import blend, mark_stale
from lfd.config import among
from lfd.errors import LfdError, UsageError, unknown
from lfd.picture import palette
from lfd.preprocess import Image
from lfd.spec import Labels

VIEWS = ("overlay", "mask", "side", "plain")
MAX_VIEWS = 4
"""Different pictures that are composed at a time; each costs a core some milliseconds a frame."""
BOUNDARY = "lfd-layers"
"""Between the parts of `/layers`; that fourteen given bytes are in a picture by chance does not happen."""


class BusyError(LfdError):
    """Too many different pictures are asked for at once."""


@dataclass(frozen=True)
class Shot:
    """What there is to show.

    Attributes:
        number: From 1; a picture that has become stale is a new shot.
        image: (H, W, 3) BGR uint8.
        class_map: (H, W) uint8 label values.
        taken: Unix time of its capture, seconds.
        stale: Why no newer one comes; "" while they come.
    """

    number: int
    image: Image
    class_map: Image
    taken: float
    stale: str = ""


@dataclass(frozen=True)
class View:
    """What a viewer sees of a shot; equal views share one picture.

    Attributes:
        kind: One of VIEWS, or "layers": frame and class map apart.
        opacity: Share of the colour, percent.
        off: Label values that stay without colour.
    """

    kind: str
    opacity: int = 0
    off: frozenset[int] = frozenset()


LAYERS = View("layers")


def parse_view(options: Mapping[str, str], labels: Labels, opacity: float) -> View:
    """Read `view`, `opacity` and `classes` of a query.

    Args:
        options: The query.
        labels: Those whose names or numbers `classes` lists, separated by commas.
        opacity: Where the query has none.

    Raises:
        UsageError: An option that does not exist, or a value that does not fit.
    """
    for key in options:
        if key not in ("view", "opacity", "classes"):
            raise unknown("option", key[:40], ("view", "opacity", "classes"))
    kind = options.get("view", "overlay")
    among("view", kind[:40], VIEWS)
    text = options.get("opacity", str(opacity))
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"opacity={text[:40]!r}; expected a number from 0 to 1")
    on = _classes(options["classes"], labels) if "classes" in options else range(len(labels))
    off = frozenset(range(len(labels))).difference(on)
    # What makes no difference to the picture must not make another one.
    return View(kind, round(100 * share) if kind == "overlay" else 0, frozenset() if kind == "plain" else off)


def _classes(text: str, labels: Labels) -> Collection[int]:
    numbers = {name: index for index, name in enumerate(labels.names)} | {str(n): n for n in range(len(labels))}
    found = set()
    for name in filter(None, text.split(",")):
        if name not in numbers:
            raise unknown("class", name[:40], labels.names)
        found.add(numbers[name])
    return found


class Encoder:
    """Makes the bytes of a view. One thread calls it.

    Args:
        labels: The model's classes.
        quality: Of JPEGs, 1 to 100.
    """

    def __init__(self, labels: Labels, quality: int) -> None:
        self._colors, self._quality = palette(labels), quality

    def encode(self, shot: Shot, view: View) -> bytes:
        """Return a JPEG; of LAYERS the body of a multipart/form-data message."""
        if view == LAYERS:
            return self._layers(shot)
        picture = self._compose(shot, view)
        return self._jpeg(mark_stale(picture, shot.stale) if shot.stale else picture)

    def _layers(self, shot: Shot) -> bytes:
        """Frame and class map, in a format that browsers read by themselves (RFC 7578).

        The map is deflated (RFC 1950), which is exact and takes 0.8 ms at 960x540, where a PNG takes 2.7.
        """
        height, width = shot.class_map.shape
        about = {"number": shot.number, "width": width, "height": height, "taken": shot.taken, "stale": shot.stale}
        deflated = zlib.compress(np.ascontiguousarray(shot.class_map).data, 1)
        parts = (
            (b'name="about"', b"application/json", json.dumps(about).encode()),
            (b'name="frame"; filename="frame.jpg"', b"image/jpeg", self._jpeg(shot.image)),
            (b'name="map"; filename="map.z"', b"application/zlib", deflated),
        )
        edge = b"--" + BOUNDARY.encode()
        body = [
            b"%s\r\nContent-Disposition: form-data; %s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (edge, name, kind, data)
            for name, kind, data in parts
        ]
        return b"".join([*body, edge, b"--\r\n"])

    def _compose(self, shot: Shot, view: View) -> Image:
        if view.kind == "plain":
            return shot.image
        if view.kind == "overlay":
            picture = blend(shot.image, shot.class_map, self._colors, view.opacity / 100)
            if view.off:
                untouched = np.zeros((1, 256), np.uint8)
                untouched[0, list(view.off)] = 1
                cv2.copyTo(shot.image, cv2.LUT(shot.class_map, untouched), picture)
            return picture
        colors = self._colors.copy()
        colors[list(view.off)] = 0
        mask = np.asarray(cv2.applyColorMap(shot.class_map, colors), np.uint8)
        return mask if view.kind == "mask" else np.hstack((shot.image, mask))

    def _jpeg(self, picture: Image) -> bytes:
        return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, self._quality))[1].tobytes()


@dataclass(frozen=True)
class Picture:
    """The bytes of a shot, and its number."""

    number: int
    data: bytes


class Gallery:
    """The newest shot, and what has been encoded of it. `publish` is for any thread, the rest for the event loop's.

    Viewers ask for a picture when they are ready for one: who is slow gets the newest, and misses those between.

    Args:
        encoder: Called in a thread of the gallery's own.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lfd-web-encode")
        self._shot: Shot | None = None
        self._news: asyncio.Future[None] | None = None
        self._made: dict[View, Picture] = {}
        self._jobs: dict[View, asyncio.Task[Picture]] = {}
        self._viewers: Counter[View] = Counter()
        self.closed = False
        self.encoded: Counter[str] = Counter()
        """Pictures encoded of each kind of view."""

    @property
    def newest(self) -> int:
        """The number of the newest shot; 0 before the first."""
        return self._shot.number if self._shot is not None else 0

    def publish(self, shot: Shot) -> None:
        """Replace the newest shot."""
        self._shot = shot
        # `next` looks at the shot after it has set `_news`: one of the two sees what the other did.
        if self._news is not None:
            with suppress(RuntimeError):  # the server is stopping
                self._loop.call_soon_threadsafe(self._announce)

    @contextmanager
    def viewing(self, view: View) -> Iterator[None]:
        """Count a viewer in.

        Raises:
            BusyError: MAX_VIEWS other views are being looked at.
        """
        composed = len(self._viewers) - (LAYERS in self._viewers)
        if view not in self._viewers and view != LAYERS and composed >= MAX_VIEWS:
            raise BusyError(f"{MAX_VIEWS} different pictures are being sent; expected one of those, or fewer viewers")
        self._viewers[view] += 1
        try:
            yield
        finally:
            self._viewers[view] -= 1
            if not self._viewers[view]:
                del self._viewers[view]

    async def next(self, view: View, after: int, patience_s: float) -> Picture | None:
        """Wait for a picture of a later shot than `after`, encoding it if nobody has; None when none came in time."""
        deadline = self._loop.time() + patience_s
        while not self.closed:
            news = self._news = self._news or self._loop.create_future()
            shot, made = self._shot, self._made.get(view)
            if shot is not None and shot.number > after:
                if made is not None and made.number == shot.number:
                    return made
                job = self._jobs.get(view) or self._start(shot, view)
                done = await asyncio.shield(job)  # others wait for it too
                if done.number > after:
                    return done
                continue
            if not (await asyncio.wait({news}, timeout=deadline - self._loop.time()))[0]:
                break
        return None

    async def close(self) -> None:
        """Send everybody who waits away, and end the encoder's thread."""
        self.closed = True
        self._announce()
        await asyncio.gather(*self._jobs.values(), return_exceptions=True)
        self._thread.shutdown()

    def _announce(self) -> None:
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def _start(self, shot: Shot, view: View) -> asyncio.Task[Picture]:
        job = self._jobs[view] = self._loop.create_task(self._encode(shot, view))
        return job

    async def _encode(self, shot: Shot, view: View) -> Picture:
        try:
            data = await self._loop.run_in_executor(self._thread, self._encoder.encode, shot, view)
        finally:
            del self._jobs[view]
        picture = Picture(shot.number, data)
        self.encoded[view.kind] += 1
        self._made[view] = picture
        # Who left may be back for the next picture: a page asks for each of them anew.
        unseen = [kept for kept in self._made if kept not in self._viewers and kept != view]
        for kept in unseen[: max(0, len(self._made) - MAX_VIEWS - 1)]:
            del self._made[kept]
        return picture
