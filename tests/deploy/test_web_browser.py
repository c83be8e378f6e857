"""The page in headless Chromium: the picture moves, the controls work, by keyboard and on a narrow screen."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from doubles import lost
from web_doubles import BROWSER, Tab, browse, page

from lfd.spec import Labels

pytestmark = [BROWSER, pytest.mark.slow]

NUMBER = "Number(document.getElementById('canvas')?.dataset.number ?? 0)"
PIXEL = "[...document.getElementById('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data].slice(0, 3)"
FOCUS = "document.activeElement.id || document.activeElement.value || document.activeElement.tagName"


async def ready(tab: Tab) -> None:
    await tab.until(f"{NUMBER} > 2")
    await tab.until("document.querySelectorAll('#legend input').length === 4")


def near(found: list[int], rgb: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 14 for a, b in zip(found, rgb, strict=True))


def test_the_picture_moves_and_the_keyboard_is_enough() -> None:
    with page() as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(found.url)
            await ready(tab)
            first = await tab.ask(NUMBER)
            await tab.until(f"{NUMBER} > {first + 20}")
            assert await tab.ask("document.getElementById('state').textContent") == "live"
            await tab.press("Tab", 9)
            assert await tab.ask(FOCUS) == "overlay"
            await tab.press("ArrowRight", 39)
            assert await tab.ask(FOCUS) == "mask"
            sky = await tab.ask(PIXEL.format(x=5, y=5))
            assert near(sky, (70, 130, 180)), sky
            await tab.press("ArrowRight", 39)
            await tab.until("document.getElementById('canvas').width === 320")
            await tab.press("ArrowLeft", 37)
            await tab.press("ArrowLeft", 37)
            await tab.press("Tab", 9)
            assert await tab.ask(FOCUS) == "opacity"
            await tab.press("End", 35)
            assert await tab.ask("document.getElementById('percent').textContent") == "100 %"
            road = await tab.ask(PIXEL.format(x=80, y=88))
            assert near(road, (128, 64, 128)), road
            for expected in ("full", "snapshot", "all", "none"):
                await tab.press("Tab", 9)
                assert await tab.ask(FOCUS) == expected
            await tab.press("Enter", 13, "\r")
            assert await tab.ask("[...document.querySelectorAll('#legend input')].some((box) => box.checked)") is False
            plain = await tab.ask(PIXEL.format(x=5, y=5))
            assert near(plain, (0, 0, 200)), plain  # a third of the frame is blue
            await tab.press("Tab", 9)
            await tab.press(" ", 32, " ")
            sky = await tab.ask(PIXEL.format(x=5, y=5))
            assert near(sky, (70, 130, 180)), sky
            assert await tab.ask("location.hash") == "#view=overlay&opacity=100&off=1,2,3"
            assert not tab.problems

        browse(look)


def test_what_was_chosen_stays_in_the_address() -> None:
    with page() as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(f"{found.url}/#view=side&opacity=35&off=0,2")
            await ready(tab)
            assert await tab.ask("document.forms[0].elements.view.value") == "side"
            assert await tab.ask("document.getElementById('opacity').value") == "35"
            boxes = await tab.ask("[...document.querySelectorAll('#legend input')].map((box) => box.checked)")
            assert boxes == [False, True, False, True]
            assert "classes=1%2C3" in await tab.ask("document.getElementById('snapshot').href")
            assert near(await tab.ask(PIXEL.format(x=165, y=5)), (0, 0, 0))
            assert near(await tab.ask(PIXEL.format(x=165, y=88)), (128, 64, 128))

        browse(look)


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits(width: int) -> None:
    with page(size_hw=(270, 480)) as found:
        found.age_ns = 1_700_000_000
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(found.url, width, 740)
            await ready(tab)
            await tab.until("document.querySelector('#graph path')")
            assert await tab.ask("document.documentElement.scrollWidth") <= width
            outside = await tab.ask(
                "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > "
                "innerWidth + 1).map((e) => e.tagName + e.id)"
            )
            assert outside == []
            cut = await tab.ask(
                "(({left, right}) => [...document.querySelectorAll('#graph text')].filter((e) => "
                "e.getBoundingClientRect().left < left || e.getBoundingClientRect().right > right)"
                ".map((e) => e.textContent))(document.getElementById('graph').getBoundingClientRect())"
            )
            assert cut == []
            small = await tab.ask(
                "[...document.querySelectorAll('button, .views span, #legend label')]"
                ".filter((e) => e.getBoundingClientRect().height < 24).map((e) => e.textContent)"
            )
            assert small == []  # WCAG 2.2, 2.5.8: targets of 24 pixels
            assert not tab.problems

        browse(look)


def test_two_viewers_and_one_that_hangs() -> None:
    with page() as found:
        found.start()
        hung = found.connect("/stream.mjpg", receive_buffer=4096)

        async def look(tab: Tab) -> None:
            await tab.open(found.url)
            await ready(tab)
            first = await tab.ask(NUMBER)
            await tab.until(f"{NUMBER} > {first + 25}")

        browse(look, look)
        hung.close()


def test_stale_pictures_are_marked_and_come_back() -> None:
    with page() as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(found.url)
            await ready(tab)
            found.stop()
            found.tell(lost())
            await tab.until("document.getElementById('banner').textContent.startsWith('no signal for')")
            assert await tab.ask("document.body.classList.contains('stale')")
            await tab.until("document.getElementById('state').textContent === 'lost: timed out'")
            number = await tab.ask(NUMBER)
            found.start()
            await tab.until(f"{NUMBER} > {number + 5} && document.getElementById('banner').hidden")
            found.close()
            await tab.until("document.getElementById('banner').textContent === 'no answer from lfd-run'")
            await asyncio.sleep(0.1)

        browse(look)


LEGEND = "[...document.querySelectorAll('#legend span')].map((name) => name.textContent)"


def test_names_of_a_hostile_model_are_text() -> None:
    names = (
        "<script>document.title = 'x'</script>",
        '"><img src=x onerror=alert(1)>',
        "__proto__",
        "W" * 64,
        "a,b&c=#",
    )
    with page(labels=Labels(names, ((1, 2, 3),) * 5)) as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(f"{found.url}/#off=2", 360)
            await tab.until(f"{NUMBER} > 2 && document.querySelectorAll('#legend input').length === 5")
            assert await tab.ask(LEGEND) == list(names)
            assert await tab.ask("document.querySelectorAll('#legend script, #legend img').length") == 0
            assert await tab.ask("document.documentElement.scrollWidth") <= 360
            assert not tab.problems

        browse(look)


def test_the_class_under_the_pointer_has_a_name() -> None:
    with page() as found:
        found.start()

        async def look(tab: Tab, view: str) -> None:
            await tab.open(f"{found.url}/#view={view}")
            await ready(tab)
            left, top, width, height = await tab.ask(
                "(({left, top, width, height}) => [left, top, width, height])"
                "(document.getElementById('canvas').getBoundingClientRect())"
            )
            for x, y, name in ((0.1, 0.1, "sky"), (0.9, 0.97, "road")):
                await tab.move(round(left + x * width), round(top + y * height))
                assert await tab.ask("document.getElementById('pointed').textContent") == name
            await tab.move(round(left + width / 2), round(top + height + 100))
            assert await tab.ask("document.getElementById('pointed').hidden")

        browse(partial(look, view="overlay"), partial(look, view="side"))


def test_another_size_and_another_run() -> None:
    with page() as first:
        first.start()

        async def look(tab: Tab) -> None:
            await tab.open(first.url)
            await ready(tab)
            first.stop()
            first.size_hw = (120, 200)
            first.start()
            await tab.until("document.getElementById('canvas').width === 200")
            await tab.until("/200 . 120/.test(document.getElementById('run').textContent)")
            first.close()
            with page(port=first.sink.port, labels=Labels(("grass", "tree"), ((0, 255, 0), (0, 99, 0)))) as second:
                second.start()
                await tab.until(f"({LEGEND}).join() === 'grass,tree'")
                await tab.until("document.getElementById('canvas').width === 160")
                sky = await tab.ask(PIXEL.format(x=5, y=5))
                assert near(sky, (0, 128, 100)), sky  # half of the frame's blue and of grass

        browse(look)


def test_what_a_page_in_the_background_missed_is_asked_for() -> None:
    with page() as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(found.url)
            await ready(tab)
            await tab.ask(
                "window.asked = []; const real = window.fetch, timer = window.setTimeout; "
                "window.setTimeout = (call, ms) => timer(call, 4 * ms); "
                "window.fetch = (path) => { if (path.startsWith('stats')) asked.push(path); return real(path); }; 0"
            )
            await tab.until("asked.length > 1")
            assert int((await tab.ask("asked[1]")).split("=")[1]) >= 6

        browse(look)


def test_a_page_with_a_token() -> None:
    token = "correct-horse-battery"  # noqa: S105
    with page(token=token) as found:
        found.start()

        async def look(tab: Tab) -> None:
            await tab.open(f"{found.url}/?token={token}")
            await ready(tab)
            assert token not in await tab.ask("location.href + document.cookie + document.documentElement.outerHTML")
            first = await tab.ask(NUMBER)
            await tab.until(f"{NUMBER} > {first + 5}")

        browse(look)
