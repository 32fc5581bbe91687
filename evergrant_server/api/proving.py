"""Proofs for apps: one request's worth of the key that a connection's tokens are bound to (RFC 9449).

An app that may lease the token may have its proofs. The key never leaves, and no proof is made for an
endpoint of the provider's own authorization server (ADR 0017).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import normpath
from urllib.parse import unquote, urlsplit

from evergrant_server.api.definitions import spec_of
from evergrant_server.api.parts import Parts
from evergrant_server.core.access import Endpoints
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.proof import DPOP
from evergrant_server.store import LeaseRow
from providers.authorization import endpoints_for
from providers.proofs import origin_of, proof, target_of


@dataclass(frozen=True)
class ProofWanted:
    """For which request, as the app says it."""

    method: str
    url: str
    nonce: str | None = None

    @property
    def target(self) -> str:
        return target_of(self.url)


class Proving:
    """Checks and makes proofs. What may be leased is for `Leasing` to say."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def check(self, row: LeaseRow, wanted: ProofWanted) -> None:
        """Raise Failure INVALID_REQUEST for a token that isn't bound, and for a request that no app makes."""
        if row.grant is None or row.grant.token_type != DPOP:
            raise Failure(Code.INVALID_REQUEST, "Its tokens are not bound to a key.", field="connection_id")
        async with self._parts.store.read() as tx:
            integration = await tx.integrations.get(row.tenant, row.integration_id)
            if integration is None:
                raise Failure(Code.NOT_FOUND)
            spec = await spec_of(tx, self._parts.registry, integration)
        endpoints = endpoints_for(spec, integration, row.grant.metadata)
        if place_of(wanted.target) in {place_of(url) for url in _urls(endpoints)}:
            detail = "No proof is made for an endpoint of the provider's authorization server."
            raise Failure(Code.INVALID_REQUEST, detail, field="htu")

    async def made(self, row: LeaseRow, wanted: ProofWanted) -> str:
        """The proof, with the hash of the token that the row holds. Its record is committed by now.

        Raises Failure CONSENT_REQUIRED when the grant is gone, SEAL_BROKEN, KEY_UNAVAILABLE.
        """
        async with self._parts.store.read() as tx:
            key = await tx.proof_keys.get(row.tenant, row.connection_id)
        if key is None:
            raise Failure(Code.CONSENT_REQUIRED, f"{row.connection_id} holds no proof key.")
        return proof(
            key,
            wanted.method,
            wanted.target,
            self._parts.clock.now(),
            nonce=wanted.nonce,
            access_token=row.open(self._parts.ring),
        )


def _urls(endpoints: Endpoints) -> Iterator[str]:
    yield from endpoints.mtls_aliases.values()
    for name, value in endpoints:
        if name.endswith("_endpoint") and isinstance(value, str):
            yield value


def place_of(url: str) -> tuple[str, str, str]:
    """Host, port and path, as loosely as any server may compare them."""
    parts, port = urlsplit(url), origin_of(url).rpartition(":")[2]
    path = normpath("/" + unquote(unquote(parts.path)).lstrip("/"))
    return (parts.hostname or "").rstrip("."), port, path.casefold()
