"""A login by a code on another device (RFC 8628), and what section 5 says of attacks on it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.oauth.requests import DEVICE_GRANT
from tests.fakes.api import PUBLIC_URL, Api, running_api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.clients.agents import (
    AgentUser,
    a_challenge,
    agents_allowed,
    csrf_in,
    put_rule,
    registered,
    resource_of,
)


@pytest_asyncio.fixture
async def issuer(api: Api) -> AsyncIterator[LoginIssuer]:
    async with LoginIssuer(api.clock.now) as issuer:
        yield issuer


class Device:
    """A program on a machine without a browser."""

    def __init__(self, api: Api, client_id: str) -> None:
        self.api, self.client_id = api, client_id
        self.codes: dict[str, Any] = {}

    async def send(self, path: str, **fields: str) -> httpx2.Response:
        return await self.api.client.post(path, data={"client_id": self.client_id, **fields})

    async def begin(self, connection: Connection | None) -> dict[str, Any]:
        resource = resource_of(self.api, connection)
        answer = await self.send("/oauth/device_authorization", resource=resource)
        assert answer.status_code == 200, answer.text
        self.codes = answer.json()
        return self.codes

    async def poll(self, **fields: str) -> httpx2.Response:
        sent = {"grant_type": DEVICE_GRANT, "device_code": self.codes["device_code"], **fields}
        return await self.send("/oauth/token", **sent)

    async def poll_error(self, *, after_s: float = 5) -> str:
        self.api.clock.advance(after_s)
        answer = await self.poll()
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"])

    @property
    def page(self) -> str:
        return f"/oauth/device?user_code={self.codes['user_code']}"


async def decided(user: AgentUser, device: Device, decision: str = "allow") -> httpx2.Response:
    shown = await user.ask(device.page)
    return await user.press(user.page, csrf_in(shown), decision)


async def a_device(api: Api, issuer: LoginIssuer) -> tuple[Device, Connection, str]:
    """A client that registered itself, a connection of user-1, and an admin's key."""
    connection, admin = await agents_allowed(api, issuer, device=True)
    return Device(api, await registered(api)), connection, admin


async def test_a_person_lets_a_program_in_from_another_device(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    codes = await device.begin(connection)
    assert codes["verification_uri"] == f"{PUBLIC_URL}/oauth/device"
    assert codes["verification_uri_complete"] == f"{PUBLIC_URL}{device.page}"
    assert (codes["expires_in"], codes["interval"]) == (600, 5)
    assert await device.poll_error() == "authorization_pending"
    user = AgentUser(api, issuer)
    form = await user.browser.get("/oauth/device")
    assert 'name="user_code"' in form.text
    shown = await user.ask(device.page)
    for words in (codes["user_code"], "Coder", "No one has checked its name", "user-1", "crm"):
        assert words in shown.text
    assert "agent.example" not in shown.text, "nothing leads back there"
    decided = await user.press(user.page, csrf_in(shown))
    assert "let in" in decided.text
    assert "location" not in decided.headers
    api.clock.advance(5)
    tokens = (await device.poll()).json()
    assert (tokens["token_type"], tokens["scope"]) == ("Bearer", "mcp")
    (given,) = await api.records(AuditAction.AUTHORIZATION_GIVEN)
    assert given.detail["device"].startswith("dva_")
    (begun,) = await api.records(AuditAction.TOKEN_FAMILY_BEGUN)
    assert (begun.detail["subject"], begun.detail["resource"]) == ("user-1", resource_of(api, connection))
    log = str(await api.records())
    assert not [secret for secret in (codes["device_code"], tokens["access_token"]) if secret in log]


async def test_a_device_code_counts_once_and_its_second_use_ends_what_it_began(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    await device.begin(connection)
    user = AgentUser(api, issuer)
    await decided(user, device)
    assert (await device.poll()).status_code == 200
    again = await device.poll()
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    (replayed,) = await api.records(AuditAction.TOKEN_FAMILY_REPLAYED)
    assert replayed.detail["reason"] == "code_replayed"


async def test_it_is_off_unless_the_rule_says_so_and_ends_with_the_rule(api: Api, issuer: LoginIssuer):
    connection, admin = await agents_allowed(api, issuer)
    device = Device(api, await registered(api))
    refused = await device.send("/oauth/device_authorization", resource=resource_of(api, connection))
    assert (refused.status_code, refused.json()["error"]) == (400, "unauthorized_client")
    assert "evergrant clients login --device" in refused.json()["error_description"]
    await put_rule(api, admin, device=True)
    await device.begin(connection)
    user = AgentUser(api, issuer)
    shown = await user.ask(device.page)
    await put_rule(api, admin, device=False)
    assert (await user.press(user.page, csrf_in(shown))).status_code != 200
    assert (await user.browser.get(device.page)).status_code == 403
    assert await device.poll_error() == "authorization_pending"


async def test_the_polls_of_a_denied_an_expired_and_an_impatient_program(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    await device.begin(connection)
    assert await device.poll_error(after_s=0) == "authorization_pending"
    assert await device.poll_error(after_s=1) == "slow_down"
    assert await device.poll_error(after_s=6) == "slow_down", "the interval has grown by five seconds"
    assert await device.poll_error(after_s=15) == "authorization_pending"
    user = AgentUser(api, issuer)
    denied = await decided(user, device, "deny")
    assert "not let in" in denied.text
    assert await device.poll_error() == "access_denied"
    await device.begin(connection)
    late = await user.ask(device.page)
    assert await device.poll_error(after_s=601) == "expired_token"
    assert (await user.browser.get(device.page)).status_code == 400
    assert (await user.press(user.page, csrf_in(late))).status_code == 400


async def test_an_allowed_code_that_nobody_fetched_expires(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    await device.begin(connection)
    user = AgentUser(api, issuer)
    await decided(user, device)
    assert await device.poll_error(after_s=601) == "expired_token"


async def test_rfc8628_5_4_a_code_that_was_sent_to_somebody_is_asked_about_each_time(
    api: Api, issuer: LoginIssuer
):
    """An attacker's program shows a victim's browser a link with the code: no login and no earlier consent
    lets it pass without our page, which shows the code and warns."""
    device, connection, _ = await a_device(api, issuer)
    user = AgentUser(api, issuer)
    await user.allow(user.url(device.client_id, connection))
    for _ in range(2):
        await device.begin(connection)
        shown = await user.ask(device.page)
        assert "Allow it only if you began this yourself" in shown.text
        await user.press(user.page, csrf_in(shown))


async def test_nobody_else_decides_or_fetches(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    codes = await device.begin(connection)
    user, thief = AgentUser(api, issuer), AgentUser(api, issuer)
    shown = await user.ask(device.page)
    await thief.ask(device.page, sub="user-2")
    assert (await thief.press(user.page, csrf_in(shown))).status_code == 400, "of another browser"
    assert (await user.press(user.page, "forged")).status_code == 400
    assert await device.poll_error() == "authorization_pending"
    await user.press(user.page, csrf_in(shown))
    other = Device(api, await registered(api))
    other.codes = codes
    assert (await other.poll()).json()["error"] == "invalid_grant"
    verifier = a_challenge()[0]
    as_code = {"code": codes["device_code"], "redirect_uri": DEVICE_GRANT, "code_verifier": verifier}
    refused = await device.send("/oauth/token", grant_type="authorization_code", **as_code)
    assert refused.json()["error"] == "invalid_grant"
    assert (await device.poll()).status_code == 200


async def test_of_two_pages_for_one_code_the_second_decides_nothing(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    await device.begin(connection)
    first, second = AgentUser(api, issuer), AgentUser(api, issuer)
    pages = [await user.ask(device.page) for user in (first, second)]
    await first.press(first.page, csrf_in(pages[0]), "deny")
    assert (await second.press(second.page, csrf_in(pages[1]))).status_code == 400
    assert await device.poll_error() == "access_denied"


async def test_the_connection_of_another_person_and_what_isnt_a_resource(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    await device.begin(connection)
    stranger = AgentUser(api, issuer)
    assert (await stranger.ask(device.page, sub="user-2")).status_code == 403
    for resource in ("https://elsewhere.example/mcp", f"{resource_of(api, None)}/con_unknown"):
        refused = await device.send("/oauth/device_authorization", resource=resource)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_target")
    unknown = await Device(api, "cli_unknown").send("/oauth/device_authorization")
    assert (unknown.status_code, unknown.json()["error"]) == (401, "invalid_client")
    assert (await device.send("/oauth/token", grant_type=DEVICE_GRANT)).json()["error"] == "invalid_request"


async def test_a_code_is_read_as_people_type_it(api: Api, issuer: LoginIssuer):
    device, connection, _ = await a_device(api, issuer)
    code = (await device.begin(connection))["user_code"]
    user = AgentUser(api, issuer)
    typed = code.lower().replace("-", " ")
    assert code in (await user.ask(f"/oauth/device?user_code={typed}")).text
    for wrong in ("AAAA-AAAA", "BCDF", code[:-1], "%00", "🙂"):
        answer = await user.browser.get("/oauth/device", params={"user_code": wrong})
        assert (answer.status_code, "mistyped" in answer.text) == (400, True), wrong


@pytest.mark.usefixtures("limit_time")
async def test_guesses_are_slow_and_polls_are_no_guesses(tmp_path: Path):
    limited = running_api(tmp_path, guess_limit_per_address=3, trusted_proxies=("127.0.0.0/8",))
    async with limited as api, LoginIssuer(api.clock.now) as issuer:
        device, connection, _ = await a_device(api, issuer)
        await device.begin(connection)
        api.client.headers["X-Forwarded-For"] = "198.51.100.7"
        assert {await device.poll_error() for _ in range(8)} == {"authorization_pending"}
        answers = [await api.get("/oauth/device?user_code=BBBBBBBB") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 429]


async def test_the_metadata_names_the_endpoint(api: Api):
    metadata = (await api.get("/.well-known/oauth-authorization-server")).json()
    assert metadata["device_authorization_endpoint"] == f"{PUBLIC_URL}/oauth/device_authorization"
    assert DEVICE_GRANT in metadata["grant_types_supported"]
