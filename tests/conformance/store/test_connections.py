"""Connections: names are unique while live, and a change names the revision that was read."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, AttemptId, IntegrationId, Tenant, new_id
from evergrant_server.core.single_use.attempt import LateTokens
from evergrant_server.store import Store
from evergrant_server.store.connections.connections import Position
from evergrant_server.store.connections.tables import ConnectionRow
from tests.conformance.store.samples import ACME, a_connection, added, granted, some_tokens
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def test_a_row_that_is_locked_is_read_as_any_other_and_can_be_changed(store: Store):
    connection = await added(store, a_connection())
    async with store.write() as tx:
        assert await tx.connections.get_for_update(ACME, connection.id) == connection
        assert await tx.connections.get_for_update(Tenant("other"), connection.id) is None
        place = Position(connection.state, connection.generation)
        assert await tx.connections.position(ACME, connection.id, for_share=True) == place
        assert await tx.connections.position(Tenant("other"), connection.id, for_share=True) is None
        await tx.connections.replace(connection.consent_denied(NOW), expected=1)


async def test_moments_keep_microseconds_and_their_instant(store: Store):
    elsewhere = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    connection = await added(store, a_connection(created_at=elsewhere))
    async with store.read() as tx:
        kept = await tx.connections.get(ACME, connection.id)
    assert kept is not None
    assert kept.created_at == elsewhere
    assert kept.created_at.tzinfo is UTC


async def test_another_tenant_sees_nothing(store: Store):
    connection = await added(store, a_connection())
    async with store.read() as tx:
        for tenant in ("acm", "acme2", "ACME", "acme%"):
            assert await tx.connections.get(Tenant(tenant), connection.id) is None
            assert await tx.connections.by_names(Tenant(tenant), "github", "user-1") is None
            assert await tx.connections.page(Tenant(tenant)) == []


async def test_two_live_connections_cannot_share_their_names(store: Store):
    await added(store, a_connection())
    with fails(ErrorCode.ALREADY_EXISTS):
        await added(store, a_connection())
    with fails(ErrorCode.STORE_CONFLICT):  # who found them free is to look again
        async with store.write() as tx:
            await tx.connections.add_new(a_connection())
    await added(store, a_connection(label="second"))
    await added(store, a_connection(tenant="other"))


async def test_an_ended_connection_frees_its_names_and_answers_to_them_until_a_live_one_does(store: Store):
    ended = []
    for minute in (2, 3, 1):
        connection = await added(store, a_connection(created_at=NOW + timedelta(minutes=minute)))
        async with store.write() as tx:
            ended.append(await tx.connections.replace(connection.consent_denied(NOW), expected=1))
    async with store.read() as tx:
        assert await tx.connections.by_names(ACME, "github", "user-1", "default") == ended[1]
    live = await added(store, a_connection())
    async with store.read() as tx:
        assert await tx.connections.by_names(ACME, "github", "user-1", "default") == live


async def test_of_two_concurrent_writers_one_wins(store: Store):
    first = await added(store, a_connection())

    async def change(reason: str) -> Connection:
        async with store.write() as tx:
            return await tx.connections.replace(first.revocation_requested(reason, NOW), expected=1)

    ended = await asyncio.gather(*(change(f"r{n}") for n in range(6)), return_exceptions=True)
    winners = [it for it in ended if isinstance(it, Connection)]
    losers = [it.code for it in ended if isinstance(it, Failure)]
    assert len(winners) == 1
    assert losers == [ErrorCode.STORE_CONFLICT] * 5
    assert winners[0].revision == 2
    async with store.read() as tx:
        assert await tx.connections.get(ACME, first.id) == winners[0]
    with fails(ErrorCode.NOT_FOUND):
        async with store.write() as tx:
            await tx.connections.replace(a_connection(), expected=1)


async def test_of_two_concurrent_adders_one_wins(store: Store):
    ended = await asyncio.gather(*(added(store, a_connection()) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(it, Connection) for it in ended) == 1
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.ALREADY_EXISTS] * 4


async def test_a_read_sees_one_moment(store: Store):
    first = await added(store, a_connection())
    async with store.read() as tx:
        before = await tx.connections.get(ACME, first.id)
        async with store.write() as other:
            await other.connections.replace(first.granted(NOW), expected=1)
        assert await tx.connections.get(ACME, first.id) == before


async def test_pages_are_sorted_by_id_and_miss_nothing(store: Store):
    wanted = sorted([(await added(store, a_connection(subject=f"s{n}"))).id for n in range(7)])
    await added(store, a_connection(tenant="other"))
    seen: list[str] = []
    async with store.read() as tx:
        while page := await tx.connections.page(ACME, after=seen[-1] if seen else None, limit=3):
            seen += [it.id for it in page]
    assert seen == wanted


async def test_filters_narrow_a_page(store: Store):
    one = await granted(store, subject="a")
    two = await added(store, a_connection(subject="b", provider="google", integration="mail"))

    async def ids(**filters: object) -> set[str]:
        async with store.read() as tx:
            return {it.id for it in await tx.connections.page(ACME, **filters)}  # type: ignore[arg-type]  # the filters differ by case

    assert await ids(subject="a") == {one.id}
    assert await ids(provider="google") == {two.id}
    assert await ids(integration="mail") == {two.id}
    assert await ids(state=LifecycleState.ACTIVE) == {one.id}
    assert await ids(expiring_before=NOW + timedelta(hours=1, seconds=1)) == {one.id}
    assert await ids(expiring_before=NOW + timedelta(hours=1)) == set()
    assert await ids(subject="a", provider="google") == set()


async def test_what_waits_for_an_app_is_what_does_not_work(store: Store):
    """Its own alone, those without a first grant or with a refresh that failed, and no ended one."""
    app = AppId("app_0000000000000000000000")
    pending = await added(store, a_connection(subject="pending", source_app=app))
    await granted(store, subject="works", source_app=app)
    bad: dict[str, Any] = {"state": LifecycleState.ACTIVE, "failures": 2}
    failing = await added(store, a_connection(subject="fails", source_app=app, **bad))
    await added(store, a_connection(subject="other", source_app="app_1111111111111111111111", **bad))
    await added(store, a_connection(subject="nobody's", **bad))
    await added(store, a_connection(subject="elsewhere", tenant="other", source_app=app, **bad))
    await added(
        store, a_connection(subject="ended", state=LifecycleState.REVOKED, source_app=app, failures=2)
    )
    async with store.read() as tx:
        waiting = [it.id for it in await tx.connections.waiting_for_source_app(ACME, app)]
    assert waiting == sorted([pending.id, failing.id])
    async with store.read() as tx:
        assert [it.id for it in await tx.connections.waiting_for_source_app(ACME, app, limit=1)] == waiting[
            :1
        ]
        after_first = await tx.connections.waiting_for_source_app(ACME, app, waiting[0])
    assert [it.id for it in after_first] == waiting[1:]


async def test_what_an_admin_s_repair_may_help_is_found_also_where_no_refresh_failed(store: Store):
    """A revocation, a first token that is requested or polled for, and a late reply are tried again."""
    bad: dict[str, Any] = {"state": LifecycleState.ACTIVE, "failures": 2}
    helped = [
        await added(store, a_connection(subject="fails", **bad)),
        await added(store, a_connection(subject="revoking", state=LifecycleState.REVOKING)),
        await added(store, a_connection(subject="minted", flow=Flow.CLIENT_CREDENTIALS)),
        await added(
            store, a_connection(subject="again", flow=Flow.JWT_BEARER, state=LifecycleState.NEEDS_REAUTH)
        ),
        await added(store, a_connection(subject="polls", flow=Flow.DEVICE_CODE)),
    ]
    came_late = await granted(store, subject="came late")
    late = LateTokens(
        tenant=ACME,
        attempt_id=AttemptId(new_id("att")),
        connection_id=came_late.id,
        from_generation=1,
        requested_at=NOW,
        received_at=NOW,
    )
    async with store.write() as tx:
        rejected = came_late.rejected(ErrorCode.OUTCOME_UNKNOWN, NOW)
        helped.append(await tx.connections.replace(rejected, expected=came_late.revision))
        assert await tx.late_tokens.add(late, some_tokens("at-2", "rt-2"))
    await granted(store, subject="works")
    await granted(store, subject="works, and is minted", flow=Flow.CLIENT_CREDENTIALS)
    await added(store, a_connection(subject="in a browser"))
    await added(store, a_connection(subject="asked in a browser", state=LifecycleState.NEEDS_REAUTH))
    await added(store, a_connection(subject="revoked", state=LifecycleState.REVOKED))
    await added(store, a_connection(subject="elsewhere", tenant="other", **bad))
    other = IntegrationId("int_1111111111111111111111")
    await added(store, a_connection(subject="other", integration="other", integration_id=other, **bad))
    async with store.read() as tx:
        found = await tx.connections.failing(ACME, helped[0].integration_id)
    assert [it.id for it in found] == sorted(it.id for it in helped)
    async with store.read() as tx:
        page = await tx.connections.failing(ACME, helped[0].integration_id, found[1].id, limit=2)
    assert page == found[2:4]


async def test_live_spans_tenants_and_leaves_out_the_ended(store: Store):
    one = await added(store, a_connection())
    two = await added(store, a_connection(tenant="other"))
    await added(store, a_connection(subject="gone", state=LifecycleState.REVOKED))
    async with store.read() as tx:
        live = await tx.connections.live_in_all_tenants(None, 10)
        assert [it.id for it in live] == sorted([one.id, two.id])
        assert [it.id for it in await tx.connections.live_in_all_tenants(live[0].id, 10)] == [live[1].id]


async def test_a_row_that_cant_be_read_is_named_and_left_out_of_pages(store: Store):
    rows = sorted([await added(store, a_connection(subject=f"s{n}")) for n in range(4)], key=lambda it: it.id)
    broken = update(ConnectionRow).where(col(ConnectionRow.id).in_([rows[1].id, rows[3].id]))
    async with store.write() as tx:
        await tx.connection.execute(broken.values(flow="from_the_future"))
    async with store.read() as tx:
        first = await tx.connections.page(ACME, limit=2)
        assert (first, first.last, first.has_more) == ([rows[0]], rows[1].id, True)
        (named,) = first.unreadable
        why = f"the row of {rows[1].id} in connection can't be read: flow"
        assert named == (rows[1].id, rows[1].integration, rows[1].provider, rows[1].subject, why)
        live = await tx.connections.live_in_all_tenants(first.last)
        assert (live, live.last, live.has_more) == ([rows[2]], rows[3].id, False)
        assert await tx.connections.any_live(ACME, rows[1].integration_id)


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("flow", "from_the_future"),
        ("state", "another"),
        ("reason", "unknown"),
        ("target", ["no object"]),
        ("requested_scopes", {"no": "list"}),
        ("slot_scopes", 5),
    ],
)
async def test_a_row_that_cannot_be_read_can_be_read_to_be_revoked(store: Store, column: str, wrong: Any):
    """What can't be read gives way to a default, and every other column stays."""
    connection = await granted(store)
    mine = col(ConnectionRow.id) == connection.id
    async with store.write() as tx:
        await tx.connection.execute(update(ConnectionRow).where(mine).values(**{column: wrong}))
    async with store.write() as tx:
        with fails(ErrorCode.INTERNAL):
            await tx.connections.get(ACME, connection.id)
        read = await tx.revocable_rows.connection(ACME, connection.id, NOW)
        assert read is not None
        kept = {column: getattr(connection, column)}
        assert read.model_copy(update=kept) == connection
        await tx.connections.replace(read.revocation_requested("left", NOW), expected=read.revision)
    async with store.read() as tx:
        row = await tx.connections.get(ACME, connection.id)
        assert row is not None
        assert row.state is LifecycleState.REVOKING
        assert (await tx.grants.access_token(row)).reveal(), "its tokens can be opened, to be revoked"
    async with store.write() as tx:
        assert await tx.revocable_rows.connection(Tenant("other"), connection.id, NOW) is None


async def test_columns_that_are_not_of_their_type_are_replaced_as_well(store: Store):
    """On SQLite a JSON column may hold any text, and a moment too; PostgreSQL refuses to store them."""
    connection = await granted(store)
    broken = {"target": "{", "created_at": "yesterday", "consent_deadline": "never"}
    async with store.write() as tx:
        if tx.connection.dialect.name != "sqlite":
            return
        for column, wrong in broken.items():
            statement = text(f"UPDATE connection SET {column} = :wrong WHERE id = :id")
            await tx.connection.execute(statement, {"wrong": wrong, "id": connection.id})
        table = "UPDATE connection_grant SET scopes = '{', facts = 'x' WHERE connection_id = :id"
        await tx.connection.execute(text(table), {"id": connection.id})
    async with store.write() as tx:
        read = await tx.revocable_rows.connection(ACME, connection.id, NOW)
        assert read is not None
        assert (read.subject, read.state, read.created_at) == (connection.subject, connection.state, NOW)
        assert await tx.connections.get(ACME, connection.id) == read
        grant = await tx.grants.get(ACME, connection.id)
        assert grant is not None
        assert (grant.generation, grant.scopes) == (connection.generation, ())
        assert (await tx.grants.access_token(read)).reveal()


async def test_what_an_import_waits_for_is_past_its_consent_and_says_whether_it_can_be_refreshed(
    store: Store,
):
    pending, of_another = (
        await added(store, a_connection(subject="waits")),
        await granted(store, subject="else"),
    )
    refreshable = await granted(store, subject="refreshable")
    denied = await added(store, a_connection(subject="denied", state=LifecycleState.DENIED))
    ids = [pending.id, refreshable.id, denied.id]
    async with store.read() as tx:
        ended = await tx.connections.past_consent(ACME, ids)
        assert await tx.connections.past_consent(Tenant("other"), ids) == []
    assert {(connection.id, renewable) for connection, renewable in ended} == {
        (refreshable.id, True),
        (denied.id, False),
    }
    assert of_another.id not in {connection.id for connection, _ in ended}


async def test_an_import_waits_for_no_grant_whose_first_refresh_has_ended(store: Store):
    waits = await granted(store, subject="waits")
    failed, refreshed = await granted(store, subject="failed"), await granted(store, subject="refreshed")
    denied = await added(store, a_connection(subject="denied", state=LifecycleState.DENIED))
    async with store.write() as tx:
        why = failed.refresh_failed(ErrorCode.PROVIDER_UNREACHABLE, NOW, token_over=False)
        await tx.connections.replace(why, expected=failed.revision)
        await tx.connections.replace(refreshed.refreshed(NOW), expected=refreshed.revision)
        ids = [waits.id, failed.id, refreshed.id, denied.id]
        ended = await tx.connections.past_consent(ACME, ids, refreshed=True)
    assert {connection.id for connection, _ in ended} == {failed.id, refreshed.id, denied.id}


async def test_names_that_an_import_looks_up_are_those_of_ended_connections_too(store: Store):
    live = await added(store, a_connection(subject="live"))
    ended = await added(store, a_connection(subject="ended", state=LifecycleState.DENIED))
    async with store.read() as tx:
        known = await tx.connections.known_names(ACME, {"crm", live.integration}, {"live", "ended", "new"})
        assert await tx.connections.known_names(Tenant("other"), {live.integration}, {"live"}) == set()
    assert known == {(row.integration, row.subject, row.label) for row in (live, ended)}
