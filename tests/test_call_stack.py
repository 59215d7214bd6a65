"""Tests for the description of where a coroutine waits."""

from contextlib import asynccontextmanager

import anyio
import pytest
from anyio import wait_all_tasks_blocked

from ownertask._call_stack import waiting_place


class Awaitable:
    def __init__(self, inner):
        self.inner = inner

    def __await__(self):
        return self.inner().__await__()


async def in_a_coroutine():
    await anyio.sleep_forever()


async def in_an_awaitable():
    await Awaitable(in_a_coroutine)


async def numbers():
    await in_a_coroutine()
    yield 1


async def in_a_generator():
    async for _ in numbers():
        pass


@asynccontextmanager
async def leaving():
    yield
    await in_a_coroutine()


async def in_a_context_manager():
    async with leaving():
        pass


@pytest.mark.parametrize(
    "function", [in_a_coroutine, in_an_awaitable, in_a_generator, in_a_context_manager]
)
async def test_the_innermost_place_outside_the_event_loop_libraries_is_reported(function):
    coroutine = function()

    async def run():
        await coroutine

    async with anyio.create_task_group() as tg:
        tg.start_soon(run)
        await wait_all_tasks_blocked()
        assert waiting_place(coroutine) == "in in_a_coroutine (test_call_stack.py:21)"
        tg.cancel_scope.cancel()


async def test_a_coroutine_that_waits_only_in_library_code_waits_in_its_event_loop():
    coroutine = anyio.sleep_forever()
    assert waiting_place(coroutine) == "inside anyio, asyncio or trio"
    coroutine.close()


async def test_a_coroutine_that_is_running_can_ask_where_it_waits():
    """Python 3.12 can crash if it is asked what a running coroutine awaits."""

    async def ask():
        return waiting_place(coroutine)

    async def call():
        return await ask()

    coroutine = call()
    assert "in test_a_coroutine_that_is_running" in await coroutine
