"""Token, refresh and revocation requests in every dialect a definition can ask for."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from evergrant_server.core.access import Endpoints
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.requests.client import OAuthClient
from providers.requests.sender import Sender, SendFailed
from tests.fakes.providers.scripted_provider import Call, ScriptedProvider, raw
from tests.unit.providers.definitions import spec_like

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
            refresh_endpoint=server.url("r") if "refresh_endpoint" in fields else None,
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
            await sender.refresh(
                spec, endpoints, client, refresh_token=TOKEN, scopes=("a", "b"), redirect_uri="https://us/cb"
            )
        else:
            await sender.revoke(spec, endpoints, client, token=TOKEN, hint="refresh_token")
        (call,) = server.calls
        return call


STANDARD = {"grant_type": "refresh_token", "refresh_token": "rt-1"}
POST = {"client_id": "client-1", "client_secret": "s3cret"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, STANDARD | POST),
        ({"auth": "none"}, STANDARD | {"client_id": "client-1"}),
        ({"auth": "client_secret_basic"}, STANDARD),
        ({"refresh_client_auth": "client_secret_basic"}, STANDARD),
        ({"refresh_params": {"type": "refresh"}}, STANDARD | POST | {"type": "refresh"}),
        ({"refresh_sends_scope": True}, STANDARD | POST | {"scope": "a b"}),
        ({"refresh_params_include": ["redirect_uri"]}, STANDARD | POST | {"redirect_uri": "https://us/cb"}),
        (
            {"refresh_param_names": {"refresh_token": "RefreshToken", "client_secret": None}},
            {"grant_type": "refresh_token", "RefreshToken": "rt-1", "client_id": "client-1"},
        ),
        ({"client_id_param": "appid"}, STANDARD | {"appid": "client-1", "client_secret": "s3cret"}),
        ({"client_secret_param": "secret"}, STANDARD | {"client_id": "client-1", "secret": "s3cret"}),
        ({"client_secret_header": "secret-key"}, STANDARD | {"client_id": "client-1"}),
    ],
)
async def test_a_refresh_holds_exactly_this(fields: dict[str, Any], expected: dict[str, str]) -> None:
    call = await sent("refresh", **fields)
    assert dict(parse_qsl(call.body.decode())) == expected
    assert urlsplit(call.target).query == ""


@pytest.mark.parametrize(
    ("fields", "method", "where"),
    [
        ({"token_request_method": "GET"}, "GET", "query"),
        ({"token_request_format": "query"}, "POST", "query"),
        ({"token_request_format": "json"}, "POST", "json"),
        ({"token_request_format": "form"}, "POST", "form"),
    ],
)
@pytest.mark.parametrize("kind", ["exchange", "refresh"])
async def test_parameters_travel_where_the_provider_reads_them(
    fields: dict[str, Any], method: str, where: str, kind: str
) -> None:
    call = await sent(kind, **fields)
    found = {
        "query": dict(parse_qsl(urlsplit(call.target).query)),
        "json": json.loads(call.body) if call.headers.get("content-type") == "application/json" else {},
        "form": dict(parse_qsl(call.body.decode("latin-1"))) if where == "form" else {},
    }
    grant = {"exchange": {"code": "c0de", "code_verifier": "v" * 43, "redirect_uri": "https://us/cb"}}
    assert call.method == method
    assert (POST | grant.get(kind, {"refresh_token": "rt-1"})).items() <= found[where].items()
    assert not any(found[other] for other in found if other != where)


async def test_headers_queries_and_endpoints() -> None:
    call = await sent(
        "refresh",
        refresh_endpoint="https://acme.example/r",
        required_headers={"User-Agent": "acme-client/1"},
        token_request_headers={"X-Version": "2"},
        token_query_params={"request": "token"},
    )
    assert call.target == "/r?request=token"
    assert (call.headers["user-agent"], call.headers["x-version"]) == ("acme-client/1", "2")
    header = await sent("refresh", client_secret_header="secret-key")
    assert header.headers["secret-key"] == "s3cret"
    basic = await sent("refresh", auth="client_secret_basic", basic_auth_template="{client_secret}:")
    assert basic.headers["authorization"] == "Basic czNjcmV0Og=="


async def test_a_dialect_of_the_exchange() -> None:
    call = await sent(
        "exchange",
        pkce="off",
        token_params={"type": "web_server", "shop": "{shop}"},
        token_request_param_names={"redirect_uri": None, "code": "auth_code"},
        template_params={"shop": {"pattern": "^[a-z]+$"}},
        params={"shop": "books"},
    )
    assert dict(parse_qsl(call.body.decode())) == POST | {
        "grant_type": "authorization_code",
        "auth_code": "c0de",
        "type": "web_server",
        "shop": "books",
    }
    named = await sent(
        "exchange",
        redirect_uri_override="{ru}",
        template_params={"ru": {"pattern": "^[A-Za-z-]+$"}},
        params={"ru": "Our-Ru"},
    )
    assert named.params["redirect_uri"] == "Our-Ru"


async def test_a_missing_parameter_is_named_before_anything_is_sent() -> None:
    with pytest.raises(Failure) as raised:
        await sent(
            "exchange", token_params={"s": "{shop}"}, template_params={"shop": {"pattern": "^[a-z]+$"}}
        )
    assert raised.value.context["field"] == "params.shop"


@pytest.mark.parametrize(
    ("revocation", "method", "params", "authorization"),
    [
        (None, "POST", {"token": "rt-1", "token_type_hint": "refresh_token"} | POST, None),
        ({"hint_param": None}, "POST", {"token": "rt-1"} | POST, None),
        ({"method": "DELETE", "format": "none", "auth": "bearer"}, "DELETE", {}, "Bearer rt-1"),
        (
            {
                "format": "json",
                "auth": "header",
                "auth_template": "Client {client_secret}",
                "token_param": "access_token",
                "hint_param": None,
                "params": {"client_id": "{client_id}"},
            },
            "POST",
            {"access_token": "rt-1", "client_id": "client-1"},
            "Client s3cret",
        ),
        (
            {"params": {"grant_type": "delete"}, "token_param": "access_token", "hint_param": None},
            "POST",
            {"access_token": "rt-1", "grant_type": "delete"} | POST,
            None,
        ),
        (
            {"auth": "none", "format": "query", "hint_param": None},
            "POST",
            {"token": "rt-1", "client_id": "client-1"},
            None,
        ),
    ],
)
async def test_revocation_dialects(
    revocation: dict[str, Any] | None, method: str, params: dict[str, str], authorization: str | None
) -> None:
    fields: Any = {"revocation": revocation} if revocation else {}
    call = await sent("revoke", **fields)
    assert (call.method, call.params, call.headers.get("authorization")) == (method, params, authorization)


async def test_a_token_in_a_revocation_url_stays_in_its_place() -> None:
    rule = {"url": "https://acme.example/{client_id}/{token}", "format": "none"}
    call = await sent("revoke", revoke_at="{client_id}/{token}", revocation=rule)
    assert call.target == "/client-1/rt-1"


async def test_what_does_not_fit_is_refused_before_sending() -> None:
    async with ScriptedProvider() as server:
        server.script(raw(b"{}"))
        sender = Sender(Egress(EgressPolicy(allow=(server.allowance,))))
        endpoints = Endpoints(authorization_endpoint=server.url("a"), token_endpoint=server.url("token"))
        nobody = OAuthClient("client-1", None, "client_secret_post")
        with pytest.raises(SendFailed) as raised:
            await sender.refresh(spec_like(), endpoints, nobody, refresh_token=TOKEN)
        assert (raised.value.code, raised.value.sent) == (ErrorCode.CLIENT_REJECTED, False)
        with pytest.raises(SendFailed, match="no client certificate"):
            await sender.refresh(
                spec_like(), endpoints, OAuthClient("c", None, "tls_client_auth"), refresh_token=TOKEN
            )
        with pytest.raises(Failure, match="no refresh"):
            await sender.refresh(spec_like(refresh_supported=False), endpoints, nobody, refresh_token=TOKEN)
        with pytest.raises(Failure, match="no revocation_endpoint"):
            await sender.revoke(spec_like(), endpoints, nobody, token=TOKEN)
        with pytest.raises(Failure, match="auth_modes"):
            await sender.refresh(
                spec_like(auth_modes=["client_credentials"]), endpoints, nobody, refresh_token=TOKEN
            )
        assert server.calls == []
