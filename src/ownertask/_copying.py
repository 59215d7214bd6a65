"""Access to the attributes that a copy of a manager gets."""

from typing import cast

__all__ = ["attributes_in"]


def attributes_in(state: object) -> dict[str, object]:
    """Returns the attributes in the result of a manager's `__getstate__()`. They may be changed."""
    if isinstance(state, tuple):  # __dict__ and the values of a subclass's __slots__
        state = cast("tuple[object, object]", state)[0]
    return cast("dict[str, object]", state)
