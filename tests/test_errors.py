"""Tests for the error tree and the attributes of its errors."""

import pickle

import pytest

import ownertask
from ownertask import ConnectionManagerError, ConnectionState

ERRORS = {
    ownertask.NotConnectedError("redis", ConnectionState.CLOSED): RuntimeError,
    ownertask.ConnectionStoppedError("redis"): Exception,
    ownertask.ConnectionLostError("redis"): Exception,
    ownertask.StartTimeoutError("redis", 1.5): TimeoutError,
    ownertask.StopTimeoutError("redis", "the task waits"): TimeoutError,
    ownertask.ManagerInUseError("redis", "is running"): RuntimeError,
    ownertask.WrongEventLoopError("redis", "start() was called"): RuntimeError,
    ownertask.OwnerTaskError("redis", "stop"): RuntimeError,
}


@pytest.mark.parametrize(
    ("error", "kind"), ERRORS.items(), ids=[type(error).__name__ for error in ERRORS]
)
def test_every_error_names_its_manager_has_its_base_class_and_can_be_pickled(error, kind):
    assert isinstance(error, ConnectionManagerError)
    assert isinstance(error, kind)
    assert str(error).startswith("redis: ")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.__dict__ == error.__dict__
    assert copy.name == "redis"


def test_every_error_is_public_and_in_the_tree():
    public = {getattr(ownertask, name) for name in ownertask.__all__ if name.endswith("Error")}
    assert public == {type(error) for error in ERRORS} | {ConnectionManagerError}
