"""What a new connection's tokens are for where the issuer's metadata lists resources (RFC 9728 section 4)."""

from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.integrations import Endpoints
from tests.fakes.api import Api
from tests.fakes.visitor import Visitor

ISSUER, API, OTHER = "https://idp.example", "https://api.example", "https://other.example"
NAMES = {"integration": "crm", "subject": "alice"}
ITEM = {**NAMES, "access_token": "at-1", "refresh_token": "rt-1", "expires": "unknown"}


async def key_for(api: Api, *listed: str) -> str:
    """The key of an app beside an integration of an issuer whose metadata lists these resources."""
    endpoints = Endpoints(
        issuer=ISSUER,
        authorization_endpoint=f"{ISSUER}/authorize",
        token_endpoint=f"{ISSUER}/token",
        protected_resources=listed,
    )
    await api.integration(provider="generic", issuer=ISSUER, endpoints=endpoints)
    return await api.app_with("boss", Action.CONNECT, Action.TOKEN, Action.ADMIN)


async def begun(api: Api, key: str, **asked: Any) -> tuple[dict[str, Any], list[str]]:
    """The new connection, and the resources that its consent asks for."""
    answer = await api.post("/v1/connections", key, {**NAMES, **asked})
    assert answer.status_code == 201, answer.text
    visitor = Visitor(api)
    await visitor.go_on(answer.json()["connect_url"])
    resource = visitor.sent.get("resource")
    return answer.json(), [] if resource is None else [resource]


@pytest.mark.parametrize(
    ("listed", "asked", "expected"),
    [
        ([API], {}, [API]),
        ([API], {"resources": [OTHER]}, [OTHER]),
        ([API], {"audience": "crm"}, []),
        ([API, OTHER], {}, []),
        ([API, OTHER], {"resources": [OTHER]}, [OTHER]),
        ([], {}, []),
    ],
)
async def test_rfc9728_4_the_one_resource_is_the_default_and_what_an_app_asks_for_wins(
    api: Api, listed: list[str], asked: dict[str, Any], expected: list[str]
):
    key = await key_for(api, *listed)
    connection, sent = await begun(api, key, **asked)
    assert (connection["resources"], sent) == (expected, expected)
    shown = (await api.get("/v1/integrations/crm", key)).json()
    assert (shown["protected_resources"], shown["resource"]) == (listed, None)


async def test_a_connection_from_before_the_metadata_listed_one_is_found_again(api: Api):
    integration = await api.integration(provider="generic", issuer=ISSUER, endpoints=None)
    before = await api.active(integration, subject="alice")
    endpoints = Endpoints(issuer=ISSUER, token_endpoint=f"{ISSUER}/token", protected_resources=(API,))
    async with api.worker.write() as tx:
        after = integration.__replace__(endpoints=endpoints)
        await tx.integrations.replace(after, expected=integration.revision)
    key = await api.app_with("boss", Action.CONNECT)
    again = await api.post("/v1/connections", key, NAMES)
    assert (again.status_code, again.json()["id"], again.json()["resources"]) == (200, before.id, [])


async def test_tokens_that_are_imported_were_requested_for_what_nobody_said(api: Api):
    key = await key_for(api, API)
    body = {"items": [ITEM], "verify": False}
    answer = await api.post("/v1/connections/import", key, body)
    assert answer.status_code == 200, answer.text
    (item,) = answer.json()["items"]
    shown = (await api.get(f"/v1/connections/{item['connection_id']}", key)).json()
    assert shown["resources"] == []
