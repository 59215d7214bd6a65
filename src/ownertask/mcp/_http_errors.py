"""The texts of HTTP failures, without the secrets that URLs and headers can contain."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, TypeGuard

from .._reason import leaves, reason, text_of
from . import _sdk

if TYPE_CHECKING:
    from httpx2 import HTTPStatusError, Request, RequestError, Response

__all__ = [
    "TOKEN",
    "content_type_of",
    "is_doubtful",
    "is_event_stream",
    "is_json",
    "is_refusal",
    "is_response_to",
    "is_unreachable",
    "make_presentable",
    "notes_on",
    "raise_for_status",
    "shown_url",
    "status_error",
    "status_of",
    "text_of_failure",
]

TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A valid name of a header or of an authentication scheme."""

URL_IN_TEXT: Final = re.compile(r"(https?://)(?:[^\s/?#'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\"]*)?")

TIMEOUTS: Final = (
    ("ConnectTimeout", "connect", "no connection"),
    ("ReadTimeout", "read", "no response"),
    ("WriteTimeout", "write", "the request could not be sent"),
    ("PoolTimeout", "pool", "no free connection"),
)
"""The class of an exception, its key in the timeouts of a request, and its meaning."""


def shown_url(url: object) -> str:
    """Returns the URL without user info, query and fragment, which may be secret."""
    return str(_sdk.http.URL(str(url)).copy_with(userinfo=b"", query=None, fragment=None))


def content_type_of(response: "Response") -> str:
    """Returns the media type of a response, or an empty string."""
    content_type: str = response.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower()


def is_json(response: "Response") -> bool:
    """Returns whether the SDK reads the body of a response as JSON."""
    return content_type_of(response).startswith("application/json")


def is_event_stream(response: "Response") -> bool:
    """Returns whether the SDK reads the body of a response as an event stream."""
    return content_type_of(response).startswith("text/event-stream")


def status_of(response: "Response") -> str:
    """Describes the status of a response and, if there is one, the authentication scheme it asks for.

    The content type is added to a successful status, which alone does not explain the failure.
    """
    text = f"HTTP status {response.status_code} {response.reason_phrase}".rstrip()
    if response.is_success:
        return f"{text}, Content-Type: {content_type_of(response) or 'none'}"
    scheme = TOKEN.match(response.headers.get("www-authenticate", ""))
    return text if scheme is None else f"{text}, WWW-Authenticate: {scheme[0]}"


def status_error(response: "Response", meaning: str) -> "HTTPStatusError":
    """Returns the HTTP library's exception for a response, with a text that shows no secret."""
    text = f"{status_of(response)}: {meaning}"
    return _sdk.http.HTTPStatusError(text, request=response.request, response=response)


def raise_for_status(response: "Response", error: BaseException) -> NoReturn:
    """Raises the HTTP library's exception for a refused response, in place of the SDK's error."""
    if response.has_redirect_location:  # the SDK explains why it did not follow the redirect
        text = reason(error)
        raise _sdk.http.HTTPStatusError(text, request=response.request, response=response) from error
    try:
        response.raise_for_status()
    except _sdk.http.HTTPStatusError as refusal:
        make_presentable(refusal)
        raise refusal from error
    raise AssertionError  # pragma: no cover - called only for a response that is not a success


def is_unreachable(error: Exception, request: "Request") -> bool:
    """Returns whether no connection to the server could be opened."""
    return isinstance(error, _sdk.http.ConnectError) and _is_about(error, request)


def is_doubtful(error: Exception, request: "Request") -> bool:
    """Returns whether the request or its response failed in transit, except because of a timeout."""
    return (
        isinstance(error, _sdk.http.TransportError)
        and not isinstance(error, _sdk.http.TimeoutException)
        and _is_about(error, request)
    )


def is_refusal(error: Exception) -> "TypeGuard[HTTPStatusError]":
    """Returns whether a hook of the HTTP client raised the error because a request was refused."""
    return isinstance(error, _sdk.http.HTTPStatusError) and not error.response.is_success


def is_response_to(request: "Request", response: "Response") -> bool:
    """Returns whether the response is to this request, and not to another one that `auth` sent."""
    # Older SDKs do not see the redirects that the HTTP client follows.
    was_redirected = any(earlier.has_redirect_location for earlier in response.history)
    return _are_same(response.request, request, but_for_path=was_redirected)


def _is_about(error: "RequestError", request: "Request") -> bool:
    sent = _request_of(error)
    return sent is None or _are_same(sent, request)


def _request_of(error: "RequestError") -> "Request | None":
    try:
        return error.request
    except RuntimeError:  # the error does not know its request
        return None


def _are_same(first: "Request", second: "Request", *, but_for_path: bool = False) -> bool:
    one, other = first.url, second.url
    is_same_origin = (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)
    return is_same_origin and (one.path == other.path or but_for_path)


def make_presentable(error: BaseException) -> None:
    """Removes secrets from the text of an exception of the HTTP library.

    The secrets are the user info, query and fragment of URLs. A timeout without a text is given one.
    """
    response = error.response if isinstance(error, _sdk.http.HTTPStatusError) else None
    # A pattern cannot always find the end of a URL in a text. These two URLs are known.
    urls = () if response is None else (str(response.url), response.headers.get("location", ""))

    def presentable(text: str) -> str:
        for url in urls:
            if f"'{url}'" in text:  # the HTTP library quotes both
                text = text.replace(f"'{url}'", f"'{shown_url(url)}'")
        return URL_IN_TEXT.sub(r"\1\2", text)

    error.args = tuple(presentable(arg) if isinstance(arg, str) else arg for arg in error.args)
    if isinstance(error, _sdk.http.TimeoutException) and not text_of(error):
        error.args = (_text_of_timeout(error),)


def _text_of_timeout(error: "RequestError") -> str:
    request = _request_of(error)
    timeouts: dict[str, float | None] = {} if request is None else request.extensions.get("timeout", {})
    for name, key, text in TIMEOUTS:
        seconds = timeouts.get(key)
        if type(error).__name__ == name and seconds is not None:
            return f"{text} within {seconds:g} s"
    return "the request timed out"


def text_of_failure(error: Exception) -> str:
    """Returns the text with which a call fails because of an exception."""
    if isinstance(error, _sdk.http.HTTPError):
        make_presentable(error)
    text, name = reason(error), type(error).__name__
    return text if text == name or isinstance(error, _sdk.http.TimeoutException) else f"{name}: {text}"


def notes_on(error: BaseException | None) -> Iterator[str]:
    """Makes exceptions of the HTTP library presentable. Yields the causes of those without a text."""
    for leaf in leaves(error):
        if isinstance(leaf, _sdk.http.HTTPError):
            with suppress(Exception):  # an exception's methods may raise anything
                make_presentable(leaf)
            with suppress(Exception):
                if note := _reason_of(leaf):
                    yield note


def _reason_of(error: BaseException) -> str | None:
    """Describes the cause of an error that has no text. Errors of trio and anyio often have none."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if text := text_of(found):
            return None if found is error else f"{type(found).__name__}: {text}"
        seen.add(id(found))
        cause = found.__cause__ or found.__context__
        found = cause if isinstance(cause, Exception) else None  # a cancellation explains nothing
    return None
