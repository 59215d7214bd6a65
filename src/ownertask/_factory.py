"""A manager for the async context managers that a function returns; see `from_factory()`."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncContextDecorator
from functools import partial
from itertools import count
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Final, TypeVar, cast

from typing_extensions import override

from ._arguments import checked_opened, checked_reconnect, checked_timeout, checked_watch
from ._call_stack import place
from .manager import ConnectionManager
from .policy import ReconnectPolicy

__all__ = ["FactoryConnectionManager"]

T_co = TypeVar("T_co", covariant=True)

_serial_numbers: Final = count(1)


class FactoryConnectionManager(ConnectionManager[T_co]):
    """Calls a function for each run."""

    def __init__(
        self,
        factory: Callable[[], AbstractAsyncContextManager[T_co]],
        *,
        name: str | None,
        start_timeout: float | None,
        reconnect: ReconnectPolicy | None,
        watch: Callable[[T_co], Awaitable[object]] | None,
    ) -> None:
        """Creates a manager; see `ConnectionManager.from_factory()`."""
        # A context manager from @asynccontextmanager is callable, because it is also a decorator.
        if not callable(factory) or isinstance(factory, AsyncContextDecorator):
            hint = ""
            if isinstance(factory, AbstractAsyncContextManager):
                hint = "; pass the function that returns it, without calling it"
            raise TypeError(f"factory must be callable, not {type(factory).__name__}{hint}")
        self._factory_name = _name_of(factory)
        super().__init__(name=f"from_factory({self._factory_name})" if name is None else name)
        self._factory = factory
        self.start_timeout = checked_timeout("start_timeout", start_timeout)
        self.reconnect = checked_reconnect(reconnect)
        if checked_watch(watch) is not None:
            self.watch = watch

    @override
    def open_connection(self) -> AbstractAsyncContextManager[T_co]:
        return checked_opened(self._factory(), self._factory_name)


def _name_of(factory: object) -> str:
    """Returns the name of a function. Other factories get a number, because many may look the same."""
    function = factory
    for _ in range(9):  # a partial may contain itself
        if isinstance(function, partial):
            function = cast("partial[object]", function).func
        elif isinstance(function, MethodType):
            function = function.__func__
        else:
            break
    is_named = isinstance(function, FunctionType | BuiltinFunctionType | type)
    name = str(getattr(function if is_named else type(function), "__name__", "?"))
    if isinstance(function, FunctionType) and name == "<lambda>":
        name = f"<lambda> in {place(function.__code__, function.__code__.co_firstlineno)}"
    elif is_named and function is factory:
        return name
    return f"{name} #{next(_serial_numbers)}"
