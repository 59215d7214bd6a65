"""Tests that `check_connection_manager()` names the rule that a manager breaks."""

import re
from pathlib import Path

import anyio
import pytest
from reopening import settle
from testing import broken

from ownertask.testing import _leaks, _rules, check_connection_manager

ROOT = Path(__file__).parents[2]
OPENING = "The manager can be stopped at each step of the opening"

# For each manager, the rule that it breaks and a part of what is seen.
BROKEN = {
    broken.Refused: (
        "The first connection opens, works and closes",
        "start() raised ConnectionRefusedError",
    ),
    broken.OpensInConstructor: ("Creating a manager opens nothing", "the descriptor"),
    broken.NeedsEventLoop: (
        "Creating a manager opens nothing",
        "without an event loop raised NoEventLoopError",
    ),
    broken.StartsItself: ("Creating a manager opens nothing", "the state was opening"),
    broken.NeedsOwnerTask: ("A connection can be opened without an owner task", "raised AssertionError"),
    broken.HoldsLock: ("Any task can stop the manager", "stop() raised RuntimeError"),
    broken.StopsOnce: (
        "Any task can stop the manager",
        "stop(), called again, raised RuntimeError",
    ),
    broken.WrapsInStart: ("Each caller of start gets the same connection", "different objects"),
    broken.FlagIsNotReset: (
        "A stopped manager can be started again",
        "use() raised ClosedResourceError",
    ),
    broken.RefusesToStartWhileClosing: (
        "A stopped manager can be started again",
        "start(), called while closing, raised RuntimeError",
    ),
    broken.IgnoresForcedStop: ("A forced stop ends the connection", "could not be stopped"),
    broken.FailsWhenForced: ("A forced stop ends the connection", "because of ConnectionAbortedError"),
    broken.OpeningFlagIsNotReset: (
        "A caller of start can be cancelled at each step",
        "start(), to be cancelled at step 2 of 3, raised RuntimeError",
    ),
    broken.TurnsCancellationIntoError: (
        "A caller of start can be cancelled at each step",
        "after start() was cancelled at step 1 of 3, the state was failed because of ConnectionError",
    ),
    broken.RetriesWhenCancelled: (
        "A caller of start can be cancelled at each step",
        "the state was closing; 'owner task of RetriesWhenCancelled' was waiting in",
    ),
    broken.ShieldsStart: (
        "A caller of start can be cancelled at each step",
        "after start() was cancelled at step 1 of 3, the state was open",
    ),
    broken.StopsOnlyOpen: (OPENING, "after stop() was called at step 1 of 3, the state was open"),
    broken.RaisesWhenStopped: (OPENING, "start(), to be stopped at step 1 of 3, raised ConnectionError"),
    broken.ClosingFlagIsNotReset: (
        "A caller of stop can be cancelled at each step",
        "start() raised RuntimeError",
    ),
    broken.LosesReason: (
        "A reported loss ends the connection",
        "wait_closed() raised ConnectionLostError",
    ),
    broken.DiesForever: (
        "A reported loss ends the connection",
        "started again: start() raised RuntimeError",
    ),
    broken.StopsAtTheEnd: ("The manager detects the end of the connection", "wait_closed() returned"),
    broken.GivesUpTooEarly: (
        "A lost connection is opened again",
        "wait_open() raised ConnectionLostError",
    ),
    broken.SharesConnection: ("Managers do not affect each other", "use() raised ClosedResourceError"),
    broken.EndsOthers: ("Managers do not affect each other", "the state was failed because of"),
    broken.CancelsAllTasks: ("Other tasks are never cancelled", "another task was cancelled"),
    broken.LeavesTask: ("No task is left", "is waiting in LeavesTask.say_goodbye"),
    broken.LeavesThread: ("No thread is left", "the thread 'reader' is running"),
    broken.LeavesBusyWorker: ("No thread is left", "is running"),
    broken.LeavesSocketWhenCancelled: (
        "No descriptor is left",
        "cancelled at step 1 of 3, the descriptor",
    ),
    broken.LeavesSocketWhenForced: ("No descriptor is left", "A forced stop"),
    broken.NeverClosesDescriptor: ("No descriptor is left", "after the managers were stopped"),
    broken.NeverClosesConnection: ("No descriptor is left", "A connection can be opened without"),
    broken.LeavesDescriptorWhenLost: ("No descriptor is left", "after the peer ended the connection"),
    broken.LeavesServer: ("No process is left", "is running"),
    broken.LeavesZombie: ("No process is left", "is not reaped"),
    broken.LeavesGrandchild: ("No process is left", "is running"),
}

# These wait forever.
HANGING = {
    broken.ClosesOnlyByCancellation: (
        "The first connection opens, works and closes",
        "stop() did not end within 0.3 s; 'owner task of ClosesOnlyByCancellation' was waiting in",
    ),
    broken.IgnoresReport: (
        "A reported loss ends the connection",
        "wait_closed() did not end within 0.3 s",
    ),
    broken.DetectsNothing: (
        "The manager detects the end of the connection",
        "wait_closed() did not end",
    ),
}


async def use(peer):
    await peer.ping()


async def lose(peer):
    await peer.end()


@pytest.fixture(autouse=True)
def short_times(monkeypatch):
    monkeypatch.setattr(_leaks, "END_TIME", 0.5)


async def failure_of(make_manager, timeout):
    """Returns the error of a manager that breaks a rule."""
    with pytest.raises(AssertionError) as caught:
        await check_connection_manager(make_manager, use=use, lose=lose, timeout=timeout)
    return caught.value


async def assert_breaks(manager_class, rule, seen, timeout):
    release = anyio.Event()
    manager_class.release = release
    try:
        with broken.leaks_ended():
            error = await failure_of(manager_class, timeout)
    finally:
        release.set()
        await settle()
    text = str(error)
    assert text.startswith(f"{rule}: "), text
    assert seen in text
    assert text.endswith(
        f"\nSee https://ownertask.github.io/ownertask/reference/rules/#{_rules.anchor(rule)}"
    )
    assert "hunter2" not in text


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("manager_class", BROKEN, ids=lambda each: each.__name__)
async def test_the_broken_rule_is_named(manager_class, anyio_backend_name, request):
    if hasattr(manager_class, "release"):
        request.getfixturevalue("grace")
    if manager_class is broken.CancelsAllTasks and anyio_backend_name == "trio":
        pytest.skip("trio has no function that returns all tasks")
    await assert_breaks(manager_class, *BROKEN[manager_class], timeout=4)


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize("manager_class", HANGING, ids=lambda each: each.__name__)
async def test_a_hang_breaks_the_rule(manager_class):
    await assert_breaks(manager_class, *HANGING[manager_class], timeout=0.3)


def test_each_rule_has_a_broken_manager():
    assert {rule for rule, _ in [*BROKEN.values(), *HANGING.values()]} == set(_rules.sentences())


def test_each_rule_has_a_section_at_its_address():
    text = (ROOT / "docs" / "reference" / "rules.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [*_rules.sentences()[:-4], *headings[-4:]]
    assert sorted(headings) == sorted(_rules.sentences())
    for sentence in _rules.sentences():
        assert _rules.anchor(sentence) == slug(sentence)


def slug(heading):
    """Returns the anchor that the toc extension of Python-Markdown creates."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
