"""With EVERGRANT_FOUR_EYES a second admin approves what a command resolves to, not the names in it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from sqlalchemy import text

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.integrations import Endpoints
from tests.fakes.api import TENANT, Api, running_api
from tests.security.isolation.world import document

GOOD, EVIL = "https://login.example", "https://login.evil.example"
LOGIN = {"integration": "staff", "roles": {"tenant_admin": ["admins"]}}
GENERIC = {"provider": "generic", "client_id": "evergrant", "client_secret": "hush"}


def endpoints_at(issuer: str) -> Endpoints:
    return Endpoints(
        issuer=issuer,
        authorization_endpoint=f"{issuer}/authorize",
        token_endpoint=f"{issuer}/token",
        jwks_uri=f"{issuer}/keys",
    )


class Admins:
    """Two admins: A, who sends commands, and B, who approves them."""

    def __init__(self, api: Api, a: str, b: str) -> None:
        self.api, self.a, self.b = api, a, b

    async def send(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        return await self.api.call(method, path, self.a, json=body)

    async def waiting(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What B is shown of a command that A has sent."""
        answer = await self.send(method, path, body)
        assert answer.json()["code"] in ("approval_required", "approval_outdated"), answer.text
        shown = (await self.api.get("/v1/approvals", self.b)).json()["items"]
        return next(it for it in shown if it["id"] == answer.json()["approval_id"])

    async def approved(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """The same, and B approves it."""
        shown = await self.waiting(method, path, body)
        assert (await self.api.post(f"/v1/approvals/{shown['id']}", self.b)).status_code == 200
        return shown

    async def assert_outdated(self, method: str, path: str, body: Any, changed: str) -> None:
        refused = await self.send(method, path, body)
        assert (refused.status_code, refused.json()["code"]) == (409, "approval_outdated"), refused.text
        assert changed in refused.json()["detail"]


@pytest_asyncio.fixture
async def admins(tmp_path: Path) -> AsyncIterator[Admins]:
    async with running_api(tmp_path, four_eyes=True) as api:
        a, b = [await api.app_with(name, Action.ADMIN) for name in ("a", "b")]
        await api.integration("staff", provider="generic", issuer=GOOD, endpoints=endpoints_at(GOOD))
        yield Admins(api, a, b)


async def recreate_staff(admins: Admins) -> None:
    """As a worker and A would, had B not been asked about an integration before."""
    async with admins.api.worker.write() as tx:
        found = await tx.integrations.by_name(TENANT, "staff")
        assert found is not None
        await tx.integrations.delete(TENANT, found.id)
    await admins.api.integration("staff", provider="generic", issuer=EVIL, endpoints=endpoints_at(EVIL))


async def test_an_issuer_that_was_put_in_place_of_the_approved_one_is_no_login(admins: Admins):
    put = ("PUT", "/v1/admin-login", LOGIN)
    shown = await admins.approved(*put)
    there = shown["resolves_to"]["integration"]
    assert (there["issuer"], there["revision"], there["id"][:4]) == (GOOD, 1, "int_")
    assert there["endpoints"]["token_endpoint"] == f"{GOOD}/token"
    assert there["endpoints"]["jwks_uri"] == f"{GOOD}/keys"
    await recreate_staff(admins)
    await admins.assert_outdated(*put, changed="integration")
    assert (await admins.api.get("/v1/admin-login", admins.a)).status_code == 404
    again = await admins.waiting(*put)
    assert (again["approved_by"], again["resolves_to"]["integration"]["issuer"]) == (None, EVIL)


async def test_b_approves_what_b_was_shown_though_a_has_changed_it_meanwhile(admins: Admins):
    put = ("PUT", "/v1/client-login", {"app": "a", "integration": "staff"})
    shown = await admins.waiting(*put)
    await recreate_staff(admins)
    other = await admins.waiting(*put)
    assert (other["id"] != shown["id"], other["resolves_to"]["app"]) == (True, shown["resolves_to"]["app"])
    assert (await admins.api.post(f"/v1/approvals/{shown['id']}", admins.b)).status_code == 200
    await admins.assert_outdated(*put, changed="integration")


async def test_the_approved_login_is_put_while_it_is_what_was_approved(admins: Admins):
    put = ("PUT", "/v1/admin-login", LOGIN)
    await admins.approved(*put)
    assert (await admins.send(*put)).status_code == 201
    (record,) = await admins.api.records(AuditAction.ADMIN_LOGIN_PUT)
    assert record.detail["approved_by"] == "app:b"
    assert (await admins.send(*put)).status_code == 200, "it changes nothing"


async def test_an_integration_is_recreated_by_two(admins: Admins):
    """So the attack above needs the database, too."""
    body = GENERIC | {"issuer": EVIL}
    assert (await admins.send("DELETE", "/v1/integrations/staff")).status_code == 204
    shown = await admins.waiting("PUT", "/v1/integrations/staff", body)
    assert (shown["body"]["issuer"], shown["body"]["client_secret"]) == (EVIL, None)
    assert "hush" not in str(shown)
    assert (await admins.api.get("/v1/integrations/staff", admins.a)).status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"client_secret": "another"},
        {"client_id": "another"},
        {"client_auth": "client_secret_post"},
        {"binding": "app_first"},
        {"binding": "oidc", "login": {"integration": "staff"}},
        {"on_reconnect": "any"},
        {"scope_ceiling": ["api"]},
        {"dpop": False},
    ],
)
async def test_each_change_of_an_integration_waits_and_the_rest_does_not(
    admins: Admins, change: dict[str, Any]
):
    body = {"provider": "gitlab", "client_id": "c", "client_secret": "s"}
    put = ("PUT", "/v1/integrations/crm")
    await admins.approved(*put, body)
    assert (await admins.send(*put, body)).status_code == 201
    for harmless in ({}, {"default_scopes": ["read_user"]}, {"refresh": {"rotation": "strict"}}):
        assert (await admins.send(*put, body | harmless)).status_code == 200, harmless
    kept = body | {"client_secret": None}
    assert (await admins.send(*put, kept)).status_code == 200, "the stored secret stays"
    await admins.approved(*put, body | change)
    other = body | change | {"client_secret": "a third one"}
    assert (await admins.send(*put, other)).json()["code"] == "approval_outdated", "of another secret"
    done = await admins.send(*put, body | change)
    assert done.status_code == 200, done.text
    login = done.json()["login"]
    assert login is None or login["issuer"] == GOOD


async def test_a_permit_is_approved_for_the_app_and_the_integration_that_it_names(admins: Admins):
    await admins.api.app_with("pipeline")
    put = ("PUT", "/v1/apps/pipeline/permits/x", {"integration": "staff", "actions": ["token"]})
    shown = await admins.approved(*put)
    assert shown["resolves_to"]["integration"]["issuer"] == GOOD
    await recreate_staff(admins)
    await admins.assert_outdated(*put, changed="integration")
    await admins.approved(*put)
    assert (await admins.send("DELETE", "/v1/apps/pipeline")).status_code == 204
    assert (await admins.send("PUT", "/v1/apps/pipeline", {})).status_code == 201
    await admins.assert_outdated(*put, changed="app")


async def test_a_key_is_approved_for_what_its_app_may_do(admins: Admins):
    await admins.api.app_with("pipeline")
    post = ("POST", "/v1/apps/pipeline/keys", {})
    assert (await admins.approved(*post))["resolves_to"]["app"]["actions"] == []
    permit = {"integration": "*", "actions": ["connect"]}
    assert (await admins.send("PUT", "/v1/apps/pipeline/permits/x", permit)).status_code == 201
    await admins.assert_outdated(*post, changed="app")


async def test_a_client_secret_is_approved_as_itself(admins: Admins):
    rotate = ("POST", "/v1/integrations/staff/rotate-secret")
    shown = await admins.approved(*rotate, {"client_secret": "one"})
    assert "one" not in (shown["body"]["client_secret"], shown["resolves_to"]["client_secret"])
    await admins.assert_outdated(*rotate, {"client_secret": "two"}, changed="client secret")
    assert (await admins.send(*rotate, {"client_secret": "one"})).status_code == 200
    again = await admins.send(*rotate, {"client_secret": "one"})
    assert again.status_code == 200, "it is the stored one"


async def test_a_webhooks_url_is_approved_with_its_query_which_nobody_is_shown(admins: Admins):
    put = ("PUT", "/v1/webhooks/ops")
    body = {"url": "https://hooks.example.com/in?token=hush"}
    shown = await admins.approved(*put, body)
    assert (shown["body"]["url"], "hush" in str(shown)) == ("https://hooks.example.com/in?***", False)
    await admins.assert_outdated(*put, {"url": "https://hooks.example.com/in?token=other"}, changed="url")
    assert (await admins.send(*put, body)).status_code == 201
    less = {"url": "https://hooks.example.com/in?***", "disabled": True}
    assert (await admins.send(*put, less)).status_code == 403, "it silences the webhook"
    same = {"url": "https://hooks.example.com/in?***"}
    assert (await admins.send(*put, same)).status_code == 200
    assert (await admins.send(*put, {"url": "https://evil.example/in"})).status_code == 403


async def test_a_row_whose_approved_facts_were_changed_is_refused(admins: Admins):
    put = ("PUT", "/v1/admin-login", LOGIN)
    await admins.approved(*put)
    async with admins.api.worker.write() as tx:
        await tx.connection.execute(text("UPDATE approval SET resolves_to = '{}'"))
    assert (await admins.send(*put)).json()["code"] == "authority_broken"


# --- who is the second person -------------------------------------------------------------


async def test_an_app_that_asks_for_access_is_no_second_admin(admins: Admins):
    """A holds the key of an ordinary app too: asking with one and deciding with the other is one person."""
    api = admins.api
    pipeline = await api.app_with("pipeline", Action.CONNECT)
    for action in ("token", "admin"):
        asked = {"permit": {"integration": "staff", "actions": [action]}, "reason": "for a test"}
        id = (await api.post("/v1/access-requests", pipeline, asked)).json()["id"]
        approve = ("POST", f"/v1/access-requests/{id}/approve", {})
        shown = await admins.waiting(*approve)
        assert shown["resolves_to"]["permit"]["actions"] == [action]
        assert (await api.post(f"/v1/approvals/{shown['id']}", pipeline)).status_code == 403
        await admins.approved(*approve)
        assert (await admins.send(*approve)).json()["state"] == "approved"
    names = [it.detail.get("approved_by") for it in await api.records(AuditAction.PERMIT_PUT)]
    assert names == ["app:b", "app:b"]


async def test_what_one_admin_asks_for_another_one_gives(admins: Admins):
    await admins.api.app_with("pipeline")
    asked = {"permit": {"integration": "staff", "actions": ["token"]}, "reason": "a", "app": "pipeline"}
    id = (await admins.send("POST", "/v1/access-requests", asked)).json()["id"]
    approve = f"/v1/access-requests/{id}/approve"
    assert (await admins.send("POST", approve, {})).json()["code"] == "not_permitted"
    assert (await admins.api.post(approve, admins.b, {})).json()["state"] == "approved"


async def test_access_that_reaches_no_token_is_given_by_one(admins: Admins):
    pipeline = await admins.api.app_with("pipeline")
    asked = {"permit": {"integration": "staff", "actions": ["connect"]}, "reason": "for a test"}
    id = (await admins.api.post("/v1/access-requests", pipeline, asked)).json()["id"]
    assert (await admins.send("POST", f"/v1/access-requests/{id}/approve", {})).status_code == 200


async def an_agent(api: Api, sponsor: str) -> str:
    """The key of an agent with `admin`."""
    key = await api.app_with("agent", Action.ADMIN)
    async with api.worker.write() as tx:
        app = await tx.access.app_by_name(TENANT, "agent")
        assert app is not None
        ends = {"sponsor": f"app:{sponsor}", "ends_at": api.clock.now().replace(year=2030)}
        await tx.access.put_app(app.model_copy(update=ends), expected=app.revision)
    return key


async def test_an_agent_is_no_second_admin(admins: Admins):
    """Its sponsor may be who sent the command."""
    agent = await an_agent(admins.api, "a")
    shown = await admins.waiting("PUT", "/v1/admin-login", LOGIN)
    refused = await admins.api.post(f"/v1/approvals/{shown['id']}", agent)
    assert (refused.status_code, refused.json()["code"]) == (403, "not_permitted")


async def test_who_answers_for_an_agent_does_not_approve_what_it_sent(admins: Admins):
    agent = await an_agent(admins.api, "b")
    waits = (await admins.api.call("PUT", "/v1/admin-login", agent, json=LOGIN)).json()
    at = f"/v1/approvals/{waits['approval_id']}"
    assert (await admins.api.post(at, admins.b)).json()["code"] == "not_permitted"
    assert (await admins.api.post(at, admins.a)).json()["approved_by"] == "app:a"


@pytest.mark.parametrize("sponsor", ["a", "b"])
async def test_an_agent_that_asks_is_no_first_admin(admins: Admins, sponsor: str):
    await admins.api.app_with("pipeline")
    agent = await an_agent(admins.api, sponsor)
    asked = {"permit": {"integration": "staff", "actions": ["token"]}, "reason": "a", "app": "pipeline"}
    id = (await admins.api.post("/v1/access-requests", agent, asked)).json()["id"]
    refused = await admins.send("POST", f"/v1/access-requests/{id}/approve", {})
    assert refused.json()["code"] == "approval_required"


async def test_a_definition_is_proposed_and_approved_by_two(admins: Admins):
    agent = await an_agent(admins.api, "b")
    proposed = await admins.api.post("/v1/providers", agent, {"definition": document("acme")})
    assert proposed.status_code == 201, proposed.text
    async with admins.api.worker.write() as tx:
        found = await tx.definitions.version(TENANT, "acme", 1)
        assert found is not None
        await tx.definitions.replace(found.with_checks((), admins.api.clock.now()), expected=found.revision)
    at = "/v1/providers/acme/approve"
    assert [(await admins.api.post(at, key, {"version": 1})).status_code for key in (agent, admins.b)] == [
        403,
        403,
    ]
    assert (await admins.api.post(at, admins.a, {"version": 1})).json()["decided_by"] == "app:a"


@pytest.mark.parametrize("how", ["no permit", "disabled", "deleted"])
async def test_an_approver_who_is_no_admin_any_more_has_approved_nothing(admins: Admins, how: str):
    api, put = admins.api, ("PUT", "/v1/admin-login", LOGIN)
    await admins.approved(*put)
    third = await api.app_with("third", Action.ADMIN)
    ending = {
        "no permit": ("DELETE", "/v1/apps/b/permits/{}", None),
        "disabled": ("PUT", "/v1/apps/b", {"disabled": True}),
        "deleted": ("DELETE", "/v1/apps/b", None),
    }
    method, path, body = ending[how]
    (permit,) = (await api.get("/v1/apps/b/permits", third)).json()["items"]
    assert (await api.call(method, path.format(permit["name"]), third, json=body)).is_success
    admins.b = third
    shown = await admins.waiting(*put)
    assert shown["approved_by"] is None
    await admins.approved(*put)
    assert (await admins.send(*put)).status_code == 201
