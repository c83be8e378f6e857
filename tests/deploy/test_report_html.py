"""The page needs nothing but itself, names everything it draws, and can be hurt by no name that a file carries."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from bench_doubles import LABELS, RESULT, full_result, shown
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.pictures import Shown
from deploy.bench.record import BenchmarkResult
from deploy.report.charts import accuracy_chart, pareto
from deploy.report.page import page
from deploy.report.pages import csv_records, markdown, table_csv, text_table
from deploy.report.svg import WIDTH, Scale, place_labels

VOID = {"meta", "img", "br", "rect", "line", "circle", "polygon", "polyline"}


class Checker(HTMLParser):
    """Collects elements, and fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID or tag in ("rect", "circle", "polygon"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(result: BenchmarkResult, pictures: list[Shown]) -> Checker:
    checker = Checker()
    checker.feed(page(result, pictures))
    checker.close()
    assert checker.open == []
    return checker


@pytest.mark.parametrize("result", [RESULT, full_result()], ids=["least", "most"])
def test_the_page_is_whole_and_asks_nobody_for_anything(result: BenchmarkResult) -> None:
    checker = check(result, shown())
    tags = [tag for tag, _ in checker.found]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in checker.found:
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
                assert (value or "").startswith("data:image/"), (tag, name, value)
            assert not name.startswith("on")
    text = page(result, shown())
    assert not re.search(r"https?://|url\(|@import", text)
    policy = next(a["content"] for t, a in checker.found if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("result", [RESULT, full_result()], ids=["least", "most"])
def test_every_picture_has_a_name_and_every_chart_its_table(result: BenchmarkResult) -> None:
    checker = check(result, shown())
    charts = [a for tag, a in checker.found if tag == "svg"]
    assert len(charts) >= 5
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert all(a["alt"] for tag, a in checker.found if tag == "img")
    assert page(result, []).count("As a table") == len(charts)
    assert ("html", {"lang": "en"}) in checker.found


def test_names_that_are_html_stay_names() -> None:
    evil = '<script>alert("1")</script>&amp;'
    student = replace(
        RESULT.students[0], result=replace(RESULT.students[0].result, name=evil, model=evil, backend=evil)
    )
    result = replace(RESULT, students=(student,), classes=(evil, evil), notes=(evil,), interrupted=evil)
    checker = check(result, shown((evil, "teacher.onnx")))
    assert "script" not in {tag for tag, _ in checker.found}
    assert "".join(checker.text).count(evil) >= 5


def test_large_pictures_still_make_a_small_page() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    truth = np.kron(rng.integers(0, 2, (54, 96)), np.ones((20, 20))).astype(np.uint8)
    names = [m.name for m in full_result().models]
    pictures = [Shown(str(i), frame, truth, dict.fromkeys(names, truth), LABELS) for i in range(4)]
    assert len(page(full_result(), pictures).encode()) < 2_000_000


def test_an_interrupted_report_says_so_first() -> None:
    text = page(full_result(), [])
    assert text.index("Interrupted: sweep: teacher.onnx") < text.index("Speed and accuracy")


def test_the_table_of_every_scenario() -> None:
    table = text_table(full_result())
    for line in (
        "batches of 4, end to end +125 +-",
        "batches of 8, end to end +- +-",
        "not done when the next came +3 of 42 +-",
        "never served +2 +-",
        r"rail VDD_IN: mean, W +11\.0 +-",
        "rail VDD_IN: energy a picture, mJ +550 +-",
        "rail VDD_IN: the same less idle, mJ +400 +-",
        r"1 thread: median, ms +34\.0 +-",
        r"State +clock 1200 to 2400 MHz; warmest 62 C; held back 3 times; others used 0\.50 cores",
        r"input 180x240: mIoU, % +50\.00 +-",
        "memory on the GPU, MB +512 +-",
    ):
        assert re.search(line, table), line
    for remark in (
        "Interrupted: sweep: teacher.onnx, 4 threads",
        "Warning: the processor or board held itself back 3 times",
        "Warning: student.onnx: does not keep up with 30 frames a second",
        "Note: student.onnx: no offline, batch 8: takes 4",
        "Note: teacher.onnx, input 180x240: its input is 360x480 and no other size",
    ):
        assert remark in table, remark
    assert table.replace("|", "\\|").count("sky") == markdown(full_result()).count("sky")


def test_the_csv_has_a_line_a_measurement_and_full_numbers() -> None:
    lines = list(csv.DictReader(io.StringIO(table_csv(full_result()))))
    assert len(lines) == len(csv_records(full_result())) == 2 * (1 + 1 + 1 + 2) + 2
    found = {(x["model"], x["scenario"], x["part"], x["threads"], x["height"], x["batch"]): x for x in lines}
    single = found["student.onnx", "single", "end_to_end", "2", "360", "1"]
    assert (single["p50_ms"], single["p99_ms"], single["miou"], single["role"]) == ("20.75", "", "0.6", "student")
    assert single["mj_per_picture"] == "550.0"
    assert found["student.onnx", "single", "model_alone", "1", "360", "1"]["p50_ms"] == "32.0"
    assert found["student.onnx", "single", "end_to_end", "2", "180", "1"]["miou"] == "0.5"
    assert found["student.onnx", "offline", "end_to_end", "2", "360", "4"]["images_per_s"] == "125.0"
    assert found["teacher.onnx", "single", "end_to_end", "2", "360", "1"]["role"] == "teacher"
    # Power, memory and start were measured once, with `single` in the table's setting, and stand nowhere else.
    elsewhere = [x for x in lines if x["scenario"] != "single" or (x["threads"], x["height"]) != ("2", "360")]
    assert len(elsewhere) > 5
    assert not any(x["mj_per_picture"] or x["load_ms"] or x["gpu_mb"] for x in elsewhere)
    assert single["gpu_mb"] == "512.0"


def test_a_spreadsheet_runs_no_name() -> None:
    student = replace(RESULT.students[0], result=replace(RESULT.students[0].result, name="=1+1", model='@x,"y"'))
    first = next(csv.DictReader(io.StringIO(table_csv(replace(RESULT, students=(student,))))))
    assert (first["model"], first["network"]) == ("'=1+1", '\'@x,"y"')


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = {points[i] for i in pareto(points)}
    for ms, miou in points:
        beaten = any((a <= ms and b >= miou) and (a, b) != (ms, miou) for a, b in points)
        assert ((ms, miou) in front) is not beaten


def test_without_two_scored_models_there_is_no_front() -> None:
    blind = replace(RESULT, teacher=replace(RESULT.teacher, accuracy=None))
    assert accuracy_chart(blind) is None
    assert "Pareto" not in page(blind, [])


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=20), st.booleans())
def test_a_scale_keeps_its_values_inside_and_has_ticks(values: list[float], log: bool) -> None:
    scale = Scale.over(values, 10, 400, log=log)
    assert all(10 - 1e-6 <= scale(v) <= 400 + 1e-6 for v in values)
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert all(10 - 1e-6 <= scale(t) <= 400 + 1e-6 for t in ticks)
    assert 1 <= len(ticks) <= 12


def test_labels_make_room_for_each_other() -> None:
    points = [(300.0, 100.0), (310.0, 100.0), (60.0, 100.0)]
    box = (0.0, points[0][1] - 22, float(WIDTH), points[0][1] - 8)  # what is above the first is taken
    assert place_labels(points[:1], ["a-long-name.onnx"], [box])[0][1] > points[0][1]
    places = place_labels(points, ["a-long-name.onnx"] * 3)
    assert len(set(places)) == 3
    assert all(0 <= x <= WIDTH for x, _ in places)
    (x1, y1), (x2, y2), _ = places
    assert abs(y1 - y2) > 10 or abs(x1 - x2) > 100
