"""`/scim/v2`: judged by scim2-tester, driven by scim2-client, and what a deactivation leads to."""

import asyncio
from typing import Any

import httpx2
import pytest
from scim2_client.engines.httpx2 import SyncSCIMClient
from scim2_models import PatchOp, PatchOperation, SCIMException, SearchRequest
from scim2_tester import Status, check_server

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.incidents import IncidentState
from tests.fakes.api import OTHER, PUBLIC_URL, TENANT, Api
from tests.unit.api.leavers.people import ISSUER, OFFBOARDINGS, SUB, at_work, incident_of, lease_of

SCIM = "/scim/v2"
USER = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
RULE = {"subject_from": "user_name", "sub_from": "external_id", "issuer": ISSUER}


class LoopTransport(httpx2.BaseTransport):
    """Has a synchronous client, in a thread, ask the API of this event loop."""

    def __init__(self, api: Api) -> None:
        self._api, self._loop = api, asyncio.get_running_loop()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return asyncio.run_coroutine_threadsafe(self._ask(request), self._loop).result()

    async def _ask(self, request: httpx2.Request) -> httpx2.Response:
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        sent = {"headers": headers, "content": request.read()}
        answer = await self._api.client.request(request.method, str(request.url), **sent)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def directory(api: Api, key: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=f"{PUBLIC_URL}{SCIM}", headers=headers, transport=LoopTransport(api))


@pytest.fixture
async def key(api: Api) -> str:
    return await api.app_with("directory", Action.DIRECTORY)


async def sent(api: Api, method: str, path: str, key: str, body: Any = None) -> httpx2.Response:
    more = {} if body is None else {"json": body}
    return await api.call(method, f"{SCIM}{path}", key, **more)


async def added(api: Api, key: str, user_name: str = "alice", **members: Any) -> dict[str, Any]:
    body = {"schemas": [USER], "userName": user_name, **members}
    answer = await sent(api, "POST", "/Users", key, body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def patched(value: Any, path: str | None = "active", op: str = "replace") -> dict[str, Any]:
    operation = {"op": op, "value": value, **({} if path is None else {"path": path})}
    return {"schemas": [PATCH], "Operations": [operation]}


async def test_scim2_tester_finds_nothing_wrong(api: Api, key: str):
    with directory(api, key) as http:
        results = await asyncio.to_thread(check_server, SyncSCIMClient(http))
    wrong = [f"{it.title}: {it.reason}" for it in results if it.status in (Status.ERROR, Status.CRITICAL)]
    assert wrong == []
    assert sum(it.status is Status.SUCCESS for it in results) > 30
    skipped = {it.title for it in results if it.status is Status.SKIPPED}
    assert len(skipped) < 5, skipped


async def test_scim2_client_creates_finds_replaces_deactivates_and_deletes(api: Api, key: str):
    work = await at_work(api)
    await api.call("PUT", "/v1/offboarding-rule", work.boss, json=RULE)
    with directory(api, key) as http:
        await asyncio.to_thread(drive, SyncSCIMClient(http))
    (incident,) = (await api.get(OFFBOARDINGS, work.boss)).json()["items"]
    assert (incident["subject"], incident["selected"], incident["beside"]["sessions"]) == ("alice", 3, 2)
    assert await lease_of(api, work) == "connection_held"


def drive(scim: SyncSCIMClient) -> None:
    """A directory's day."""
    scim.discover()
    model = scim.get_resource_model("User")
    assert model is not None
    user: Any = scim.create(model(user_name="Alice", external_id=SUB, active=True))
    found: Any = scim.query(model, query_parameters=SearchRequest(filter='userName eq "alice"'))
    assert [it.id for it in found.resources] == [user.id]
    user.user_name = "alice"
    replaced: Any = scim.replace(user)
    assert (replaced.id, replaced.user_name) == (user.id, "alice")
    with pytest.raises(SCIMException) as taken:
        scim.create(model(user_name="ALICE"))
    assert (taken.value.status, taken.value.scim_type) == (409, "uniqueness")
    operations = [PatchOperation(op=PatchOperation.Op.replace_, path="active", value=False)]
    gone: Any = scim.modify(model, user.id, PatchOp[model](operations=operations))
    assert gone.active is False
    scim.delete(model, user.id)
    with pytest.raises(SCIMException) as absent:
        scim.query(model, user.id)
    assert absent.value.status == 404


@pytest.mark.parametrize(
    "body",
    [
        patched(False),
        patched("False", op="Replace"),  # as Microsoft Entra sends it
        patched({"active": False}, None),  # as Okta sends it
    ],
    ids=["RFC 7644", "Entra", "Okta"],
)
async def test_a_deactivation_stops_connections_and_an_activation_puts_them_back(
    api: Api, key: str, body: dict[str, Any]
):
    work = await at_work(api)
    await api.call("PUT", "/v1/offboarding-rule", work.boss, json=RULE)
    user = await added(api, key, externalId=SUB)
    answer = await sent(api, "PATCH", f"/Users/{user['id']}", key, body)
    assert (answer.status_code, answer.json()["active"]) == (200, False), answer.text
    assert await lease_of(api, work) == "connection_held"
    again = await sent(api, "PATCH", f"/Users/{user['id']}", key, patched(True))
    assert again.json()["active"] is True
    assert await lease_of(api, work) == "leased"
    (offboarding,) = (await api.get(OFFBOARDINGS, work.boss)).json()["items"]
    assert offboarding["outcomes"] == {"restored": 3}


async def test_a_deletion_begins_an_offboarding_and_forgets_the_user(api: Api, key: str):
    work = await at_work(api)
    await api.call("PUT", "/v1/offboarding-rule", work.boss, json=RULE)
    user = await added(api, key)
    assert (await sent(api, "DELETE", f"/Users/{user['id']}", key)).status_code == 204
    assert (await sent(api, "GET", f"/Users/{user['id']}", key)).status_code == 404
    (offboarding,) = (await api.get(OFFBOARDINGS, work.boss)).json()["items"]
    incident = await incident_of(api, offboarding["id"])
    assert (incident.state, incident.selected, incident.by) == (IncidentState.HOLDING, 3, "app:directory")
    async with api.store.read() as tx:
        assert await tx.directory_users.count(TENANT) == 0


async def test_without_a_rule_nobody_is_matched_and_with_a_dry_run_nothing_begins(api: Api, key: str):
    work = await at_work(api)
    user = await added(api, key)
    await sent(api, "PATCH", f"/Users/{user['id']}", key, patched(False))
    assert await lease_of(api, work) == "leased"
    await api.call("PUT", "/v1/offboarding-rule", work.boss, json={**RULE, "dry_run": True})
    bob = await added(api, key, "bob")
    await sent(api, "DELETE", f"/Users/{bob['id']}", key)
    assert await lease_of(api, work, subject="bob") == "leased"
    (planned,) = await api.records(AuditAction.OFFBOARDING_PLANNED)
    assert (planned.detail["connections"], "bob" in str(planned.detail)) == (1, False)


async def test_the_key_of_a_directory_does_nothing_else(api: Api, key: str):
    work = await at_work(api)
    connection = work.mine[0].id
    for method, path in (
        *(("GET", "/v1/connections"), ("GET", f"/v1/connections/{connection}"), ("GET", "/v1/apps")),
        *(("POST", f"/v1/connections/{connection}/revoke"), ("GET", OFFBOARDINGS), ("GET", "/v1/audit")),
        *(("POST", f"/v1/connections/{connection}/token"), ("GET", "/v1/sessions")),
    ):
        answer = await api.call(method, path, key, **({"json": {}} if method == "POST" else {}))
        seen = answer.json().get("items") if answer.is_success else None
        assert answer.status_code in (403, 404) or seen == [], (path, answer.text)
    for other in (work.boss, work.pipeline):
        refused = await sent(api, "GET", "/Users", other)
        assert (refused.status_code, refused.json()["status"]) == (403, "403")
        assert refused.headers["content-type"] == "application/scim+json"
    unknown = await sent(api, "GET", "/Users", "evg_key_none")
    assert (unknown.status_code, unknown.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_directory_sees_its_own_tenant_alone(api: Api, key: str):
    user = await added(api, key)
    other = await api.app_with("directory", Action.DIRECTORY, tenant=OTHER)
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        body = {"schemas": [USER], "userName": "x"} if method == "PUT" else patched(False)
        answer = await sent(api, method, f"/Users/{user['id']}", other, None if method == "GET" else body)
        assert answer.status_code == 404, method
    assert (await sent(api, "GET", "/Users", other)).json()["totalResults"] == 0
    assert (await added(api, other))["id"] != user["id"], "the name is free there"


REFUSED: dict[str, tuple[str, str, Any, int, str | None]] = {
    "a filter of another attribute": ("GET", '/Users?filter=externalId eq "1"', None, 400, "invalidFilter"),
    "a filter by half a character": (
        *("GET", '/Users?filter=userName eq "\\ud800"', None),
        *(400, "invalidFilter"),
    ),
    "a malformed filter": ("GET", "/Users?filter=userName eq", None, 400, "invalidFilter"),
    "no userName": ("POST", "/Users", {"schemas": [USER]}, 400, "invalidValue"),
    "no object": ("POST", "/Users", [], 400, "invalidSyntax"),
    "half a character": ("POST", "/Users", {"schemas": [USER], "userName": "\ud800"}, 400, "invalidValue"),
    "NUL": ("POST", "/Users", {"schemas": [USER], "userName": "a\0"}, 400, "invalidValue"),
    "too long": ("POST", "/Users", {"schemas": [USER], "userName": "a" * 321}, 400, "invalidValue"),
    "an empty name": ("POST", "/Users", {"schemas": [USER], "userName": ""}, 400, "invalidValue"),
    "a search of everything": ("POST", "/.search", {}, 501, None),
    "another method": ("DELETE", "/Users", None, 405, None),
    "a group": ("POST", "/Groups", {}, 404, None),
}


@pytest.mark.parametrize("refusal", REFUSED.values(), ids=REFUSED)
async def test_rfc7644_3_12_a_refusal_is_scims_error(
    api: Api, key: str, refusal: tuple[str, str, Any, int, str | None]
):
    method, path, body, status, scim_type = refusal
    answer = await sent(api, method, path, key, body)
    error = answer.json()
    assert (answer.status_code, error["status"], error.get("scimType")) == (status, str(status), scim_type)
    assert error["schemas"] == ["urn:ietf:params:scim:api:messages:2.0:Error"]
    assert error["detail"]


async def test_a_body_that_isnt_json_is_invalid_syntax(api: Api, key: str):
    answer = await api.call("POST", f"{SCIM}/Users", key, content=b"{")
    assert (answer.status_code, answer.json()["scimType"]) == (400, "invalidSyntax")


async def test_rfc7644_3_4_2_4_users_are_paged_by_their_number(api: Api, key: str):
    ids = sorted([(await added(api, key, name))["id"] for name in ("a", "b", "c")])
    page = (await sent(api, "GET", "/Users?startIndex=2&count=1", key)).json()
    assert (page["totalResults"], page["startIndex"], page["itemsPerPage"]) == (3, 2, 1)
    assert [user["id"] for user in page["Resources"]] == [ids[1]]
    counted = (await sent(api, "GET", "/Users?count=0", key)).json()
    assert (counted["totalResults"], counted.get("Resources") or []) == (3, [])


async def test_no_more_of_a_person_is_kept_than_is_served(api: Api, key: str):
    more = {"name": {"givenName": "Alice"}, "phoneNumbers": [{"value": "+49"}], "password": "hush"}
    user = await added(api, key, emails=[{"value": "alice@example.com", "primary": True}], **more)
    assert set(user) == {"schemas", "id", "userName", "emails", "meta"}
    async with api.store.read() as tx:
        row = await tx.directory_users.get(TENANT, user["id"])
    assert row is not None
    assert "hush" not in row.model_dump_json()
