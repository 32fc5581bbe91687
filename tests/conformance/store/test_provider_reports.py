"""What is known of grants at their providers, on both databases."""

from datetime import timedelta

import pytest

from evergrant_server.audit.provider_reports import apply_provider_report
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, ReceiverId, Tenant, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.provider_events import (
    AccountIdentifier,
    Certainty,
    IntrospectionFinding,
    ProviderReport,
    Receiver,
    ReceiverKind,
    ReportDecision,
    ReportSource,
)
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from tests.conformance.store.samples import ACME, a_connection, a_grant, added, an_integration, some_tokens
from tests.fakes.databases import NOW
from tests.fakes.events.transmitter import id_token
from tests.fakes.failures import fails

ANOTHER = IntegrationId("int_1111111111111111111111")
SUB, TEAM = AccountIdentifier("sub", "account-1"), AccountIdentifier("fact:team.id", "T1")


async def granted(store: Store, sub: str = "account-1", **changes: object) -> Connection:
    connection = await added(store, a_connection(**changes))
    after = connection.granted(NOW)
    tokens = some_tokens(refresh="rt-" + "x" * 40, id_token=id_token(sub))
    grant = a_grant(1, metadata={"team.id": "T1", "authed_user.id": sub, "flag": True})
    async with store.write() as tx:
        return await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=connection.revision)


async def bearers(
    store: Store, *marks: AccountIdentifier, tenant: Tenant = ACME, integration: str = ""
) -> list[str]:
    where = IntegrationId(integration or "int_0000000000000000000000")
    async with store.read() as tx:
        return list(await tx.account_identifiers.connections_identified_by(tenant, where, frozenset(marks)))


async def test_a_connection_is_found_by_every_mark_it_bears_and_by_no_other(store: Store):
    one = await granted(store)
    two = await granted(store, "account-2", subject="user-2")
    assert await bearers(store, SUB) == [one.id]
    assert await bearers(store, TEAM) == sorted([one.id, two.id])
    both = (TEAM, AccountIdentifier("fact:authed_user.id", "account-2"))
    assert await bearers(store, *both) == [two.id]
    assert await bearers(store, AccountIdentifier("fact:team.id", "T2"), SUB) == []
    assert await bearers(store, AccountIdentifier("fact:authed_user.id", "T1")) == []  # another name's value
    assert await bearers(store, AccountIdentifier("fact:flag", "True")) == []
    assert await bearers(store) == []
    assert await bearers(store, SUB, integration=ANOTHER) == []
    assert await bearers(store, SUB, tenant=Tenant("acme2")) == []


@pytest.mark.parametrize(
    "claims", [{"sub": "\ud800"}, {"email": "a\udfff@b.example", "email_verified": True}]
)
async def test_half_a_character_is_no_mark_and_the_grant_is_installed(
    store: Store, claims: dict[str, object]
):
    """JSON may name one, and nothing can be made of it: not even a hash."""
    connection = await added(store, a_connection())
    tokens = some_tokens(id_token=id_token(**{"sub": "account-1", **claims}))
    grant = a_grant(1, metadata={"team.id": "T1"})
    async with store.write() as tx:
        saved = await tx.grants.install(
            connection.granted(NOW), tokens, grant, origin=Origin.NEW, expected=connection.revision
        )
    assert saved.generation == 1
    assert await bearers(store, TEAM) == [connection.id]
    assert await bearers(store, SUB) == ([] if "sub" in claims else [connection.id])


async def test_marks_follow_the_tokens_and_are_forgotten_with_them(store: Store):
    one = await granted(store)
    prefix = AccountIdentifier("refresh_token_prefix", "rt-xxxxxxxxxxxxx")
    assert await bearers(store, prefix) == [one.id]
    rotated = some_tokens(access="at-2", refresh="rt-" + "y" * 40)
    after = one.refreshed(NOW)
    async with store.write() as tx:
        one = await tx.grants.install(
            after, rotated, a_grant(2, metadata={}), origin=Origin.REFRESH, expected=one.revision
        )
    assert await bearers(store, prefix) == []
    assert await bearers(store, AccountIdentifier("refresh_token_prefix", "rt-yyyyyyyyyyyyy")) == [one.id]
    assert await bearers(store, SUB) == [one.id], "no id token came in its place"
    assert await bearers(store, TEAM) == []
    async with store.write() as tx:
        await tx.grants.shred(ACME, one.id)
    assert await bearers(store, SUB) == []


async def test_a_mark_is_stored_as_a_keyed_hash(store: Store):
    await granted(store)
    async with store.read() as tx:
        found = await tx.connection.exec_driver_sql("SELECT identifier_hash FROM account_identifier")
        rows = found.scalars().all()
    assert len(rows) >= 4
    assert all(len(row) == 32 and "account" not in row and "rt-" not in row for row in rows)


async def test_a_report_against_a_stale_row_is_a_conflict_and_writes_nothing(store: Store):
    one = await granted(store)
    async with store.write() as tx:
        await tx.connections.replace(one, expected=one.revision)
    news = ProviderReport(source=ReportSource.HOOK, kind="x", certainty=Certainty.ENDED)
    by = RequestContext(by="provider:x")
    with fails(ErrorCode.STORE_CONFLICT):
        async with store.write() as tx:
            await apply_provider_report(tx, one, news, by, NOW)
    async with store.write() as tx:
        current = await tx.connections.get(ACME, one.id)
        assert current is not None
        assert await apply_provider_report(tx, current, news, by, NOW) is ReportDecision.ENDED


async def a_receiver_of(store: Store, secret: str | None = None) -> tuple[Integration, Receiver]:
    integration = an_integration()
    receiver = a_receiver(integration_id=integration.id)
    async with store.write() as tx:
        await tx.integrations.put(integration, None, expected=None)
        await tx.receivers.put(receiver, Secret(secret) if secret else None, expected=None)
    return integration, receiver


def a_receiver(**changes: object) -> Receiver:
    values: dict[str, object] = {
        "tenant": ACME,
        "id": ReceiverId(new_id("rcv")),
        "integration_id": IntegrationId("int_0000000000000000000000"),
        "kind": ReceiverKind.SET,
        "jwks_uri": "https://a.example/keys",
        "keys": ({"kty": "RSA", "n": "x", "e": "AQAB"},),
        "created_at": NOW,
        "changed_at": NOW,
    }
    return Receiver.model_validate({**values, **changes})


async def test_a_receiver_comes_back_equal_with_its_secret_sealed(store: Store):
    integration, receiver = await a_receiver_of(store, "hush-hush")
    async with store.read() as tx:
        assert await tx.receivers.find_in_any_tenant(receiver.id) == receiver
        assert await tx.receivers.of_integration(Tenant("acme2"), integration.id) is None
        assert await tx.receivers.secret(receiver) == Secret("hush-hush")
        assert [it.id for it in await tx.receivers.with_keys_older_than(NOW)] == [receiver.id]
    async with store.write() as tx:
        after = await tx.receivers.put(receiver, None, expected=1)
        assert await tx.receivers.secret(after) is not None, "not given again: kept"
        with pytest.raises(Failure):
            await tx.receivers.put(a_receiver(integration_id=integration.id), None, expected=None)
    async with store.write() as tx:
        await tx.integrations.delete(ACME, integration.id)
        assert await tx.receivers.find_in_any_tenant(receiver.id) is None


async def test_an_event_is_noted_once_and_forgotten_when_it_is_old(store: Store):
    _, receiver = await a_receiver_of(store)
    async with store.write() as tx:
        assert await tx.receivers.record_event(receiver, "a" * 64, NOW) is True
        assert await tx.receivers.record_event(receiver, "a" * 64, NOW) is False
        assert await tx.receivers.is_known_event(receiver, "a" * 64)
        assert await tx.receivers.delete_events_before(NOW) == 0
        assert await tx.receivers.delete_events_before(NOW + timedelta(seconds=1)) == 1
        assert not await tx.receivers.is_known_event(receiver, "a" * 64)


async def test_introspection_has_its_own_order_and_leaves_the_connection_alone(store: Store):
    one = await granted(store)
    integration = one.integration_id
    async with store.read() as tx:
        assert [it.id for it in await tx.introspections.unscheduled(ACME, integration, 10)] == [one.id]
        assert not await tx.introspections.provider_recognizes_tokens(ACME, integration)
    async with store.write() as tx:
        await tx.introspections.schedule(ACME, one.id, NOW)
        assert await tx.introspections.unscheduled(ACME, integration, 10) == []
        assert [it.id for it in await tx.introspections.due(ACME, integration, NOW, 10)] == [one.id]
        later = NOW + timedelta(hours=1)
        found = IntrospectionFinding.REFRESH_TOKEN_ACTIVE.value
        await tx.introspections.schedule(ACME, one.id, later, outcome=found, checked_at=NOW)
        assert await tx.introspections.due(ACME, integration, NOW, 10) == []
        assert await tx.introspections.provider_recognizes_tokens(ACME, integration)
        assert not await tx.introspections.provider_recognizes_tokens(ACME, ANOTHER)
    async with store.read() as tx:
        assert await tx.connections.get(ACME, one.id) == one


async def test_a_new_consent_inherits_no_mark_of_the_account_before(store: Store):
    one = await granted(store)
    after, tokens = one.granted(NOW), some_tokens(access="at-2", refresh=None)
    grant = a_grant(2, metadata={}, refreshable=False)
    async with store.write() as tx:
        await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=one.revision)
    assert await bearers(store, SUB) == []
    assert await bearers(store, AccountIdentifier("refresh_token_prefix", "rt-xxxxxxxxxxxxx")) == []
