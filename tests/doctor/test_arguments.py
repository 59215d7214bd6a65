"""Tests that wrong usage is reported in one line, opens nothing, and shows no secret."""

import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from doctor.calls import PYTHON, SCRIPTED, call, config_file, scripted, stdio

import ownertask

SECRET = "s3cr3tV4lue"
OTHER = "0th3rS3cr3t"
COMMANDS = ["check", "watch"]


class World:
    """Targets that record whether they were opened, and files that cannot be used."""

    def __init__(self, folder, listener):
        self.folder = folder
        self.listener = listener
        self.port = listener.getsockname()[1]
        self.marker = folder / "started"
        self.files = {
            "script": json.dumps({"runs": str(self.marker), "from": 1}),
            "empty": "",
            "broken.json": '{"mcpServers": {',
            "list.json": "[]",
            "text.json": '"text"',
            "shape.json": json.dumps({"mcpServers": []}),
            "entry.json": json.dumps({"mcpServers": {"weather": SECRET}}),
            "unknown.json": json.dumps({"mcpServers": {"weather": {"command": "x", "token": SECRET}}}),
            "variable.json": json.dumps(
                {
                    "mcpServers": {
                        "weather": {
                            "url": f"http://{SECRET}@localhost",
                            "headers": {"X-Key": f"{SECRET}${{OWNERTASK_MISSING}}"},
                        }
                    }
                }
            ),
            "header.json": json.dumps(
                {
                    "mcpServers": {
                        "weather": {"url": "http://localhost", "headers": {"X-Key": f"{SECRET}\n"}}
                    }
                }
            ),
            "scheme.json": json.dumps({"mcpServers": {"weather": {"url": f"ftp://{SECRET}@localhost"}}}),
            "none.json": json.dumps({"mcpServers": {}}),
            "disabled.json": json.dumps({"mcpServers": {"weather": {"command": "x", "disabled": True}}}),
            "lines": f"{SECRET}\n{SECRET}\n",
        }
        for name, text in self.files.items():
            (folder / name).write_text(text)
        (folder / "latin").write_bytes(SECRET.encode() + b"\xff")
        (folder / "latin.json").write_bytes(b'{"\xff": 1}')
        (folder / "folder").mkdir()

    def text(self, argument):
        for word in ("URL", "HTTP", "WS", "FOLDER", "PORT", "SCRIPT"):
            replaced = {
                "URL": f"http://127.0.0.1:{self.port}",
                "HTTP": f"127.0.0.1:{self.port}",
                "WS": f"ws://127.0.0.1:{self.port}",
                "FOLDER": str(self.folder),
                "PORT": str(self.port),
                "SCRIPT": str(SCRIPTED),
            }[word]
            argument = argument.replace(f"<{word}>", replaced)
        return argument

    def is_untouched(self):
        if self.marker.exists():
            return False
        try:
            self.listener.accept()[0].close()
        except BlockingIOError:
            return True
        return False


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setenv("OWNERTASK_TOKEN", SECRET)
    monkeypatch.setenv("OWNERTASK_LINES", f"{SECRET}\n{SECRET}")
    monkeypatch.setenv("OWNERTASK_EMPTY", "")
    monkeypatch.delenv("OWNERTASK_MISSING", raising=False)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield World(tmp_path, listener)


STDIO = ("stdio", "--", *PYTHON, "<SCRIPT>", "script")
HTTP = ("http", "<URL>")

# Arguments after the name of the command, and what the message must name.
WRONG = {
    # the target
    "no target": ((), ""),
    "an unknown transport": (("smtp", "<URL>"), "smtp"),
    "a URL in place of a transport": ((f"http://u:{SECRET}@<HTTP>/?k={OTHER}",), "http"),
    "an empty transport": (("", "<URL>"), ""),
    "no URL for http": (("http",), "URL"),
    "no URL for sse": (("sse",), "URL"),
    "no URL for ws": (("ws",), "URL"),
    "two URLs": ((*HTTP, f"http://u:{SECRET}@<HTTP>/?k={OTHER}"), ""),
    "an empty URL": (("http", ""), "URL"),
    "a URL of spaces": (("http", "  "), "URL"),
    "a URL without a scheme": (("http", "<HTTP>"), "http"),
    "a URL that is only a path": (("http", f"/mcp?token={SECRET}"), "http"),
    "an FTP URL": (("http", f"ftp://u:{SECRET}@<HTTP>/?k={OTHER}"), "http"),
    "a ws URL for http": (("http", f"<WS>/?k={SECRET}"), "http"),
    "a ws URL for sse": (("sse", f"<WS>/?k={SECRET}"), "http"),
    "an http URL for ws": (("ws", f"<URL>/?k={SECRET}"), "ws"),
    "a URL without a host": (("http", f"http:///mcp?k={SECRET}"), "URL"),
    "a URL with only user info": (("http", f"http://u:{SECRET}@/mcp"), "URL"),
    "a URL with only a port": (("sse", f"http://:<PORT>/?k={SECRET}"), "URL"),
    "a port too large": (("http", f"http://u:{SECRET}@127.0.0.1:65536/?k={OTHER}"), "URL"),
    "a port that is not a number": (("http", f"http://u:{SECRET}@127.0.0.1:a/?k={OTHER}"), "URL"),
    "a port too large for ws": (("ws", f"ws://127.0.0.1:99999/?k={SECRET}"), "URL"),
    "a broken IPv6 address": (("http", f"http://u:{SECRET}@[::1/?k={OTHER}"), ""),
    "a NUL character in a URL": (("http", f"<URL>/?k={SECRET}\0"), "URL"),
    "a line break in a URL": (("http", f"<URL>/?k={SECRET}\nX: y"), "URL"),
    "a missing variable with a URL": (("http", "env:OWNERTASK_MISSING"), "OWNERTASK_MISSING"),
    "a URL from a variable that is not a URL": (("http", "env:OWNERTASK_TOKEN"), "URL"),
    "an empty variable with a URL": (("http", "env:OWNERTASK_EMPTY"), ""),
    "a missing file with a URL": (("http", "file:missing"), "missing"),
    # the command of a server
    "no command": (("stdio",), "COMMAND"),
    "no command after the dashes": (("stdio", "--"), "COMMAND"),
    "an empty command": (("stdio", "--", ""), ""),
    "a command of spaces": (("stdio", "--", "  "), ""),
    "a NUL character in a command": (("stdio", "--", f"{SECRET}\0"), "NUL"),
    "a NUL character in an argument": ((*STDIO, f"{SECRET}\0"), "NUL"),
    "options of a server without the dashes": (("stdio", *PYTHON, "<SCRIPT>", "script"), "--"),
    "a command without stdio": (("--", *PYTHON, "<SCRIPT>", "script"), ""),
    "a command for http": ((*HTTP, "--", "python", SECRET), ""),
    # headers
    "a header without a colon": (("--header", f"Authorization {SECRET}", *HTTP), "--header"),
    "a header that is only a secret": (("--header", SECRET, *HTTP), "--header"),
    "an empty header": (("--header", "", *HTTP), "--header"),
    "a header without a name": (("--header", f": {SECRET}", *HTTP), "--header"),
    "a space in a header's name": (("--header", f"X Key: {SECRET}", *HTTP), "--header"),
    "a letter that is not ASCII in a header's name": (
        ("--header", f"X-Käy: {SECRET}", *HTTP),
        "--header",
    ),
    "a line break in a header's name": (("--header", f"X\nKey: {SECRET}", *HTTP), "--header"),
    "a line break in a header": (("--header", f"X-Key: {SECRET}\nX-Other: {OTHER}", *HTTP), "X-Key"),
    "a carriage return in a header": (("--header", f"X-Key: {SECRET}\r{OTHER}", *HTTP), "X-Key"),
    "a control character in a header": (("--header", f"X-Key: {SECRET}\x01{OTHER}", *HTTP), "X-Key"),
    "a NUL character in a header": (("--header", f"X-Key: {SECRET}\0", *HTTP), "X-Key"),
    "a line break in a header's variable": (("--header", "X-Key: env:OWNERTASK_LINES", *HTTP), "X-Key"),
    "a line break in a header's file": (("--header", "X-Key: file:lines", *HTTP), "X-Key"),
    "a missing variable": (("--header", "X-Key: env:OWNERTASK_MISSING", *HTTP), "OWNERTASK_MISSING"),
    "a missing variable after a scheme": (
        ("--header", "Authorization: Bearer env:OWNERTASK_MISSING", *HTTP),
        "OWNERTASK_MISSING",
    ),
    "a variable without a name": (("--header", "X-Key: env:", *HTTP), "env:"),
    "a NUL character in a variable's name": (("--header", "X-Key: env:A\0B", *HTTP), "--header"),
    "a missing file": (("--header", "X-Key: file:<FOLDER>/missing", *HTTP), "missing"),
    "a file without a name": (("--header", "X-Key: file:", *HTTP), "file:"),
    "a folder": (("--header", "X-Key: file:folder", *HTTP), "folder"),
    "a file that is not UTF-8": (("--header", "X-Key: file:latin", *HTTP), "latin"),
    "a NUL character in a path": (("--header", "X-Key: file:a\0b", *HTTP), "--header"),
    "a file that a scheme precedes": (
        ("--header", "Authorization: Bearer file:folder", *HTTP),
        "folder",
    ),
    "a header for stdio": (("--header", f"X-Key: {SECRET}", *STDIO), "--header"),
    "a header with a configuration": (
        ("--header", f"X-Key: {SECRET}", "--config", "none.json"),
        "--header",
    ),
    # environment
    "a variable without a value": (("--env", SECRET, *STDIO), "--env"),
    "an empty variable": (("--env", "", *STDIO), "--env"),
    "a value without a variable": (("--env", f"={SECRET}", *STDIO), "--env"),
    "a NUL character in the name of a variable": (("--env", f"A\0={SECRET}", *STDIO), "--env"),
    "a NUL character in the value of a variable": (("--env", f"A={SECRET}\0", *STDIO), "--env"),
    "a missing variable for a variable": (
        ("--env", "A=env:OWNERTASK_MISSING", *STDIO),
        "OWNERTASK_MISSING",
    ),
    "a missing file for a variable": (("--env", "A=file:missing", *STDIO), "missing"),
    "a folder for a variable": (("--env", "A=file:folder", *STDIO), "folder"),
    "a file for a variable that is not UTF-8": (("--env", "A=file:latin", *STDIO), "latin"),
    "a variable twice": (("--env", f"A={SECRET}", "--env", f"A={OTHER}", *STDIO), "--env A"),
    "a header twice": (("--header", f"X-Key: {SECRET}", "--header", f"x-key: {OTHER}", *HTTP), "x-key"),
    "a variable for http": (("--env", f"A={SECRET}", *HTTP), "--env"),
    "a variable for ws": (("--env", f"A={SECRET}", "ws", "<WS>"), "--env"),
    "a variable with a configuration": (("--env", f"A={SECRET}", "--config", "none.json"), "--env"),
    # the configuration
    "a configuration and a transport": (("--config", "none.json", *HTTP), "--config"),
    "a configuration and a command": (("--config", "none.json", *STDIO), "--config"),
    "no path of a configuration": (("--config",), "--config"),
    "an empty path of a configuration": (("--config", ""), ""),
    "a missing configuration": (("--config", "missing.json"), "missing.json"),
    "a NUL character in the path of a configuration": (("--config", "a\0b"), ""),
    "a folder as a configuration": (("--config", "folder"), "folder"),
    "an empty configuration": (("--config", "empty"), "empty"),
    "a configuration that is not JSON": (("--config", "broken.json"), "broken.json"),
    "a configuration that is not UTF-8": (("--config", "latin.json"), "latin.json"),
    "a list as a configuration": (("--config", "list.json"), "list.json"),
    "a string as a configuration": (("--config", "text.json"), "text.json"),
    "a list of servers": (("--config", "shape.json"), "mcpServers"),
    "a server that is a string": (("--config", "entry.json"), "weather"),
    "an unknown key": (("--config", "unknown.json"), "'token'"),
    "a variable that is not set": (("--config", "variable.json"), "OWNERTASK_MISSING"),
    "a configured header with a line break": (("--config", "header.json"), "X-Key"),
    "a configured FTP URL": (("--config", "scheme.json"), "weather"),
    "no servers": (("--config", "none.json"), "none.json"),
    "only disabled servers": (("--config", "disabled.json"), "disabled.json"),
    "JSON text as a path": (("--config", '{"mcpServers": {"a": {"command": "' + SECRET + '"}}}'), ""),
    # options
    "an unknown option": (("--frobnicate", *HTTP), "--frobnicate"),
    "an unknown option with a value": ((*HTTP, f"--token={SECRET}"), "--token"),
    "an unknown option and a value": ((*HTTP, "--token", SECRET), ""),
    "an abbreviated option": (("--heade", f"X-Key: {SECRET}", *HTTP), "--heade"),
    "another abbreviated option": (("--back=trio", *HTTP), "--back"),
    "an option without a value": ((*HTTP, "--header"), "--header"),
    "a time of zero": (("--timeout", "0", *HTTP), "--timeout"),
    "a negative time": (("--timeout", "-1", *HTTP), "--timeout"),
    "a negative time with an equals sign": (("--timeout=-0.5", *HTTP), "--timeout"),
    "a time that is NaN": (("--timeout", "nan", *HTTP), "--timeout"),
    "an infinite time": (("--timeout", "inf", *HTTP), "--timeout"),
    "a time with too many digits": (("--timeout", "1e999", *HTTP), "--timeout"),
    "a time that is text": (("--timeout", "soon", *HTTP), "--timeout"),
    "a time with a unit": (("--timeout", "5s", *HTTP), "--timeout"),
    "an empty time": (("--timeout", "", *HTTP), "--timeout"),
    "a time with a line break": (("--timeout", "1\n2", *HTTP), "--timeout"),
    "a time with an escape sequence": (("--timeout", "\x1b[31m", *HTTP), "--timeout"),
    "an unknown backend": (("--backend", "curio", *HTTP), "--backend"),
    "an empty backend": (("--backend", "", *HTTP), "--backend"),
}
WRONG_CHECKS = {
    "no repetition": (("--repeat", "0", *HTTP), "--repeat"),
    "negative repetitions": (("--repeat", "-1", *HTTP), "--repeat"),
    "a fraction of a repetition": (("--repeat", "1.5", *HTTP), "--repeat"),
    "repetitions that are text": (("--repeat", "twice", *HTTP), "--repeat"),
    "a billion repetitions": (("--repeat", "1000000000", *HTTP), "--repeat"),
    "a number with too many digits": (("--repeat", "9" * 5000, *HTTP), "--repeat"),
    "a quiet document": (("--json", "--quiet", *HTTP), "--quiet"),
    "a value for a switch": (("--json=yes", *HTTP), "--json"),
}
WRONG_WATCHES = {
    option: ((option, *value, *HTTP), option)
    for option, *value in [("--json",), ("--quiet",), ("--repeat", "2")]
}
CASES = [
    *(("check", case, *WRONG[case]) for case in WRONG),
    *(("check", case, *WRONG_CHECKS[case]) for case in WRONG_CHECKS),
    *(("watch", case, *WRONG[case]) for case in list(WRONG)[::5]),  # the same code checks both
    *(("watch", f"watch {case}", *WRONG_WATCHES[case]) for case in WRONG_WATCHES),
]


def message_of(called, command="check"):
    """Returns the message of a usage error, after checking its form."""
    assert called.code == 2, called
    assert called.out == ""
    prefix = f"ownertask {command}".strip()
    # A single line, also for a terminal, which knows more line breaks than "\n".
    assert called.err.endswith("\n")
    assert len(called.err.splitlines()) == 1, called.err
    assert called.err.startswith(f"{prefix}: error: "), called.err
    message = called.err.removeprefix(f"{prefix}: error: ").rstrip("\n")
    assert message.isprintable(), called.err
    assert re.match(r"[\w'-]", message), called.err
    assert len(message) < 500
    for secret in (SECRET, OTHER):
        assert secret not in called.err, called.err
    return message


@pytest.mark.parametrize(
    ("command", "arguments", "culprit"),
    [(command, arguments, culprit) for command, _, arguments, culprit in CASES],
    ids=[f"{command}-{case}" for command, case, *_ in CASES],
)
def test_wrong_usage_is_reported_in_one_line_and_opens_nothing(
    command, arguments, culprit, world, capfd
):
    called = call(capfd, command, *map(world.text, arguments))
    assert culprit.lower() in message_of(called, command).lower()
    assert world.is_untouched()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ((), ""),
        (("destroy",), "destroy"),
        (("",), ""),
        (("checks", "http", "http://localhost"), "checks"),
        ((f"http://u:{SECRET}@localhost/?k={OTHER}",), "command"),
        (("--frobnicate",), ""),
        (("--json", "check", "http", "http://localhost"), "--json"),
        (("--vers",), ""),
    ],
)
def test_a_missing_or_unknown_command_is_reported(arguments, culprit, world, capfd):
    assert culprit in message_of(call(capfd, *arguments), "")


UNREADABLE = "/proc/self/mem"  # root can read every other file


@pytest.mark.skipif(not Path(UNREADABLE).exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "arguments", [("--header", f"X-Key: file:{UNREADABLE}", *HTTP), ("--config", UNREADABLE)]
)
def test_an_unreadable_file_is_reported(arguments, world, capfd):
    assert UNREADABLE in message_of(call(capfd, "check", *map(world.text, arguments)))


@pytest.mark.parametrize("value", ["env:OWNERTASK_TOKEN", "file:token"])
@pytest.mark.parametrize("module", ["missing", "also.missing"])
def test_secrets_that_were_read_are_not_shown_in_a_later_usage_error(value, module, world, capfd):
    (world.folder / "token").write_text(SECRET)
    arguments = ["--header", f"X-Key: {value}", "--header", f"X-Other: env:{module}", *HTTP]
    assert module in message_of(call(capfd, "check", *map(world.text, arguments)))


def test_a_message_cannot_control_the_terminal(world, capfd):
    message_of(call(capfd, "check", "\x1b[31mtransport\x07", "x"))
    message_of(call(capfd, "check", "--config", "\x1b]0;title\x07\u202e\u2028.json"))
    message_of(call(capfd, "check", "--header", "\x1b[31m: x", *map(world.text, HTTP)))
    message_of(call(capfd, "\x1b[31m\n\u2029"), "")


def test_arguments_that_are_not_unicode_are_reported_or_accepted(world, capfd):
    """Python represents such bytes as surrogates, which cannot be encoded when they are printed."""
    broken = os.fsdecode(b"\xff\xfe")
    message_of(call(capfd, "check", broken, "x"))
    message_of(call(capfd, "check", "--config", broken))
    message_of(call(capfd, "check", "--header", f"X-Key: file:{broken}", *map(world.text, HTTP)))
    message_of(call(capfd, "check", "--header", f"X-Key: {broken}", *map(world.text, HTTP)))
    assert world.is_untouched()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_trio_its_backend_is_a_usage_error(command, world, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "trio", None)
    called = call(capfd, command, "--backend", "trio", *map(world.text, HTTP))
    assert "ownertask[trio]" in message_of(called, command)
    assert world.is_untouched()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_websockets_a_ws_url_is_a_usage_error(command, world, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ownertask.mcp._websocket_client", None)
    monkeypatch.delattr("ownertask.mcp._websocket_client", raising=False)
    called = call(capfd, command, "ws", world.text("<WS>"))
    assert "ownertask[websocket]" in message_of(called, command)
    config = config_file(world.folder, feed={"url": world.text("<WS>"), "type": "ws"})
    assert "ownertask[websocket]" in message_of(call(capfd, command, "--config", config), command)
    assert world.is_untouched()


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("command", [(), ("check",), ("watch",)])
def test_help_fits_on_a_small_screen(command, option, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    called = call(capfd, *command, option)
    assert (called.code, called.err) == (0, "")
    assert 5 < len(called.lines) <= 24
    assert max(map(len, called.lines)) <= 80
    assert "ownertask" in called.lines[0]
    assert "\x1b" not in called.out


def test_help_names_every_option(capfd):
    texts = {command: call(capfd, command, "--help").out for command in COMMANDS}
    common = {"--config", "--timeout", "--backend", "--header", "--env", "--help"}
    expected = {"check": common | {"--repeat", "--json", "--quiet"}, "watch": common}
    for command, text in texts.items():
        assert set(re.findall(r"--[a-z]+", text)) == expected[command]
        assert {"stdio", "http", "sse", "ws"} <= set(re.findall(r"\w+", text))
    assert {"check", "watch"} <= set(re.findall(r"\w+", call(capfd, "--help").out))


def test_version_matches_the_package(capfd):
    called = call(capfd, "--version")
    assert (called.code, called.err) == (0, "")
    assert called.out.startswith(f"ownertask {ownertask.__version__}")
    assert len(called.lines) == 1


def test_help_is_shown_despite_a_wrong_option(capfd):
    assert call(capfd, "check", "--help", "--frobnicate").code == 0


# Accepted arguments. The tests above would pass even if the commands rejected everything.
GOOD_OPTIONS = [
    ("--timeout", "0.5e1"),
    ("--timeout=5",),
    ("--backend", "asyncio"),
    ("--backend=trio",),
    ("--repeat", "1"),
    ("--env", "A="),
    ("--env", "A=b=c"),
    ("--env", "A=env:OWNERTASK_TOKEN", "--env", "B=file:token"),
]


@pytest.mark.parametrize("options", GOOD_OPTIONS, ids=" ".join)
def test_correct_usage_is_accepted(options, world, capfd):
    (world.folder / "token").write_text(f"{SECRET}\n")
    called = call(capfd, "check", *options, *map(world.text, STDIO))
    assert (called.code, called.err) == (0, ""), called
    assert not world.is_untouched()


def test_options_may_follow_the_transport(tmp_path, capfd):
    _, dashes, *command = stdio(tmp_path)
    assert call(capfd, "check", "stdio", "--quiet", dashes, *command) == (0, "", "")
    assert call(capfd, "check", "--quiet", "stdio", dashes, *command) == (0, "", "")


def test_options_after_the_dashes_belong_to_the_server(tmp_path, capfd):
    script = {"stderr": "{everything}"}
    called = call(capfd, "check", *stdio(tmp_path, "--json", "--quiet", "--", "--help", **script))
    assert called.code == 0
    assert "spawn" in called.out
    assert "['--json', '--quiet', '--', '--help'" in called.out


def test_a_command_without_options_needs_no_dashes(tmp_path, capfd):
    path = tmp_path / "server"
    path.write_text(f"#!/bin/sh\nexec {' '.join(scripted(tmp_path))}\n")
    path.chmod(0o755)
    assert call(capfd, "check", "--quiet", "stdio", path) == (0, "", "")
