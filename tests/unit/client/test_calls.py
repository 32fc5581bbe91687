"""What the clients send, and what they make of good answers."""

from datetime import UTC, datetime, timedelta

import pytest
from evergrant import AuditRecord, Connection, ConsentRequired, Lease, ProtocolError, ReconnectNeeded, State

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
    problem,
)

MOMENT = timedelta(milliseconds=1)


async def test_a_lease_carries_the_token_and_its_facts(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease())
    leased = await caller.call("lease", "crm", "alice", min_ttl=timedelta(minutes=2), scopes=("read",))
    assert isinstance(leased, Lease)
    assert (leased.access_token, leased.token_type) == (TOKEN, "Bearer")
    assert leased.expires_at == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (leased.scopes, leased.generation, leased.connection_id) == (("read",), 7, "con_1")
    (seen,) = evergrant.seen
    assert seen.headers["authorization"] == "Bearer evg_key_canary"
    asked = {"integration": "crm", "subject": "alice", "label": "default", "min_ttl": 120, "scopes": ["read"]}
    assert seen.body == asked


async def test_a_token_that_never_expires_has_no_expiry(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", lease(expires_at=None))
    assert (await caller.call("lease", "crm", "alice")).expires_at is None


async def test_a_missing_consent_is_an_answer(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", consent_required())
    needed = await caller.call("lease", "crm", "alice")
    assert needed == ConsentRequired(connect_url=LINK, connection_id="con_1", expires_at=None)
    assert LINK not in repr(needed)


async def test_a_consent_that_this_app_may_not_open_is_an_error(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("POST /v1/lease", problem(409, "ReconnectNeeded", "consent_required"))
    with pytest.raises(ReconnectNeeded) as refused:
        await caller.call("lease", "crm", "alice")
    assert refused.value.connect_url is None


@pytest.mark.parametrize(
    "broken",
    [
        {"access_token": None},
        {"generation": "7"},
        {"generation": True},
        {"expires_at": "2030-01-02T03:04:05"},
        {"expires_at": "soon"},
        {"scopes": "read"},
        {"scopes": [1]},
        {"connection_id": 1},
    ],
)
async def test_a_lease_that_says_something_else_is_refused_without_quoting_it(
    caller: Caller, evergrant: ScriptedEvergrant, broken: dict[str, object]
):
    evergrant.script("POST /v1/lease", lease(**broken))
    with pytest.raises(ProtocolError, match=next(iter(broken))) as refused:
        await caller.call("lease", "crm", "alice")
    assert TOKEN not in str(refused.value)


async def test_connect_is_sent_once_with_a_key_and_returns_the_link(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script(
        "POST /v1/connections", ScriptedResponse(201, connection(state="pending_consent", connect_url=LINK))
    )
    opened = await caller.call("connect", "crm", "alice", return_to="https://app.example/done")
    assert isinstance(opened, Connection)
    assert (opened.connect_url, opened.state) == (LINK, State.PENDING_CONSENT)
    assert LINK not in repr(opened)
    await caller.call("connect", "crm", "alice")
    keys = [seen.headers["idempotency-key"] for seen in evergrant.seen]
    assert len(set(keys)) == 2
    assert evergrant.seen[0].body["return_to"] == "https://app.example/done"


@pytest.mark.parametrize(
    ("name", "arguments", "path", "body"),
    [
        ("refresh", ("con_1",), "/v1/connections/con_1/refresh", {}),
        ("reauthorize", ("con_1",), "/v1/connections/con_1/reauthorize", {}),
        ("revoke", ("con_1", "left"), "/v1/connections/con_1/revoke", {"reason": "left"}),
    ],
)
async def test_commands(
    caller: Caller,
    evergrant: ScriptedEvergrant,
    name: str,
    arguments: tuple[str, ...],
    path: str,
    body: dict[str, str],
):
    evergrant.script(f"POST {path}", ScriptedResponse(202, connection(state="revoking")))
    assert (await caller.call(name, *arguments)).state is State.REVOKING
    assert evergrant.seen[0].body == body
    assert evergrant.seen[0].headers["idempotency-key"]


async def test_an_id_can_not_leave_its_place_in_the_path(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/..%2Fapps%3Fx", ScriptedResponse(200, connection()))
    await caller.call("connection", "../apps?x")
    assert evergrant.seen[0].path == "/v1/connections/..%2Fapps%3Fx"


async def test_a_list_is_read_to_its_end(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(
        "GET /v1/connections",
        ScriptedResponse(
            200, {"items": [connection(id="con_1"), connection(id="con_2")], "next_cursor": "c+/="}
        ),
        ScriptedResponse(200, {"items": [connection(id="con_3")], "next_cursor": None}),
    )
    soon = datetime(2030, 1, 1, tzinfo=UTC)
    found = await caller.list("connections", subject="alice", state=State.ACTIVE, expiring_before=soon)
    assert [it.id for it in found] == ["con_1", "con_2", "con_3"]
    filters = {"subject": "alice", "state": "active", "expiring_before": "2030-01-01T00:00:00+00:00"}
    assert [seen.query for seen in evergrant.seen] == [filters, filters | {"cursor": "c+/="}]


async def test_audit_items_name_the_history_event(caller: Caller, evergrant: ScriptedEvergrant):
    item = {
        "seq": 3,
        "lane": "main",
        "at": "2030-01-01T00:00:00Z",
        "action": "grant.refreshed",
        "object": "con_1",
        "by": "schedule",
        "trace_id": "",
        "detail": {"generation": 4},
        "workflow_run_id": "run",
        "workflow_event_id": 17,
    }
    evergrant.script(
        "GET /v1/connections/con_1/audit", ScriptedResponse(200, {"items": [item], "next_cursor": None})
    )
    (read,) = await caller.list("audit", "con_1")
    assert isinstance(read, AuditRecord)
    assert (read.seq, read.workflow_event_id, read.detail) == (3, 17, {"generation": 4})


async def test_waiting_ends_when_the_subject_has_consented(caller: Caller, evergrant: ScriptedEvergrant):
    pending = ScriptedResponse(200, connection(state="pending_consent", generation=0))
    evergrant.script("GET /v1/connections/con_1", pending, pending, ScriptedResponse(200, connection()))
    found = await caller.call("wait_for_consent", "con_1", timedelta(seconds=30), every=MOMENT)
    assert found.state is State.ACTIVE
    assert len(evergrant.seen) == 3


async def test_waiting_for_a_reauthorization_needs_a_newer_grant(
    caller: Caller, evergrant: ScriptedEvergrant
):
    old, new = (ScriptedResponse(200, connection(generation=it)) for it in (4, 5))
    evergrant.script("GET /v1/connections/con_1", old, old, new)
    limit = timedelta(seconds=30)
    found = await caller.call("wait_for_consent", "con_1", limit, newer_than=4, every=MOMENT)
    assert found.generation == 5


async def test_waiting_has_a_deadline(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection(state="pending_consent")))
    with pytest.raises(TimeoutError):
        await caller.call("wait_for_consent", "con_1", timedelta(seconds=0.5), every=MOMENT)
    assert len(evergrant.seen) > 1


@pytest.mark.parametrize("state", ["denied", "consent_expired", "revoking", "revoked"])
async def test_waiting_stops_at_a_consent_that_ended(
    caller: Caller, evergrant: ScriptedEvergrant, state: str
):
    evergrant.script("GET /v1/connections/con_1", ScriptedResponse(200, connection(state=state)))
    with pytest.raises(ReconnectNeeded) as ended:
        await caller.call("wait_for_consent", "con_1", timedelta(seconds=30))
    assert ended.value.connection_id == "con_1"
