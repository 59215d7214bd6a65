"""The results of a check, as data."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Final, cast

from ..errors import ConnectionManagerError
from ..mcp import ServerExitedError
from .masking import Mask
from .troubles import trouble_of

__all__ = [
    "Failure",
    "Report",
    "ServerInfo",
    "as_json",
    "failure_from",
    "in_one_line",
    "stderr_of",
    "text_of",
]

STDERR: Final = "; its stderr ended with "
"""Separates the exit of a server from the end of its stderr in the text of an error."""

ADVICE: Final = "\nFor more information check: "
"""The second line of an `HTTPStatusError`, which links to a page on HTTP statuses."""

INPUT: Final = re.compile(r" \[type=\w+, input_value=.*?, input_type=\w+\]", re.DOTALL)
"""Matches a rejected value in an error of Pydantic, which may show only the two ends of a secret."""

LAST_CHARACTERS: Final = 200

TAIL_BYTES: Final = 8192
"""The length at which a `stderr_tail` is cut off, in bytes."""

OWN_NOTES: Final = ("ownertask: raised by ", "the server's stderr ended with:")
"""The beginnings of notes that only repeat other parts of the report."""


@dataclass
class Failure:
    """Describes why a check failed.

    Attributes:
        phase: The phase that failed.
        type: The name of the exception's class.
        message: The text of the exception, without secrets and without the name of the manager.
        notes: The notes of the exception, without secrets.
        transport: One of `TRANSPORTS`.
        kinds: The names of the classes of the exception and of its causes, with their base classes.
        unmasked: The text and the notes with their secrets. A secret may be a common word, without which
            the kind of the failure would not be recognized.
    """

    phase: str
    type: str
    message: str
    notes: list[str]
    transport: str
    kinds: frozenset[str]
    unmasked: tuple[str, ...] = ()


@dataclass
class ServerInfo:
    """Contains what a server reported about itself in the handshake."""

    name: str
    version: str
    protocol: str
    capabilities: list[str]


@dataclass
class Report:
    """Describes a server and its connections. It contains no secrets.

    Attributes:
        seconds: The durations of each phase, one for each connection.
        stderr: The end of the server's stderr.
        remarks: Findings that are not failures.
    """

    name: str
    transport: str
    seconds: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    connections: int = 0
    server: ServerInfo | None = None
    tools: list[str] | None = None
    resources: list[str] | None = None
    prompts: list[str] | None = None
    stderr: str = ""
    remarks: list[str] = field(default_factory=list[str])
    failure: Failure | None = None

    @property
    def is_ok(self) -> bool:
        """`True` if nothing failed, and at least one connection worked."""
        return self.failure is None and self.connections > 0


def failure_from(error: BaseException, phase: str, transport: str, mask: Mask) -> Failure:
    """Describes an exception."""
    first = _first_leaf(error)
    code = getattr(getattr(first, "error", None), "code", None)
    notes = [note for note in getattr(error, "__notes__", ()) if not note.startswith(OWN_NOTES)]
    if isinstance(code, int):
        notes.append(f"the JSON-RPC error code is {code}")
    return Failure(
        phase,
        type(first).__name__,
        text_of(first, mask),
        [in_one_line(mask(note)) for note in notes],
        transport,
        frozenset(kind.__name__ for this in _related(first) for kind in type(this).__mro__),
        (text_of(first, Mask(())), *notes),
    )


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def _related(error: BaseException) -> Iterator[BaseException]:
    """Returns an exception, its causes and contexts, and the exceptions in groups, each once."""
    seen: set[int] = set()
    unseen: list[BaseException | None] = [error]
    while unseen:
        this = unseen.pop()
        if this is not None and id(this) not in seen:
            seen.add(id(this))
            yield this
            unseen += [this.__context__, this.__cause__]
            if isinstance(this, BaseExceptionGroup):
                unseen += cast("BaseExceptionGroup[BaseException]", this).exceptions


def text_of(error: BaseException, mask: Mask) -> str:
    """Returns the text of an exception, without secrets and without the name of its manager."""
    text = str(error).partition(ADVICE)[0]
    if isinstance(error, ConnectionManagerError):
        text = text.removeprefix(f"{error.name}: ")
    exited = error.__cause__ if error.__cause__ is not None else error
    if isinstance(exited, ServerExitedError) and exited.stderr_tail:
        # The text has only the end of a long line, which can begin in the middle of a secret.
        lines = stderr_of(exited.stderr_tail, mask).strip().split("\n")
        text = f"{text.partition(STDERR)[0]}{STDERR}{lines[-1].strip()[-LAST_CHARACTERS:]!r}"
    return in_one_line(mask(text)) or type(error).__name__


def stderr_of(tail: str, mask: Mask) -> str:
    """Returns the end of a server's stderr without secrets."""
    # If it is a part of one line, it may begin in the middle of a secret.
    is_cut = len(tail.encode(errors="replace")) >= TAIL_BYTES
    return mask.end(tail) if is_cut else mask(tail)


def in_one_line(text: str) -> str:
    """Returns a text in one line, without the rejected values that Pydantic quotes."""
    return " ".join(INPUT.sub("", text).split())


def as_json(report: Report) -> dict[str, object]:
    """Returns a report for `json.dumps()`."""
    failure = report.failure
    described: dict[str, object] | None = None
    if failure is not None:
        trouble = trouble_of(failure)
        described = {
            "phase": failure.phase,
            "type": failure.type,
            "message": failure.message,
            "notes": failure.notes,
            "cause": trouble.cause,
            "try": list(trouble.steps),
        }
    return {
        "name": report.name,
        "transport": report.transport,
        "ok": report.is_ok,
        "connections": report.connections,
        "phases": [
            {"name": phase, "seconds": median(values), "min": min(values), "max": max(values)}
            for phase, values in report.seconds.items()
        ],
        "server": None if report.server is None else asdict(report.server),
        "tools": report.tools,
        "resources": report.resources,
        "prompts": report.prompts,
        "stderr": report.stderr,
        "remarks": report.remarks,
        "failure": described,
    }
