"""Reads the values of options, which may refer to an environment variable or to a file.

The errors name the option and show no value, because any value may be a secret.
"""

import os
import re
from pathlib import Path
from typing import Final

__all__ = ["UsageError", "header_from", "resolved", "variable_from"]

REFERENCE: Final = re.compile(r"(env|file):(.*)", re.DOTALL)

SCHEME: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+ +)?(.*)", re.DOTALL)
"""An authentication scheme and its parameter, as in `Bearer env:TOKEN`."""


MAX_CHARACTERS: Final = 2**16
"""The maximum length of a file that an option refers to."""


class UsageError(Exception):
    """The command line or a configuration file is wrong. The text is one line."""


def resolved(option: str, value: str) -> str:
    """Returns the value itself, or the value to which `env:NAME` or `file:PATH` refers.

    A line break at the end of a file is dropped.

    Raises:
        UsageError: The variable is not set, or the file cannot be read.
    """
    match = REFERENCE.fullmatch(value)
    if match is None:
        return value
    kind, name = match.groups()
    if kind == "env":
        if not name or "=" in name or "\0" in name:
            raise UsageError(f"{option}: env: must be followed by the name of a variable")
        if name not in os.environ:
            raise UsageError(f"{option}: the variable {name!r} is not set")
        return os.environ[name]
    if not name or "\0" in name:
        raise UsageError(f"{option}: file: must be followed by the path of a file")
    try:
        with Path(name).open(encoding="utf-8-sig") as file:
            value = file.read(MAX_CHARACTERS + 1)
        if len(value) <= MAX_CHARACTERS:
            return value.removesuffix("\n")
        problem = f"longer than {MAX_CHARACTERS} characters"
    except OSError as error:
        problem = str(error.strerror)
    except UnicodeDecodeError:
        problem = "not encoded in UTF-8"
    raise UsageError(f"{option}: cannot read {name!r}: {problem}")


def header_from(text: str) -> tuple[str, str]:
    """Returns the name and the value of a header.

    Raises:
        UsageError: The text has no colon or no name, or a reference cannot be resolved.
    """
    name, colon, value = text.partition(":")
    name = name.strip()
    if not colon or not name:
        raise UsageError("--header must be 'NAME: VALUE', with a colon after the name")
    match = SCHEME.fullmatch(value.strip())
    assert match is not None
    option = f"--header {name}"
    if match[1] and REFERENCE.fullmatch(match[2]):
        return name, match[1] + resolved(option, match[2])
    return name, resolved(option, value.strip())


def variable_from(text: str) -> tuple[str, str]:
    """Returns the name and the value of an environment variable for the server.

    Raises:
        UsageError: The text has no equals sign or no name, or a reference cannot be resolved.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError("--env must be NAME=VALUE, with an equals sign after the name")
    value = resolved(f"--env {name}", value)
    if "\0" in name + value:
        raise UsageError("--env must not contain NUL characters")
    return name, value
