"""Permits as an admin writes them and as requests meet them: denials, ends, networks, observation."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from evergrant_server.audit.lease_ledger import LeaseClaim
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.store import permits
from evergrant_server.telemetry import metrics
from tests.fakes.api import PUBLIC_URL, Api

ALL = {"integration": "*", "actions": ["token"]}
DENY = {**ALL, "effect": "deny"}
FIELDS = {
    "effect": "allow",
    "mode": "enforce",
    "provider": "*",
    "subjects": ["*"],
    "connections": None,
    "sources": None,
    "scope_ceiling": None,
    "exact_scopes": False,
    "scopes": None,
    "expires_at": None,
    "purpose": "",
    "owner": "",
    "reason": "",
}


async def put(api: Api, admin: str, name: str, body: dict[str, Any], app: str = "sync") -> httpx2.Response:
    return await api.call("PUT", f"/v1/apps/{app}/permits/{name}", admin, json=body)


async def given(api: Api, admin: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await put(api, admin, name, body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


async def leased(api: Api, key: str, **more: Any) -> str:
    """`leased`, or the code of the refusal."""
    answer = await api.lease(key, **more)
    return "leased" if answer.status_code == 200 else answer.json()["code"]


async def leased_from(api: Api, key: str, peer: str | None, *forwarded: str) -> str:
    transport = httpx2.ASGITransport(app=api.app, client=(peer, 1) if peer else None)  # pyright: ignore[reportArgumentType]  # as of a unix socket
    headers = [("Authorization", f"Bearer {key}"), *(("X-Forwarded-For", it) for it in forwarded)]
    async with httpx2.AsyncClient(transport=transport, base_url=PUBLIC_URL, headers=headers) as client:
        answer = await client.post("/v1/lease", json={"integration": "crm", "subject": "user-1"})
    return "leased" if answer.status_code == 200 else answer.json()["code"]


async def test_a_permit_is_shown_as_it_was_written(api: Api, admin: str):
    await api.app_with("sync")
    assert (await given(api, admin, "all", ALL)).items() >= (FIELDS | ALL).items()
    body = {
        **FIELDS,
        "integration": "crm",
        "provider": "gitlab",
        "subjects": ["team-*", "alice"],
        "connections": ["con_" + "0" * 22],
        "sources": ["::ffff:10.1.0.0/112", "10.1.2.3"],
        "exact_scopes": True,
        "actions": ["token"],
        "expires_at": "2026-02-01T12:00:00+02:00",
        "purpose": "nightly sync",
        "owner": "data team",
        "reason": "CHG-17",
    }
    kept = {**body, "sources": ["10.1.0.0/16", "10.1.2.3/32"], "expires_at": "2026-02-01T10:00:00Z"}
    await given(api, admin, "some", body)
    shown = (await api.get("/v1/apps/sync/permits/some", admin)).json()
    assert shown.items() >= kept.items()
    (record,) = [it for it in await api.records(AuditAction.PERMIT_PUT) if it.detail.get("name") == "some"]
    assert record.detail.items() >= kept.items()
    assert (await given(api, admin, "some", DENY)).items() >= (FIELDS | DENY).items()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subjects": []}, "subjects"),
    ({"connections": []}, "connections"),
    ({"connections": ["*"]}, "connections.0"),
    ({"sources": []}, "sources"),
    ({"sources": ["10.1.2.3/16"]}, "sources"),
    ({"provider": ""}, "provider"),
    ({"effect": "forbid"}, "effect"),
    ({"expires_at": "2026-02-01T12:00:00"}, "expires_at"),
    ({"mode": "observe"}, "body"),
    ({"scopes": ["read"]}, "body"),
    ({"effect": "deny", "scopes": []}, "scopes"),
    ({"effect": "deny", "scope_ceiling": ["read"]}, "body"),
    ({"effect": "deny", "exact_scopes": True}, "body"),
    ({"call_approval": True}, "body"),
    ({"priority": "high"}, "body"),
    ({"effect": "deny", "actions": ["proxy"], "priority": "low"}, "body"),
    ({"actions": ["proxy"], "priority": "urgent"}, "priority"),
    ({"effect": "deny", "actions": ["proxy"], "call_approval": True}, "body"),
    ({"owner": "a\nb"}, "owner"),
    ({"methods": ["GET"]}, "body"),
    ({"paths": ["/user"], "actions": ["token", "proxy"]}, "body"),
    ({"methods": [], "actions": ["proxy"]}, "methods"),
    ({"methods": ["get"], "actions": ["proxy"]}, "methods.0"),
    ({"paths": ["user"], "actions": ["proxy"]}, "paths.0"),
    ({"paths": ["/us*"], "actions": ["proxy"]}, "paths.0"),
    ({"paths": ["/**/a"], "actions": ["proxy"]}, "paths.0"),
    ({"paths": ["/a/../b"], "actions": ["proxy"]}, "paths.0"),
    ({"paths": ["/a%2fb"], "actions": ["proxy"]}, "paths.0"),
    ({"tools": ["a*b"], "actions": ["proxy"]}, "tools.0"),
    ({"tools": ["a"], "actions": ["proxy", "token"]}, "body"),
    ({"subjects": ["a\x00*"]}, "subjects.0"),
    ({"subjects": ["a\u202e*"]}, "subjects.0"),
    ({"subjects": ["x" * 256]}, "subjects.0"),
]


async def test_what_says_nothing_or_something_else_is_refused(api: Api, admin: str):
    await api.app_with("sync")
    for wrong, field in REFUSED:
        refused = await put(api, admin, "all", {**ALL, **wrong})
        assert (refused.status_code, refused.json()["field"]) == (400, field), wrong


async def test_a_deny_stops_the_next_lease_and_names_itself_where_more_is_allowed(api: Api, admin: str):
    connection = await api.active(await api.integration())
    other = await api.active(await api.integration("erp"))
    key = await api.app_with("sync", Action.TOKEN)
    assert await leased(api, key) == "leased"
    await given(api, admin, "not-this", {**DENY, "connections": [connection.id]})
    assert await leased(api, key) == "not_found", "as if it didn't exist"
    assert (await api.get(f"/v1/connections/{connection.id}", key)).status_code == 404
    listed = (await api.get("/v1/connections", key)).json()["items"]
    assert [it["id"] for it in listed] == [other.id]
    assert await leased(api, key, integration="erp") == "leased"
    await given(api, admin, "connects", {**ALL, "actions": ["connect"]})
    refused = await api.lease(key)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")
    assert (refused.json()["permit"], refused.json()["detail"]) == (
        "not-this",
        "The permit not-this denies it.",
    )
    await api.call("DELETE", "/v1/apps/sync/permits/not-this", admin)
    assert await leased(api, key) == "leased"


async def test_scopes_are_denied_and_insisted_on(api: Api, admin: str):
    await api.active(await api.integration(), scopes=("read_user", "api"))
    key = await api.app_with("sync", Action.TOKEN)
    await given(api, admin, "no-sudo", {**DENY, "scopes": ["sudo"]})
    assert await leased(api, key) == "leased"
    await given(api, admin, "no-api", {**DENY, "scopes": ["sudo", "api"]})
    refused = (await api.lease(key)).json()
    assert (refused["code"], refused["scopes"], refused["permit"]) == (
        "scope_not_permitted",
        "api",
        "no-api",
    )
    await api.call("DELETE", "/v1/apps/sync/permits/no-api", admin)
    await given(api, admin, "only", {**ALL, "exact_scopes": True})
    for asked, code in ((None, "read_user api"), (["api"], "read_user")):
        refused = (await api.lease(key, scopes=asked)).json()
        assert (refused["code"], refused["scopes"]) == ("scope_not_permitted", code)
    assert await leased(api, key, scopes=["api", "read_user"]) == "leased"


async def test_an_end_is_met_at_its_moment_also_by_a_cached_caller(api: Api, admin: str):
    await api.active(await api.integration(), lifetime=None)
    key = await api.app_with("sync")
    ends = api.clock.now() + timedelta(seconds=60)
    await given(api, admin, "for-a-minute", {**ALL, "expires_at": ends.isoformat()})
    assert await leased(api, key) == "leased"
    api.clock.advance(59.999999)
    assert await leased(api, key) == "leased"
    api.clock.advance(0.000001)
    assert await leased(api, key) == "not_found"


async def test_a_lease_that_waits_for_the_ledger_is_not_issued_after_the_end(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    connection = await api.active(await api.integration(), lifetime=None)
    key = await api.app_with("sync")
    ends = api.clock.now() + timedelta(seconds=60)
    await given(api, admin, "for-a-minute", {**ALL, "expires_at": ends.isoformat()})
    record = api.parts.ledger.record

    async def later(claim: LeaseClaim) -> None:
        api.clock.advance(61)
        await record(claim)

    monkeypatch.setattr(api.parts.ledger, "record", later)
    assert await leased(api, key) == "not_found"
    assert await api.records(AuditAction.LEASE_ISSUED, of=connection.id) == []


async def test_an_app_has_a_thousand_permits_at_most(api: Api, admin: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(permits, "MOST_PERMITS", 2)
    await api.app_with("sync", Action.TOKEN)
    await given(api, admin, "two", ALL)
    refused = await put(api, admin, "three", ALL)
    assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")
    await given(api, admin, "two", DENY)


async def test_a_lease_names_its_permit_in_its_record(api: Api, admin: str):
    connection = await api.active(await api.integration())
    key = await api.app_with("sync", Action.TOKEN)
    await given(api, admin, "a-wider-one", {**ALL, "scope_ceiling": []})
    assert await leased(api, key) == "leased"
    (record,) = await api.records(AuditAction.LEASE_ISSUED, of=connection.id)
    assert record.detail["permit"] == "only"


async def test_an_observing_deny_is_in_the_record_and_counted(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    connection = await api.active(await api.integration())
    key = await api.app_with("sync", Action.TOKEN, Action.CONNECT)
    counted: list[Any] = []
    monkeypatch.setattr(metrics.OBSERVED_DENIALS, "add", lambda *given: counted.append(given))
    await given(api, admin, "new", {**DENY, "actions": ["token", "connect"], "mode": "observe"})
    assert await leased(api, key) == "leased"
    assert (await api.post(f"/v1/connections/{connection.id}/revoke", key)).status_code < 300
    records = await api.records(of=connection.id)
    found = [(it.action.value, it.detail.get("would_be_denied_by")) for it in records]
    assert ("lease.issued", ["new"]) in found
    assert [names for action, names in found if action != "lease.issued"] == [["new"]]
    assert len(counted) == 2


async def test_the_network_of_the_caller_counts_as_it_is_known(api: Api, admin: str):
    object.__setattr__(
        api.parts, "settings", api.parts.settings.model_copy(update={"trusted_proxies": ("10.0.0.0/24",)})
    )
    await api.active(await api.integration())
    key = await api.app_with("sync")
    await given(api, admin, "inside", {**ALL, "sources": ["10.1.0.0/16"]})
    for peer, *forwarded in (
        ("10.1.2.3",),
        ("::ffff:10.1.2.3",),
        ("10.0.0.1", "10.1.2.3"),
        ("10.0.0.1", "192.0.2.1", "10.1.2.3, 10.0.0.2"),
    ):
        assert await leased_from(api, key, peer, *forwarded) == "leased"
    for peer, *forwarded in (
        ("192.0.2.1",),
        (None,),
        ("10.0.0.1",),
        ("10.0.0.1", "10.1.2.3, 192.0.2.1"),
        ("192.0.2.1", "10.1.2.3"),
        ("10.1.2.3", "10.1.2.3"),
    ):
        assert await leased_from(api, key, peer, *forwarded) == "not_found"
    await given(api, admin, "inside", ALL)
    await given(api, admin, "not-outside", {**DENY, "sources": ["192.0.2.0/24"]})
    assert await leased_from(api, key, "10.1.2.3") == "leased"
    for peer, *forwarded in (("192.0.2.1",), (None,), ("10.0.0.1", "unknown"), ("10.1.2.3", "10.1.2.3")):
        assert await leased_from(api, key, peer, *forwarded) == "not_found"


async def test_an_integration_of_a_denied_provider_is_not_administered(api: Api, admin: str):
    await api.integration()
    key = await api.app_with("sync", Action.ADMIN)
    assert (await api.get("/v1/integrations/crm", key)).status_code == 200
    await given(api, admin, "no-gitlab", {**DENY, "actions": ["admin", "audit"], "provider": "gitlab"})
    for method, path, body in (
        ("GET", "/v1/integrations/crm", None),
        ("DELETE", "/v1/integrations/crm", None),
        ("PUT", "/v1/integrations/new", {"provider": "gitlab", "client_id": "c"}),
        ("PUT", "/v1/integrations/crm", {"provider": "slack", "client_id": "c"}),
        ("GET", "/v1/apps", None),  # the whole tenant holds it
    ):
        refused = await api.call(method, path, key, **({"json": body} if body else {}))
        assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted"), path
    assert (await api.get("/v1/integrations", key)).json()["items"] == []
    fine = {"provider": "slack", "client_id": "c", "client_secret": "s" * 20, "binding": "none"}
    answer = await api.call("PUT", "/v1/integrations/new", key, json=fine)
    assert answer.status_code == 201, answer.text


async def test_an_export_of_all_holds_what_is_denied(api: Api, admin: str):
    key = await api.app_with("mover", Action.EXPORT)
    assert (await api.get("/v1/connections/export", key)).status_code == 400
    body = {"integration": "crm", "subjects": ["alice"], "actions": ["export"], "effect": "deny"}
    assert (await put(api, admin, "not-alice", body, app="mover")).status_code == 201
    refused = await api.get("/v1/connections/export", key)
    assert (refused.status_code, refused.json()["permit"]) == (403, "not-alice")


async def test_an_existing_connection_of_a_denied_id_gets_no_link(api: Api, admin: str):
    connection = await api.connection(await api.integration())
    key = await api.app_with("sync", Action.CONNECT)
    body = {"integration": "crm", "subject": "user-1"}
    assert (await api.post("/v1/connections", key, body)).status_code == 200
    await given(api, admin, "not-this", {**DENY, "actions": ["connect"], "connections": [connection.id]})
    assert (await api.post("/v1/connections", key, body)).json()["code"] == "not_permitted"
    assert (await api.post("/v1/connections", key, body | {"subject": "user-2"})).status_code == 201


async def test_the_permits_of_an_app_come_in_pages_by_name(api: Api, admin: str):
    await api.call("PUT", "/v1/apps/sync", admin, json={})
    names = [f"permit-{number:02}" for number in range(5)]
    for name in reversed(names):
        body = {"integration": "*", "actions": ["connect"]}
        made = await api.call("PUT", f"/v1/apps/sync/permits/{name}", admin, json=body)
        assert made.status_code == 201, made.text
    found, path = [], "/v1/apps/sync/permits?limit=2"
    for size in (2, 2, 1):
        page = (await api.get(path, admin)).json()
        assert len(page["items"]) == size
        found += [it["name"] for it in page["items"]]
        path = f"/v1/apps/sync/permits?limit=2&cursor={page['next_cursor']}"
    assert (found, page["next_cursor"]) == (names, None)
    foreign = await api.get(f"/v1/apps?cursor={path.rpartition('=')[2]}", admin)
    assert foreign.status_code == 400
