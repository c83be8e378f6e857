"""The sink behind the page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from deploy.frames import Frame, State, StreamStatus, VideoInfo
from deploy.overlay import describe_loss
from deploy.reader import Pace
from deploy.stats import StatsSnapshot
from deploy.web.answers import Site
from deploy.web.guard import is_loopback, new_token, own_address, own_names
from deploy.web.numbers import Numbers
from deploy.web.page import Page
from deploy.web.pictures import Encoder, Shot
from deploy.web.server import Server, listen
from lfd.preprocess import Image
from lfd.spec import Labels

FPS = 30
QUALITY = 80


class WebSink:
    """A page with the live picture and how the run is; see `deploy.web`.

    It keeps the newest frame and goes on: what viewers want is encoded in threads of the server's own.

    Args:
        host: Address or name to listen on. One that other machines can reach needs a token.
        port: Likewise; 0 takes a free one.
        labels: The model's classes.
        info: The source's.
        stats: Counters of the run.
        say: Told the address to open, once; with a token that nobody has chosen.
        about: "model", "backend" and "source", for people.
        opacity: Of overlays at first.
        token: What viewers must know; "" makes one where one is needed.
        fps: At most so many pictures a second.
        quality: Of JPEGs, 1 to 100.

    Raises:
        SinkError: The port is taken or not allowed, or the host is none of this machine.
    """

    def __init__(
        self,
        host: str,
        port: int,
        labels: Labels,
        info: VideoInfo,
        stats: Callable[[], StatsSnapshot],
        say: Callable[[str], object],
        about: Mapping[str, str],
        opacity: float = 0.5,
        token: str = "",
        fps: int = FPS,
        quality: int = QUALITY,
    ) -> None:
        sockets = listen(host, port)
        self.port: int = sockets[0].getsockname()[1]
        made = not token and not is_loopback(host)
        token = token or (new_token() if made else "")
        classes = [
            {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*color)}
            for name, color in zip(labels.names, labels.colors, strict=True)
        ]
        facts = {**about, "resolution": info.resolution_wh, "live": info.live, "opacity": opacity, "classes": classes}
        self._numbers = Numbers(facts, stats)
        site = Site(self.port, own_names(host), token, labels, opacity, Page.load(), self._numbers)
        self._server = Server(sockets, site, Encoder(labels, quality))
        self._pace = Pace(fps)
        self._last: Shot | None = None
        self._status: StreamStatus | None = None
        self._heard_ns = 0
        host = own_address() if host in ("0.0.0.0", "::") else host  # noqa: S104
        address = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        say(f"page: {address}?token={token}" if made else f"page: {address}{' with your token' if token else ''}")

    def write(self, frame: Frame, class_map: Image) -> None:
        """Show the frame to who wants it.

        Raises:
            SinkError: The server has failed.
        """
        self._server.check()
        height, width = class_map.shape
        taken = self._numbers.frame(frame.captured_ns, (width, height))
        if self._pace.admits(time.monotonic()):
            number = self._last.number + 1 if self._last else 1
            # A copy: who called may write into the map when this returns.
            self._publish(Shot(number, frame.image, class_map.copy(), taken))

    def show_status(self, status: StreamStatus) -> None:
        """Mark the last picture as stale while the stream is lost."""
        self._numbers.status(status)
        if self._last is None or status.state is State.LIVE:
            return
        now = time.monotonic_ns()
        if status != self._status:
            self._status, self._heard_ns = status, now
        lost = status.state is State.LOST
        why = describe_loss(status, now, self._heard_ns) if lost else "the stream has ended"
        if why != self._last.stale:
            self._publish(replace(self._last, number=self._last.number + 1, stale=why))

    def _publish(self, shot: Shot) -> None:
        self._last = shot
        self._server.publish(shot)

    def close(self, complete: bool) -> None:
        """End the server and all connections."""
        self._server.close()
