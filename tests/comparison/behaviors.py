"""The behaviors that `nox -s comparison` tries on each library.

Each behavior is a function that uses one library through its `Peer`, and returns a short outcome for
each of its rows. The outcomes are derived from what happened: errors, times, and servers that the
library started or left running.
"""

import asyncio
import inspect
import logging
import os
import re
import secrets
import signal
import threading
import time
import traceback

CALL_LIMIT = 15.0  # longer than each library's own default timeout for a call
TIME_TO_DETECT = 3.0  # a health check needs one or two of these seconds

BEHAVIORS = {}
SEEN = []  # the errors that led to the outcomes


class Peer:
    """One connection to one server, through a library. It uses the library as documented."""

    packages = ()  # the versions of these are shown
    loggers = ()  # the first part of the names of the library's own loggers
    not_offered = frozenset()  # of "start_timeout" and "lost"

    def __init__(self, target, *, start_timeout=None, reconnect=False):
        """Creates the connection with the library's own options, but does not open it."""
        raise NotImplementedError

    async def open(self):
        raise NotImplementedError

    async def call(self, tool):
        """Calls a tool, and returns the text of its result."""
        raise NotImplementedError

    async def close(self):
        raise NotImplementedError

    async def lost(self):
        """Returns as soon as the library reports that the connection was lost."""
        raise NotImplementedError

    async def reopen(self):
        await self.close()
        await self.open()

    def objects(self):
        """Returns the objects of the library that an application holds."""
        raise NotImplementedError


class HangingError(Exception):
    """A call did not return in time."""


def behavior(*rows):
    """Adds a behavior, with the title of each row in the table."""

    def add(function):
        BEHAVIORS[function.__name__] = (rows, function)
        return function

    return add


def rows():
    return [row for titles, _ in BEHAVIORS.values() for row in titles]


def leaf(error):
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def name_of(error):
    """Returns the outcome for an error."""
    return "hangs" if isinstance(error, HangingError) else type(leaf(error)).__name__


def text_of(error):
    """Returns all that a log of the error would show."""
    return "".join(traceback.format_exception(error))


def noted(error):
    if error is not None:
        SEEN.append(f"{type(leaf(error)).__name__}: {leaf(error)}")
    return error


async def error_here(call):
    """Returns the error of a call in this task, or `None`."""
    try:
        await call
    except BaseException as error:
        return noted(error)


async def error_in_task(call, within=CALL_LIMIT):
    """Returns the error of a call in a new task, or `None`."""
    task = asyncio.create_task(call)
    await asyncio.wait([task], timeout=within)
    if not task.done():
        task.cancel()
        return noted(HangingError(f"for {within} s"))
    return noted(asyncio.CancelledError() if task.cancelled() else task.exception())


def with_seconds(outcome, start):
    """Adds the time that passed, in whole seconds, unless it rounds to 0."""
    seconds = round(time.monotonic() - start)
    return f"{outcome}, {seconds} s" if seconds else outcome


async def killed(peer, world):
    """Opens a connection, calls and kills its server, and gives the library time to detect that."""
    await peer.open()
    process_id = int(await peer.call("process_id"))
    process = world.wait_started()
    assert process.pid == process_id
    process.kill()
    assert await asyncio.to_thread(process.is_gone)
    await asyncio.sleep(TIME_TO_DETECT)


async def outcome_of_next_calls(peer):
    """Calls up to three times, and then opens the connection again."""
    for outcome in ("works", "second call works", "third call works"):
        if await error_in_task(peer.call("process_id")) is None:
            return outcome
    if await error_here(peer.reopen()) is None and await error_in_task(peer.call("process_id")) is None:
        return "works after reopening"
    return "fails after reopening"


async def end_of_server(peer, world):
    """Waits for the end of the server of a connection that did not open, and closes it if necessary."""
    start = time.monotonic()
    if not await asyncio.to_thread(world.left, 10):
        return with_seconds("server gone", start)
    await error_in_task(peer.close())
    left = await asyncio.to_thread(world.left)
    return "server left running" if left else "gone after close"


@behavior("close in another task", "then the task that opened it")
async def closed_in_another_task(library, world):
    peer, opened, ended = library(world.stdio("good")), asyncio.Event(), asyncio.Event()

    async def opener():
        await peer.open()
        opened.set()
        await ended.wait()

    task = asyncio.create_task(opener())
    await opened.wait()
    error = await error_in_task(peer.close())
    left = await asyncio.to_thread(world.left)
    ended.set()
    await asyncio.wait([task], timeout=5)
    outcome = name_of(error) if error else "server left running" if left else "works"
    return outcome, "is cancelled" if task.cancelled() else "continues"


@behavior("close the first of two")
async def closed_first_in_first_out(library, world):
    first, second = library(world.stdio("good")), library(world.stdio("good"))
    await first.open()
    process = world.wait_started()
    await second.open()
    if error := await error_here(first.close()):
        return name_of(error)
    if not await asyncio.to_thread(process.is_gone):
        return "server left running"
    error = await error_in_task(second.call("process_id"))
    return "second is unusable" if error else "works"


@behavior("two tasks open it at once")
async def opened_twice(library, world):
    peer = library(world.stdio("slow"))

    async def open_and_call():
        await peer.open()
        await peer.call("process_id")

    for error in await asyncio.gather(*(error_in_task(open_and_call()) for _ in range(2))):
        if error:
            return name_of(error)
    started = len(world.started)
    await error_in_task(peer.close())
    left = await asyncio.to_thread(world.left)
    outcome = "one server" if started == 1 else f"{started} servers"
    return f"{outcome}, {left} left" if left else outcome


@behavior("opening is cancelled")
async def opening_cancelled(library, world):
    peer = library(world.stdio("mute"))
    task = asyncio.create_task(peer.open())
    await asyncio.to_thread(world.wait_started)
    task.cancel()
    await asyncio.wait([task], timeout=CALL_LIMIT)
    if not task.cancelled():
        return "cancellation is ignored"
    return await end_of_server(peer, world)


@behavior("the server exits at once")
async def server_exits_at_once(library, world):
    peer = library(world.stdio("exits"))
    error = await error_in_task(peer.open(), 30)
    if error is None or isinstance(error, HangingError):
        return "hangs" if error else "no error"
    process = world.wait_started()
    assert await asyncio.to_thread(process.is_gone)
    reasons = {"status": "status 1", "stderr": "no license"}
    said = " and ".join(name for name, text in reasons.items() if text in text_of(error))
    return with_seconds(said or "no reason", process.ended_at)


@behavior("the server never answers, timeout of 1 s", "then the server")
async def start_timeout(library, world):
    if "start_timeout" in library.not_offered:
        return "no such option", "not tried"
    peer, start = library(world.stdio("mute"), start_timeout=1.0), time.monotonic()
    error = await error_in_task(peer.open())
    outcome = with_seconds("no error" if error is None else name_of(error), start)
    return outcome, await end_of_server(peer, world)


@behavior("close, if the server ignores SIGTERM")
async def stubborn_server(library, world):
    peer = library(world.stdio("stubborn"))
    await peer.open()
    start = time.monotonic()
    error = await error_here(peer.close())
    outcome = with_seconds("server gone", start)
    if await asyncio.to_thread(world.left, 1):
        return "server left running"
    return name_of(error) if error else outcome


@behavior("close, after its launcher was killed")
async def launcher_killed(library, world):
    peer = library(world.launcher())
    await peer.open()
    process = world.wait_started()
    assert process.parent != os.getpid()
    os.kill(process.parent, signal.SIGKILL)
    await asyncio.sleep(TIME_TO_DETECT)
    await error_here(peer.close())
    return "server left running" if await asyncio.to_thread(world.left, 5) else "server gone"


@behavior("the server is killed while idle")
async def killed_while_idle(library, world):
    if "lost" in library.not_offered:
        return "not reported"
    peer = library(world.stdio("good"))
    await peer.open()
    world.wait_started().kill()
    start = time.monotonic()
    error = await error_in_task(peer.lost())
    return "not reported" if isinstance(error, HangingError) else with_seconds("reported", start)


@behavior("the server is killed during a call")
async def killed_during_a_call(library, world):
    peer = library(world.stdio("good"))
    await peer.open()
    process = world.wait_started()

    async def kill():
        await asyncio.to_thread(process.received.wait)
        process.kill()

    killing, start = asyncio.create_task(kill()), time.monotonic()
    error = await error_in_task(peer.call("hang"))
    await killing
    if error is None:
        return "repeated, new server"
    if isinstance(error, HangingError):
        return "hangs"
    reason = re.search(r"SIGKILL|signal 9|status -9|code -9", text_of(error))
    return with_seconds("error names signal" if reason else "error, no reason", start)


@behavior("the next call after that")
async def next_call(library, world):
    peer = library(world.stdio("good"), reconnect=True)
    await killed(peer, world)
    return await outcome_of_next_calls(peer)


@behavior("20 calls at once after that")
async def next_calls(library, world):
    peer = library(world.stdio("good"), reconnect=True)
    await killed(peer, world)
    calls = [error_in_task(peer.call("process_id")) for _ in range(20)]
    answers = (await asyncio.gather(*calls)).count(None)
    new = len(world.started) - 1
    return f"{answers} answers, {new} server{'s' * (new != 1)}"


@behavior("the next call after an HTTP server restarted")
async def http_server_restarted(library, world):
    first = await asyncio.to_thread(world.start_http)
    peer = library(world.http(first), reconnect=True)
    await killed(peer, world)
    await asyncio.to_thread(world.start_http, "http", first.http_port)
    return await outcome_of_next_calls(peer)


@behavior("the next call after a cancelled call")
async def call_cancelled(library, world):
    peer = library(world.stdio("good"))
    await peer.open()
    process = world.wait_started()
    task = asyncio.create_task(peer.call("hang"))
    await asyncio.to_thread(process.received.wait)
    task.cancel()
    await asyncio.wait([task], timeout=CALL_LIMIT)
    if not task.cancelled():
        return "cancellation is ignored"
    error = await error_in_task(peer.call("process_id"))
    return name_of(error) if error else "works"


@behavior("a call from another event loop")
async def called_from_another_loop(library, world):
    peer, errors = library(world.stdio("good")), []
    await peer.open()

    def call():
        try:
            asyncio.run(peer.call("process_id"))
        except BaseException as error:
            errors.append(noted(error))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, CALL_LIMIT)
    if thread.is_alive():
        return "hangs"
    if errors:
        return name_of(errors[0])
    return "works, new server" if len(world.started) > 1 else "works"


@behavior("the event loop ends without a close")
def loop_ended(library, world):
    async def main():
        peer = library(world.stdio("stays"))
        await peer.open()
        return peer

    peer = asyncio.run(main())
    left = world.left(5)
    del peer
    return "server left running" if left else "server gone"


@behavior("Ctrl-C, if the server ignores SIGTERM")
def interrupted(library, world):
    async def main():
        peer = library(world.stdio("stubborn"))
        await peer.open()
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await peer.close()

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        return "server left running" if world.left(5) else "server gone"
    except BaseException as error:
        return name_of(noted(error))


@behavior("open, call and close on trio")
def on_trio(library, world):
    import trio  # only here, so that no other behavior depends on it

    async def main():
        peer = library(world.stdio("good"))
        with trio.fail_after(CALL_LIMIT):
            await peer.open()
            await peer.call("process_id")
            await peer.close()

    try:
        trio.run(main)
    except BaseException as error:
        return name_of(noted(error))
    return "server left running" if world.left() else "works"


class Records(logging.Handler):
    """Keeps the text of each record of the library's own loggers."""

    def __init__(self, loggers):
        super().__init__(logging.INFO)
        self.texts = []
        for name in ("", *loggers):
            logging.getLogger(name).addHandler(self)
        self.loggers = loggers

    def emit(self, record):
        if record.name.startswith(self.loggers):
            self.texts.append(self.format(record))


@behavior("secrets shown in errors, logs, `repr()`")
async def secrets_shown(library, world):
    """Lets two servers fail: one that exits at once, and one that answers with status 401."""
    places = ("argument", "environment", "URL query", "header")
    hidden = {place: secrets.token_hex(16) for place in places}
    logging.getLogger().setLevel(logging.INFO)
    records = Records(library.loggers)
    http = await asyncio.to_thread(world.start_http, "refuses")
    query, headers = f"?token={hidden['URL query']}", {"X-Token": hidden["header"]}
    texts = []
    for target in (
        world.stdio("exits", hidden["argument"], env={"TOKEN": hidden["environment"]}),
        world.http(http, query, headers),
    ):
        peer = library(target, start_timeout=5.0)
        error = await error_in_task(peer.open(), 30)
        texts += [text_of(error) if error else "", *map(repr, peer.objects())]
    texts += records.texts
    shown = [place for place, secret in hidden.items() if any(secret in text for text in texts)]
    SEEN[:] = []  # they may contain paths and addresses
    return ", ".join(shown) or "none"


def try_behavior(name, library, world, report):
    """Reports the outcome of a behavior for each of its rows."""
    titles, function = BEHAVIORS[name]

    def report_rows(outcome):
        outcomes = (outcome,) if isinstance(outcome, str) else outcome
        report(dict(zip(titles, outcomes, strict=True)))

    async def main():  # reports before asyncio.run() ends all tasks, which is a separate behavior
        try:
            outcome = await function(library, world)
        except asyncio.CancelledError:  # nothing in a behavior cancels its main task
            outcome = ("another task is cancelled",) * len(titles)
        report_rows(outcome)

    if inspect.iscoroutinefunction(function):
        asyncio.run(main())
    else:
        report_rows(function(library, world))
