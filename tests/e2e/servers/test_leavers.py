"""Somebody leaves who has connected twelve times, at two real authorization servers: held, then revoked.

One server revokes what it is asked to (RFC 7009), the other has no such endpoint: the signed report says
which is which, with what the first has answered.
"""

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from evergrant.incident_report import verify_report

from examples.demo.evergrant_api import ApiProblem
from examples.demo.waiting import wait_until
from tests.e2e.world import COMMAND, World, run, running
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.issuers import Issuer, running_issuer

DJANGO, MCP = "django-oidc-provider", "mcp-authorization-server"
EACH = 2
CLIENTS: dict[str, dict[str, Any]] = {
    DJANGO: {
        "client_id": "evergrant",
        "client_secret": "a-client-secret",
        "default_scopes": ["openid", "email"],
    },
    MCP: {"registration": "dynamic"},
}

pytestmark = pytest.mark.asyncio(loop_scope="module")  # one platform: it takes seconds


class Company(World):
    """With the servers, and Alice's connections at both."""

    servers: dict[str, Issuer]

    async def connected(self, name: str, label: str, subject: str = "alice") -> dict[str, Any]:
        begun = await self.begin(name, subject, label=label, flow="authorization_code")
        landing = await self.servers[name].consent(begun["connect_url"])
        assert landing.response is not None
        assert landing.response.status_code == 200, landing.response.text
        return await self.active(begun)

    async def lease(self, name: str, label: str, subject: str = "alice") -> str:
        """`leased`, or the code of the refusal."""
        body = {"integration": name, "subject": subject, "label": label}
        try:
            await self.api.post("/v1/lease", body)
        except ApiProblem as problem:
            return problem.code
        return "leased"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def company(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    data = tmp_path_factory.mktemp("leavers") / "data"
    async with running_issuer(DJANGO) as django, running_issuer(MCP) as mcp:
        allowed = [it.issuer.removesuffix("/openid").removesuffix("/") for it in (django, mcp)]
        async with running(Company, data, *allowed) as company:
            company.servers = {DJANGO: django, MCP: mcp}
            for name, server in company.servers.items():
                body = {"provider": "generic", "issuer": server.issuer, **CLIENTS[name]}
                made = await company.integration(name, body)
                await server.control(redirect_uri=made["redirect_uri"])
            yield company


@pytest.mark.soak
async def test_a_person_with_connections_at_two_servers_leaves_and_the_report_says_what_each_provider_did(
    company: Company,
):
    labels = [f"tool-{number}" for number in range(EACH)]
    mine = [await company.connected(name, label) for name in (DJANGO, MCP) for label in labels]
    other = await company.connected(MCP, "default", "bob")
    live = await company.servers[DJANGO].control()
    status, shown, problem = await run(
        company.platform.api,
        company.platform.admin_key,
        *(COMMAND, "offboard", "start", "--subject", "alice", "--reason", "HR-7", "--dry-run", "-o", "json"),
    )
    assert (status, problem) == (0, "")
    assert {it["connection_id"] for it in json.loads(shown)["connections"]} == {it["id"] for it in mine}
    order = {"subject": "alice", "reason": "HR-7", "grace": 0}
    begun = await company.admin.post("/v1/offboardings", order)
    refused = Counter([await company.lease(name, label) for name in (DJANGO, MCP) for label in labels])
    assert refused.total() == 2 * EACH
    assert set(refused) <= {"connection_held", "connection_revoked"}
    assert await company.lease(MCP, "default", "bob") == "leased"

    async def done() -> dict[str, Any] | None:
        view = await company.admin.get(f"/v1/offboardings/{begun['id']}")
        return view if view["finished_at"] is not None else None

    view = await wait_until(done, "the offboarding", PATIENCE_S)
    assert view["outcomes"] == {"confirmed": EACH, "not_supported": EACH}
    assert view["left"][0]["connections"] == EACH, "what the provider can't revoke is an admin's"
    status, report, _ = await run(
        company.platform.api, company.platform.admin_key, *(COMMAND, "offboard", "report", begun["id"])
    )
    assert status == 0
    lines = report.encode().splitlines(keepends=True)
    verified = verify_report(lines)
    assert (verified.connections, verified.outcomes) == (2 * EACH, view["outcomes"])
    told = {line["connection"]: line for line in map(json.loads, lines[1:-2])}
    assert told.keys() == {it["id"] for it in mine}
    for connection in mine:
        line = told[connection["id"]]
        assert (line["matched_by"], line["state"]) == ("order", "revoked")
        answers = {answer["status"] for answer in line["evidence"].get("answers", ())}
        assert answers == ({200} if line["integration"] == MCP else set())
    assert "alice" not in report
    assert await company.servers[MCP].control() == 0, "it ends all that it has granted, with the first"
    assert await company.servers[DJANGO].control() == live, "it can't revoke"
    assert (await company.api.connection(other["id"]))["state"] == "active"


async def test_the_tenants_directory_deactivates_somebody_and_puts_them_back(company: Company):
    await company.admin.put("/v1/apps/directory", {})
    permit = {"integration": "*", "actions": ["directory"]}
    await company.admin.put("/v1/apps/directory/permits/people", permit)
    key = (await company.admin.post("/v1/apps/directory/keys"))["key"]
    await company.admin.put("/v1/offboarding-rule", {"subject_from": "user_name", "grace": 3600})
    connection = await company.connected(MCP, "default", "carol")
    scim = ScimClient(company, key)
    user = await scim.send("POST", "/Users", {"schemas": [USER], "userName": "carol"})
    for active, answer in ((False, "connection_held"), (True, "leased")):
        operations = [{"op": "replace", "path": "active", "value": active}]
        await scim.send("PATCH", f"/Users/{user['id']}", {"schemas": [PATCH], "Operations": operations})
        assert await company.lease(MCP, "default", "carol") == answer
    assert (await company.refreshed(connection))["generation"] == 2


USER = "urn:ietf:params:scim:schemas:core:2.0:User"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


class ScimClient:
    """The tenant's directory."""

    def __init__(self, company: Company, key: str) -> None:
        self._base, self._headers = company.platform.api, {"Authorization": f"Bearer {key}"}

    async def send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_S) as http:
            reply = await http.request(
                method, f"{self._base}/scim/v2{path}", json=body, headers=self._headers
            )
        assert reply.is_success, reply.text
        return reply.json()
