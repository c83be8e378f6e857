"""What the page's server answers, to whom, and what it does for nobody."""

from __future__ import annotations

import errno
import json
import re
import socket
import threading
import time
import zlib
from email.parser import BytesParser
from email.policy import HTTP

import cv2
import numpy as np
import pytest
from doubles import lost, picture
from hypothesis import given
from hypothesis import strategies as st
from sink_doubles import STATS, nothing_left
from web_doubles import LABELS, Page, class_map, live, page, wait_for

from deploy.frames import Cause, Frame, State, StreamStatus, VideoInfo
from deploy.overlay import Overlay, blend
from deploy.sinks import check_outputs, open_sink
from deploy.sinks.options import parse_sink
from deploy.sources import open_source
from deploy.web.numbers import BUCKETS_S, Numbers
from deploy.web.page import ASSETS
from deploy.web.pictures import MAX_VIEWS, Encoder, Shot, View, parse_view
from deploy.web.server import listen
from lfd.errors import MissingDependencyError, SinkError, UsageError
from lfd.picture import palette


def decoded(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def layers(found: Page, path: str = "/layers") -> tuple[dict[str, object], np.ndarray, np.ndarray]:
    """Take `/layers` apart with the standard library's parser."""
    code, headers, body = found.get(path)
    assert code == 200
    message = BytesParser(policy=HTTP).parsebytes(
        b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
    )
    about, frame, classes = (part.get_payload(decode=True) for part in message.iter_parts())
    facts = json.loads(about)
    flat = np.frombuffer(zlib.decompress(classes), np.uint8)
    return facts, decoded(frame), flat.reshape(facts["height"], facts["width"])


# What there is to see.


def test_layers_are_the_frame_and_the_exact_class_map() -> None:
    with page() as found:
        found.write(3)
        facts, frame, classes = layers(found)
        assert facts["number"] == 3 and facts["stale"] == "" and abs(facts["taken"] - time.time()) < 5  # type: ignore[operator]
        assert (classes == class_map(2)).all()
        assert np.abs(frame.astype(int) - picture(2, found.size_hw)).mean() < 4
        assert layers(found, "/layers?after=2")[0]["number"] == 3
        assert layers(found, "/layers?after=999")[0]["number"] == 3  # of a run before this one


def test_layers_wait_for_the_next_picture() -> None:
    with page() as found:
        found.write()
        threading.Timer(0.3, found.write).start()
        begin = time.monotonic()
        assert layers(found, "/layers?after=1")[0]["number"] == 2
        assert 0.2 < time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("query", "width"),
    [("", 160), ("?view=overlay&opacity=1", 160), ("?view=mask", 160), ("?view=side", 320), ("?view=plain", 160)],
)
def test_a_snapshot_of_each_view(query: str, width: int) -> None:
    with page() as found:
        found.write()
        code, headers, body = found.get(f"/snapshot.jpg{query}")
        assert (code, headers["Content-Type"]) == (200, "image/jpeg") and decoded(body).shape == (90, width, 3)


def test_views_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    image, classes = rng.integers(0, 256, (24, 32, 3), np.uint8), rng.integers(0, 4, (24, 32), np.uint8)
    encoder, shot, colors = Encoder(LABELS, 100), Shot(1, image, classes, 0.0), palette(LABELS)
    mask = colors[:, 0][classes]

    def compose(query: dict[str, str]) -> np.ndarray:
        return encoder._compose(shot, parse_view(query, LABELS, 0.5))

    assert (compose({"view": "plain"}) == image).all()
    assert (compose({"view": "mask"}) == mask).all()
    assert (compose({"view": "side"}) == np.hstack((image, mask))).all()
    assert (compose({}) == blend(image, classes, colors, 0.5)).all()
    assert np.abs(compose({"opacity": "1"}).astype(int) - mask).max() <= 1
    without = compose({"opacity": "1", "classes": "sky,2"})
    assert (without[np.isin(classes, (1, 3))] == image[np.isin(classes, (1, 3))]).all()
    assert np.abs(without.astype(int) - mask)[np.isin(classes, (0, 2))].max() <= 1
    assert not compose({"view": "mask", "classes": ""}).any()


def test_the_stream_gives_each_picture_behind_its_length(no_thread_left: None) -> None:
    with page() as found:
        found.start()
        source = open_source(f"{found.url}/stream.mjpg")  # our own reader of such streams
        try:
            seen = [item for item, _ in zip((i for i in source if isinstance(i, Frame)), range(5), strict=False)]
        finally:
            source.close()
        assert len(seen) == 5 and all(frame.image.shape == (90, 160, 3) for frame in seen)


def test_numbers_for_programs() -> None:
    with page() as found:
        found.write(5)
        found.tell(lost(Cause.TIMED_OUT))
        stats = found.json("/stats.json")
        assert (stats["captured"], stats["shown"], stats["state"], stats["cause"]) == (5, 5, "lost", "timed out")
        assert (stats["model"], stats["backend"], stats["losses"]) == ("tiny", "fake", {"timed out": 1})
        assert stats["infer_ms"] == 12.5 and stats["history"] == [] and stats["server"]["connections"] >= 1
        assert [c["name"] for c in stats["classes"]] == list(LABELS.names) and stats["classes"][0]["color"] == "#4682b4"
        assert found.get("/healthz")[::2] == (503, b"lost: timed out\n")
        found.tell(live())
        assert found.get("/healthz")[::2] == (200, b"ok\n")
        assert found.json("/stats.json")["reconnects"] == 1


def test_a_camera_that_came_back_with_another_size() -> None:
    with page() as found:
        assert found.json("/stats.json")["resolution"] == [160, 90], "as the source says"
        found.size_hw = (40, 60)
        found.write()
        assert found.json("/stats.json")["resolution"] == [60, 40]


def test_prometheus_reads_the_metrics() -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    with page() as found:
        found.write(4)
        found.tell(lost())
        found.get("/snapshot.jpg")
        code, headers, body = found.get("/metrics")
        assert code == 200 and headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        families = {family.name: family for family in parser.text_string_to_metric_families(body.decode())}
    assert families["lfd_frames_shown"].type == "counter" and families["lfd_frames_shown"].samples[0].value == 4
    latency = families["lfd_frame_latency_seconds"]
    by_name = {sample.name: sample.value for sample in latency.samples}
    assert latency.type == "histogram" and by_name["lfd_frame_latency_seconds_count"] == 4
    counts = [s.value for s in latency.samples if s.name.endswith("_bucket")]
    assert counts == sorted(counts) and counts[-1] == 4 and len(counts) == len(BUCKETS_S) + 1
    losses = {sample.labels["cause"]: sample.value for sample in families["lfd_losses"].samples}
    assert losses == {cause.value: float(cause is Cause.TIMED_OUT) for cause in Cause}
    assert families["lfd_pictures_encoded"].samples[0].labels == {"view": "overlay"}
    assert families["lfd_run_info"].samples[0].labels == {"model": "tiny", "backend": "fake", "source": "street:"}
    assert all(family.documentation and family.type != "unknown" for family in families.values())
    for name, kind in re.findall("^# TYPE (.*) (.*)$", body.decode(), re.MULTILINE):  # the rules of promtool
        assert re.fullmatch("(lfd|process)(_[a-z]+)+", name) and (kind == "counter") == name.endswith("_total")
        assert not re.search("_(ms|milliseconds|minutes|mb|kilobytes|percent|counter|gauge|histogram)(_|$)", name)


class Clock:
    """Both clocks of Numbers, turned by hand."""

    def __init__(self) -> None:
        self.s = 1000.0

    def numbers(self, about: dict[str, object] | None = None) -> Numbers:
        return Numbers(about or {}, lambda: STATS, lambda: self.s, lambda: round(self.s * 1e9))


@given(st.lists(st.floats(0, 8), min_size=1, max_size=60))
def test_the_histogram_is_the_sorted_latencies(latencies: list[float]) -> None:
    clock = Clock()
    numbers = clock.numbers()
    for latency in latencies:
        numbers.frame(round((clock.s - latency) * 1e9))
    text = numbers.metrics({"connections": 0, "refused": 0}, {})
    for edge in BUCKETS_S:
        count = int(text.split(f'_bucket{{le="{edge}"}} ')[1].split("\n")[0])
        assert sum(x < edge - 1e-6 for x in latencies) <= count <= sum(x <= edge + 1e-6 for x in latencies)
    assert float(text.split("latency_seconds_sum ")[1].split("\n")[0]) == pytest.approx(sum(latencies), abs=1e-5)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
def test_any_name_is_a_label(name: str) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus-client is not installed")
    text = Clock().numbers({"model": name}).metrics({"connections": 0, "refused": 0}, {})
    # Lines end with a line feed only, and not where Python's `splitlines` ends them.
    (family,) = parser.text_string_to_metric_families("\n".join(text.split("\n")[:3]) + "\n")
    assert family.samples[0].labels["model"] == name


def test_history_has_a_record_a_second() -> None:
    clock = Clock()
    numbers = clock.numbers()
    for latency_ms in (10, 30):
        numbers.frame(round(clock.s * 1e9) - latency_ms * 10**6)
    clock.s += 1
    numbers.status(StreamStatus(State.LOST, 0, Cause.CLOSED))
    clock.s += 1
    numbers.status(StreamStatus(State.LOST, 0, Cause.CLOSED))
    first, second = numbers.record(300, {})["history"]
    assert (first["at"], first["frames"], first["mean_ms"], first["max_ms"]) == (1000, 2, 20.0, 30.0)
    assert (second["at"], second["frames"], second["mean_ms"], second["lost"]) == (1001, 0, None, True)
    for _ in range(1000):
        clock.s += 1
        numbers.status(StreamStatus(State.LIVE, 0))
    assert len(numbers.record(300, {})["history"]) == 300 and len(numbers.record(7, {})["history"]) == 7


def test_health_is_of_the_pictures() -> None:
    clock = Clock()
    numbers = clock.numbers()
    assert numbers.unhealthy() == "no picture yet"
    numbers.frame(round(clock.s * 1e9))
    assert numbers.unhealthy() == ""
    clock.s += 30
    assert numbers.unhealthy() == "no picture for 30 s"
    numbers.frame(round(clock.s * 1e9))
    clock.s += 60  # as with --fps 0.03
    assert numbers.unhealthy() == ""
    clock.s += 60
    assert numbers.unhealthy() == "no picture for 120 s"


def test_health_does_not_mind_a_clock_that_is_set() -> None:
    clock = Clock()
    day = [1e9]
    numbers = Numbers({}, lambda: STATS, lambda: day[0], lambda: round(clock.s * 1e9))
    numbers.frame(round(clock.s * 1e9))
    for jump in (7200, -7200):
        day[0] += jump
        assert numbers.unhealthy() == ""
    day[0] -= 7200
    clock.s += 11
    assert numbers.unhealthy() == "no picture for 11 s"


# Stale pictures.


def test_what_is_lost_is_marked_and_comes_back() -> None:
    with page() as found:
        found.tell(lost())  # there is none to mark
        found.write()
        bright = decoded(found.get("/snapshot.jpg?view=plain")[2])
        found.tell(lost())
        facts, frame, classes = layers(found)
        assert "no signal for" in str(facts["stale"]) and "timed out" in str(facts["stale"])
        assert (classes == class_map(0)).all() and frame.mean() > 0.8 * bright.mean()  # never a black picture
        grey = decoded(found.get("/snapshot.jpg?view=plain")[2])
        assert grey.shape == bright.shape and 10 < grey.std() < bright.std()
        found.write()
        assert layers(found)[0]["stale"] == ""


def test_without_a_picture_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.web.answers.WAIT_S", 0.2)
    with page() as found:
        assert found.get("/layers")[::2] == (204, b"")
        assert found.get("/snapshot.jpg")[::2] == (503, b"there is no picture yet\n")
        assert found.get("/healthz")[::2] == (503, b"no picture yet\n")


def test_a_stream_says_that_it_is_stale() -> None:
    with page() as found:
        found.write()
        with found.connect("/stream.mjpg?view=plain") as client:
            seen = b""
            while seen.count(b"Content-Length") < 1:
                seen += client.recv(65536)
            for _ in range(30):
                found.tell(StreamStatus(State.LOST, time.monotonic_ns() - 10**9, Cause.CLOSED))
            while seen.count(b"Content-Length") < 2:
                seen += client.recv(65536)


# No work for nobody, and once for all.


def count_encoding(found: Page) -> dict[str, int]:
    return dict(found.sink._server._gallery.encoded)


def test_nothing_is_encoded_for_nobody() -> None:
    with page() as found:
        found.start(200)
        time.sleep(0.5)
        found.get("/stats.json")
        found.stop()
        assert count_encoding(found) == {} and found.written > 20
        found.get("/snapshot.jpg")
        assert count_encoding(found) == {"overlay": 1}


def test_each_picture_is_encoded_once_for_all() -> None:
    with page(fps=60) as found:
        clients = [found.connect("/stream.mjpg?view=mask") for _ in range(6)]
        pulled: list[int] = []

        def pull() -> None:
            after = 0
            while after < 40:
                after = int(layers(found, f"/layers?after={after}")[0]["number"])  # type: ignore[call-overload]
                pulled.append(after)

        pullers = [threading.Thread(target=pull) for _ in range(3)]
        for thread in pullers:
            thread.start()
        while any(thread.is_alive() for thread in pullers):
            found.write()
            time.sleep(0.03)
        made = count_encoding(found)
        assert made["layers"] <= found.sink._last.number and made["mask"] <= found.sink._last.number
        assert len(pulled) > 1.5 * made["layers"]  # what one has asked for is there for the others
        for client in clients:
            client.close()


def test_a_bounded_number_of_different_pictures() -> None:
    with page() as found:
        found.write()
        clients = [found.connect(f"/stream.mjpg?opacity=0.{n}") for n in range(1, MAX_VIEWS + 1)]
        for client in clients:
            assert b"200 OK" in client.recv(4096)
        code, _, body = found.get("/snapshot.jpg?opacity=0.9")
        assert code == 503 and body == b"4 different pictures are being sent; expected one of those, or fewer viewers\n"
        assert found.get("/snapshot.jpg?opacity=0.2")[0] == 200 and layers(found)[0]["number"] == 1
        for client in clients:
            client.close()
        wait_for(lambda: found.write() or found.get("/snapshot.jpg?opacity=0.9")[0] == 200)


def test_pictures_at_a_pace() -> None:
    with page(fps=5) as found:
        found.start(50)
        time.sleep(2)
        found.stop()
        assert 7 <= found.sink._last.number <= 13 < found.written  # type: ignore[union-attr]


# Queries.


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/snapshot.jpg?view=x", "unknown value of view 'x'"),
        ("/snapshot.jpg?opacity=2", "opacity='2'; expected a number from 0 to 1"),
        ("/snapshot.jpg?opacity=nan", "opacity='nan'; expected a number"),
        ("/snapshot.jpg?classes=roda", "Did you mean 'road'?"),
        ("/snapshot.jpg?clases=road", "Did you mean 'classes'?"),
        ("/snapshot.jpg?view=mask&view=side", "option 'view' is given 2 times"),
        ("/stream.mjpg?classes=17", "unknown class '17'"),
        ("/layers?after=-1", "after='-1'; expected 0 to"),
        ("/layers?before=1", "unknown option 'before'; expected after"),
        ("/stats.json?history=301", "history='301'; expected 0 to 300"),
        ("/stats.json?history=%F0", "expected 0 to 300"),
    ],
)
def test_a_query_that_is_wrong_is_one_line(shared_page: Page, path: str, text: str) -> None:
    code, headers, body = shared_page.get(path)
    assert code == 400 and headers["Content-Type"].startswith("text/plain")
    assert text in body.decode() and body.count(b"\n") == 1


@pytest.fixture(scope="module")
def shared_page() -> Page:  # type: ignore[misc]
    with page() as found:
        found.write()
        yield found


def test_equal_pictures_are_one_view() -> None:
    assert parse_view({"view": "mask", "opacity": "0.1"}, LABELS, 0.5) == View("mask")
    assert parse_view({"view": "plain", "classes": "0"}, LABELS, 0.5) == View("plain")
    assert parse_view({}, LABELS, 0.5) == parse_view({"opacity": "0.5", "classes": "0,1,2,3"}, LABELS, 0.1)
    assert parse_view({"classes": "sky,road"}, LABELS, 0.5) == View("overlay", 50, frozenset({2, 3}))


# The page's colours.


def luminance(color: str) -> float:
    """Return WCAG 2's relative luminance of #rrggbb."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(theme: str) -> None:
    style = (ASSETS / "page.css").read_text().split("*", 1)[0]
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", part)) for part in style.split("@media"))
    found = light if theme == "light" else dark
    pairs = [(text, ground) for text in ("ink", "soft", "accent", "good", "bad") for ground in ("bg", "card")]
    for text, ground in [*pairs, ("on-accent", "accent")]:
        low, high = sorted((luminance(found[text]), luminance(found[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)  # WCAG 2.2, 1.4.3


# From start to end.


def test_an_end_leaves_nothing() -> None:
    with page() as warm:  # what the first server makes for all that follow
        warm.write()
        warm.get("/")
    with nothing_left(8):
        found = Page()
        found.start()
        clients = [found.connect(path) for path in ("/stream.mjpg", "/stream.mjpg?view=side", "/layers", "")]
        wait_for(lambda: count_encoding(found).get("side", 0) > 2)
        begin = time.monotonic()
        found.close()
        assert time.monotonic() - begin < 2.5
        for client in clients[:3]:
            while client.recv(65536):
                pass
        found.sink.close(False)
        for client in clients:
            client.close()


def test_a_failed_server_ends_the_run() -> None:
    with page() as found:
        found.write()
        found.sink._server._error = OSError("no more descriptors")
        with pytest.raises(SinkError, match="the page's server has failed"):
            found.write()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        text = f"http://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(SinkError, match=rf"^{text}: the port is taken\. Fix: ") as caught:
            check_outputs([text], ["0"], None, False)
        assert "\n" not in str(caught.value)
    check_outputs([text], ["0"], None, False)
    check_outputs([text], ["0"], None, False)  # the check holds nothing
    with pytest.raises(UsageError, match="give each once"):
        check_outputs([text, f"{text}?fps=5"], ["0", "1"], None, False)


@pytest.mark.parametrize(
    ("host", "match"), [("192.0.2.7", "no address of this machine"), ("no-such-host.invalid", "no such host")]
)
def test_a_host_that_is_none_of_ours(host: str, match: str) -> None:
    with pytest.raises(SinkError, match=rf"{match}\. Fix: 127\.0\.0\.1 for this machine only"):
        check_outputs([f"http://{host}:8080"], ["0"], None, False)


@pytest.mark.parametrize("code", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_localhost_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    create = socket.create_server

    def without(address: tuple[str, int], *, family: int, **options: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(code, "")
        return create(address, family=family, **options)  # type: ignore[arg-type]

    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "create_server", without)
    for found in (both, both[::-1]):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        (made,) = listen("localhost", 0)
        assert made.getsockname()[0] == "127.0.0.1"
        made.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both[:1])
    with pytest.raises(SinkError, match="no address of this machine"):
        listen("::1", 0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6")
def test_all_networks_of_ipv6_are_those_of_ipv4_too() -> None:
    with page("::", token="x" * 16) as found:
        found.write()
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, found.sink.port), timeout=5) as client:
                client.sendall(
                    b"GET /healthz HTTP/1.1\r\nHost: any\r\nAuthorization: Bearer " + b"x" * 16 + b"\r\n\r\n"
                )
                assert client.recv(4096).startswith(b"HTTP/1.1 200 OK")


def test_without_the_library_the_fix_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tornado", None)
    with pytest.raises(MissingDependencyError, match=r"tornado is not installed.*pip install 'lfd-toolkit\[web\]'"):
        check_outputs(["http://127.0.0.1:0"], ["0"], None, False)


def test_the_sink_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    target = parse_sink("http://[::1]:8080/?fps=10&quality=70&token=0123456789abcdef")
    assert target.address == ("::1", 8080) and target.options == {"fps": 10, "quality": 70, "token": "0123456789abcdef"}
    sink = open_sink(
        "http://localhost:0?quality=50", Overlay(LABELS), VideoInfo((160, 90), 25.0, None, True), lambda: STATS
    )
    sink.close(True)
    assert capsys.readouterr().err.startswith("page: http://localhost:")
