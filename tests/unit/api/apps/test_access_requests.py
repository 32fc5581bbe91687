"""Requests for access: an app asks, another one decides, and what was given for a time ends."""

from datetime import datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from temporalio.testing import ActivityEnvironment

from activities.decisions import DecisionActivities, PermitReviewActivities
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AccessRequestId
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.decisions import AccessRequestCall, DecisionProgress, ReviewPermits
from evergrant_server.core.outbox import OutboxKind
from tests.fakes.api import TENANT, Api

PATH = "/v1/access-requests"
WANTED = {"integration": "crm", "actions": ["token"]}
HOUR, DAY = 3600, 86_400


async def asked(api: Api, key: str, **more: Any) -> httpx2.Response:
    return await api.post(PATH, key, {"permit": WANTED, "reason": "the nightly sync", **more})


async def advanced(api: Api, id: str) -> DecisionProgress:
    """What the request's workflow has done."""
    steps = DecisionActivities(api.worker, api.clock)
    call = AccessRequestCall(
        tenant=TENANT,
        request_id=AccessRequestId(id),
        context=RequestContext(by="app:sync"),
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )
    return await ActivityEnvironment().run(steps.advance_access_request, call)


async def test_access_for_an_hour_from_the_request_to_its_end(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.active(await api.integration(), lifetime=None)
    sync = await api.app_with("sync")
    made = await asked(api, sync, lifetime=HOUR)
    assert (made.status_code, made.json()["state"], made.json()["requested_by"]) == (
        201,
        "waiting",
        "app:sync",
    )
    assert (await api.lease(sync)).status_code == 404
    path = f"{PATH}/{made.json()['id']}"
    api.clock.advance(7200)
    approved = (await api.post(f"{path}/approve", admin, {"note": "until the migration is done"})).json()
    assert (approved["state"], approved["decided_by"]) == ("approved", "app:admin")
    assert datetime.fromisoformat(approved["ends_at"]) == api.clock.now() + timedelta(hours=1)
    assert (await api.lease(sync)).status_code == 200
    assert (await advanced(api, made.json()["id"])).next_s == HOUR

    api.clock.advance(HOUR)
    assert (await api.lease(sync)).status_code == 404, "before any workflow has noticed"
    assert (await advanced(api, made.json()["id"])).state == "ended"
    assert (await api.get("/v1/apps/sync/permits", admin)).json()["items"] == []
    told = [it.action for it in await api.records() if it.action.startswith(("access.", "permit."))]
    assert told == [
        *(AuditAction.ACCESS_REQUESTED, AuditAction.PERMIT_PUT, AuditAction.ACCESS_APPROVED),
        *(AuditAction.PERMIT_DELETED, AuditAction.ACCESS_ENDED),
    ]
    kinds = [it.kind for it in await api.outbox() if it.kind is OutboxKind.ADVANCE_ACCESS_REQUEST]
    assert len(kinds) == 2, "its workflow is told when it is made and when it is decided"


async def test_an_end_that_an_admin_has_moved_is_not_the_requests_any_more(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    await api.active(await api.integration(), lifetime=None)
    sync = await api.app_with("sync")
    made = (await asked(api, sync, lifetime=HOUR)).json()
    await api.post(f"{PATH}/{made['id']}/approve", admin)
    later = (api.clock.now() + timedelta(days=2)).isoformat()
    permit = f"/v1/apps/sync/permits/{made['permit_name']}"
    assert (await api.call("PUT", permit, admin, json={**WANTED, "expires_at": later})).status_code == 200
    api.clock.advance(HOUR)
    assert (await advanced(api, made["id"])).state == "ended"
    assert (await api.lease(sync)).status_code == 200


async def test_a_reminder_a_day_until_the_deadline(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    sync = await api.app_for("sync")
    id = (await asked(api, sync, decide_within=2.5 * DAY)).json()["id"]
    assert (await advanced(api, id)).next_s == DAY
    for wait in (DAY, 0.5 * DAY):
        api.clock.advance(DAY)
        assert await advanced(api, id) == DecisionProgress(state="waiting", next_s=wait)
    api.clock.advance(0.5 * DAY)
    late = await api.post(f"{PATH}/{id}/approve", admin)
    assert (late.status_code, late.json()["code"]) == (400, "invalid_request")
    assert await advanced(api, id) == DecisionProgress(state="expired")
    assert await advanced(api, id) == DecisionProgress(state="expired"), "a retried activity changes nothing"
    assert len(await api.records(AuditAction.ACCESS_REMINDED, of=id)) == 2
    assert len(await api.records(AuditAction.ACCESS_EXPIRED, of=id)) == 1


async def test_who_may_decide(api: Api):
    admin, other = [await api.app_with(name, Action.ADMIN) for name in ("admin", "other")]
    sync, reader = await api.app_for("sync"), await api.app_with("reader", Action.TOKEN)
    own = (await asked(api, admin)).json()["id"]
    for_sync = (await asked(api, admin, app="sync", lifetime=HOUR)).json()
    assert (for_sync["app"], for_sync["requested_by"]) == ("sync", "app:admin")
    mine = (await asked(api, sync)).json()
    for path, key, code in (
        (own, admin, "not_permitted"),  # for itself
        (for_sync["id"], admin, "not_permitted"),  # who asked
        (mine["id"], sync, "not_permitted"),  # no admin
        (mine["id"], reader, "not_permitted"),
    ):
        assert (await api.post(f"{PATH}/{path}/approve", key)).json()["code"] == code
    assert (await api.get(f"{PATH}/{mine['id']}", reader)).json()["code"] == "not_found"
    assert (await api.post(f"{PATH}/{mine['id']}/withdraw", reader)).json()["code"] == "not_found"
    assert (await asked(api, reader, app="sync")).json()["code"] == "not_permitted"
    assert [it["id"] for it in (await api.get(PATH, reader)).json()["items"]] == []
    assert {it["app"] for it in (await api.get(PATH, sync)).json()["items"]} == {"sync"}
    assert len((await api.get(f"{PATH}?state=waiting", admin)).json()["items"]) == 3
    for id, key, verb, state in (
        (own, other, "approve", "approved"),
        (for_sync["id"], other, "deny", "denied"),
    ):
        assert (await api.post(f"{PATH}/{id}/{verb}", key)).json()["state"] == state
    again = await api.post(f"{PATH}/{own}/deny", other)
    assert "approved" in again.json()["detail"]


async def test_the_same_request_is_one_and_an_app_has_twenty_at_the_most(api: Api):
    sync = await api.app_for("sync")
    first, same = await asked(api, sync), await asked(api, sync, reason="please")
    assert (first.status_code, same.status_code) == (201, 200)
    assert first.json() == same.json()
    for hours in range(1, 20):
        assert (await asked(api, sync, lifetime=hours * HOUR)).status_code == 201
    more = await asked(api, sync, lifetime=21 * HOUR)
    assert (more.status_code, more.json()["code"]) == (409, "already_exists")
    assert (await api.post(f"{PATH}/{first.json()['id']}/withdraw", sync)).json()["state"] == "withdrawn"
    assert (await asked(api, sync, lifetime=21 * HOUR)).status_code == 201


async def test_a_request_that_was_changed_by_hand_is_not_approved(api: Api):
    admin = await api.app_with("admin", Action.ADMIN)
    id = (await asked(api, await api.app_for("sync"))).json()["id"]
    async with api.worker.write() as tx:
        await tx.connection.execute(
            text("""UPDATE access_request SET permit = '{"integration": "*", "actions": ["export"]}'""")
        )
    refused = await api.post(f"{PATH}/{id}/approve", admin)
    assert (refused.status_code, refused.json()["code"]) == (500, "authority_broken")
    assert await api.records(AuditAction.PERMIT_PUT) == []


async def test_an_unused_permit_is_proposed_once_and_removed_as_it_was_proposed(api: Api):
    admin, _ = await api.app_with("admin", Action.ADMIN), await api.app_for("sync")
    for name in ("old", "changed"):
        await api.call("PUT", f"/v1/apps/sync/permits/{name}", admin, json=WANTED)
    api.clock.advance(91 * DAY)
    review = PermitReviewActivities(api.worker, api.clock, timedelta(days=90))
    admin = await api.app_with("later", Action.ADMIN)
    for proposed in (3, 0):  # of the app admin's own permit too
        result = await ActivityEnvironment().run(review.review_permits, ReviewPermits())
        assert result.proposed == proposed
    await api.call("PUT", "/v1/apps/sync/permits/changed", admin, json={**WANTED, "effect": "deny"})
    waiting = {it["permit_name"]: it for it in (await api.get(PATH, admin)).json()["items"]}
    answers = {
        name: await api.post(f"{PATH}/{waiting[name]['id']}/approve", admin) for name in ("old", "changed")
    }
    assert answers["old"].json()["state"] == "approved"
    assert answers["changed"].json()["code"] == "already_exists", "a deny that came since stays"
    left = (await api.get("/v1/apps/sync/permits", admin)).json()["items"]
    assert [it["name"] for it in left] == ["changed"]
    assert len(await api.records(AuditAction.PERMIT_DELETED)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"permit": {"integration": "CRM", "actions": ["token"]}},
        {"permit": {"integration": "crm", "actions": []}},
        {"lifetime": 1},
        {"lifetime": 1e99},
        {"decide_within": -1},
        {"reason": ""},
        {"reason": "\u202e"},
        {"app": "../admin"},
        {"state": "approved"},
    ],
)
async def test_bad_requests(api: Api, wrong: dict[str, Any]):
    assert (await asked(api, await api.app_for("sync"), **wrong)).json()["code"] == "invalid_request"
