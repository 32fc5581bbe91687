"""Two token slots from one consent, as Slack fills them: two connections with lifecycles of their own."""

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.crypto.keyring import Role
from evergrant_server.wiring.platform import open_platform
from tests.fakes.certificates import loopback_tls
from tests.fakes.databases import migrated_sqlite, sqlite_url
from tests.fakes.platform.installation import TENANT, Installation, prepared
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, hold_answer
from tests.faults.single_use.test_journal_replay import Workers, store_that_takes_no_write

USER = {"user": ("users:read",)}


@dataclass
class _Seen:
    user_scope: str | None = None


class SlackLike(ScriptedProvider):
    """Gives a second token below `authed_user` when `user_scope` was requested."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.seen = _Seen()

    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        code, headers, data = super()._act(call)
        if call.endpoint == "authorize":
            self.seen.user_scope = call.params.get("user_scope")
        if call.endpoint == "token" and code == 200 and call.params["grant_type"] == "authorization_code":
            own = self.grant(self.seen.user_scope) if self.seen.user_scope else {}
            data = {**(data or {}), "team": {"id": "T1"}, "authed_user": {"id": "U1", **own}}
        return code, headers, data


@dataclass
class World:
    place: Installation
    idp: SlackLike
    made: list[Integration] = field(default_factory=list)

    async def integration(self) -> Integration:
        """At a provider whose definition declares two token slots as the catalogue's for Slack does."""
        document = {
            "name": f"two-{new_id('def')[-6:]}",
            "display_name": "As Slack does",
            "auth_modes": ["authorization_code"],
            "authorization_endpoint": self.idp.url("authorize"),
            "token_endpoint": self.idp.url("token"),
            "revocation_endpoint": self.idp.url("revoke"),
            "scope_params": {"user": "user_scope"},
            "response": {
                "metadata_paths": ["team.id"],
                "additional_tokens": {"path": "authed_user", "name": "user"},
            },
            "refresh_rotates": True,
        }
        return await self.place.integration_with(self.idp, document)

    async def second(self, first: Connection) -> Connection | None:
        async with self.place.store.read() as tx:
            return await tx.connections.by_names(TENANT, first.integration, first.subject, "user")

    async def tokens(self, connection: Connection) -> tuple[str, str]:
        async with self.place.store.read() as tx:
            row = await tx.connections.get(TENANT, connection.id)
            assert row is not None
            access = await tx.grants.access_token(row)
            refresh = await tx.grants.refresh_token(row)
        assert refresh is not None
        return access.reveal(), refresh.reveal()

    async def connected(self, integration: Integration) -> tuple[Connection, Connection]:
        first = await self.place.begin(integration)
        await self.place.consent(self.idp, integration, first, slot_scopes=USER)
        return await self.both(first)

    async def both(self, first: Connection, generation: int = 1) -> tuple[Connection, Connection]:
        first = await self.place.until(first, lambda c: c.generation == generation)
        second = await self.second(first)
        assert second is not None, "one transaction brings both"
        return first, await self.place.until(second, lambda c: c.generation >= generation)


@pytest_asyncio.fixture
async def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlackLike]:
    tls = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authorities))
    async with SlackLike(tls=tls) as idp:
        yield idp


@pytest.fixture
def world(place: Installation, idp: SlackLike) -> World:
    return World(place, idp)


async def test_each_slot_rotates_on_its_own_and_a_new_consent_renews_both(world: World):
    place, idp = world.place, world.idp
    integration = await world.integration()
    first, second = await world.connected(integration)
    assert idp.seen.user_scope == "users:read"
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

    await place.consent(idp, integration, await place.row(first), slot_scopes=USER)
    await place.until(second, lambda c: c.generation == 4)
    first = await place.until(first, lambda c: c.generation == 3)
    assert (await world.second(first) or first).id == second.id, "its id, permits and audit stay"
    assert (await place.ensure_fresh(second, 4)).generation == 5, "by the new consent's refresh token"
    actions = await place.actions(second)
    assert actions[0] is AuditAction.CONNECTION_CREATED
    assert actions.count(AuditAction.GRANT_INSTALLED) == 2


async def test_a_revoked_slot_leaves_the_other_and_begins_anew_with_a_new_consent(world: World):
    place, idp = world.place, world.idp
    integration = await world.integration()
    first, second = await world.connected(integration)
    held, others = await world.tokens(first), await world.tokens(second)
    await place.revoke(second)
    await place.until(second, lambda c: c.state is LifecycleState.REVOKED)
    assert (idp.active(held[0]), idp.active(others[0])) == (True, False)
    assert (await place.row(first)).state is LifecycleState.ACTIVE

    await place.consent(idp, integration, await place.row(first))
    await place.until(first, lambda c: c.generation == 2)
    assert (await world.second(first) or first).id == second.id, "not asked for, not brought"

    await place.consent(idp, integration, await place.row(first), slot_scopes=USER)
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
    await place.consent(idp, integration, first, slot_scopes=USER)
    await idp.until("token", 1)
    await place.revoke(first)
    gate.set()
    await place.until(first, lambda c: c.state is LifecycleState.REVOKED)
    second = await world.second(first)
    assert second is not None
    await place.until(second, lambda c: c.state is LifecycleState.REVOKED)
    assert not any(family.alive for family in idp.families)


async def test_a_worker_killed_between_journal_and_commit_loses_no_slot(
    temporal_address: str, tmp_path: Path, idp: SlackLike
):
    await migrated_sqlite(tmp_path)
    settings = await prepared(temporal_address, sqlite_url(tmp_path), tmp_path, (idp.allowance,))
    workers = Workers(settings, tmp_path)
    async with open_platform(settings, Role.OPERATOR) as parts:
        world = World(Installation(parts), idp)
        try:
            dies = await workers.start()
            integration = await world.integration()
            first = await world.place.begin(integration)
            gate = asyncio.Event()
            idp.script(hold_answer(gate))
            await world.place.consent(idp, integration, first, slot_scopes=USER)
            await idp.until("token", 1)
            async with store_that_takes_no_write(tmp_path):
                gate.set()
                await workers.until_journalled()
                dies.send_signal(signal.SIGKILL)
                await dies.wait()
            assert await world.second(first) is None
            await workers.start()
            first, second = await world.both(first)
            assert (first.state, second.state) == (LifecycleState.ACTIVE, LifecycleState.ACTIVE)
            assert idp.count("token", grant_type="authorization_code") == 1
            assert (await world.place.ensure_fresh(second, 1)).generation == 2
            assert first.reason is not ErrorCode.OUTCOME_UNKNOWN
        finally:
            await workers.stop()
