"""`lfd-train fetch`: downloads that are cut, changed, refused or forged; the catalogue; what a person is told."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import re
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import pytest
import torch
import torchvision
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lfd import download as download_module
from lfd import zoo
from lfd.cli import main
from lfd.download import Limits, download
from lfd.errors import CheckpointError, LfdError, UsageError
from lfd.fetch import Meter, fetch, table
from lfd.models import deeplabv3, pspnet
from lfd.models.backbones import DEEP_STEM
from lfd.web import Redirects, make_request, redact
from lfd.weights import MAX_BYTES

BODY = bytes(range(256)) * 4096
"""1 MiB, no part of which equals another place's neighbour by accident."""
SHA = hashlib.sha256(BODY).hexdigest()
QUICK = Limits(timeout_s=5.0, attempts=3, backoff_s=0.001)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    Attributes:
        cut: Bytes of the answer's body after which it hangs up.
        says: Content-Length it claims; -1 claims none.
        ranges: Whether it knows Range.
        obeys_if_range: False answers a range of a file that has changed.
        delay_s: Before the body.
        silent_206: Leave the validator out of a range's answer.
    """

    body: bytes = BODY
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    etag: str = '"one"'
    cut: int | None = None
    says: int | None = None
    ranges: bool = True
    obeys_if_range: bool = True
    delay_s: float = 0.0
    silent_206: bool = False
    chunked: bool = False


class Site(http.server.ThreadingHTTPServer):
    """A server on the loopback that goes through a script of replies, and stays at the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Reply] = []
        self.asked: list[tuple[str, HTTPMessage]] = []

    def url(self, path: str = "/net.pth") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def will(self, *replies: Reply) -> str:
        self.script, self.asked = list(replies), []
        return self.url()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers))
        script = self.server.script
        reply = script.pop(0) if len(script) > 1 else script[0]
        status, body, extra = reply.status, reply.body, list(reply.headers)
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") == reply.etag or not reply.obeys_if_range
        if status == 200 and reply.ranges and span and same:
            start = int(span[1])
            if start >= len(body):
                status, body = 416, b""
            else:
                status = 206
                extra.append(("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}"))
                body = body[start:]
        self.send_response(status)
        if reply.etag and not (reply.silent_206 and status == 206):
            self.send_header("ETag", reply.etag)
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.says != -1:
            self.send_header("Content-Length", str(len(body) if reply.says is None else reply.says))
        for name, value in extra:
            self.send_header(name, value)
        self.end_headers()
        time.sleep(reply.delay_s)
        body = body[: reply.cut]
        try:
            self.wfile.write(f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if reply.chunked else body)
        except OSError:
            self.close_connection = True  # the client has had enough
        if reply.cut is not None or reply.says is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with Site() as site:
        thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield site
        site.shutdown()
        thread.join()


@pytest.fixture
def site(server: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Site:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server.will(Reply())
    return server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FROM = len(BODY) // 3
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
GOOD = Reply()
CUT = Reply(cut=FROM)
ARRIVES = {
    # what happens: (replies, the Range of each request)
    "at once": ([GOOD], [None]),
    "after a cut": ([CUT, GOOD], [None, FROM]),
    "after two cuts": ([CUT, Reply(cut=1000), GOOD], [None, FROM, FROM + 1000]),
    "after a cut, validator not repeated": ([CUT, Reply(silent_206=True)], [None, FROM]),
    "no ranges: from the first byte": ([Reply(cut=FROM, ranges=False), Reply(ranges=False)], [None, FROM]),
    "no validator: from the first byte": ([Reply(cut=FROM, etag=""), Reply(etag="")], [None, None]),
    "time of change for want of a strong one": (
        [
            Reply(cut=FROM, etag='W/"one"', headers=(("Last-Modified", DATE),)),
            Reply(etag=DATE, headers=(("Last-Modified", DATE),)),
        ],
        [None, FROM],
    ),
    "a weak validator is none": ([Reply(cut=FROM, etag='W/"one"'), Reply(etag='W/"one"')], [None, None]),
    "another file meanwhile": ([Reply(b"x" * 9000, etag='"old"', cut=5000), GOOD], [None, 5000]),
    "another file under a careless server": (
        [Reply(b"x" * 9000, etag='"old"', cut=5000), Reply(obeys_if_range=False), GOOD],
        [None, 5000, None],
    ),
    "another file of that length under a careless server": (
        [Reply(BODY[::-1], etag='"old"', cut=5000), Reply(obeys_if_range=False), GOOD],
        [None, 5000, None],
    ),
    "a shorter file meanwhile": (
        [Reply(BODY + b"more", cut=len(BODY) + 2), Reply(obeys_if_range=False), GOOD],
        [None, len(BODY) + 2, None],
    ),
    "Content-Length beyond the end": ([Reply(says=len(BODY) + 50), GOOD], [None, len(BODY), None]),
    "503 and then": ([Reply(b"", 503), Reply(b"", 503, (("Retry-After", "0"),)), GOOD], [None] * 3),
    "too many requests": ([Reply(b"", 429), GOOD], [None] * 2),
    "in chunks of no known length": ([Reply(chunked=True)], [None]),
    "of no known length, pinned": ([Reply(says=-1, cut=len(BODY))], [None]),
    "under a redirection": ([Reply(b"", 302, (("Location", "/elsewhere"),)), GOOD], [None] * 2),
    "a cut under a redirection": (
        [Reply(b"", 307, (("Location", "/a"),)), CUT, Reply(b"", 307, (("Location", "/a"),)), GOOD],
        [None, None, FROM, FROM],
    ),
}


@pytest.mark.parametrize("case", ARRIVES)
def test_arrives(site: Site, tmp_path: Path, case: str) -> None:
    replies, ranges = ARRIVES[case]
    seen: list[int] = []
    url = site.will(*replies)
    assert download(url, tmp_path / "net.pth", SHA, QUICK, lambda done, total: seen.append(done)) == SHA
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert files(tmp_path) == ["net.pth"], "no part and no note are left"
    assert site.ranges() == [None if at is None else f"bytes={at}-" for at in ranges]
    assert seen[-1] == len(BODY)


FAILS = {
    "not there": (Reply(b"", 404), {}, "404, Not Found. Fix: check the address"),
    "not permitted": (Reply(b"", 403), {}, "403, Forbidden"),
    "always busy": (Reply(b"", 503), {}, r"503, Service Unavailable, 3 times in a row\); nothing of it has come"),
    "always cut": (Reply(cut=99, ranges=False), {}, "ends at 99 of 1048576 bytes, 3 times in a row.*same command"),
    "never answers": (Reply(delay_s=1.0), {"timeout_s": 0.05}, "no answer in time, 3 times in a row"),
    "too large by its own word": (Reply(), {"max_bytes": 1000}, "is larger than 1000 bytes"),
    "too large without a word": (Reply(chunked=True), {"max_bytes": 1000}, "is larger than 1000 bytes"),
    "no length, no checksum": (Reply(says=-1, cut=len(BODY)), {}, "does not say how long it is.*--sha256"),
    "a web page": (Reply(b"<html>", headers=(("Content-Type", "text/html; charset=utf-8"),)), {}, "is a web page"),
    "compressed": (Reply(headers=(("Content-Encoding", "gzip"),)), {}, "sends it compressed"),
    "empty": (Reply(b""), {}, "is empty"),
    "to a file": (Reply(b"", 302, (("Location", "file:///etc/hosts"),)), {}, "302"),
    "to ftp": (Reply(b"", 302, (("Location", "ftp://127.0.0.1/net.pth"),)), {}, "redirects from http to ftp"),
    "in circles": (Reply(b"", 302, (("Location", "/net.pth"),)), {}, "302"),
    "to nonsense": (Reply(b"", 302, (("Location", "http://127.0.0.1:port/"),)), {}, "no address"),
    "to half a bracket": (Reply(b"", 302, (("Location", "http://[::1"),)), {}, "no address"),
}


@pytest.mark.parametrize("case", FAILS)
def test_fails_in_one_line(site: Site, tmp_path: Path, case: str) -> None:
    reply, limits, message = FAILS[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        download(site.will(reply), tmp_path / "net.pth", limits=dataclasses.replace(QUICK, **limits))
    assert "\n" not in str(caught.value)
    kept = ["net.pth.part", "net.pth.part.json"] if "always cut" in case else []
    assert files(tmp_path) == kept


def test_wrong_checksum_leaves_nothing_and_the_old_file(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=f"came with SHA-256 {SHA}; expected {'0' * 64}. It was removed"):
        download(site.url(), path, "0" * 64, QUICK)
    assert files(tmp_path) == ["net.pth"]
    assert path.read_bytes() == b"old"


def test_interrupted_goes_on_in_a_later_call(site: Site, tmp_path: Path) -> None:
    url, path = site.will(Reply()), tmp_path / "net.pth"

    def stop(done: int, total: int | None) -> None:
        assert total == len(BODY)
        if done >= 1000:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"MB are kept in .*net\.pth\.part, from where the same command goes on"
    ):
        download(url, path, SHA, QUICK, stop)
    assert not path.exists()
    have = (tmp_path / "net.pth.part").stat().st_size
    assert 1000 <= have <= len(BODY)
    assert download(url, path, SHA, QUICK) == SHA
    assert site.ranges() == ([None, f"bytes={have}-"] if have < len(BODY) else [None])


def test_whole_part_asks_nobody(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(part: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download_module._Part, "finish", killed)
        download(site.url(), tmp_path / "net.pth", SHA, QUICK)
    assert len(site.asked) == 1
    assert download(site.url(), tmp_path / "net.pth", SHA, QUICK) == SHA
    assert len(site.asked) == 1


def test_part_of_another_address_is_not_gone_on_from(site: Site, tmp_path: Path) -> None:
    limits = dataclasses.replace(QUICK, attempts=1)
    with pytest.raises(CheckpointError):
        download(site.will(CUT), tmp_path / "net.pth", limits=limits)
    site.will(GOOD)
    assert download(site.url("/other.pth"), tmp_path / "net.pth", SHA, QUICK) == SHA
    assert site.ranges() == [None]


@pytest.mark.parametrize("note", ["", "[]", "{", '{"address": 1}', '{"validator": "x", "total": "much"}'])
def test_spoilt_note_starts_again(site: Site, tmp_path: Path, note: str) -> None:
    (tmp_path / "net.pth.part").write_bytes(b"x" * 100)
    (tmp_path / "net.pth.part.json").write_text(note)
    assert download(site.url(), tmp_path / "net.pth", SHA, QUICK) == SHA


def test_somebody_elses_part_is_left_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "net.pth.part").write_bytes(b"a browser's")
    with pytest.raises(CheckpointError, match="was not left by this command"):
        download(site.url(), tmp_path / "net.pth")
    assert (tmp_path / "net.pth.part").read_bytes() == b"a browser's"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.tuples(st.integers(0, 5000), st.booleans(), st.sampled_from(['"one"', '"two"', 'W/"1"', ""]))),
    body=st.binary(min_size=1, max_size=4000),
)
def test_any_cuts_give_the_file(site: Site, tmp_path: Path, cuts: list[tuple[int, bool, str]], body: bytes) -> None:
    """The file that has the ETag "one" is `body`; under other validators the server has another file."""
    other = body[::-1] + b"!"
    replies = [Reply(body if etag == '"one"' else other, etag=etag, cut=n, ranges=r) for n, r, etag in cuts]
    path = tmp_path / "net.pth"
    url = site.will(*[reply for reply in replies if (reply.cut or 0) < len(reply.body)], Reply(body))
    download(url, path, limits=dataclasses.replace(QUICK, attempts=len(cuts) + 1, backoff_s=0.0))
    assert path.read_bytes() == body


def test_two_at_once(site: Site, tmp_path: Path) -> None:
    """One fetches; the other says so, and breaks nothing. Another file in the same folder is nobody's business."""
    url, results = site.will(Reply(delay_s=0.5)), []
    first = threading.Thread(target=lambda: results.append(download(url, tmp_path / "net.pth", SHA, QUICK)))
    first.start()
    while not site.asked:
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="another process is fetching it"):
        download(url, tmp_path / "net.pth", SHA, QUICK)
    assert download(url, tmp_path / "other.pth", SHA, QUICK) == SHA
    first.join()
    assert results == [SHA]
    assert files(tmp_path) == ["net.pth", "other.pth"]


def test_no_room(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(CheckpointError, match=r"0\.5 MB are free; expected 1\.0 MB for net\.pth.*Fix: free space"):
        download(site.url(), tmp_path / "net.pth")
    assert files(tmp_path) == []


def test_disk_full_on_the_way_keeps_what_came(site: Site, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(BODY) // 2, before[1]))
        with pytest.raises(CheckpointError, match=r"cannot be written \(File too large\); 0\.5 MB are kept.*Fix: free"):
            download(site.url(), tmp_path / "net.pth", SHA, QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert download(site.url(), tmp_path / "net.pth", SHA, QUICK) == SHA
    assert site.ranges()[-1] == f"bytes={len(BODY) // 2}-"


def test_offline(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_names(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_names)
    began = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        download("https://user:secret@models.example/a/net.pth?token=secret", tmp_path / "net.pth")
    assert time.monotonic() - began < 1, "there is nothing to wait for"
    assert str(caught.value) == (
        "https://models.example/a/net.pth?...: cannot be fetched (Temporary failure in name resolution); nothing of it "
        "has come. Fix: on a machine with a network run `curl -fL -o net.pth https://models.example/a/net.pth?...`, "
        f"copy the file to {tmp_path}/net.pth, and run this again to verify it"
    )
    assert files(tmp_path) == []


def test_nobody_listens(site: Site, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(CheckpointError, match="Connection refused"):
        download(f"http://127.0.0.1:{port}/net.pth", tmp_path / "net.pth")


def test_password_goes_to_the_named_server_alone(site: Site, tmp_path: Path) -> None:
    url = site.will(Reply(b"", 302, (("Location", "/elsewhere"),)), GOOD).replace("//", "//us%65r:p%40ss@")
    download(url, tmp_path / "net.pth", SHA, QUICK)
    assert [headers.get("Authorization") for _, headers in site.asked] == ["Basic dXNlcjpwQHNz", None]


def test_proxy_of_the_environment(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site.url(""))
    assert download("http://models.example/net.pth", tmp_path / "net.pth", SHA, QUICK) == SHA
    assert [path for path, _ in site.asked] == ["http://models.example/net.pth"]


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [
        ("http://a.example/x", "http://b.example/y", True),
        ("http://a.example/x", "https://b.example/y", True),
        ("https://a.example/x", "https://b.example/y", True),
        ("https://a.example/x", "http://b.example/y?secret", False),
        ("https://a.example/x", "ftp://b.example/y", False),
        ("https://a.example/x", "file:///etc/hosts", False),
        ("https://a.example/x", "data:,x", False),
    ],
)
def test_redirections(before: str, after: str, followed: bool) -> None:
    request = Request(before, headers={"Range": "bytes=5-"})  # noqa: S310
    if followed:
        new = Redirects().redirect_request(request, io.BytesIO(), 302, "Found", HTTPMessage(), after)
        assert new is not None
        assert (new.full_url, new.get_header("Range")) == (after, "bytes=5-")
        return
    with pytest.raises(CheckpointError, match="not followed") as caught:
        Redirects().redirect_request(request, io.BytesIO(), 302, "Found", HTTPMessage(), after)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://a.example/x", "http://", "http:///x", "http://a.example:port/x", "http://[::1/x", "http://a b/x", "x\ny"],
)
def test_no_address(url: str) -> None:
    with pytest.raises(UsageError, match="address") as caught:
        make_request(url)
    assert "\n" not in str(caught.value)


@given(
    user=st.text("abcXYZ019", min_size=1), password=st.text("abcXYZ019", min_size=1), token=st.text("mno", min_size=1)
)
def test_redact(user: str, password: str, token: str) -> None:
    url = f"https://{user}:{password}@h.test:8443/p/f.pth?key={token}#{token}"
    assert redact(url) == "https://h.test:8443/p/f.pth?..."


# The catalogue.


def test_largest_file_is_what_can_be_read() -> None:
    assert Limits().max_bytes == MAX_BYTES


def test_every_entry_is_complete() -> None:
    for entry in zoo.checkpoints().values():
        assert entry.role in ("teacher", "backbone"), entry
        assert entry.normalize in ("imagenet", "caffe"), entry
        assert entry.classes in ("voc", "cityscapes", "camvid", "ade20k", "imagenet"), entry
        assert entry.page.startswith("https://"), entry
        assert re.fullmatch(r"([0-9a-f]{8}|[0-9a-f]{64}|)", entry.sha256), entry
        assert re.fullmatch(r"[\w-]+\.(pth|safetensors)", entry.file), entry
        assert re.fullmatch(r"\d+x\d+|", entry.size), entry
        assert entry.licence, entry
        if entry.url:
            make_request(entry.url)
            assert entry.url.startswith("https://"), entry
        assert entry.url or not entry.sha256, entry
        if entry.role == "teacher" and not entry.name.startswith("cirkd:"):
            assert entry.network.startswith(("torchvision:", "smp:")), entry
    names = [entry.file for entry in zoo.checkpoints().values()]
    assert len(names) == len(set(names)), "two entries would share a file"


def enums() -> list[tuple[str, Any]]:
    models = torchvision.models
    teachers = [(n, w) for n in models.list_models(module=models.segmentation) for w in models.get_model_weights(n)]
    return teachers + [(n, models.get_model_weights(n).DEFAULT) for n in zoo.TORCHVISION_BACKBONES]


@pytest.mark.parametrize(("name", "weights"), enums(), ids=lambda v: v if isinstance(v, str) else "")
def test_torchvisions_entries_are_torchvisions(name: str, weights: Any) -> None:
    entry = zoo.checkpoints()[f"torchvision:{name}"]
    assert entry.url == weights.url
    digits = torch.hub.HASH_REGEX.search(entry.file)  # what check_hash compares
    assert digits is not None
    assert entry.sha256 == digits[1]
    assert (entry.role == "teacher") == (len(weights.meta["categories"]) == 21)
    assert entry.size_mb == pytest.approx(weights.meta["_file_size"] * 2**20 / 1e6, abs=0.06)


def test_every_backbone_of_ours_that_torchvision_has_is_there() -> None:
    ours = {*deeplabv3.BACKBONES, *pspnet.BACKBONES, "mobilenet_v3_large", "mobilenet_v3_small"} - set(DEEP_STEM)
    assert ours == set(zoo.TORCHVISION_BACKBONES)


def test_find() -> None:
    assert all(zoo.find(name) is entry for name, entry in zoo.checkpoints().items())
    assert zoo.find("torchvision:none") is None
    assert zoo.find("none") is None


def test_only_torchvisions_names_need_torch() -> None:
    code = "import sys; from lfd import fetch, zoo; zoo.find('timm:resnet50s'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_table_names_every_entry() -> None:
    lines = table()
    assert [line.split()[0] for line in lines[1:]] == list(zoo.checkpoints())
    assert {len(line) - len(line.rstrip()) for line in lines} == {0}


# What `lfd-train fetch` does with it.


@pytest.fixture
def catalogue(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, zoo.Checkpoint]:
    """The true catalogue with this server's addresses, and this body's checksum where there is one."""
    entries = {
        name: dataclasses.replace(entry, url=entry.url and site.url(f"/{entry.file}"), sha256=entry.sha256 and SHA[:8])
        for name, entry in zoo.checkpoints().items()
    }
    monkeypatch.setattr("lfd.fetch.checkpoints", lambda: entries)
    monkeypatch.setattr("lfd.fetch.find", entries.get)
    return entries


NEXT = {
    "torchvision:deeplabv3_resnet101": (
        "lfd-train import {path} --model torchvision:deeplabv3_resnet101 --data voc:PATH --size 520x520 "
        "-o teacher.safetensors"
    ),
    "smp:segformer_b1_cityscapes_1024": (
        "lfd-train import {path} --model smp:Segformer/mit_b1 --data cityscapes:PATH --size 1024x2048 "
        "-o teacher.safetensors"
    ),
    "torchvision:resnet18": "--weights imagenet, for a network on resnet18; no network needed any more",
    "timm:resnet101s": "--weights {path}, for a network on resnet101s",
}


@pytest.mark.parametrize("name", NEXT)
def test_by_name(
    catalogue: dict[str, zoo.Checkpoint], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = catalogue[name]
    folder = tmp_path / "torch/hub/checkpoints" if name.startswith("torchvision:") else Path()
    done = fetch(name, limits=QUICK)
    assert (done.path, done.how, done.sha256) == (folder / entry.file, "fetched", SHA)
    lines = done.lines()
    assert lines[0] == f"fetched  {folder / entry.file}: 1.0 MB"
    assert lines[-1] == f"next     {NEXT[name].format(path=done.path)}"
    assert any("as published" in line for line in lines) == bool(entry.sha256)
    assert any(f"Pin it: --sha256 {SHA}" in line for line in lines) == (not entry.sha256)
    again = fetch(name)
    assert again.how == "there"
    assert len(site.asked) == 1, "what is there needs no network"
    assert again.lines()[1:] == lines[1:]


def test_torchvision_finds_what_was_fetched(
    catalogue: dict[str, zoo.Checkpoint], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--weights imagenet` then works without a network: torch.hub opens the file at our path, and asks nobody."""
    buffer = io.BytesIO()
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), buffer)
    name, body = "torchvision:mobilenet_v3_small", buffer.getvalue()
    site.will(Reply(body))
    catalogue[name] = dataclasses.replace(catalogue[name], sha256=hashlib.sha256(body).hexdigest()[:8])
    fetch(name, limits=QUICK)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: pytest.fail("asked a network"))
    state = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True)
    assert len(state) == len(torchvision.models.mobilenet_v3_small().state_dict())


def test_by_address(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = fetch(site.url("/models/net.pth?download=true"), limits=QUICK)
    assert (done.path, done.pinned) == (Path("net.pth"), "")
    assert done.lines()[-1].endswith(f"Pin it: --sha256 {SHA}")
    with pytest.raises(UsageError, match=r"net\.pth exists; .*--overwrite"):
        fetch(site.url())
    assert fetch(site.url(), sha256=SHA.upper()).how == "there"
    assert len(site.asked) == 1
    assert fetch(site.url(), overwrite=True, limits=QUICK).how == "fetched"
    assert fetch(site.url(), out="sub/", limits=QUICK).path == Path("sub/net.pth")
    assert fetch(site.url(), out="sub", sha256=SHA).how == "there"
    assert fetch(site.url(), out="other.pth", sha256=SHA, limits=QUICK).pinned == "as given by --sha256"


@pytest.mark.parametrize("path", ["", "/", "/a/", "/a%2Fb", "/.bashrc", "/%2e%2e", "/a%00b", "/" + "a" * 300])
def test_address_without_a_file_name(site: Site, path: str) -> None:
    with pytest.raises(UsageError, match="-o FILE"):
        fetch(site.url(path))
    assert site.asked == []


def test_another_file_of_that_name(catalogue: dict[str, zoo.Checkpoint], site: Site, tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=f"expected {SHA[:8]}. Fix: --overwrite"):
        fetch("timm:resnet50s", out=str(path))
    assert path.read_bytes() == b"mine"
    assert fetch("timm:resnet50s", out=str(path), overwrite=True, limits=QUICK).sha256 == SHA


def test_by_hand(catalogue: dict[str, zoo.Checkpoint], site: Site, tmp_path: Path) -> None:
    entry = catalogue["cirkd:deeplabv3_resnet101_cityscapes"]
    with pytest.raises(
        CheckpointError, match=f"open {re.escape(entry.page)} in a browser, save the file as .*best_model"
    ):
        fetch(entry.name, out=str(tmp_path))
    (tmp_path / entry.file).write_bytes(BODY)
    done = fetch(entry.name, out=str(tmp_path))
    assert done.how == "there"
    assert done.lines()[-1] == (
        f"next     lfd-train import {tmp_path / entry.file} --data cityscapes:PATH --size 1024x2048 "
        "-o teacher.safetensors"
    )
    assert site.asked == []


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PK\x03\x04" + b"\0" * 40, "a file of torch.save;"),
        (b"\x80\x02\x8a\nl\xfc", "a file of torch.save before PyTorch 1.6;"),
        ((20).to_bytes(8, "little") + b'{"__metadata__":{}} ' + b"\0" * 8, "a .safetensors;"),
        (b"\n<!DOCTYPE html>", "a web page, not weights;"),
        (b"", "of no known kind of weights;"),
    ],
)
def test_local_file_is_said_what_it_is(site: Site, tmp_path: Path, head: bytes, kind: str) -> None:
    path = tmp_path / "my net.pth"
    path.write_bytes(head)
    for what in (str(path), path.as_uri()):
        done = fetch(what)
        assert kind in done.lines()[0]
        assert done.lines()[0].endswith("nothing was copied")
        assert done.sha256 == hashlib.sha256(head).hexdigest()
    assert files(tmp_path) == ["my net.pth"]


def test_local_file_of_the_catalogue_is_recognised(
    catalogue: dict[str, zoo.Checkpoint], site: Site, tmp_path: Path
) -> None:
    path = tmp_path / "my net.pth"
    path.write_bytes(BODY)
    done = fetch(str(path), sha256=SHA)
    assert done.entry is not None
    assert done.entry.sha256 == SHA[:8]
    assert done.pinned == "as given by --sha256"
    with pytest.raises(CheckpointError, match="It is left as it is"):
        fetch(str(path), sha256="0" * 64)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": "torchvision:deeplabv3_resnet11"}, "Did you mean 'torchvision:deeplabv3_resnet101'"),
        ({"what": "no/such.pth"}, "no such file"),
        ({"what": "file:///no/such.pth"}, "no such file"),
        ({"what": "file://elsewhere/etc/hosts"}, "no such file on this machine"),
        ({"what": "ftp://a.example/x.pth"}, "expected http"),
        ({"what": "http://a.example/x.pth", "sha256": "1234"}, "expected 64 hexadecimal digits"),
        ({"what": "timm:resnet50s", "sha256": "0" * 64}, "is published with one that begins with 1762acc0"),
        ({"what": __file__, "out": "x"}, "Fix: leave -o away"),
        ({"what": "http://a.example/x.pth", "out": f"{__file__}/x.pth"}, "a file, not a folder"),
    ],
)
def test_usage(site: Site, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(LfdError, match=message) as caught:
        fetch(**arguments)
    assert "\n" not in str(caught.value)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (Terminal(), "\rnet.pth   40%  4.0 of 10.0 MB  3.00 MB/s, 2 s left\x1b[K\r\x1b[K"),
        (io.StringIO(), ""),  # ten seconds have not passed
    ],
)
def test_meter(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, expected: str) -> None:
    times = iter([100.0, 100.1, 101.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    meter = Meter("net.pth", stream)
    for done in (1_000_000, 1_100_000, 4_000_000):
        meter(done, 10_000_000)
    meter.clear()
    assert stream.getvalue() == expected


class TestCommand:
    """`lfd-train fetch` itself."""

    def test_fetches_and_says_what_next(
        self, catalogue: dict[str, zoo.Checkpoint], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(main, ["fetch", "smp:segformer_b1_cityscapes_1024", "-o", "net.safetensors"])
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines()[0] == "fetched  net.safetensors: 1.0 MB"
        assert done.stdout.splitlines()[-1].startswith("next     lfd-train import net.safetensors --model smp:")

    @pytest.mark.parametrize(
        ("arguments", "code", "line"),
        [
            ([], 2, "error: expected a name, an address or a file, or --list alone"),
            (["x.pth", "--list"], 2, "error: expected a name, an address or a file, or --list alone"),
            (["resnet18"], 2, "error: unknown checkpoint 'resnet18'"),
            (["http://127.0.0.1:1/x.pth"], 1, "error: http://127.0.0.1:1/x.pth: cannot be fetched (Connection ref"),
        ],
    )
    def test_errors(self, site: Site, arguments: list[str], code: int, line: str) -> None:
        done = CliRunner().invoke(main, ["fetch", *arguments])
        assert (done.exit_code, len(done.stderr.splitlines())) == (code, 1)
        assert done.stderr.startswith(line)

    def test_list(self) -> None:
        assert CliRunner().invoke(main, ["fetch", "--list"]).stdout.splitlines() == table()
