"""The JSON-RPC messages in HTTP requests and responses, as far as failures of calls need them."""

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

if TYPE_CHECKING:
    from httpx2 import Request

__all__ = ["CONNECTION_CLOSED", "CallError", "call_id_of", "error_in", "is_answer", "parsed"]

CONNECTION_CLOSED: Final = -32000
INTERNAL_ERROR: Final = -32603

SMALL: Final = 64 * 1024
"""Bytes. Only messages up to this length are parsed here, because the SDK parses them again."""


class CallError(NamedTuple):
    """The error of a call."""

    text: str
    code: int = INTERNAL_ERROR
    data: object = None
    id: object = None

    def message_for(self, call_id: object) -> bytes:
        """Returns the JSON-RPC message that ends a call with this error."""
        error: dict[str, object] = {"code": self.code, "message": self.text}
        if self.data is not None:
            error["data"] = self.data
        message = json.dumps({"jsonrpc": "2.0", "id": call_id, "error": error}, ensure_ascii=False)
        return message.encode(errors="replace")  # a server's text may contain lone surrogates


def call_id_of(request: "Request") -> object:
    """Returns the id of the call in the body of a request, or `None` if it is another message.

    A request without a body resumes a call. Any id will do, because the SDK replaces it.
    """
    content = request.read()  # a request that follows a redirect was not read
    if not content:
        return 0
    message = json.loads(content)
    return message.get("id") if "method" in message else None


def is_answer(content: bytes, request: "Request") -> bool:
    """Returns whether a body is the JSON-RPC response to the call in a request."""
    if len(content) > SMALL:
        return b'"jsonrpc"' in content and content.rstrip().endswith(b"}")
    message = parsed(content)
    is_response = message.get("jsonrpc") == "2.0" and "method" not in message
    is_complete = isinstance(message.get("result"), dict) or error_in(content) is not None
    # mcp 1.x accepts an id that has become a string.
    return is_response and is_complete and str(message.get("id")) == str(call_id_of(request))


def error_in(content: bytes) -> CallError | None:
    """Returns the JSON-RPC error in a body, or `None` if there is none."""
    message = parsed(content)
    error = message.get("error")
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)  # Any: JSON
        text, code = fields.get("message"), fields.get("code")
        if isinstance(text, str) and isinstance(code, int):
            return CallError(text, code, fields.get("data"), message.get("id"))
    return None


# Any: JSON.
def parsed(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body, or an empty one."""
    try:
        message = json.loads(content.decode())
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", message) if isinstance(message, dict) else {}
