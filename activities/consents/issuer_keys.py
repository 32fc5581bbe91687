"""The keys of the tenants' issuers, with which the id tokens of logins are checked."""

from datetime import datetime, timedelta
from typing import Any

from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress
from providers.events.keys import fetch_keys
from providers.requests.login import verified_claims
from providers.requests.request_format import ProviderAccess
from providers.responses.signing_keys import UnknownKey

_LAST = timedelta(hours=1)

Keys = tuple[dict[str, Any], ...]


class IssuerKeys:
    """Holds each issuer's keys for an hour; a key that isn't among them has them read again.

    A token comes from the issuer's own token endpoint, so that no stranger can cause such a request.
    """

    def __init__(self, egress: Egress, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock
        self._held: dict[str, tuple[Keys, datetime]] = {}

    async def claims(self, access: ProviderAccess, id_token: Secret, nonce_hash: str) -> dict[str, Any]:
        """The id token's claims, checked. Raises Failure ID_TOKEN_REFUSED, and those of reading the keys."""
        now, url, issuer = self._clock.now(), access.endpoints.jwks_uri, access.endpoints.issuer
        assert url is not None  # by `require_login`
        assert issuer is not None
        expected = {
            "issuer": issuer,
            "client_id": access.client.client_id,
            "nonce_hash": nonce_hash,
            "now": now,
        }
        keys, read_at = self._held.get(url, ((), now))
        try:
            if now - read_at < _LAST:
                return verified_claims(id_token, keys, **expected)
        except UnknownKey:
            pass
        keys = await fetch_keys(self._egress, url, "the issuer")
        self._held[url] = keys, now
        try:
            return verified_claims(id_token, keys, **expected)
        except UnknownKey:
            why = "The id token of the login is signed with a key that its issuer doesn't publish."
            raise Failure(ErrorCode.ID_TOKEN_REFUSED, why) from None
