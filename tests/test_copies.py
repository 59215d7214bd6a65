"""Tests for the classes and copies of managers, and for the names of managers made from factories.

What does not depend on the event loop is tested in one kind of loop. Tests of many cases print each
one, so the last line that a failed test printed names its case.
"""

import copy
import functools
import pickle
import re
import sys
import threading
import warnings
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import product

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import BACKENDS
from probe import raises
from pydantic import BaseModel, ConfigDict

from ownertask import ConnectionManager, ConnectionState, NotConnectedError, WrongEventLoopError

NEW, OPENING, OPEN, CLOSING, CLOSED, FAILED = ConnectionState


class Base(ConnectionManager[object]):
    """A manager that can be made to fail, without an attribute of its own."""

    url: str

    @asynccontextmanager
    async def open_connection(self):
        await (raises(OSError(self.url))() if self.url == "fail" else checkpoint())
        yield object()


class ForgetsSuper(Base):
    def __init__(self, url):
        self.url = url


class CallsSuper(Base):
    def __init__(self, url):
        super().__init__(name=f"manager of {url}")
        self.start_timeout = 5
        self.url = url


class WithSlots(ForgetsSuper):
    __slots__ = ("extra",)

    def __init__(self, url):
        super().__init__(url)
        self.extra = ["extra", url]


class SlotsInTheMiddle(WithSlots):
    __slots__ = ("more",)

    def __init__(self, url):
        super().__init__(url)
        self.more = url


@dataclass
class Data(Base):
    url: str


@dataclass(frozen=True)
class FrozenData(Base):
    url: str
    tags: list = field(default_factory=list)


@dataclass(slots=True)
class SlottedData(Base):
    url: str


@dataclass(frozen=True, slots=True)
class FrozenSlottedData(Base):
    url: str


class NewWithoutOurs:
    """A base whose `__new__()` does not call the next one."""

    def __new__(cls, *_args, **_kwargs):
        return object.__new__(cls)


class ForeignNew(NewWithoutOurs, ForgetsSuper):
    pass


class Model(BaseModel, Base):
    url: str

    def __init__(self, url):
        super().__init__(url=url)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic prefers the other order

    class ModelLast(Base, BaseModel):
        url: str

        def __init__(self, url):
            BaseModel.__init__(self, url=url)


class FrozenModel(BaseModel, Base):
    model_config = ConfigDict(frozen=True)
    url: str

    def __init__(self, url):
        super().__init__(url=url)


class ModelThatAllowsExtra(BaseModel, Base):
    model_config = ConfigDict(extra="allow")
    url: str

    def __init__(self, url):
        super().__init__(url=url)


PLAIN = [ForgetsSuper, CallsSuper, WithSlots, SlotsInTheMiddle, ForeignNew]
DATA = [Data, FrozenData, SlottedData, FrozenSlottedData]
MODELS = [Model, ModelLast, FrozenModel, ModelThatAllowsExtra]
KINDS = [*PLAIN, *DATA, *MODELS]

on_trio = pytest.mark.parametrize(
    "anyio_backend", [backend for backend in BACKENDS if backend.id == "trio"], indirect=True
)

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda manager, protocol=protocol: pickle.loads(
            pickle.dumps(manager, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


async def works(manager):
    """Asserts that a manager that is new goes through all states."""
    assert manager.state is NEW
    assert manager.exception is None
    with pytest.raises(NotConnectedError):
        manager.connection  # noqa: B018
    async with manager as connection:
        assert manager.connection is connection
        assert manager.state is OPEN
    assert manager.state is CLOSED
    manager.connection_lost()
    assert manager.state is CLOSED


async def test_F13_a_manager_of_any_class_works():
    for kind in KINDS:
        print("kind:", kind.__name__)
        manager = kind("redis://x")
        assert repr(manager).startswith("<") or kind in {*DATA, *MODELS}
        assert manager.name in {kind.__name__, "manager of redis://x"}
        await works(manager)
        failing = kind("fail")
        with pytest.raises(OSError, match="fail"):
            await failing.start()
        assert failing.state is FAILED


async def test_F13_a_copy_is_new_and_has_the_configuration_only(anyio_backend):
    in_each_way = KINDS if anyio_backend[0] == "trio" else [ForgetsSuper, FrozenSlottedData, Model]
    for kind in KINDS:
        for how in COPIES if kind in in_each_way else ["copy"]:
            print("kind:", kind.__name__, "how:", how)
            await copy_in_each_state(kind, how)


async def copy_in_each_state(kind, how):
    async def check(manager, state):
        assert manager.state is state
        other = COPIES[how](manager)
        assert type(other) is kind
        assert other.name == manager.name
        assert other.url == manager.url
        assert other.start_timeout == manager.start_timeout
        assert getattr(other, "extra", None) == getattr(manager, "extra", None)
        assert getattr(other, "more", None) == getattr(manager, "more", None)
        assert other.state is NEW
        assert other.exception is None
        if manager.url != "fail":
            await works(other)
            await works(COPIES[how](other))
        assert manager.state is state

    manager = kind("redis://x")
    await check(manager, NEW)
    async with manager:
        await check(manager, OPEN)
    await check(manager, CLOSED)
    failed = kind("fail")
    with pytest.raises(OSError, match="fail"):
        await failed.start()
    await check(failed, FAILED)


async def test_F13_a_copy_of_a_manager_that_is_in_use_does_not_share_its_blocks_and_stops():
    for kind in KINDS:
        print("kind:", kind.__name__)
        manager = kind("redis://x")
        async with manager as connection:
            other = copy.copy(manager)
            async with other as second:
                assert second is not connection
                await manager.stop()
                assert other.connection is second
            assert other.state is CLOSED


async def test_F13_a_model_copy_is_new():
    for kind, deep in product(MODELS, [False, True]):
        print("kind:", kind.__name__, "deep:", deep)
        manager = kind("redis://x")
        async with manager:
            other = manager.model_copy(deep=deep)
            assert other.url == "redis://x"
            await works(other)
            changed = manager.model_copy(update={"url": "redis://y"}, deep=deep)
            assert changed.url == "redis://y"
            await works(changed)
            assert manager.state is OPEN


@on_trio
@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
async def test_F13_models_compare_and_dump_their_fields_only(kind):
    manager = kind("redis://x")
    assert manager == kind("redis://x")
    assert manager != kind("redis://y")
    async with manager:
        assert manager == kind("redis://x")
        assert manager == copy.copy(manager)
        fields = manager.model_dump()
        assert fields.pop("url") == "redis://x"
        assert fields.keys() <= {"start_timeout"}  # an attribute with a default, so a field, too
        if kind is not ModelLast:  # its `__repr__()` is ours
            assert "redis://x" in repr(manager)
    if kind is FrozenModel:
        assert hash(manager) == hash(kind("redis://x"))
        with pytest.raises(ValueError, match="frozen"):
            manager.url = "redis://y"


@on_trio
@pytest.mark.parametrize("kind", DATA, ids=lambda kind: kind.__name__)
async def test_F13_dataclasses_compare_their_fields_only(kind):
    manager = kind("redis://x")
    async with manager:
        assert manager == kind("redis://x")
        assert manager == copy.copy(manager)
    assert manager != kind("redis://y")


async def test_F13_an_object_made_without_init_has_a_private_state():
    """As pickle makes one, and some libraries."""
    for kind, how in product(KINDS, ["object.__new__", "cls.__new__"]):
        print("kind:", kind.__name__, "how:", how)
        made = object.__new__(kind) if how == "object.__new__" else kind.__new__(kind)
        assert made.state is NEW
        assert made.exception is None
        await made.stop()
        await made.wait_closed()
        made.connection_lost()
        assert made.state is NEW


async def test_F13_an_object_that_took_over_the_attributes_of_a_manager_does_not_share_its_run():
    kinds = [ForgetsSuper, CallsSuper, ForeignNew, Data, FrozenData]
    for kind, phase in product(kinds, ["new", "open", "failed"]):
        print("kind:", kind.__name__, "phase:", phase)
        await take_over(kind, phase)


async def take_over(kind, phase):
    manager = kind("fail" if phase == "failed" else "redis://x")
    if phase == "open":
        await manager.start()
    elif phase == "failed":
        with pytest.raises(OSError, match="fail"):
            await manager.start()
    for make in (object.__new__, lambda kind: kind.__new__(kind)):
        other = make(kind)
        vars(other).update(vars(manager))
        assert other.url == manager.url
        if phase == "failed":
            assert other.state is NEW
            vars(other)["url"] = "redis://x"
        await works(other)
    if phase == "open":
        assert manager.state is OPEN
        await manager.stop()


@pytest.mark.parametrize("kind", [ForeignNew, ForgetsSuper, Model], ids=lambda kind: kind.__name__)
def test_F13_two_threads_that_touch_a_new_manager_at_the_same_time_share_one_private_state(kind):
    """Only one of two starts in two event loops may succeed."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            assert sorted(start_in_two_threads(kind)) == ["opened", "refused"]
    finally:
        sys.setswitchinterval(interval)


def start_in_two_threads(kind):
    manager = kind("redis://x")
    ready, finished = threading.Barrier(2), threading.Barrier(2)
    outcomes = []

    async def main():
        ready.wait(5)
        try:
            await manager.start()
        except WrongEventLoopError:
            outcomes.append("refused")
            await anyio.to_thread.run_sync(finished.wait, 5)
        else:
            outcomes.append("opened")
            await anyio.to_thread.run_sync(finished.wait, 5)
            await manager.stop()

    threads = [threading.Thread(target=anyio.run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return outcomes


# F26: names of managers made from factories.


@asynccontextmanager
async def number(_argument=None, **_options):
    yield 1


class Pool:
    """Its methods and instances are factories."""

    def __repr__(self):
        return "<Pool password=hunter2>"

    def connect(self):
        return number()

    @staticmethod
    def static():
        return number()

    @classmethod
    def of_class(cls):
        return number()

    def __call__(self):
        return number()


def name_of(factory):
    return ConnectionManager.from_factory(factory).name


def test_F26_a_named_function_is_called_by_its_name():
    assert name_of(number) == "from_factory(number)"


def test_F26_lambdas_have_different_names():
    first = lambda: number("a")  # noqa: E731
    second = lambda: number("b")  # noqa: E731
    one_line = [lambda: number("c"), lambda: number("d")]
    names = {name_of(factory) for factory in (first, second, *one_line)}
    assert len(names) == 4
    assert all("lambda" in name for name in names)


def test_F26_lambdas_of_one_place_have_different_names():
    names = {name_of(lambda value=value: number(value)) for value in range(10)}
    assert len(names) == 10


def test_F26_the_name_of_a_lambda_says_where_it_is():
    name = name_of(lambda: number(1))
    assert re.search(r"test_copies(\.py)?\b", name), name
    line = sys._getframe().f_lineno - 2
    assert re.search(rf"\b{line}\b", name), name


@pytest.mark.parametrize(
    "make",
    [
        lambda: functools.partial(number, "hunter2"),
        lambda: functools.partial(number, password="hunter2"),
        lambda: functools.partial(functools.partial(number, "hunter2"), password="hunter2"),
        lambda: functools.partial(lambda _: number(), "hunter2"),
        Pool,
        lambda: Pool().connect,
        lambda: functools.partial(Pool().connect),
        lambda: lambda secret="hunter2": number(secret),
    ],
    ids=["partial", "keyword", "nested", "of a lambda", "object", "method", "of a method", "lambda"],
)
def test_F26_names_tell_factories_apart_without_their_arguments(make):
    factories = [make(), make()]
    names = [name_of(factory) for factory in factories]
    assert names[0] != names[1]
    for factory, name in zip(factories, names, strict=True):
        assert "hunter2" not in name
        assert repr(factory) not in name
        assert name.startswith("from_factory(")
        assert len(name) < 100


def test_F26_names_of_partials_and_methods_contain_the_name_of_the_function():
    assert "number" in name_of(functools.partial(number, "hunter2"))
    assert "connect" in name_of(Pool().connect)
    assert "Pool" in name_of(Pool())
    assert "static" in name_of(Pool.static)
    assert "of_class" in name_of(Pool.of_class)


def test_F26_a_factory_with_an_odd_name_gets_a_name_without_raising():
    class Odd:
        def __init__(self, name):
            self.name = name

        def __getattr__(self, attribute):
            if attribute == "__name__" and self.name is not None:
                return self.name
            raise LookupError(attribute)

        def __call__(self):
            return number()

        def __repr__(self):
            raise LookupError

    for name in (None, 3, "", "a\nb"):
        assert name_of(Odd(name)).startswith("from_factory(")


@on_trio
async def test_F26_a_name_that_was_given_is_kept_and_the_default_one_is_stable():
    assert ConnectionManager.from_factory(lambda: number(1), name="one").name == "one"
    manager = ConnectionManager.from_factory(lambda: number(1))
    name = manager.name
    async with manager:
        assert manager.name == name
    assert copy.copy(manager).name == name


def test_F26_a_partial_that_contains_itself_gets_a_name():
    factory = functools.partial(number)
    factory.__setstate__((factory, (), {}, {}))
    assert name_of(factory).startswith("from_factory(partial #")
    factory.__setstate__((number, (), {}, {}))
