"""A worker reads the keys of trusted issuers; the last good ones stay while it can't."""

from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from temporalio.testing import ActivityEnvironment

from activities.workloads import TrustedIssuerActivities
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant, TrustedIssuerId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import FetchIssuerKeys, IssuerKeysResult
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.store import Store
from evergrant_server.store.trusted_issuers import TrustedIssuerRow
from tests.fakes.certificates import Authority
from tests.fakes.clock import SetClock
from tests.fakes.failures import fails
from tests.fakes.providers.workload_issuer import (
    BUNDLE,
    KEYS,
    METADATA,
    WorkloadIssuer,
    running_workload_issuer,
)

ACME = Tenant("acme")


@pytest.fixture
async def theirs() -> AsyncIterator[WorkloadIssuer]:
    async with running_workload_issuer() as issuer:
        yield issuer


class Reader:
    """A worker and one trusted issuer."""

    def __init__(self, store: Store, clock: SetClock, theirs: WorkloadIssuer) -> None:
        self.store, self.clock, self.theirs = store, clock, theirs
        self.activities = TrustedIssuerActivities(
            store, Egress(EgressPolicy(allow=(theirs.allowance,))), clock
        )
        self.id = TrustedIssuerId(new_id("iss"))

    async def trust(self, kind: IssuerKind = IssuerKind.OIDC, **changes: Any) -> None:
        now = self.clock.now()
        row: dict[str, Any] = {"tenant": ACME, "id": self.id, "created_at": now, "changed_at": now, **changes}
        issuer = TrustedIssuer(**{"name": "theirs", "kind": kind, "issuer": self.theirs.url, **row})
        async with self.store.write() as tx:
            await tx.trusted_issuers.put(issuer, expected=None)

    async def read(self) -> IssuerKeysResult:
        context = RequestContext(by="app:admin")
        return await self.activities.fetch_keys(
            FetchIssuerKeys(tenant=ACME, issuer_id=self.id, context=context)
        )

    async def row(self) -> TrustedIssuer:
        async with self.store.read() as tx:
            found = await tx.trusted_issuers.get(ACME, self.id)
        assert found is not None
        return found


@pytest.fixture
def reader(store: Store, clock: SetClock, theirs: WorkloadIssuer) -> Reader:
    return Reader(store, clock, theirs)


async def test_keys_are_found_by_the_metadata_and_read_again_when_the_issuer_says(reader: Reader):
    await reader.trust()
    reader.theirs.headers["cache-control"] = "public, max-age=900, must-revalidate"
    assert await reader.read() == IssuerKeysResult(keys=1)
    row, now = await reader.row(), reader.clock.now()
    assert (row.keys_at, row.keys_next_at) == (now, now + timedelta(minutes=15))
    assert [key["kid"] for key in row.usable_keys(now) or ()] == ["one"]
    reader.theirs.rotate("two")
    await ActivityEnvironment().run(reader.activities.refresh_due, 60.0)
    assert (await reader.row()).keys == row.keys  # not due
    reader.clock.advance(15 * 60)
    await ActivityEnvironment().run(reader.activities.refresh_due, 60.0)
    assert [key["kid"] for key in (await reader.row()).keys or ()] == ["two"]


@pytest.mark.parametrize(
    ("path", "answer", "problem"),
    [
        (METADATA, 500, "the issuer's metadata: status 500"),
        (METADATA, {"issuer": "https://elsewhere.example", "jwks_uri": "x"}, "names another issuer"),
        (METADATA, {"jwks_uri": "http://127.0.0.1:1/keys"}, "names another issuer, or none"),
        (KEYS, 404, "the issuer's keys: status 404"),
        (KEYS, {"keys": []}, "no usable key"),
        (KEYS, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, "no usable key"),
        (KEYS, ["keys"], "not a JWK set"),
    ],
)
async def test_the_last_good_keys_stay_while_the_issuer_cannot_be_read(
    reader: Reader, path: str, answer: Any, problem: str
):
    await reader.trust()
    await reader.read()
    good = await reader.row()
    reader.theirs.answers[path] = answer
    reader.clock.advance(2 * 3600)
    assert problem in ((await reader.read()).problem or "")
    row = await reader.row()
    assert (row.keys, row.keys_at) == (good.keys, good.keys_at)
    assert problem in (row.keys_problem or "")
    assert row.keys_next_at == reader.clock.now() + timedelta(minutes=5)
    reader.theirs.answers.clear()
    await reader.read()
    assert (await reader.row()).keys_problem is None


async def test_the_metadata_cannot_lead_the_worker_inside(reader: Reader):
    reader.theirs.answers[METADATA] = {"issuer": reader.theirs.url, "jwks_uri": "http://169.254.169.254/keys"}
    await reader.trust()
    assert "169.254.169.254" in ((await reader.read()).problem or "")


async def test_a_bundle_gives_its_keys_for_jwt_svids_alone(reader: Reader):
    published = reader.theirs.published(BUNDLE)
    other = [
        {**published["keys"][0], "kid": kid, "use": use} for kid, use in (("x", "x509-svid"), ("s", "sig"))
    ]
    reader.theirs.answers[BUNDLE] = {**published, "keys": [*other, *published["keys"]]}
    where = reader.theirs.url + BUNDLE
    await reader.trust(IssuerKind.SPIFFE, issuer="spiffe://example.org", jwks_uri=where)
    assert await reader.read() == IssuerKeysResult(keys=1)
    row = await reader.row()
    assert [(key["kid"], key.get("use")) for key in row.keys or ()] == [("one", None)]
    assert row.keys_next_at == reader.clock.now() + timedelta(minutes=10)  # spiffe_refresh_hint
    assert reader.theirs.requests == [BUNDLE]


async def test_a_bundle_gives_its_authorities_for_x509_svids(reader: Reader):
    """Of each one certificate; a bundle without keys for JWT-SVIDs is one too."""
    authority = Authority()
    der = b64encode(AppCertificate.of_pem(authority.pem).der).decode()
    published = reader.theirs.published(BUNDLE)
    both, none, text = ({"use": "x509-svid", "x5c": it} for it in ([der, der], [], "AAAA"))
    one = {"kty": "EC", "use": "x509-svid", "x5c": [der], "x": "mine"}
    reader.theirs.answers[BUNDLE] = {**published, "keys": [both, none, text, one]}
    where = reader.theirs.url + BUNDLE
    await reader.trust(IssuerKind.SPIFFE, issuer="spiffe://example.org", jwks_uri=where)
    assert await reader.read() == IssuerKeysResult(keys=1)
    row, now = await reader.row(), reader.clock.now()
    assert row.keys == ({"use": "x509-svid", "x5c": [der]},)
    assert row.usable_authorities(now) == (der,)
    assert row.usable_authorities(now + timedelta(hours=25)) is None


async def test_keys_that_were_put_in_by_hand_are_no_ones(reader: Reader, theirs: WorkloadIssuer):
    """ADR 0025. The next pass goes on with the others, and doesn't make them good."""
    await reader.trust()
    await reader.read()
    mine = [{"kty": "EC", "crv": "P-256", "x": "mine", "y": "mine", "kid": "mine"}]
    async with reader.store.write() as tx:
        await tx.connection.execute(update(TrustedIssuerRow).values(keys=mine))
    reader.clock.advance(2 * 3600)
    await ActivityEnvironment().run(reader.activities.refresh_due, 60.0)
    async with reader.store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN, reader.id):
            await tx.trusted_issuers.get(ACME, reader.id)
