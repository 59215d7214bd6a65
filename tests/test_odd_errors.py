"""Tests for exceptions, groups and log handlers that misbehave, and for what an exception keeps alive.

The connections in this file are plain classes. Between them and the owner task, nothing else touches
an exception.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import asyncio
import gc
import itertools
import logging
import signal
import traceback
import weakref
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import product

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from probe import Probe, raises

from ownertask import (
    ConnectionLostError,
    ConnectionManager,
    ConnectionState,
    NotConnectedError,
    StartTimeoutError,
    StopTimeoutError,
    _outcome,
)
from ownertask._call_stack import waiting_place
from ownertask._failure import add_note
from ownertask._log import log
from ownertask._outcome import Outcome

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Custom(BaseException):
    pass


class Stuck(BaseException):
    pass


@pytest.fixture
def anyio_backend(anyio_backend):
    """Ends loops that never await, and event loops that never end. The usual limit ends neither."""
    with ends():
        yield anyio_backend


@contextmanager
def ends(within=8):
    """Raises `Stuck` in the test after some seconds, whatever the test is doing."""
    if not hasattr(signal, "setitimer"):  # Windows: faulthandler_timeout ends the tests
        yield
        return

    def end(_, frame):
        while frame is not None:
            if frame.f_code.co_name == "pytest_pyfunc_call":  # not while pytest reports the failure
                raise Stuck
            frame = frame.f_back

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, within, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# Connections that fail.


PHASES = ["opening", "lost while opening", "open", "lost", "closing", "forced"]


class Fragile(ConnectionManager[object]):
    """Raises or reports `error` in one phase."""

    def __init__(self, phase, error, fact=None):
        super().__init__(name="fragile")
        self.phase = phase
        self.error = error
        self.fact = fact
        self.scope = anyio.CancelScope()

    def open_connection(self):
        return FragileConnection(self)

    async def fail(self):
        """Makes an open connection fail."""
        match self.phase:
            case "open":
                self.scope.cancel()
            case "lost":
                self.connection_lost(self.error)
            case "closing":
                await self.stop()
            case "forced":
                await self.stop(timeout=0)


class FragileConnection:
    def __init__(self, manager):
        self.manager = manager

    async def __aenter__(self):
        manager = self.manager
        if manager.fact is not None:
            manager._add_fact(manager.fact)
        await checkpoint()
        if manager.phase == "opening":
            raise manager.error
        if manager.phase == "lost while opening":
            manager.connection_lost(manager.error)
            await checkpoint()
        manager.scope.__enter__()
        return self

    async def __aexit__(self, *exc_info):
        self.manager.scope.__exit__(*exc_info)
        if self.manager.phase == "forced":
            try:
                await anyio.sleep_forever()
            finally:
                raise self.manager.error
        if self.manager.phase in {"open", "closing"}:
            raise self.manager.error


async def outcome(call):
    """Returns what `call` raises, or `None`."""
    try:
        await call()
    except anyio.get_cancelled_exc_class():
        raise
    except BaseException as raised:
        return raised
    return None


async def outcomes(*calls):
    """Calls all functions at the same time. Returns what they raise, in the same order."""
    results = [None] * len(calls)

    async def call(index):
        results[index] = await outcome(calls[index])

    with anyio.fail_after(2):
        async with anyio.create_task_group() as tg:
            for index in range(len(calls)):
                tg.start_soon(call, index)
    return results


def is_one_of(raised, errors):
    return any(raised is error for error in errors)


async def check(manager, *expected):
    """Lets the connection fail, and checks that each call ends and raises one of the expected errors."""
    expected = expected or (manager.error,)
    started = await outcomes(manager.start, manager.start)
    if manager.phase in {"opening", "lost while opening"}:
        raised = started
    else:
        assert started == [None, None]
        *raised, failed = await outcomes(manager.wait_closed, manager.wait_closed, manager.fail)
        assert failed is None
    assert manager.state is FAILED
    raised += await outcomes(manager.wait_closed, manager.wait_closed)
    if manager.phase in {"lost while opening", "open", "lost"}:
        assert all(type(error) is ConnectionLostError for error in [*raised, manager.exception])
        raised = [error.__cause__ for error in [*raised, manager.exception]]
    assert all(is_one_of(error, expected) for error in [*raised])
    if manager.phase in {"opening", "closing", "forced"}:
        assert is_one_of(manager.exception, expected)
    assert await outcomes(manager.stop) == [None]
    assert manager.state is FAILED
    with pytest.raises((ConnectionLostError, NotConnectedError)):
        manager.connection  # noqa: B018


def odd(name, kind, base=OSError):
    """Returns a class of exceptions whose attribute `name` raises `kind` when it is used."""

    def fail(self, *args, **options):
        raise kind(f"{name} is odd")

    return type("Odd", (base,), {name: property(fail) if name in PROPERTIES else fail})


PROPERTIES = {"__notes__", "__class__", "__dict__", "__cause__", "__context__", "__traceback__", "args"}
METHODS = [
    *("__getattr__", "__getattribute__", "__setattr__", "__str__", "__repr__", "__eq__", "__hash__"),
    *("__bool__", "__len__", "__reduce_ex__", "__copy__", "add_note", "with_traceback"),
]


def cases(*choices):
    """Yields all combinations, each printed before."""
    for case in product(*choices):
        print("case:", *case)
        yield case


@pytest.fixture
def kinds_and_facts(anyio_backend):
    """Returns pairs of what an attribute raises and the fact in a note.

    In asyncio's debug mode, which is slow, only one pair.
    """
    pairs = list(product([KeyError, Custom], [None, "a fact"]))
    return pairs[-1:] if anyio_backend[1].get("debug") else pairs


@pytest.mark.parametrize("phase", PHASES)
async def test_F1_an_exception_arrives_although_an_attribute_of_it_raises(phase, kinds_and_facts):
    for name, (kind, fact) in cases(sorted({*METHODS, *PROPERTIES}), kinds_and_facts):
        error = odd(name, kind)("no")
        await check(Fragile(phase, error, fact))


async def test_F1_a_base_exception_arrives_although_an_attribute_of_it_raises(kinds_and_facts):
    names = ["__getattr__", "__str__", "add_note", "with_traceback"]
    for name, (kind, fact) in cases(names, kinds_and_facts):
        await check(Fragile("opening", odd(name, kind, Custom)("no"), fact))


@pytest.mark.parametrize("phase", PHASES)
async def test_F1_an_exception_arrives_although_its_notes_are_not_a_list_of_texts(phase):
    for notes, fact in cases([(), None, 3, {"a": "b"}, "text", [3, None]], [None, "a fact"]):
        error = OSError("no")
        error.__notes__ = notes
        await check(Fragile(phase, error, fact))


async def cancelled():
    """Returns a cancellation of the running backend."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as exc:
            return exc


GROUP_METHODS = ["derive", "split", "subgroup", "exceptions", "message"]


@pytest.mark.parametrize("phase", PHASES)
async def test_F1_a_group_arrives_although_an_attribute_of_it_raises(
    phase, kinds_and_facts, monkeypatch
):
    monkeypatch.setattr(f"{__name__}.PROPERTIES", PROPERTIES | {"exceptions", "message"}, raising=True)
    names = [*GROUP_METHODS, "__getattribute__", "add_note"]
    for name, (kind, fact) in cases(names, kinds_and_facts):
        one = odd(name, kind, BaseExceptionGroup)("one", [OSError("a")])
        leaf = BaseExceptionGroup.__dict__["exceptions"].__get__(one)[0]
        await check(Fragile(phase, one, fact), one, leaf)
        await check(Fragile(phase, odd(name, kind, ExceptionGroup)("two", [OSError(), OSError()]), fact))


@pytest.mark.parametrize("phase", ["opening", "open", "closing", "forced"])
async def test_F1_an_odd_group_that_contains_a_cancellation_arrives(phase, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PROPERTIES", PROPERTIES | {"exceptions"})
    for name, kind in cases(["derive", "split", "subgroup", "exceptions"], [KeyError, Custom]):
        leaf = OSError("real")
        group = odd(name, kind, BaseExceptionGroup)("mixed", [await cancelled(), leaf])
        await check(Fragile(phase, group), group, leaf)


async def test_F1_two_exceptions_beside_a_cancellation_arrive_although_their_group_is_odd(monkeypatch):
    monkeypatch.setattr(f"{__name__}.PROPERTIES", PROPERTIES | {"exceptions"})
    for name, kind in cases(["derive", "split", "subgroup", "exceptions"], [KeyError, Custom]):
        errors = [OSError("a"), OSError("b")]
        manager = Fragile(
            "opening", odd(name, kind, BaseExceptionGroup)("mixed", [await cancelled(), *errors])
        )
        raised = await outcome(manager.start)
        assert isinstance(raised, BaseExceptionGroup)
        assert list(BaseExceptionGroup.__dict__["exceptions"].__get__(raised)) == errors
        assert manager.state is FAILED
        assert manager.exception is raised


async def test_F1_a_group_arrives_although_it_derives_something_else():
    class Deriving(BaseExceptionGroup):
        def derive(self, excs):
            return self.result

    results = [None, 3, OSError("other")]
    for phase, result in cases(["opening", "open", "closing", "forced"], results):
        leaf = OSError("real")
        group = Deriving("mixed", [await cancelled(), leaf])
        group.result = result
        await check(Fragile(phase, group), group, leaf)


two_backends = pytest.mark.parametrize("anyio_backend", BACKENDS[:2], indirect=True)


def nested(error, depth=3000):
    for _ in range(depth):
        error = BaseExceptionGroup("deep", [error])
    return error


@two_backends
@pytest.mark.parametrize("phase", PHASES)
async def test_F1_an_exception_in_three_thousand_nested_groups_arrives(phase):
    leaf = OSError("leaf")
    await check(Fragile(phase, nested(leaf), "a fact"), leaf)
    two = ExceptionGroup("two", [OSError("a"), OSError("b")])
    await check(Fragile(phase, nested(two), "a fact"), two)


@two_backends
@pytest.mark.parametrize("phase", PHASES)
async def test_F1_a_group_with_an_exception_at_each_of_three_thousand_levels_arrives(phase):
    group = OSError("leaf")
    for _ in range(3000):
        group = ExceptionGroup("deep", [OSError("side"), group])
    await check(Fragile(phase, group, "a fact"))


@pytest.mark.parametrize("phase", ["opening", "open", "closing", "forced"])
async def test_F1_cancellations_in_three_thousand_nested_groups_are_removed(phase):
    leaf = OSError("leaf")
    group = nested(BaseExceptionGroup("mixed", [await cancelled(), leaf]))
    await check(Fragile(phase, group, "a fact"), leaf)


# Log handlers.


class RaisingHandler(logging.Handler):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def emit(self, record):
        raise self.kind("the handler is odd")


@pytest.fixture(params=["handler", "filter"])
def raising_log(request):
    """Returns a function that makes the logger raise exceptions of a class from a level on."""
    logger = logging.getLogger("ownertask")
    level, handlers, filters = logger.level, logger.handlers[:], logger.filters[:]

    def install(kind, at_level):
        logger.handlers[:], logger.filters[:] = handlers, filters
        logger.setLevel(at_level)
        handler = RaisingHandler(kind)
        if request.param == "handler":
            logger.addHandler(handler)
        else:
            logger.addFilter(handler.emit)

    yield install
    logger.setLevel(level)
    logger.handlers[:], logger.filters[:] = handlers, filters


LEVELS = [logging.DEBUG, logging.WARNING]


async def test_F1_a_failure_arrives_although_logging_raises(raising_log):
    for phase, kind, level in cases(PHASES, [LookupError, Custom], LEVELS):
        raising_log(kind, level)
        await check(Fragile(phase, OSError("no"), "a fact"))


async def test_F1_a_connection_opens_and_closes_although_logging_raises(raising_log):
    for kind, level in cases([LookupError, Custom], LEVELS):
        raising_log(kind, level)
        probe = Probe()
        for timeout in (None, 0):
            connection = await probe.start()
            assert probe.connection is connection
            await probe.stop(timeout)
            assert probe.state is CLOSED
        async with probe:
            assert probe.state is OPEN
        with pytest.raises(StartTimeoutError):
            await Probe(anyio.sleep_forever).start(timeout=0)


async def test_F1_an_owner_that_does_not_end_is_reported_although_logging_raises(raising_log, grace):
    for kind in (LookupError, Custom):
        raising_log(kind, logging.WARNING)
        let_go = anyio.Event()

        async def refuse(let_go=let_go):
            with anyio.CancelScope(shield=True):
                await let_go.wait()

        probe = Probe(closing=refuse)
        await probe.start()
        assert type(await outcome(lambda: probe.stop(0))) is StopTimeoutError  # noqa: B023
        let_go.set()
        await outcome(probe.wait_closed)
        assert probe.state in {CLOSED, FAILED}


# Errors that several callers raise.


def lost_with(cause):
    """Returns a manager whose connection is lost, with a note that all of its errors share."""

    @asynccontextmanager
    async def open_connection():
        manager._add_fact("shared")
        yield 1

    manager = ConnectionManager.from_factory(open_connection, name="shared")

    async def lose():
        await manager.start()
        manager.connection_lost(cause)
        await outcome(manager.wait_closed)
        assert manager.state is FAILED
        return manager

    return lose()


async def read(manager):
    return manager.connection


def notes(error):
    return getattr(error, "__notes__", [])


def change(error):
    """Does to an error what a caller may do to an error that only this caller has."""
    error.add_note("mine")
    error.args = ("changed",)
    error.request_id = 3
    error.__dict__["name"] = "changed"


def is_unchanged(error):
    mine = "mine" in notes(error) or "changed" in error.args
    return not mine and not hasattr(error, "request_id") and error.name != "changed"


@pytest.mark.parametrize("cause", [None, OSError("reset")])
async def test_F8_callers_that_change_a_loss_do_not_affect_each_other(cause):
    manager = await lost_with(cause)
    seen = []
    for _ in range(3):
        for call in (manager.wait_closed, lambda: read(manager)):
            error = await outcome(call)
            assert type(error) is ConnectionLostError
            assert is_unchanged(error)
            assert notes(error).count("shared") == 1
            change(error)
            seen.append(error)
    assert len({id(error) for error in seen}) == len(seen)
    assert len({id(error.__dict__) for error in seen}) == len(seen)
    assert len({id(notes(error)) for error in seen}) == len(seen)
    assert is_unchanged(manager.exception)
    assert all(error.__cause__ is cause for error in seen)


async def test_F8_callers_that_change_a_start_timeout_do_not_affect_each_other():
    probe = Probe()

    async def hang():
        probe._add_fact("shared")
        await anyio.sleep_forever()

    probe.opening = hang
    probe.start_timeout = 0.01
    seen = await outcomes(*[probe.start] * 3)
    for error in seen:
        assert type(error) is StartTimeoutError
        assert is_unchanged(error)
        assert "shared" in notes(error)
        change(error)
    for _ in range(3):
        error = await outcome(probe.wait_closed)
        assert type(error) is StartTimeoutError
        assert is_unchanged(error)
        change(error)
        seen.append(error)
        error = await outcome(lambda: read(probe))
        assert type(error) is NotConnectedError
        assert is_unchanged(error)
        assert is_unchanged(error.__cause__)
        change(error)
    assert len({id(notes(error)) for error in seen}) == len(seen)


async def test_F8_callers_that_change_a_loss_while_opening_do_not_affect_each_other():
    class Losing(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            self._add_fact("shared")
            self.connection_lost(OSError("reset"))
            await checkpoint()
            yield 1

    manager = Losing()
    seen = await outcomes(manager.start, manager.start, manager.start)
    for error in seen:
        assert type(error) is ConnectionLostError
        assert is_unchanged(error)
        change(error)
    for _ in range(2):
        error = await outcome(manager.wait_closed)
        assert is_unchanged(error)
        change(error)


class Drops(BaseExceptionGroup):
    """A group whose `derive()` keeps only one exception."""

    def derive(self, exceptions):
        return Drops(self.message, [exceptions[0]])


async def test_F1_a_group_that_derives_a_group_with_fewer_exceptions_loses_none():
    errors = [OSError("a"), KeyError("b")]
    manager = Fragile("lost", Drops("group", [*errors, await cancelled()]), None)
    await manager.start()
    manager.connection_lost(manager.error)
    error = await outcome(manager.wait_closed)
    assert list(error.__cause__.exceptions) == errors


class UnhashableType(type):
    """Its classes cannot be looked up in a set, as the check of an abstract base class does."""

    __hash__ = None


class NamelessType(type):
    @property
    def __name__(cls):
        raise KeyError("no name")


@pytest.mark.parametrize("kind", [UnhashableType, NamelessType])
@pytest.mark.parametrize("phase", PHASES)
async def test_F1_an_exception_of_an_odd_type_arrives(kind, phase, grace):
    class OddError(OSError, metaclass=kind):
        pass

    await check(Fragile(phase, OddError(), "a fact"))


async def test_F1_notes_without_an_end_are_not_searched():
    error = OSError("no")
    error.__notes__ = itertools.count()
    await check(Fragile("opening", error, "a fact"))


async def test_F1_an_exception_whose_add_note_ends_the_program_does_not_end_it():
    class EndingError(OSError):
        def add_note(self, note):
            raise SystemExit

    await check(Fragile("opening", EndingError("no"), "a fact"))


async def test_F1_a_run_ends_although_its_outcome_cannot_be_decided(monkeypatch):
    def fail(*_, **__):
        raise LookupError("a bug")

    probe = Probe()
    await probe.start()
    owner = probe._life.run._task
    with monkeypatch.context() as patched:
        patched.setattr(Outcome, "failure", fail)
        probe.connection_lost()
        with pytest.raises(LookupError, match="a bug"):
            await probe.wait_closed()
    if isinstance(owner, asyncio.Task):
        await checkpoint()
        assert owner.exception() is probe.exception
    async with probe:
        assert probe.exception is None


async def test_F1_a_run_ends_although_a_note_cannot_be_added(monkeypatch):
    def fail(*_):
        raise LookupError("a bug")

    error = OSError("no")
    probe = Probe(closing=raises(error))
    await probe.start()
    owner = probe._life.run._task
    with monkeypatch.context() as patched:
        patched.setattr(_outcome, "add_note", fail)
        await probe.stop()
    assert probe.exception is error
    if isinstance(owner, asyncio.Task):
        await checkpoint()
        assert type(owner.exception()) is LookupError


def test_F1_a_keyboard_interrupt_in_foreign_code_is_not_suppressed(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    class KeyedError(OSError):
        add_note = interrupt

    with pytest.raises(KeyboardInterrupt):
        add_note(KeyedError("no"), "a note")
    monkeypatch.setattr(logging.getLogger("ownertask"), "isEnabledFor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        log(logging.DEBUG, "a message")


async def test_O2_a_group_that_contains_one_exception_twice_is_raised_as_that_exception():
    error = OSError("no")
    probe = Probe(raises(ExceptionGroup("group", [error, ExceptionGroup("inner", [error])])))
    with pytest.raises(OSError, match="no") as caught:
        await probe.start()
    assert caught.value is error


async def test_F1_a_logger_that_cannot_tell_its_level_affects_nothing(monkeypatch):
    def fail(*_):
        raise LookupError("the logger is odd")

    monkeypatch.setattr(logging.getLogger("ownertask"), "isEnabledFor", fail)
    async with Probe():
        pass


async def test_F8_each_caller_gets_its_own_copy_of_an_error_of_ownertask_that_opening_raised():
    class Outer(ConnectionManager[int]):
        @asynccontextmanager
        async def open_connection(self):
            await checkpoint()
            raise NotConnectedError("inner", CLOSED)
            yield 1

    outer = Outer()
    errors = await outcomes(outer.start, outer.start, outer.start)
    for error in errors:
        assert type(error) is NotConnectedError
        assert "open_connection" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert is_unchanged(error)
        change(error)
    assert is_unchanged(outer.exception)


# What an exception keeps alive.


class WeakError(OSError):
    """An exception that weak references can refer to."""


class Thing:
    """An object that weak references can refer to."""


@pytest.fixture
def without_collector(monkeypatch):
    """Switches the garbage collector off, and the logger, because pytest keeps what is logged."""
    monkeypatch.setattr(logging.getLogger("ownertask"), "disabled", True)
    gc.collect()
    gc.disable()
    yield
    gc.collect()
    gc.enable()


async def left(references):
    """Returns the types of the objects that are not freed soon. An event loop may hold some briefly."""
    for _ in range(10):
        await checkpoint()
    return [type(reference()).__name__ for reference in references if reference() is not None]


OURS = ["start timeout", "lost", "lost with a reason"]
FAILURES = ["opening", "base exception", "closing", *OURS]


def failing(failure, references):
    """Returns a manager that fails. Its connection's frames do not refer to the manager."""

    @asynccontextmanager
    async def open_connection():
        local = Thing()
        references.append(weakref.ref(local))
        await checkpoint()
        if failure == "opening":
            raise weak(WeakError)
        if failure == "base exception":
            raise weak(Custom)
        if failure == "start timeout":
            await anyio.Event().wait()  # unlike sleep_forever(), sets no timer that asyncio keeps
        yield local
        if failure == "closing":
            raise weak(WeakError)

    def weak(kind):
        error = kind("no")
        references.append(weakref.ref(error))
        return error

    manager = ConnectionManager.from_factory(open_connection, name="failing")
    if failure == "start timeout":
        manager.start_timeout = 0.01
    references.append(weakref.ref(manager))
    return manager


async def call(function):
    """Calls a function that may raise. Unlike `outcome()`, keeps nothing of the exception."""
    with suppress(WeakError, Custom, ConnectionLostError, StartTimeoutError, NotConnectedError):
        await function()


async def let_fail(manager, failure, waiters):
    async with anyio.create_task_group() as tg:
        for _ in range(waiters or 1):
            tg.start_soon(call, manager.start)
    if failure == "closing":
        await manager.stop()
    elif failure == "lost":
        manager.connection_lost()
    elif failure == "lost with a reason":
        manager.connection_lost(WeakError("no"))
    while manager.state is not FAILED:
        await checkpoint()


async def test_F9_a_failed_manager_is_freed_without_garbage_collection(without_collector):
    async def use():
        manager = failing(failure, references)
        await let_fail(manager, failure, waiters)
        references.append(weakref.ref(manager._life.run))

    for failure, waiters in [*product(OURS, (1, 3)), ("closing", 0)]:
        print("failure:", failure, "waiters:", waiters)
        references = []
        await use()
        assert await left(references) == []


async def test_F9_a_manager_is_freed_after_its_failure_was_raised(without_collector):
    """An exception of the connection refers to the frames of its callers, so to the manager. Only the
    collector frees them."""
    for failure, method in cases(FAILURES, ["wait_closed", "run", "connection"]):
        references = []
        await fail_and_raise(failure, method, references)
        if failure not in OURS:
            gc.collect()
        assert await left(references) == []


async def fail_and_raise(failure, method, references):
    opens = failure not in {"opening", "base exception", "start timeout"}

    async def hold(manager, *, task_status):
        await call(lambda: manager.run(task_status=task_status))
        if not opens:
            task_status.started()

    async def use():
        manager = failing(failure, references)
        if method == "run":
            async with anyio.create_task_group() as tg:
                await tg.start(hold, manager)
                await let_fail(manager, failure, 0)
        else:
            await let_fail(manager, failure, 1)
        if method == "connection":
            await call(lambda: read(manager))
        else:
            await call(manager.wait_closed)

    await use()


@pytest.mark.parametrize("method", ["start", "wait_closed", "run"])
async def test_F9_the_locals_of_a_caller_are_freed_although_the_manager_lives(method, without_collector):
    """This holds for ownertask's own errors. The manager keeps any other exception, and so the frames of
    the caller that it was raised in last."""
    manager = failing("start timeout", [])
    references = []

    async def use():
        local = Thing()
        references.append(weakref.ref(local))
        try:
            await getattr(manager, method)()
        except StartTimeoutError:
            return
        pytest.fail("raised nothing")

    if method == "wait_closed":
        await call(manager.start)
    await use()
    assert await left(references) == []
    async with anyio.create_task_group() as tg:
        for _ in range(1 if method == "run" else 3):
            tg.start_soon(use)
    assert await left(references) == []
    assert manager.state is FAILED


@pytest.mark.parametrize("failure", ["lost", "lost with a reason"])
async def test_F9_the_locals_of_a_caller_are_freed_after_an_open_connection_failed(
    failure, without_collector
):
    manager = failing(failure, [])
    references = []
    await let_fail(manager, failure, 1)

    async def use():
        local = Thing()
        references.append(weakref.ref(local))
        try:
            await manager.wait_closed()
        except (WeakError, ConnectionLostError):
            return
        pytest.fail("raised nothing")

    await use()
    assert await left(references) == []
    assert manager.state is FAILED


async def test_F9_a_manager_is_freed_after_a_block_failed_to_enter(without_collector):
    references = []

    async def use():
        manager = failing("start timeout", references)
        await call(manager.__aenter__)

    await use()
    assert await left(references) == []


# Objects that refer to themselves.


class Awaitable:
    """An awaitable whose iterator the garbage collector connects with other awaitables."""

    __slots__ = ("awaited",)

    def __init__(self):
        self.awaited = None

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return None


async def wait_for(awaitable):
    await awaitable


async def generate(awaitable):
    await awaitable
    yield


@ends()
def test_F14_the_waiting_place_is_found_if_an_awaitable_refers_to_the_coroutine_that_awaits_it():
    awaitable = Awaitable()
    coroutine = wait_for(awaitable)
    coroutine.send(None)
    awaitable.awaited = coroutine
    assert waiting_place(coroutine).startswith("in wait_for (test_odd_errors.py:")
    coroutine.close()
    awaitable.awaited = None


@ends()
def test_F14_the_waiting_place_is_found_if_two_coroutines_await_each_other():
    first, second = Awaitable(), Awaitable()
    coroutines = wait_for(first), wait_for(second)
    for coroutine in coroutines:
        coroutine.send(None)
    first.awaited, second.awaited = coroutines[1], coroutines[0]
    for coroutine in coroutines:
        assert waiting_place(coroutine).startswith("in wait_for (test_odd_errors.py:")
    for coroutine in coroutines:
        coroutine.close()
    first.awaited = second.awaited = None


@ends()
def test_F14_the_waiting_place_is_found_if_a_generator_awaits_itself():
    awaitable = Awaitable()
    generator = generate(awaitable)
    step = generator.asend(None)
    step.send(None)
    awaitable.awaited = step
    for awaited in (generator, step):
        assert waiting_place(awaited).startswith("in generate (test_odd_errors.py:")
    awaitable.awaited = generator
    for awaited in (generator, step):
        assert waiting_place(awaited).startswith("in generate (test_odd_errors.py:")
    awaitable.awaited = None
    with suppress(RuntimeError, GeneratorExit):  # some versions ignore what is thrown into it
        step.throw(GeneratorExit)


@ends()
def test_F14_the_waiting_place_is_found_if_a_coroutine_is_its_own_iterator():
    class Own(Awaitable):
        __slots__ = ()

        def __next__(self):
            return self

    awaitable = Own()
    awaitable.awaited = awaitable
    coroutine = wait_for(awaitable)
    coroutine.send(None)
    assert waiting_place(coroutine).startswith("in wait_for (test_odd_errors.py:")
    coroutine.close()
    awaitable.awaited = None


async def test_F14_stop_names_the_place_where_an_owner_waits_for_itself(grace):
    awaitable = Awaitable()
    let_go = anyio.Event()

    class Around:
        """Awaits an event through an iterator that refers to the owner's coroutine."""

        def __await__(self):
            self.iterator = let_go.wait().__await__()
            return self

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.iterator)

        def send(self, value):
            return self.iterator.send(value)

        def throw(self, *exc_info):
            return self.iterator.throw(*exc_info)

        def close(self):
            self.iterator.close()

    around = Around()

    async def refuse():
        with anyio.CancelScope(shield=True):
            await around

    coroutine = refuse()
    around.coroutine = coroutine
    probe = Probe(closing=lambda: coroutine)
    await probe.start()
    error = await outcome(lambda: probe.stop(0))
    assert type(error) is StopTimeoutError
    assert "test_odd_errors.py" in str(error)
    let_go.set()
    await outcome(probe.wait_closed)
    assert awaitable.awaited is None
    around.coroutine = None


def from_itself(text):
    error = OSError(*text)
    error.__cause__ = error
    return [error]


def from_each_other(text):
    errors = [OSError(*text), LookupError(*text)]
    errors[0].__cause__, errors[1].__cause__ = errors[1], errors[0]
    return errors


def in_a_circle(text):
    errors = [OSError(*text), LookupError(*text), ValueError(*text)]
    for error, other in zip(errors, [*errors[1:], errors[1]], strict=True):
        error.__cause__ = other
    return errors


def in_its_own_context(text):
    error = OSError(*text)
    error.__context__ = error
    return [error]


def in_each_others_context(text):
    errors = [OSError(*text), LookupError(*text)]
    errors[0].__context__, errors[1].__context__ = errors[1], errors[0]
    return errors


class SelfContaining(ExceptionGroup):
    @property
    def exceptions(self):
        return (self,)


def in_itself(text):
    return [SelfContaining(*text or [""], [OSError(*text)])]


def from_its_own_group(text):
    error = OSError(*text)
    error.__cause__ = ExceptionGroup(*text or [""], [error])
    return [error]


CIRCLES = [
    from_itself,
    from_each_other,
    in_a_circle,
    in_its_own_context,
    in_each_others_context,
    in_itself,
    from_its_own_group,
]


@pytest.mark.parametrize("phase", PHASES)
async def test_F14_an_exception_that_refers_to_itself_arrives(phase):
    for circle in CIRCLES:
        for text in [(), ("the reason",)]:
            print("circle:", circle.__name__, "text:", text)
            await fail_with_circle(circle, text, phase)


async def fail_with_circle(circle, text, phase):
    errors = circle(text)
    group_or_leaf = [errors[0]]
    if isinstance(errors[0], BaseExceptionGroup):
        group_or_leaf += BaseExceptionGroup.__dict__["exceptions"].__get__(errors[0])
    manager = Fragile(phase, errors[0], "a fact")
    await check(manager, *group_or_leaf)
    lost = manager.exception
    if type(lost) is ConnectionLostError:
        kinds = [type(error).__name__ for error in errors] + ["OSError"]
        assert str(lost).startswith("fragile: the connection was lost: ")
        assert any(reason in str(lost) for reason in (text or kinds))
    for error in errors:  # frees the circle
        error.__cause__ = error.__context__ = None


async def test_F14_an_exception_without_a_text_is_shown_by_its_type():
    for cause in (ConnectionResetError(), Custom(), ExceptionGroup("", [ConnectionResetError()])):
        manager = Fragile("lost", cause)
        await manager.start()
        await manager.fail()
        error = await outcome(manager.wait_closed)
        shown = "ConnectionResetError" if isinstance(cause, ExceptionGroup) else type(cause).__name__
        assert str(error) == f"fragile: the connection was lost: {shown}"


async def test_F14_a_loss_has_a_text_although_its_reason_has_none_that_can_be_read():
    names = ["__str__", "__repr__", "__format__", "__getattribute__", "__cause__"]
    for name, kind in cases(names, [KeyError, Custom]):
        error = odd(name, kind)("no")
        manager = Fragile("lost", error)
        await manager.start()
        await manager.fail()
        await outcome(manager.wait_closed)
        assert manager.state is FAILED
        assert str(manager.exception).startswith("fragile: the connection was lost: ")


async def test_F14_a_start_timeout_that_an_odd_exception_caused_ends():
    for circle in CIRCLES:
        [error, *_] = errors = circle(())

        async def fail(error=error):
            try:
                await anyio.sleep_forever()
            finally:
                raise error

        probe = Probe(fail)
        raised = await outcome(lambda: probe.start(timeout=0.01))  # noqa: B023
        assert type(raised) is StartTimeoutError
        for error in errors:
            error.__cause__ = error.__context__ = None
    assert await outcome(Probe(raises(OSError())).start) is not None
