"""Further token slots: their scopes are requested with the first one's, and so is their next grant."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor

USER = {"user": ("users:read",)}
NEW = {"integration": "crm", "subject": "user-1", "slot_scopes": USER}


async def consent_of(api: Api, connection_id: str) -> Consent:
    async with api.worker.read() as tx:
        where = (TENANT, ConnectionId(connection_id), api.clock.now())
        asked = [
            await tx.consents.open_consent(*where, app_id=app.id) for app in await tx.access.apps(TENANT)
        ]
    (consent,) = filter(None, asked)
    return consent


async def slack(api: Api, **more: object) -> tuple[Connection, Connection]:
    """A bot's connection and the user's that came with it."""
    integration = await api.integration(provider="slack", default_scopes=("commands",))
    first = await api.active(
        integration, scopes=("commands",), requested_scopes=("commands",), slot_scopes=USER
    )
    user = {"label": "user", "requested_scopes": USER["user"], "scopes": USER["user"]}
    return first, await api.active(integration, "at-user", consented_with=first.id, **user, **more)


async def test_the_browser_asks_for_both_lists_and_the_subject_sees_both(api: Api):
    await api.integration(provider="slack", default_scopes=("commands",))
    key = await api.app_with("asker", Action.CONNECT)
    answer = await api.post("/v1/connections", key, NEW)
    assert answer.status_code == 201, answer.text
    assert answer.json()["slot_scopes"] == {"user": ["users:read"]}
    consent = await consent_of(api, answer.json()["id"])
    assert (consent.scopes, consent.slot_scopes) == (("commands",), USER)
    visitor = Visitor(api)
    page = (await visitor.open(answer.json()["connect_url"])).text
    assert ("commands" in page, "users:read" in page) == (True, True)
    await visitor.go_on(answer.json()["connect_url"])
    assert (visitor.sent["scope"], visitor.sent["user_scope"]) == ("commands", "users:read")


async def test_only_slots_of_the_definition_and_scopes_below_the_ceilings(api: Api):
    await api.integration(provider="slack", default_scopes=("commands",))
    key = await api.app_with("asker", Action.CONNECT, ceiling=("commands",))
    above = await api.post("/v1/connections", key, NEW)
    assert (above.status_code, above.json()["code"]) == (403, "scope_not_permitted")
    unknown = await api.post("/v1/connections", key, {**NEW, "slot_scopes": {"team": ["commands"]}})
    assert (unknown.status_code, unknown.json()["field"]) == (400, "slot_scopes")
    minted = {"integration": "files", "slot_scopes": {"user": ["x"]}, "flow": "client_credentials"}
    await api.integration("files", provider="globus")
    nobody = await api.post("/v1/connections", key, {**NEW, **minted})
    assert (nobody.status_code, nobody.json()["field"]) == (400, "slot_scopes")
    empty = await api.post("/v1/connections", key, {**NEW, "slot_scopes": {"user": []}})
    assert empty.status_code == 400


async def test_a_permits_ceiling_tells_the_slots_apart(api: Api):
    await slack(api)
    bot = await api.app_with("bot", Action.TOKEN, ceiling=("commands",))
    assert (await api.lease(bot)).json()["access_token"] == "at-1"
    assert (await api.lease(bot, label="user")).json()["code"] == "scope_not_permitted"
    both = await api.app_with("both", Action.TOKEN)
    assert (await api.lease(both, label="user")).json()["access_token"] == "at-user"


async def test_a_slot_that_needs_its_subject_is_requested_with_the_first(api: Api):
    first, second = await slack(api)
    await api.change(second, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    await api.made_by(first, "pipeline")
    api.clock.advance(7200)
    needed = await api.lease(key, label="user")
    assert (needed.status_code, needed.json()["code"]) == (409, "consent_required")
    assert needed.json()["connection_id"] == second.id
    consent = await consent_of(api, first.id)
    assert (consent.scopes, consent.slot_scopes) == (("commands",), USER)
    assert (await api.lease(key, label="user")).json()["connect_url"] == needed.json()["connect_url"]
    again = await api.post(f"/v1/connections/{second.id}/reauthorize", key)
    assert (again.status_code, again.json()["id"]) == (200, second.id)
    assert (await consent_of(api, first.id)).slot_scopes == USER
    other = await api.post(f"/v1/connections/{second.id}/reauthorize", key, {"scopes": ["commands"]})
    assert (other.status_code, other.json()["field"]) == (400, "scopes")
    await api.change(first, lambda it: it.revocation_requested("left", api.clock.now()))
    ended = await api.post(f"/v1/connections/{second.id}/reauthorize", key)
    assert (ended.status_code, ended.json()["field"]) == (400, "label")


async def test_an_app_of_the_first_alone_gets_its_link_and_asks_nothing_for_the_other(api: Api):
    first, _ = await slack(api)
    await api.change(first, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    api.clock.advance(7200)
    bot = await api.app_with("bot", Action.TOKEN, Action.CONNECT, ceiling=("commands",))
    await api.made_by(first, "bot")
    assert (await api.lease(bot)).json()["code"] == "consent_required"
    assert (await consent_of(api, first.id)).slot_scopes == {}
    user = await api.app_with("user", Action.TOKEN, Action.CONNECT, ceiling=USER["user"])
    refused = await api.post("/v1/connections/" + first.id + "/reauthorize", user)
    assert refused.json()["code"] == "made_by_another_app"


async def test_what_was_revoked_is_asked_for_again_only_by_name(api: Api):
    first, second = await slack(api)
    await api.change(second, lambda it: it.revocation_requested("left", api.clock.now()))
    key = await api.app_with("asker", Action.CONNECT)
    await api.made_by(first, "asker")
    await api.post(f"/v1/connections/{first.id}/reauthorize", key)
    assert (await consent_of(api, first.id)).slot_scopes == {}
    api.clock.advance(1)
    named = await api.post(f"/v1/connections/{first.id}/reauthorize", key, {"slot_scopes": USER})
    assert named.status_code == 200, named.text
    assert (await consent_of(api, first.id)).slot_scopes == USER


# --- what a subject is asked to consent to again: no less than the connection could do ------

BOTH = ("read_user", "api")


@pytest.mark.parametrize("needed", [[], ["read_repository"]])
async def test_a_refused_lease_asks_for_what_the_connection_had_and_one_more(api: Api, needed: list[str]):
    """Not for the integration's default, which is less."""
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    connection = await api.active(await api.integration(), scopes=BOTH, requested_scopes=BOTH)
    await api.made_by(connection, "pipeline")
    await api.change(connection, lambda c: c.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    api.clock.advance(7200)
    answer = await api.lease(key, **({"scopes": needed} if needed else {}))
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    assert set((await consent_of(api, connection.id)).scopes) == {*BOTH, *needed}
