"""Exceptions that misbehave when they are touched, or that are hard to walk through."""

from functools import partial

DEPTH = 3000


class Custom(BaseException):
    """Not an `Exception`."""


def odd_class(base, method, error):
    def misbehave(*_, **__):
        raise error("touched")

    return type(f"Odd{base.__name__}", (base,), {method: misbehave})


def odd_error(method, error):
    return odd_class(Exception, method, error)("odd")


def odd_group(method, error, leaves):
    return odd_class(ExceptionGroup, method, error)("odd", [OSError(n) for n in range(leaves)])


def nested(error):
    for _ in range(DEPTH):
        error = ExceptionGroup("nested", [error])
    return error


def from_itself():
    error = OSError()
    error.__cause__ = error
    return error


def from_each_other():
    first, second = OSError(), OSError()
    first.__cause__, second.__cause__ = second, first
    return first


def caused_by_many(attribute):
    error = first = OSError()
    for _ in range(DEPTH):
        cause = OSError()
        setattr(error, attribute, cause)
        error = cause
    return first


def with_notes(notes):
    error = OSError("noted")
    error.__notes__ = notes
    return error


METHODS = ["__getattr__", "__str__", "__repr__", "__eq__", "__hash__", "__bool__", "__len__"]
METHODS += ["add_note", "with_traceback", "__setattr__", "__delattr__", "__reduce__", "__copy__"]
GROUP_METHODS = ["derive", "split", "subgroup", "__str__", "__getattr__", "add_note"]

# Python replaces the first two when they leave a coroutine, and the others when they pass through an
# @asynccontextmanager, which sets an attribute of each exception.
REPLACED = {"StopIteration", "StopAsyncIteration", "__setattr__ raises", "__setattr__ raises Custom"}

ODD = {
    **{f"{method} raises": partial(odd_error, method, KeyError) for method in METHODS},
    **{f"{method} raises Custom": partial(odd_error, method, Custom) for method in METHODS},
    **{f"group of one, {name} raises": partial(odd_group, name, KeyError, 1) for name in GROUP_METHODS},
    **{f"group of two, {name} raises": partial(odd_group, name, KeyError, 2) for name in GROUP_METHODS},
    "nested": lambda: nested(OSError("deep")),
    "nested odd": lambda: nested(odd_error("__getattr__", KeyError)),
    "nested group": lambda: nested(ExceptionGroup("two", [OSError(1), OSError(2)])),
    "nested Custom": lambda: BaseExceptionGroup("one", [Custom("deep")]),
    "from itself": from_itself,
    "from each other": from_each_other,
    "a chain of causes": partial(caused_by_many, "__cause__"),
    "a chain of contexts": partial(caused_by_many, "__context__"),
    "notes that are not a list": partial(with_notes, 7),
    "notes that are not strings": partial(with_notes, [b"bytes", None]),
    "a BaseException": lambda: Custom("not an Exception"),
    "GeneratorExit": lambda: GeneratorExit("a request to end"),
    "StopIteration": lambda: StopIteration("stop"),
    "StopAsyncIteration": lambda: StopAsyncIteration("stop"),
    "no arguments": OSError,
}


def leaf_of(error):
    """Returns the exception at the bottom of groups that hold a single exception."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
