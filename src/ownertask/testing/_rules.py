"""The rules that `check_connection_manager()` checks, in this order.

An async function checks each rule. It creates managers, uses them, and raises a `BrokenRuleError` if the
rule is broken. Afterwards, its caller looks for leftover resources; see `_leaks.py`.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

from anyio import Event, create_task_group, sleep_forever, to_thread

from ..errors import ConnectionLostError
from ..policy import ReconnectPolicy
from ..state import ConnectionState
from ._interruptions import cancelled_start, cancelled_stop, stopped_while_opening
from ._leaks import LEAKS, Snapshot, first_leak
from ._steps import Steps, count_steps
from ._trial import BrokenRuleError, Trial, alongside, described, set_policy

__all__ = ["FIRST", "NEVER_CANCELLED", "RULES", "Rule", "anchor", "first_connection", "sentences"]

T = TypeVar("T")

FIRST: Final = "The first connection opens, works and closes"

NEVER_CANCELLED: Final = "Other tasks are never cancelled"


class Rule(NamedTuple):
    """Describes a rule.

    Attributes:
        sentence: The rule in a few words. It is also the heading of the rule's section in the docs.
        check: Checks the rule. Any: the connection may have any type.
        needs_lose: Whether the author must pass a function that makes the peer end the connection.
    """

    sentence: str
    check: Callable[[Trial[Any]], Awaitable[None]]
    needs_lose: bool = False


def anchor(sentence: str) -> str:
    """Returns the anchor of the section that explains a rule."""
    return re.sub(r"[^a-z0-9]+", "-", sentence.lower())


async def first_connection(trial: Trial[T]) -> None:
    """Opens a connection twice, so that resources that are created only once do not look like leaks.

    The second time, this function counts the steps.
    """
    manager, other = trial.make(), trial.make()
    await trial.start(manager)
    await trial.stop(manager)
    opening, closing = Steps(), Steps()
    count_steps(other, opening, closing)
    await trial.start(other)
    await trial.stop(other)
    trial.opening_steps, trial.closing_steps = opening.taken, closing.taken


async def creating_opens_nothing(trial: Trial[T]) -> None:
    """Compares the resources before and after creating a manager. Also creates one in a thread."""
    before = Snapshot()
    manager = trial.make()
    left = await first_leak(before, 0)
    if left is not None:
        raise BrokenRuleError(f"after make_manager(), {left[1]}")
    if manager.state is not ConnectionState.NEW:
        trial.fail_for_state(manager, "after make_manager()")
    # A thread has no event loop.
    await trial.call("make_manager() without an event loop", lambda: to_thread.run_sync(trial.make))


async def opens_without_owner_task(trial: Trial[T]) -> None:
    """Opens a connection with `async with manager.open_connection()`."""
    manager = trial.make()

    async def open_plainly() -> None:
        async with manager.open_connection() as connection:
            trial.look()
            await trial.use(connection)

    await trial.call_detached("async with manager.open_connection()", open_plainly)


async def any_task_stops(trial: Trial[T]) -> None:
    """Starts a manager in one task, and stops it in another task, twice."""
    manager = trial.make()
    connection = await trial.call_detached("start()", manager.start)
    await trial.use(connection)
    await trial.stop(manager)
    await trial.call("stop(), called again,", manager.stop)


async def callers_get_same_connection(trial: Trial[T]) -> None:
    """Calls `start()` in several tasks at once, and again when the connection is open."""
    manager = trial.make()
    received: list[T] = []

    async def join() -> None:
        received.append(await manager.start())

    async def join_together() -> None:
        async with create_task_group() as task_group:
            for _ in range(3):
                task_group.start_soon(join)

    await trial.call("start(), called by three tasks at once,", join_together)
    connection = await trial.call("start(), called again,", manager.start)
    if any(other is not connection for other in received):
        raise BrokenRuleError("start() returned different objects while the connection was open")
    await trial.stop(manager)


async def starts_again(trial: Trial[T]) -> None:
    """Starts a manager again: after `stop()`, after `wait_closed()`, and while it closes."""
    manager = trial.make()
    await trial.start(manager)
    await trial.stop(manager)
    await trial.start(manager)
    await trial.stop(manager)
    await trial.call("wait_closed()", manager.wait_closed)
    await trial.start(manager)
    waiting, closing = Event(), Event()

    def listen(_: object, __: ConnectionState, new: ConnectionState) -> None:
        if new is ConnectionState.CLOSING:
            closing.set()

    async def stop() -> None:
        await waiting.wait()
        await manager.stop(timeout=None)
        await sleep_forever()

    async def start_while_closing() -> T:
        waiting.set()
        await closing.wait()
        return await manager.start()

    manager.add_listener(listen)
    async with alongside(stop):
        connection = await trial.call("start(), called while closing,", start_while_closing)
    await trial.use(connection)
    await trial.stop(manager)


async def forced_stop_ends(trial: Trial[T]) -> None:
    """Stops a manager with `stop(timeout=0)`."""
    manager = trial.make()
    await trial.start(manager)
    await trial.call("stop(timeout=0)", lambda: manager.stop(timeout=0))
    trial.check_closed(manager, "after stop(timeout=0)")
    await trial.check_works_again(manager, "stop(timeout=0)")


async def reported_loss_ends(trial: Trial[T]) -> None:
    """Reports a loss with `connection_lost()`."""
    manager = trial.make()
    await trial.start(manager)
    reason = ConnectionResetError("reported by check_connection_manager()")
    manager.connection_lost(reason)
    error = await trial.error_of("wait_closed()", manager.wait_closed)
    if not isinstance(error, ConnectionLostError) or error.__cause__ is not reason:
        what = "returned" if error is None else f"raised {described(error)}"
        raise BrokenRuleError(f"wait_closed() {what} after connection_lost(reason)", error)
    await trial.check_works_again(manager, "a loss was reported")


async def end_is_detected(trial: Trial[T]) -> None:
    """Makes the peer end the connection, and waits until the manager detects it."""
    manager = trial.make()
    connection = await trial.start(manager)
    await trial.lose(connection)
    async with alongside(lambda: trial.keep_using(connection)):
        error = await trial.error_of("the peer ended the connection; wait_closed()", manager.wait_closed)
    if not isinstance(error, ConnectionLostError):
        what = "returned" if error is None else f"raised {described(error)}"
        raise BrokenRuleError(f"the peer ended the connection, but wait_closed() {what}", error)
    await trial.check_works_again(manager, "the peer ended the connection")


async def reconnects(trial: Trial[T]) -> None:
    """Sets a `ReconnectPolicy`, reports a loss, and waits for the next connection."""
    manager = trial.make()
    set_policy(manager, ReconnectPolicy(initial_delay=0, jitter=0, max_retries=3))
    await trial.start(manager)
    manager.connection_lost(ConnectionResetError("reported by check_connection_manager()"))
    connection = await trial.call("a loss was reported; wait_open()", manager.wait_open)
    await trial.use(connection)
    await trial.stop(manager)


async def other_tasks_go_on(trial: Trial[T]) -> None:
    """Ends connections while another task waits."""
    manager = trial.make()
    await trial.start(manager)
    async with alongside(sleep_forever) as bystander:
        await trial.stop(manager)
        await trial.start(manager)
        manager.connection_lost()
        await trial.error_of("wait_closed()", manager.wait_closed)
        await bystander.stop()
        if bystander.state is not ConnectionState.CLOSED:
            raise BrokenRuleError("another task was cancelled when the connection ended")


async def managers_are_independent(trial: Trial[T]) -> None:
    """Opens two connections, and ends one of them."""
    first, second = trial.make(), trial.make()
    await trial.start(first)
    connection = await trial.start(second)
    await trial.stop(first)
    if second.state is not ConnectionState.OPEN:
        trial.fail_for_state(second, "after another manager was stopped")
    await trial.use(connection)
    await trial.stop(second)


RULES: Final = (
    Rule("Creating a manager opens nothing", creating_opens_nothing),
    Rule("A connection can be opened without an owner task", opens_without_owner_task),
    Rule("Any task can stop the manager", any_task_stops),
    Rule("Each caller of start gets the same connection", callers_get_same_connection),
    Rule("A stopped manager can be started again", starts_again),
    Rule("A forced stop ends the connection", forced_stop_ends),
    Rule("A caller of start can be cancelled at each step", cancelled_start),
    Rule("The manager can be stopped at each step of the opening", stopped_while_opening),
    Rule("A caller of stop can be cancelled at each step", cancelled_stop),
    Rule("A reported loss ends the connection", reported_loss_ends),
    Rule("The manager detects the end of the connection", end_is_detected, needs_lose=True),
    Rule("A lost connection is opened again", reconnects),
    Rule(NEVER_CANCELLED, other_tasks_go_on),
    Rule("Managers do not affect each other", managers_are_independent),
)


def sentences() -> list[str]:
    """Returns all rules that a failure can name."""
    return [FIRST, *(rule.sentence for rule in RULES), *(leak.sentence for leak in LEAKS)]
