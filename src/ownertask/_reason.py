"""Extracts the reason for a failure as text, from an exception of any class.

All methods and attributes of an exception may be overridden, and may raise. So these functions use what
`BaseException` itself defines, walk without recursion, and visit each exception only once.
"""

from typing import Any, Final, TypeGuard, TypeVar

__all__ = ["exceptions_of", "is_a", "is_group", "leaves", "reason", "related", "text_of"]

E = TypeVar("E", bound=BaseException)

# Any: descriptors. Looking up the attributes on the exception itself could call overridden methods.
_cause: Final[Any] = BaseException.__dict__["__cause__"]
_context: Final[Any] = BaseException.__dict__["__context__"]
_exceptions: Final[Any] = BaseExceptionGroup.__dict__["exceptions"]
_bases: Final[Any] = type.__dict__["__mro__"]
_type_name: Final[Any] = type.__dict__["__name__"]

LEAVES_SHOWN: Final = 3
"""The number of exceptions in a group whose texts are shown."""


def is_a(error: BaseException, kind: type[E]) -> TypeGuard[E]:
    """Returns whether `error` is a `kind`. `isinstance()` could call an overridden method."""
    return any(base is kind for base in _bases.__get__(type(error)))


def is_group(error: BaseException) -> "TypeGuard[BaseExceptionGroup[BaseException]]":
    """Returns whether `error` is an exception group."""
    return is_a(error, BaseExceptionGroup)


def exceptions_of(group: "BaseExceptionGroup[BaseException]") -> tuple[BaseException, ...]:
    """Returns the exceptions that a group holds directly."""
    exceptions: tuple[BaseException, ...] = _exceptions.__get__(group)
    return exceptions


def leaves(error: BaseException | None) -> list[BaseException]:
    """Returns the exceptions in a group, at any depth, each once; or only the exception itself."""
    found: list[BaseException] = []
    seen: set[int] = set()
    unseen = [] if error is None else [error]
    while unseen:
        this = unseen.pop()
        if id(this) in seen:
            continue
        seen.add(id(this))
        if is_group(this):
            unseen.extend(reversed(exceptions_of(this)))
        else:
            found.append(this)
    return found


def related(error: BaseException) -> list[BaseException]:
    """Returns an exception, its causes and contexts, and the exceptions in groups, each once."""
    found: list[BaseException] = []
    seen: set[int] = set()
    unseen: list[BaseException | None] = [error]
    while unseen:
        this = unseen.pop()
        if this is None or id(this) in seen:
            continue
        seen.add(id(this))
        found.append(this)
        unseen += [_context.__get__(this), _cause.__get__(this)]
        if is_group(this):
            unseen.extend(exceptions_of(this))
    return found


def reason(error: BaseException) -> str:
    """Returns the text of an exception, or of the exceptions in a group, in one line.

    If an exception has no text, returns the text of its cause, or else the name of its type. Leaves out
    user info and queries of URLs, which may be secret.
    """
    all_leaves = leaves(error)
    texts = list(dict.fromkeys(_reason_of_leaf(this) for this in all_leaves[:LEAVES_SHOWN]))
    if len(all_leaves) > LEAVES_SHOWN:
        texts.append(f"and {len(all_leaves) - LEAVES_SHOWN} more")
    return "; ".join(texts)


def _reason_of_leaf(leaf: BaseException) -> str:
    seen: set[int] = set()
    error: BaseException | None = leaf
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = " ".join(line.strip() for line in text_of(error).splitlines()).strip()
        if text:
            # The text of a KeyError is only the key.
            return _without_secrets(f"KeyError: {text}" if type(error) is KeyError else text)
        cause: BaseException | None = _cause.__get__(error)
        # The cause of a timeout is a cancellation, which explains nothing.
        error = leaves(cause)[0] if cause is not None and is_a(cause, Exception) else None
    name: str = _type_name.__get__(type(leaf))
    return name


def text_of(error: BaseException) -> str:
    """Returns the text of an exception, or an empty string if `str()` raises."""
    try:
        return str(error)
    except BaseException:  # noqa: BLE001 - a foreign method may raise anything
        return ""


def _without_secrets(text: str) -> str:
    if "://" not in text:
        return text
    # Importing `re` takes a while, and most programs lose no connection.
    import re

    return re.sub(r"://(?:[^\s'\"<>]*@)?([^\s?#'\"<>]*)[^\s'\"<>]*", r"://\1", text)
