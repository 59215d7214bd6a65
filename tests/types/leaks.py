"""The types of `Resources`."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

from ownertask.testing import Resources


async def leaks() -> None:
    before = Resources()
    before.look()
    assert_type(await before.left(), list[str])
    assert_type(await before.left(within=1), list[str])
    await before.left(None)  # type: ignore[arg-type]
