"""A login's code exchanged at the tenant's issuer, and who logged in (OpenID Connect Core 1.0 section 3.1.3).

No token of it is kept. A lost reply costs another login, so the protocol for single-use credentials isn't
needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from activities.grants.client_secrets import is_client_refused
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress
from providers.events.keys import fetch_keys
from providers.requests.login import fetch_claims, verified_claims
from providers.requests.request_format import ProviderAccess, code_exchange_request
from providers.requests.sender import Sender
from providers.responses.signing_keys import UnknownKey
from providers.responses.token_response import read_tokens

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


TOO_LATE = "The issuer no longer accepts this login, which may have taken too long: log in again."


@dataclass(frozen=True)
class LoginCode:
    """What came back from the issuer, and what was sent there before."""

    issuer: Sequence[ProviderAccess]  # with each client secret
    code: Secret
    verifier: Secret
    redirect_uri: str
    nonce_hash: str


class IssuerLogin:
    """Exchanges codes of logins."""

    def __init__(self, sender: Sender, egress: Egress, clock: Clock) -> None:
        self._sender = sender
        self._egress = egress
        self._keys = IssuerKeys(egress, clock)

    async def claims(self, login: LoginCode, wanted: tuple[str, ...]) -> dict[str, Any]:
        """Who logged in: the id token's claims. If it lacks the first of `wanted`, with those of the UserInfo
        endpoint (section 5.3).

        Raises the Failure of the issuer's reply, ID_TOKEN_REFUSED.
        """
        access, tokens = await self._exchange(login)
        if tokens.id_token is None:
            raise Failure(ErrorCode.ID_TOKEN_REFUSED, "The issuer sent no id token.")
        claims = await self._keys.claims(access, tokens.id_token, login.nonce_hash)
        userinfo = access.endpoints.userinfo_endpoint
        if wanted and wanted[0] not in claims and userinfo is not None:
            claims |= await fetch_claims(self._egress, userinfo, tokens.access_token, claims["sub"], wanted)
        return claims

    async def _exchange(self, login: LoginCode) -> tuple[ProviderAccess, TokenSet]:
        """With the other client secret after a refusal, which spends no code (RFC 6749 section 3.2.1)."""
        code, verifier, redirect_uri = login.code, login.verifier, login.redirect_uri
        for number, access in enumerate(login.issuer, 1):
            request = code_exchange_request(access, code=code, verifier=verifier, redirect_uri=redirect_uri)
            reply = await self._sender.send(access, request)
            try:
                return access, read_tokens(access.spec, reply, requested_scopes=(), refreshing=False)
            except Failure as failure:
                if number == len(login.issuer) or not is_client_refused(failure):
                    raise
        raise AssertionError("an integration has a client")
