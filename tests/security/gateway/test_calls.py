"""Calls through the gateway: decided as a lease, recorded before and after, streamed both ways."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.connection import RefreshReason
from evergrant_server.gateway.proxy.caller_body import KEPT
from tests.fakes.api import OTHER, Api
from tests.fakes.patience import eventually
from tests.fakes.platform.gateway import OK, Gateway, RawUpstream, Seen, answer, running_gateway

UNAUTHORIZED = answer(b'{"error":"expired"}', "401 Unauthorized", 'WWW-Authenticate: Bearer realm="provider"')


async def outcomes(api: Api, gateway: Gateway) -> list[AuditRecord]:
    async def read() -> list[AuditRecord]:
        return await api.records(AuditAction.PROXY_ANSWERED)

    called = await api.records(AuditAction.PROXY_CALLED)
    found = await eventually(read, lambda it: len(it) == len(called))
    return sorted(found, key=lambda it: it.seq)


async def read_all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([it async for it in pieces])


def code_of(response: httpx2.Response) -> tuple[int, str]:
    """Status and code of an answer of the gateway's own."""
    assert response.headers["evergrant-error"] == response.json()["code"]
    return response.status_code, response.json()["code"]


async def test_a_call_arrives_with_the_credential_and_is_recorded_before_and_after(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    connection, key = await api.active_for("agent", Action.PROXY)
    recorded: list[AuditRecord] = []

    async def look_first(seen: Seen, writer: asyncio.StreamWriter) -> None:
        recorded.extend(await api.records(AuditAction.PROXY_CALLED))
        writer.write(
            answer(b"made", "201 Created", "X-Theirs: 1", "Set-Cookie: a=b", "Cache-Control: public")
        )

    upstream.handler = look_first
    path = f"/v1/proxy/{connection.id}/user?page=%41"
    made = await gateway.call("POST", path, key, content=b"body", headers={"X-Mine": "1", "Cookie": "c=d"})
    assert (made.status_code, made.text, made.headers["x-theirs"]) == (201, "made", "1")
    assert made.headers["content-security-policy"] == "sandbox"
    assert made.headers["cache-control"] == "no-store"
    assert "set-cookie" not in made.headers
    assert "evergrant-error" not in made.headers
    (seen,) = upstream.seen
    assert (seen.method, seen.target, seen.body) == ("POST", "/api/user?page=%41", b"body")
    assert seen.values("authorization") == ["Bearer at-1"]
    assert (seen.values("x-mine"), seen.values("cookie")) == (["1"], [])
    assert seen.values("host") == [upstream.url.removeprefix("http://")]
    assert key.encode() not in seen.head, "the caller's own credential stays here"
    (before,) = recorded
    assert (before.object, before.detail["request"], before.detail["permit"]) == (
        connection.id,
        "POST /user",
        "only",
    )
    (after,) = await outcomes(api, gateway)
    assert (
        after.detail.items()
        >= {"call": before.detail["call"], "status": 201, "outcome": "answered", "received": 4}.items()
    )
    assert after.context == before.context


@pytest.mark.parametrize(
    ("actions", "code"), [((), ErrorCode.NOT_FOUND), ((Action.TOKEN,), ErrorCode.NOT_PERMITTED)]
)
async def test_without_a_permit_for_it_nothing_is_sent(
    api: Api, gateway: Gateway, upstream: RawUpstream, actions: tuple[Action, ...], code: ErrorCode
):
    connection, key = await api.active_for("agent", *actions)
    refused = await gateway.get(f"/v1/proxy/{connection.id}/user", key)
    assert code_of(refused)[1] == code
    foreign = await api.active(await api.integration("theirs", tenant=OTHER))
    proxies = await api.app_with("proxies", Action.PROXY)
    assert code_of(await gateway.get(f"/v1/proxy/{foreign.id}/user", proxies)) == (404, "not_found")
    assert code_of(await gateway.get(f"/v1/proxy/{connection.id}/user", "evg_key_wrong")) == (
        401,
        "unauthenticated",
    )
    assert upstream.seen == []
    (record, *_) = await api.records(AuditAction.LEASE_REFUSED)
    assert record.detail["request"] == "GET /user"


async def test_the_permit_judges_method_and_path_as_they_are_sent(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    connection, key = await api.active_for("agent", Action.PROXY)
    app = await api.app_named("agent")
    async with api.worker.write() as tx:
        permit = await tx.access.permit(app.tenant, app.id, "only")
        assert permit is not None
        only = permit.model_copy(update={"methods": ("GET",), "paths": ("/repos/*/issues",)})
        await tx.access.put_permit(only, expected=permit.revision)
    at = f"/v1/proxy/{connection.id}"
    for path in ("/repos/a/issues", "/repos/%61/issues", "/repos/a/iss%75es?q=1"):
        assert (await gateway.get(at + path, key)).status_code == 200
    for method, path in (("POST", "/repos/a/issues"), ("GET", "/repos"), ("GET", "/repos/a/issues/")):
        refused = await gateway.call(method, at + path, key)
        assert code_of(refused) == (403, "not_permitted")
        assert refused.json()["permit"] == "only"
    assert len(upstream.seen) == 3


async def test_a_401_leads_to_one_refresh_and_one_replay(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY)
    api.refreshes_with("at-2")
    upstream.responses = [UNAUTHORIZED, OK]
    again = await gateway.call("PUT", f"/v1/proxy/{connection.id}/x", key, content=b"small")
    assert (again.status_code, again.json()) == (200, {"ok": True})
    assert [it.values("authorization") for it in upstream.seen] == [["Bearer at-1"], ["Bearer at-2"]]
    assert [it.body for it in upstream.seen] == [b"small", b"small"]
    assert [(it.seen_generation, it.refresh_reason) for it in api.link.asked] == [
        (1, RefreshReason.UNAUTHORIZED)
    ]
    assert [it.detail["outcome"] for it in await outcomes(api, gateway)] == ["token_refused", "answered"]
    upstream.responses = [UNAUTHORIZED, UNAUTHORIZED, OK]
    api.refreshes_with("at-3")
    refused = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert code_of(refused) == (409, "token_refused")
    assert "www-authenticate" not in refused.headers, "a provider's challenge never reaches the caller"
    assert len(upstream.seen) == 4, "no third try"
    assert "integration" not in refused.json()


async def test_a_refused_token_says_that_the_authorization_server_has_moved(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    """A worker has read so where the API says whose tokens it takes (RFC 9728); the pinned issuer stays."""
    connection, key = await api.active_for("agent", Action.PROXY)
    moved = "crm takes tokens of https://new.example, and not of https://old.example"
    async with api.worker.write() as tx:
        integration = await tx.integrations.by_name(connection.tenant, connection.integration)
        assert integration is not None
        known = integration.model_copy(update={"problem": moved})
        await tx.integrations.replace(known, expected=integration.revision)
    upstream.responses = [UNAUTHORIZED, UNAUTHORIZED]
    api.refreshes_with("at-2")
    refused = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert code_of(refused) == (409, "token_refused")
    said = refused.json()
    assert said["integration"] == "crm"
    assert "https://new.example, and not of https://old.example" in said["detail"]
    assert "evergrant integrations put crm" in said["repair"]


async def test_a_large_body_is_not_sent_twice(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY)
    api.refreshes_with("at-2")
    upstream.responses = [UNAUTHORIZED]
    path = f"/v1/proxy/{connection.id}/x"
    renewed = await gateway.call("POST", path, key, content=b"x" * (KEPT + 1))
    assert code_of(renewed) == (503, "token_renewed")
    assert renewed.headers["retry-after"] == "1"
    assert (await gateway.call("POST", path, key, content=b"x" * (KEPT + 1))).status_code == 200
    assert [len(it.body) for it in upstream.seen] == [KEPT + 1] * 2


async def test_a_dead_grants_token_that_the_api_refuses_is_sent_once(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    """No refresh can replace it: the subject has to consent again, and is named from the first 401 on."""
    connection, key = await api.active_for("agent", Action.PROXY)
    await api.change(connection, lambda it: it.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    path = f"/v1/proxy/{connection.id}/x"
    assert (await gateway.get(path, key)).status_code == 200, "it is good as long as the API takes it"
    upstream.responses = [UNAUTHORIZED]
    for _ in range(3):
        assert code_of(await gateway.get(path, key)) == (409, "consent_required")
    assert len(upstream.seen) == 2
    await api.install(connection, "at-2")
    assert (await gateway.get(path, key)).status_code == 200


async def test_a_403_that_wants_scopes_is_a_typed_step_up(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY, Action.CONNECT)
    challenge = 'WWW-Authenticate: Bearer error="insufficient_scope", scope="write admin"'
    upstream.responses = [answer(b"no", "403 Forbidden", challenge), answer(b"no", "403 Forbidden")]
    wanted = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert code_of(wanted) == (409, "scope_not_granted")
    assert wanted.json()["scopes"] == "write admin"
    other = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert (other.status_code, other.text) == (403, "no"), "any other 403 is the provider's answer"


@pytest.mark.parametrize("named", ["", ', scope="read_user"', ', scope="read_user read_user"'])
async def test_a_403_for_scopes_that_the_connection_has_is_the_apis_answer(
    api: Api, gateway: Gateway, upstream: RawUpstream, named: str
):
    """A further consent to them would change nothing, and would be asked for again and again."""
    connection, key = await api.active_for("agent", Action.PROXY, Action.CONNECT)
    challenge = f'WWW-Authenticate: Bearer error="insufficient_scope"{named}'
    upstream.responses = [answer(b"not yours", "403 Forbidden", challenge)]
    refused = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert (refused.status_code, refused.text) == (403, "not yours")


async def test_a_403_names_only_the_scopes_that_are_missing(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    connection, key = await api.active_for("agent", Action.PROXY, Action.CONNECT)
    challenge = 'WWW-Authenticate: Bearer error="insufficient_scope", scope="read_user write"'
    upstream.responses = [answer(b"no", "403 Forbidden", challenge)]
    wanted = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
    assert (code_of(wanted), wanted.json()["scopes"]) == ((409, "scope_not_granted"), "write")


async def test_bodies_stream_both_ways(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY)
    go = asyncio.Event()

    async def events(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await go.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async def upload() -> Any:
        for _ in range(4):
            yield b"y" * KEPT

    upstream.handler = events
    headers = {"Authorization": f"Bearer {key}"}
    path = f"/v1/proxy/{connection.id}/stream"
    async with gateway.client.stream("POST", path, headers=headers, content=upload()) as streamed:
        pieces = streamed.aiter_raw()
        assert await anext(pieces) == b"data: 1\n\n", "before the second one is sent"
        go.set()
        assert b"".join([it async for it in pieces]) == b"data: 2\n\n"
    assert upstream.seen[0].body == b"y" * KEPT * 4
    assert upstream.seen[0].values("transfer-encoding") == ["chunked"]


async def test_the_end_of_a_permit_cuts_a_stream(
    api: Api, gateway: Gateway, upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("evergrant_server.gateway.proxy.endpoint.RECHECK_S", 0.05)
    connection, key = await api.active_for("agent", Action.PROXY)

    async def endless(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    upstream.handler = endless
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.client.stream("GET", f"/v1/proxy/{connection.id}/x", headers=headers) as streamed:
        pieces = streamed.aiter_raw()
        await anext(pieces)
        await api.change(connection, lambda it: it.revocation_requested("test", api.clock.now()))
        with pytest.raises(httpx2.RemoteProtocolError):
            await asyncio.wait_for(read_all(pieces), 60)
    (record,) = await outcomes(api, gateway)
    assert record.detail["outcome"] == "cut"


async def test_a_caller_that_leaves_ends_the_call_upstream(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY)
    left = asyncio.Event()

    async def endless(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            left.set()
            raise

    upstream.handler = endless
    headers = {"Authorization": f"Bearer {key}"}
    async with gateway.client.stream("GET", f"/v1/proxy/{connection.id}/x", headers=headers) as streamed:
        await anext(streamed.aiter_raw())
    async with asyncio.timeout(60):
        await left.wait()
    assert [it.detail["outcome"] for it in await outcomes(api, gateway)] == ["cut"]


async def test_what_has_no_api_or_needs_a_consent_gets_a_typed_answer(api: Api, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY, Action.CONNECT)
    async with running_gateway(api, upstream, api_base_url=None) as gateway:
        unknown = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
        assert code_of(unknown) == (424, "api_unknown")
        assert await api.records(AuditAction.PROXY_CALLED) == [], "what can't be sent isn't recorded as sent"
        ended = ErrorCode.GRANT_REJECTED
        await api.change(connection, lambda it: it.rejected(ended, api.clock.now()))
        api.clock.advance(7200)
        needed = await gateway.get(f"/v1/proxy/{connection.id}/x", key)
        assert code_of(needed) == (409, "consent_required")
        assert "connect_url" not in needed.json(), "the gateway can't make a link: it lacks the key"


async def test_an_app_has_so_many_calls_open_at_once(api: Api, gateway: Gateway, upstream: RawUpstream):
    connection, key = await api.active_for("agent", Action.PROXY)
    gateway.parts.api.settings.gateway_calls_per_app = 1
    reached, go = asyncio.Event(), asyncio.Event()

    async def slow(seen: Seen, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await go.wait()
        writer.write(OK)

    upstream.handler = slow
    first = asyncio.create_task(gateway.get(f"/v1/proxy/{connection.id}/x", key))
    await reached.wait()
    assert code_of(await gateway.get(f"/v1/proxy/{connection.id}/x", key)) == (429, "rate_limited")
    go.set()
    assert (await first).status_code == 200


async def test_the_api_of_a_server_of_ones_own_is_where_its_integration_says(
    api: Api, gateway: Gateway, upstream: RawUpstream
):
    """Its metadata doesn't say where its API is. Plain http goes where the egress setting allows it."""
    key = await api.app_with("agent", Action.PROXY)
    bases = {"own": f"{upstream.url}/v1", "none": None, "far": "http://api.example:8080/v1"}
    answers: dict[str, tuple[int, str]] = {}
    for name, base in bases.items():
        params = {} if base is None else {"api_base_url": base}
        integration = await api.integration(name, provider="generic", params=params)
        connection = await api.active(integration)
        await api.made_by(connection, "agent")
        response = await gateway.get(f"/v1/proxy/{connection.id}/me?x=1", key)
        answers[name] = response.status_code, response.json().get("code", "")
    assert answers == {"own": (200, ""), "none": (424, "api_unknown"), "far": (424, "egress_refused")}
    (seen,) = upstream.seen
    assert (seen.target, seen.values("authorization")) == ("/v1/me?x=1", ["Bearer at-1"])
