"""Discovery of an issuer's endpoints, against a scripted server."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.egress import Egress, EgressPolicy
from providers.registration.client_metadata import (
    auth_method_to_request,
    client_metadata,
    read_registration,
    scopes_to_register,
)
from providers.registration.discovery import discover, document_urls, weakening_changes
from tests.fakes.certificates import loopback_tls
from tests.fakes.providers.scripted_provider import ScriptedProvider, drop, html, raw, status
from tests.unit.providers.samples import an_integration, fails, reply_of


def egress_to(idp: ScriptedProvider) -> Egress:
    return Egress(EgressPolicy(allow=(idp.allowance,)))


def test_rfc8414_3_1_well_known_path_goes_between_host_and_path() -> None:
    oauth, oidc = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
    assert document_urls("https://h.example") == (f"https://h.example{oauth}", f"https://h.example{oidc}")
    assert document_urls("https://h.example/") == document_urls("https://h.example")
    assert document_urls("https://h.example:8443/t/1") == (
        f"https://h.example:8443{oauth}/t/1",
        f"https://h.example:8443{oidc}/t/1",
        f"https://h.example:8443/t/1{oauth}",
        f"https://h.example:8443/t/1{oidc}",
    )


async def test_why_an_issuer_does_not_answer_is_told_apart(tmp_path: Path) -> None:
    tls = loopback_tls(tmp_path)
    plain, sealed = [
        await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        for context in (None, tls.server)
    ]
    async with plain, sealed:
        ports = [server.sockets[0].getsockname()[1] for server in (plain, sealed)]
        egress = Egress(EgressPolicy(allow=tuple(f"127.0.0.1:{port}" for port in ports)))
        with fails(ErrorCode.DISCOVERY_FAILED, f"is the issuer http://127.0.0.1:{ports[0]}"):
            await discover(egress, f"https://127.0.0.1:{ports[0]}")
        with fails(ErrorCode.DISCOVERY_FAILED, "self-signed certificate.*EVERGRANT_TRUSTED_CA_FILE"):
            await discover(egress, f"https://127.0.0.1:{ports[1]}")
    with fails(ErrorCode.PROVIDER_UNREACHABLE, "has no address in DNS"):
        await discover(Egress(EgressPolicy()), "https://login.evergrant.invalid")


@pytest.mark.parametrize("path", ["", "/o", "/a/b"])
async def test_endpoints_come_from_the_document(path: str) -> None:
    async with ScriptedProvider(path=path) as idp:
        endpoints = await discover(egress_to(idp), idp.issuer)
        assert endpoints.issuer == idp.issuer
        assert endpoints.token_endpoint == idp.url("token")
        assert endpoints.revocation_endpoint == idp.url("revoke")
        assert endpoints.iss_in_callback
        assert endpoints.token_auth_methods == ("client_secret_basic", "client_secret_post")


@pytest.mark.parametrize(
    ("said", "offered"),
    [(["openid", "offline_access"], True), (["openid"], False), ("offline_access", False)],
)
async def test_oidc_core_11_offered_offline_access_is_known(said: Any, offered: bool) -> None:
    async with ScriptedProvider(metadata={"scopes_supported": said}) as idp:
        assert (await discover(egress_to(idp), idp.issuer)).offline_access is offered


@pytest.mark.parametrize("missing", [status(404), html(), html(404), raw(b"[]"), status(302)])
async def test_openid_and_path_suffixed_documents_are_tried_next(missing: Any) -> None:
    async with ScriptedProvider(path="/o") as idp:
        document = {
            "issuer": idp.issuer,
            "authorization_endpoint": idp.url("authorize") + "/",
            "token_endpoint": idp.url("token") + "/",
        }
        idp.script(missing, missing, missing, raw(json.dumps(document).encode()), at="metadata")
        endpoints = await discover(egress_to(idp), idp.issuer)
        assert endpoints.token_endpoint == idp.url("token") + "/"
        assert [call.target for call in idp.calls] == [
            "/.well-known/oauth-authorization-server/o",
            "/.well-known/openid-configuration/o",
            "/o/.well-known/oauth-authorization-server",
            "/o/.well-known/openid-configuration",
        ]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"issuer": "https://evil.example"}, "another issuer: https://evil.example"),
        ({"issuer": "https://evil.example/\n" + "x" * 900}, "another issuer"),
        ({"issuer": None}, "no issuer"),
        ({"code_challenge_methods_supported": ["plain"]}, "S256"),
        ({"code_challenge_methods_supported": "S256"}, "not an array"),
        ({"authorization_response_iss_parameter_supported": "true"}, "a string"),
        ({"token_endpoint": None}, "token_endpoint is missing"),
        ({"authorization_endpoint": None}, "authorization_endpoint is missing"),
        ({"token_endpoint": 7}, "token_endpoint is not a URL"),
        ({"token_endpoint": "http://idp.example/token"}, "not https"),
        ({"token_endpoint": "javascript:alert(1)"}, "token_endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"),
        ({"token_endpoint": "https://a@evil.example/token"}, "user name"),
        ({"token_endpoint": "https://idp.example:22/token"}, "port"),
        ({"token_endpoint": "https://idp.example/token#x"}, "fragment"),
        ({"revocation_endpoint": "file:///etc/passwd"}, "revocation_endpoint"),
        ({"token_endpoint_auth_methods_supported": {}}, "not an array"),
    ],
)
async def test_invalid_document_refused(metadata: dict[str, Any], said: str) -> None:
    async with ScriptedProvider(metadata=metadata) as idp:
        with fails(ErrorCode.DISCOVERY_FAILED, said):
            await discover(egress_to(idp), idp.issuer)


async def test_rfc8414_3_3_issuer_compared_as_string() -> None:
    async with ScriptedProvider() as idp:
        for close in (idp.issuer + "/", idp.issuer.replace("http:", "HTTP:")):
            with pytest.raises(Failure, match="another issuer"):
                await discover(egress_to(idp), close)


async def test_missing_pkce_field_accepted() -> None:
    async with ScriptedProvider(metadata={"code_challenge_methods_supported": None}) as idp:
        assert (await discover(egress_to(idp), idp.issuer)).token_endpoint


async def test_missing_document_names_every_url() -> None:
    async with ScriptedProvider(path="/o") as idp:
        idp.script(status(404), status(404), html(), status(403), at="metadata")
        with fails(ErrorCode.DISCOVERY_FAILED) as raised:
            await discover(egress_to(idp), idp.issuer)
        for place in ("oauth-authorization-server/o", "/o/.well-known/openid-configuration", "403"):
            assert place in raised.value.detail


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (status(503), ErrorCode.PROVIDER_ERROR),
        (status(429), ErrorCode.PROVIDER_ERROR),
        (drop(), ErrorCode.PROVIDER_UNREACHABLE),
        (raw(b" " * 2_000_000), ErrorCode.REPLY_UNREADABLE),
        (raw(b'{"issuer": "' + b"x" * 300_000 + b'"}'), ErrorCode.DISCOVERY_FAILED),
    ],
)
async def test_failures_of_the_server(answer: Any, code: ErrorCode) -> None:
    async with ScriptedProvider() as idp:
        idp.script(answer, status(404), at="metadata")
        with fails(code):
            await discover(egress_to(idp), idp.issuer)


@pytest.mark.parametrize(
    ("issuer", "code"),
    [
        ("http://idp.example", ErrorCode.EGRESS_REFUSED),
        ("https://[::ffff:10.0.0.1]", ErrorCode.EGRESS_REFUSED),
        ("https://idp.example?x=1", ErrorCode.DISCOVERY_FAILED),
        ("https://idp.example#x", ErrorCode.DISCOVERY_FAILED),
        ("https://idp.example/" + "x" * 3000, ErrorCode.DISCOVERY_FAILED),
        ("idp.example", ErrorCode.EGRESS_REFUSED),
        ("https://[", ErrorCode.DISCOVERY_FAILED),
        ("", ErrorCode.EGRESS_REFUSED),
    ],
)
async def test_forbidden_issuer_refused(issuer: str, code: ErrorCode) -> None:
    with fails(code):
        await discover(Egress(EgressPolicy()), issuer)


@pytest.mark.parametrize(
    ("listed", "usable"),
    [
        (["https://api.example"], ("https://api.example",)),
        (["https://api.example", "https://api.example"], ("https://api.example",)),
        (["https://api.example/v1?a=b", "https://b.example:9443"], ("https://api.example/v1?a=b", "https://b.example:9443")),
        (["https://api.example", "http://api.example"], ()),
        (["https://api.example#v1"], ()),
        (["https://ann@api.example"], ()),
        (["https://api.example/a b"], ()),
        (["https://ápi.example"], ()),
        (["https://"], ()),
        (["https://[", "https://api.example"], ()),
        (["urn:example:api"], ()),
        (["https://api.example/" + "x" * 3000], ()),
        ([f"https://api-{number}.example" for number in range(21)], ()),
        (["https://api.example", 7], ()),
        ("https://api.example", ()),
        ([], ()),
        (None, ()),
    ],
)  # fmt: skip
async def test_rfc9728_4_resources_of_an_issuer_are_read_and_any_other_entry_makes_the_list_unusable(
    listed: Any, usable: tuple[str, ...]
) -> None:
    async with ScriptedProvider(metadata={"protected_resources": listed}) as idp:
        assert (await discover(egress_to(idp), idp.issuer)).protected_resources == usable


async def test_a_resource_on_this_machine_is_one_where_egress_allows_it() -> None:
    async with ScriptedProvider() as idp:
        idp.metadata["protected_resources"] = [idp.url("api")]
        assert (await discover(egress_to(idp), idp.issuer)).protected_resources == (idp.url("api"),)


async def test_server_without_code_grant_has_no_authorization_endpoint() -> None:
    only = {"grant_types_supported": ["client_credentials"], "code_challenge_methods_supported": ["plain"]}
    async with ScriptedProvider(metadata=only) as idp:
        endpoints = await discover(egress_to(idp), idp.issuer)
    assert (endpoints.token_endpoint, endpoints.authorization_endpoint) == (idp.url("token"), None)


PINNED = Endpoints(
    issuer="https://idp.example",
    authorization_endpoint="https://idp.example/authorize",
    token_endpoint="https://idp.example/token",
    revocation_endpoint="https://idp.example/revoke",
    iss_in_callback=True,
    token_auth_methods=("client_secret_basic",),
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"token_endpoint": "https://evil.example/token"}, "token_endpoint would move"),
        ({"token_endpoint": "https://idp.example:8443/token"}, "token_endpoint would move"),
        ({"authorization_endpoint": "https://idp.example.evil/a"}, "authorization_endpoint would move"),
        ({"revocation_endpoint": None}, "could no longer be revoked"),
        ({"iss_in_callback": False}, "no longer name their issuer"),
        ({"token_auth_methods": ("private_key_jwt",)}, "client_secret_basic, would no longer be supported"),
        ({"resource": "https://mcp.example/other"}, "another resource: https://mcp.example/other"),
        ({}, None),
        ({"resource_scopes": ("read", "write")}, None),
        ({"protected_resources": ("https://api.example", "https://b.example")}, None),
        ({"token_endpoint": "https://IDP.example/v2/token"}, None),
        ({"introspection_endpoint": "https://idp.example/introspect"}, None),
        ({"token_auth_methods": ("client_secret_basic", "private_key_jwt")}, None),
        ({"token_auth_methods": ()}, None),
        ({"takes_metadata_documents": True}, None),
    ],
)
def test_weakening_change_named_and_other_accepted(changes: dict[str, Any], why: str | None) -> None:
    reasons = weakening_changes(PINNED, PINNED.model_copy(update=changes), "client_secret_basic")
    assert len(reasons) == (why is not None)
    assert all(str(why) in reason for reason in reasons)


# --- client metadata, and replies to a registration (RFC 7591) --------------------------------------

GOOD = {"client_id": "c-1", "client_secret": "s-1", "client_secret_expires_at": 0}


def test_offered_offline_access_is_registered_with_the_default_scopes() -> None:
    """A server refuses a scope that the client wasn't registered with."""
    for defaults, registered in (("read",), ("read", "offline_access")), ((), ()):
        at = Endpoints(token_endpoint="https://a.example/t", offline_access=True)
        ours = an_integration(default_scopes=defaults)
        assert scopes_to_register(ours, at) == registered
        assert scopes_to_register(ours, at.model_copy(update={"offline_access": False})) == defaults


def test_rfc7591_2_client_metadata() -> None:
    assert client_metadata("https://e/cb", auth="none", scopes=("read", "write")) == {
        "client_name": "Evergrant",
        "redirect_uris": ["https://e/cb"],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": "none",
        "application_type": "web",
        "scope": "read write",
    }
    assert client_metadata("https://e/cb", auth="none", client_id="https://e/c")["client_id"] == "https://e/c"


def test_oidc_registration_2_a_client_on_loopback_is_a_native_one() -> None:
    """Better Auth refuses a web client whose redirect URI is not https."""
    assert client_metadata("http://127.0.0.1:8080/cb", auth="none")["application_type"] == "native"


@pytest.mark.parametrize(
    ("at_token", "at_revocation", "asked"),
    [
        (None, None, "client_secret_basic"),
        (["client_secret_basic", "client_secret_post"], None, "client_secret_post"),
        (["client_secret_basic", "client_secret_post"], ["client_secret_basic"], "client_secret_basic"),
        (["client_secret_post"], ["client_secret_basic"], "client_secret_post"),
        (["client_secret_basic"], None, "client_secret_basic"),
        (["none", "private_key_jwt"], None, "none"),
    ],
)
async def test_rfc7591_2_the_method_that_every_endpoint_takes_is_registered(
    at_token: Any, at_revocation: Any, asked: str
) -> None:
    """The secret in the body: the MCP SDK's server takes no Basic request that doesn't repeat the client
    id in its body, and others take none that does. Canaille revokes with Basic only."""
    metadata = {
        "token_endpoint_auth_methods_supported": at_token,
        "revocation_endpoint_auth_methods_supported": at_revocation,
    }
    async with ScriptedProvider(metadata=metadata) as idp:
        assert auth_method_to_request(await discover(egress_to(idp), idp.issuer)) == asked


def test_rfc7591_3_2_1_registered_client() -> None:
    said = {
        **GOOD,
        "client_secret_expires_at": 1_800_000_000,
        "token_endpoint_auth_method": "client_secret_post",
        "registration_client_uri": "https://idp/register/c-1",
        "registration_access_token": "rat",
    }
    made = read_registration(reply_of(said, 201), asked_auth="client_secret_basic")
    assert (made.client_id, made.client_auth) == ("c-1", "client_secret_post")
    assert made.secret_expires_at == datetime.fromtimestamp(1_800_000_000, UTC)
    assert made.management_url == "https://idp/register/c-1"
    assert "rat" not in repr(made)
    assert "s-1" not in repr(made)


def test_secret_of_a_public_client_ignored() -> None:
    said = {**GOOD, "token_endpoint_auth_method": "none"}
    assert read_registration(reply_of(said, 201), asked_auth="none").client_secret is None


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"error": "invalid_redirect_uri"}, 400, ErrorCode.CLIENT_REJECTED),
        (b"<html>no</html>", 403, ErrorCode.CLIENT_REJECTED),
        ({"error": "x"}, 302, ErrorCode.CLIENT_REJECTED),
        (GOOD, 500, ErrorCode.PROVIDER_ERROR),
        (GOOD, 429, ErrorCode.PROVIDER_RATE_LIMITED),
        (b"", 201, ErrorCode.REPLY_UNREADABLE),
        ({}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": 7}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_id": "x" * 5000}, 201, ErrorCode.REPLY_UNREADABLE),
        ({"client_id": "c-1"}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": 1e99}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "client_secret_expires_at": True}, 201, ErrorCode.REPLY_UNREADABLE),
        ({**GOOD, "token_endpoint_auth_method": "tls_client_auth"}, 201, ErrorCode.REPLY_UNREADABLE),
    ],
)
def test_refused_or_invalid_registration(data: Any, status: int, code: ErrorCode) -> None:
    with fails(code) as raised:
        read_registration(reply_of(data, status), asked_auth="client_secret_basic")
    assert "s-1" not in str(raised.value)
