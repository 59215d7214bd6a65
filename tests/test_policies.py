"""Tests for the policies of a manager: how they are set, and which failures are permanent."""

import copy
from contextlib import asynccontextmanager
from math import nan
from typing import ClassVar

import pytest
from pydantic import BaseModel

import ownertask
from ownertask import ConnectionManager, ReconnectPolicy

POLICY = ReconnectPolicy(max_retries=3)


class Manager(ConnectionManager[object]):
    @asynccontextmanager
    async def open_connection(self):
        yield object()


class Watching(Manager):
    async def watch(self, connection):
        pass


async def watch(connection):
    pass


def test_a_manager_has_no_policy_by_default():
    for manager in (Manager(), ConnectionManager.from_factory(Manager().open_connection)):
        assert (manager.start_timeout, manager.reconnect, manager.watch) == (None, None, None)


def test_from_factory_sets_the_policies():
    manager = ConnectionManager.from_factory(
        Manager().open_connection, start_timeout=3, reconnect=POLICY, watch=watch
    )
    for twin in (manager, copy.copy(manager)):
        assert (twin.start_timeout, twin.reconnect, twin.watch) == (3, POLICY, watch)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("reconnect", True, TypeError),
        ("reconnect", 3, TypeError),
        ("reconnect", ReconnectPolicy, TypeError),
        ("watch", True, TypeError),
        ("watch", "watch", TypeError),
        ("start_timeout", "1", TypeError),
        ("start_timeout", True, TypeError),
        ("start_timeout", -1, ValueError),
        ("start_timeout", nan, ValueError),
    ],
)
def test_from_factory_rejects_an_invalid_policy_and_names_the_argument(argument, value, error):
    with pytest.raises(error, match=rf"^{argument} must be .*, not "):
        ConnectionManager.from_factory(Manager().open_connection, **{argument: value})


def test_a_subclass_may_define_watch_as_a_method():
    manager = Watching()
    assert manager.watch.__func__ is Watching.watch
    manager.watch = watch
    assert manager.watch is watch


def test_a_pydantic_model_may_define_watch_and_a_policy():
    class Model(BaseModel, Manager):
        url: str
        reconnect: ClassVar = POLICY

        async def watch(self, connection):
            pass

    model = Model(url="redis://localhost")
    assert model.watch.__self__ is model
    assert model.reconnect is POLICY


def test_the_policies_are_not_fields_of_a_pydantic_model():
    class Model(BaseModel, Manager):
        url: str

    model = Model(url="redis://localhost")
    assert {"reconnect", "watch"}.isdisjoint(Model.model_fields)
    assert (model.reconnect, model.watch) == (None, None)


def test_a_policy_may_be_an_attribute_of_a_class():
    class Restless(Manager):
        reconnect = POLICY

    assert Restless().reconnect is POLICY
    assert Manager().reconnect is None


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        AttributeError(),
        NameError(),
        UnboundLocalError(),
        ImportError(),
        ModuleNotFoundError(),
        NotImplementedError(),
    ],
    ids=repr,
)
def test_K5_an_error_of_programming_is_permanent(error):
    assert Manager().is_permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        ValueError(),
        RuntimeError(),  # the base class of NotImplementedError
        KeyError(),
        FileNotFoundError(),
        ConnectionRefusedError(),
        TimeoutError(),
        EOFError(),
        SystemExit(),
        ownertask.ConnectionLostError("redis"),
        ownertask.StartTimeoutError("redis", 1),
    ],
    ids=lambda error: type(error).__name__,
)
def test_K4_another_error_is_not_permanent(error):
    assert not Manager().is_permanent(error)


def test_an_exception_with_odd_methods_can_be_judged():
    class OddError(Exception):
        @property
        def __class__(self):
            raise RuntimeError

    class OddTypeError(OddError, TypeError):
        pass

    assert not Manager().is_permanent(OddError())
    assert Manager().is_permanent(OddTypeError())


def test_K5_a_subclass_can_add_permanent_errors():
    class Strict(Manager):
        def is_permanent(self, exc):
            return isinstance(exc, PermissionError) or super().is_permanent(exc)

    manager = Strict()
    assert manager.is_permanent(PermissionError())
    assert manager.is_permanent(TypeError())
    assert not manager.is_permanent(OSError())
