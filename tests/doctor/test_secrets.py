"""Tests that no secret is shown, even if the server or the network repeats it."""

import base64
import json
import os
import random
import re
import subprocess
import sys
from contextlib import contextmanager
from html import escape
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

import pytest
from doctor.calls import OLD_SDK_GARBAGE, PYTHON, call, config_file, scripted, serving, stdio
from http_failures import CASES as HTTP_FAILURES
from http_server import result_of_initialize
from session_server import SessionServer, SseServer, error_of
from websocket_peers import websocket_server

pytestmark = OLD_SDK_GARBAGE

MODES = {
    "text": (),
    "json": ("--json",),
    "quiet": ("--quiet",),
    "repeat": ("--repeat", "2"),
    "json-repeat": ("--json", "--repeat", "2"),
}
PEERS = Path(__file__).parent / "servers" / "http_peers.py"
SHOWN = 8
"""The length of the longest part of a secret that may be shown."""


def forms_of(secret):
    """Returns the ways in which a program may write a text."""
    forms = {
        secret,
        repr(secret)[1:-1],
        repr(repr(secret))[2:-2],
        ascii(secret)[1:-1],
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(secret))[3:-3],
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        unquote(secret),
        escape(secret),
        base64.b64encode(secret.encode()).decode().rstrip("="),
        repr(secret.encode())[2:-1],
        secret.swapcase(),
    }
    return {form.casefold() for form in forms if len(form) >= 4}


def parts_of(secret):
    """Returns all parts of a secret that are too long to be there by chance."""
    return {secret[i : i + SHOWN] for i in range(max(1, len(secret) - SHOWN + 1))}


def shown(called, secrets):
    """Returns the secrets, or the parts of them, that the command wrote."""
    text = (called.out + called.err).casefold()
    texts = [text, re.sub(r"\s+", "", text)]
    if called.out.startswith("{"):
        texts.append("\n".join(all_texts(json.loads(called.out))).casefold())
    return {
        part
        for secret in secrets
        for form in forms_of(secret)
        for part in parts_of(form)
        if any(part in each for each in texts)
    }


def all_texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from all_texts(item)


def secret_of(seed, special=""):
    """Returns a text that does not occur by chance: random letters around the special characters."""
    letters = random.Random(seed)
    half = ["".join(letters.choices("bcdfghjklmnpqrstvwxz0123456789", k=12)) for _ in range(2)]
    return half[0] + special + half[1]


TOKEN = secret_of(1)
KEY = secret_of(2)
PASSWORD = secret_of(3)
ARGUMENT = secret_of(4)
VARIABLE = secret_of(5)
ALL = [TOKEN, KEY, PASSWORD, ARGUMENT, VARIABLE]
SPECIAL = [
    '"',
    "'",
    "\\",
    "\\n",
    "%",
    "+/=",
    "&<>",
    "é☃",
    "\U0001f511",
    " ",
    "\t",
    "$HOME",
    "[red]",
    "{0}",
    "%s",
]
CONTROL = ["\x1b[31m", "\x07", "\u202e", "\u2028", "\x7f", "\r", "\n"]


def test_the_search_finds_every_form():
    for secret in (secret_of(6), secret_of(6, '"é\\ &')):
        for text in [
            *forms_of(secret),
            secret[:SHOWN],
            "\n".join(secret),
            secret.upper(),
            f"x{secret}y",
        ]:
            assert shown(call_of(text), [secret]), text
        assert shown(call_of(json.dumps({"a": [secret]})), [secret])
        assert not shown(call_of(secret[: SHOWN - 1]), [secret])


def call_of(out):
    return type("Called", (), {"out": out, "err": ""})


# Servers over stdio that show all they know, and what else they do.
ENDINGS = {
    "works": {},
    "exits at once": {"exits": {"initialize": 3}},
    "exits later": {"exits": {"tools/list": 3}},
    "refuses": {"errors": {"initialize": "refused: {everything}"}},
    "fails to list": {"errors": {"tools/list": "broken: {everything}"}},
    "is silent": {"silent": ["initialize"]},
    "lists in vain": {"silent": ["tools/list"]},
    "prints": {"stdout": "{everything}\n"},
    "prints JSON": {"stdout": '{"log": "{everything}"}\n'},
    "prints and exits": {"stdout": "{everything}\n", "exits": {"initialize": 1}},
}


def options_of(ending):
    return ("--timeout", "0.3") if "silent" in ENDINGS[ending] else ()


@pytest.mark.parametrize(
    ("ending", "mode"),
    [
        (ending, mode)
        for ending in ENDINGS
        for mode in (MODES if ending in {"works", "fails to list"} else ["text", "json"])
    ],
)
def test_arguments_and_variables_that_a_server_shows_are_hidden(
    ending, mode, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("OWNERTASK_KEY", KEY)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = [
        "--env",
        f"A={VARIABLE}",
        "--env",
        "B=env:OWNERTASK_KEY",
        "--env",
        "C=file:" + str(tmp_path / "token"),
    ]
    script = {"stderr": "{everything}\n"} | ENDINGS[ending]
    target = stdio(tmp_path, ARGUMENT, "--password", PASSWORD, **script)
    called = call(capfd, "check", *MODES[mode], *options, *options_of(ending), *target)
    assert not shown(called, ALL)
    works = ending in {"works", "prints", "prints JSON"}
    assert called.code == (0 if works else 1), called
    if mode in {"text", "json"}:
        for place in ("<env A>", "<env B>", "<env C>"):
            assert place in called.out
        assert re.search(r"<argument \d>", called.out)


@pytest.mark.parametrize("mode", ["text", "json", "quiet"])
@pytest.mark.parametrize("specials", [SPECIAL, CONTROL], ids=["special", "control"])
def test_special_characters_do_not_uncover_a_secret(specials, mode, tmp_path, capfd):
    seeds = range(100, 100 + 2 * len(specials))
    secrets = [secret_of(seed, specials[seed % len(specials)]) for seed in seeds]
    variables, arguments = secrets[: len(specials)], secrets[len(specials) :]
    options = [f"--env=V{index}={secret}" for index, secret in enumerate(variables)]
    script = {"stderr": "{everything}\n", "errors": {"tools/list": "{everything}"}}
    called = call(capfd, "check", *MODES[mode], *options, *stdio(tmp_path, *arguments, **script))
    assert called.code == 1
    # The special character splits each secret into halves, none of which may be shown.
    halves = [half for seed in seeds for half in (secret_of(seed)[:12], secret_of(seed)[12:])]
    found = shown(called, halves)
    assert not [secret for secret in secrets if any(part in secret for part in found)]


@pytest.mark.parametrize("mode", ["text", "json"])
def test_a_secret_is_hidden_where_the_end_of_stderr_is_cut_off(mode, tmp_path, capfd):
    """The error shows the last 200 characters of a line, and the last 8192 bytes of the text."""
    for length in (150, 180, 195, 8150, 8170):
        script = {"stderr": "{everything}" + "." * length, "exits": {"initialize": 1}}
        target = stdio(tmp_path, **script)
        called = call(capfd, "check", *MODES[mode], "--env", f"A={VARIABLE}", *target)
        assert called.code == 1
        assert not shown(called, [VARIABLE]), length


def test_a_secret_is_hidden_if_it_is_written_in_pieces(tmp_path, capfd):
    path = tmp_path / "pieces.py"
    path.write_text(
        "import os, sys\n"
        "for character in os.environ['A']:\n"
        "    print(character, end='', file=sys.stderr, flush=True)\n"
        "sys.exit(2)\n"
    )
    for mode in ("text", "json"):
        target = ["stdio", "--", *PYTHON, path]
        called = call(capfd, "check", *MODES[mode], "--env", f"A={VARIABLE}", *target)
        assert called.code == 1
        assert not shown(called, [VARIABLE])


@pytest.mark.parametrize("mode", ["text", "json"])
def test_one_secret_may_contain_another(mode, tmp_path, capfd):
    secrets = [TOKEN, TOKEN + KEY, PASSWORD + TOKEN, KEY[:6]]
    options = [f"--env=V{index}={secret}" for index, secret in enumerate(secrets)]
    target = stdio(tmp_path, stderr="{everything}\n")
    called = call(capfd, "check", *MODES[mode], *options, *target)
    assert called.code == 0
    assert not shown(called, [TOKEN, KEY, PASSWORD])


def test_secrets_that_are_words_of_the_report_do_not_damage_it(tmp_path, capfd):
    words = ["spawn", "tools", "true", "seconds", "stderr", "none", "null", "left", "<env", "argument"]
    options = [f"--env=V{index}={word}" for index, word in enumerate(words)]
    target = stdio(tmp_path, tools=["add"], stderr="hello\n")
    document = call(capfd, "check", "--json", *options, *target).document
    assert document["ok"] is True
    (server,) = document["servers"]
    assert [phase["name"] for phase in server["phases"]] == [
        "spawn",
        "handshake",
        "list",
        "ping",
        "close",
    ]
    assert (server["transport"], server["tools"], server["failure"]) == ("stdio", ["add"], None)
    lines = call(capfd, "check", *options, *target).lines
    assert lines[0].startswith("spawn ")
    assert "tools         add" in lines
    assert "stderr:" in lines
    assert "left behind   nothing" in lines


def test_secrets_that_are_words_of_an_error_do_not_change_its_cause(tmp_path, capfd):
    target = stdio(tmp_path, exits={"initialize": 3})
    causes = set()
    for options in ([], ["--env=A=server", "--env=B=exited"]):
        (server,) = call(capfd, "check", "--json", *options, *target).document["servers"]
        causes.add(server["failure"]["cause"])
    assert len(causes) == 1


@pytest.mark.parametrize("mode", ["text", "json"])
def test_names_from_the_server_are_masked(mode, tmp_path, capfd):
    names = [f"get_{VARIABLE}", ARGUMENT, f"x{KEY}"]
    everything = {"tools": {}, "resources": {}, "prompts": {}, "experimental": {VARIABLE: {}}}
    target = stdio(
        tmp_path,
        ARGUMENT,
        capabilities=everything,
        name=f"Server {VARIABLE}",
        version=KEY,
        tools=names,
        resources=[f"memo://{name}" for name in names],
        prompts=names,
    )
    called = call(capfd, "check", *MODES[mode], f"--env=A={VARIABLE}", f"--env=B={KEY}", *target)
    assert called.code == 0
    assert not shown(called, ALL)
    assert "get_<env A>" in called.out


def test_short_values_and_paths_and_options_are_not_hidden(tmp_path, capfd):
    file = tmp_path / "data.txt"
    file.touch()
    target = stdio(tmp_path, str(file), "--verbose", "abc", stderr="{everything}\n")
    called = call(capfd, "check", "--env", "A=xyz", *target)
    for text in (str(file), "--verbose", "abc", "A=xyz"):
        assert text in called.out
    assert "<argument" not in called.out


def test_the_words_of_a_script_that_is_an_argument_are_not_hidden(tmp_path, capfd):
    target = stdio(tmp_path, "value = 1\nconnect", tools=["connect"])
    assert "tools         connect" in call(capfd, "check", *target).lines


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("words", [f"KEY={KEY}", f"KEY={KEY} server", f"/bin/KEY={KEY}"])
def test_a_variable_in_front_of_the_command_is_hidden(words, mode, tmp_path, capfd):
    config = config_file(tmp_path, weather={"command": words})
    for arguments in (["stdio", "--", words, "server"], ["--config", config]):
        called = call(capfd, "check", *mode, *arguments)
        assert called.code == 1
        assert "No such file" in called.out
        assert not shown(called, [KEY])


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("kind", ["http", "sse"])
def test_the_path_of_a_url_that_was_passed_by_reference_is_hidden(
    kind, mode, tmp_path, capfd, monkeypatch
):
    """Some providers put a token in the path."""

    async def fail(request):
        await request.answer("500 Internal Server Error", request.target.encode())

    with serving(fail) as url:
        secret = f"{url}/s/{TOKEN}/mcp"
        monkeypatch.setenv("ADDRESS", secret)
        file = tmp_path / "address"
        file.write_text(f"{secret}\n")
        config = config_file(tmp_path, weather={"url": "${ADDRESS}", "type": kind})
        for arguments in ([kind, "env:ADDRESS"], [kind, f"file:{file}"], ["--config", config]):
            called = call(capfd, "check", *mode, *arguments)
            assert called.code == 1
            assert "500" in called.out
            assert not shown(called, [TOKEN])


def test_a_missing_command_does_not_show_its_arguments(tmp_path, capfd):
    for mode in ("text", "json"):
        target = ["stdio", "--", str(tmp_path / "missing"), ARGUMENT]
        called = call(capfd, "check", *MODES[mode], f"--env=A={VARIABLE}", *target)
        assert called.code == 1
        assert not shown(called, ALL)
        assert str(tmp_path / "missing") in called.out


# Servers over HTTP that show all they receive.
def everything_in(request):
    """Returns what a server may write: the request as it came, and decoded."""
    values = list(request.headers.values())
    words = [word for value in values for word in value.split()]
    decoded = []
    for word in words:
        try:
            decoded.append(base64.b64decode(word, validate=True).decode())
        except ValueError:
            continue
    plain = [request.target, unquote(request.target), *values, *words, *decoded]
    return "\n".join([*plain, repr(request.headers), json.dumps(request.headers), request.body.decode()])


async def answer_error(request):
    if request.method == "POST" and request.message["method"] == "initialize":
        await request.answer(body=error_of(request, -32000, everything_in(request)))
    else:
        await request.answer("405 Method Not Allowed")


def answer_status(line):
    async def answer(request):
        await request.answer(line, everything_in(request).encode(), content_type="text/plain")

    return answer


async def answer_junk(request):
    await request.answer(body=everything_in(request).encode(), content_type="application/json")


async def answer_html(request):
    await request.answer(body=everything_in(request).encode(), content_type="text/html")


async def answer_header(request):
    value = everything_in(request).replace("\n", " ").encode("ascii", "replace").decode()
    await request.answer("401 Unauthorized", www_authenticate=f"Bearer realm={value}")


async def answer_reason(request):
    await request.answer("500 " + everything_in(request).replace("\n", " "))


async def redirect(request):
    await request.answer("307 Temporary Redirect", location=f"http://127.0.0.1:9{request.target}")


async def answer_events(request):
    await request.begin_events()
    await request.send_event("message", everything_in(request).replace("\n", " "))
    await request.stream.aclose()


def works():
    """Works, and shows the request in the name of the server and of a tool, and in a late error."""
    server = SessionServer()

    async def initialize(request):
        reply = result_of_initialize(request)
        reply["result"]["serverInfo"]["name"] = everything_in(request)
        await request.answer(body=reply, mcp_session_id="1")

    async def tools(request):
        tool = {"name": everything_in(request), "inputSchema": {"type": "object"}}
        await request.answer(
            body={"jsonrpc": "2.0", "id": request.message["id"], "result": {"tools": [tool]}}
        )

    server.answers |= {"initialize": initialize, "tools/list": tools}
    return server


def fails_late(line):
    """Works until the tools are listed."""
    server = SessionServer()

    async def tools(request):
        if line is None:
            await request.answer(body=error_of(request, -32000, everything_in(request)))
        else:
            await request.answer(line, everything_in(request).encode())

    server.answers["tools/list"] = tools
    return server


async def endpoint_elsewhere(request):
    await request.begin_events()
    await request.send_event("endpoint", f"http://example.org{request.target}")
    await request.stream.receive()


HTTP_SERVERS = {
    "works": works,
    "a JSON-RPC error": lambda: answer_error,
    "a late JSON-RPC error": lambda: fails_late(None),
    "a late 500": lambda: fails_late("500 Internal Server Error"),
    "400": lambda: answer_status("400 Bad Request"),
    "401": lambda: answer_status("401 Unauthorized"),
    "403": lambda: answer_status("403 Forbidden"),
    "500": lambda: answer_status("500 Internal Server Error"),
    "invalid JSON": lambda: answer_junk,
    "HTML": lambda: answer_html,
    "a header": lambda: answer_header,
    "a reason": lambda: answer_reason,
    "a redirect": lambda: redirect,
    "events": lambda: answer_events,
}


def secret_url(origin, scheme=None):
    """Adds secrets to a URL, as a user would write them."""
    if scheme is not None:
        origin = origin.replace("http", scheme, 1)
    host = origin.replace("://", f"://{quote(PASSWORD)}:{ARGUMENT}@")
    return f"{host}/mcp?key={KEY}&other={VARIABLE}#{TOKEN}"


HEADERS = ["--header", f"X-Key: {TOKEN}", "--header", "X-Other: env:OWNERTASK_KEY"]
BEARER = ["--header", "Authorization: Bearer env:OWNERTASK_TOKEN"]


@pytest.fixture
def secrets_in_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("OWNERTASK_KEY", KEY)
    monkeypatch.setenv("OWNERTASK_TOKEN", TOKEN)
    monkeypatch.setenv("OWNERTASK_URL", secret_url("http://localhost:9"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text(f"{TOKEN}\n")


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize("mode", ["text", "json-repeat"])
@pytest.mark.parametrize("case", HTTP_SERVERS)
def test_a_request_that_an_http_server_shows_is_hidden(case, mode, capfd):
    with serving(HTTP_SERVERS[case]()) as origin:
        url = secret_url(origin)
        for headers in (HEADERS, [*HEADERS, *BEARER]):
            called = call(capfd, "check", *MODES[mode], *headers, "--timeout=2", "http", url)
            assert not shown(called, ALL), called
            assert called.code == (0 if case == "works" else 1), called


@pytest.mark.usefixtures("secrets_in_environment")
def test_each_place_of_a_url_is_named(capfd):
    """A secret that is merely dropped would make the rest of the text hard to read."""
    with serving(works()) as origin:
        options = ["--header", f"X-Other: {secret_of(9)}", "--header", f"X-Key: {secret_of(10)}"]
        options += ["--header", f"Authorization: Bearer {secret_of(11)}"]
        # User info in the URL would replace the header.
        called = call(capfd, "check", *options, "http", f"{origin}/?key={KEY}")
    for place in ("<header X-Key>", "<header X-Other>", "<header Authorization>", "<query>"):
        assert place in called.out
    with serving(answer_error) as origin:
        called = call(capfd, "check", "http", secret_url(origin))
    assert "<user info>" in called.out


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize("mode", ["text", "json"])
@pytest.mark.parametrize(
    "header",
    [
        f"Basic {base64.b64encode(f'u:{PASSWORD}'.encode()).decode()}",
        f"Bearer {PASSWORD}",
        PASSWORD,
        f"key={PASSWORD}; other={KEY}",
    ],
)
def test_a_part_of_a_header_is_hidden(header, mode, capfd):
    """A server may show the token without the scheme, or the decoded password."""
    with serving(answer_error) as origin:
        called = call(
            capfd, "check", *MODES[mode], "--header", f"Authorization: {header}", "http", origin
        )
    assert not shown(called, [header.partition(" ")[2] or header])
    if "key=" not in header:
        assert not shown(called, [PASSWORD])


@pytest.mark.parametrize("mode", ["text", "json"])
def test_the_values_in_a_cookie_are_hidden(mode, capfd):
    """A server that rejects a cookie shows its value without its name."""
    cookie = f'Cookie: session={TOKEN}; id="{KEY}"; theme=dark'

    async def answer(request):
        text = f"the sessions {TOKEN} and {KEY} have expired"
        await request.answer(body=error_of(request, -32000, text))

    with serving(answer) as origin:
        called = call(capfd, "check", *MODES[mode], "--header", cookie, "http", origin)
    assert "the sessions <header Cookie> and <header Cookie> have expired" in called.out
    assert not shown(called, [TOKEN, KEY])


@pytest.mark.parametrize("mode", ["text", "json"])
def test_a_query_without_a_name_is_hidden(mode, capfd):
    async def answer(request):
        await request.answer(body=error_of(request, -32000, f"{TOKEN} and {KEY} are not valid"))

    with serving(answer) as origin:
        url = f"{origin}/mcp?{TOKEN}&key={KEY}"
        called = call(capfd, "check", *MODES[mode], "http", url)
    assert "<query> and <query> are not valid" in called.out
    assert not shown(called, [TOKEN, KEY])


@pytest.fixture(scope="module")
def failing_urls():
    with subprocess.Popen(
        [sys.executable, PEERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as peers:
        yield json.loads(peers.stdout.readline())
        peers.kill()


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize(
    ("transport", "case"), [(name, case) for name, cases in HTTP_FAILURES.items() for case in cases]
)
def test_failures_to_open_show_no_secret(transport, case, capfd, failing_urls):
    timeout = "0.3" if case in {"the server never responds", "no `endpoint` event"} else "5"
    options = ["--json", *HEADERS, "--timeout", timeout]
    kind = {"streamable HTTP": "http", "SSE": "sse"}[transport]
    called = call(capfd, "check", *options, kind, secret_url(failing_urls[transport][case]))
    assert called.code == 1
    assert not shown(called, [*ALL, "s3cret"])
    assert called.document["left"] == []


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize("mode", ["text", "json"])
def test_an_endpoint_with_secrets_is_not_shown(mode, capfd):
    for answer in (endpoint_elsewhere, SseServer(f"/messages?key={KEY}", "initialize")):
        with serving(answer) as origin:
            options = [*MODES[mode], *HEADERS, "--timeout", "1"]
            called = call(capfd, "check", *options, "sse", secret_url(origin))
        assert called.code == 1
        assert not shown(called, ALL)


def refusing(connection, request):
    text = "\n".join(
        [request.path, *(f"{name}: {value}" for name, value in request.headers.raw_items())]
    )
    return connection.respond(403, text)


def closing(websocket):
    websocket.recv()
    request = websocket.request
    websocket.close(1008, f"{request.path} {request.headers['X-Key']}"[:120])


def garbage(websocket):
    websocket.recv()
    websocket.send(
        "\n".join(f"{name}: {value}" for name, value in websocket.request.headers.raw_items())
    )
    websocket.recv()


def error(websocket):
    message = json.loads(websocket.recv())
    text = "\n".join([websocket.request.path, *map(str, websocket.request.headers.raw_items())])
    reply = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": 1, "message": text}}
    websocket.send(json.dumps(reply))
    for _ in websocket:
        pass


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize("mode", ["text", "json"])
@pytest.mark.parametrize("case", ["refused", "closed", "garbage", "error", "nothing listens"])
def test_a_request_that_a_websocket_server_shows_is_hidden(case, mode, capfd):
    handlers = {"closed": closing, "garbage": garbage, "error": error}
    options = {"process_request": refusing} if case == "refused" else {}
    with websocket_server(handlers.get(case, closing), **options) as url:
        used = url
        if case != "nothing listens":
            called = check_ws(capfd, mode, used)
    if case == "nothing listens":
        called = check_ws(capfd, mode, used)
    assert called.code == 1
    assert not shown(called, ALL)


def check_ws(capfd, mode, url):
    url = secret_url(url.removesuffix("/mcp")).partition("#")[0]
    return call(capfd, "check", *MODES[mode], *HEADERS, *BEARER, "--timeout", "0.5", "ws", url)


@contextmanager
def broken_url(kind):
    yield {
        "unknown host": secret_url("http://ownertask.invalid"),
        "from a variable": "env:OWNERTASK_URL",
        "from a file": "file:url",
    }[kind]


@pytest.mark.usefixtures("secrets_in_environment")
@pytest.mark.parametrize("mode", ["text", "json", "quiet"])
@pytest.mark.parametrize("kind", ["unknown host", "from a variable", "from a file"])
def test_a_url_that_cannot_be_opened_is_not_shown_in_full(kind, mode, tmp_path, capfd):
    (tmp_path / "url").write_text(secret_url("http://127.0.0.1:9") + "\n")
    with broken_url(kind) as url:
        called = call(capfd, "check", *MODES[mode], *HEADERS, "--timeout=5", "http", url)
    assert called.code == 1, called
    assert not shown(called, ALL)


# Configurations.
@pytest.mark.parametrize("mode", ["text", "json-repeat"])
@pytest.mark.parametrize("ending", ["works", "exits at once", "fails to list"])
def test_secrets_that_a_configured_server_shows_are_hidden(ending, mode, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OWNERTASK_KEY", KEY)
    monkeypatch.setenv("OWNERTASK_TOKEN", TOKEN)
    script = {"stderr": "{everything}\n"} | ENDINGS[ending]
    command = [*scripted(tmp_path, **script), ARGUMENT, "${OWNERTASK_KEY}", "--key", f"x-{PASSWORD}"]
    entry = {
        "command": command[0],
        "args": command[1:],
        "env": {"A": VARIABLE, "B": "b ${OWNERTASK_TOKEN}"},
    }
    config = config_file(tmp_path, local=entry, other=scripted(tmp_path))
    called = call(capfd, "check", *MODES[mode], "--config", config)
    assert called.code == (0 if ending == "works" else 1), called
    assert not shown(called, ALL)


@pytest.mark.parametrize("mode", ["json"])
@pytest.mark.parametrize(
    "value",
    [
        "--key=${OWNERTASK_KEY}",
        "--${OWNERTASK_KEY}",
        "x${OWNERTASK_KEY}y",
        "${OWNERTASK_MISSING:-KEY}",
        "Bearer ${OWNERTASK_KEY}",
    ],
)
def test_the_value_of_a_configured_variable_is_hidden_on_its_own(
    value, mode, tmp_path, capfd, monkeypatch
):
    """A server takes its arguments apart, and shows the value without the text around it."""
    monkeypatch.setenv("OWNERTASK_KEY", KEY)
    monkeypatch.delenv("OWNERTASK_MISSING", raising=False)
    command = [*scripted(tmp_path, stderr=f"the key is {KEY}\n"), value.replace("-KEY}", f"-{KEY}}}")]
    called = call(capfd, "check", *MODES[mode], "--config", config_file(tmp_path, local=command))
    assert called.code == 0
    assert not shown(called, [KEY])


@pytest.mark.parametrize("mode", ["text", "json"])
@pytest.mark.parametrize("case", ["works", "a JSON-RPC error", "401", "invalid JSON"])
def test_a_configured_url_is_not_shown_in_full(case, mode, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OWNERTASK_KEY", KEY)
    monkeypatch.setenv("OWNERTASK_TOKEN", TOKEN)
    with serving(HTTP_SERVERS[case]()) as origin:
        url = f"{origin}/mcp/?key=${{OWNERTASK_KEY}}".replace("://", f"://{PASSWORD}:{ARGUMENT}@")
        headers = {"X-Token": "${OWNERTASK_TOKEN}", "X-Other": VARIABLE}
        config = config_file(tmp_path, remote={"url": url, "headers": headers})
        called = call(capfd, "check", *MODES[mode], "--timeout=2", "--config", config)
    assert called.code == (0 if case == "works" else 1)
    assert not shown(called, ALL)


def test_secrets_of_one_server_are_hidden_in_the_report_of_another(tmp_path, capfd):
    """Two servers of a file often share a token, and a server may learn another's."""
    first = scripted(tmp_path)
    entry = {"command": first[0], "args": first[1:], "env": {"A": VARIABLE}}
    config = config_file(tmp_path, first=entry, second=scripted(tmp_path, stderr=f"{VARIABLE}\n"))
    for mode in ("text", "json"):
        called = call(capfd, "check", *MODES[mode], "--config", config)
        assert called.code == 0
        assert not shown(called, ALL)


def test_debug_logging_shows_no_secret(tmp_path, capfd, caplog):
    """An application that calls `main()` may log everything, for example the names of tasks."""
    caplog.set_level("DEBUG", "ownertask")
    target = stdio(tmp_path, ARGUMENT, stderr="{everything}\n", exits={"tools/list": 2})
    called = call(capfd, "check", f"--env=A={VARIABLE}", *target)
    assert called.code == 1
    # The exception in a record keeps the server's stderr; only the command masks it.
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert not shown(call_of(text), [ARGUMENT])


@pytest.mark.parametrize("mode", ["text", "json"])
def test_secrets_that_are_not_unicode_are_hidden(mode, tmp_path, capfd):
    """Python represents such bytes as surrogates, which cannot be encoded."""
    bytes_ = os.fsdecode(b"\xff\xfe")
    options = [*MODES[mode], "--env", f"A={VARIABLE}{bytes_}"]
    target = stdio(tmp_path, f"{ARGUMENT}{bytes_}", stderr="ready\n", exits={"tools/list": 1})
    called = call(capfd, "check", *options, *target)
    assert called.code == 1
    assert not shown(called, ALL)
    called = call(capfd, "check", *MODES[mode], "http", f"http://127.0.0.1:9/?key={KEY}{bytes_}")
    assert called.code in {1, 2}
    assert not shown(called, ALL)
