"""Who gets nothing: the wrong token, the wrong host, the wrong path, and whatever a fuzzer sends."""

from __future__ import annotations

import contextlib
import errno
import http.client
import logging
import re
import socket
import time
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_doubles import LABELS, Page, page

from deploy.sinks import check_outputs
from deploy.sinks.options import parse_sink
from deploy.sources import redact
from deploy.web.guard import is_loopback, is_own, is_right, new_token, own_address, own_names
from lfd.errors import UsageError

TOKEN = "correct-horse-battery_staple.~9"  # noqa: S105
PATHS = ("/", "/layers", "/stream.mjpg", "/snapshot.jpg", "/stats.json", "/healthz", "/metrics")


@pytest.fixture(scope="module")
def locked() -> Iterator[Page]:
    with page(token=TOKEN) as found:
        found.write()
        yield found


@pytest.fixture(scope="module")
def opened() -> Iterator[Page]:
    with page() as found:
        found.write()
        yield found


# Tokens.


@pytest.mark.parametrize("path", [*PATHS, "/nothing", "/assets/page.js"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"lfd_token={TOKEN}"}],
)
def test_nothing_without_the_token(locked: Page, path: str, headers: dict[str, str]) -> None:
    code, answered, body = locked.get(path, headers)
    assert code == 401 and answered["WWW-Authenticate"] == "Bearer"
    assert body == b"a token is needed; open the address that lfd-run has printed, or this page with ?token=YOURS\n"


@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("/", "/stream.mjpg")])
def test_the_token_three_ways(locked: Page, path: str) -> None:
    for query, headers in (
        (f"?token={TOKEN}", {}),
        ("", {"Cookie": f"lfd_token_{locked.sink.port}={TOKEN}"}),
        ("", {"Authorization": f"Bearer {TOKEN}"}),
    ):
        assert locked.get(path + query, headers)[0] == 200


def test_the_token_leaves_the_address_bar(locked: Page) -> None:
    code, headers, body = locked.get(f"/?token={TOKEN}")
    assert (code, headers["Location"], body) == (303, "./", b"")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie
    code, headers, body = locked.get("/", {"Cookie": cookie.split(";")[0]})
    assert code == 200 and TOKEN.encode() not in body


def test_beyond_loopback_there_is_always_a_token() -> None:
    with page("0.0.0.0") as found:  # noqa: S104
        found.write()
        (line,) = found.said
        match = re.fullmatch(r"page: http://[^/]+:\d+/\?token=([\w-]{32})", line)
        assert match is not None and found.get("/stats.json")[0] == 401
        assert found.get("/stats.json", {"Authorization": f"Bearer {match[1]}"})[0] == 200
    with page("0.0.0.0", token=TOKEN) as found:  # noqa: S104
        assert TOKEN not in "".join(found.said) and found.get("/")[0] == 401
    with page("127.0.0.1") as found:
        assert "token" not in "".join(found.said)


def test_the_printed_address_is_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with page("0.0.0.0") as found:  # noqa: S104
        found.write()
        match = re.fullmatch(r"page: (http://([^/]+):\d+)/\?token=(.+)", found.said[0])
        assert match is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{match[1]}/healthz?token={match[3]}", timeout=10) as answer:
            assert answer.status == 200

    def no_network(self: socket.socket, address: object) -> None:
        raise OSError(errno.ENETUNREACH, "")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert own_address() == socket.gethostname()


def test_tokens_differ() -> None:
    assert len({new_token() for _ in range(100)}) == 100


@given(st.text(max_size=40), st.lists(st.text(max_size=40), max_size=3))
def test_only_the_token_is_right(token: str, given_: list[str]) -> None:
    assert is_right(given_, token) == (token in given_)


def test_the_token_is_never_said(locked: Page, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shown = b""
    for path in (*PATHS[4:], "/nothing", "/snapshot.jpg?view=x", f"/%00?x={TOKEN}", "/layers?after=x"):
        _, headers, body = locked.get(f"{path}{'&' if '?' in path else '?'}token={TOKEN}")
        shown += body + str(headers).encode()
    with locked.connect() as client:
        client.sendall(f"GET /?token={TOKEN} HTTP/9\r\nHost: x\r\n\r\n".encode())
        shown += client.recv(4096)
    assert TOKEN.encode() not in shown and TOKEN not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        f"http://0.0.0.0:0?token={TOKEN}&x",
        f"http://0.0.0.0:0?token={TOKEN}&token=b",
        f"http://0.0.0.0?token={TOKEN}",
        f"https://h:1?token={TOKEN}",
        f"http://0.0.0.0:70000?token={TOKEN}",
        f"http://0.0.0.0:0?token={TOKEN}%20",
        f"http://0.0.0.0:0?fps=99&token={TOKEN}",
        f"http://user:{TOKEN}@h:1",
    ],
)
def test_errors_of_the_command_line_do_not_hold_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sink(text)
    assert TOKEN not in str(caught.value) and "\n" not in str(caught.value)


def test_two_pages_on_a_port_are_said_without_it() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    texts = [f"http://127.0.0.1:{port}?token={TOKEN}", f"http://localhost:{port}?token={TOKEN}"]
    with pytest.raises(UsageError, match="give each once") as caught:
        check_outputs(texts, ["0", "1"], None, False)
    assert TOKEN not in str(caught.value)
    assert all(TOKEN not in redact(text) for text in texts)  # as the summary and the console name sinks


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "x" * 129, "with space in it", "ümlaut-ümlaut-ümlaut", "a;b" * 8]
)
def test_tokens_that_are_none(token: str) -> None:
    with pytest.raises(UsageError, match="a token has 16 to 128 of"):
        parse_sink(f"http://127.0.0.1:8080?token={token}")


# Hosts, other sites, other machines.


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.168.1.2", False),
        ("camera", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone


@pytest.mark.parametrize(
    ("header", "own"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("localhost:9000", True),
        ("LOCALHOST.", True),
        ("[::1]:8080", True),
        ("192.168.1.2:8080", True),
        ("camera", True),
        ("camera:80", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("", False),
        ("a b", False),
        ("localhost:x", False),
        ("[::1", False),
        ("2130706433", False),
        ("localhost\x00", False),
    ],
)
def test_hosts_that_are_ours(header: str, own: bool) -> None:
    assert is_own(header, own_names("Camera")) == own


@pytest.mark.parametrize("path", [*PATHS, "/nothing"])
def test_a_rebound_name_gets_nothing(opened: Page, path: str) -> None:
    assert opened.get(path, {"Host": "evil.example"})[0] == 421
    assert opened.get(path, {"Host": f"evil.example:{opened.sink.port}"})[0] == 421


@pytest.mark.parametrize(("mode", "code"), [("no-cors", 403), ("cors", 403), ("navigate", 200)])
def test_other_sites_may_link_and_not_embed(opened: Page, mode: str, code: int) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
    assert opened.get("/snapshot.jpg", headers)[0] == code


@pytest.mark.parametrize("path", ["/", "/layers", "/snapshot.jpg", "/stats.json", "/nothing", "/snapshot.jpg?view=x"])
def test_headers_for_browsers(opened: Page, path: str) -> None:
    _, headers, _ = opened.get(path, {"Origin": "http://evil.example"})
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["Referrer-Policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert not {"Server", "Etag", "Access-Control-Allow-Origin"} & set(headers)


def test_the_page_asks_nobody_else(opened: Page) -> None:
    text = opened.get("/")[2].decode()
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\s(src|on\w+|style)=", text) and "eval(" not in text and "innerHTML" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "FOO"])
def test_reading_is_all_there_is(opened: Page, method: str) -> None:
    client = http.client.HTTPConnection("127.0.0.1", opened.sink.port, timeout=10)
    client.request(method, "/")
    answer = client.getresponse()
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    client.close()


@pytest.mark.parametrize("path", [*PATHS, "/snapshot.jpg?view=x", "/nothing"])
def test_a_head_is_that_of_the_answer(opened: Page, path: str) -> None:
    with opened.connect(path) as client:
        asked = client.recv(65536).split(b"\r\n")[0]
    with opened.connect() as client:
        client.sendall(f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        told = b""
        while part := client.recv(65536):
            told += part
    head, _, body = told.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0] == asked and body == b""
    assert (b"Content-Length" in head) == (path != "/stream.mjpg")


@pytest.mark.parametrize("path", ["/", "/stats.json"])
def test_who_has_the_token_may_come_by_a_proxys_name(locked: Page, path: str) -> None:
    host = {"Host": "cameras.example"}
    assert locked.get(path, host)[0] == 401
    assert locked.get(path, {**host, "Authorization": f"Bearer {TOKEN}"})[0] == 200


def test_the_page_works_in_a_folder_of_a_proxy(opened: Page) -> None:
    text = opened.get("/")[2].decode()
    for path in PATHS[1:5]:
        assert not re.search(rf"[\"'`]{re.escape(path)}", text), path
        assert path[1:] in text


# Paths and fuzzing.


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/assets/page.js",
        "/page.html",
        "//etc/passwd",
        "/stream.mjpg/../../etc/passwd",
        "/static/../server.py",
        "/stats.json/",
        "/snapshot_jpg",
        "/./",
        "/\\..\\..",
        "/%00",
        "http://evil.example/",
        "*",
        "/..;/",
    ],
)
def test_no_path_leads_elsewhere(opened: Page, path: str) -> None:
    assert raw(opened, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())[0] in (400, 404, 421)


def raw(found: Page, data: bytes, patience_s: float = 5.0) -> tuple[int, bytes]:
    """Send bytes; return the status, 0 where the connection ended or nothing came in time, and the answer's begin."""
    answer = b""
    with found.connect(timeout_s=patience_s) as client, contextlib.suppress(OSError):
        client.sendall(data)
        while b"\r\n\r\n" not in answer and (part := client.recv(65536)):
            answer += part
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return (int(match[1]) if match else 0), answer


def test_headers_are_bounded(opened: Page) -> None:
    line = b"X-Long: " + b"x" * 6000 + b"\r\n"
    assert raw(opened, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n")[0] == 200
    assert raw(opened, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + 2 * line + b"\r\n")[0] in (0, 400, 431)
    body = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    assert raw(opened, body + b"x" * 1000)[0] in (0, 400, 413)
    chunked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert raw(opened, chunked + b"ffff\r\n" + b"x" * 0xFFFF)[0] in (0, 400, 413)


def test_two_hosts_are_none(opened: Page) -> None:
    for head in (b"Host: localhost\r\nHost: evil.example\r\n", b"", b"Host: localhost\r\n Host: x\r\n"):
        assert raw(opened, b"GET /stats.json HTTP/1.1\r\n" + head + b"\r\n")[0] in (0, 400, 421)


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("deploy.web.server").web.server._LIMITS, "idle_connection_timeout", 0.5)
    with page() as found, found.connect() as client:
        client.sendall(b"GET / HT")
        begin = time.monotonic()
        assert client.recv(100) == b"" and time.monotonic() - begin < 5


ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KNOWN = {0, 200, 204, 303, 400, 401, 403, 404, 405, 411, 413, 414, 421, 431, 501, 503, 505}


@ANY
@given(st.binary(max_size=300))
def test_any_bytes(opened: Page, data: bytes) -> None:
    assert raw(opened, data, 0.05)[0] in KNOWN


@ANY
@given(
    st.sampled_from([*PATHS[4:], "/snapshot.jpg", "/layers", "/"]),
    st.lists(
        st.tuples(
            st.sampled_from(["view", "opacity", "classes", "after", "history", "token", "x"]), st.binary(max_size=12)
        )
    ),
)
def test_any_query(opened: Page, path: str, options: list[tuple[str, bytes]]) -> None:
    query = "&".join(f"{key}={''.join(f'%{byte:02x}' for byte in value)}" for key, value in options)
    code, answer = raw(opened, f"GET {path}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert code in (200, 400), answer[:300]


@ANY
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["Host", "Cookie", "Authorization", "Connection", "Range", "Content-Length", "Sec-Fetch-Site", "Expect"]
            ),
            st.binary(max_size=60).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
        ),
        max_size=8,
    )
)
def test_any_headers(locked: Page, headers: list[tuple[str, bytes]]) -> None:
    lines = b"".join(key.encode() + b": " + value + b"\r\n" for key, value in headers)
    code, answer = raw(locked, b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
    assert code in KNOWN - {200, 204, 303} and b"Traceback" not in answer


def test_after_all_that_it_still_answers(opened: Page, locked: Page, caplog: pytest.LogCaptureFixture) -> None:
    assert opened.get("/healthz")[0] in (200, 503) and locked.get("/healthz")[0] == 401
    assert [name for name in LABELS.names if name in opened.get("/stats.json")[2].decode()] == list(LABELS.names)
    opened.sink._server.check()
    locked.sink._server.check()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
