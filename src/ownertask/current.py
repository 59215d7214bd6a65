"""The object that follows a manager through restarts: `ConnectionManager.current`.

It passes each use on to the connection that is open at that moment, also through methods that were
looked up before a restart. It starts nothing and sends no call twice.

* **Attributes** are read, set and deleted on the connection. A function becomes a method of this object
  with the same name, documentation and signature. So if an attribute holds a callback, reading it does
  not return the same object (`is`). Other values are returned as they are, and belong to the connection
  from which they were read. While no connection is open, the methods of its class can be looked up.
  Other names raise the error that `manager.connection` raises. The exception is a name that begins with
  an underscore, because libraries probe for features with such names. If the class lacks the name, it
  raises `AttributeError`.
* **Coroutine functions** do nothing until the coroutine is awaited. The coroutine waits as `wait_open()`
  does, and then calls the connection. Wrong arguments raise an error only then.
  `inspect.iscoroutinefunction()` recognizes these functions.
* **Other functions** are called immediately. If the result is a coroutine, a coroutine around it is
  returned, and the method waits from then on. Other results, such as futures, async generators, context
  managers and pipelines, are returned as they are.
* **Special methods**: `[]`, `in`, `len()`, iteration, `reversed()`, unpacking, `async for` and calls are
  passed on. The class has these methods for all connections, so `callable()` and `isinstance(...,
  Iterable)` are always true. `bool()` is `True` while no connection is open. `with`, `async with`,
  `await`, `next()`, ordering and arithmetic raise `TypeError`. The exit of a block could reach another
  connection than its entry, and would close a connection that belongs to the manager.
* **Classes**: `isinstance()` uses the class of the last open connection. Before the first one, it uses
  the manager's optional attribute `connection_type`.
* **Copies**, including deep copies, are the object itself. An unpickled one follows the unpickled
  manager.
* **In another event loop**, each use raises `WrongEventLoopError` at once, even a method that would have
  to wait. A thread without an event loop may pass a coroutine to `asyncio.run_coroutine_threadsafe()`.

The manager has only a weak reference to the object, so there is no reference cycle. The object keeps the
manager alive.
"""

import operator
from collections.abc import Callable, Iterable
from functools import update_wrapper
from inspect import iscoroutinefunction
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    WrapperDescriptorType,
)
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import ref

from ._current_calls import NOT_OPEN, method_named
from .errors import WrongEventLoopError

if TYPE_CHECKING:
    from .manager import ConnectionManager

__all__ = ["Current", "Learned"]

FUNCTIONS: Final = (
    MethodType,
    FunctionType,
    BuiltinFunctionType,
    MethodWrapperType,
    ClassMethodDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)


class Learned:
    """Facts about the connections of a manager. This object outlives the `Current`.

    Attributes:
        connection_type: The class of the last open connection.
        coroutine_names: The names of methods that returned a coroutine, or are coroutine functions.
    """

    def __init__(self, connection_type: type | None) -> None:
        self.connection_type = connection_type
        self.coroutine_names: set[str] = set()
        self._methods: dict[str, tuple[object, FunctionType]] = {}
        self._current: ref[Current] | None = None

    def existing(self) -> "Current | None":
        """Returns the `Current` of the manager, if anything refers to it."""
        return None if self._current is None else self._current()

    def current_of(self, manager: "ConnectionManager[object]") -> "Current":
        """Returns the `Current` of a manager, always the same. Call it while holding `claiming`."""
        current = self.existing()
        if current is None:
            current = Current(manager, self)
            self._current = ref(current)
        return current

    def method_for(self, name: str, value: object, *, is_of_class: bool = False) -> FunctionType:
        """Returns a method of `Current` for a function that was found under a name."""
        function: object = value.__func__ if isinstance(value, MethodType) else value
        known = self._methods.get(name)
        if known is not None and known[0] is function:
            return known[1]
        is_coroutine_function = iscoroutinefunction(function)
        if is_coroutine_function:
            self.coroutine_names.add(name)
        method = method_named(name, is_coroutine_function=is_coroutine_function)
        if issubclass(type(function), FUNCTIONS):  # a mock can pretend to be a function
            update_wrapper(method, cast("Callable[..., object]", function))
        if function is value:  # inspect.signature() would remove its first parameter
            method.__dict__.pop("__wrapped__", None)
        if function is not value or is_of_class:  # other functions may refer to one connection
            self._methods[name] = function, method
        return method

    def method_of_class(self, name: str, kind: type) -> FunctionType | None:
        """Returns a method of `Current` for a name, if the class or an earlier call identified it."""
        value: object = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
        if isinstance(value, classmethod | staticmethod):
            # Any: such an object can wrap any callable.
            function: Any = cast("Any", value).__func__
            value = MethodType(function, kind) if isinstance(value, classmethod) else function
        elif isinstance(value, FunctionType):
            value = MethodType(value, kind)  # as it will be found on a connection
        if isinstance(value, FUNCTIONS) or iscoroutinefunction(value):
            return self.method_for(name, value, is_of_class=True)
        return method_named(name) if name in self.coroutine_names else None  # the connection created it


def _class_of(current: "Current") -> type:
    declared: object = getattr(current.ownertask_manager, "connection_type", None)
    known = current.ownertask_learned.connection_type
    if known is not None:  # a metaclass may define `__bool__` or `__len__`
        return known
    return declared if isinstance(declared, type) else Current


# Any: the types depend on the connection.
def _passed_on(function: Callable[..., object]) -> Callable[..., Any]:
    def special_method(self: "Current", *args: object) -> object:
        return function(self.ownertask_manager.connection, *args)

    return special_method


class Current:
    """Passes each use on to the open connection of a manager. For type checkers it has that type."""

    __slots__ = ("__weakref__", "ownertask_learned", "ownertask_manager")

    ownertask_learned: Learned
    ownertask_manager: "ConnectionManager[object]"

    def __init__(self, manager: "ConnectionManager[object]", learned: Learned) -> None:
        object.__setattr__(self, "ownertask_manager", manager)
        object.__setattr__(self, "ownertask_learned", learned)

    # Any: the types depend on the connection.
    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        learned = self.ownertask_learned
        try:
            connection = self.ownertask_manager.connection
        except NOT_OPEN as error:
            method = learned.method_of_class(name, _class_of(self))
            if method is not None:
                return MethodType(method, self)
            if name.startswith("_"):
                raise AttributeError(f"{self!r} has no attribute {name!r}") from error
            raise
        value = getattr(connection, name)
        if isinstance(value, FUNCTIONS) or iscoroutinefunction(value):
            return MethodType(learned.method_for(name, value), self)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.ownertask_manager.connection, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.ownertask_manager.connection, name)

    def __dir__(self) -> Iterable[str]:
        try:
            return dir(self.ownertask_manager.connection)
        except (*NOT_OPEN, WrongEventLoopError):
            return dir(_class_of(self))

    def __repr__(self) -> str:
        return f"<current connection of {self.ownertask_manager!r}>"

    def __bool__(self) -> bool:
        try:
            return bool(self.ownertask_manager.connection)
        except Exception:  # noqa: BLE001 - a foreign method may raise anything
            return True

    def __deepcopy__(self, _memo: object) -> "Current":
        return self

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, str]]:
        return getattr, (self.ownertask_manager, "current")

    def __call__(self, *args: object, **kwargs: object) -> object:  # noqa: D102
        method = self.ownertask_learned.method_of_class("__call__", _class_of(self)) or CALL
        return method(self, *args, **kwargs)

    __getitem__: Callable[..., Any] = _passed_on(operator.getitem)
    __setitem__: Callable[..., Any] = _passed_on(operator.setitem)
    __delitem__: Callable[..., Any] = _passed_on(operator.delitem)
    __contains__: Callable[..., Any] = _passed_on(operator.contains)
    __len__: Callable[..., Any] = _passed_on(len)
    __iter__: Callable[..., Any] = _passed_on(iter)
    __reversed__: Callable[..., Any] = _passed_on(reversed)
    __aiter__: Callable[..., Any] = _passed_on(aiter)

    if not TYPE_CHECKING:
        __class__ = property(_class_of)


CALL: Final = method_named("__call__")
