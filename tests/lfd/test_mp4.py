"""Edit lists, built box by box after ISO/IEC 14496-12; tests/deploy/test_sources.py has films trimmed by ffmpeg."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfd.data.film import promised_frames
from lfd.data.mp4 import edited_ms


def box(kind: str, *content: bytes, large: bool = False) -> bytes:
    data = b"".join(content)
    if large:
        return struct.pack(">I4sQ", 1, kind.encode(), len(data) + 16) + data
    return struct.pack(">I4s", len(data) + 8, kind.encode()) + data


def movie(edits: list[tuple[int, int]] | None, version: int = 0, handler: str = "vide", ticks: int = 1000) -> bytes:
    """An index with one track; edits are (duration, begin in the media)."""
    times = struct.pack(">QQ", 0, 0) if version else struct.pack(">II", 0, 0)
    head = box("mvhd", bytes([version, 0, 0, 0]), times, struct.pack(">I", ticks), bytes(80))
    entries = [struct.pack(">Qqi" if version else ">Iii", *edit, 1 << 16) for edit in edits or []]
    elst = box("elst", bytes([version, 0, 0, 0]), struct.pack(">I", len(entries)), *entries)
    media = box("mdia", box("hdlr", bytes(8), handler.encode(), bytes(12)))
    track = box("trak", *([box("edts", elst)] if edits is not None else []), media)
    return box("moov", head, box("trak", box("mdia", box("hdlr", bytes(8), b"soun", bytes(12)))), track)


FTYP = box("ftyp", b"isom", bytes(8))


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(5000, 3000)], 5000),
        ([(2000, -1), (5000, 3000)], 5000),  # what only delays shows nothing
        ([(1500, 0), (250, 9000)], 1750),
        ([(0, 0)], None),  # to the end, as in fragmented films
        ([], None),
        (None, None),
    ],
)
def test_edits_say_how_long_it_plays(
    tmp_path: Path, edits: list[tuple[int, int]] | None, expected: float | None, version: int
) -> None:
    path = tmp_path / "a.mp4"
    for before in (b"", box("mdat", bytes(100)), box("mdat", bytes(100), large=True)):
        path.write_bytes(FTYP + before + movie(edits, version) + box("mdat", bytes(10)))
        assert edited_ms(path) == expected
    path.write_bytes(FTYP + movie(edits, version, ticks=600))
    assert edited_ms(path) == (None if expected is None else pytest.approx(expected / 0.6))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF" + bytes(100),
        FTYP,
        FTYP + struct.pack(">I4s", 0, b"mdat") + bytes(50),
        FTYP + struct.pack(">I4sQ", 1, b"mdat", 2**64 - 1),
        FTYP + movie([(5000, 0)], handler="soun"),
        FTYP + movie([(5000, 0)], ticks=0),
        FTYP + movie([(5000, 0)])[:-40],
    ],
)
def test_without_an_edit_list_that_can_be_read_there_is_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    assert edited_ms(path) is None


def test_a_file_that_is_not_there() -> None:
    assert edited_ms(Path("nowhere.mp4")) is None


@given(st.data())
def test_any_bytes_end(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(FTYP + movie([(5000, 3000), (100, 0)], data.draw(st.integers(0, 1))))
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=12)):
        whole[at] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.mp4"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    found = edited_ms(path)
    assert found is None or found > 0


@pytest.mark.parametrize(
    ("edits", "declared", "fps", "expected"),
    [
        ([(5000, 3000)], 200, 25.0, 125),
        ([(8000, 0)], 200, 25.0, 200),
        ([(9000, 0)], 200, 25.0, 200),
        (None, 200, 25.0, 200),
        ([(5000, 3000)], 0, 25.0, 0),
        ([(5000, 3000)], 200, 0.0, 200),
    ],
)
def test_what_a_film_promises(
    tmp_path: Path, edits: list[tuple[int, int]] | None, declared: int, fps: float, expected: int
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(FTYP + movie(edits))
    assert promised_frames(path, declared, fps) == expected
