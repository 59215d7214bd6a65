"""Waits longer than `start_timeout` for a person to log in.

Usage: python oauth.py [asyncio|trio]
The example starts a server that requires OAuth, and acts as the browser and the person.
"""

import sys
from typing import TYPE_CHECKING

import anyio
from http_server import running
from mcp.client.auth import OAuthClientProvider
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from ownertask import pause_start_timeout
from ownertask.mcp import SessionConnectionManager, StreamableHttpConnectionManager

if TYPE_CHECKING:
    import httpx2 as httpx
    from mcp.client.auth import AuthorizationCodeResult
else:
    try:
        import httpx2 as httpx  # the HTTP library of mcp 2.x
    except ImportError:
        import httpx  # the HTTP library of mcp 1.x

    try:
        from mcp.client.auth import AuthorizationCodeResult
    except ImportError:  # on mcp 1.x, it is a tuple

        def AuthorizationCodeResult(  # noqa: N802
            code: str, state: str, iss: str | None
        ) -> tuple[str, str]:
            return code, state


START_TIMEOUT = 5
LOGIN_TIME = 6


class Storage:
    """Keeps the tokens until the program ends. A real program writes them to a safe place."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client_info: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client_info

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client_info = client_info


class Browser:
    """Acts as the browser and the person."""

    def __init__(self) -> None:
        self.url = ""

    def open(self, url: str) -> None:
        self.url = url

    async def wait_for_redirect(self) -> httpx.URL:
        """Returns the URL to which the authorization server sends the person after the login."""
        await anyio.sleep(LOGIN_TIME)
        async with httpx.AsyncClient() as client:
            response = await client.get(self.url, follow_redirects=False)
        return httpx.URL(response.headers["Location"])


async def main(url: str) -> None:
    browser = Browser()

    async def open_browser(url: str) -> None:
        browser.open(url)

    async def wait_for_login() -> AuthorizationCodeResult:
        with pause_start_timeout():
            redirect = await browser.wait_for_redirect()
        query = redirect.params
        return AuthorizationCodeResult(code=query["code"], state=query["state"], iss=query.get("iss"))

    auth = OAuthClientProvider(
        url,
        OAuthClientMetadata(
            client_name="example", redirect_uris=[AnyUrl("http://127.0.0.1:8000/callback")]
        ),
        storage=Storage(),
        redirect_handler=open_browser,
        callback_handler=wait_for_login,
    )
    transport = StreamableHttpConnectionManager(url, auth=auth)
    async with SessionConnectionManager(transport, start_timeout=START_TIMEOUT) as session:
        print((await session.call_tool("add", {"a": 1, "b": 2})).content)


if __name__ == "__main__":
    with running("oauth_server") as url:
        anyio.run(main, f"{url}/mcp", backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
