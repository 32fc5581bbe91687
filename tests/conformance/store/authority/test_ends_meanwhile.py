"""An end that is committed between two statements of a reader is no row that was put back."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.core.access import Action, App, Effect, Permit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AppId, PermitId, SessionId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import PersonSession, SessionKind
from evergrant_server.store import Store, Transaction
from evergrant_server.store.authority import scan
from evergrant_server.store.authority.authenticators import require_none_put_back
from evergrant_server.store.people.people import PersonSessionRow
from tests.conformance.store.samples import ACME
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

_CONTEXT = RequestContext(by="app:boss")


async def _session(store: Store) -> PersonSession:
    session = PersonSession(
        tenant=ACME,
        id=SessionId(new_id("ses")),
        kind=SessionKind.BROWSER,
        secret_hash="h" * 64,
        rule=None,
        person=Person(issuer="https://login.example", sub="1"),
        role=PersonRole.TENANT_ADMIN,
        authenticated_at=NOW,
        created_at=NOW,
        last_used_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    await run_transaction(store, lambda tx: tx.person_sessions.add(session))
    return session


async def _end(store: Store, session: PersonSession) -> None:
    async def end(tx: Transaction) -> None:
        await tx.person_sessions.end(ACME, session.id, NOW)
        await record(tx, ACME, AuditAction.SESSION_ENDED, session.id, _CONTEXT, NOW)

    await run_transaction(store, end)


async def test_a_row_that_ends_after_it_was_read_is_read_again(store: Store):
    session = await _session(store)
    await _end(store, session)
    async with store.write() as tx:
        with fails(ErrorCode.STORE_CONFLICT):
            await require_none_put_back(tx.connection, PersonSessionRow, [session])


async def test_an_app_whose_deny_is_deleted_after_it_was_read_is_read_again(store: Store):
    app = App(tenant=ACME, id=AppId(new_id("app")), name="etl", created_at=NOW)
    permit = Permit(
        tenant=ACME,
        id=PermitId(new_id("per")),
        app_id=app.id,
        name="never",
        integration="*",
        actions=(Action.TOKEN,),
        effect=Effect.DENY,
        created_at=NOW,
    )

    async def put(tx: Transaction) -> None:
        await tx.access.put_app(app, expected=None)
        await tx.access.put_permit(permit, expected=None)

    await run_transaction(store, put)
    async with store.read() as tx:
        read = await tx.access.app_by_name(ACME, "etl")
    assert read is not None
    await run_transaction(store, lambda tx: tx.access.delete_permit(permit))
    for judge in ("permits_of", "require_denies"):
        async with store.write() as tx:
            with fails(ErrorCode.STORE_CONFLICT):
                await getattr(tx.access, judge)(read)


async def test_a_scan_names_no_row_that_ends_while_it_looks(store: Store, monkeypatch: pytest.MonkeyPatch):
    session = await _session(store)
    read_page: Callable[..., Awaitable[list[object]]] = vars(scan)["_page"]

    async def page(store: Store, table: type[object], *place: object) -> list[object]:
        rows = await read_page(store, table, *place)
        if table is PersonSessionRow and rows:
            await _end(store, session)
        return rows

    monkeypatch.setattr(scan, "_page", page)
    assert not await scan.broken_configuration(store)
    async with store.read() as tx:
        ended = await tx.person_sessions.get(ACME, session.id)
    assert ended is not None
    assert ended.ended_at is not None
