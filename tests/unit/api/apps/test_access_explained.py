"""`GET /v1/access/explain`: the permits' decision, and what else stops a lease, compared with real leases."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode
from evergrant_server.store.access import AppRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.permits import PermitRow
from tests.fakes.api import OTHER, TENANT, Api

EXPLAIN = "/v1/access/explain"
PERMITS = {
    "b-erp": {"integration": "erp", "actions": ["token"]},
    "c-other": {"integration": "crm", "subjects": ["user-2"], "actions": ["token"]},
    "d-connect": {"integration": "crm", "actions": ["connect"]},
    "e-nothing": {"integration": "*", "scope_ceiling": [], "actions": ["token"]},
    "f-all": {"integration": "*", "actions": ["token"]},
    "g-too": {"integration": "crm", "subjects": ["user-1"], "actions": ["token", "proxy"]},
}


async def explained(api: Api, admin: str, connection: Connection, app: str = "sync", **more: Any) -> dict:
    answer = await api.get(EXPLAIN, admin, params={"app": app, "connection": connection.id, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def by_hand(api: Api, table: type[Row], values: dict, **where: str) -> None:
    async with api.worker.write() as tx:
        await tx.connection.execute(update(table).where(columns_equal(table, **where)).values(values))


def codes(found: dict) -> list[str]:
    return [it["code"] for it in found["stopped_by"]]


async def test_every_permit_is_accounted_for(api: Api, admin: str):
    connection = await api.active(await api.integration())
    await api.app_with("sync")
    for name, body in PERMITS.items():
        await api.call("PUT", f"/v1/apps/sync/permits/{name}", admin, json=body)
    found = await explained(api, admin, connection)
    assert found == {
        "app": "sync",
        "connection_id": connection.id,
        "integration": "crm",
        "subject": "user-1",
        "action": "token",
        "scopes": ["read_user"],
        "allowed": True,
        "reason": "allowed",
        "decided_by": "f-all",
        "valid_until": None,
        "also_allowed_by": ["g-too"],
        "also_denied_by": [],
        "observed_by": [],
        "why_not": [
            {"permit": "e-nothing", "effect": "allow", "field": "scope", "scopes": ["read_user"]},
            {"permit": "d-connect", "effect": "allow", "field": "action", "scopes": []},
            {"permit": "c-other", "effect": "allow", "field": "subject", "scopes": []},
            {"permit": "b-erp", "effect": "allow", "field": "integration", "scopes": []},
        ],
        "omitted": 0,
        "down_scoping": "unknown",
        "stopped_by": [],
    }


@pytest.mark.parametrize(
    ("provider", "known", "reason"),
    [("auth0", "refresh", "allowed"), ("ory", "unsupported", "token_above_request")],
)
async def test_it_says_whether_the_provider_issues_narrower_tokens(
    api: Api, admin: str, provider: str, known: str, reason: str
):
    """And counts on one only there: elsewhere a permit that insists refuses the whole token."""
    connection = await api.active(await api.integration(provider=provider), scopes=("read", "write"))
    await api.app_with("sync")
    permit = {"integration": "crm", "actions": ["token"], "exact_scopes": True}
    await api.call("PUT", "/v1/apps/sync/permits/exact", admin, json=permit)
    found = await explained(api, admin, connection, scopes="read")
    assert (found["down_scoping"], found["reason"]) == (known, reason)
    assert (await api.get(f"/v1/providers/{provider}", admin)).json()["down_scoping"] == known


async def test_other_actions_are_judged_as_their_requests_are(api: Api, admin: str):
    integration = await api.integration(scope_ceiling=("read_user", "api"))
    connection = await api.active(integration)
    await api.app_with("sync", Action.CONNECT, Action.EXPORT, integration="crm")
    connect = await explained(api, admin, connection, action="connect", scopes="api sudo")
    assert (connect["allowed"], connect["scopes"]) == (True, ["api", "sudo"])
    assert connect["stopped_by"][0]["detail"].endswith(": sudo")
    assert codes(connect) == ["scope_not_permitted"]
    assert (await explained(api, admin, connection, action="admin"))["reason"] == "action_not_permitted"
    export = await explained(api, admin, connection, action="export")
    assert (export["allowed"], export["why_not"][0]["field"]) == (False, "integration")


Change = Callable[[Connection], Connection]
STATES: dict[str, Change] = {
    "active": lambda it: it,
    "reported": lambda it: it.token_reported(),
    **{
        state.value: lambda it, state=state: it.model_copy(update={"state": state})
        for state in LifecycleState
    },
    "ended elsewhere": lambda it: it.rejected(ErrorCode.GRANT_REVOKED_ELSEWHERE, it.changed_at),
    "reported and refused": lambda it: it.token_reported().rejected(ErrorCode.REFRESH_REFUSED, it.changed_at),
    "choosing": lambda it: it.model_copy(update={"follow_up": FollowUp.CHOOSING}),
}


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("state", STATES)
async def test_it_says_what_a_lease_is_answered(api: Api, admin: str, state: str, over: bool):
    """With each state, permit and request: allowed and stopped by nothing, or the lease's own code."""
    integration = await api.integration()
    connection = await api.active(integration, scopes=("read_user", "api"), lifetime=3600)
    await api.change(connection, STATES[state])
    limited: dict[str, Any] = {"integration": "crm", "ceiling": ("read_user",)}
    asked = [
        (await api.app_with("sync", Action.TOKEN), "sync", ("", "api", "sudo")),
        (await api.app_with("limited", Action.TOKEN, **limited), "limited", ("", "read_user", "sudo")),
        (await api.app_with("other", Action.TOKEN, subjects=("user-2",)), "other", ("",)),
        (await api.app_with("asker", Action.CONNECT), "asker", ("",)),
    ]
    reasons = {
        "no_permit": "not_found",
        "action_not_permitted": "not_permitted",
        "scope_above_ceiling": "scope_not_permitted",
    }
    if over:
        api.clock.advance(3601)
        api.refreshes_with(*("at-2",) * 20)
    for key, app, requests in asked:
        for scopes in requests:
            found = await explained(api, admin, connection, app=app, scopes=scopes)
            body = {"scopes": scopes.split()} if scopes else {}
            answer = await api.post(f"/v1/connections/{connection.id}/token", key, body)
            granted = found["allowed"] and not found["stopped_by"]
            assert (answer.status_code == 200) is granted, (app, scopes, answer.text, found)
            if not granted:
                assert answer.json()["code"] in {reasons.get(found["reason"]), *codes(found)}, (app, scopes)


async def test_what_stops_an_app_is_named_beside_its_permits(api: Api, admin: str):
    connection, _ = await api.active_for("sync", Action.TOKEN)
    (key,) = (await api.get("/v1/apps/sync/keys", admin)).json()["items"]
    await api.call("DELETE", f"/v1/apps/sync/keys/{key['id']}", admin)
    await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": True})
    found = await explained(api, admin, connection)
    assert (found["allowed"], codes(found)) == (True, ["unauthenticated", "app_disabled"])


async def test_rows_that_were_changed_by_hand_are_named(api: Api, admin: str):
    connection, key = await api.active_for("sync", Action.TOKEN)
    (permit,) = (await api.get("/v1/apps/sync/permits", admin)).json()["items"]
    app = await api.app_named("sync")
    await by_hand(api, PermitRow, {"integration": "erp"}, id=permit["id"])
    await by_hand(api, AppRow, {"return_to": ["https://x.example/"]}, id=app.id)
    await by_hand(api, ConnectionRow, {"label": "work"}, id=connection.id)
    found = await explained(api, admin, connection)
    assert (found["allowed"], codes(found)) == (False, ["authority_broken"] * 3)
    for broken, row in zip(found["stopped_by"], (app.id, permit["id"], connection.id), strict=True):
        assert broken["detail"].startswith(row)
    assert (await api.lease(key)).json()["code"] == "authority_broken"


async def test_only_an_admin_of_the_tenant_learns_what_exists(api: Api, admin: str):
    ours = await api.active(await api.integration())
    theirs = await api.active(await api.integration("theirs", tenant=OTHER))
    await api.app_with("sync", Action.TOKEN)
    await api.app_with("their-app", Action.TOKEN, tenant=OTHER)
    absent = "con_0000000000000000000000"

    async def answers(key: str | None, *asked: tuple[str, str]) -> set[tuple[int, bytes]]:
        found = [await api.get(EXPLAIN, key, params={"app": a, "connection": c}) for a, c in asked]
        return {(it.status_code, it.content) for it in found}

    for pair in ((("their-app", ours.id), ("no", ours.id)), (("sync", theirs.id), ("sync", absent))):
        ((status, _),) = await answers(admin, *pair)
        assert status == 404
    everything = [(a, c) for a in ("sync", "their-app", "no") for c in (ours.id, theirs.id, absent)]
    strangers = [
        (await api.app_with("user", Action.TOKEN, Action.CONNECT, Action.EXPORT), 403),
        (await api.app_with("few", Action.ADMIN, integration="crm"), 403),
        (None, 401),
    ]
    for key, expected in strangers:
        ((status, _),) = await answers(key, *everything)
        assert status == expected


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"app": "Überall"}, 400, "app"),
        ({"app": "a" * 64}, 400, "app"),
        ({"connection": "con_ü\x00"}, 404, None),
        ({"connection": "c" * 101}, 400, "connection"),
        ({"scopes": "größe"}, 400, "scopes"),
        ({"scopes": 'a "b"'}, 400, "scopes"),
        ({"scopes": "a\x00"}, 400, "scopes"),
        ({"action": "lease"}, 400, "action"),
        ({"scopes": "   "}, 200, None),
        ({"scopes": " a  a "}, 200, None),
    ],
)
async def test_bad_input(api: Api, admin: str, asked: dict, status: int, field: str | None):
    connection, _ = await api.active_for("sync", Action.TOKEN)
    answer = await api.get(EXPLAIN, admin, params={"app": "sync", "connection": connection.id, **asked})
    assert (answer.status_code, answer.json().get("field")) == (status, field), answer.text


async def test_many_permits_are_counted_and_the_nearest_shown(api: Api, admin: str):
    connection, _ = await api.active_for("sync", Action.TOKEN)
    app = await api.app_named("sync")
    async with api.worker.write() as tx:
        only = await tx.access.permit(TENANT, app.id, "only")
        assert only is not None
        for number in range(300):
            changes = {"id": f"per_{number:022}", "name": f"p{number:04}", "integration": f"i{number}"}
            changes |= {"integration": "crm", "subjects": ("user-2",)} if number == 250 else {}
            await tx.access.put_permit(only.model_copy(update=changes), expected=None)
    found = await explained(api, admin, connection)
    assert (found["decided_by"], len(found["why_not"]), found["omitted"]) == ("only", 200, 100)
    assert found["why_not"][0] == {"permit": "p0250", "effect": "allow", "field": "subject", "scopes": []}
