"""Two token slots from one consent, as Slack fills them: two connections with lifecycles of their own."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from activities.grants.token_request import CODE_RULES
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import ExchangeCode
from evergrant_server.core.single_use.attempt import AttemptKind
from providers.responses.raw_reply import RawReply
from tests.fakes.certificates import LoopbackTls
from tests.fakes.events.transmitter import id_token
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, hold_answer, ok
from tests.faults.support.activities import Activities, call_for

USER = {"user": ("users:read",)}


class SlackLike(ScriptedProvider):
    """Gives a second token below `authed_user` when `user_scope` was requested."""

    user_scope: str | None = None
    user_refreshes = True

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if call.endpoint == "authorize":
            self.user_scope = call.params.get("user_scope")
        if call.endpoint == "token" and code == 200 and call.params["grant_type"] == "authorization_code":
            own = self.grant(self.user_scope) if self.user_scope else {}
            if not self.user_refreshes:
                own.pop("refresh_token", None)
            data = {**(data or {}), "team": {"id": "T1"}, "authed_user": {"id": "U1", **own}}
        return code, headers, data


@dataclass
class World:
    place: Installation
    idp: SlackLike

    async def integration(self) -> Integration:
        """At a provider whose definition declares two token slots as the catalogue's for Slack does."""
        slots = {
            "metadata_paths": ["team.id"],
            "additional_tokens": {"path": "authed_user", "name": "user"},
        }
        revokes, named = self.idp.url("revoke"), {"user": "user_scope"}
        document = self.place.document(revocation_endpoint=revokes, scope_params=named, response=slots)
        return await self.place.integration_with(document)

    async def second(self, first: Connection) -> Connection | None:
        async with self.place.store.read() as tx:
            return await tx.connections.by_names(TENANT, first.integration, first.subject, "user")

    async def tokens(self, connection: Connection) -> tuple[str, str]:
        row = await self.place.row(connection)
        async with self.place.store.read() as tx:
            access = await tx.grants.access_token(row)
            refresh = await tx.grants.refresh_token(row)
        assert refresh is not None
        return access.reveal(), refresh.reveal()

    async def connected(self, integration: Integration) -> tuple[Connection, Connection]:
        first = await self.place.begin(integration)
        await self.place.consent(first, slot_scopes=USER)
        return await self.both(first)

    async def both(self, first: Connection, generation: int = 1) -> tuple[Connection, Connection]:
        first = await self.place.until(first, lambda c: c.generation == generation)
        second = await self.second(first)
        assert second is not None, "one transaction brings both"
        return first, await self.place.until(second, lambda c: c.generation >= generation)


@pytest.fixture
def provider(tls: LoopbackTls) -> SlackLike:
    return SlackLike(tls=tls)


@pytest.fixture
def world(place: Installation, idp: SlackLike) -> World:
    return World(place, idp)


async def test_each_slot_rotates_on_its_own_and_a_new_consent_renews_both(world: World):
    place, idp = world.place, world.idp
    integration = await world.integration()
    first, second = await world.connected(integration)
    assert idp.user_scope == "users:read"
    assert (second.consented_with, second.requested_scopes) == (first.id, ("users:read",))
    assert (await place.grant(second))[1].scopes == ("users:read",)
    assert (await place.grant(second))[1].metadata == {"team.id": "T1"}
    assert (await place.grant(first))[1].scopes == ("read",)
    held, others = await world.tokens(first), await world.tokens(second)
    assert set(held).isdisjoint(others)

    assert (await place.ensure_fresh(second, 1)).generation == 2
    assert idp.count("token", refresh_token=others[1]) == 1
    assert await world.tokens(first) == held, "the other slot is untouched"
    assert (await place.ensure_fresh(first, 1)).generation == 2
    assert (await place.ensure_fresh(second, 2)).generation == 3, "its rotated refresh token is its own"
    assert (await place.row(first)).generation == 2

    await place.consent(await place.row(first), slot_scopes=USER)
    await place.until(second, lambda c: c.generation == 4)
    first = await place.until(first, lambda c: c.generation == 3)
    assert (await world.second(first) or first).id == second.id, "its id, permits and audit stay"
    assert (await place.ensure_fresh(second, 4)).generation == 5, "by the new consent's refresh token"
    actions = await place.actions(second)
    assert actions[0] is AuditAction.CONNECTION_CREATED
    assert actions.count(AuditAction.GRANT_INSTALLED) == 2


async def test_a_slot_that_takes_over_a_connection_inherits_no_token_of_its_grant(world: World):
    """RFC 6749 section 6: only a refresh keeps the refresh token of before."""
    place, idp = world.place, world.idp
    integration = await world.integration()
    idp.script(ok(id_token=id_token("U1", iss=idp.issuer, aud=idp.client_id)))
    alone = await place.granted(await place.begin(integration, label="user"))
    idp.user_refreshes = False
    _, second = await world.connected(integration)
    assert second.id == alone.id
    row, grant = await place.grant(await place.until(second, lambda c: c.generation == 2))
    async with place.store.read() as tx:
        assert await tx.grants.refresh_token(row) is None
        assert await tx.grants.id_token(row) is None
        assert len(await tx.replaced_grants.of_connection(TENANT, row.id)) == 1
    assert not grant.refreshable


async def test_a_consent_of_another_account_does_not_fill_the_pinned_connection_of_its_slot(world: World):
    """That connection has its own pin, and the consent of the first one would go around it."""
    place, idp = world.place, world.idp
    integration, us = await world.integration(), {"iss": idp.issuer, "aud": idp.client_id}
    idp.script(ok(id_token=id_token("ann", **us)), ok(id_token=id_token("bob", **us)))
    anns = await place.granted(await place.begin(integration, label="user"))
    held = await world.tokens(anns)
    first = await place.begin(integration)
    await place.consent(first, slot_scopes=USER)
    await place.until(first, lambda c: c.state is LifecycleState.ACTIVE)
    await place.until_audited(anns, AuditAction.ACCOUNT_MISMATCH)
    assert (await place.row(anns)).generation == 1
    assert await world.tokens(anns) == held
    async with place.store.read() as tx:
        assert len(await tx.replaced_grants.of_connection(TENANT, anns.id)) == 1, "to be revoked"


async def test_a_revoked_slot_leaves_the_other_and_begins_anew_with_a_new_consent(world: World):
    place, idp = world.place, world.idp
    integration = await world.integration()
    first, second = await world.connected(integration)
    held, others = await world.tokens(first), await world.tokens(second)
    await place.revoked(second)
    assert (idp.active(held[0]), idp.active(others[0])) == (True, False)
    assert (await place.row(first)).state is LifecycleState.ACTIVE

    await place.consent(await place.row(first))
    await place.until(first, lambda c: c.generation == 2)
    assert (await world.second(first) or first).id == second.id, "not asked for, not brought"

    await place.consent(await place.row(first), slot_scopes=USER)
    first = await place.until(first, lambda c: c.generation == 3)
    anew = await world.second(first)
    assert anew is not None
    assert anew.id != second.id
    await place.until(anew, lambda c: c.state is LifecycleState.ACTIVE)
    assert (await place.row(second)).state is LifecycleState.REVOKED, "what was revoked stays revoked"


async def test_a_revocation_during_the_code_exchange_revokes_every_slot(world: World):
    place, idp = world.place, world.idp
    integration = await world.integration()
    first = await place.begin(integration)
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    await place.consent(first, slot_scopes=USER)
    await idp.until("token", 1)
    await place.revoke(first)
    gate.set()
    await place.until(first, lambda c: c.state is LifecycleState.REVOKED)
    second = await world.second(first)
    assert second is not None
    await place.until(second, lambda c: c.state is LifecycleState.REVOKED)
    assert not any(family.alive for family in idp.families)


async def test_a_worker_that_died_between_journal_and_commit_loses_no_slot(world: World):
    place, idp = world.place, world.idp
    first = await place.begin(await world.integration())
    consent = await place.consent(first, tell=False, slot_scopes=USER)
    dies = Activities(place, "one-host")
    use = await dies.single_use.open(
        AttemptKind.CODE_EXCHANGE, first, CODE_RULES, token_valid=False, credential=consent.id
    )
    user = {"id": "U1", **idp.grant("users:read")}
    reply = json.dumps({**idp.grant(), "team": {"id": "T1"}, "authed_user": user}).encode()
    order = ExchangeCode(**call_for(first), consent_id=consent.id, generation=0)
    await dies.dies_with(use, order, RawReply(200, {"content-type": "application/json"}, reply))
    assert await world.second(first) is None
    assert await Activities(place, "one-host").replayer.sweep() == 1
    first, second = await world.both(first)
    assert (first.state, second.state) == (LifecycleState.ACTIVE, LifecycleState.ACTIVE)
    assert idp.count("token") == 0, "the code is not sent again"
    assert (await place.ensure_fresh(second, 1)).generation == 2


@pytest.mark.parametrize("maker", ["app_maker", "app_other"])
async def test_a_slot_replaces_no_grant_of_another_app(world: World, maker: str):
    """The connection with the slot's label was made by another app; the tokens wait to be revoked."""
    place = world.place
    integration = await world.integration()
    theirs = await place.begin(integration, label="user")
    await place.consent(theirs, app_id=maker)
    theirs = await place.until(theirs, lambda c: c.generation == 1)
    held = await world.tokens(theirs)
    first = await place.begin(integration)
    await place.consent(first, slot_scopes=USER, app_id="app_maker")
    first = await place.until(first, lambda c: c.generation == 1)
    if maker == "app_maker":
        await place.until(theirs, lambda c: c.generation == 2)
        assert (await place.row(theirs)).consented_with == first.id
        return
    row = await place.row(theirs)
    assert (row.generation, row.consented_with) == (1, None)
    assert await world.tokens(theirs) == held
    async with place.store.read() as tx:
        assert len(await tx.replaced_grants.of_connection(TENANT, first.id)) == 1
