"""Narrower access tokens, which a refresh of the one chain brings, through every real part."""

import asyncio
from datetime import timedelta

import pytest

from activities.grants.narrowing import tokens_of_chain
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import TokenSet, narrowed_slot
from evergrant_server.core.messages.activities import RefreshGrant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.core.secret import Secret
from evergrant_server.store import LeaseRow, LeaseRows
from tests.fakes.certificates import LoopbackTls
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, ok

ALL, READ = ("read", "write"), ("read",)


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    return ScriptedProvider(tls=tls)


async def connected(place: Installation) -> Connection:
    document = place.document(down_scoping="refresh", revocation_endpoint=place.idp.url("revoke"))
    connection = await place.begin(await place.integration_with(document), requested_scopes=ALL)
    place.idp.script(ok(scope=" ".join(ALL)))
    await place.consent(connection, scopes=ALL)
    return await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)


async def narrow(place: Installation, connection: Connection, seen: int, *scopes: str) -> EnsureFreshResult:
    ask = EnsureFresh(seen_generation=seen, context=ASKED, scopes=scopes or READ)
    return await place.parts.link.ensure_fresh(TENANT, connection.id, ask, timeout=PATIENCE_S)


async def held(place: Installation, connection: Connection, *scopes: str) -> LeaseRow:
    row = await LeaseRows(place.store).load_narrowed(TENANT, connection.id, narrowed_slot(scopes or READ))
    assert row is not None
    return row


async def token(place: Installation, connection: Connection, *scopes: str) -> str | None:
    row = await held(place, connection, *scopes)
    return None if row.grant is None else row.open_access_token(place.parts.ring).reveal()


def refreshes(idp: ScriptedProvider) -> list[str | None]:
    """The scope of each refresh."""
    return [it.params.get("scope") for it in idp.calls if it.params.get("grant_type") == "refresh_token"]


async def test_rfc6749_6_narrower_tokens_come_from_the_one_chain_and_the_main_one_stays(place: Installation):
    connection = await connected(place)
    main = await place.access_token(connection)
    asked = await asyncio.gather(*(narrow(place, connection, 1) for _ in range(2)))
    assert {it.generation for it in (*asked, await place.ensure_fresh(connection, 1))} == {2}
    assert refreshes(place.idp) == ["read"]
    assert (await narrow(place, connection, 2, "write")).generation == 3
    assert await place.access_token(connection) == main
    _, grant = await place.grant(connection)
    assert (grant.scopes, grant.generation, grant.token_generation) == (ALL, 3, 1)
    read, write = [await held(place, connection, it) for it in ALL]
    assert read.grant is not None
    assert write.grant is not None
    assert (read.grant.scopes, write.grant.scopes) == (("read",), ("write",))
    assert len({main, await token(place, connection), await token(place, connection, "write")}) == 3
    (first, *_) = await place.audited(connection, AuditAction.GRANT_REFRESHED)
    assert first.detail == {"generation": 2, "requested_scopes": ["read"], "scopes": ["read"]}
    assert (await place.ensure_fresh(connection, 3)).generation == 4
    assert refreshes(place.idp) == ["read", "write", None]
    assert await place.access_token(connection) != main
    assert await token(place, connection) is None
    assert (await place.revoked(connection)).state is LifecycleState.REVOKED


async def test_a_revocation_leaves_no_narrower_token(place: Installation):
    connection = await connected(place)
    await narrow(place, connection, 1)
    await place.revoked(connection)
    assert (await held(place, connection)).sealed_access is None


async def test_a_new_consent_leaves_no_narrower_token(place: Installation):
    connection = await connected(place)
    await narrow(place, connection, 1)
    await place.consent(connection, scopes=ALL)
    await place.until(connection, lambda it: it.generation == 3)
    assert await token(place, connection) is None


async def test_a_refused_scope_costs_no_grant_and_is_not_requested_again(place: Installation):
    connection = await connected(place)
    place.idp.script(error("invalid_scope"))
    assert (await narrow(place, connection, 1)).generation == 1
    row, refused = await place.row(connection), await held(place, connection)
    assert (row.state, row.failures) == (LifecycleState.ACTIVE, 0)
    assert refused.grant is not None
    assert (refused.grant.scopes, refused.sealed_access) == (ALL, None)
    described = await place.described(connection)
    assert described is not None
    assert described.failures == 0
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_reply_that_names_no_scopes_has_not_narrowed(place: Installation):
    connection = await connected(place)
    place.idp.script(ok(scope=None))
    await narrow(place, connection, 1)
    (record,) = await place.audited(connection, AuditAction.GRANT_REFRESHED)
    assert record.detail["scopes"] == list(ALL)
    row = await held(place, connection)
    assert row.grant is not None
    assert row.grant.scopes == ALL


async def test_a_narrower_token_does_not_move_the_end_of_the_main_one(place: Installation):
    connection = await connected(place)
    before = (await place.grant(connection))[1]
    place.idp.script(ok(expires_in=60))
    await narrow(place, connection, 1)
    after = (await place.grant(connection))[1]
    assert (after.expires_at, after.obtained_at) == (before.expires_at, before.obtained_at)
    row = await held(place, connection)
    assert row.grant is not None
    assert row.grant.lifetime == timedelta(seconds=60)


def test_late_tokens_are_verified_for_the_scopes_of_the_chain():
    """The refresh token of a narrower reply is good for all of them."""
    call = {"tenant": TENANT, "connection_id": "con_1", "context": ASKED}
    tokens = TokenSet(access_token=Secret("at"), scopes=READ)
    for scopes, kept in ((READ, None), ((), READ)):
        request = RefreshGrant.model_construct(**call, generation=1, scopes=scopes)
        assert tokens_of_chain(request, tokens).scopes == kept
