"""Lists by urgency and by a beginning, their totals, and what they read: on each of the databases."""

from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store import Store
from evergrant_server.store.connections.search import (
    ConnectionFilter,
    ConnectionSearch,
    ListOrder,
    StateCounts,
)
from tests.conformance.store.samples import ACME, a_connection, added
from tests.fakes.databases import NOW

STATES = LifecycleState
FAILED: dict[str, Any] = {"failures": 1, "last_failure": ErrorCode.PROVIDER_ERROR, "last_failed_at": NOW}


async def put(store: Store, subject: str, state: STATES = STATES.ACTIVE, **changes: Any) -> Connection:
    return await added(store, a_connection(subject=subject, state=state, **changes))


async def listed(
    store: Store, wanted: ConnectionFilter, order: ListOrder = ListOrder.URGENCY, size: int = 2
) -> list[str]:
    """The subjects of all pages, each of which begins behind the one before."""
    subjects: list[str] = []
    place: str | None = None
    async with store.read() as tx:
        search = ConnectionSearch(tx.connection, ACME)
        while page := await search.page(wanted, order, place, size):
            subjects += [placed.row["subject"] for placed in page]
            place = page[-1].place
    return subjects


async def counts(store: Store, wanted: ConnectionFilter, most: int = 100) -> StateCounts:
    async with store.read() as tx:
        return await ConnectionSearch(tx.connection, ACME).counts(wanted, most)


async def a_mixture(store: Store) -> None:
    await put(store, "well-1")
    await put(store, "failing", **FAILED)
    await put(store, "ended", STATES.REVOKED)
    await put(store, "gone", STATES.NEEDS_REAUTH, reason=ErrorCode.GRANT_REJECTED)
    await put(store, "choosing", integration="mail", follow_up=FollowUp.CHOOSING)
    await put(store, "looking", follow_up=FollowUp.LOOKING_UP)
    await put(store, "waiting", STATES.PENDING_CONSENT)
    await put(store, "leaving", STATES.REVOKING)
    await put(store, "elsewhere", tenant="other")


async def test_those_that_need_somebody_come_first_and_every_page_goes_on(store: Store):
    await a_mixture(store)
    subjects = await listed(store, ConnectionFilter())
    assert (subjects[0], set(subjects[1:3])) == ("gone", {"failing", "choosing"})
    assert set(subjects[3:5]) == {"well-1", "looking"}
    assert subjects[5:] == ["waiting", "leaving", "ended"]
    assert await listed(store, ConnectionFilter(failing=True)) == ["failing", "choosing"]
    assert await listed(store, ConnectionFilter(integration="mail")) == ["choosing"]
    assert await listed(store, ConnectionFilter(state=STATES.REVOKED)) == ["ended"]
    assert len(await listed(store, ConnectionFilter(live=True))) == 7
    assert len(await listed(store, ConnectionFilter(state=STATES.ACTIVE))) == 4


async def test_the_order_by_id_stays_and_a_cursor_of_before_goes_on(store: Store):
    ids = sorted([(await put(store, f"s{number}")).id for number in range(5)])
    async with store.read() as tx:
        search = ConnectionSearch(tx.connection, ACME)
        page = await search.page(ConnectionFilter(), ListOrder.ID, ids[1], 2)
        assert [placed.row["id"] for placed in page] == ids[2:4]
        page = await search.page(ConnectionFilter(), ListOrder.ID, page[-1].place, 2)
        assert [placed.row["id"] for placed in page] == ids[4:]


async def test_a_beginning_finds_subjects_by_their_bytes_then_labels_or_an_id(store: Store):
    for subject in ("Ann", "ann@a", "ann_b", "ann-c", "anna", "ännchen", "bob", "100%", "100_"):
        await put(store, subject)
    (labelled := await put(store, "zoe", label="ann-phone"))
    await put(store, "ann@a", label="annex")
    found = await listed(store, ConnectionFilter(search="ann"))
    assert found == ["ann-c", "ann@a", "ann@a", "ann_b", "anna", "zoe"]
    assert await listed(store, ConnectionFilter(search="100%")) == ["100%"]
    assert await listed(store, ConnectionFilter(search=labelled.id[:14])) == ["zoe"]
    assert await listed(store, ConnectionFilter(search="nobody")) == []
    await put(store, "annie", STATES.REVOKED)
    narrowed = ConnectionFilter(search="ann", state=STATES.REVOKED)
    assert await listed(store, narrowed) == ["annie"]


async def test_totals_are_by_state_for_a_filter_and_say_where_they_stop(store: Store):
    await a_mixture(store)
    whole = await counts(store, ConnectionFilter())
    assert whole.states == {
        **{STATES.ACTIVE: 4, STATES.REVOKED: 1, STATES.NEEDS_REAUTH: 1},
        **{STATES.PENDING_CONSENT: 1, STATES.REVOKING: 1},
    }
    assert (whole.failing, whole.complete) == (2, True)
    mail = await counts(store, ConnectionFilter(integration="mail"))
    assert (mail.states, mail.failing) == ({STATES.ACTIVE: 1}, 1)
    searched = await counts(store, ConnectionFilter(search="l"))
    assert searched.states == {STATES.ACTIVE: 1, STATES.REVOKING: 1}
    assert not (await counts(store, ConnectionFilter(), most=3)).complete
    assert (await counts(store, ConnectionFilter(), most=3)).states[STATES.ACTIVE] == 4
    assert not (await counts(store, ConnectionFilter(search=""), most=3)).complete


@pytest.mark.parametrize(
    "wanted",
    [
        *(ConnectionFilter(), ConnectionFilter(integration="mail"), ConnectionFilter(failing=True)),
        *(ConnectionFilter(state=STATES.REVOKED), ConnectionFilter(search="ann")),
        *(ConnectionFilter(search="con_0"), ConnectionFilter(search="ann", state=STATES.ACTIVE)),
    ],
)
async def test_no_page_and_no_total_scans_the_table(
    store: Store, wanted: ConnectionFilter, monkeypatch: pytest.MonkeyPatch
):
    """SQLite's plan is of the schema alone; PostgreSQL's is of its numbers, which `docs/capacity.md` has."""
    if not store.is_sqlite:
        pytest.skip("its plan is of its statistics")
    plans = await plans_of(store, monkeypatch, "evergrant_server.store.connections.search", wanted)
    assert plans
    for plan in plans:
        assert "SCAN connection" not in plan, plan
        assert not wanted.failing or "ix_connection_unwell" in plan, plan


async def plans_of(
    store: Store, monkeypatch: pytest.MonkeyPatch, module: str, wanted: ConnectionFilter
) -> list[str]:
    """How SQLite reads what a page and its totals ask for."""
    plans: list[str] = []
    async with store.read() as tx:

        async def explained(connection: Any, query: Any) -> list[Any]:
            text = query.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
            plans.append("\n".join(row[3] for row in rows))
            return []

        monkeypatch.setattr(f"{module}.fetch_all", explained)
        search = ConnectionSearch(tx.connection, ACME)
        await search.page(wanted, ListOrder.URGENCY, None, 25)
        await search.counts(wanted)
    return plans
