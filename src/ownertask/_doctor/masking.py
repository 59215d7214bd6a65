"""Hides the secrets that the user passed, wherever they occur in a text.

A server can repeat its arguments, variables and headers in its stderr, in an error, or even in the name
of a tool. Each secret is replaced with a label, such as `<header Authorization>`.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mcp import StdioServerParameters

__all__ = [
    "Mask",
    "secrets_in_headers",
    "secrets_in_parameters",
    "secrets_in_references",
    "secrets_in_url",
]

MIN_CHARACTERS: Final = 4
"""Shorter values, such as `1` and `on`, occur everywhere, and are not treated as secrets."""

WORD_CHARACTERS: Final = 8
"""A shorter value that consists of letters is replaced only where it is a whole word."""

NAMED_VALUE: Final = re.compile(r"[\w-]+\s*[:=]\s*(\S.*)", re.DOTALL)
"""An argument such as `Authorization: Bearer ...` or `KEY=...`."""

PARAMETER: Final = re.compile(r'=\s*"?([^\s",;]+)')
"""Matches a value in a header such as `Cookie: session=...`."""


class Mask:
    """Replaces secrets with labels that show where they came from."""

    def __init__(self, secrets: Iterable[tuple[str, str]]) -> None:
        """Creates a mask.

        Args:
            secrets: Pairs of a secret and where it came from.
        """
        self._labels: dict[str, str] = {}
        for secret, place in secrets:
            for form in _forms_of(secret):
                self._labels.setdefault(form, f"<{place}>")
        longest_first = sorted(self._labels, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_pattern_of, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """Returns the text with each secret replaced."""
        return self._pattern.sub(lambda match: self._labels[match[0]], text)

    def end(self, text: str) -> str:
        """Masks a text whose beginning was cut off, possibly in the middle of a secret."""
        for secret, label in self._labels.items():
            for length in range(min(len(secret) - 1, len(text)), MIN_CHARACTERS - 1, -1):
                if text.startswith(secret[-length:]):
                    return label + self(text[length:])
        return self(text)


def _forms_of(secret: str) -> Iterator[str]:
    """Returns a secret as it appears in texts: plain, in literals of Python and JSON, and in URLs."""
    plain = secret.strip()
    in_path, in_query = (quote(plain, safe, errors="surrogateescape") for safe in ("/", ""))
    for form in (plain, repr(plain)[1:-1], json.dumps(plain)[1:-1], in_path, in_query):
        if len(form) >= MIN_CHARACTERS:
            yield form


def _pattern_of(secret: str) -> str:
    pattern = re.escape(secret)
    is_word = secret.isalpha() and len(secret) < WORD_CHARACTERS
    return rf"\b{pattern}\b" if is_word else pattern


def secrets_in_headers(headers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Returns the secrets in HTTP headers, with their places."""
    for name, value in headers.items():
        place = f"header {name}"
        yield value, place
        for word in value.split()[1:]:  # the first word may be the name of a scheme
            yield word, place
        for match in PARAMETER.finditer(value):
            yield match[1], place
        if value.lower().startswith("basic "):
            with suppress(ValueError):  # not base64
                decoded = b64decode(value[6:]).decode()
                for secret in (decoded, *decoded.split(":", 1)):
                    yield secret, place


def secrets_in_url(url: str) -> Iterator[tuple[str, str]]:
    """Returns the secrets in a URL, with their places."""
    try:
        parts = urlsplit(url)
    except ValueError:  # invalid brackets
        return
    user_info = parts.netloc.rpartition("@")[0]
    if user_info:
        decoded = unquote(user_info)
        # As in an `Authorization` header.
        encoded = b64encode(decoded.encode(errors="surrogateescape")).decode()
        for secret in (user_info, decoded, encoded, *user_info.split(":", 1), *decoded.split(":", 1)):
            yield secret, "user info"
    if parts.query:
        yield parts.query, "query"
        for pair in parts.query.split("&"):
            name, equals, value = pair.partition("=")
            yield value if equals else name, "query"
        for _, value in parse_qsl(parts.query):
            yield value, "query"


def secrets_in_references(references: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Returns the secrets in texts that were passed by reference, with their places."""
    for place, text in references.items():
        if not _exists(".", text):
            yield text, place
            with suppress(ValueError):  # invalid brackets
                url = urlsplit(text)
                if url.netloc:  # the path of a URL may contain a token
                    yield url.path, place


def secrets_in_parameters(parameters: StdioServerParameters) -> Iterator[tuple[str, str]]:
    """Returns the secrets in the environment, the arguments and the command of a server."""
    for name, value in (parameters.env or {}).items():
        yield value, f"env {name}"
    # A whole command line instead of a command is a common mistake.
    program, *words = parameters.command.split()
    # A variable in front of the command, as in a shell, is another one.
    places = [("command", word) for word in (program.partition("=")[2], *words)]
    places += [(f"argument {number}", word) for number, word in enumerate(parameters.args, 1)]
    folder = str(parameters.cwd or ".")
    for place, word in places:
        for secret in _secrets_in_argument(word):
            # An error without the paths of files would be of little use.
            if not _exists(folder, secret):
                yield secret, place


def _secrets_in_argument(argument: str) -> Iterator[str]:
    value = argument.partition("=")[2] if argument.startswith("-") else argument
    yield value
    match = NAMED_VALUE.fullmatch(value)
    if match is not None and "\n" not in value:
        yield match[1]
        yield from match[1].split()[1:]  # the first word may be the name of a scheme
    if "://" in value:
        for secret, _ in secrets_in_url(value):
            yield secret


def _exists(folder: str, path: str) -> bool:
    try:
        return Path(folder, path).exists()
    except (OSError, ValueError):  # the path is too long, or contains NUL
        return False
