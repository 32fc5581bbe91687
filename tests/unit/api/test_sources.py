"""A connection whose token is exchanged for another one's (RFC 8693): for whoever may lease it, as it is."""

from evergrant_server.core.access import Action, Endpoints
from tests.fakes.api import Api


async def test_a_source_that_can_do_more_than_the_app_may_is_no_source(api: Api):
    """Its token would be refused as a lease; exchanged, it would do at the back what it does in front."""
    front = await api.integration(name="front")
    source = await api.active(front, "at-1", scopes=("read", "write"))
    issuer = "https://back.example"
    known = Endpoints(issuer=issuer, token_endpoint=f"{issuer}/token")
    await api.integration(name="back", provider="generic", issuer=issuer, endpoints=known)
    app = await api.app_with("narrow", Action.TOKEN, Action.CONNECT, ceiling=("read",))
    leased = await api.post(f"/v1/connections/{source.id}/token", app)
    assert leased.json()["code"] == "scope_not_permitted"
    body = {"integration": "back", "subject": "user-1", "flow": "token_exchange", "scopes": ["read"]}
    refused = await api.post("/v1/connections", app, {**body, "source": source.id})
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_not_permitted")
    wide = await api.app_with("wide", Action.TOKEN, Action.CONNECT)
    made = await api.post("/v1/connections", wide, {**body, "source": source.id})
    assert made.status_code == 201, made.text
