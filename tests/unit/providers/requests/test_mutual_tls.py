"""Mutual TLS (RFC 8705): the client's certificate in the handshake."""

import ssl
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, EgressPolicy
from providers.client_auth import parse_client_certificate
from providers.definition.templates import integration_endpoints
from providers.registration.discovery import discover, weakening_changes
from providers.requests.client_grants import ClientGrantInput, client_grant_request
from providers.requests.request_format import OAuthClient, ProviderAccess
from providers.requests.sender import Sender, SendFailed
from providers.responses.raw_reply import RawReply
from tests.fakes.certificates import LoopbackTls, OwnCertificate, loopback_tls, own_certificate
from tests.fakes.providers.scripted_provider import ScriptedProvider, raw
from tests.unit.providers.samples import an_integration, fails, spec_like

NOW = datetime.now(UTC)
METHODS = ("tls_client_auth", "self_signed_tls_client_auth")
OURS = own_certificate()
TOKEN = raw(b'{"access_token": "at-1", "token_type": "bearer"}')


def client(own: OwnCertificate | None = OURS, auth: str = "tls_client_auth") -> OAuthClient:
    certificate = parse_client_certificate(own.certificate, Secret(own.private), NOW) if own else None
    return OAuthClient("client-1", Secret("s3cret"), auth, certificate=certificate)


@pytest.fixture
def tls(tmp_path: Path) -> LoopbackTls:
    return loopback_tls(tmp_path)


@pytest_asyncio.fixture
async def idp(tls: LoopbackTls) -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider(tls=tls.demanding(OURS)) as server:
        yield server


async def minted(idp: ScriptedProvider, tls: LoopbackTls, ours: OAuthClient) -> RawReply:
    spec = spec_like(auth_modes=["client_credentials"], client_auth=ours.auth)
    asked = ClientGrantInput((), TokenTarget(), "sam", NOW)
    access = ProviderAccess(spec, Endpoints(token_endpoint=idp.url("token")), ours)
    request = client_grant_request(access, Flow.CLIENT_CREDENTIALS, asked)
    egress = Egress(EgressPolicy(allow=(idp.allowance,)), tls=tls.trust)
    return await Sender(egress).send(access, request)


@pytest.mark.parametrize("method", METHODS)
async def test_rfc8705_2_handshake_authenticates_the_client(
    idp: ScriptedProvider, tls: LoopbackTls, method: str
) -> None:
    idp.script(TOKEN)
    assert (await minted(idp, tls, client(auth=method))).status == 200
    (call,) = idp.calls
    sent = {name: value for name, (value,) in parse_qs(call.body.decode()).items()}
    assert sent == {"grant_type": "client_credentials", "client_id": "client-1"}
    assert "authorization" not in call.headers


@pytest.mark.parametrize(
    "ours",
    [client(own_certificate("another client")), client(auth="client_secret_basic")],
    ids=["another certificate", "another method, which presents none"],
)
async def test_other_certificate_or_method_fails(
    idp: ScriptedProvider, tls: LoopbackTls, ours: OAuthClient
) -> None:
    with pytest.raises(SendFailed) as raised:
        await minted(idp, tls, ours)
    assert raised.value.code is ErrorCode.PROVIDER_UNREACHABLE
    assert idp.calls == []


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        (client(None), "has no client certificate"),
        (replace(client(), now=lambda: NOW + timedelta(days=2)), "expired on"),
    ],
)
async def test_missing_or_expired_certificate_not_sent(
    idp: ScriptedProvider, tls: LoopbackTls, ours: OAuthClient, why: str
) -> None:
    with pytest.raises(SendFailed, match=why) as raised:
        await minted(idp, tls, ours)
    assert (raised.value.code, raised.value.sent) == (ErrorCode.CLIENT_REJECTED, False)


async def test_server_certificate_verified(idp: ScriptedProvider, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(SendFailed) as raised:
        await minted(idp, loopback_tls(tmp_path / "other"), client())
    assert raised.value.code is ErrorCode.PROVIDER_UNREACHABLE


def test_invalid_certificate_refused() -> None:
    other = own_certificate()
    for certificate, private, why in (
        ("no PEM", OURS.private, "is not PEM"),
        (OURS.certificate, "no PEM", "the private key is not PEM"),
        (OURS.certificate, other.private, "not the first certificate's"),
        (OURS.certificate * 11, OURS.private, "more than"),
        (OURS.certificate + own_certificate(days=-0.04).certificate, OURS.private, "has expired"),
    ):
        with fails(ErrorCode.INVALID_REQUEST, why, field="client_certificate") as raised:
            parse_client_certificate(certificate, Secret(private), NOW)
        assert "PRIVATE" not in str(raised.value)


def test_certificate_with_unknown_key_type_refused() -> None:
    p256, unknown = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d03017f")
    der = x509.load_pem_x509_certificate(OURS.certificate.encode()).public_bytes(Encoding.DER)
    strange = ssl.DER_cert_to_PEM_cert(der.replace(p256, unknown))
    with fails(ErrorCode.INVALID_REQUEST, field="client_certificate"):
        parse_client_certificate(strange, Secret(OURS.private), NOW)


async def test_unwritable_key_file_counts_as_not_sent(
    idp: ScriptedProvider, tls: LoopbackTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that is full or read-only costs no credential: its use is known not to have begun."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(SendFailed) as failed:
        await minted(idp, tls, client())
    assert (failed.value.code, failed.value.sent) == (ErrorCode.JOURNAL_UNAVAILABLE, False)


def test_certificate_repr_hides_the_key() -> None:
    held = parse_client_certificate(OURS.certificate, Secret(OURS.private), NOW)
    assert OURS.private not in repr(held)
    assert held == type(held).from_secret(held.as_secret())


async def test_rfc8705_5_aliases_for_mutual_tls_only(tls: LoopbackTls) -> None:
    aliases = {"token_endpoint": "https://127.0.0.1:8443/mtls/token", "unknown": 1}
    async with ScriptedProvider(tls=tls, metadata={"mtls_endpoint_aliases": aliases}) as idp:
        egress = Egress(EgressPolicy(allow=(idp.allowance, "127.0.0.1:8443")), tls=tls.trust)
        found = await discover(egress, idp.issuer)
        spec = spec_like(discovery=True)
        for method in (*METHODS, "private_key_jwt"):
            integration = an_integration(endpoints=found, client_auth=method)
            mutual = method in METHODS
            token = aliases["token_endpoint"] if mutual else idp.url("token")
            ours = integration_endpoints(spec, integration)
            assert (ours.token_endpoint, ours.revocation_endpoint) == (token, idp.url("revoke"))
            gone = found.model_copy(update={"mtls_aliases": {}})
            moved = "token_endpoint would move to another host"
            assert (moved in weakening_changes(found, gone, method)) is mutual
        idp.metadata["mtls_endpoint_aliases"] = {"token_endpoint": "http://evil.example/token"}
        with pytest.raises(Failure, match="not https"):
            await discover(egress, idp.issuer)


async def test_a_kept_context_presents_its_own_certificate_alone(tls: LoopbackTls) -> None:
    egress, another = Egress(EgressPolicy(), tls=tls.trust), client(own_certificate("another client"))
    assert client().certificate is not None
    contexts = [
        egress._context(it.certificate) for it in (client(), another, client()) if it.certificate is not None
    ]
    assert contexts[0] is contexts[2]
    assert contexts[0] is not contexts[1]
