"""Tests for the pictures of the documentation, and for what they show."""

import re
import xml.etree.ElementTree as ET
from contextlib import asynccontextmanager

import anyio
import pytest
from pages import ROOT
from pictures import ARROWS, FOLDER, pictures, transitions, updated

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    ConnectionStoppedError,
    ReconnectPolicy,
    StartTimeoutError,
)

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", pictures())
def test_a_picture_is_drawn_by_the_script(name):
    assert (FOLDER / name).read_text() == str(pictures()[name]), "run python tests/pictures.py"


def test_there_are_no_other_pictures():
    assert {path.name for path in FOLDER.glob("*.svg")} == set(pictures())


@pytest.mark.parametrize("page", ["index.md", "reference/states.md"])
def test_a_page_describes_its_pictures(page):
    text = (ROOT / "docs" / page).read_text()
    assert "/pictures/" in text or "(pictures/" in text
    assert updated(text) == text, "run python tests/pictures.py"


@pytest.mark.parametrize("name", pictures())
def test_no_text_of_a_picture_is_clipped(name):
    """A character is at most 0.66 times as wide as the text is high, in the fonts that are used."""
    root = ET.fromstring(str(pictures()[name]))
    assert root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text
    width, height = int(root.get("width")), int(root.get("height"))
    for text in root.iter(f"{SVG}text"):
        size = int(text.get("font-size"))
        for span in text:
            length = 0.66 * size * len(span.text)
            left = (
                int(span.get("x"))
                - {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")] * length
            )
            assert left > 0, span.text
            assert left + length < width, span.text
        assert size < int(text.get("y")) < height


def test_the_diagram_has_an_arrow_for_each_transition():
    assert set(ARROWS) == set(transitions())


class OwnError(Exception):
    pass


async def raises(expected, function):
    with pytest.raises(expected):
        await function()


class Recorded(ConnectionManager):
    """Records its transitions."""

    def __init__(self, opening="", closing="", **options):
        super().__init__(name="recorded")
        self.opening, self.closing, self.moves = opening, closing, []
        self.reached = anyio.Event()
        for name, value in options.items():
            setattr(self, name, value)
        self.add_listener(lambda _, old, new: self.moves.append((old, new)))

    @asynccontextmanager
    async def open_connection(self):
        self.reached.set()
        if self.opening == "raises":
            raise OwnError
        if self.opening == "hangs":
            await anyio.sleep_forever()
        yield self
        if self.closing == "raises":
            raise OwnError

    async def while_opening(self, function, expected):
        async with anyio.create_task_group() as tg:
            tg.start_soon(raises, expected, self.start)
            await self.reached.wait()
            await function()


async def stopped():
    manager = Recorded()
    await manager.start()
    await manager.stop()
    await manager.start()
    await manager.stop()
    life = [(OPENING, OPEN), (OPEN, CLOSING), (CLOSING, CLOSED)]
    return manager, [(NEW, OPENING), *life, (CLOSED, OPENING), *life]


async def lost():
    manager = Recorded()
    await manager.start()
    manager.connection_lost(OwnError())
    await raises(ConnectionLostError, manager.wait_closed)
    await manager.start()
    await manager.stop()
    life = [(OPENING, OPEN), (OPEN, CLOSING)]
    return manager, [
        (NEW, OPENING),
        *life,
        (CLOSING, FAILED),
        (FAILED, OPENING),
        *life,
        (CLOSING, CLOSED),
    ]


async def closing_raises():
    manager = Recorded(closing="raises")
    await manager.start()
    await manager.stop()
    return manager, [(NEW, OPENING), (OPENING, OPEN), (OPEN, CLOSING), (CLOSING, FAILED)]


async def opening_raises():
    manager = Recorded(opening="raises")
    await raises(OwnError, manager.start)
    return manager, [(NEW, OPENING), (OPENING, FAILED)]


async def a_policy_opens_again():
    manager = Recorded(opening="raises", reconnect=ReconnectPolicy(initial_delay=0, max_retries=1))
    await raises(OwnError, manager.start)
    return manager, [(NEW, OPENING), (OPENING, FAILED), (FAILED, OPENING), (OPENING, FAILED)]


async def timed_out():
    manager = Recorded(opening="hangs", start_timeout=0.01)
    await raises(StartTimeoutError, manager.start)
    return manager, [(NEW, OPENING), (OPENING, CLOSING), (CLOSING, FAILED)]


async def stopped_while_opening():
    manager = Recorded(opening="hangs")
    await manager.while_opening(manager.stop, ConnectionStoppedError)
    return manager, [(NEW, OPENING), (OPENING, CLOSING), (CLOSING, CLOSED)]


async def lost_while_opening():
    manager = Recorded(opening="hangs")

    async def lose():
        manager.connection_lost(OwnError())

    await manager.while_opening(lose, ConnectionLostError)
    return manager, [(NEW, OPENING), (OPENING, CLOSING), (CLOSING, FAILED)]


async def no_caller_waits():
    manager = Recorded(opening="hangs")
    async with anyio.create_task_group() as tg:
        tg.start_soon(manager.start)
        await manager.reached.wait()
        tg.cancel_scope.cancel()
    return manager, [(NEW, OPENING), (OPENING, CLOSING), (CLOSING, CLOSED)]


EVENTS = [
    stopped,
    lost,
    closing_raises,
    opening_raises,
    a_policy_opens_again,
    timed_out,
    stopped_while_opening,
    lost_while_opening,
    no_caller_waits,
]


@pytest.mark.parametrize("event", EVENTS)
async def test_an_event_of_the_diagram_causes_its_transition(event):
    manager, expected = await event()
    assert manager.moves == expected


def test_the_home_page_and_the_readme_make_the_same_promises():
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/index.md")]
    first, second = (
        re.search(r"^## What you can count on\n\n(1\. .*?)\n\n", text, re.DOTALL | re.MULTILINE)
        for text in texts
    )
    assert first[1] == second[1]
    promises = re.split(r"\n(?=\d\. )", first[1])
    assert len(promises) == 5
    for promise in promises:
        tests = re.findall(
            r"\[`(.*?)`\]\(https://github.com/ownertask/ownertask/blob/main/(.*?)\)", promise
        )
        assert tests, promise
        for name, path in tests:
            assert name == path or f"def {name}(" in (ROOT / path).read_text()
