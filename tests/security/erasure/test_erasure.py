"""A person is erased: the files are read before and after, on both databases, and what may not go stays."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.access.erasure import Order, erase
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.erasure import ErasureState, TargetKind
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from evergrant_server.store.database.columns import METADATA
from tests.fakes.api import OTHER, TENANT
from tests.fakes.databases import files_of, values_in
from tests.fakes.failures import fails
from tests.security.console import at_console, person_at_console
from tests.security.erasure.life import Life, life
from tests.security.secrets.canaries import forms

DAY = timedelta(days=1).total_seconds()


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def person(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Life]:
    async with life(request.param, tmp_path) as alice:
        yield alice


@pytest_asyncio.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Life]:
    async with life("sqlite", tmp_path) as alice:
        yield alice


async def found(person: Life) -> set[str]:
    """The kinds of values that are anywhere: in a row, in a file of the database or its log."""
    places = [await values_in(person.api.worker), *await files_of(person.api.worker, person.database_url)]
    looked_for = {**person.values, **person.tokens}
    return {
        kind
        for kind, value in looked_for.items()
        if any(form in place for form in forms(value).values() for place in places)
    }


async def rows_naming(person: Life, connection: Connection) -> dict[str, int]:
    """How many rows of each table name the connection or the subject."""
    counts: dict[str, int] = {}
    async with person.api.worker.read() as tx:
        for table in METADATA.sorted_tables:
            for column, value in (("connection_id", connection.id), ("subject", person.subject)):
                if column in table.c:
                    query = table.select().where(table.c[column] == value)
                    counts[table.name] = len((await tx.connection.execute(query)).all())
    return {name: count for name, count in counts.items() if count}


async def test_of_an_erased_subject_no_file_has_a_word(person: Life):
    connection = await person.live()
    await person.api.call("PUT", "/v1/webhooks/hooks", person.admin, json={"url": "https://hooks.example/in"})
    sealed = {"call", *person.tokens}
    assert await found(person) == {*person.values, *person.tokens} - sealed, "the search finds it before"
    before = await rows_naming(person, connection)
    assert {
        "connection",
        "consent",
        "history",
        "delegation",
        "token_family",
        "call_approval",
    } <= before.keys()
    progress = await person.erased(connection, subject=person.subject)
    assert (progress.state, progress.next_s) == (ErasureState.DONE, None)
    assert (progress.connections, progress.unconfirmed) == (1, 0)
    assert progress.records > 5
    assert await found(person) == set()
    assert await rows_naming(person, connection) == {}
    log = await audit.verify_log(person.api.worker, TENANT)
    assert log.problem is None
    shown = (await person.api.get("/v1/erasures", person.admin, params={"subject": person.subject})).json()
    assert [(each["state"], each["target"]) for each in shown["items"]] == [("done", "")]
    assert (await person.api.get(f"/v1/connections/{connection.id}", person.admin)).status_code == 404
    evidence = {record.action for record in await person.api.records(of=connection.id) if record.detail}
    assert evidence == {AuditAction.CONNECTION_ERASED}


async def test_a_backup_from_before_opens_only_with_its_key_rows(alice: Life, tmp_path: Path):
    """What the page says of backups: the rows are there; what was sealed opens with the rows of `key`."""
    connection = await alice.live()
    backup = tmp_path / "backup.db"
    with (
        closing(sqlite3.connect(alice.database_url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(backup)) as copy,
    ):
        source.backup(copy)
    await alice.erased(connection, connection_id=connection.id)
    kept = backup.read_bytes()
    assert all(alice.values[kind].encode() in kept for kind in ("subject", "label", "scope", "history"))
    assert not any(token.encode() in kept for token in alice.tokens.values())
    store = await Store.open(f"sqlite:///{backup}", alice.api.worker.ring, alice.api.clock)

    async def opened() -> str:
        async with store.read() as tx:
            token = await tx.grants.access_token(await tx.connections.get(TENANT, connection.id))  # type: ignore[arg-type]  # the backup has it
        assert token is not None
        return token.reveal()

    assert await opened() == alice.tokens["refreshed"]
    async with store.write() as tx:
        await tx.connection.execute(METADATA.tables["key"].delete())
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await opened()
    await store.close()


async def test_a_connection_is_erased_and_its_subject_stays(alice: Life):
    connection = await alice.live()
    progress = await alice.erased(connection, connection_id=connection.id)
    assert progress.state is ErasureState.DONE
    left = await rows_naming(alice, connection)
    assert left.keys() == {"client_consent", "delegation", "subject_session", "token_family"}
    assert not {"label", "scope", "call", "reason", "history"} & await found(alice)


async def test_nothing_is_leased_from_the_order_on_and_nothing_is_erased_before_the_provider_has_confirmed(
    alice: Life,
):
    connection = await alice.live()
    erasure = await alice.order(connection_id=connection.id)
    assert (await alice.api.row(TENANT, connection.id)).state is LifecycleState.REVOKING
    body = {"integration": "crm", "subject": alice.subject, "label": alice.values["label"]}
    assert (await alice.api.post("/v1/lease", alice.app, body)).json()["code"] == "connection_revoked"
    assert (await alice.order(connection_id=connection.id))["id"] == erasure["id"], "one erasure of a target"
    assert OutboxKind.ERASE in {message.kind for message in await alice.api.outbox()}
    waits = await alice.to_the_end(erasure["id"])
    assert (waits.state, waits.waiting, waits.connections) == (ErasureState.REVOKING, 1, 0)
    assert waits.next_s is not None
    await alice.revoked(connection.id)
    workflow = connection_workflow_id(TENANT, connection.id)
    alice.runs.open.add(workflow)
    assert (await alice.to_the_end(erasure["id"])).waiting == 1, "its run has still to end"
    alice.runs.open.clear()
    assert (await alice.to_the_end(erasure["id"])).state is ErasureState.DONE


async def test_a_provider_that_never_confirms_delays_an_erasure_for_a_bounded_time(alice: Life):
    connection = await alice.live()
    erasure = await alice.order(connection_id=connection.id)
    workflow = connection_workflow_id(TENANT, connection.id)
    alice.runs.open.add(workflow)
    assert (await alice.to_the_end(erasure["id"])).next_s == 1.0
    alice.api.clock.advance(2 * DAY)
    assert (await alice.to_the_end(erasure["id"])).next_s == 600.0
    alice.api.clock.advance(29 * DAY)
    progress = await alice.to_the_end(erasure["id"])
    assert (progress.state, progress.unconfirmed) == (ErasureState.DONE, 1)
    assert alice.runs.terminated == [workflow]


class Killed(Exception):
    """The worker's process has ended."""


async def test_a_worker_that_is_killed_after_a_commit_is_followed_by_one_that_goes_on(
    alice: Life, monkeypatch: pytest.MonkeyPatch
):
    """Each of them commits once more than the one before."""
    connection = await alice.live()
    erasure, write, left, kills = await alice.order(subject=alice.subject), alice.api.worker.write, 0, 0

    @asynccontextmanager
    async def counted(*keys: UnwrappedKeys) -> AsyncIterator[Transaction]:
        nonlocal left
        async with write(*keys) as tx:
            yield tx
        left -= 1
        if not left:
            raise Killed

    await alice.to_the_end(erasure["id"])
    await alice.revoked(connection.id)
    monkeypatch.setattr(alice.api.worker, "write", counted)
    progress = None
    while progress is None or progress.next_s is not None:
        left = kills + 1
        try:
            progress = await alice.step(erasure["id"])
        except Killed:
            kills += 1
    assert kills > 3
    assert progress.state is ErasureState.DONE
    assert progress.connections == 1
    assert await found(alice) == set()
    assert (await audit.verify_log(alice.api.worker, TENANT)).problem is None


async def test_what_a_subject_begins_after_the_order_is_left_alone(alice: Life):
    connection = await alice.live()
    erasure = await alice.order(subject=alice.subject)
    alice.api.clock.advance(1)
    body = {"integration": "crm", "subject": alice.subject, "label": "again"}
    again = (await alice.api.post("/v1/connections", alice.app, body)).json()["id"]
    await alice.to_the_end(erasure["id"])
    await alice.revoked(connection.id)
    assert (await alice.to_the_end(erasure["id"])).connections == 1
    assert (await alice.api.get(f"/v1/connections/{again}", alice.app)).status_code == 200


async def test_permits_that_name_the_subject_come_first(alice: Life):
    await alice.live()
    await alice.api.app_with("hers", Action.TOKEN, subjects=(alice.subject,))
    refused = await alice.api.post("/v1/erasures", alice.admin, {"subject": alice.subject, "reason": "INC-9"})
    assert refused.status_code == 400
    assert "only of hers" in refused.json()["detail"]


HOLDS = [
    {"connection_id": True},
    {"subject": True},
    {"tenant": True},
]


@pytest.mark.parametrize("held", HOLDS, ids=lambda held: next(iter(held)))
@pytest.mark.parametrize("target", ["connection_id", "subject"])
async def test_under_a_hold_nothing_is_erased_and_the_refusal_is_recorded(
    alice: Life, held: dict[str, bool], target: str
):
    connection = await alice.live()
    names = {"connection_id": connection.id, "subject": alice.subject, "tenant": True}
    wanted = {**{name: names[name] for name in held}, "reason": "CASE-7"}
    hold = await alice.api.post("/v1/legal-holds", alice.admin, wanted)
    assert (hold.status_code, hold.json()["active"]) == (201, True)
    order = {target: names[target], "reason": "INC-9"}
    refused = await alice.api.post("/v1/erasures", alice.admin, order)
    assert (refused.status_code, refused.json()["code"]) == (409, "under_legal_hold")
    assert "holds end" in refused.json()["repair"]
    (record,) = await alice.api.records(AuditAction.ERASURE_REFUSED)
    assert (record.object, record.detail["reason"]) == (hold.json()["id"], "INC-9")
    assert alice.subject not in record.model_dump_json()
    assert (await alice.api.row(TENANT, connection.id)).state is LifecycleState.ACTIVE
    ended = await alice.api.post(f"/v1/legal-holds/{hold.json()['id']}/end", alice.admin, {"reason": "over"})
    assert ended.json()["active"] is False
    assert (await alice.api.post("/v1/erasures", alice.admin, order)).status_code == 202


async def test_a_hold_that_comes_later_ends_an_erasure_that_is_under_way(alice: Life):
    connection = await alice.live()
    erasure = await alice.order(subject=alice.subject)
    await alice.to_the_end(erasure["id"])
    await alice.api.post("/v1/legal-holds", alice.admin, {"connection_id": connection.id, "reason": "CASE-7"})
    await alice.revoked(connection.id)
    progress = await alice.to_the_end(erasure["id"])
    assert (progress.state, progress.connections) == (ErasureState.REFUSED, 0)
    assert [record.object for record in await alice.api.records(AuditAction.ERASURE_REFUSED)] == [
        erasure["id"]
    ]
    assert await alice.to_the_end(erasure["id"]) == progress


async def test_a_hold_that_was_changed_by_hand_holds_all_the_more(alice: Life):
    connection = await alice.live()
    hold = await alice.api.post("/v1/legal-holds", alice.admin, {"tenant": True, "reason": "CASE-7"})
    async with alice.api.worker.write() as tx:
        holds = METADATA.tables["legal_hold"]
        await tx.connection.execute(holds.update().values(ended_at=alice.api.clock.now()))
    answer = await alice.api.post(
        "/v1/erasures", alice.admin, {"connection_id": connection.id, "reason": "x"}
    )
    assert (answer.status_code, answer.json()["code"]) == (500, ErrorCode.AUTHORITY_BROKEN)
    assert hold.json()["id"] in answer.json()["detail"]


async def test_an_order_in_the_outbox_without_its_row_erases_nothing(alice: Life):
    connection = await alice.live()
    assert (await alice.step("era_0000000000000000000000")).state is ErasureState.DONE
    assert (await alice.api.row(TENANT, connection.id)).state is LifecycleState.ACTIVE


async def test_a_second_admin_approves_an_erasure(tmp_path: Path):
    async with life("sqlite", tmp_path, four_eyes=True) as alice:
        connection = await alice.live()
        second = await alice.api.app_with("second", Action.ADMIN)
        body = {"subject": alice.subject, "reason": "INC-9"}
        asked = await alice.api.post("/v1/erasures", alice.admin, body)
        assert asked.json()["code"] == "approval_required"
        approval = asked.json()["approval_id"]
        assert (await alice.api.post(f"/v1/approvals/{approval}", second)).status_code == 200
        await alice.erased(connection, subject=alice.subject)
        async with alice.api.worker.read() as tx:
            rows = (await tx.connection.execute(METADATA.tables["approval"].select())).all()
        assert rows == [], "its body names the subject"


@pytest.mark.parametrize("body", [{}, {"connection_id": "con_1", "subject": "alice"}, {"subject": "*"}])
async def test_what_is_to_be_erased_is_named_once(alice: Life, body: dict[str, str]):
    answer = await alice.api.post("/v1/erasures", alice.admin, {**body, "reason": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_apps_that_administer_nothing_erase_nothing(alice: Life):
    connection = await alice.live()
    for path, body in (("erasures", {"connection_id": connection.id}), ("legal-holds", {"tenant": True})):
        answer = await alice.api.post(f"/v1/{path}", alice.app, {**body, "reason": "x"})
        assert answer.status_code == 403


async def test_a_tenant_is_erased_with_its_keys_and_no_other_tenant_loses_a_row(person: Life):
    api = person.api
    other = await api.active(await api.integration("crm", tenant=OTHER), subject=f"of-{OTHER}")
    connection = await person.live()

    async def approved(_: Transaction) -> dict[str, str]:
        return {}

    context = RequestContext(by="operator", trace_id="")
    order = Order(TENANT, TargetKind.TENANT, TENANT, "INC-9", context, api.clock.now())
    erasure = await erase(api.worker, order, timedelta(days=30), approved)
    assert (await person.to_the_end(erasure.id)).waiting == 1
    await person.revoked(connection.id)
    progress = await person.to_the_end(erasure.id)
    assert (progress.state, progress.connections) == (ErasureState.DONE, 1)
    assert progress.keys > 0, "the tenant's own"
    assert await found(person) == set()
    async with api.worker.read() as tx:
        left = {
            table.name
            for table in METADATA.sorted_tables
            if "tenant" in table.c
            and (await tx.connection.execute(table.select().where(table.c.tenant == TENANT).limit(1))).first()
        }
    assert left == {"audit", "audit_tree", "erasure", "tenant_standing"}
    assert (await audit.verify_log(api.worker, TENANT)).problem is None
    assert (await api.row(OTHER, other.id)).state is LifecycleState.ACTIVE
    assert (await api.lease(person.app)).status_code == 401


async def test_a_connection_is_erased_from_its_page_once_the_subject_is_typed(alice: Life):
    connection = await alice.live()
    page = f"/console/connections/{connection.id}"
    auditor = await person_at_console(alice.api, PersonRole.AUDITOR)
    assert f"{page}/erase" not in await auditor.page(page)
    browser = await at_console(alice.api, alice.admin)
    assert f"{page}/erase" in await browser.page(page)
    assert "Nobody can bring it back" in await browser.page(f"{page}/erase")
    mistyped = await browser.send(f"{page}/erase", confirm="alice")
    assert (mistyped.status_code, "Type the subject" in mistyped.text) == (400, True)
    assert (await alice.api.row(TENANT, connection.id)).state is LifecycleState.ACTIVE
    answer = await browser.send(f"{page}/erase", confirm=alice.subject, reason="INC-9")
    assert answer.status_code == 303
    shown = await browser.page(answer.headers["location"])
    assert "not yet" in shown
    id = answer.headers["location"].rpartition("/")[2]
    await alice.to_the_end(id)
    assert "Waits for" in await browser.page(f"/console/erasures/{id}")
    await alice.revoked(connection.id)
    await alice.to_the_end(id)
    shown = await browser.page(f"/console/erasures/{id}")
    assert "1 erased" in shown
    assert "not yet" not in shown
