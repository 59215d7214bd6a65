"""Tests for managers from a configuration with the key `mcpServers`.

Each value of an invalid configuration contains `SECRET`, so that an error that shows a value is found.
"""

import json
import re
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import ClientSession

from ownertask import ConnectionState, ReconnectPolicy
from ownertask.mcp import (
    SessionConnectionManager,
    SseConnectionManager,
    StdioConnectionManager,
    StreamableHttpConnectionManager,
    WebSocketConnectionManager,
    config,
    managers_from_config,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "config-file.md").read_text(encoding="utf-8")
SECRET = "S3CRET"
ENVIRONMENT = {"HOME": "/root", "EMPTY": "", "TOKEN": SECRET, "NUL": f"{SECRET}\0", "DOLLAR": "${HOME}"}
URL = f"https://{SECRET}:{SECRET}@host/{SECRET}?key={SECRET}"
HTTP = {"url": URL}
STDIO = {"command": SECRET}


def managers(servers, **options):
    return managers_from_config({"mcpServers": servers}, environment=ENVIRONMENT, **options)


def shown(error):
    """Returns all text that a log or an error tracker can get from an exception without its frames."""
    chain = [error]
    while chain[-1] is not None:
        chain += [chain[-1].__cause__ or chain[-1].__context__]
    values = [(repr(each), str(each), vars(each)) for each in chain if each is not None]
    return "".join(traceback.format_exception(error)) + repr(values)


def assert_shows_no_value(error):
    assert type(error) is ValueError
    assert error.__cause__ is error.__context__ is None
    assert SECRET not in shown(error)


def test_a_server_with_a_command_gets_its_arguments_variables_and_folder():
    server = {"command": "c", "args": ["-a", "b"], "env": {"A": "b"}, "cwd": "/d", "type": "stdio"}
    manager = managers({"one": server})["one"]
    assert type(manager) is SessionConnectionManager
    assert type(manager.transport) is StdioConnectionManager
    parameters = manager.transport.server_params
    assert (parameters.command, parameters.args) == ("c", ["-a", "b"])
    assert (parameters.env, parameters.cwd) == ({"A": "b"}, "/d")
    assert manager.name == manager.transport.name == "one"
    assert manager.state is manager.transport.state is ConnectionState.NEW


def test_a_server_with_only_a_command_inherits_the_folder_and_only_safe_variables():
    parameters = managers({"one": {"command": "c"}})["one"].transport.server_params
    assert (parameters.args, parameters.cwd) == ([], None)
    assert not parameters.env


@pytest.mark.parametrize("key", ["type", "transport"])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("http", StreamableHttpConnectionManager),
        ("streamable-http", StreamableHttpConnectionManager),
        ("streamableHttp", StreamableHttpConnectionManager),
        ("streamable_http", StreamableHttpConnectionManager),
        ("sse", SseConnectionManager),
        ("ws", WebSocketConnectionManager),
        ("websocket", WebSocketConnectionManager),
    ],
)
def test_the_type_selects_the_transport_for_a_url(key, kind, expected):
    url = "wss://host/mcp" if expected is WebSocketConnectionManager else "https://host/mcp"
    server = {"url": url, "headers": {"X-A": "b"}, key: kind}
    manager = managers({"one": server})["one"]
    assert type(manager.transport) is expected
    assert (manager.transport.url, manager.transport.headers) == (url, {"X-A": "b"})
    assert manager.name == manager.transport.name == "one"


def test_a_url_without_a_type_is_a_streamable_http_server():
    manager = managers({"one": {"url": "https://host/sse"}})["one"]
    assert type(manager.transport) is StreamableHttpConnectionManager


def test_the_page_names_every_key_and_every_type():
    keys = {*config.COMMON_KEYS, *sum(config.KEYS.values(), ())}
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == keys - {"transport"}
    assert all(f"`{name}`" in PAGE for name in {"transport", "stdio", *config.URL_TYPES})


def test_the_page_shows_the_error_of_its_own_example():
    servers = json.loads((ROOT / "examples" / "config_file.json").read_text())["mcpServers"]
    del servers["weather"]["disabled"]
    with pytest.raises(ValueError) as caught:
        managers({"weather": servers["weather"]})
    assert f"\n{caught.value}\n" in PAGE


@pytest.mark.parametrize("form", ["path", "string", "BOM", "servers only", "mapping", "mapping only"])
def test_the_configuration_may_be_an_object_the_servers_or_a_file(tmp_path, form):
    servers = {"b": {"command": "grüße"}, "a": {"url": "http://host/"}}
    document = servers if "only" in form else {"theme": ["dark"], "mcpServers": servers, "c": None}
    path = tmp_path / "mcp.json"
    text = json.dumps(document, ensure_ascii=False)
    path.write_text(text, encoding="utf-8-sig" if form == "BOM" else "utf-8")
    given = document if "mapping" in form else str(path) if form == "string" else path
    found = managers_from_config(given)
    assert list(found) == ["b", "a"]
    assert found["b"].transport.server_params.command == "grüße"


@pytest.mark.parametrize("empty", [{}, {"mcpServers": {}}])
def test_a_configuration_without_servers_yields_no_managers(empty):
    assert managers_from_config(empty) == {}


def test_disabled_servers_are_left_out_and_not_checked():
    assert list(managers({"a": {**HTTP, "disabled": False}, "b": {"env": 1, "disabled": True}})) == ["a"]


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${HOME}", "/root"),
        ("${env:HOME}", "/root"),
        ("a${HOME}b${HOME}c", "a/rootb/rootc"),
        ("${HOME:-x}", "/root"),
        ("${UNSET:-a b:-c}", "a b:-c"),
        ("${env:UNSET:-x}", "x"),
        ("${UNSET:-}", ""),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${DOLLAR}", "${HOME}"),
        ("$HOME $ {HOME} %HOME% ~ {HOME}", "$HOME $ {HOME} %HOME% ~ {HOME}"),
        ("$${HOME}", "$/root"),
    ],
)
def test_variables_are_expanded_in_every_text(text, expanded):
    """Only `DOLLAR` has a value that looks like a variable. It is not expanded a second time."""
    server = {"command": f"c{text}", "args": [text, "b"], "env": {"${HOME}": text}, "cwd": text}
    parameters = managers({"${HOME}": server})["${HOME}"].transport.server_params
    assert (parameters.command, parameters.args) == (f"c{expanded}", [expanded, "b"])
    assert (parameters.env, parameters.cwd) == ({"${HOME}": expanded}, expanded)
    server = {"type": "ws", "url": f"ws://host/?{text}", "headers": {"A": f"b{text}"}}
    transport = managers({"one": server})["one"].transport
    assert (transport.url, transport.headers) == (f"ws://host/?{expanded}", {"A": f"b{expanded}"})


def test_variables_come_from_the_environment_of_the_process_by_default(monkeypatch):
    monkeypatch.setenv("OWNERTASK_TEST", "c")
    found = managers_from_config({"one": {"command": "${OWNERTASK_TEST}"}})
    assert found["one"].transport.server_params.command == "c"


def test_options_are_passed_to_each_manager():
    policy = ReconnectPolicy()

    async def watch(_session):
        pass

    found = managers(
        {"a": STDIO, "b": HTTP},
        reconnect=policy,
        watch=watch,
        start_timeout=5,
        read_timeout_seconds=7,
    )
    for manager in found.values():
        assert (manager.reconnect, manager.watch, manager.start_timeout) == (policy, watch, 5)
        assert manager.options == {"read_timeout_seconds": 7}


def test_the_managers_can_have_a_session_class_and_no_handshake():
    class Session(ClientSession):
        pass

    found = managers({"a": STDIO, "b": HTTP}, session_class=Session, initialize=False)
    assert {manager.connection_type for manager in found.values()} == {Session}
    with pytest.raises(TypeError, match="initialize must be True, False or an async function, not str"):
        managers({"a": STDIO}, initialize="no")


@pytest.mark.parametrize(
    ("milliseconds", "seconds"), [(1000, 1), (1500.5, 1.5005), (60_000, 60), (2**31 - 1, 2147483.647)]
)
def test_the_timeout_of_a_server_limits_its_requests_and_is_in_milliseconds(milliseconds, seconds):
    servers = {"a": {**HTTP, "timeout": milliseconds}, "b": HTTP}
    found = managers(servers, read_timeout_seconds=7)
    assert found["a"].options == {"read_timeout_seconds": seconds}
    assert found["b"].options == {"read_timeout_seconds": 7}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "x"}, "name is not an option"),
        ({"environment": [("A", "b")]}, "environment must be a mapping, not list"),
        ({"config": [("a", HTTP)]}, "config must be a mapping or a path, not list"),
        ({"config": None}, "config must be a mapping or a path, not NoneType"),
        ({"start_timeout": "5"}, "start_timeout must be"),
        ({"no_such_option": 1}, "unexpected argument 'no_such_option'"),
    ],
)
def test_an_argument_that_cannot_be_used_is_a_type_error(options, message):
    with pytest.raises(TypeError, match=message):
        managers_from_config(**{"config": {"one": HTTP}, **options})


@pytest.mark.parametrize("value", [5, SECRET.encode(), [SECRET]])
def test_a_variable_that_is_not_a_string_is_a_type_error_without_the_value(value):
    for text in ("${A}", "x${env:A}", "${A:-x}"):
        with pytest.raises(TypeError) as caught:
            managers_from_config({"one": {"command": text}}, environment={"A": value})
        assert str(caught.value) == "environment: the variable 'A' must be a string"
        assert SECRET not in shown(caught.value)


KNOWN = "command, args, env, cwd, url, headers, type, transport, timeout, disabled"
SUPPORTED = "http, streamable-http, streamableHttp, streamable_http, sse, ws, websocket"
RANGE = (
    "must be a number of milliseconds from 1000 to 2147483647; multiply by 1000 if the file is from a "
    "client that uses seconds"
)
SYNTAX = "'${' must be the beginning of ${VAR}, ${VAR:-default} or ${env:VAR}"
HEADERS = "headers must have ASCII names without spaces, control characters or separators"
WEBSOCKET_URL = (
    "url must start with ws:// or wss:// and have a host; a port up to 65535, a user name with a "
    "password, a path and a query are optional; a fragment is not allowed"
)
WEBSOCKET = {"type": "ws", "url": f"ws://host/{SECRET}"}


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (SECRET, ": must be an object"),
        ([SECRET], ": must be an object"),
        ({1: SECRET}, ": every key must be a string"),
        ({}, ": must have either the key 'command' or the key 'url'"),
        ({**STDIO, **HTTP}, ": must have either the key 'command' or the key 'url'"),
        ({"httpUrl": URL}, f", key 'httpUrl': unknown key; the known keys are {KNOWN}"),
        ({**HTTP, "b": SECRET, "a": 1}, f", key 'b': unknown key; the known keys are {KNOWN}"),
        ({**STDIO, "headers": {}}, ", key 'headers': cannot be combined with the key 'command'"),
        ({**HTTP, "args": [SECRET]}, ", key 'args': cannot be combined with the key 'url'"),
        ({**HTTP, "env": {}}, ", key 'env': cannot be combined with the key 'url'"),
        ({**HTTP, "cwd": SECRET}, ", key 'cwd': cannot be combined with the key 'url'"),
        (
            {**HTTP, "type": "http", "transport": "http"},
            ", key 'transport': cannot be combined with the key 'type'",
        ),
        *(
            (
                {**server, key: kind},
                f", key {key!r}: a server with the key {by} supports only {supported}",
            )
            for key in ("type", "transport")
            for server, kind, by, supported in [
                (HTTP, "stdio", "'url'", SUPPORTED),
                (HTTP, SECRET, "'url'", SUPPORTED),
                (HTTP, "HTTP", "'url'", SUPPORTED),
                (HTTP, None, "'url'", SUPPORTED),
                (HTTP, [SECRET], "'url'", SUPPORTED),
                (STDIO, "http", "'command'", "stdio"),
            ]
        ),
        *(
            ({**HTTP, "disabled": value}, ", key 'disabled': must be true or false")
            for value in (SECRET, "true", 0, None)
        ),
        *(
            ({**HTTP, "timeout": value}, f", key 'timeout': {RANGE}")
            for value in (SECRET, "60000", True, None, [], -1, 0, 60, 999.9, 2**31, 10**400)
        ),
        *(
            ({**HTTP, "timeout": float(value)}, f", key 'timeout': {RANGE}")
            for value in ("nan", "inf", "-inf")
        ),
        *(({"command": value}, ", key 'command': must be a string") for value in (None, 1, [SECRET])),
        *(({"url": value}, ", key 'url': must be a string") for value in (None, 1, {SECRET: SECRET})),
        ({**STDIO, "cwd": None}, ", key 'cwd': must be a string"),
        *(
            ({**STDIO, "args": value}, ", key 'args': must be a list of strings")
            for value in (SECRET, {SECRET: 1}, None, 1)
        ),
        ({**STDIO, "args": [SECRET, 8080]}, ", key 'args[1]': must be a string"),
        *(
            ({**server, key: value}, f", key {key!r}: must be an object")
            for server, key in ((STDIO, "env"), (HTTP, "headers"))
            for value in (SECRET, [SECRET], None)
        ),
        ({**STDIO, "env": {"A": SECRET, "B": 1}}, ", key 'env.B': must be a string"),
        ({**STDIO, "env": {1: SECRET}}, ", key 'env': every key must be a string"),
        ({**HTTP, "headers": {"A": None}}, ", key 'headers.A': must be a string"),
        *(
            ({**STDIO, "args": [f"{SECRET}{text}"]}, f", key 'args[0]': {problem}")
            for text, problem in [
                ("${UNSET}", "the variable 'UNSET' is not set"),
                ("${env:UNSET}", "the variable 'UNSET' is not set"),
                ("${home}", "the variable 'home' is not set"),
                ("\0", "must not contain NUL characters"),
                ("${NUL}", "must not contain NUL characters"),
                ("${", SYNTAX),
                ("${}", SYNTAX),
                ("${HOME", SYNTAX),
                ("${ HOME}", SYNTAX),
                (f"${{input:{SECRET}}}", SYNTAX),
                (f"${{HOME-{SECRET}}}", SYNTAX),
                (f"${{HOME:={SECRET}}}", SYNTAX),
                (f"${{UNSET:-${{HOME}}{SECRET}}}", SYNTAX),
                ("${1}", SYNTAX),
                ("${HÖME}", SYNTAX),
            ]
        ),
        ({**STDIO, "env": {"A": "${UNSET}"}}, ", key 'env.A': the variable 'UNSET' is not set"),
        ({**STDIO, "cwd": "${UNSET}"}, ", key 'cwd': the variable 'UNSET' is not set"),
        ({"command": "${UNSET}"}, ", key 'command': the variable 'UNSET' is not set"),
        ({"url": "${UNSET}"}, ", key 'url': the variable 'UNSET' is not set"),
        ({**HTTP, "headers": {"A": "${UNSET}"}}, ", key 'headers.A': the variable 'UNSET' is not set"),
        ({"command": "${EMPTY}"}, ": command must not be empty"),
        *(
            ({"url": url, "type": kind}, ": url must be a URL that starts with http:// or https://")
            for url in (
                SECRET,
                f"ws://{SECRET}",
                f"http://\n{SECRET}",
                f"http://host/{SECRET}\x01",
                f"http://h/\ud800{SECRET}",
            )
            for kind in ("http", "sse")
        ),
        (
            {**HTTP, "headers": {"A": f"{SECRET}\n"}},
            ": headers['A'] must be printable ASCII without leading or trailing spaces",
        ),
        (
            {**HTTP, "headers": {"A ": SECRET}},
            f": {HEADERS}",
        ),
        (
            {**WEBSOCKET, "headers": {"A": f"{SECRET}\n"}},
            f": {HEADERS}, and values without line breaks or NUL characters",
        ),
        (
            {**WEBSOCKET, "url": URL},
            f": {WEBSOCKET_URL}",
        ),
    ],
)
def test_an_error_names_the_server_and_the_key_and_shows_no_value(server, message):
    with pytest.raises(ValueError) as caught:
        managers({"first": HTTP, "it's": server})
    assert str(caught.value) == f'server "it\'s"{message}'
    assert_shows_no_value(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{path}: not valid JSON: line 1, column 1"),
        (f'{{"a":\n {SECRET}}}', "{path}: not valid JSON: line 2, column 2"),
        (f'{{"a": "{SECRET}",}}', "{path}: not valid JSON: line 1, column"),
        (f'// {SECRET}\n{{"mcpServers": {{}}}}', "{path}: not valid JSON: line 1, column 1"),
        (f'{{"a": "\\{SECRET}"}}', "{path}: not valid JSON: line 1, column"),
        (b'{"a": "\xff' + SECRET.encode(), "{path}: not encoded in UTF-8"),
        (f'"{SECRET}"'.encode("utf-16"), "{path}: not encoded in UTF-8"),
        ("[" * 200_000, "{path}: not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "{path}: not valid JSON"),
        (f'["{SECRET}"]', "{path}: must be an object"),
        (f'{{"a": {{"command": "{SECRET}", "command": ""}}}}', "server 'a': the key 'command' occurs"),
        (f'{{"a": {{}}, "b": "{SECRET}", "a": {{}}}}', "{path}: the key 'a' occurs more than once"),
        ('{"mcpServers": {"a": {}, "a": {}}}', "mcpServers: the key 'a' occurs more than once"),
        ('{"mcpServers": {}, "mcpServers": {}}', "{path}: the key 'mcpServers' occurs more than once"),
        (
            f'{{"a": {{"command": "", "env": {{"B": "{SECRET}", "B": ""}}}}}}',
            "server 'a', key 'env': the key 'B' occurs more than once",
        ),
        (f'{{"mcpServers": ["{SECRET}"]}}', "mcpServers: must be an object"),
    ],
    ids=range(16),
)
def test_an_error_in_a_file_names_its_place_and_shows_no_value(tmp_path, text, message):
    path = tmp_path / "mcp.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as caught:
        managers_from_config(path)
    assert str(caught.value).startswith(message.format(path=repr(str(path))))
    assert_shows_no_value(caught.value)


@pytest.mark.parametrize("before", [" ", "\ufeff", "// a comment\n"])
def test_json_text_instead_of_a_path_is_rejected_without_showing_it(before):
    with pytest.raises(ValueError, match="must be a path, not JSON text") as caught:
        managers_from_config(f'{before}{{"mcpServers": "{SECRET}"}}')
    assert_shows_no_value(caught.value)


def test_a_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        managers_from_config(tmp_path / "mcp.json")


# Each value contains the secret, or is a type or a number without one.
TEXT_PARTS = [
    *("http://", "wss://", "host", "99999", SECRET, ":", "@", "/", "?", "#", "[", "%", " ", "\n", "\0"),
    *("\ud800", "\udcff", "ä", "${TOKEN}", "${UNSET:-x}", "${UNSET}", "${"),
]
texts = st.lists(st.sampled_from(TEXT_PARTS), max_size=2).map(lambda parts: SECRET + "".join(parts))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("AB"), inner),
    max_leaves=6,
)
names = st.sampled_from(["A", "X-B", "A B", "", "ä", "A=B", "a\n", "\ud800"])
mappings = st.dictionaries(names, texts, max_size=2)
urls = st.builds(
    "{}{}".format, st.sampled_from(["http://host/", "ws://host/", "https://", "wss://"]), texts
)
commands = st.fixed_dictionaries(
    {"command": texts}, optional={"args": st.lists(texts), "env": mappings, "cwd": texts}
)
remotes = st.fixed_dictionaries(
    {"url": texts | urls},
    optional={
        "headers": mappings,
        "type": st.sampled_from([*config.URL_TYPES]),
        "timeout": st.integers(1000, 10**6),
    },
)
mistakes = st.just({}) | st.dictionaries(
    st.sampled_from([*config.COMMON_KEYS, *config.KEYS["command"], *config.KEYS["url"], "serverUrl"]),
    values,
    max_size=1,
)
entries = st.builds(lambda entry, mistake: {**entry, **mistake}, commands | remotes, mistakes)


@settings(
    max_examples=300,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(entries, st.booleans())
def test_no_error_of_a_configuration_shows_a_value(tmp_path_factory, entry, in_file):
    document = {"mcpServers": {"one": entry}}
    if in_file:
        path = tmp_path_factory.getbasetemp() / "leaks.json"
        path.write_text(json.dumps(document))
        document = path
    try:
        found = managers_from_config(document, environment=ENVIRONMENT)
    except ValueError as error:
        assert_shows_no_value(error)
        assert re.match(r"server 'one'[,:] ", str(error))
    else:
        assert found.keys() <= {"one"}


def test_a_secret_is_not_in_the_name_of_a_manager():
    found = managers({"one": {**HTTP, "headers": {"A": SECRET}}, "two": {**STDIO, "args": [SECRET]}})
    assert SECRET not in repr(found)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.within(30)
async def test_a_server_of_a_file_can_be_used(forked, tmp_path, monkeypatch):
    """The server runs in the given folder, and gets its own variables but not those of the test."""
    monkeypatch.setenv("OWNERTASK_HIDDEN", SECRET)
    code = (
        "import os, runpy, sys; assert 'OWNERTASK_HIDDEN' not in os.environ; "
        "assert os.environ['TOKEN'] == 'a b'; assert os.environ['PATH']; "
        "sys.argv[:] = ['server.py']; runpy.run_path('server.py', run_name='__main__')"
    )
    server = {
        "command": "${PYTHON}",
        "args": ["-c", code],
        "env": {"TOKEN": "${UNSET:-a b}"},
        "cwd": "${FOLDER}",
        "timeout": 20_000,
    }
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": {"calculator": server}}), encoding="utf-8")
    environment = {"PYTHON": sys.executable, "FOLDER": str(ROOT / "examples")}
    found = managers_from_config(path, environment=environment, start_timeout=20)
    async with found["calculator"] as session:
        assert isinstance(session, ClientSession)
        result = await session.call_tool("add", {"a": 1, "b": 2})
        assert result.content[0].text == "3"
    assert found["calculator"].state is ConnectionState.CLOSED
