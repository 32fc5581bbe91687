"""`GET /v1/access/changes`: what changed, by whom, and what was before; leases are left out."""

import pytest
from sqlalchemy import text

from evergrant_server.core.access import Action
from evergrant_server.store.audit_tables import ACCESS_CONDITION
from tests.fakes.api import Api

PERMIT = "/v1/apps/sync/permits/crm"
PATH = "/v1/access/changes"


async def test_a_permit_that_was_widened_between_two_moments(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    _, sync = await api.active_for("sync", Action.TOKEN)
    narrow = {"integration": "crm", "actions": ["token"], "scope_ceiling": ["read_user"]}
    await api.call("PUT", PERMIT, admin, json=narrow)
    api.clock.advance(60)
    since = api.clock.now()
    await api.call("PUT", PERMIT, admin, json={**narrow, "scope_ceiling": None})
    assert (await api.lease(sync)).status_code == 200
    api.clock.advance(60)
    until = api.clock.now()
    await api.call("DELETE", PERMIT, admin)
    between = {"since": since.isoformat(), "until": until.isoformat()}
    (change,) = (await api.get(PATH, admin, params=between)).json()["items"]
    assert (change["action"], change["by"]) == ("permit.put", "app:admin")
    assert change["before"]["scope_ceiling"] == ["read_user"]
    assert change["detail"]["scope_ceiling"] is None
    first = (await api.get(PATH, admin, params={"limit": 1})).json()
    assert first["items"][0]["before"] is None
    rest = (await api.get(PATH, admin, params={"cursor": first["next_cursor"]})).json()["items"]
    assert [it["action"] for it in rest] == ["permit.put", "permit.deleted"]
    other = await api.get(PATH, admin, params={"cursor": first["next_cursor"], **between})
    assert other.json()["code"] == "invalid_request", "a cursor is for its own window"
    assert (await api.get(PATH, sync)).json()["code"] == "not_permitted"


async def test_changes_are_found_by_an_index_among_any_number_of_leases(api: Api):
    query = "SELECT 1 FROM audit WHERE tenant = 'acme' AND at >= '2026'"
    async with api.worker.read() as tx:
        plan = await tx.connection.execute(text(f"EXPLAIN QUERY PLAN {query} AND ({ACCESS_CONDITION})"))
        steps = [row[-1] for row in plan]
    assert "ix_audit_access" in steps[0], steps


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("moment", ["6", "0", "2026", "2026-01-31", "2026-01-31T12:00:00"])
async def test_a_moment_is_a_text_with_a_zone_and_no_number(api: Api, name: str, moment: str):
    """The OpenAPI document says date-time; seconds since 1970 were taken as well."""
    admin = await api.app_with("admin", Action.ADMIN)
    answer = await api.get(PATH, admin, params={name: moment})
    assert (answer.status_code, answer.json()["field"]) == (400, name)
