"""The arguments of the program.

A wrong argument raises a `UsageError`, whose text never shows a value that may be secret.
"""

import math
import re
from argparse import (
    SUPPRESS,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from platform import python_version
from typing import Final, NoReturn

from typing_extensions import override

from .. import __version__
from .targets import TRANSPORTS, Target, target_from_arguments, targets_from_config
from .values import UsageError

__all__ = ["Arguments", "arguments_from"]

TIMEOUT: Final = 60.0
"""Seconds. Starting a server with `npx` or `uvx` for the first time can take that long."""

MAX_REPEAT: Final = 1_000_000

SHOWN: Final = re.compile(r"--?[a-z][a-z-]{0,30}|[a-z]{1,12}")
"""Matches the arguments that an error may show. Others may be secrets."""

ABOUT: Final = """\
Shows whether MCP servers work, and if not, why.

commands:
  check       open a connection, list what the server offers, and close it
  watch       keep connections open, and show each change

examples:
  ownertask check stdio -- python server.py
  ownertask check http URL --header "Authorization: Bearer env:TOKEN"
  ownertask check --config mcp.json
  ownertask watch --config mcp.json
"""

USAGE: Final = """\
ownertask {command} [OPTION ...] stdio -- COMMAND [ARG ...]
       ownertask {command} [OPTION ...] {{http,sse,ws}} URL
       ownertask {command} [OPTION ...] --config FILE"""

COMMANDS: Final = {
    "check": """\
Opens a connection, lists what the server offers, sends a ping, closes the
connection, and looks for anything that was left behind.""",
    "watch": """\
Opens connections, reopens lost ones, and shows each change until Ctrl-C.""",
}

TIMEOUTS: Final = "limit for opening, and for each request (default: 60)"

REFERENCES: Final = """\
VALUE and URL may be env:NAME (a variable) or file:PATH (the content of a file).
"""

EXIT_CODES: Final = """\
The exit code is 0 if all servers work, 1 if a server failed or something was
left behind, and 2 if an argument is wrong."""


@dataclass
class Arguments:
    """The arguments of a command.

    Attributes:
        command: `check` or `watch`.
        targets: The servers.
        timeout: Maximum time for opening a connection and for each request, in seconds.
        backend: `asyncio` or `trio`.
        repeat: The number of connections to open, one after the other.
        as_json: Whether to print JSON.
        is_quiet: Whether to print only failures.
    """

    command: str
    targets: list[Target]
    timeout: float
    backend: str
    repeat: int
    as_json: bool
    is_quiet: bool


class _Parser(ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        _, is_unknown, rest = message.partition("unrecognized arguments: ")
        if is_unknown:
            option = rest.split()[0].partition("=")[0]
            shown = f" {option}" if SHOWN.fullmatch(option) else ""
            message = f"unknown option{shown}; write -- before the command of a stdio server"
        message = re.sub(
            ": ignored explicit argument .*", " must have no value", message, flags=re.DOTALL
        )
        raise UsageError(message.removeprefix("argument "))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError("must be a positive number of seconds")
    return value


def _count(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 0 < value <= MAX_REPEAT:
        raise ArgumentTypeError(f"must be a whole number from 1 to {MAX_REPEAT}")
    return value


def _backend(text: str) -> str:
    if text not in {"asyncio", "trio"}:
        raise ArgumentTypeError("must be asyncio or trio")
    try:
        import_module(text)
    except ImportError:
        raise ArgumentTypeError("trio is not installed; run pip install 'ownertask[trio]'") from None
    return text


def arguments_from(argv: Sequence[str]) -> Arguments:
    """Returns the arguments. For `--help` and `--version`, prints a text and raises `SystemExit`.

    Raises:
        UsageError: An argument is wrong, or refers to a file or a variable that cannot be read.
    """
    if not argv or argv[0] not in COMMANDS:
        _main_parser().parse_args(argv[:1])
        if argv and SHOWN.fullmatch(argv[0]):
            raise UsageError(f"unknown command {argv[0]!r}; use check or watch")
        raise UsageError("the command is missing: check or watch; see ownertask --help")
    command, *rest = argv
    end = rest.index("--") if "--" in rest else len(rest)
    options = _command_parser(command).parse_intermixed_args(rest[:end])
    targets = _targets(options, rest[end + 1 :], has_separator=end < len(rest))
    return Arguments(
        command,
        targets,
        options.timeout,
        options.backend,
        options.repeat,
        options.json,
        options.quiet,
    )


def _main_parser() -> _Parser:
    parser = _Parser(
        prog="ownertask",
        usage="ownertask {check,watch} ...",
        description=ABOUT,
        epilog="ownertask check --help and ownertask watch --help describe the options.",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", help=SUPPRESS)
    versions = f"ownertask {__version__} (mcp {version('mcp')}, Python {python_version()})"
    parser.add_argument("--version", action="version", version=versions)
    return parser


def _command_parser(command: str) -> _Parser:
    parser = _Parser(
        prog=f"ownertask {command}",
        usage=USAGE.format(command=command),
        description=COMMANDS[command],
        epilog=REFERENCES + (EXIT_CODES if command == "check" else ""),
        formatter_class=lambda prog: RawDescriptionHelpFormatter(prog, max_help_position=26, width=79),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("words", nargs="*", help=SUPPRESS)
    add("--config", metavar="FILE", help="all servers in a JSON file with the key mcpServers")
    add(
        "--header",
        metavar="NAME:VALUE",
        action="append",
        default=[],
        help="a header for http, sse and ws; repeatable",
    )
    add(
        "--env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an environment variable for stdio; repeatable",
    )
    add("--timeout", metavar="SECONDS", type=_seconds, default=TIMEOUT, help=TIMEOUTS)
    add("--backend", metavar="NAME", type=_backend, default="asyncio", help="asyncio (default) or trio")
    parser.set_defaults(repeat=1, json=False, quiet=False)
    if command == "check":
        add(
            "--repeat",
            metavar="N",
            type=_count,
            help="open N connections, one after the other",
        )
        outputs = parser.add_mutually_exclusive_group()
        outputs.add_argument("--json", action="store_true", help="print one JSON object")
        outputs.add_argument("--quiet", action="store_true", help="print only failures")
    return parser


def _targets(options: Namespace, command: list[str], *, has_separator: bool) -> list[Target]:
    words: list[str] = options.words
    if options.config is not None:
        if words or has_separator or options.header or options.env:
            raise UsageError("--config cannot be combined with a server, --header or --env")
        return targets_from_config(options.config)
    if not words:
        raise UsageError(f"a transport ({', '.join(TRANSPORTS)}) or --config is missing")
    kind = words[0]
    if kind not in TRANSPORTS:
        shown = f"unknown transport {kind!r}; use" if SHOWN.fullmatch(kind) else "expected a transport:"
        raise UsageError(f"{shown} stdio, http, sse or ws")
    if kind != "stdio" and has_separator:
        raise UsageError(f"-- cannot be used with {kind}; only stdio takes a command")
    separator = ["--"] if len(words) > 1 and has_separator else []
    return [target_from_arguments(kind, [*words[1:], *separator, *command], options.header, options.env)]
