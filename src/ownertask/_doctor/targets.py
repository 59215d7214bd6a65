"""The servers to open: from the command line, or from a configuration file."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from mcp import StdioServerParameters
from typing_extensions import override

from ..manager import ConnectionManager
from ..mcp import (
    SessionOptions,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    TransportStreams,
    WebSocketConnectionManager,
    managers_from_config,
)
from .masking import (
    Mask,
    secrets_in_headers,
    secrets_in_parameters,
    secrets_in_references,
    secrets_in_url,
)
from .values import UsageError, header_from, resolved, variable_from

__all__ = ["TRANSPORTS", "Target", "mask_for", "target_from_arguments", "targets_from_config"]

TRANSPORTS: Final = ("stdio", "http", "sse", "ws")

HEADERS: Final = re.compile(r"^headers(?:\['(.*)'\])?")
"""Matches the place of a header in an error of a transport manager."""


@dataclass
class Target:
    """A server.

    Attributes:
        name: The name in the report.
        transport: The manager that opens the transport.
        kind: One of `TRANSPORTS`.
        options: The options of the session.
        references: The texts that come from environment variables or files, by their places.
    """

    name: str
    transport: ConnectionManager[TransportStreams]
    kind: str
    options: SessionOptions = field(default_factory=SessionOptions)
    references: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        if isinstance(self.transport, StdioConnectionManager):
            self.transport.errlog = _Nowhere()


class _Nowhere:
    """Discards the stderr of a server. The manager keeps the end of it."""

    def write(self, text: str, /) -> None:
        """Discards a text."""


def target_from_arguments(
    kind: str, words: Sequence[str], headers: Iterable[str], variables: Iterable[str]
) -> Target:
    """Returns the server that the command line describes.

    Args:
        kind: One of `TRANSPORTS`.
        words: The command and its arguments, or the URL.
        headers: The values of `--header`.
        variables: The values of `--env`.

    Raises:
        UsageError: One of these is wrong.
    """
    if kind == "stdio":
        if headers:
            raise UsageError("--header cannot be used with stdio")
        return _stdio_target(words, _unique("--env", map(variable_from, variables)))
    if variables:
        raise UsageError(f"--env cannot be used with {kind}; it sets a variable of a stdio server")
    if len(words) != 1:
        problem = "is missing" if not words else "must be the only argument"
        raise UsageError(f"the URL after {kind!r} {problem}")
    url = resolved("URL", words[0])
    try:
        transport = _url_transport(kind, url, _unique("--header", map(header_from, headers)))
    except ValueError as error:
        problem = HEADERS.sub(lambda match: f"--header {match[1] or ''}".rstrip(), str(error))
        problem = re.sub("^url must", "the URL must", problem.replace("be a URL that starts", "start"))
    except ImportError as error:
        problem = str(error)
    else:
        references = {words[0]: url} if url != words[0] else {}
        name = urlsplit(url).netloc.rpartition("@")[2]
        return Target(name, transport, kind, references=references)
    raise UsageError(problem)


def _unique(option: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    names: set[str] = set()
    for name, value in pairs:
        key = name.lower() if option == "--header" else name
        if key in names:
            raise UsageError(f"{option} {name} occurs more than once")
        names.add(key)
        found[name] = value
    return found


def _stdio_target(words: Sequence[str], variables: dict[str, str]) -> Target:
    if not words or not words[0]:
        raise UsageError("the command of the server is missing: stdio -- COMMAND [ARG ...]")
    parameters = StdioServerParameters(
        command=words[0], args=list(words[1:]), env=variables or None, cwd=None
    )
    try:
        transport = StdioConnectionManager(parameters)
    except ValueError as error:
        problem = str(error)
    else:
        # It may be a whole command line, so show only its first word, without the value of a variable.
        first = words[0].split()[0].partition("=")[0]
        return Target(re.split(r"[/\\]", first)[-1] or "server", transport, "stdio")
    raise UsageError(problem.replace("server_params.", "").replace(" .", " "))


def _url_transport(kind: str, url: str, headers: dict[str, str]) -> ConnectionManager[TransportStreams]:
    if kind == "http":
        return StreamableHttpConnectionManager(url, headers)
    if kind == "sse":
        return SseConnectionManager(url, headers)
    return WebSocketConnectionManager(url, headers)


def targets_from_config(path: str) -> list[Target]:
    """Returns the servers of a configuration file.

    Raises:
        UsageError: The file cannot be read or is invalid, or no server in it is enabled.
    """
    variables = _Variables()
    try:
        managers = managers_from_config(path, environment=variables)
    except OSError as error:
        problem = f"cannot read {path!r}: {error.strerror}"
    except (ValueError, ImportError) as error:
        problem = str(error)
    else:
        if not managers:
            raise UsageError(f"--config: no server in {path!r} is enabled")
        references = {f"variable {name}": value for name, value in variables.read.items()}
        return [
            Target(name, manager.transport, _kind_of(manager.transport), manager.options, references)
            for name, manager in managers.items()
        ]
    raise UsageError(f"--config: {problem}")


class _Variables(Mapping[str, str]):
    """The environment. It records which variables were read."""

    def __init__(self) -> None:
        self.read: dict[str, str] = {}

    @override
    def __getitem__(self, name: str) -> str:
        self.read[name] = os.environ[name]
        return self.read[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(os.environ)

    @override
    def __len__(self) -> int:
        return len(os.environ)


def _kind_of(transport: ConnectionManager[TransportStreams]) -> str:
    if isinstance(transport, StdioConnectionManager):
        return "stdio"
    if isinstance(transport, StreamableHttpConnectionManager):
        return "http"
    return "sse" if isinstance(transport, SseConnectionManager) else "ws"


def mask_for(targets: Iterable[Target]) -> Mask:
    """Returns a mask for the secrets of all servers."""
    return Mask(secret for target in targets for secret in _secrets_of(target))


def _secrets_of(target: Target) -> Iterator[tuple[str, str]]:
    yield from secrets_in_references(target.references)
    transport = target.transport
    if isinstance(transport, StdioConnectionManager):
        yield from secrets_in_parameters(transport.server_params)
    elif isinstance(
        transport,
        StreamableHttpConnectionManager | SseConnectionManager | WebSocketConnectionManager,
    ):
        yield from secrets_in_url(transport.url)
        if transport.headers is not None and not callable(transport.headers):
            yield from secrets_in_headers(transport.headers)
