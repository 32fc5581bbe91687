"""Client certificates, as an attacker presents them (RFC 8705 sections 2, 3 and 6, RFC 9440 section 4)."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
from cryptography import x509
from sqlalchemy import update

from evergrant_server.api.app import create_app
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.messages.jobs import FETCH_ISSUER_KEYS
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.store.trusted_issuers import TrustedIssuerRow
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.certificates import Authority, OwnCertificate, key_usage
from tests.fakes.databases import NOW
from tests.fakes.mtls.apps import CertifiedApp, certified_app, client_cert, put_credential
from tests.fakes.patience import PATIENCE_S

SPIFFE_ID = "spiffe://acme.example/sync"
AUTHORITY = Authority(now=NOW)
OTHER = Authority(now=NOW)  # of the same name
OWN = AUTHORITY.issue(dns=("sync.acme.example",))
CA = x509.BasicConstraints(ca=True, path_length=None)


@pytest.fixture
async def hop(tmp_path: Path) -> AsyncIterator[Api]:
    """The listener that only the proxy reaches."""
    async with running_api(tmp_path, certificates="rfc9440") as api:
        yield api


@pytest.fixture
async def admin(hop: Api) -> str:
    return await bootstrap_admin(hop.store, hop.clock, TENANT, hop.parts.settings.api_key_lifetime)


@pytest.fixture
async def plain(hop: Api) -> AsyncIterator[httpx2.AsyncClient]:
    """The listener that every client reaches, over the same store."""
    app = create_app(hop.parts)
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url=hop.parts.settings.public_url) as client:
        yield client
    await app.state.networks.stop()


@pytest.fixture
async def app(hop: Api, admin: str) -> CertifiedApp:
    named = {"ca": AUTHORITY.pem, "san_dns": "sync.acme.example"}
    return await certified_app(hop, admin, OWN, "tls_client_auth", named)


async def test_attack_11_client_cert_at_the_plain_listener_is_ignored(
    app: CertifiedApp, plain: httpx2.AsyncClient
) -> None:
    form = {"grant_type": "client_credentials", "client_id": app.id}
    pem = quote(OWN.certificate)
    forged = {
        "Client-Cert": client_cert(OWN),
        "Ssl-Client-Cert": pem,
        "X-Forwarded-Client-Cert": f'Cert="{pem}"',
        "Ssl-Client-Verify": "SUCCESS",
    }
    answer = await plain.post("/oauth/token", data=form, headers=forged)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    assert (await plain.get("/livez", headers={"Client-Cert": "junk"})).status_code == 200


async def test_attack_11_a_doubled_client_cert_is_400(
    app: CertifiedApp, caplog: pytest.LogCaptureFixture
) -> None:
    value = client_cert(OWN)
    for doubled in ((value, value), (f"{value}, {value}",), (value, "")):
        answer = await app.ask(*doubled)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert OWN.certificate[100:150] not in answer.text + caplog.text
    assert caplog.text.count("certificate unreadable") == 3


async def test_attack_11_pem_at_an_rfc9440_listener_is_400(app: CertifiedApp) -> None:
    for value in (quote(OWN.certificate), OWN.certificate.replace("\n", " "), "SUCCESS", ""):
        assert (await app.ask(value)).status_code == 400
    other = await app.ask(quote(OWN.certificate), name="Ssl-Client-Cert")
    assert (other.status_code, other.json()["error"]) == (401, "invalid_client")


async def test_attack_12_an_unknown_authority_through_a_proxy_that_says_success_is_401(
    hop: Api, app: CertifiedApp
) -> None:
    forged = OTHER.issue(dns=("sync.acme.example",))
    form = {"grant_type": "client_credentials", "client_id": app.id}
    headers = {"Client-Cert": client_cert(forged), "Ssl-Client-Verify": "SUCCESS", "X-SSL-Client-Verify": "0"}
    answer = await hop.client.post("/oauth/token", data=form, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    (refused,) = await hop.records(AuditAction.TOKEN_REFUSED)
    assert "main: there is no path" in refused.detail["rule"]


PRESENTED: dict[str, OwnCertificate] = {
    "expired": AUTHORITY.issue(hours=(-2, -1), dns=("sync.acme.example",)),
    "not valid yet": AUTHORITY.issue(hours=(1, 2), dns=("sync.acme.example",)),
    "another name": AUTHORITY.issue(dns=("other.acme.example",)),
    "its name as common name": AUTHORITY.issue("sync.acme.example"),
    "its name as URI": AUTHORITY.issue(uris=("sync.acme.example",)),
    "a name above it": AUTHORITY.issue(dns=("acme.example",)),
    "a wildcard": AUTHORITY.issue(dns=("*.acme.example",)),
    "a CA certificate": AUTHORITY.issue(dns=("sync.acme.example",), extensions=(CA,)),
    "one that may sign": AUTHORITY.issue(
        dns=("sync.acme.example",), extensions=(key_usage("digital_signature", "key_cert_sign"),)
    ),
    "the authority itself": OwnCertificate(AUTHORITY.pem, ""),
    "another authority": OTHER.issue(dns=("sync.acme.example",)),
}


async def test_a_certificate_that_does_not_prove_the_app_is_401(hop: Api, app: CertifiedApp) -> None:
    for name, certificate in PRESENTED.items():
        answer = await app.ask_with(certificate)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), name
    assert await hop.records(AuditAction.TOKEN_ISSUED) == []
    assert (await app.ask()).status_code == 200


async def test_a_stranger_with_a_certificate_learns_from_no_answer_which_apps_exist(
    hop: Api, app: CertifiedApp
) -> None:
    await hop.app_with("bare")
    mine = OTHER.issue(dns=("sync.acme.example",))
    unknown = "app_0000000000000000000000"
    known = [app.id, (await hop.app_named("bare")).id, unknown]
    answers = {(await CertifiedApp(hop, it, mine).ask()).content for it in known}
    assert len(answers) == 1
    nameless = await app.ask(client_id=None)
    assert (nameless.status_code, "client_id" in nameless.text) == (401, True)


SVIDS: dict[str, OwnCertificate] = {
    "two URI SANs": AUTHORITY.svid(SPIFFE_ID, "spiffe://acme.example/other"),
    "a second URI of another kind": AUTHORITY.svid(SPIFFE_ID, "https://acme.example"),
    "no URI": AUTHORITY.issue(dns=("acme.example",), extensions=(key_usage("digital_signature"),)),
    "another workload": AUTHORITY.svid("spiffe://acme.example/sync/2"),
    "the trust domain": AUTHORITY.svid("spiffe://acme.example"),
    "no digitalSignature": AUTHORITY.issue(uris=(SPIFFE_ID,)),
    "a CA": AUTHORITY.issue(uris=(SPIFFE_ID,), extensions=(CA, key_usage("digital_signature"))),
    "another trust domain's authority": OTHER.svid(SPIFFE_ID),
    "expired": AUTHORITY.svid(SPIFFE_ID, hours=(-2, -1)),
}


async def test_an_x509_svid_has_one_uri_and_is_of_its_trust_domain(hop: Api, admin: str) -> None:
    registered = {"spiffe_id": SPIFFE_ID, "bundle": Authority(now=NOW).pem + AUTHORITY.pem}
    app = await certified_app(hop, admin, AUTHORITY.svid(SPIFFE_ID), "x509_svid", registered)
    for name, certificate in SVIDS.items():
        assert (await app.ask_with(certificate)).status_code == 401, name
    token = await app.token()
    assert (await app.lease(token, app.certificate)).status_code == 200
    renewed = AUTHORITY.svid(SPIFFE_ID)
    assert (await app.ask_with(renewed)).status_code == 200
    assert (await app.lease(token, renewed)).json()["code"] == "certificate_required"


class TrustDomain:
    """A trusted issuer whose bundle a worker reads, and the app `sync` with an X.509-SVID of it."""

    def __init__(self, hop: Api, admin: str) -> None:
        self.hop, self.admin = hop, admin

    async def app(self) -> CertifiedApp:
        domain = {"kind": "spiffe", "issuer": "spiffe://acme.example", "jwks_uri": "https://spire.example/"}
        answer = await self.hop.call("PUT", "/v1/issuers/acme", self.admin, json=domain)
        assert answer.status_code == 201, answer.text
        registered = {"spiffe_id": SPIFFE_ID, "issuer": "acme"}
        return await certified_app(self.hop, self.admin, AUTHORITY.svid(SPIFFE_ID), "x509_svid", registered)

    async def publish(self, *authorities: Authority) -> None:
        """What a worker does when it has read the bundle."""
        ders = [b64encode(AppCertificate.of_pem(it.pem).der).decode() for it in authorities]
        keys = tuple({"use": "x509-svid", "x5c": [der]} for der in (*ders, "AAAA"))
        async with self.hop.worker.write() as tx:
            issuer = await tx.trusted_issuers.by_name(TENANT, "acme")
            assert issuer is not None
            read = issuer.with_keys(keys, self.hop.clock.now(), None)
            await tx.trusted_issuers.put(read, expected=issuer.revision)

    async def unreadable(self) -> None:
        """What a worker does when it can't read the bundle."""
        async with self.hop.worker.write() as tx:
            issuer = await tx.trusted_issuers.by_name(TENANT, "acme")
            assert issuer is not None
            failed = issuer.with_problem("status 500", self.hop.clock.now())
            await tx.trusted_issuers.put(failed, expected=issuer.revision)

    async def is_asked_to_read(self) -> bool:
        """Whether a worker has been asked to read the bundle, since this was last called."""
        return FETCH_ISSUER_KEYS.name in [it.name for it in await self.hop.outbox()]

    async def ask(
        self, app: CertifiedApp, own: OwnCertificate, reading: Callable[[], Awaitable[None]]
    ) -> httpx2.Response:
        """A token request that has a worker read the bundle, with what it reads."""
        asking = asyncio.create_task(app.ask_with(own))
        async with asyncio.timeout(PATIENCE_S):
            while not await self.is_asked_to_read():
                await asyncio.sleep(0.01)
        await reading()
        return await asking


@pytest.fixture
def domain(hop: Api, admin: str) -> TrustDomain:
    return TrustDomain(hop, admin)


async def test_an_x509_svid_is_checked_with_the_bundle_that_a_worker_last_read(
    hop: Api, domain: TrustDomain
) -> None:
    app = await domain.app()
    await domain.publish(OTHER)
    assert await domain.is_asked_to_read()  # when it was put
    hop.clock.advance(301)
    assert (await app.ask_with(AUTHORITY.svid("spiffe://acme.example/other"))).status_code == 401
    assert not await domain.is_asked_to_read()  # no bundle makes it the app's
    rotated = await domain.ask(app, app.certificate, partial(domain.publish, OTHER, AUTHORITY))
    assert rotated.status_code == 200
    assert (await app.lease(rotated.json()["access_token"], app.certificate)).status_code == 200
    assert (await app.ask_with(Authority(now=NOW).svid(SPIFFE_ID))).status_code == 401
    assert not await domain.is_asked_to_read()  # once in five minutes
    hop.clock.advance(25 * 3600)
    stale = await domain.ask(app, Authority(now=hop.clock.now()).svid(SPIFFE_ID), domain.unreadable)
    assert (stale.status_code, "retry-after" in stale.headers) == (503, True)


async def test_a_trust_domain_that_is_trusted_no_more_takes_its_credentials_along(
    hop: Api, domain: TrustDomain
) -> None:
    app = await domain.app()
    await domain.publish(AUTHORITY)
    token = await app.token()
    assert (await hop.call("DELETE", "/v1/issuers/acme", domain.admin)).status_code == 204
    assert (await app.ask()).status_code == 401
    assert (await app.lease(token, app.certificate)).json()["code"] == "unauthenticated"


async def test_a_bundle_that_was_changed_by_hand_proves_no_one(
    hop: Api, domain: TrustDomain, caplog: pytest.LogCaptureFixture
) -> None:
    app = await domain.app()
    await domain.publish(OTHER)
    der = b64encode(AppCertificate.of_pem(AUTHORITY.pem).der).decode()
    async with hop.worker.write() as tx:
        planted = update(TrustedIssuerRow).values(keys=[{"use": "x509-svid", "x5c": [der]}])
        await tx.connection.execute(planted)
    assert (await app.ask()).status_code == 401  # without a reading, which would not make it good
    assert "authority broken" in caplog.text


async def test_rfc8705_2_2_one_certificate_is_registered_by_its_thumbprint(hop: Api, admin: str) -> None:
    own = OwnCertificate(AUTHORITY.pem, "")  # `openssl req -x509` says CA of what it signs with its own key
    thumbprint = AppCertificate.of_pem(own.certificate).thumbprint
    method = "self_signed_tls_client_auth"
    app = await certified_app(hop, admin, own, method, {"thumbprint": thumbprint})
    assert (await app.lease(await app.token(), own)).status_code == 200
    assert (await app.ask_with(Authority(now=NOW).issue())).status_code == 401
    expired = AUTHORITY.issue(hours=(-2, -1))
    await put_credential(
        hop, admin, method, {"thumbprint": AppCertificate.of_pem(expired.certificate).thumbprint}
    )
    assert "expired" in (await app.ask_with(expired)).text


async def test_rfc8705_3_a_bound_token_needs_its_certificate_on_every_request(
    hop: Api, app: CertifiedApp, plain: httpx2.AsyncClient
) -> None:
    """From the store and from memory, on the lease path and off it."""
    token = await app.token()
    another = AUTHORITY.issue(dns=("sync.acme.example",))  # the app's own, and not the token's
    bearer = {"Authorization": f"Bearer {token}"}

    async def refused(answer: httpx2.Response) -> None:
        assert (answer.status_code, answer.json()["code"]) == (401, "certificate_required")
        assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    for _ in range(2):
        await refused(await app.lease(token, None))
        await refused(await app.lease(token, another))
        await refused(await app.lease(token, OWN, plain))
        await refused(await hop.client.get("/v1/connections", headers=bearer))
        await refused(await plain.get("/v1/connections", headers=bearer | {"Client-Cert": client_cert(OWN)}))
        assert (await app.lease(token, OWN)).json()["access_token"] == "at-1"
        answer = await hop.client.get("/v1/connections", headers=bearer | {"Client-Cert": client_cert(OWN)})
        assert answer.status_code == 200


async def test_a_token_does_not_outlive_its_certificate(hop: Api, admin: str) -> None:
    short = AUTHORITY.issue(hours=(-1, 0.05), dns=("sync.acme.example",))  # 180 s
    named = {"ca": AUTHORITY.pem, "san_dns": "sync.acme.example"}
    app = await certified_app(hop, admin, short, "tls_client_auth", named)
    answer = await app.ask()
    assert 170 < answer.json()["expires_in"] <= 180
    token = answer.json()["access_token"]
    assert (await app.lease(token, short)).status_code == 200
    hop.clock.advance(181)
    assert (await app.lease(token, short)).status_code == 401


async def test_a_key_and_an_unbound_token_work_at_the_hop_with_any_certificate(hop: Api, admin: str) -> None:
    _, key = await hop.active_for("other", Action.TOKEN)
    headers = {"Client-Cert": client_cert(OTHER.issue())}
    body = {"integration": "crm", "subject": "user-1"}
    answer = await hop.call("POST", "/v1/lease", key, json=body, headers=headers)
    assert answer.status_code == 200
