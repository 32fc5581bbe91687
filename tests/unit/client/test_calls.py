"""The calls: the request that is sent, and the result of a good response. The commands' tests have more."""

from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import evergrant as client
import pytest
from evergrant import AsyncEvergrant, Evergrant, State
from evergrant.api.models import Finding, Integration

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import (
    HOOK,
    LINK,
    SECRET,
    TOKEN,
    URL,
    ScriptedEvergrant,
    ScriptedResponse,
    a_version,
    a_webhook,
    an_integration,
    connection,
    consent_required,
    lease,
    page,
    problem,
)

MOMENT = timedelta(milliseconds=1)
LEASE = "POST /v1/lease"
CONNECTION = "GET /v1/connections/con_1"


def test_both_clients_have_the_same_methods():
    closing = {"close", "aclose", "__enter__", "__exit__", "__aenter__", "__aexit__"}
    assert set(dir(Evergrant)) - closing == set(dir(AsyncEvergrant)) - closing
    assert Evergrant.connect.__doc__ == AsyncEvergrant.connect.__doc__ != ""


async def test_a_lease_carries_the_token_and_its_facts(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, lease(), lease(expires_at=None))
    leased = await caller.call("lease", "crm", "alice", min_ttl=timedelta(minutes=2), scopes=("read",))
    assert isinstance(leased, client.Lease)
    assert (leased.access_token, leased.token_type) == (TOKEN, "Bearer")
    assert leased.expires_at == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (leased.scopes, leased.generation, leased.connection_id) == (("read",), 7, "con_1")
    (sent,) = evergrant.requests
    assert sent.headers["authorization"] == "Bearer evg_key_canary"
    names = {"integration": "crm", "subject": "alice", "label": "default"}
    assert sent.body == names | {"min_ttl": 120, "scopes": ["read"]}
    assert (await caller.call("lease", "crm", "bob")).expires_at is None


async def test_a_missing_consent_is_a_result(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, consent_required())
    needed = await caller.call("lease", "crm", "alice")
    assert needed == client.ConsentRequired(connect_url=LINK, connection_id="con_1", expires_at=None)
    assert LINK not in repr(needed)
    with pytest.raises(client.ReconnectNeeded) as raised:
        await caller.call("token", "crm", "alice")
    assert (raised.value.connect_url, raised.value.code) == (LINK, "consent_required")
    assert LINK not in str(raised.value)


async def test_a_missing_scope_with_a_link_is_a_result(caller: Caller, evergrant: ScriptedEvergrant):
    wider: dict[str, Any] = {"connection_id": "con_1", "connect_url": LINK, "scopes": "mail calendar"}
    evergrant.script(LEASE, problem(409, "ReconnectNeeded", "scope_not_granted", **wider))
    needed = await caller.call("lease", "crm", "alice", scopes=("mail", "calendar"))
    assert needed == client.ConsentRequired(LINK, "con_1", None, missing_scopes=("mail", "calendar"))
    assert (needed.as_error().code, needed.as_error().connect_url) == ("scope_not_granted", LINK)


async def test_a_consent_that_this_app_may_not_open_is_an_error(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, problem(409, "ReconnectNeeded", "consent_required"))
    with pytest.raises(client.ReconnectNeeded) as refused:
        await caller.call("lease", "crm", "alice")
    assert refused.value.connect_url is None


@pytest.mark.parametrize(
    "mistyped",
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
async def test_a_mistyped_member_is_named_and_not_quoted(
    caller: Caller, evergrant: ScriptedEvergrant, mistyped: dict[str, object]
):
    evergrant.script(LEASE, lease(**mistyped))
    with pytest.raises(client.ProtocolError, match=next(iter(mistyped))) as refused:
        await caller.call("lease", "crm", "alice")
    assert TOKEN not in str(refused.value)


async def test_each_connect_has_its_own_idempotency_key(caller: Caller, evergrant: ScriptedEvergrant):
    opened = ScriptedResponse(201, connection(state="pending_consent", connect_url=LINK))
    evergrant.script("POST /v1/connections", opened)
    made = await caller.call("connect", "crm", "alice", return_to="https://app.example/done")
    assert isinstance(made, client.Connection)
    assert (made.connect_url, made.state) == (LINK, State.PENDING_CONSENT)
    assert LINK not in repr(made)
    await caller.call("connect", "crm", "alice")
    assert len({sent.headers["idempotency-key"] for sent in evergrant.requests}) == 2
    assert evergrant.requests[0].body["return_to"] == "https://app.example/done"


async def test_every_optional_member_of_a_connection_is_read(caller: Caller, evergrant: ScriptedEvergrant):
    account = {"id": "site-1", "label": "One", "metadata": {"cloud": 1}}
    progress = {"since": "2030-01-01T00:00:00Z", "failure": "client_rejected", "failed_at": None}
    more = {"choices": [account], "metadata": {"team": "t"}, "revoking": progress}
    evergrant.script(CONNECTION, ScriptedResponse(200, connection(**more)))
    found = await caller.call("connection", "con_1")
    assert (found.choices[0].id, found.choices[0].metadata) == ("site-1", {"cloud": 1})
    assert (found.metadata, found.flow, found.device) == ({"team": "t"}, "text", None)
    assert found.revoking.failure == "client_rejected"
    evergrant.script(CONNECTION, ScriptedResponse(200, connection(state="unheard_of")))
    with pytest.raises(client.ProtocolError, match="unheard_of"):
        await caller.call("connection", "con_1")


async def test_an_id_is_escaped_in_the_path(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script("GET /v1/connections/..%2Fapps%3Fx", ScriptedResponse(200, connection()))
    await caller.call("connection", "../apps?x")
    assert evergrant.requests[0].path == "/v1/connections/..%2Fapps%3Fx"


async def test_a_list_is_read_to_its_last_page(caller: Caller, evergrant: ScriptedEvergrant):
    first = page(connection(id="con_1"), connection(id="con_2"), next_cursor="c+/=")
    evergrant.script("GET /v1/connections", first, page(connection(id="con_3")))
    soon = datetime(2030, 1, 1, tzinfo=UTC)
    found = await caller.list("connections", subject="alice", state=State.ACTIVE, expiring_before=soon)
    assert [each.id for each in found] == ["con_1", "con_2", "con_3"]
    filters = {"subject": "alice", "state": "active", "expiring_before": "2030-01-01T00:00:00+00:00"}
    assert [sent.query for sent in evergrant.requests] == [filters, filters | {"cursor": "c+/="}]


@pytest.mark.parametrize(
    ("before", "newer_than"),
    [({"state": "pending_consent", "generation": 0}, 0), ({"generation": 4}, 4)],
    ids=["consent", "reauthorization"],
)
async def test_waiting_ends_with_a_newer_grant(
    caller: Caller, evergrant: ScriptedEvergrant, before: dict[str, object], newer_than: int
):
    waiting = ScriptedResponse(200, connection(**before))
    evergrant.script(CONNECTION, waiting, waiting, ScriptedResponse(200, connection(generation=5)))
    limit = timedelta(seconds=30)
    found = await caller.call("wait_for_consent", "con_1", limit, newer_than=newer_than, every=MOMENT)
    assert (found.state, found.generation, len(evergrant.requests)) == (State.ACTIVE, 5, 3)


async def test_waiting_has_a_deadline(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(CONNECTION, ScriptedResponse(200, connection(state="pending_consent")))
    with pytest.raises(TimeoutError) as late:
        await caller.call("wait_for_consent", "con_1", timedelta(seconds=0.5), every=MOMENT)
    assert isinstance(late.value, client.ConsentTimeout)
    assert str(late.value).startswith("consent_timeout: the subject did not finish the consent in time (")
    assert len(evergrant.requests) > 1


@pytest.mark.parametrize("state", ["denied", "consent_expired", "revoking", "revoked"])
async def test_waiting_stops_when_the_connection_has_ended(
    caller: Caller, evergrant: ScriptedEvergrant, state: str
):
    evergrant.script(CONNECTION, ScriptedResponse(200, connection(state=state)))
    with pytest.raises(client.ReconnectNeeded) as ended:
        await caller.call("wait_for_consent", "con_1", timedelta(seconds=30))
    assert ended.value.connection_id == "con_1"


async def test_members_are_read_by_their_types(caller: Caller, evergrant: ScriptedEvergrant):
    until = an_integration(previous_secret_until="2030-01-01T00:00:00Z")
    evergrant.script("GET /v1/integrations/crm", ScriptedResponse(200, until))
    found = await caller.call("integration", "crm")
    assert isinstance(found, Integration)
    assert (found.redirect_uri[-5:], found.refresh.rotation) == ("int_1", "unknown")
    assert found.previous_secret_until == datetime(2030, 1, 1, tzinfo=UTC)
    evergrant.script("POST /v1/providers", ScriptedResponse(201, a_version()))
    proposed = await caller.call("propose_provider", {"name": "acme-crm"})
    assert proposed.findings == (Finding("hosts", "warning", "a new host"),)


async def test_repr_hides_the_secret_of_a_webhook(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"PUT {HOOK}", ScriptedResponse(201, a_webhook(secret=SECRET)))
    made = await caller.call("put_webhook", "hooks", URL)
    assert (made.secret, SECRET in repr(made)) == (SECRET, False)


async def test_a_refused_field_is_named_in_the_context(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(f"PUT {HOOK}", problem(400, "BadRequest", "invalid_request", field="url"))
    with pytest.raises(client.BadRequest) as refused:
        await caller.call("put_webhook", "hooks", "https://10.0.0.1/")
    assert refused.value.context["field"] == "url"


@pytest.mark.parametrize("form", [{"a": "1"}, [("a", "1")]])
async def test_a_signature_is_the_headers_of_one_request(
    caller: Caller, evergrant: ScriptedEvergrant, form: object
):
    body = {"headers": {"Authorization": "OAuth x"}, "generation": 3, "connection_id": "con_1"}
    url, route = "https://api.example/1?q=a%20b", "POST /v1/connections/con_1/signatures"
    evergrant.script(route, ScriptedResponse(200, body))
    made = await caller.call("sign", "con_1", "post", url, form)
    assert (made.headers, made.generation) == ({"Authorization": "OAuth x"}, 3)
    assert "OAuth" not in repr(made)
    assert evergrant.requests[0].body == {"method": "POST", "url": url, "form": [["a", "1"]]}
    evergrant.script(route, ScriptedResponse(200, body | {"headers": {"Authorization": 7}}))
    with pytest.raises(client.ProtocolError):
        await caller.call("sign", "con_1", "GET", url)


async def test_the_servers_last_answer_is_told_where_only_the_last_attempt_has_none(
    evergrant: ScriptedEvergrant,
):
    """A worker hangs, so each answer takes its time: the server is there, and has said what is true."""
    pending = problem(503, "ProviderUnavailable", "refresh_pending", retry_after=0.1, repairer="operator")
    never = Event()
    evergrant.script(LEASE, pending, ScriptedResponse(200, held=never))
    try:
        with (
            Evergrant(evergrant.url, "evg_key_canary", deadline=timedelta(seconds=2.5)) as caller,
            pytest.raises(client.ProviderUnavailable) as told,
        ):
            caller.lease("crm", "alice")
    finally:
        never.set()
    assert told.value.code == "refresh_pending"
    assert "EVERGRANT_URL" not in str(told.value)
    assert evergrant.count(LEASE) == 2
    assert evergrant.requests[0].headers["prefer"] == "wait=1", "the server answers before the deadline"


async def test_without_any_answer_the_address_is_in_question(evergrant: ScriptedEvergrant):
    never = Event()
    evergrant.script(LEASE, ScriptedResponse(200, held=never))
    try:
        with (
            Evergrant(evergrant.url, "evg_key_canary", deadline=timedelta(seconds=0.5)) as caller,
            pytest.raises(client.Unreachable, match="EVERGRANT_URL"),
        ):
            caller.lease("crm", "alice")
    finally:
        never.set()
