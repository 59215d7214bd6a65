"""Reads, checks and expands the values of a configuration.

The errors name a place and show no value, because any value may be a secret. They also have no cause or
context that contains one, so they are raised after an `except` block, not inside it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast

__all__ = ["invalid", "members_of", "parsed_file", "seconds_from", "text_from"]

MIN_MILLISECONDS: Final = 1000
"""Smaller numbers are probably seconds. Claude Code ignores them."""

MAX_MILLISECONDS: Final = 2**31 - 1
"""The longest timer of JavaScript, in which most clients are written."""

# Also matches a `${` that begins no supported expression. The group `name` is then `None`.
VARIABLE: Final = re.compile(
    r"""\$\{(?:
        (?:env:)?(?P<name>[A-Z_a-z][0-9A-Z_a-z]*)
        (?::-(?P<default>(?:(?!\$\{)[^}])*))?
    \})?""",
    re.VERBOSE,
)


class JsonObject(dict[str, object]):
    """A JSON object that remembers a repeated key. A `dict` would silently keep the last value."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs)
        self.repeated: str | None = next((key for key in counts if counts[key] > 1), None)


def invalid(place: str, problem: str) -> ValueError:
    """Returns the error for a value that cannot be used."""
    return ValueError(f"{place}: {problem}")


def parsed_file(path: str | os.PathLike[str]) -> object:
    """Returns the value in a JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It does not contain JSON in UTF-8.
    """
    if isinstance(path, str) and (path.lstrip(" \ufeff").startswith("{") or "\n" in path):
        # Otherwise the error for a missing file would show all of the text.
        raise invalid("config", "must be a path, not JSON text; pass json.loads(text) instead")
    content = Path(path).read_bytes()
    try:
        return cast("object", json.loads(content.decode("utf-8-sig"), object_pairs_hook=JsonObject))
    except json.JSONDecodeError as error:
        problem = f"not valid JSON: line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError:
        problem = "not encoded in UTF-8"
    except (ValueError, RecursionError):  # a number with too many digits, or lists nested too deeply
        problem = "not valid JSON"
    raise invalid(repr(os.fspath(path)), problem)


def members_of(place: str, value: object) -> Mapping[str, object]:
    """Returns `value` if it is a mapping with strings as keys.

    Raises:
        ValueError: It is something else, or a JSON object with a repeated key.
    """
    if not isinstance(value, Mapping):
        raise invalid(place, "must be an object")
    if isinstance(value, JsonObject) and value.repeated is not None:
        raise invalid(place, f"the key {value.repeated!r} occurs more than once")
    members = cast("Mapping[object, object]", value)
    if not all(isinstance(key, str) for key in members):
        raise invalid(place, "every key must be a string")
    return cast("Mapping[str, object]", members)


def text_from(place: str, value: object, environment: Mapping[str, str]) -> str:
    """Returns `value` with its variables replaced, if it is a string.

    Raises:
        ValueError: It is not a string, or a variable is not set.
    """

    def replacement(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if name is None:
            raise invalid(place, "'${' must be the beginning of ${VAR}, ${VAR:-default} or ${env:VAR}")
        variable = environment.get(name)
        if variable is not None and not isinstance(variable, str):
            raise TypeError(f"environment: the variable {name!r} must be a string")
        if default is not None:
            return variable or default
        if variable is None:
            raise invalid(place, f"the variable {name!r} is not set")
        return variable

    if not isinstance(value, str):
        raise invalid(place, "must be a string")
    text = VARIABLE.sub(replacement, value)
    if "\0" in text:
        raise invalid(place, "must not contain NUL characters")
    return text


def seconds_from(place: str, value: object) -> float:
    """Returns a number of milliseconds in seconds.

    Raises:
        ValueError: It is not a number from `MIN_MILLISECONDS` to `MAX_MILLISECONDS`.
    """
    milliseconds = value if isinstance(value, int | float) else 0
    # Booleans and NaN are not in this range, either.
    if not MIN_MILLISECONDS <= milliseconds <= MAX_MILLISECONDS:
        raise invalid(
            place,
            f"must be a number of milliseconds from {MIN_MILLISECONDS} to {MAX_MILLISECONDS}; multiply "
            "by 1000 if the file is from a client that uses seconds",
        )
    return milliseconds / 1000
