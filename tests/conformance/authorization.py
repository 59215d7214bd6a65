"""How a client is authorized in each scenario of the conformance suite, by the SDK's own providers."""

from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata
from pydantic import AnyUrl

try:
    import httpx2 as httpx  # the HTTP library of mcp 2.x
    from mcp.client.auth.extensions.identity_assertion import IdentityAssertionOAuthProvider
    from mcp.shared.auth import AuthorizationCodeResult
except ImportError:
    import httpx  # the HTTP library of mcp 1.x

    IdentityAssertionOAuthProvider = AuthorizationCodeResult = None

REDIRECT_URIS = [AnyUrl("http://localhost:3000/callback")]
ID_JAG = "urn:ietf:params:oauth:token-type:id-jag"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


class Storage:
    """Keeps the tokens until the program ends."""

    def __init__(self, client_info=None):
        self.tokens = None
        self.client_info = client_info

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client_info

    async def set_client_info(self, client_info):
        self.client_info = client_info


class Browser:
    """Acts as the browser of a person who accepts."""

    async def open(self, url):
        async with httpx.AsyncClient() as client:
            response = await client.get(url)
        self.redirect = httpx.URL(response.headers["Location"])

    async def result(self):
        query = self.redirect.params
        if AuthorizationCodeResult is None:
            return query["code"], query.get("state")
        return AuthorizationCodeResult(
            code=query["code"], state=query.get("state"), iss=query.get("iss")
        )


def with_code(url, context):
    """Returns the provider that lets a person log in. The suite may have registered the client."""
    client_info = None
    if "client_id" in context:
        secret = context.get("client_secret")
        client_info = OAuthClientInformationFull(
            client_id=context["client_id"],
            client_secret=secret,
            redirect_uris=REDIRECT_URIS,
            token_endpoint_auth_method="client_secret_basic" if secret else "none",
        )
    browser = Browser()
    return OAuthClientProvider(
        server_url=url,
        client_metadata=OAuthClientMetadata(
            client_name="conformance-client",
            redirect_uris=REDIRECT_URIS,
            grant_types=["authorization_code", "refresh_token"],
            response_types=["code"],
        ),
        storage=Storage(client_info),
        redirect_handler=browser.open,
        callback_handler=browser.result,
        client_metadata_url="https://conformance-test.local/client-metadata.json",
    )


def with_secret(url, context):
    return ClientCredentialsOAuthProvider(
        server_url=url,
        storage=Storage(),
        client_id=context["client_id"],
        client_secret=context["client_secret"],
    )


def with_key(url, context):
    signed = SignedJWTParameters(
        issuer=context["client_id"],
        subject=context["client_id"],
        signing_algorithm=context["signing_algorithm"],
        signing_key=context["private_key_pem"],
    )
    return PrivateKeyJWTOAuthProvider(
        server_url=url,
        storage=Storage(),
        client_id=context["client_id"],
        assertion_provider=signed.create_assertion_provider(),
    )


async def with_identity(url, context):
    """Returns the provider that exchanges the token of an identity provider."""
    parsed = httpx.URL(url)
    metadata_url = parsed.copy_with(path=f"/.well-known/oauth-protected-resource{parsed.path}")
    async with httpx.AsyncClient() as client:
        metadata = (await client.get(metadata_url)).raise_for_status().json()

    async def exchange(audience, resource):
        data = {
            "grant_type": TOKEN_EXCHANGE,
            "requested_token_type": ID_JAG,
            "subject_token": context["idp_id_token"],
            "subject_token_type": ID_TOKEN,
            "audience": audience,
            "resource": resource,
            "client_id": context["idp_client_id"],
        }
        async with httpx.AsyncClient() as client:
            response = await client.post(context["idp_token_endpoint"], data=data)
        return response.raise_for_status().json()["access_token"]

    return IdentityAssertionOAuthProvider(
        server_url=url,
        storage=Storage(),
        client_id=context["client_id"],
        client_secret=context["client_secret"],
        issuer=metadata["authorization_servers"][0],
        assertion_provider=exchange,
        token_endpoint_auth_method="client_secret_basic",
    )


async def auth_for(scenario, url, context):
    """Returns the SDK's provider for a scenario, or `None` if it is not about authorization."""
    if not scenario.startswith("auth/"):
        return None
    if scenario == "auth/client-credentials-basic":
        return with_secret(url, context)
    if scenario == "auth/client-credentials-jwt":
        return with_key(url, context)
    if scenario == "auth/enterprise-managed-authorization" and IdentityAssertionOAuthProvider:
        return await with_identity(url, context)
    return with_code(url, context)
