"""Whose connection: an app that may only connect gives another app's connection no other account (ADR 0072).

Each attack is carried out by the app `other`, whose permits are those of `maker`, over every way to a link.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.grant import AccountOption, FollowUp, Grant, Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from tests.fakes.api import TENANT, Api
from tests.fakes.visitor import Visitor, consent_of
from tests.security.pages.test_callback import an_integration

NEW = {"integration": "crm", "subject": "user-1"}
SCOPES = {"without openid": ["read_user"], "with openid": ["openid", "read_user"]}
Attack = Callable[[Api, str, Connection, list[str]], Awaitable[httpx2.Response]]


async def connects(api: Api, key: str, connection: Connection, scopes: list[str]) -> httpx2.Response:
    return await api.post("/v1/connections", key, {**NEW, "scopes": scopes})


async def reauthorizes(api: Api, key: str, connection: Connection, scopes: list[str]) -> httpx2.Response:
    return await api.post(f"/v1/connections/{connection.id}/reauthorize", key, {"scopes": scopes})


async def leases(api: Api, key: str, connection: Connection, scopes: list[str]) -> httpx2.Response:
    return await api.lease(key, scopes=scopes)


async def leases_by_id(api: Api, key: str, connection: Connection, scopes: list[str]) -> httpx2.Response:
    return await api.post(f"/v1/connections/{connection.id}/token", key, {"scopes": scopes})


WAYS: dict[Attack, str] = {
    connects: "made_by_another_app",
    reauthorizes: "made_by_another_app",
    leases: "consent_required",
    leases_by_id: "consent_required",
}


class Shared:
    """A connection that `maker` made, and that `other` may connect and lease as well."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def begin(self, **integration: Any) -> "Shared":
        api = self.api
        await an_integration(api, **integration)
        self.maker = await api.app_with("maker", Action.CONNECT, Action.TOKEN)
        self.other = await api.app_with("other", Action.CONNECT, Action.TOKEN)
        made = await api.post("/v1/connections", self.maker, NEW)
        self.link, id = made.json()["connect_url"], made.json()["id"]
        self.connection = await api.row(TENANT, id)
        return self

    async def granted(self) -> "Shared":
        await self.grants(self.link)
        self.connection = await self.api.row(TENANT, self.connection.id)
        return self

    async def grants(self, link: str) -> None:
        """A worker installs the grant of this link's consent."""
        await self.api.install(self.connection, "at-1")
        consent = await consent_of(self.api, link)
        async with self.api.worker.write() as tx:
            done = consent.model_copy(update={"status": ConsentStatus.DONE})
            await tx.consents.replace(done, expected=consent.revision)

    async def is_rejected(self) -> None:
        now = self.api.clock.now()
        await self.api.change(self.connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, now))
        self.api.clock.advance(7200)

    async def links_of(self, app: str) -> int:
        """How many consents of the connection this app has requested."""
        id = (await self.api.app_named(app)).id
        async with self.api.worker.read() as tx:
            newest = await tx.consents.newest(TENANT, self.connection.id)
        return int(newest is not None and newest.app_id == id)


@pytest.mark.parametrize("scopes", SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_another_app_gets_no_link_to_a_lost_grant(api: Api, way: Attack, scopes: list[str]):
    it = await (await Shared(api).begin()).granted()
    await it.is_rejected()
    answer = await way(api, it.other, it.connection, scopes)
    assert answer.json()["code"] == WAYS[way], answer.text
    assert "connect_url" not in answer.json()
    assert "The app maker made this connection" in answer.json()["detail"]
    assert "maker" in answer.json()["repair"]
    assert await it.links_of("other") == 0
    assert not await api.records(AuditAction.REAUTHORIZATION_REQUESTED)
    assert "connect_url" in (await way(api, it.maker, it.connection, scopes)).json()


@pytest.mark.parametrize("scopes", SCOPES.values(), ids=SCOPES)
@pytest.mark.parametrize("way", [reauthorizes, leases, leases_by_id], ids=lambda way: way.__name__)
async def test_another_app_gets_no_link_to_a_grant_that_works(api: Api, way: Attack, scopes: list[str]):
    it = await (await Shared(api).begin()).granted()
    more = [*scopes, "write"]
    answer = await way(api, it.other, it.connection, more)
    expected = "made_by_another_app" if way is reauthorizes else "scope_not_granted"
    assert answer.json()["code"] == expected, answer.text
    assert "connect_url" not in answer.json()
    assert await it.links_of("other") == 0
    assert "connect_url" in (await way(api, it.maker, it.connection, more)).json()


async def test_another_app_uses_and_sees_what_it_may_not_have_authorized_again(api: Api):
    it = await (await Shared(api).begin()).granted()
    assert (await api.lease(it.other)).json()["access_token"] == "at-1"
    same = await api.post("/v1/connections", it.other, NEW)
    assert (same.status_code, same.json()["state"]) == (200, "active")
    await it.is_rejected()
    seen = await api.get(f"/v1/connections/{it.connection.id}", it.other)
    assert (seen.json()["state"], seen.json()["next_action"]) == ("needs_reauth", "reauthorize")
    refused = await api.post("/v1/connections", it.other, NEW)
    assert (refused.status_code, refused.json()["state"]) == (403, "needs_reauth")
    own = await api.post("/v1/connections", it.other, {**NEW, "label": "own"})
    assert (own.status_code, "connect_url" in own.json()) == (201, True)


@pytest.mark.parametrize("gone", ["deleted", "disabled"])
async def test_an_admin_has_any_connection_authorized_again(api: Api, gone: str):
    it = await (await Shared(api).begin()).granted()
    boss = await api.app_with("boss", Action.CONNECT, Action.ADMIN)
    answer = await reauthorizes(api, boss, it.connection, ["read_user"])
    assert "connect_url" in answer.json(), answer.text
    assert (await consent_of(api, answer.json()["connect_url"])).replaces_any
    if gone == "deleted":
        assert (await api.call("DELETE", "/v1/apps/maker", boss)).status_code == 204
    else:
        await api.call("PUT", "/v1/apps/maker", boss, json={"disabled": True})
    refused = await reauthorizes(api, it.other, it.connection, ["read_user"])
    assert "an admin" in refused.json()["repair"].lower()
    assert "connect_url" in (await reauthorizes(api, boss, it.connection, ["read_user"])).json()


async def test_a_link_from_before_the_first_grant_of_another_app_leads_nowhere(api: Api):
    """Each app has a link while there is no grant. The first that is finished counts."""
    it = await Shared(api).begin()
    theirs = (await connects(api, it.other, it.connection, ["read_user"])).json()["connect_url"]
    await it.granted()
    visitor = Visitor(api)
    answer = await visitor.go_on(theirs)
    assert (answer.status_code, visitor.provider_url) == (403, "")
    assert "Another app has connected this since other made the link." in answer.text


async def test_another_app_chooses_no_account_of_it(api: Api):
    it = await Shared(api).begin()
    first = await api.post("/v1/connections", it.other, {**NEW, "choice": "2"})
    assert (first.status_code, first.json()["code"]) == (403, "made_by_another_app")
    assert (await api.post("/v1/connections", it.maker, {**NEW, "choice": "1"})).status_code == 200
    await it.granted()
    await has_options(api, it.connection)
    chosen = f"/v1/connections/{it.connection.id}/choose"
    refused = await api.post(chosen, it.other, {"choice": "2"})
    assert (refused.status_code, refused.json()["code"]) == (403, "made_by_another_app")
    assert (await api.post(chosen, it.maker, {"choice": "2"})).status_code == 200


async def has_options(api: Api, connection: Connection) -> None:
    """The grant reaches two accounts."""
    options = (AccountOption(id="1", label="One"), AccountOption(id="2", label="Two"))
    row = await api.row(TENANT, connection.id)
    after = row.granted(api.clock.now()).model_copy(update={"follow_up": FollowUp.CHOOSING})
    tokens = TokenSet(access_token=Secret("at-2"))
    grant = Grant.from_tokens(tokens, generation=after.generation, requested=(), at=api.clock.now())
    async with api.worker.write() as tx:
        with_options = grant.model_copy(update={"options": options})
        await tx.grants.install(after, tokens, with_options, origin=Origin.NEW, expected=row.revision)


async def test_a_token_slot_of_its_own_consent_fills_no_connection_of_another_app(api: Api):
    """The slot's connection has the label that the other app's connection has already."""
    integration = await api.integration(provider="slack", default_scopes=("commands",))
    await api.app_with("maker", Action.CONNECT, Action.TOKEN)
    theirs = await api.active(integration, "at-maker", label="user")
    await api.made_by(theirs, "maker")
    key = await api.app_with("other", Action.CONNECT, Action.TOKEN)
    wanted = {**NEW, "slot_scopes": {"user": ["search:read"]}}
    refused = await api.post("/v1/connections", key, wanted)
    assert (refused.status_code, refused.json()["code"]) == (403, "made_by_another_app"), refused.text
    assert "connect_url" in (await api.post("/v1/connections", key, NEW)).json(), "without it"


async def test_an_imported_connection_is_an_admins(api: Api):
    connection = await api.active(await api.integration())
    key = await api.app_with("other", Action.CONNECT, Action.TOKEN)
    refused = await reauthorizes(api, key, connection, ["read_user"])
    assert (refused.status_code, refused.json()["code"]) == (403, "made_by_another_app")
    assert "An admin, or an app that is gone" in refused.json()["detail"]
