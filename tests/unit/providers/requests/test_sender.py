"""Requests over real sockets to a scripted authorization server."""

import ast
import asyncio
import json
import logging
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from activities.support.provider_context import IssuerAccess, ProviderContext
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.egress import BeforeSend, Egress, EgressPolicy
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.requests.request_format import (
    NO_AUTH,
    OAuthClient,
    ProviderAccess,
    ProviderRequest,
    code_exchange_request,
    introspection_request,
    refresh_request,
    revocation_request,
)
from providers.requests.sender import Sender, SendFailed
from providers.responses.error_mapping import failure_of_reply
from providers.responses.raw_reply import RawReply
from providers.responses.token_response import read_tokens
from tests.fakes.providers.scripted_provider import (
    ScriptedProvider,
    delay,
    drop,
    drop_after_commit,
    ok,
    raw,
)
from tests.unit.providers.samples import spec_like

REDIRECT = "https://evergrant.example/oauth/callback/int_1"
GENERIC = Registry.load().get("generic")


class Talk:
    """One provider, one sender, one client."""

    def __init__(self, idp: ScriptedProvider, *, auth: str = "client_secret_basic", **egress: float) -> None:
        self.idp = idp
        self.egress = Egress(EgressPolicy(allow=(idp.allowance,)), **egress)  # type: ignore[arg-type]  # floats only
        self.sender = Sender(self.egress)
        self.client = OAuthClient(idp.client_id, Secret(idp.client_secret), auth)
        self.endpoints = Endpoints(
            issuer=idp.issuer,
            authorization_endpoint=idp.url("authorize"),
            token_endpoint=idp.url("token"),
            revocation_endpoint=idp.url("revoke"),
            introspection_endpoint=idp.url("introspect"),
        )

    def access(self, spec: ProviderSpec = GENERIC, params: dict[str, str] | None = None) -> ProviderAccess:
        return ProviderAccess(spec, self.endpoints, self.client, params or {})

    async def refresh(
        self, token: str, spec: ProviderSpec = GENERIC, before_send: BeforeSend | None = None
    ) -> RawReply:
        access = self.access(spec)
        request = refresh_request(access, Secret(token))
        return await self.sender.send(access, request, before_send=before_send)

    async def exchange_code(self, access: ProviderAccess, code: Secret) -> RawReply:
        request = code_exchange_request(access, code=code, verifier=code, redirect_uri=REDIRECT)
        return await self.sender.send(access, request)

    async def revoke(self, token: Secret, spec: ProviderSpec = GENERIC) -> RawReply:
        access = self.access(spec)
        return await self.sender.send(access, revocation_request(access, token, "refresh_token"))


@pytest.mark.parametrize(("answer", "acted"), [(drop(), 0), (drop_after_commit(), 1)])
async def test_lost_reply_counts_as_sent(answer: object, acted: int) -> None:
    async with ScriptedProvider() as idp:
        grant = idp.grant()
        idp.script(answer)  # type: ignore[arg-type]  # parametrised
        with pytest.raises(SendFailed) as raised:
            await Talk(idp).refresh(grant["refresh_token"])
        assert (raised.value.code, raised.value.sent) == (ErrorCode.PROVIDER_UNREACHABLE, True)
        assert raised.value.detail == f"{idp.allowance} closed the connection without an answer"
        assert idp.refreshes == acted


async def test_slow_reply_times_out() -> None:
    async with ScriptedProvider() as idp:
        idp.script(delay(asyncio.Event()))
        with pytest.raises(SendFailed, match="in time") as raised:
            await Talk(idp, answer_timeout_s=0.3).refresh("x")
        assert raised.value.sent


async def test_refused_connection_and_egress_refusal_count_as_not_sent() -> None:
    async with ScriptedProvider() as idp:
        talk = Talk(idp)
    for sender, code in (
        (talk.sender, ErrorCode.PROVIDER_UNREACHABLE),
        (Sender(Egress(EgressPolicy())), ErrorCode.EGRESS_REFUSED),
    ):
        talk.sender = sender
        with pytest.raises(SendFailed) as raised:
            await talk.refresh("x")
        assert (raised.value.code, raised.value.sent, idp.calls) == (code, False, [])


class NowhereAccess(ProviderAccess):
    def require_host(self, url: str) -> None:
        raise Failure(ErrorCode.HOST_NOT_ACCEPTED, url)


async def test_nothing_is_sent_to_a_host_that_is_not_pinned() -> None:
    async with ScriptedProvider() as idp:
        talk = Talk(idp)
        s, secret, there = talk.sender, Secret("x"), idp.url("token")
        access = NowhereAccess(GENERIC, talk.endpoints, talk.client)
        for request in (
            code_exchange_request(access, code=secret, verifier=secret, redirect_uri=REDIRECT),
            refresh_request(access, secret),
            revocation_request(access, secret, "access_token"),
            introspection_request(access, secret, "access_token"),
            ProviderRequest(there, auth=NO_AUTH, headers={"Authorization": "OAuth ..."}),
        ):
            with pytest.raises(SendFailed, match=r"127\.0\.0\.1") as raised:
                await s.send(access, request)
            assert (raised.value.code, raised.value.sent) == (ErrorCode.HOST_NOT_ACCEPTED, False)
        assert idp.calls == []


ACCESSES = ("ProviderAccess", "IssuerAccess", "ProviderContext")


def test_no_worker_sends_without_pinned_hosts() -> None:
    """Outside trials every access says where its secrets may be sent; the loader makes them all."""
    made = [
        f"{file}: {call.func.id}"
        for file in sorted(Path("activities").rglob("*.py"))
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ACCESSES
    ]
    here = "activities/support/provider_context.py"
    assert sorted(made) == [f"{here}: IssuerAccess", f"{here}: ProviderContext"]
    assert all("require_host" in vars(it) for it in (IssuerAccess, ProviderContext))


async def test_no_secret_of_a_get_token_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx2", "httpcore2.http11", "httpcore2.connection"):
        caplog.set_level(logging.DEBUG, logger=name)
    spec = spec_like(token_request_method="GET", client_auth="client_secret_post")
    async with ScriptedProvider() as idp:
        talk, grant = Talk(idp, auth="client_secret_post"), idp.grant()
        reply = await talk.refresh(grant["refresh_token"], spec)
        assert idp.calls[-1].method == "GET"
        assert reply.status == 200
        for secret in (grant["refresh_token"], idp.client_secret):
            assert secret in idp.calls[-1].target
            assert secret not in caplog.text
        assert grant["refresh_token"] not in repr(reply)
    httpx2_lines = [record for record in caplog.records if record.name.startswith(("httpx2", "httpcore2"))]
    assert httpx2_lines == []


async def test_refresh_token_in_header() -> None:
    spec = spec_like(refresh_token_in="header", client_auth="client_secret_post")
    async with ScriptedProvider() as idp:
        idp.script(ok())
        await Talk(idp, auth="client_secret_post").refresh("rt-x", spec)
        assert idp.calls[-1].headers["authorization"] == "Bearer rt-x"
        assert "refresh_token" not in idp.calls[-1].params


async def test_rfc6749_2_3_1_basic_secret_is_form_encoded() -> None:
    """RFC 6749 section 2.3.1."""
    async with ScriptedProvider() as idp:
        idp.client_secret = "a+b/c:d%e é"
        grant = idp.grant()
        assert (await Talk(idp).refresh(grant["refresh_token"])).status == 200


# --- formats that no vector of the catalogue shows, and refusals before sending -----------------


async def test_refresh_parameter_names_and_headers_of_a_definition() -> None:
    spec = spec_like(
        client_auth="client_secret_post",
        refresh_param_names={"refresh_token": "RefreshToken", "client_secret": None},
        required_headers={"User-Agent": "acme-client/1"},
        token_request_headers={"X-Version": "2"},
    )
    async with ScriptedProvider() as idp:
        await Talk(idp, auth="client_secret_post").refresh("rt-1", spec)
        call = idp.calls[-1]
    expected = {"grant_type": "refresh_token", "RefreshToken": "rt-1", "client_id": idp.client_id}
    assert dict(parse_qsl(call.body.decode())) == expected
    assert "?" not in call.target
    assert (call.headers["user-agent"], call.headers["x-version"]) == ("acme-client/1", "2")


async def test_token_in_a_revocation_url() -> None:
    rule = {"url": "https://acme.example/{client_id}/{token}", "format": "none"}
    async with ScriptedProvider() as idp:
        talk = Talk(idp)
        talk.endpoints = Endpoints(token_endpoint="t", revocation_endpoint=idp.url("{client_id}/{token}"))
        await talk.revoke(Secret("rt-1"), spec_like(revocation=rule))
        assert idp.calls[-1].target == f"/{idp.client_id}/rt-1"


async def test_a_parameter_that_the_integration_may_omit() -> None:
    life = {"life": {"pattern": "^[0-9]+$", "optional": True}}
    spec = spec_like(token_params={"expires_in": "{life}"}, template_params=life)
    async with ScriptedProvider() as idp:
        talk, secret = Talk(idp), Secret("c-1")
        for params in ({}, {"life": "300"}):
            access = talk.access(spec, params)
            await talk.exchange_code(access, secret)
            sent = dict(parse_qsl(idp.calls[-1].body.decode()))
            assert sent.get("expires_in") == params.get("life")


async def test_unsupported_request_not_sent() -> None:
    async with ScriptedProvider() as idp:
        talk, secret = Talk(idp), Secret("rt-1")
        shop = spec_like(token_params={"s": "{shop}"}, template_params={"shop": {"pattern": "^[a-z]+$"}})
        with pytest.raises(Failure, match="shop is missing"):
            await talk.exchange_code(talk.access(shop), secret)
        with pytest.raises(Failure, match="no refresh"):
            await talk.refresh("rt-1", spec_like(refresh_supported=False))
        with pytest.raises(Failure, match="auth_modes"):
            await talk.refresh("rt-1", spec_like(auth_modes=["client_credentials"]))
        talk.endpoints = Endpoints(token_endpoint=idp.url("token"))
        with pytest.raises(Failure, match="no revocation_endpoint"):
            await talk.revoke(secret)
        for auth, why in (("client_secret_post", "no client secret"), ("tls_client_auth", "no client cert")):
            talk.client = OAuthClient("client-1", None, auth)
            with pytest.raises(SendFailed, match=why) as raised:
                await talk.refresh("rt-1")
            assert (raised.value.code, raised.value.sent) == (ErrorCode.CLIENT_REJECTED, False)
        assert idp.calls == []


async def test_a_reshaped_reply_still_knows_its_request() -> None:
    """Slack's reply with a user's token alone: what it says is shown without what was sent."""
    slack = Registry.load().get("slack")
    body = {
        "ok": True,
        "authed_user": {"id": "U1", "access_token": "xoxp-1", "scope": "a", "token_type": "user"},
    }
    async with ScriptedProvider() as idp:
        idp.script(raw(json.dumps(body).encode(), 200, {"content-type": "application/json"}))
        client = OAuthClient("client-1", Secret("s3cret-one"), "client_secret_post")
        access = ProviderAccess(slack, Endpoints(token_endpoint=f"{idp.origin}/token"), client)
        code = code_exchange_request(
            access, code=Secret("sesame-1"), verifier=Secret("v" * 43), redirect_uri=REDIRECT
        )
        reply = await Sender(Egress(EgressPolicy(allow=(idp.allowance,)))).send(access, code)
    tokens = read_tokens(slack, reply, requested_scopes=(), refreshing=False)
    assert (tokens.access_token.reveal(), tokens.scopes) == ("xoxp-1", ("a",))
    assert reply.request is not None
    refused = failure_of_reply(slack, reply.with_body(b"sesame-1 is spent"), None)
    assert str(refused.said) == "[redacted] is spent"
