"""Checks a connection manager against the rules in `_rules.py`."""

from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from math import inf
from typing import Final, TypeVar

import anyio

from ..manager import ConnectionManager
from ._rules import FIRST, NEVER_CANCELLED, RULES, Rule, anchor, first_connection
from ._trial import BrokenRuleError, Trial

__all__ = ["check_connection_manager", "connection_manager_tests"]

T = TypeVar("T")

PAGE: Final = "https://ownertask.github.io/ownertask/reference/rules/"

BACKENDS: Final = ("asyncio", "trio")


async def check_connection_manager(
    make_manager: Callable[[], ConnectionManager[T]],
    *,
    use: Callable[[T], Awaitable[object]] | None = None,
    lose: Callable[[T], Awaitable[object]] | None = None,
    timeout: float = 10.0,
) -> None:
    r"""Checks that a transport's managers keep the rules.

    This is for tests of transports. The check starts, uses, interrupts and stops managers, and reports
    losses. After each rule, it checks that no task, thread, descriptor or process is left. The page
    [Rules](rules.md) explains each rule. The managers log as usual, for example each loss.

    The check interrupts openings and closings at each step. If an opening or a closing has more than 16
    steps, the check interrupts it at the first 8 steps and at 8 others, spread up to the last one.

    The check compares the resources of the whole process, so nothing else in the process should open or
    close anything at the same time. Resources that disappear within two seconds, and idle worker threads
    of asyncio, anyio and trio, do not count. Processes are compared on Linux only, descriptors on Linux
    and on systems with `/dev/fd`.

    Example:
        ```python
        async def use(stream: SocketStream) -> None:
            await stream.send(b"HEAD / HTTP/1.0\r\n\r\n")

        await check_connection_manager(TcpManager, use=use)
        ```

    Args:
        make_manager: Returns a new manager each time. It is also called in a thread without an event
            loop. The peer must accept two connections at the same time. The check replaces the
            manager's `reconnect` policy.
        use: An async function that uses a connection, and raises if the connection does not work.
            Without it, the check cannot tell whether a connection works.
        lose: An async function that makes the peer end the connection, for example by killing the
            server. The manager must detect this on its own within `timeout`. Some transports detect it
            only at the next use, so the check keeps calling `use`, which may raise. Afterwards, the peer
            must accept another connection. Without `lose`, this rule is not checked.
        timeout: Maximum time for each call, in seconds. A call that takes longer breaks the rule. A
            manager that ignores its cancellation takes up to 20 more seconds, and the check cannot
            interrupt code that blocks the event loop.

    Raises:
        AssertionError: A rule is broken. The text names the rule, describes what happened, and links to
            the explanation. `__cause__` is the exception that the manager raised, if any.
        TypeError: An argument has the wrong type, or `make_manager` did not return a manager.
        ValueError: `timeout` is not positive or not finite, or `make_manager` returned the same manager
            again.

    Cancellation:
        The check stops all managers before the cancellation propagates.
    """
    _check_arguments(make_manager, use, lose, timeout)
    rules = [rule for rule in RULES if lose is not None or not rule.needs_lose]
    await _check_all(rules, lambda: Trial(make_manager, use, lose, timeout))


def connection_manager_tests(
    make_manager: Callable[[], ConnectionManager[T]],
    *,
    use: Callable[[T], Awaitable[object]] | None = None,
    lose: Callable[[T], Awaitable[object]] | None = None,
    timeout: float = 10.0,
    backends: Sequence[str] | None = None,
) -> Callable[..., None]:
    """Returns a pytest test function with one test for each rule and backend.

    Assign it to a name that pytest collects. Each test checks one rule in a new event loop, as
    `check_connection_manager()` does. The function is synchronous, so pytest needs no plugin for async
    tests. In a class, wrap it in `staticmethod()`.

    Example:
        ```python
        test_tcp = connection_manager_tests(TcpManager, backends=["asyncio"])
        ```

    Args:
        make_manager: Returns a new manager each time, as in `check_connection_manager()`.
        use: Uses a connection, as in `check_connection_manager()`.
        lose: Makes the peer end the connection, as in `check_connection_manager()`.
        timeout: Maximum time for each call, in seconds.
        backends: `"asyncio"`, `"trio"` or both. The default is all that are installed.

    Raises:
        ImportError: pytest is not installed.
        TypeError: An argument has the wrong type.
        ValueError: `timeout` is not positive or not finite, or a backend is unknown.
    """
    # Only for tests. pytest is not a dependency, and asyncio takes long to import.
    from asyncio import CancelledError

    import pytest

    _check_arguments(make_manager, use, lose, timeout)
    if isinstance(backends, str):
        raise TypeError("backends must be a sequence of names, not a string")
    chosen = [name for name in BACKENDS if find_spec(name)] if backends is None else list(backends)
    for name in chosen:
        if name not in BACKENDS:
            raise ValueError(f"backends must contain only 'asyncio' and 'trio', not {name!r}")

    rules = [rule for rule in RULES if lose is not None or not rule.needs_lose]

    def test_connection_manager(backend: str, rule: Rule) -> None:
        __tracebackhide__ = True

        async def check() -> None:
            __tracebackhide__ = True
            await _check_all([rule], lambda: Trial(make_manager, use, lose, timeout))

        try:
            anyio.run(check, backend=backend)
        except CancelledError as exc:  # KeyboardInterrupt is raised instead if that is the reason
            raise _failure(NEVER_CANCELLED, "the task of the test was cancelled") from exc

    for_each_rule = pytest.mark.parametrize("rule", rules, ids=[anchor(rule.sentence) for rule in rules])
    for_each_backend = pytest.mark.parametrize("backend", chosen)
    test: Callable[..., None] = for_each_rule(for_each_backend(test_connection_manager))
    return test


async def _check_all(rules: Sequence[Rule], new_trial: Callable[[], Trial[T]]) -> None:
    __tracebackhide__ = True
    first = new_trial()
    await _check(first, Rule(FIRST, first_connection))
    for rule in rules:
        trial = new_trial()
        trial.opening_steps, trial.closing_steps = first.opening_steps, first.closing_steps
        await _check(trial, rule)


async def _check(trial: Trial[T], rule: Rule) -> None:
    """Checks a rule, and checks that no resource is left."""
    __tracebackhide__ = True  # pytest then shows only the failure
    try:
        try:
            await rule.check(trial)
        finally:
            await trial.end()
        if rule.sentence is not FIRST:
            await trial.check_nothing_is_left("after the managers were stopped")
    except BrokenRuleError as broken:
        sentence = broken.sentence or rule.sentence
        seen = broken.seen
        if broken.sentence:
            seen += f" (seen while checking: {rule.sentence})"
        raise _failure(sentence, seen) from broken.cause


def _failure(sentence: str, seen: str) -> AssertionError:
    return AssertionError(f"{sentence}: {seen}\nSee {PAGE}#{anchor(sentence)}")


def _check_arguments(make_manager: object, use: object, lose: object, timeout: object) -> None:
    if not callable(make_manager):
        raise TypeError(f"make_manager must be callable, not {type(make_manager).__name__}")
    for name, function in (("use", use), ("lose", lose)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable or None, not {type(function).__name__}")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if not 0 < timeout < inf:
        raise ValueError(f"timeout must be positive and finite, not {timeout!r}")
