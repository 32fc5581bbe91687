"""Calls through the gateway that a permit lets through only with a person's approval."""

from collections.abc import Sequence
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import Account
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult
from evergrant_server.core.secret import Secret
from evergrant_server.gateway.proxy import provider_api
from evergrant_server.gateway.proxy.caller_body import KEPT
from tests.fakes.api import Api
from tests.fakes.platform.gateway import Gateway, RawUpstream, answer, registry_for

DEMANDS = {"integration": "*", "actions": ["proxy"], "methods": ["POST"], "call_approval": True}
READS = {"integration": "*", "actions": ["proxy"], "methods": ["GET"]}


JSON = {"Content-Type": "application/json"}


async def test_a_permit_that_demands_approval_lets_exactly_the_approved_call_through_once(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    admin = await api.app_with("admin", Action.ADMIN)
    connection, key = await api.active_for("agent")
    for name, permit in (("writes", DEMANDS), ("reads", READS)):
        assert (
            await api.call("PUT", f"/v1/apps/agent/permits/{name}", admin, json=permit)
        ).status_code == 201
    path, body = f"/v1/proxy/{connection.id}/refunds?order=7", b'{"sum": 5}'

    async def call(where: str = path, content: bytes = body) -> str:
        made = await gateway.call("POST", where, key, content=content, headers=JSON)
        return str(made.status_code) if made.is_success else made.json()["code"]

    assert (await gateway.get(f"/v1/proxy/{connection.id}/refunds", key)).status_code == 200
    assert await call() == "call_approval_required"
    wanted: dict[str, Any] = {
        "connection_id": connection.id,
        "method": "POST",
        "url": f"{upstream.url}/api/refunds?order=7",
        "headers": [{"name": name, "value": value} for name, value in JSON.items()],
        "body": body.decode(),
        "reason": "order 7",
    }
    asked = (await api.post("/v1/call-approvals", key, wanted)).json()
    assert (await api.post(f"/v1/call-approvals/{asked['id']}/approve", admin)).json()["state"] == "approved"
    assert await call(content=b'{"sum": 50}') == "call_approval_required"
    assert await call(f"/v1/proxy/{connection.id}/refunds?order=8") == "call_approval_required"
    assert await call(content=b"x" * (KEPT + 1)) == "call_approval_required"
    assert [it.method for it in upstream.seen] == ["GET"]
    api.refreshes_with("at-2")
    upstream.responses = [answer(b"", "401 Unauthorized"), answer(b"made", "201 Created")]
    assert await call() == "201", "also with a token that was refused and renewed: it is one call"
    assert await call() == "call_approval_required"
    assert [it.method for it in upstream.seen] == ["GET", "POST", "POST"]
    assert len(await api.records(AuditAction.CALL_APPROVAL_USED)) == 1


# --- the whole call ---------------------------------------------------------------------

BODY = b'{"sum": 5}'
Headers = Sequence[tuple[str, str]]


class Approved:
    """An agent whose every call needs an approval, and an admin who approves what it asks for."""

    def __init__(
        self, api: Api, gateway: Gateway, upstream: RawUpstream, connection: Connection, key: str, admin: str
    ) -> None:
        self.api, self.gateway, self.upstream = api, gateway, upstream
        self.connection, self.key, self.admin = connection, key, admin

    async def approve(self, headers: Headers = ()) -> dict[str, Any]:
        """The call as the admin has seen and approved it."""
        wanted = {
            "connection_id": self.connection.id,
            "method": "POST",
            "url": f"{self.upstream.url}/api/refunds?order=7",
            "headers": [{"name": name, "value": value} for name, value in headers],
            "body": BODY.decode(),
            "reason": "order 7",
        }
        asked = await self.api.post("/v1/call-approvals", self.key, wanted)
        assert asked.status_code == 202, asked.text
        shown = (await self.api.post(f"/v1/call-approvals/{asked.json()['id']}/approve", self.admin)).json()
        assert shown["state"] == "approved"
        return shown["call"]

    async def send(self, headers: Headers = (), path: str = "refunds?order=7") -> httpx2.Response:
        where = f"/v1/proxy/{self.connection.id}/{path}"
        return await self.gateway.call("POST", where, self.key, content=BODY, headers=list(headers))

    async def refused(self, headers: Headers = (), path: str = "refunds?order=7") -> str:
        """The detail of a call that no approval is for."""
        count = len(self.upstream.seen)
        made = await self.send(headers, path)
        assert (made.status_code, made.json()["code"]) == (403, "call_approval_required"), headers
        assert len(self.upstream.seen) == count
        return made.json()["detail"]


@pytest_asyncio.fixture
async def approved(api: Api, gateway: Gateway, upstream: RawUpstream) -> Approved:
    admin = await api.app_with("admin", Action.ADMIN)
    connection, key = await api.active_for("agent")
    put = await api.call("PUT", "/v1/apps/agent/permits/writes", admin, json=DEMANDS)
    assert put.status_code == 201
    return Approved(api, gateway, upstream, connection, key, admin)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("Xero-Tenant-Id", "45e4708e", "8d2b4c11"),
        ("Stripe-Account", "acct_1", "acct_2"),
        ("Dropbox-API-Arg", '{"path": "/a"}', '{"path": "/b"}'),
        ("Content-Type", "application/json", "application/x-www-form-urlencoded"),
        ("Prefer", "return=minimal", "respond-async"),
        ("If-Match", '"1"', "*"),
        ("X-Goog-User-Project", "one", "two"),
        ("Notion-Version", "2022-06-28", "2021-05-13"),
        ("Idempotency-Key", "k-1", "k-2"),
        ("Accept", "application/vnd.api+json; version=2", "application/vnd.api+json; version=3"),
        ("X-Own", "1", "2"),
    ],
)
async def test_a_header_that_an_api_may_read_is_part_of_what_is_approved(
    approved: Approved, name: str, value: str, other: str
):
    shown = await approved.approve([(name, value)])
    assert shown["headers"] == [{"name": name.lower(), "value": value}]
    assert name.lower() in await approved.refused([(name, other)])
    for headers in (
        [(name, value), (name, other)],
        [(name, other), (name, value)],
        [(name, f"{value}, {other}")],
        [(name, value), ("X-Another", "1")],
        [(name.replace("-", "_") if "-" in name else f"X-{name}", value)],
    ):
        await approved.refused(headers)
    if name != "Accept":  # the client sends one by itself
        await approved.refused()
    assert (await approved.send([(name.upper(), value)])).status_code == 200
    assert approved.upstream.seen[-1].values(name.lower()) == [value]
    await approved.refused([(name, value)])


async def test_two_lines_of_one_name_are_approved_in_their_order(approved: Approved):
    first, second = ("X-Own", "1"), ("X-Own", "2")
    shown = await approved.approve([first, ("A", "b"), second])
    assert [it["value"] for it in shown["headers"]] == ["b", "1", "2"]
    for wrong in ([second, first], [first], [("X-Own", "1, 2")]):
        await approved.refused([*wrong, ("A", "b")])
    assert (await approved.send([("A", "b"), first, second])).status_code == 200


async def test_what_says_only_how_a_call_is_sent_is_no_part_of_it(approved: Approved):
    await approved.approve([("User-Agent", "one"), ("Date", "Mon, 30 Nov 2026 12:00:00 GMT")])
    neutral = {
        "User-Agent": "two",
        "Accept-Language": "de",
        "Accept": "*/*",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "x=1",
    }
    assert (await approved.send(list(neutral.items()))).status_code == 200


@pytest.mark.parametrize(
    "path", ["refunds?order=%37", "refunds?order=7&", "refunds?order=7&to=bob", "refunds"]
)
async def test_the_query_is_approved_as_bytes(approved: Approved, path: str):
    await approved.approve()
    await approved.refused(path=path)


@pytest.mark.parametrize("name", ["Authorization", "cookie", "Proxy-Authorization"])
async def test_a_credential_is_no_part_of_a_call_and_not_kept(approved: Approved, name: str):
    wanted = {"connection_id": approved.connection.id, "method": "POST", "url": "https://api.example/x"}
    headers = {"headers": [{"name": name, "value": "Bearer t"}], "reason": "x"}
    refused = await approved.api.post("/v1/call-approvals", approved.key, wanted | headers)
    assert refused.json()["code"] == "invalid_request"
    assert "Bearer t" not in refused.text


# --- a renewal --------------------------------------------------------------------------

EXPIRED = answer(b"", "401 Unauthorized")


async def test_a_renewal_that_changes_where_a_call_goes_is_asked_about_again(
    approved: Approved, monkeypatch: pytest.MonkeyPatch
):
    await approved.approve()
    approved.api.refreshes_with("at-2")
    refresh = approved.api.link.on_refresh
    assert refresh is not None

    async def refresh_and_move(tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        approved.gateway.parts.api.registry = registry_for(f"{approved.upstream.url}/elsewhere")
        monkeypatch.setattr(provider_api, "KEPT_S", 0.0)
        return await refresh(tenant, id, ask)

    approved.api.link.on_refresh = refresh_and_move
    approved.upstream.responses = [EXPIRED]
    made = await approved.send()
    assert (made.status_code, made.json()["code"]) == (403, "call_approval_required")
    assert [it.target for it in approved.upstream.seen] == ["/api/refunds?order=7"]


async def test_a_renewal_that_changes_the_account_is_asked_about_again(approved: Approved):
    await granted_to(approved, "ann", "at-1")
    await approved.approve()

    async def consented_anew(tenant: Tenant, id: ConnectionId, ask: EnsureFresh) -> EnsureFreshResult:
        return EnsureFreshResult(generation=(await granted_to(approved, "bob", "at-2")).generation)

    approved.api.link.on_refresh = consented_anew
    approved.upstream.responses = [EXPIRED]
    made = await approved.send()
    assert (made.status_code, made.json()["code"]) == (403, "call_approval_required")
    assert len(approved.upstream.seen) == 1


async def test_an_approval_is_not_for_an_account_that_came_after_it(approved: Approved):
    await granted_to(approved, "ann", "at-1")
    await approved.approve()
    await granted_to(approved, "bob", "at-2")
    await approved.refused()
    await granted_to(approved, "ann", "at-3")
    assert (await approved.send()).status_code == 200


async def granted_to(approved: Approved, account: str, token: str) -> Connection:
    """What a worker does when the subject has consented with this account."""
    api = approved.api
    now, known = api.clock.now(), Account(id=account, name=account)
    tokens = TokenSet(access_token=Secret(token), refresh_token=Secret(f"rt-{token}"), account=known)
    current = await api.row(approved.connection.tenant, approved.connection.id)
    after = current.granted(now)
    grant = Grant.from_tokens(tokens, generation=after.generation, requested=("read_user",), at=now)
    async with api.worker.write() as tx:
        return await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=current.revision)
