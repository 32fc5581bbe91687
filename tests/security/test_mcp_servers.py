"""A hostile MCP server, or one whose metadata changed hands: it costs its own connection only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, IntegrationState
from evergrant_server.egress import Egress, EgressPolicy
from providers.registration.discovery import discover
from providers.registration.protected_resource import discover_resource
from tests.fakes.api import Api
from tests.fakes.providers.mcp_worker import McpWorker
from tests.fakes.providers.scripted_mcp import ScriptedMcp
from tests.fakes.providers.scripted_provider import drip
from tests.security.pages.test_callback import Started, assert_refused, sent_away
from tests.unit.providers.samples import fails

ISSUER = "https://login.example"
SERVER = "https://mcp.example/mcp"
ENDPOINTS = Endpoints(
    issuer=ISSUER,
    authorization_endpoint=f"{ISSUER}/authorize",
    token_endpoint=f"{ISSUER}/token",
    iss_in_callback=True,
    resource=SERVER,
)
_REFUSALS = (ErrorCode.EGRESS_REFUSED, ErrorCode.DISCOVERY_FAILED)
INSIDE = ["https://127.1/x", "https://169.254.169.254/latest/meta-data", "https://[::ffff:10.0.0.1]/x"]


@asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[ScriptedMcp, ScriptedMcp]]:
    async with ScriptedMcp() as ours, ScriptedMcp() as other:
        yield ours, other


async def test_agents_6_another_issuer_later_is_an_error_and_gets_no_credential(api: Api):
    async with two_servers() as (server, other):
        worker = McpWorker(api, server, other)
        integration = await worker.put()
        assert (await worker.discovered(integration)).failure is None
        ready = await worker.now(integration)
        assert (ready.authorization_server, ready.state) == (server.issuer, IntegrationState.READY)
        await api.active(ready, "at-1")
        server.about = {"authorization_servers": [other.issuer]}
        assert (await worker.reread()).refused == 1
        after = await worker.now(integration)
        assert (after.endpoints, after.state) == (ready.endpoints, IntegrationState.READY)
        assert f"takes tokens of {other.issuer}, and not of {server.issuer}" in (after.problem or "")
        (record,) = await api.records(AuditAction.METADATA_REFUSED)
        assert record.detail["issuer"] == server.issuer
        # a new put, whatever it is of: this client was registered at the pinned issuer, by hand
        assert (await worker.discovered(after)).failure is ErrorCode.DISCOVERY_FAILED
        assert other.calls == []


@pytest.mark.parametrize(
    "resource", ["{origin}", "{origin}/mcp/tools", "{origin}/mcp2", "https://mcp.example/mcp"]
)
@pytest.mark.parametrize("challenged", [True, False])
async def test_agents_7_metadata_about_a_parent_or_a_sibling_is_refused(resource: str, challenged: bool):
    async with ScriptedMcp() as server:
        if challenged:
            server.challenge = f'Bearer resource_metadata="{server.origin}/about"'
        server.about = {"resource": resource.format(origin=server.origin)}
        with fails(ErrorCode.DISCOVERY_FAILED, "about another resource"):
            await discover_resource(Egress(EgressPolicy(allow=(server.allowance,))), server.mcp)


@pytest.mark.parametrize("inside", INSIDE)
async def test_agents_8_urls_inside_are_refused_and_not_connected_to(
    inside: str, api: Api, monkeypatch: pytest.MonkeyPatch
):
    async with ScriptedMcp() as server:
        dialled = _recorded_dials(monkeypatch, server)
        worker = McpWorker(api, server)
        integration = await worker.put()
        for place in ("challenge", "issuer", "token_endpoint"):
            server.challenge = f'Bearer resource_metadata="{inside}"' if place == "challenge" else "Bearer"
            server.about = {"authorization_servers": [inside]} if place == "issuer" else {}
            server.metadata = {"token_endpoint": inside} if place == "token_endpoint" else {}
            result = await worker.discovered(integration)
            if place == "token_endpoint" and result.failure is None:  # a name, until it is resolved
                with pytest.raises((Failure, httpx2.ConnectError)):
                    async with Egress(EgressPolicy()).client() as http:
                        await http.post(inside)
                continue
            assert result.failure in (*_REFUSALS, ErrorCode.PROVIDER_UNREACHABLE), place
            assert (await worker.now(integration)).state is IntegrationState.FAILED
    assert set(dialled) == {"127.0.0.1"}
    assert len(dialled) == len(server.calls)


async def test_agents_9_the_checked_address_is_dialled(monkeypatch: pytest.MonkeyPatch):
    answers, dialled = [["93.184.215.14"], ["127.0.0.1"]], list[str]()

    async def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, port)) for address in answers.pop(0)]

    async def dial(*, remote_host: str, **_: object) -> None:
        dialled.append(remote_host)
        raise OSError("refused")

    monkeypatch.setattr("anyio.getaddrinfo", resolve)
    monkeypatch.setattr("anyio.connect_tcp", dial)
    with fails(ErrorCode.PROVIDER_UNREACHABLE):
        await discover_resource(Egress(EgressPolicy()), "https://rebinding.example/mcp")
    assert (dialled, answers) == (["93.184.215.14"], [["127.0.0.1"]])


async def test_agents_10_a_quoted_text_is_no_scope(api: Api):
    async with ScriptedMcp() as server:
        server.challenge = 'Bearer error_description="x scope=admin, scope=\\"admin\\"", scope="read"'
        worker = McpWorker(api, server)
        integration = await worker.put()
        assert (await worker.discovered(integration)).failure is None
        assert (await worker.now(integration)).scopes_by_default == ("read",)


@pytest.mark.parametrize("iss", ["https://evil.example", f"{ISSUER}/", ISSUER.upper(), ""])
@pytest.mark.parametrize("error", [{}, {"code": "", "error": "denied", "error_description": "call us"}])
async def test_agents_11_a_callback_of_another_issuer_leads_to_no_token_request(
    api: Api, iss: str, error: dict[str, str]
):
    await api.integration(provider="mcp", params={"url": SERVER}, endpoints=ENDPOINTS, default_scopes=())
    key = await api.app_with("asker", Action.CONNECT)
    it: Started = await sent_away(api, key)
    assert it.visitor.sent["resource"] == SERVER
    answer = await it.visitor.come_back(iss=iss, **error)
    await assert_refused(answer)
    assert "call us" not in answer.text
    assert (await it.consent()).status is ConsentStatus.FAILED
    assert "consent_granted" not in await it.signals()


async def test_agents_12_metadata_that_loses_s256_is_refused(api: Api):
    async with ScriptedMcp() as server:
        worker = McpWorker(api, server)
        integration = await worker.put()
        assert (await worker.discovered(integration)).failure is None
        pinned = (await worker.now(integration)).endpoints
        for methods in (None, ["plain"]):
            server.metadata["code_challenge_methods_supported"] = methods
            await worker.reread()
            after = await worker.now(integration)
            assert (after.endpoints, "S256" in (after.problem or "")) == (pinned, True)
            with fails(ErrorCode.DISCOVERY_FAILED, "S256"):
                egress = Egress(EgressPolicy(allow=(server.allowance,)))
                await discover(egress, server.issuer, require_pkce=True)


async def test_an_endless_answer_ends():
    async with ScriptedMcp() as server:
        server.script(drip(60), at="mcp")
        egress = Egress(EgressPolicy(allow=(server.allowance,)), answer_timeout_s=0.3)
        with fails(ErrorCode.PROVIDER_UNREACHABLE):
            await discover_resource(egress, server.mcp)


def _recorded_dials(monkeypatch: pytest.MonkeyPatch, server: ScriptedMcp) -> list[str]:
    dialled, connect = list[str](), anyio.connect_tcp

    async def dial(remote_host: str, remote_port: int, **more: Any) -> Any:
        dialled.append(remote_host)
        return await connect(remote_host, remote_port, **more)

    monkeypatch.setattr("anyio.connect_tcp", dial)
    return dialled
