"""Formats of requests that no vector of the catalogue shows, and refusals before sending."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.requests.client import OAuthClient
from providers.requests.sender import Sender, SendFailed
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, raw
from tests.unit.providers.samples import spec_like

CODE, VERIFIER, TOKEN = Secret("c0de"), Secret("v" * 43), Secret("rt-1")


async def sent(kind: str, *, auth: str = "client_secret_post", **fields: Any) -> Call:
    """The one request that a definition with these fields makes."""
    params = fields.pop("params", {})
    url = fields.pop("revoke_at", None)
    spec = spec_like(**{"client_auth": auth} | fields)
    client = OAuthClient("client-1", Secret("s3cret"), auth)
    async with ScriptedProvider() as server:
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        endpoints = Endpoints(
            authorization_endpoint=server.url("authorize"),
            token_endpoint=server.url("t"),
            revocation_endpoint=server.url(url or "x"),
        )
        if kind == "exchange":
            await sender.exchange_code(
                spec,
                endpoints,
                client,
                code=CODE,
                verifier=VERIFIER,
                redirect_uri="https://us/cb",
                params=params,
            )
        elif kind == "refresh":
            await sender.refresh(spec, endpoints, client, refresh_token=TOKEN, redirect_uri="https://us/cb")
        else:
            await sender.revoke(spec, endpoints, client, token=TOKEN, hint="refresh_token")
        (call,) = server.calls
        return call


async def test_refresh_parameter_names() -> None:
    call = await sent("refresh", refresh_param_names={"refresh_token": "RefreshToken", "client_secret": None})
    expected = {"grant_type": "refresh_token", "RefreshToken": "rt-1", "client_id": "client-1"}
    assert dict(parse_qsl(call.body.decode())) == expected
    assert urlsplit(call.target).query == ""


async def test_headers_of_a_definition() -> None:
    call = await sent(
        "refresh",
        required_headers={"User-Agent": "acme-client/1"},
        token_request_headers={"X-Version": "2"},
    )
    assert (call.headers["user-agent"], call.headers["x-version"]) == ("acme-client/1", "2")


async def test_missing_template_parameter_not_sent() -> None:
    with pytest.raises(Failure) as raised:
        await sent(
            "exchange", token_params={"s": "{shop}"}, template_params={"shop": {"pattern": "^[a-z]+$"}}
        )
    assert raised.value.context["field"] == "params.shop"


async def test_token_in_a_revocation_url() -> None:
    rule = {"url": "https://acme.example/{client_id}/{token}", "format": "none"}
    call = await sent("revoke", revoke_at="{client_id}/{token}", revocation=rule)
    assert call.target == "/client-1/rt-1"


async def test_unsupported_request_not_sent() -> None:
    async with ScriptedProvider() as server:
        server.script(raw(b"{}"))
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        endpoints = Endpoints(authorization_endpoint=server.url("a"), token_endpoint=server.url("token"))
        without_secret = OAuthClient("client-1", None, "client_secret_post")
        with pytest.raises(SendFailed) as raised:
            await sender.refresh(spec_like(), endpoints, without_secret, refresh_token=TOKEN)
        assert (raised.value.code, raised.value.sent) == (ErrorCode.CLIENT_REJECTED, False)
        with pytest.raises(SendFailed, match="no client certificate"):
            await sender.refresh(
                spec_like(), endpoints, OAuthClient("c", None, "tls_client_auth"), refresh_token=TOKEN
            )
        with pytest.raises(Failure, match="no refresh"):
            await sender.refresh(
                spec_like(refresh_supported=False), endpoints, without_secret, refresh_token=TOKEN
            )
        with pytest.raises(Failure, match="no revocation_endpoint"):
            await sender.revoke(spec_like(), endpoints, without_secret, token=TOKEN)
        with pytest.raises(Failure, match="auth_modes"):
            await sender.refresh(
                spec_like(auth_modes=["client_credentials"]), endpoints, without_secret, refresh_token=TOKEN
            )
        assert server.calls == []
