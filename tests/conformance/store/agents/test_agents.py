"""Agents, the calls that people approve, and orders to stop an agent, on both databases."""

from datetime import timedelta
from typing import Any

from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.decisions import CallApproval, CallApprovalState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AgentStopId, AppId, CallApprovalId, ConnectionId, new_id
from evergrant_server.store import Store
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.database.rows import insert
from tests.conformance.store.samples import ACME, an_app_of
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

MINUTE = timedelta(minutes=1)
CALL = {"tool": "pay", "arguments": {"to": "bob"}}


def an_approval(app_id: AppId, **changes: Any) -> CallApproval:
    values: dict[str, Any] = {
        **{"tenant": ACME, "id": CallApprovalId(new_id("cap")), "app_id": app_id, "call_hash": "a" * 64},
        **{"connection_id": ConnectionId("con_1"), "name": "pay", "reason": "order 7", "created_at": NOW},
        **{"requested_by": "app:bot", "decide_by": NOW + MINUTE, "next_at": NOW + MINUTE, **changes},
    }
    return CallApproval(**values)


async def test_an_agent_ends_with_its_time_and_with_its_sponsor(store: Store):
    team = await an_app_of(store, name="team")
    facts = {"sponsor": "app:team", "sponsor_app": team.id, "purpose": "pays", "ends_at": NOW + MINUTE}
    bot = await an_app_of(store, name="bot", **facts)
    async with store.write() as tx:
        assert [it.name for it in await tx.agents.page(ACME, None, 5)] == ["bot"]
        await tx.agents.require_active(bot, NOW)
        with fails(ErrorCode.AGENT_ENDED):
            await tx.agents.require_active(bot, NOW + MINUTE)
        await tx.access.put_app(team.model_copy(update={"disabled": True}), expected=team.revision)
        await tx.agents.end_leases_of_sponsored(ACME, team.id)
        moved = await tx.access.app(ACME, bot.id)
        assert moved is not None
        assert moved.revision == bot.revision + 1
        with fails(ErrorCode.AGENT_ENDED, "app:team"):
            await tx.agents.require_active(moved, NOW)


async def test_a_calls_newest_round_counts_and_its_content_is_sealed(store: Store):
    bot = await an_app_of(store, name="bot")
    first, second = an_approval(bot.id), an_approval(bot.id, round=1)
    async with store.write() as tx:
        for approval in (first, second):
            await tx.call_approvals.add(approval, CALL)
        with fails(ErrorCode.STORE_CONFLICT):  # the same round, under another id
            await tx.call_approvals.add(an_approval(bot.id, round=1), CALL)
        assert await tx.call_approvals.newest(ACME, first.call_hash) == second
        assert await tx.call_approvals.called(second) == CALL
        assert await tx.call_approvals.count_waiting(ACME, bot.id) == 2
        approved = second.approved("person:psn_1", NOW, None)
        saved = await tx.call_approvals.replace(approved, expected=1)
        assert await tx.call_approvals.called(saved) == CALL
        assert len(await tx.call_approvals.open_of_app(ACME, bot.id, 5)) == 2
        waiting = await tx.call_approvals.page(ACME, None, 5, state=CallApprovalState.WAITING)
        assert waiting == [first]
        assert await tx.call_approvals.overdue(NOW + 2 * MINUTE, 5) == [first]


async def test_a_stop_finds_the_connections_that_only_its_agent_has_used(store: Store):
    bot, other = await an_app_of(store, name="bot"), await an_app_of(store, name="other")
    stop = AgentStop(
        **{"tenant": ACME, "id": AgentStopId(new_id("stp")), "app_id": bot.id, "reason": "stopped"},
        **{"by": "app:admin", "revoke_connections": True, "created_at": NOW},
    )
    async with store.write() as tx:
        for app, connection in ((bot, "con_a"), (bot, "con_b"), (other, "con_b"), (other, "con_c")):
            used = {"tenant": ACME, "app_id": app.id, "connection_id": connection}
            await insert(tx.connection, LeaseUseRow, {**used, "used_at": NOW, "revision": 1})
        await tx.agent_stops.add(stop)
        used_by_it = await tx.agent_stops.used_connections(ACME, bot.id, "", 5)
        assert used_by_it == [("con_a", False), ("con_b", True)]
        assert await tx.agent_stops.used_connections(ACME, bot.id, "con_a", 5) == [("con_b", True)]
        await tx.access.delete_app(ACME, other.id)
        assert await tx.agent_stops.used_connections(ACME, bot.id, "con_a", 5) == [("con_b", False)]
        assert await tx.agent_stops.unfinished(NOW + MINUTE, 5) == [stop]
        assert await tx.moved_rows.orders_under_way(ACME) == [stop.id]
        ended = stop.model_copy(update={"finished_at": NOW})
        assert await tx.agent_stops.replace(ended, expected=1) == await tx.agent_stops.newest(ACME, bot.id)
        assert await tx.agent_stops.unfinished(NOW + MINUTE, 5) == []
