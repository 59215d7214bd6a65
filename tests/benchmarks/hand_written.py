"""Minimal owner tasks that an application might write by hand, with no safety measures.

An exception while opening is raised by `start()`, and a later exception by `stop()`.
"""

import asyncio
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def trivial():
    yield 1


class AsyncioTask:
    """A task with two futures."""

    async def start(self):
        loop = asyncio.get_running_loop()
        self.opened = loop.create_future()
        self.wish_to_stop = loop.create_future()
        self.task = loop.create_task(self.own())
        return await self.opened

    async def own(self):
        try:
            async with trivial() as connection:
                self.opened.set_result(connection)
                await self.wish_to_stop
        except BaseException as error:
            if self.opened.done():
                raise
            self.opened.set_exception(error)

    async def stop(self):
        self.wish_to_stop.set_result(None)
        await self.task


class TrioTask:
    """A system task with three events, because trio has neither futures nor awaitable tasks."""

    async def start(self):
        self.connection = self.error = None
        self.opened, self.wish_to_stop, self.ended = trio.Event(), trio.Event(), trio.Event()
        trio.lowlevel.spawn_system_task(self.own)
        await self.opened.wait()
        if self.error is not None:
            raise self.error
        return self.connection

    async def own(self):
        try:
            async with trivial() as self.connection:
                self.opened.set()
                await self.wish_to_stop.wait()
        except BaseException as error:  # from a system task, it would crash the trio run
            self.error = error
        self.opened.set()
        self.ended.set()

    async def stop(self):
        self.wish_to_stop.set()
        await self.ended.wait()
        if self.error is not None:
            raise self.error


TASKS = {"asyncio": AsyncioTask, "trio": TrioTask}
