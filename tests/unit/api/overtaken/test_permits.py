"""A permit is deleted as it was judged: one that was changed at that moment is judged again."""

from datetime import timedelta
from typing import Any

import httpx2
import pytest
from temporalio.testing import ActivityEnvironment

from activities.decisions import DecisionActivities, PermitReviewActivities
from evergrant_server.core.access import Action
from evergrant_server.core.ids import AccessRequestId
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.decisions import AccessRequestCall, ReviewPermits, ReviewPermitsResult
from evergrant_server.store.access import Access
from evergrant_server.store.decisions import AccessRequests
from tests.fakes.api import TENANT, Api
from tests.fakes.postgresql.overtaking import overtake

REQUESTS = "/v1/access-requests"
WANTED = {"integration": "crm", "actions": ["token"]}
HOUR = 3600


async def put(api: Api, admin: str, name: str, **changes: Any) -> httpx2.Response:
    return await api.call("PUT", f"/v1/apps/sync/permits/{name}", admin, json={**WANTED, **changes})


async def names(api: Api, admin: str) -> list[str]:
    return [it["name"] for it in (await api.get("/v1/apps/sync/permits", admin)).json()["items"]]


async def reviewed(api: Api) -> ReviewPermitsResult:
    """Proposes to remove what went unused for a day."""
    review = PermitReviewActivities(api.worker, api.clock, timedelta(days=1))
    return await ActivityEnvironment().run(review.review_permits, ReviewPermits())


async def again(api: Api, admin: str, name: str) -> None:
    """Deletes a permit and puts a deny of that name, which has the same revision."""
    assert (await api.call("DELETE", f"/v1/apps/sync/permits/{name}", admin)).status_code == 204
    assert (await put(api, admin, name, effect="deny")).status_code == 201


@pytest.mark.parametrize("is_new", [False, True])
async def test_an_app_does_not_delete_what_denies_it_tokens_since_a_moment_ago(
    api: Api, admin: str, is_new: bool, monkeypatch: pytest.MonkeyPatch
):
    sync = await api.app_for("sync", Action.ADMIN)
    await put(api, admin, "read")
    denied = overtake(
        monkeypatch,
        api.store,
        Access,
        "permit",
        lambda: again(api, admin, "read") if is_new else put(api, admin, "read", effect="deny"),
    )
    refused = await api.call("DELETE", "/v1/apps/sync/permits/read", sync)
    await denied.result()
    assert (refused.status_code, refused.json()["code"]) == (409, "store_conflict")
    assert "read" in await names(api, admin)


async def test_a_permit_that_is_changed_while_its_removal_is_approved_stays(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    await api.app_for("sync")
    await put(api, admin, "read")
    api.clock.advance(2 * 86_400)
    boss = await api.app_with("boss", Action.ADMIN)
    await reviewed(api)
    listed = (await api.get(REQUESTS, boss)).json()["items"]
    (proposal,) = (it["id"] for it in listed if it["app"] == "sync")
    changed = overtake(
        monkeypatch, api.store, Access, "permit", lambda: put(api, boss, "read", purpose="reads")
    )
    refused = await api.post(f"{REQUESTS}/{proposal}/approve", boss)
    assert (await changed.result()).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (409, "already_exists")
    assert await names(api, admin) == ["read"]


async def test_access_that_is_extended_at_its_end_stays(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    sync = await api.app_for("sync")
    asked = {"permit": WANTED, "reason": "the nightly sync", "lifetime": HOUR}
    made = (await api.post(REQUESTS, sync, asked)).json()
    assert (await api.post(f"{REQUESTS}/{made['id']}/approve", admin)).status_code == 200
    api.clock.advance(HOUR)
    later = (api.clock.now() + timedelta(days=2)).isoformat()
    name = made["permit_name"]
    extended = overtake(
        monkeypatch, api.store, Access, "permit", lambda: put(api, admin, name, expires_at=later)
    )
    call = AccessRequestCall(
        tenant=TENANT,
        request_id=AccessRequestId(made["id"]),
        context=RequestContext(by="app:sync"),
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
    )
    steps = DecisionActivities(api.worker, api.clock)
    ended = await ActivityEnvironment().run(steps.advance_access_request, call)
    assert (ended.state, (await extended.result()).status_code) == ("ended", 200)
    assert await names(api, admin) == [name]


async def test_an_unused_permit_is_proposed_once_by_two_reviews(
    api: Api, admin: str, monkeypatch: pytest.MonkeyPatch
):
    await api.app_for("sync")
    await put(api, admin, "read")
    api.clock.advance(2 * 86_400)
    boss = await api.app_with("boss", Action.ADMIN)
    second = overtake(monkeypatch, api.store, AccessRequests, "newest_removal", lambda: reviewed(api))
    first = await reviewed(api)
    assert first.proposed + (await second.result()).proposed == 2  # of `admin` and of `sync`
    assert len((await api.get(REQUESTS, boss)).json()["items"]) == 2
