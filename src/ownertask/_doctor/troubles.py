"""The kinds of failure that `ownertask check` recognizes, each with its cause and what to try.

The page *Errors of `ownertask check`* of the documentation is generated from this table.
"""

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from .report import Failure

__all__ = ["REMARKS", "SECTIONS", "TROUBLES", "Trouble", "trouble_of"]

STDIO: Final = ("stdio",)
HTTP: Final = ("http",)
SSE: Final = ("sse",)
WS: Final = ("ws",)
HTTP_SSE: Final = ("http", "sse")
NETWORK: Final = ("http", "sse", "ws")
ALL: Final = ("stdio", "http", "sse", "ws")

OPENING: Final = ("spawn", "connect", "handshake")
USING: Final = ("list", "ping")

SERVER_TEXT: Final = re.compile(
    r"; its stderr ended with .*|^the server's stderr ended with.*", re.DOTALL
)
"""The parts of messages and notes that quote the server's stderr, which may contain anything."""


class Trouble(NamedTuple):
    """Describes one kind of failure.

    Attributes:
        name: The symptom.
        shown: The error text that users see and search for, as a heading. `…` stands for text that
            varies.
        transports: The transports on which it can occur.
        cause: One sentence.
        steps: What to try, in this order.
        phases: The phases in which it can occur. If this is empty, the phase does not matter.
        kinds: Names of classes. The error, one of its causes, or a base class of these must have one of
            the names. If this is empty, the class does not matter.
        text: A regular expression that must be found in the error and its notes.
    """

    name: str
    shown: str
    transports: tuple[str, ...]
    cause: str
    steps: tuple[str, ...]
    phases: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    text: str = ""

    def matches(self, failure: "Failure") -> bool:
        """Returns whether a failure is of this kind. An earlier kind in the table may fit better."""
        return (
            failure.transport in self.transports
            and (not self.phases or failure.phase in self.phases)
            and (not self.kinds or not failure.kinds.isdisjoint(self.kinds))
            and re.search(self.text, _text_of(failure)) is not None
        )


def _text_of(failure: "Failure") -> str:
    texts = (SERVER_TEXT.sub("", text) for text in (failure.message, *failure.notes, *failure.unmasked))
    return "\n".join((failure.type, *texts))


def _status(statuses: str) -> str:
    """Returns a regular expression for the ways in which the libraries write an HTTP status."""
    return rf"(?:HTTP (?:status )?|(?:error|response) ')(?:{statuses})\b"


PROCESS: Final = (
    Trouble(
        "The working directory does not exist",
        "the working directory is not an existing directory",
        STDIO,
        "The server's working directory (`cwd`) is not an existing directory.",
        (
            "Correct `cwd` in the configuration.",
            "Use an absolute path.",
        ),
        phases=OPENING,
        text="the working directory is not",
    ),
    Trouble(
        "The command was not found",
        "FileNotFoundError: [Errno 2] No such file or directory",
        STDIO,
        "The command is not in a directory on `PATH`, or the path to it is wrong.",
        (
            "In a shell that finds it, run `which COMMAND`, and use the path that this prints.",
            "Pass the command and each argument as separate words: `-- python server.py`.",
            "If it is a script, check that the interpreter in its first line exists.",
            "Pass variables with `--env NAME=VALUE`, not in front of the command.",
        ),
        phases=OPENING,
        kinds=("FileNotFoundError", "NotADirectoryError"),
    ),
    Trouble(
        "The command can't be executed",
        "PermissionError: [Errno 13] Permission denied",
        STDIO,
        "The command is a directory, or a file that your user may not execute.",
        (
            "If it is a script, start its interpreter: `-- python server.py`.",
            "If it is a program, make it executable: `chmod +x FILE`.",
            "Check that your user may enter the working directory and each directory of the path.",
        ),
        phases=OPENING,
        kinds=("PermissionError", "IsADirectoryError"),
    ),
    Trouble(
        "The command is not a program for this machine",
        "OSError: [Errno 8] Exec format error",
        STDIO,
        "The file is a script without a `#!` line, or a program for another system.",
        (
            "If it is a script, start its interpreter: `-- python server.py`.",
            "If it is a program, install the version for this system and processor.",
        ),
        phases=OPENING,
        text=r"Exec format error|Bad CPU type|WinError 193",
    ),
    Trouble(
        "The operating system did not start the command",
        "OSError: [Errno 7] Argument list too long",
        STDIO,
        "The operating system refused to start a process, for the reason in the error.",
        (
            "If the arguments or variables are too long, pass the path of a file instead.",
            "If a resource is exhausted, check the limits with `ulimit -a` and end unused processes.",
        ),
        phases=("spawn",),
        kinds=("OSError",),
        text=r"\[(?:Errno|WinError) ",
    ),
    Trouble(
        "The server exited during the handshake",
        "the server exited with status …",
        STDIO,
        "The server exited before it answered the first request.",
        (
            "Read the server's stderr, which usually gives the reason, or run the command in a shell.",
            "If a module is missing, use the Python of the environment that has the server.",
            "Pass the variables that the server needs with `--env`, because it inherits only a few.",
            "If the status is 127, a shell or a launcher did not find a command.",
        ),
        phases=OPENING,
        text=r"the server exited with",
    ),
    Trouble(
        "The server exited later",
        "the server exited with status …",
        STDIO,
        "The server answered the handshake, and exited while it processed a later request.",
        (
            "Read the server's stderr, which usually gives the reason.",
            "Check how the server handles the requests of the phase that failed.",
        ),
        text=r"the server exited with",
    ),
    Trouble(
        "A signal killed the server",
        "the server was killed by …",
        STDIO,
        "The server crashed, or another process or the system killed it.",
        (
            "After SIGKILL, check whether memory ran out, with `dmesg` or in the container's log.",
            "After SIGSEGV or SIGABRT, update the server and its native libraries.",
            "After SIGTERM or SIGHUP, check the program that supervises the server.",
        ),
        text=r"the server was killed by",
    ),
    Trouble(
        "The server closed its stdout or stdin but is still running",
        "the server closed its stdout",
        STDIO,
        "The server, or its launcher, closed or redirected the pipe for messages.",
        (
            "If the server offers several transports, select stdio in its arguments.",
            "Start the server in the foreground, not as a daemon.",
            "Remove code that closes or replaces stdin or stdout.",
        ),
        text=r"the server closed its std(?:out|in)",
    ),
    Trouble(
        "The server sent a line that is too long",
        "the server sent a line of more than … bytes",
        STDIO,
        "A message is longer than `max_message_bytes`, or the server prints data without line breaks.",
        (
            "Make sure that the server writes only messages to stdout, each on one line.",
            "In your program, raise `max_message_bytes` of `StdioConnectionManager`.",
        ),
        text=r"a line of more than \d+ bytes",
    ),
    Trouble(
        "The server prints text to stdout",
        "the server sent text on its stdout that is not a message",
        STDIO,
        "The server writes text other than MCP messages to stdout, and its answer did not arrive.",
        (
            "Run the command in a shell to see what it prints.",
            "If it prints a URL, select stdio in its arguments, or use `ownertask check http URL`.",
            "If it asks a question, answer it with an argument, as in `npx -y`.",
            "Send logs and banners to stderr.",
        ),
        kinds=("TimeoutError",),
        text=r"text on its stdout that is not a message",
    ),
    Trouble(
        "The server never answered the handshake",
        "not connected after … s",
        STDIO,
        "The server runs, but its answer to the first request did not arrive in time.",
        (
            "If it downloads something first, as `npx` and `uvx` do, raise `--timeout`.",
            "If the server is yours, end each message with a line break, and flush stdout.",
            "Check that it uses stdin and stdout, and not HTTP on a port.",
            "Check that it does not wait for a login, a lock or another service.",
        ),
        phases=("handshake",),
        kinds=("TimeoutError",),
    ),
)

CONNECTING: Final = (
    Trouble(
        "A proxy refused the connection",
        "ProxyError",
        NETWORK,
        "A proxy from the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`) did not connect to the "
        "server.",
        (
            "If the server is local, add its host to `NO_PROXY`.",
            "Check the address of the proxy, its user name and its password.",
        ),
        kinds=("ProxyError",),
    ),
    Trouble(
        "The proxy in the environment can't be used",
        "Unknown scheme for proxy URL",
        NETWORK,
        "`HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` is not the URL of a proxy, or a package for SOCKS "
        "proxies is missing.",
        (
            "Correct the variable. The URL of a proxy starts with `http://` or `https://`.",
            "If the proxy uses SOCKS, install the package that the error names.",
            "If no proxy is necessary, unset the variable.",
        ),
        phases=("connect",),
        text=r"scheme for proxy URL|SOCKS proxy|the proxy URL in the environment",
    ),
    Trouble(
        "The file in SSL_CERT_FILE can't be used",
        "FileNotFoundError: [Errno 2] No such file or directory",
        HTTP_SSE,
        "The file that `SSL_CERT_FILE` names does not exist, can't be read, or contains no certificate.",
        (
            "Set `SSL_CERT_FILE` to a file with certificates in PEM format.",
            "If the system's certificates are sufficient, unset the variable.",
        ),
        phases=("connect",),
        text=r"\b(?:FileNotFound|NotADirectory|IsADirectory|Permission)Error\b|NO_CERTIFICATE_OR_CRL",
    ),
    Trouble(
        "The host name is unknown",
        "Name or service not known",
        NETWORK,
        "The host name of the URL could not be resolved to an address.",
        (
            "Check the spelling of the host name.",
            "If only a VPN or a container network knows the name, check that you are connected to it.",
        ),
        kinds=("gaierror",),
    ),
    Trouble(
        "The certificate has expired",
        "certificate has expired",
        NETWORK,
        "A certificate of the server, or of its authority, has expired or is not valid yet.",
        ("Renew the certificate on the server.", "Check the clock of this machine."),
        text=r"certificate (?:has expired|is not yet valid)",
    ),
    Trouble(
        "The certificate belongs to another host",
        "certificate is not valid for …",
        NETWORK,
        "The server's certificate does not contain the host name of the URL.",
        (
            "Use a host name that the certificate contains.",
            "Request a certificate that contains this host name.",
        ),
        text=r"[Mm]ismatch, certificate is not valid for",
    ),
    Trouble(
        "The certificate is not trusted",
        "CERTIFICATE_VERIFY_FAILED",
        NETWORK,
        "The server's certificate was not signed by an authority that this machine trusts.",
        (
            "Set `SSL_CERT_FILE` to a file with the certificate of the authority or of the server.",
            "Configure the server to send the intermediate certificates, too.",
            "If your network inspects TLS, trust the certificate of its proxy.",
        ),
        kinds=("SSLCertVerificationError",),
    ),
    Trouble(
        "The server does not use TLS",
        "[SSL: WRONG_VERSION_NUMBER] wrong version number",
        NETWORK,
        "The URL starts with `https://` or `wss://`, but the server on this port does not use TLS.",
        (
            "If the server does not use TLS, use `http://` or `ws://`.",
            "Check the port of the URL.",
        ),
        text=r"WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER_FAILURE|record layer failure",
    ),
    Trouble(
        "The TLS handshake failed",
        "[SSL: UNEXPECTED_EOF_WHILE_READING]",
        NETWORK,
        "The server rejected the TLS handshake, or does not use TLS.",
        (
            "If the server does not use TLS, use `http://` or `ws://`.",
            "Check that the server accepts TLS 1.2 or 1.3.",
            "If the server requires a client certificate, use the library with your own SSL context.",
        ),
        kinds=("SSLError",),
    ),
    Trouble(
        "The WebSocket server did not answer within 10 s",
        "timed out during … handshake",
        WS,
        "Nothing answered at the host and port, or the TLS handshake or the upgrade did not finish.",
        (
            "Check that the port belongs to a WebSocket server, and that the server is not blocked.",
            "Check the scheme: `wss://` with TLS, otherwise `ws://`.",
            "Check the firewall and the VPN.",
        ),
        phases=OPENING,
        kinds=("TimeoutError",),
        text=r"timed out during|timed out while",
    ),
    Trouble(
        "No connection was established in time",
        "not connected after … s",
        NETWORK,
        "Nothing answered at the host and port, or it took too long to set up the connection.",
        (
            "Check the host and port, the firewall and the VPN.",
            "Check the scheme: `https://` or `wss://` requires a server with TLS.",
            "If the network is slow, raise `--timeout`.",
        ),
        phases=("connect",),
        kinds=("TimeoutError", "ConnectTimeout"),
    ),
    Trouble(
        "Nothing is listening",
        "All connection attempts failed",
        NETWORK,
        "Nothing accepts connections at the host and port of the URL or of a proxy, or a firewall "
        "rejects them.",
        (
            "Check that the server is running, and that it uses the port of the URL.",
            "If `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` is set, check that the proxy is running.",
            "In a container, let the server listen on `0.0.0.0`, and publish the port.",
            "If the server listens only on IPv4, use `127.0.0.1` instead of `localhost`.",
        ),
        phases=OPENING,
        text=r"ConnectError|ConnectionRefusedError|all attempts to connect",
    ),
)

STATUSES: Final = (
    Trouble(
        "401 Unauthorized",
        "401 Unauthorized",
        NETWORK,
        "The server requires credentials, or rejected the credentials that were sent.",
        (
            'Pass a token: `--header "Authorization: Bearer env:TOKEN"`.',
            "Check that the token is complete, valid for this server, and not expired.",
            "If the server requires OAuth, use the library with an `auth` object.",
        ),
        text=_status("401"),
    ),
    Trouble(
        "403 Forbidden",
        "403 Forbidden",
        HTTP_SSE,
        "The server, or a gateway in front of it, does not allow this request.",
        (
            "Check that the token has the required permissions.",
            "Check whether the server allows only some origins, hosts or IP addresses.",
            "Check whether a firewall or a bot filter answered instead of the server.",
        ),
        text=_status("403"),
    ),
    Trouble(
        "Session terminated",
        "Session terminated: HTTP status 404 Not Found",
        HTTP,
        "The server answered the handshake, but did not recognize the session in a later request.",
        (
            "Check whether the server restarts after the first request.",
            "If several processes serve the URL, send all requests of a session to the same process.",
            "Or configure the server to be stateless.",
        ),
        text=r"Session terminated",
    ),
    Trouble(
        "404 Not Found",
        "404 Not Found",
        NETWORK,
        "The server has nothing at the path of the URL.",
        (
            "Check the path: `/mcp` for streamable HTTP and `/sse` for SSE are common.",
            "Add a slash to the end of the path, or remove it.",
            "If a gateway is in front of the server, check that it forwards the path unchanged.",
            "Try another transport: `http`, `sse` or `ws`.",
        ),
        text=_status("404"),
    ),
    Trouble(
        "405 Method Not Allowed or 406 Not Acceptable over streamable HTTP",
        "405 Method Not Allowed",
        HTTP,
        "The server does not accept POST requests at this URL, so it may be an SSE server.",
        (
            "Try the other transport: `ownertask check sse URL`.",
            "Check the path: `/mcp` is common for streamable HTTP.",
        ),
        phases=OPENING,
        text=_status("405|406"),
    ),
    Trouble(
        "400, 405 or 406 over SSE",
        "405 Method Not Allowed",
        SSE,
        "The server does not open an event stream at this URL, so it may be a streamable HTTP server.",
        (
            "Try the other transport: `ownertask check http URL`.",
            "Check the path: `/sse` is common for SSE.",
        ),
        phases=OPENING,
        text=_status("400|405|406"),
    ),
    Trouble(
        "407 Proxy Authentication Required",
        "407 Proxy Authentication Required",
        NETWORK,
        "A proxy between this machine and the server requires credentials.",
        (
            "Add the user name and password to the proxy's URL in `HTTP_PROXY` or `HTTPS_PROXY`.",
            "If the server is local, add its host to `NO_PROXY`.",
        ),
        text=_status("407"),
    ),
    Trouble(
        "421 Misdirected Request",
        "421 Misdirected Request",
        NETWORK,
        "The server rejects the host of the URL, usually to prevent DNS rebinding.",
        (
            "Allow this host: `TransportSecuritySettings(allowed_hosts=...)` in the Python SDK.",
            "Use the host name that the server expects, such as `127.0.0.1`.",
        ),
        text=_status("421"),
    ),
    Trouble(
        "429 Too Many Requests",
        "429 Too Many Requests",
        NETWORK,
        "The server limits the number of requests in a period of time.",
        (
            "Wait, and try again.",
            "Reduce the number of clients that use the same token.",
        ),
        text=_status("429"),
    ),
    Trouble(
        "A redirect (3xx)",
        "HTTP status 307 Temporary Redirect",
        NETWORK,
        "The server redirects to another URL, and the client does not send your headers there.",
        (
            "If you trust the URL in the error or in the `Location` header, use it.",
            "Check whether the path must end with a slash, or the scheme must be `https://`.",
            "If that URL is a login page, pass a token with `--header`.",
        ),
        text=_status(r"3\d\d") + "|Exceeded maximum allowed redirects",
    ),
    Trouble(
        "A server error (5xx)",
        "500 Internal Server Error",
        NETWORK,
        "The server failed while it processed the request, or a gateway could not reach the server.",
        (
            "Read the log of the server.",
            "After 502, 503 or 504, check that the server behind the gateway is running.",
            "If the server is not yours, try again later.",
        ),
        text=_status(r"5\d\d"),
    ),
    Trouble(
        "Another client error (4xx)",
        "400 Bad Request",
        HTTP_SSE,
        "The server did not accept the request.",
        (
            "Read the log of the server.",
            "Check the scheme, the path and the query of the URL, and the headers.",
            "Try the other transport: `ownertask check sse URL` or `ownertask check http URL`.",
        ),
        text=_status(r"4\d\d"),
    ),
)

RESPONSES: Final = (
    Trouble(
        "The port does not belong to an HTTP server",
        "illegal status line",
        HTTP_SSE,
        "A program answered, but its answer is not HTTP.",
        (
            "Check the port of the URL.",
            "If the server uses TLS, use `https://`.",
        ),
        text=r"illegal (?:status line|header|request line)",
    ),
    Trouble(
        "The response was cut off",
        "peer closed connection without sending complete message body",
        HTTP_SSE,
        "The server, or a proxy in front of it, closed the connection in the middle of a response.",
        (
            "Read the log of the server, which may have crashed or restarted.",
            "Check the limits of the proxy for the size and duration of a response.",
        ),
        text=r"peer closed connection without sending complete|incomplete chunked read",
    ),
    Trouble(
        "The server closed the connection without a response",
        "Server disconnected without sending a response.",
        HTTP_SSE,
        "The server, or a proxy in front of it, closed the connection instead of responding.",
        (
            "If the server uses TLS, use `https://`.",
            "Read the log of the server.",
            "Check the port: it may not belong to an HTTP server.",
        ),
        text=r"RemoteProtocolError|ReadError|WriteError",
    ),
    Trouble(
        "An `endpoint` event with a different origin",
        "the server's `endpoint` event has the origin …",
        SSE,
        "The server asks for messages at another origin, but the client sends nothing there.",
        (
            "If you trust the origin in the error, use it for the URL.",
            "If a gateway is in front of the server, configure the server to send a relative URL.",
        ),
        text=r"`endpoint` event has the origin",
    ),
    Trouble(
        "202 Accepted in response to a request",
        "HTTP status 202 Accepted",
        HTTP,
        "The server accepted the message, but sent no answer to it.",
        (
            "If the URL is the message URL of an SSE server, use its `/sse` URL with `check sse`.",
            "Check the path: `/mcp` is common for streamable HTTP.",
        ),
        phases=OPENING,
        text=r"HTTP status 202",
    ),
    Trouble(
        "The response is not an MCP message",
        "… the response is not an answer to the call",
        HTTP,
        "The response has the right content type, but is not the JSON-RPC answer to the request.",
        (
            "Check that the URL belongs to an MCP server.",
            "Read the log of the server.",
            "If the server is yours, send the answer with the `id` of the request.",
        ),
        text=r"application/json: the response is not|parse SSE message|could not be processed",
    ),
    Trouble(
        "An HTML page or another content type",
        "Content-Type: text/html",
        HTTP_SSE,
        "The URL belongs to a web page or to another service, not to an MCP server with this transport.",
        (
            "Open the URL in a browser to see whether it is a login page or an error page.",
            "Check the path: `/mcp` for streamable HTTP and `/sse` for SSE are common.",
            "Try the other transport: `ownertask check sse URL` or `ownertask check http URL`.",
        ),
        phases=OPENING,
        kinds=("SSEError", "MCPError", "McpError"),
        text=r"Content-Type: |with content type '",
    ),
    Trouble(
        "The event stream ended without a response",
        "the event stream ended without a response",
        HTTP,
        "The server, or a proxy in front of it, ended the response before it sent the answer.",
        (
            "Read the log of the server.",
            "Raise the time limit for responses in the proxy or gateway.",
        ),
        text=r"the event stream ended without a response",
    ),
    Trouble(
        "No `endpoint` event",
        "the server did not send an `endpoint` event",
        SSE,
        "The URL does not belong to an SSE server, or a proxy held the event back.",
        (
            "Try the other transport: `ownertask check http URL`.",
            "Check the path: `/sse` is common for SSE.",
            "Turn off response buffering in the proxy in front of the server.",
        ),
        text=r"did not send an `endpoint` event",
    ),
    Trouble(
        "The server accepts the connection but never answers",
        "not connected after … s",
        NETWORK,
        "The server, or a proxy in front of it, did not answer the handshake in time.",
        (
            "Read the log of the server to see whether the request arrived.",
            "Check the port: it may belong to a program that expects another protocol.",
            "Turn off response buffering in the proxy in front of the server.",
            "If the server starts on demand, raise `--timeout`.",
        ),
        phases=("handshake",),
        kinds=("TimeoutError", "ReadTimeout"),
    ),
)

WEBSOCKET: Final = (
    Trouble(
        "The websockets library is too old for trio",
        "on trio, WebSocketConnectionManager requires websockets 17 or newer",
        WS,
        "On trio, WebSockets require a newer version of the websockets library than on asyncio.",
        ("Update it: `pip install -U websockets`.", "Or use asyncio: `--backend asyncio`."),
        kinds=("ImportError",),
        text=r"requires websockets",
    ),
    Trouble(
        "The server refused the upgrade with status 403",
        "server rejected WebSocket connection: HTTP 403",
        WS,
        "The server does not allow the connection, or has no WebSocket at this path. Some servers use "
        "status 403 for both.",
        (
            "Check the path of the URL.",
            "If the server offers streamable HTTP, use that: `ownertask check http URL`.",
            "If the server requires a token, pass it with `--header`.",
        ),
        text=_status("403"),
    ),
    Trouble(
        "The server refused the upgrade to a WebSocket",
        "server rejected WebSocket connection: HTTP …",
        WS,
        "An HTTP server answered, but it does not offer a WebSocket at the path of the URL.",
        (
            "Check the path of the URL.",
            "If the server offers streamable HTTP, use that: `ownertask check http URL`.",
            "If a proxy is in front of the server, make it forward `Upgrade` and `Connection` headers.",
        ),
        kinds=("InvalidStatus",),
    ),
    Trouble(
        "The server selected another subprotocol",
        "unsupported subprotocol: …",
        WS,
        "The server speaks a subprotocol that the client did not offer.",
        (
            "Check that the URL belongs to an MCP server.",
            "In your program, pass `subprotocols` to `WebSocketConnectionManager`.",
        ),
        kinds=("NegotiationError",),
    ),
    Trouble(
        "The server does not speak the WebSocket protocol",
        "did not receive a valid HTTP response",
        WS,
        "The server closed the connection, or its answer to the upgrade is invalid.",
        (
            "Check the scheme: `wss://` if the server uses TLS, otherwise `ws://`.",
            "Check the port: it may not belong to a WebSocket server.",
        ),
        phases=("connect",),
        kinds=("InvalidHandshake", "EOFError", "ConnectionResetError", "BrokenPipeError"),
    ),
    Trouble(
        "A message is too large for the WebSocket",
        "1009 (message too big)",
        WS,
        "A message is larger than a limit of the client or of the server.",
        (
            "In your program, raise `max_message_bytes` of `WebSocketConnectionManager`.",
            "If the server sent code 1009, raise the limit of the server.",
        ),
        text=r"(?:received|sent) 1009",
    ),
    Trouble(
        "The server closed the WebSocket",
        "the WebSocket closed: …",
        WS,
        "The server closed the connection; its close code and reason are in the error or in a note.",
        (
            "Read the log of the server.",
            "Code 1008 often means that a token is missing: pass it with `--header`.",
            "Code 1011 reports an error inside the server.",
            "If a proxy is in front of the server, raise its limit for idle connections.",
        ),
        text=r"the WebSocket closed|no close frame",
    ),
)

EVERY: Final = (
    Trouble(
        "Unsupported protocol version",
        "Unsupported protocol version from the server: …",
        ALL,
        "The server and the installed mcp package have no protocol version in common.",
        (
            "Update the server.",
            "Update the mcp package: `pip install -U mcp`.",
        ),
        text=r"(?i)unsupported protocol version",
    ),
    Trouble(
        "The server answered the handshake with an error",
        "MCPError: …",
        ALL,
        "The server rejected the `initialize` request with a JSON-RPC error.",
        (
            "Read the text of the error.",
            "Read the stderr or the log of the server.",
            "Check the configuration of the server: its arguments, variables and headers.",
        ),
        phases=OPENING,
        kinds=("MCPError", "McpError"),
    ),
    Trouble(
        "An invalid result",
        "validation error",
        ALL,
        "The server answered, but a field of its answer is missing or has an invalid value.",
        (
            "Update the server, or report the error to its author.",
            "Update the mcp package: `pip install -U mcp`.",
        ),
        kinds=("ValidationError",),
    ),
    Trouble(
        "The connection was lost after the handshake",
        "the connection was lost",
        ALL,
        "The server answered the handshake, but the connection ended during a later request.",
        (
            "Read the stderr or the log of the server.",
            "Check how the server handles the requests of the phase that failed.",
            "If a proxy is in front of the server, check its limits.",
        ),
        phases=USING,
        kinds=("ConnectionLostError",),
    ),
    Trouble(
        "The connection was lost during the handshake",
        "the connection was lost",
        ALL,
        "The connection opened, but ended before the server answered the handshake.",
        (
            "Read the stderr or the log of the server.",
            "Check that the transport is the one that the server offers.",
        ),
        kinds=("ConnectionLostError",),
    ),
    Trouble(
        "A request received no response in time",
        "no response to tools/list within … s",
        ALL,
        "The server answered the handshake, but not a later request.",
        (
            "Read the stderr or the log of the server.",
            "If the server is slow, raise `--timeout`.",
            "Check that no blocking call stops the server from handling requests.",
        ),
        phases=USING,
        text=r"(?i)timed out|no response|timeout",
    ),
    Trouble(
        "The server answered a request with an error",
        "MCPError: …",
        ALL,
        "The server answered a request to list its content, or a ping, with a JSON-RPC error.",
        (
            "Read the text of the error.",
            "Code -32601 (Method not found): the server lacks `ping` or an announced capability.",
            "Read the stderr or the log of the server.",
        ),
        phases=USING,
        kinds=("MCPError", "McpError"),
    ),
)

FALLBACK: Final = Trouble(
    "Another failure",
    "",
    ALL,
    "The command does not recognize this kind of failure.",
    (
        "Read the error, its notes, and the stderr or the log of the server.",
        "Check that the transport is the one that the server offers.",
    ),
)

SECTIONS: Final = {
    "A server process (stdio)": PROCESS,
    "Connecting to a URL": CONNECTING,
    "HTTP statuses": STATUSES,
    "HTTP responses": RESPONSES,
    "WebSocket": WEBSOCKET,
    "Every transport": (*EVERY, FALLBACK),
}
"""The table. If several kinds match a failure, the first one describes it."""

TROUBLES: Final = tuple(trouble for troubles in SECTIONS.values() for trouble in troubles)

REMARKS: Final = (
    Trouble(
        "The server does not exit when its stdin is closed",
        "the server did not exit after its stdin was closed, and was ended with …",
        STDIO,
        "The server worked, but it exited only after a signal.",
        (
            "If the server is yours, make it exit when its stdin is closed, even during a request.",
            "If the server needs longer to save its data, raise `exit_timeout` in your program.",
        ),
    ),
    Trouble(
        "The server left something behind",
        "left behind",
        ALL,
        "After the connection was closed, a process, thread, task or file descriptor still existed.",
        (
            "If the server started the process, end it when the server exits.",
            "Otherwise, open an issue with the output of `ownertask check --json`.",
        ),
    ),
)
"""Only for the page. A report can show these although no phase failed."""


def trouble_of(failure: "Failure") -> Trouble:
    """Returns the kind of a failure."""
    return next(trouble for trouble in TROUBLES if trouble.matches(failure))
