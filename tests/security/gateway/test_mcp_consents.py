"""A person is asked for a connection through MCP: URL elicitation in both eras; who opens it logs in."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp.types import ElicitCompleteNotification, ElicitResult, InputRequiredResult

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.ids import ConnectionId
from tests.fakes.api import TENANT, Api
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.gateway import Gateway, RawUpstream, running_gateway
from tests.fakes.platform.mcp_client import LEGACY, MODERN, mcp_client
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.fakes.visitor import Visitor, consent_of
from tests.security.pages.test_callback import ISSUER, an_integration
from tests.security.pages.test_login import LoggingIn, issuer, staff

__all__ = ["issuer"]

ASK = {"integration": "crm", "subject": "user-1"}


async def an_agent(api: Api, issuer: LoginIssuer) -> str:
    await staff(api, issuer)
    await an_integration(api, binding="oidc", login=LoginRule(integration="staff", issuer=issuer.issuer))
    return await api.app_with("agent", Action.CONNECT, Action.PROXY)


class Person:
    """Opens an elicitation's URL in a browser of their own, logged in at the issuer as `sub`."""

    def __init__(self, api: Api, issuer: LoginIssuer, sub: str = "user-1") -> None:
        self.api, self.issuer, self.sub = api, issuer, sub
        self.urls: list[str] = []
        self.shown = ""

    async def consents(self, url: str) -> None:
        it = await self.opens(url)
        await asyncio.gather(it.visitor.come_back(iss=ISSUER), it.worker_finishes())

    async def opens(self, url: str) -> LoggingIn:
        """As far as the login."""
        self.urls.append(url)
        self.issuer.person = {"sub": self.sub}
        connection_id = (await consent_of(self.api, url)).connection_id
        it = LoggingIn(self.api, Visitor(self.api), connection_id, url)
        it.issuer = self.issuer
        await it.visitor.go_on(url)
        self.shown = (await it.log_in()).text
        return it

    async def tries(self, url: str) -> None:
        await self.opens(url)


async def test_modern_the_person_logs_in_and_consents_and_the_tool_has_the_connection(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key, alice = await an_agent(api, issuer), Person(api, issuer)
    async with mcp_client(gateway, key, opens=alice.consents) as client:
        made = (await client.call_tool("request_connection", ASK)).structured_content
        again = (await client.call_tool("request_connection", ASK)).structured_content
    assert (made["state"], made["subject"]) == ("active", "user-1")
    assert again["connection_id"] == made["connection_id"]
    (url,) = alice.urls
    assert "user-1" not in url, "no personal data"
    (record,) = await api.records(AuditAction.CONNECTION_CREATED)
    assert (record.object, record.context.by) == (made["connection_id"], "app:agent")


async def test_legacy_an_error_has_the_url_and_a_notification_says_when_to_call_again(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key, alice, ended = await an_agent(api, issuer), Person(api, issuer), asyncio.Event()

    async def heard(message: Any) -> None:
        if isinstance(message, ElicitCompleteNotification):
            done.append(message.params.elicitation_id)
            ended.set()

    done: list[str] = []
    async with mcp_client(gateway, key, era=LEGACY, opens=alice.consents, message_handler=heard) as client:
        with pytest.raises(MCPError) as raised:
            await client.call_tool("request_connection", ASK)
        assert raised.value.error.code == -32042
        (asked,) = UrlElicitationRequiredError.from_error(raised.value.error).elicitations
        await alice.consents(asked.url)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        made = (await client.call_tool("request_connection", ASK)).structured_content
    assert done == [asked.elicitation_id]
    assert made["state"] == "active"


@pytest.mark.parametrize("era", [MODERN, LEGACY])
async def test_a_client_without_url_elicitation_gets_the_link(
    api: Api, gateway: Gateway, issuer: LoginIssuer, era: str
):
    key, alice = await an_agent(api, issuer), Person(api, issuer)
    async with mcp_client(gateway, key, era=era) as client:
        asked = await client.call_tool("request_connection", ASK)
        assert asked.is_error
        assert asked.structured_content["code"] == "consent_required"
        same = await client.call_tool("request_connection", ASK)
        assert same.structured_content["url"] == asked.structured_content["url"], "one open link is enough"
        await alice.consents(asked.structured_content["url"])
        made = (await client.call_tool("request_connection", ASK)).structured_content
    assert made["state"] == "active"


async def test_attack_4_alices_url_opened_by_bob_binds_nothing(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key, bob = await an_agent(api, issuer), Person(api, issuer, "user-2")
    async with mcp_client(gateway, key, opens=bob.tries) as client:
        refused = await client.call_tool("request_connection", ASK)
    assert refused.is_error
    assert refused.structured_content["code"] == "subject_mismatch"
    assert "user-1" not in bob.shown, "the right person isn't named to him"
    (url,) = bob.urls
    consent = await consent_of(api, url)
    assert (consent.status, consent.confirmed_at) == (ConsentStatus.FAILED, None)
    row = await api.row(TENANT, ConnectionId(refused.structured_content["connection_id"]))
    assert (row.state, row.generation) == (LifecycleState.PENDING_CONSENT, 0)
    (record,) = await api.records(AuditAction.SUBJECT_MISMATCH)
    assert record.detail["claimed_subject"] == "user-2"


async def test_attack_4_without_a_login_there_is_no_url(api: Api, gateway: Gateway):
    key = await api.app_with("agent", Action.CONNECT)
    async with mcp_client(gateway, key) as client:
        for binding in ("app", "app-first", "none"):
            await an_integration(api, name=binding, binding=binding.replace("-", "_"))
            refused = await client.call_tool("request_connection", {**ASK, "integration": binding})
            assert refused.structured_content["code"] == "binding_required"
            assert "url" not in refused.structured_content
    assert await api.records(AuditAction.CONNECTION_CREATED) == []


async def test_a_link_that_the_api_has_sealed_is_not_the_gateways_to_show(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key = await an_agent(api, issuer)
    theirs = (await api.post("/v1/connections", key, ASK)).json()["connect_url"]
    api.clock.advance(1)
    async with mcp_client(gateway, key) as client:
        mine = (await client.call_tool("request_connection", ASK)).structured_content["url"]
    assert mine != theirs
    both = [await consent_of(api, url) for url in (mine, theirs)]
    assert both[0].connection_id == both[1].connection_id
    assert (await api.post("/v1/connections", key, ASK)).json()["connect_url"] == mine, "the API may show it"


Retry = Callable[..., Awaitable[Any]]


async def asked(client: Client, arguments: dict[str, Any] = ASK) -> tuple[InputRequiredResult, Retry]:
    """The first round, and what sends the second."""
    first = await client.session.call_tool("request_connection", arguments, allow_input_required=True)
    assert isinstance(first, InputRequiredResult)

    async def again(given: dict[str, Any] = arguments, action: str = "decline", by: Client = client) -> Any:
        return await by.session.call_tool(
            "request_connection",
            given,
            input_responses={"page": ElicitResult(action=action)},  # type: ignore[arg-type]  # one of three
            request_state=first.request_state,
            allow_input_required=True,
        )

    return first, again


async def test_attack_24_a_request_state_is_for_one_caller_one_call_and_one_use(
    api: Api, gateway: Gateway, issuer: LoginIssuer
):
    key, person = await an_agent(api, issuer), Person(api, issuer)
    other = await api.app_with("other", Action.CONNECT)
    async with (
        mcp_client(gateway, key, opens=person.tries) as client,
        mcp_client(gateway, other, opens=person.tries) as theirs,
    ):
        first, again = await asked(client)
        assert "cns_" not in (first.request_state or "")
        for wrong in (
            {"given": {**ASK, "subject": "user-2"}},
            {"given": {**ASK, "scopes": ["api"]}},
            {"by": theirs},
        ):
            with pytest.raises(MCPError, match="requestState"):
                await again(**wrong)
        declined = await again()
        assert declined.structured_content["state"] == "pending_consent"
        with pytest.raises(MCPError, match="requestState"):
            await again()
    assert person.urls == []


async def test_a_request_state_is_known_to_every_process(
    api: Api, gateway: Gateway, issuer: LoginIssuer, upstream: RawUpstream
):
    key, person = await an_agent(api, issuer), Person(api, issuer)
    async with (
        running_gateway(api, upstream) as second,
        mcp_client(gateway, key, opens=person.tries) as client,
        mcp_client(second, key, opens=person.tries) as elsewhere,
    ):
        _, again = await asked(client)
        assert (await again(by=elsewhere)).structured_content["state"] == "pending_consent"
        with pytest.raises(MCPError, match="requestState"):
            await again()


async def test_the_second_round_waits_for_the_person(
    api: Api, gateway: Gateway, issuer: LoginIssuer, monkeypatch: pytest.MonkeyPatch
):
    key, alice = await an_agent(api, issuer), Person(api, issuer)
    async with mcp_client(gateway, key, opens=alice.tries) as client:
        first, again = await asked(client)
        waiting = asyncio.create_task(again(action="accept"))
        await alice.consents(first.input_requests["page"].params.url)  # type: ignore[index, union-attr]  # is there
        assert (await waiting).structured_content["state"] == "active"
        monkeypatch.setattr("evergrant_server.gateway.tools.elicitation.HOLD_S", 0.01)
        _, again = await asked(client, {**ASK, "label": "second"})
        assert (await again(action="accept")).structured_content["next_step"].startswith("The subject has to")


async def test_further_scopes_need_a_further_consent(api: Api, gateway: Gateway, issuer: LoginIssuer):
    key, alice = await an_agent(api, issuer), Person(api, issuer)
    async with mcp_client(gateway, key, opens=alice.consents) as client:
        await client.call_tool("request_connection", ASK)
    async with mcp_client(gateway, key) as client:
        same = await client.call_tool("request_connection", {**ASK, "scopes": ["read_user"]})
        more = await client.call_tool("request_connection", {**ASK, "scopes": ["read_user", "api"]})
    assert not same.is_error
    assert more.structured_content["code"] == "consent_required"
    consent = await consent_of(api, more.structured_content["url"])
    assert set(consent.scopes) == {"read_user", "api"}


async def test_who_may_not_connect_asks_for_nothing(api: Api, gateway: Gateway, issuer: LoginIssuer):
    await an_agent(api, issuer)
    caller = await api.app_with("caller", Action.PROXY)
    narrow = await api.app_with("narrow", Action.CONNECT, subjects=("user-2",))
    for key, code in ((caller, "not_permitted"), (narrow, "not_found")):
        async with mcp_client(gateway, key) as client:
            refused = await client.call_tool("request_connection", ASK)
            nobody = await client.call_tool("request_connection", {"integration": "crm"})
        assert refused.structured_content["code"] == code
        assert nobody.structured_content["code"] == "invalid_request"
