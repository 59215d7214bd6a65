"""Tests for a loss while opening, and for the reason in the text of a `ConnectionLostError`.

Tests of many cases print each one, so the last line that a failed test printed names its case.
"""

import copy
import logging
import pickle

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint
from probe import Probe, Stage, raises
from reopening import settle

from ownertask import ConnectionLostError, ConnectionState, StopTimeoutError

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


def hang_and_raise(error):
    """Returns an async function that raises `error` when it is cancelled, if it is not `None`."""

    async def hang():
        try:
            await anyio.sleep_forever()
        finally:
            if error is not None:
                raise error

    return hang


async def outcome_of_start(probe, report):
    """Starts a manager, reports a loss while it opens, and returns what `start()` raised."""
    outcomes = []

    async def start():
        try:
            await probe.start()
        except Exception as error:
            outcomes.append(error)

    with anyio.fail_after(3):
        async with anyio.create_task_group() as tg:
            tg.start_soon(start)
            tg.start_soon(start)
            await settle()
            assert probe.state is OPENING
            await report()
    assert not probe.is_acquired
    assert len(outcomes) == 2
    assert type(outcomes[0]) is type(outcomes[1])
    assert str(outcomes[0]) == str(outcomes[1])
    return outcomes[0]


# A loss while opening.


@pytest.mark.parametrize("where", ["event loop", "thread"])
@pytest.mark.parametrize("then", [None, LookupError("a consequence")], ids=str)
async def test_O18_a_loss_with_a_reason_ends_the_attempt_and_is_raised(where, then):
    probe = Probe(hang_and_raise(then))
    reason = OSError("gone")

    async def report():
        if where == "thread":
            await anyio.to_thread.run_sync(probe.connection_lost, reason)
        else:
            probe.connection_lost(reason)

    error = await outcome_of_start(probe, report)
    assert isinstance(error, ConnectionLostError)
    assert str(error) == "probe: the connection was lost: gone"
    assert error.__cause__ is reason
    assert probe.state is FAILED
    assert isinstance(probe.exception, ConnectionLostError)
    assert probe.exception is not error
    with pytest.raises(ConnectionLostError) as caught:
        probe.connection  # noqa: B018
    assert caught.value.__cause__ is reason
    with pytest.raises(ConnectionLostError):
        await probe.wait_closed()


async def test_O18_a_loss_without_a_reason_ends_the_attempt_and_what_was_raised_keeps_its_type():
    failure = LookupError("from open_connection")
    probe = Probe(hang_and_raise(failure))

    async def report():
        probe.connection_lost()

    assert await outcome_of_start(probe, report) is failure
    assert probe.exception is failure


async def test_O18_a_loss_without_a_reason_that_nothing_follows_is_raised():
    probe = Probe(anyio.sleep_forever)

    async def report():
        probe.connection_lost()

    error = await outcome_of_start(probe, report)
    assert isinstance(error, ConnectionLostError)
    assert str(error) == "probe: the connection was lost"
    assert error.__cause__ is None


@pytest.mark.parametrize("first", [None, OSError("first")], ids=str)
async def test_O18_the_first_reason_of_several_reports_wins(first):
    probe = Probe(hang_and_raise(LookupError("a consequence")))

    async def report():
        probe.connection_lost(first)
        probe.connection_lost(OSError("second"))
        probe.connection_lost()

    error = await outcome_of_start(probe, report)
    assert isinstance(error, ConnectionLostError)
    assert str(error.__cause__) == ("second" if first is None else "first")
    assert str(error) == f"probe: the connection was lost: {error.__cause__}"


@pytest.mark.parametrize("reason", [None, EOFError("the server closed its stdout")], ids=str)
async def test_O18_a_loss_that_open_connection_itself_reports_ends_it_at_its_next_wait(reason):
    probe = Probe()

    async def report_and_hang():
        probe.connection_lost(reason)
        await anyio.sleep_forever()

    probe.opening = report_and_hang
    with anyio.fail_after(3):
        with pytest.raises(ConnectionLostError) as caught:
            await probe.start()
    assert caught.value.__cause__ is reason
    assert not probe.is_acquired


@pytest.mark.parametrize("reason", [None, EOFError("the server closed its stdout")], ids=str)
async def test_O18_a_connection_that_opens_in_spite_of_its_loss_is_closed_and_never_returned(reason):
    probe = Probe()

    async def swallow():
        probe.connection_lost(reason)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass

    probe.opening = swallow
    with anyio.fail_after(3):
        with pytest.raises(ConnectionLostError) as caught:
            await probe.start()
    assert caught.value.__cause__ is reason
    assert not probe.is_acquired


async def test_O18_a_loss_behind_a_shield_is_raised_when_the_shield_ends():
    opening = Stage(shield=True)
    probe = Probe(opening)

    async def report():
        probe.connection_lost(OSError("gone"))
        await settle()
        assert probe.is_acquired
        opening.let_go.set()

    error = await outcome_of_start(probe, report)
    assert isinstance(error, ConnectionLostError)
    assert str(error.__cause__) == "gone"


async def test_O18_a_loss_behind_a_shield_that_does_not_end_is_raised_after_the_grace_period(
    grace, caplog
):
    opening = Stage(shield=True)
    probe = Probe(opening)
    outcomes = []

    async def start():
        with pytest.raises(ConnectionLostError) as caught:
            await probe.start()
        outcomes.append(str(caught.value))

    try:
        with anyio.fail_after(3):
            async with anyio.create_task_group() as tg:
                tg.start_soon(start)
                await opening.reached.wait()
                probe.connection_lost(OSError("gone"))
        assert outcomes == ["probe: the connection was lost: gone"]
        assert probe.state is CLOSING
        assert "could not be stopped" in caplog.text
        with pytest.raises(StopTimeoutError):
            await probe.stop(0)
    finally:
        opening.let_go.set()
        await probe.stop()


async def test_O18_stop_after_a_loss_while_opening_takes_precedence(grace):
    cleaning_up = Stage(shield=True)

    async def hang_and_clean_up():
        try:
            await anyio.sleep_forever()
        finally:
            await cleaning_up()

    probe = Probe(hang_and_clean_up)

    async def report():
        probe.connection_lost(OSError("gone"))
        await cleaning_up.reached.wait()
        async with anyio.create_task_group() as tg:
            tg.start_soon(probe.stop)
            await settle()
            cleaning_up.let_go.set()

    try:
        assert isinstance(await outcome_of_start(probe, report), ConnectionLostError)
        assert probe.state is FAILED
    finally:
        cleaning_up.let_go.set()


async def test_O18_run_and_a_block_raise_a_loss_while_opening():
    for call in ("run", "__aenter__"):
        probe = Probe(anyio.sleep_forever)

        async def enter(probe=probe, call=call):
            with pytest.raises(ConnectionLostError, match="^probe: the connection was lost: gone$"):
                await getattr(probe, call)()

        with anyio.fail_after(3):
            async with anyio.create_task_group() as tg:
                tg.start_soon(enter)
                await settle()
                probe.connection_lost(OSError("gone"))
        assert probe.state is FAILED


async def test_O18_a_manager_can_be_started_again_after_a_loss_while_opening():
    probe = Probe(anyio.sleep_forever)

    async def report():
        probe.connection_lost(OSError("gone"))

    await outcome_of_start(probe, report)
    probe.opening = checkpoint
    await probe.start()
    assert probe.exception is None
    await probe.stop()
    assert probe.state is CLOSED


# The text.


class SilentError(Exception):
    """An exception that has no text."""


def caused(error, cause):
    error.__cause__ = cause
    return error


REASONS = {
    "text": (OSError("gone"), "gone"),
    "errno": (
        ConnectionResetError(104, "Connection reset by peer"),
        "[Errno 104] Connection reset by peer",
    ),
    "no text": (TimeoutError(), "TimeoutError"),
    "no text, own class": (SilentError(), "SilentError"),
    "spaces": (OSError("  \n"), "OSError"),
    "cause of one without text": (caused(SilentError(), LookupError("deep")), "deep"),
    "cause of two without text": (
        caused(SilentError(), caused(TimeoutError(), OSError("deepest"))),
        "deepest",
    ),
    "text with a cause": (caused(OSError("shallow"), LookupError("deep")), "shallow"),
    "group of one": (ExceptionGroup("unhandled errors in a TaskGroup", [OSError("leaf")]), "leaf"),
    "nested groups of one": (
        ExceptionGroup("outer", [BaseExceptionGroup("inner", [OSError("leaf")])]),
        "leaf",
    ),
    "cause that is a group": (caused(SilentError(), ExceptionGroup("inner", [OSError("leaf")])), "leaf"),
    "group without text": (ExceptionGroup("outer", [TimeoutError()]), "TimeoutError"),
    "a loss of another manager": (
        ConnectionLostError("transport", "the connection was lost: gone"),
        "transport: the connection was lost: gone",
    ),
}


async def test_the_text_of_a_loss_contains_its_reason(caplog):
    for case, (error, text) in REASONS.items():
        print("case:", case)
        caplog.clear()
        await lose_with(error, text, caplog)


async def lose_with(error, text, caplog):
    probe = Probe()
    await probe.start()
    probe.connection_lost(error)
    with pytest.raises(ConnectionLostError) as reading:
        probe.connection  # noqa: B018
    with pytest.raises(ConnectionLostError) as waiting:
        await probe.wait_closed()
    expected = f"probe: the connection was lost: {text}"
    assert [str(reading.value), str(waiting.value), str(probe.exception)] == [expected] * 3
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == expected
    for other in copy.copy(waiting.value), copy.deepcopy(waiting.value):
        assert str(other) == expected
        assert other.name == "probe"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        other = pickle.loads(pickle.dumps(waiting.value, protocol))
        assert str(other) == expected


@pytest.mark.parametrize("phase", ["opening", "open"])
async def test_the_text_of_a_loss_contains_all_reasons_of_a_small_group(phase, caplog):
    reason = ExceptionGroup("two", [OSError("first"), ExceptionGroup("inner", [LookupError("second")])])
    probe = Probe(anyio.sleep_forever if phase == "opening" else checkpoint)
    if phase == "opening":

        async def report():
            probe.connection_lost(reason)

        error = await outcome_of_start(probe, report)
    else:
        await probe.start()
        probe.connection_lost(reason)
        with pytest.raises(ConnectionLostError) as caught:
            await probe.wait_closed()
        error = caught.value
    assert error.__cause__ is reason
    text = str(error)
    assert text.startswith("probe: the connection was lost: first")
    assert text.endswith("second")


async def test_the_text_of_a_loss_with_many_reasons_stays_short():
    probe = Probe()
    await probe.start()
    probe.connection_lost(ExceptionGroup("many", [OSError(f"reason {number}") for number in range(999)]))
    with pytest.raises(ConnectionLostError, match="reason 0") as caught:
        await probe.wait_closed()
    assert len(str(caught.value)) < 300


async def test_the_text_of_a_loss_is_one_line_in_a_log():
    """The exception itself is the cause, with all of its lines."""
    probe = Probe()
    await probe.start()
    probe.connection_lost(ValueError("2 validation errors\n  jsonrpc\n    Field required"))
    with pytest.raises(
        ConnectionLostError, match="^probe: the connection was lost: 2 validation"
    ) as caught:
        await probe.wait_closed()
    assert "\n" not in str(caught.value)
    assert "Field required" in str(caught.value.__cause__)


async def test_the_text_of_a_loss_by_a_missing_key_names_the_type():
    """The text of a `KeyError` is only the key."""
    probe = Probe()
    await probe.start()
    probe.connection_lost(KeyError("endpoint"))
    with pytest.raises(ConnectionLostError, match="the connection was lost: KeyError: 'endpoint'$"):
        await probe.wait_closed()


async def test_the_text_of_a_loss_contains_no_credentials_of_a_url(caplog):
    for text in (
        "cannot reach https://user:hunter2@host/mcp",
        "cannot reach https://host/mcp?token=hunter2",
        "('wss://host/mcp?a=1&key=hunter2', 1)",
        "cannot reach https://user:p/hunter2?@host/mcp",
        "cannot reach 'https://user:hunter2#x@host/mcp#hunter2'.",
    ):
        print("case:", text)
        probe = Probe()
        await probe.start()
        probe.connection_lost(OSError(text))
        with pytest.raises(ConnectionLostError, match="host/mcp") as caught:
            await probe.wait_closed()
        assert "hunter2" not in str(caught.value)
        assert caplog.records
        assert not any("hunter2" in record.getMessage() for record in caplog.records)


async def test_a_long_reason_is_searched_for_urls_in_linear_time():
    probe = Probe()
    await probe.start()
    probe.connection_lost(OSError("a" * 1_000_000 + " http://host"))
    with anyio.fail_after(3), pytest.raises(ConnectionLostError):
        await probe.wait_closed()


async def test_the_text_contains_a_reason_that_closing_raised(caplog):
    probe = Probe(closing=raises(OSError("the exit says why")))
    await probe.start()
    probe.connection_lost()
    with pytest.raises(ConnectionLostError, match="^probe: the connection was lost: the exit says why$"):
        await probe.wait_closed()
    [record] = caplog.records
    assert record.getMessage() == "probe: the connection was lost: the exit says why"


async def test_the_text_contains_a_reason_that_a_later_report_gave():
    closing = Stage()
    probe = Probe(closing=closing)
    await probe.start()
    probe.connection_lost()
    await closing.reached.wait()
    with pytest.raises(ConnectionLostError, match="^probe: the connection was lost$"):
        probe.connection  # noqa: B018
    probe.connection_lost(OSError("first reason"))
    probe.connection_lost(OSError("second reason"))
    with pytest.raises(ConnectionLostError, match="^probe: the connection was lost: first reason$"):
        probe.connection  # noqa: B018
    closing.let_go.set()
    with pytest.raises(ConnectionLostError, match="^probe: the connection was lost: first reason$"):
        await probe.wait_closed()
