"""Signatures for apps: for requests to the provider's API, and for no step of a consent (RFC 5849)."""

from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.credentials import OAUTH1, TokenPair
from evergrant_server.core.secret import Secret
from tests.fakes.api import Api

FLICKR = "https://www.flickr.com/services/oauth"


async def signing(api: Api) -> Connection:
    integration = await api.integration(provider="flickr")
    pair = TokenPair(Secret("t-1"), Secret("s-1")).as_secret().reveal()
    return await api.active(integration, pair, token_type=OAUTH1)


async def ask(api: Api, connection: Connection, url: Any, **more: Any) -> Any:
    app = await api.app_with("reader", Action.TOKEN)
    body = {"method": "POST", "url": url, **more}
    return await api.post(f"/v1/connections/{connection.id}/signatures", app, body)


async def test_a_request_to_the_api_is_signed_and_on_record(api: Api):
    connection = await signing(api)
    answer = await ask(api, connection, "https://api.flickr.com/services/rest?method=flickr.test.login")
    assert answer.status_code == 200, answer.text
    assert "oauth_signature=" in answer.json()["headers"]["Authorization"]
    assert "s-1" not in answer.text


@pytest.mark.parametrize(
    "url",
    [
        f"{FLICKR}/access_token",
        f"{FLICKR}/request_token?x=y",
        "https://WWW.flickr.com:443/services//oauth/./access_token/",
        "https://www.flickr.com./services/oauth/%61ccess_token",
        "https://www%2eflickr.com/services/oauth/access_token",
    ],
)
async def test_no_step_of_an_authorization_is_signed(api: Api, url: str):
    """With our client's secret, an app could take part in somebody's consent (RFC 5849 section 2.3)."""
    connection = await signing(api)
    answer = await ask(api, connection, url)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await api.records(AuditAction.LEASE_ISSUED) == []


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://[::1/x"},
        {"url": "https://h:99999/x"},
        {"url": "https://h:a/x"},
        {"form": [["a"]]},
        {"form": [["oauth_token", "x"]]},
        {"url": "https://api.flickr.com/x?%6fauth_token=1"},
        {"method": "get"},
        {"method": "G\u0130T"},
        {"url": 7},
        {"form": [["a", "\ud800"]]},
        {"url": "https://api.flickr.com/\ud800"},
    ],
)
async def test_what_is_no_request_is_refused_and_not_on_record(api: Api, body: dict[str, Any]):
    connection = await signing(api)
    answer = await ask(api, connection, **{"url": "https://api.flickr.com/x", **body})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert await api.records(AuditAction.LEASE_ISSUED) == []


@pytest.mark.parametrize("value", ["\0", "a" * 16_384, "\U0001f469\u200d\U0001f4bb", "&=%+"])
async def test_odd_values_are_signed(api: Api, value: str):
    connection = await signing(api)
    answer = await ask(api, connection, "https://api.flickr.com/x", form=[["a", value]])
    assert answer.status_code == 200, answer.text
