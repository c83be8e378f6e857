from __future__ import annotations

import string
from urllib.parse import parse_qs, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.frames import Cause
from deploy.sources import SOURCES, open_source, redact
from deploy.sources.address import OPTIONS, Options, Url, split_options
from deploy.sources.fault import StreamError
from lfd.errors import LfdError, SourceError, UsageError


@pytest.mark.parametrize(
    ("kind", "text", "address", "expected"),
    [
        ("rtsp", "rtsp://h/p?channel=1", "rtsp://h/p?channel=1", Options()),
        (
            "rtsp",
            "rtsp://h/p?channel=1&fps=9#transport=udp&give_up=60",
            "rtsp://h/p?channel=1&fps=9",
            Options(transport="udp", give_up_s=60),
        ),
        (
            "http",
            "http://h/#open_timeout=1.5&read_timeout=2",
            "http://h/",
            Options(open_timeout_s=1.5, read_timeout_s=2),
        ),
        ("http", "https://h/x#tls_verify=false&loop=true", "https://h/x", Options(tls_verify=False, loop=True)),
        ("camera", "0?size=1280x720&fps=30&fourcc=MJPG", "0", Options((1280, 720), 30, "MJPG")),
        ("camera", "/dev/video2?fps=29.97&fourcc=Y16%20", "/dev/video2", Options(fps=29.97, fourcc="Y16 ")),
        ("csi", "csi://1?size=640x480&give_up=0", "csi://1", Options((640, 480), give_up_s=0)),
        ("film", "a?.mp4#loop=true", "a?.mp4", Options(loop=True)),
        ("film", "take#2.mp4", "take#2.mp4", Options()),
        ("pictures", "a?.png", "a?.png", Options()),
        ("street", "street:?fps=25", "street:?fps=25", Options()),
    ],
)
def test_options(kind: str, text: str, address: str, expected: Options) -> None:
    assert split_options(kind, text) == (address, expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rtsp://h/p#trasport=udp", "unknown rtsp option 'trasport'. Did you mean 'transport'?"),
        ("rtsp://h/p#transport=http", "expected tcp or udp"),
        ("rtsp://h/p#give_up=-1", "expected 0 to 1e"),
        ("rtsp://h/p#give_up=nan", "expected 0 to 1e"),
        ("rtsp://h/p#open_timeout=0", "expected 0.1 to 60 seconds"),
        ("rtsp://h/p#open_timeout=1&open_timeout=2", "given twice"),
        ("rtsp://h/p#loop=true", "unknown rtsp option 'loop'"),
        ("http://h/p#read_timeout", "expected KEY=VALUE"),
        ("https://h/p#tls_verify=no", "expected true or false"),
        ("0?size=720", "expected WIDTHxHEIGHT in pixels, such as 1280x720"),
        ("0?size=0x0", "expected WIDTHxHEIGHT"),
        ("0?fps=0", "expected 1 to 1000 frames a second"),
        ("0?fourcc=mjpg", "four capital letters"),
        ("0?transport=tcp", "unknown camera option 'transport'"),
        ("csi://0?fourcc=MJPG", "unknown csi option 'fourcc'"),
        ("a.mp4#lop=true", "Did you mean 'loop'?"),
        ("rtsp://u:hunter2#x@h/p", "Fix: write a # in a password as %23"),
        ("rtsp://u:hunter2 x@h/p", "is no URL"),
        ("rtsp://u:hunter2@/p", "is no URL"),
        ("rtsp://u:hunter2@h:70000/p", "there is no port 70000; expected 1 to 65535"),
        ("rtsp://u:hunter2@[::1]:0/p", "there is no port 0; expected 1 to 65535"),
        ("rtsp://u:hunter2@h:5x/p", "is no URL"),
        ("rtsp://u:hunter2${NO_VARIABLE}@h/p", "the environment has no NO_VARIABLE. Fix: export NO_VARIABLE"),
        ("http://h/?pwd=hunter2&${}=${EMPTY_VARIABLE}", "the environment has nothing in EMPTY_VARIABLE"),
        ("http://u:hunter2@[h/p", "is no URL"),
        ("http://u:hunter2@h\u00e9/p", "is no URL"),
        ("http://u%0D%0AX:hunter2@h/p", "control characters"),
        ("rtsp:/u:hunter2@h/p", "is no URL"),
    ],
)
def test_options_that_are_wrong(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY_VARIABLE", "")
    with pytest.raises(UsageError) as caught:
        open_source(text)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["u:hunter2@h/x", "rtps//u:hunter2@h/x.jpg", "u:hunter2*@h/x"])
def test_a_url_that_looks_like_a_file_keeps_its_password(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(text)
    assert "***@h/x" in str(caught.value) and "hunter2" not in str(caught.value)


def test_every_kind_of_source_has_its_options() -> None:
    assert set(OPTIONS) | {"street"} == set(SOURCES)


@pytest.mark.parametrize(
    ("text", "url", "full"),
    [
        (
            "rtsp://a:b%40c@cam.example/x?y=1",
            Url("rtsp", "cam.example", 554, "/x?y=1", "a", "b@c"),
            "rtsp://a:b%40c@cam.example:554/x?y=1",
        ),
        ("HTTP://Host:81", Url("http", "host", 81, "/"), "http://host:81/"),
        ("https://[::1]/a", Url("https", "::1", 443, "/a"), "https://[::1]:443/a"),
        ("rtsps://u@h/a", Url("rtsps", "h", 322, "/a", "u"), "rtsps://u@h:322/a"),
    ],
)
def test_urls(text: str, url: Url, full: str) -> None:
    assert Url.parse(text) == url
    assert url.full == full
    assert url.password not in repr(url) or not url.password


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("rtsp://u:p@h/x", "rtsp://***@h/x"),
        ("open rtsp://u:p@h/x failed, then http://v:q@g", "open rtsp://***@h/x failed, then http://***@g"),
        ("rtsp://u:p@ss/w@h/x", "rtsp://***@h/x"),
        ("http://h/x?user=a&channel=2&pwd=b#c", "http://h/x?user=***&channel=2&pwd=***#c"),
        ("http://h/x?channel=2", "http://h/x?channel=2"),
        ("u:p@h/x", "***@h/x"),
        ("rtsp:/u:p@h/x", "rtsp:/***@h/x"),
        ("rstp//u:p@h/x", "rstp//***@h/x"),
        ("rtsp:\\\\u:p@h", "***@h"),
        ("rtsp://h/user=a_password=b_channel=1&stream=0.sdp", "rtsp://h/user=***&stream=0.sdp"),
        ("http://h/x?loginuse=a&loginpas=b&causes=c", "http://h/x?loginuse=***&loginpas=***&causes=c"),
        (
            "[rtsp @ 0x55] method DESCRIBE failed for 'rtsp://u:p@h'",
            "[rtsp @ 0x55] method DESCRIBE failed for 'rtsp://***@h'",
        ),
        ("a.mp4", "a.mp4"),
        ("street:?size=240x320", "street:?size=240x320"),
    ],
)
def test_redaction(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert redact(redacted) == redacted


# Long enough, and of such letters, that it does not stand in a message by chance.
secrets = st.text(st.sampled_from("QXZ79" + "!$%&'()*+,;=:@/?#[]~^|{}<>\u00e4\u20ac"), min_size=8, max_size=24).filter(
    lambda text: any(c in "QXZ" for c in text)
)
hosts = st.sampled_from(["camera.example", "10.0.0.1:8554", "[fe80::1]:81"])
paths = st.text(st.sampled_from(string.ascii_lowercase + "/?=&."), max_size=12)


@given(st.sampled_from(["rtsp", "rtsps", "http", "https"]), secrets, secrets, hosts, paths, st.sampled_from(Cause))
def test_no_password_survives(scheme: str, user: str, password: str, host: str, path: str, cause: Cause) -> None:
    quoted = quote(user, safe=""), quote(password, safe="")
    for account in (f"{user}:{password}", ":".join(quoted)):
        url = f"{scheme}://{account}@{host}/{path}"
        error = StreamError(cause, url, f"ffmpeg says {url} failed")
        for text in (redact(url), str(error), error.detail, error.name, repr(error), str(error.with_detail(url))):
            for secret in (user, password, *quoted):
                assert secret not in text


@given(secrets, hosts, paths, st.text(st.sampled_from("abc=&#@"), max_size=10))
def test_no_password_survives_what_is_wrong_in_a_url(password: str, host: str, path: str, options: str) -> None:
    url = f"rtsp://viewer:{password}@{host}/{path}#{options}"
    try:
        address, _ = split_options("rtsp", url)
        Url.parse(address)
    except LfdError as error:
        assert password not in str(error) and "viewer" not in str(error)


@given(secrets, secrets, hosts)
def test_a_variable_keeps_every_character_and_is_never_shown(user: str, password: str, host: str) -> None:
    text = f"rtsp://${{CAM_USER}}:${{CAM_PASSWORD}}@{host}/x?token=${{CAM_PASSWORD}}&channel=1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAM_USER", user)
        patch.setenv("CAM_PASSWORD", password)
        url = Url.typed(text)
        assert (url.user, url.password) == (user, password)
        assert parse_qs(url.target.partition("?")[2]) == {"token": [password], "channel": ["1"]}
        with pytest.raises(UsageError) as caught:
            Url.typed(text.replace("/x", ":99999/x").replace("]:81:", "]:").replace(":8554:", ":"))
        for shown in (str(caught.value), redact(text), repr(url), str(StreamError(Cause.CLOSED, text, "lost"))):
            assert all(secret not in shown for secret in (user, password, quote(password, safe="")))


@pytest.mark.parametrize("text", ["rtsp://${CAM}/x", "rtsp://u:p@${CAM}/x", "rtsp://u:p@h/${CAM}"])
def test_a_variable_that_no_url_takes(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in it, and wherever: an error without it, or a part of the URL that is quoted."""
    for value in ("a\r\nb", "u:p@h", "@", "#", "[", "\x7f"):
        monkeypatch.setenv("CAM", value)
        try:
            url = Url.typed(text)
        except UsageError as error:
            assert repr(value)[1:-1] not in str(error).replace(text, "")
        else:
            assert url.full.isprintable() and url.full.isascii() and " " not in url.full


@given(secrets, secrets, hosts)
def test_a_url_keeps_its_password_for_the_server(user: str, password: str, host: str) -> None:
    url = Url.parse(f"rtsp://{quote(user, safe='')}:{quote(password, safe='')}@{host}/x")
    assert (url.user, url.password) == (user, password)
    assert Url.parse(url.full) == url
