"""Authenticates apps: by API keys, and by tokens of the token endpoint, of clients and of delegations.

Each comes as a bearer token (RFC 6750 section 2.1).
"""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from starlette.requests import Request

from evergrant_server.access.callers import (
    Caller,
    DelegatedAuthority,
    PresentedCredential,
    authority_of,
    standing_app,
)
from evergrant_server.access.credentials import (
    APP_TOKEN,
    CLIENT_TOKEN,
    DELEGATION_TOKEN,
    app_token_mac,
    is_right,
    key_expired,
    key_mac,
    key_revoked,
    parse_app_token,
    parse_delegation_token,
    parse_key,
    parse_text,
    token_ended,
)
from evergrant_server.core.access import App, AppKey, AppToken, AuthenticationMethod, Permit
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessTokenId, AppId, CredentialId, DelegationId, KeyId, Tenant, TokenId
from evergrant_server.core.oauth.authorizations import AccessToken, Authorization, TokenFamily
from evergrant_server.crypto.client_certificates import AppCertificate
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.engine import share_connections
from evergrant_server.telemetry.alarms import report_broken_authority, unless_broken

RESOURCE = "evergrant.resource"  # of the ASGI scope: which resource the request is for
CERTIFICATE = "evergrant.client_certificate"  # of the ASGI scope: the caller's, as the trusted hop read it
THUMBPRINT = "x5t#S256"  # the member of a token's `cnf` (RFC 8705 section 3.1)
# A revision that was put back is that of what is cached: what was cached is read again, ends included.
CACHED_FOR = timedelta(minutes=1)
_MAX_CACHED = 10_000
_UNKNOWN = AppKey(
    tenant=Tenant(""),
    id=KeyId(""),
    app_id=AppId(""),
    secret_hash=secrets.token_hex(32),
    created_at=datetime.min.replace(tzinfo=UTC),
)
_UNKNOWN_TOKEN = AppToken(
    tenant=Tenant(""),
    id=TokenId(""),
    app_id=AppId(""),
    credential_id=CredentialId(KeyId("")),
    credential_revision=0,
    method=AuthenticationMethod.API_KEY,
    secret_hash=secrets.token_hex(32),
    created_at=_UNKNOWN.created_at,
    expires_at=_UNKNOWN.created_at,
)
_UNKNOWN_TEXT = "The access token is malformed or unknown."
_NO_HASH = secrets.token_hex(32)
_NOT_CACHED: tuple[Caller | None, datetime] = (None, datetime.min.replace(tzinfo=UTC))
_Owner = tuple[App, PresentedCredential, list[Permit]]


class Authenticator:
    """Finds the app that owns a key or a token. Caches callers for the lease path."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache = Bounded[bytes, tuple[Caller, datetime]](_MAX_CACHED)  # with the end of their time here
        store.servers.on_failover(self._cache.clear)

    async def authenticate(self, request: Request) -> Caller:
        """Read the key or token, the app and its permits from the store.

        Raises Failure UNAUTHENTICATED, TENANT_DISABLED, APP_DISABLED, AGENT_ENDED or DELEGATION_ENDED.
        """
        resource = request.scope.get(RESOURCE)
        caller = await self.caller_of(_bearer_token(request), resource)
        require_confirmation(request, caller.credential)
        share_connections(caller.tenant, caller.app.id)
        return caller

    async def caller_of(self, text: str, resource: object = None) -> Caller:
        """The caller that a key or token authenticates; a client's token does at its `resource` alone.

        Raises as `authenticate` does.
        """
        if text.startswith(CLIENT_TOKEN):
            return await self._client_of(text, resource)
        if text.startswith(DELEGATION_TOKEN):
            return await self._delegate(text)
        if text.startswith(APP_TOKEN):
            app, credential, permits = await self._token_owner(text)
        else:
            app, credential, permits = await self._key_owner(text)
        if app.disabled:
            raise Failure(ErrorCode.APP_DISABLED)
        if app.is_agent:
            async with self._store.read() as tx:
                await tx.agents.require_active(app, self._clock.now())
        return Caller(app, credential.of(app), tuple(permits), _digest(text))

    async def _key_owner(self, text: str) -> _Owner:
        presented = parse_key(text)
        async with self._store.read() as tx:
            key_and_app = await _key_and_app(tx, presented.id)
            # An unknown key costs the same comparison as a known one.
            right = self._is_right(key_and_app[0] if key_and_app else _UNKNOWN, presented.secret)
            if key_and_app is None or not right:
                raise Failure(ErrorCode.UNAUTHENTICATED)
            key, app = key_and_app
            if key.revoked_at is not None:
                raise key_revoked(key)
            await tx.tenants.require_enabled(app.tenant)
            permits = await tx.access.permits_of(app)
        if key.expires_at is None or not key.is_live(self._clock.now()):
            raise key_expired(key)
        return app, PresentedCredential(key.id, AuthenticationMethod.API_KEY, key.expires_at), permits

    async def _token_owner(self, text: str) -> _Owner:
        presented_token = parse_app_token(text)
        async with self._store.read() as tx:
            token = await unless_broken(tx.tokens.find(presented_token.id)) or _UNKNOWN_TOKEN
            made = app_token_mac(self._store.ring, token, presented_token.secret)
            if not hmac.compare_digest(token.secret_hash, made) or token.id != presented_token.id:
                raise Failure(ErrorCode.UNAUTHENTICATED)
            await tx.tenants.require_enabled(token.tenant)
            app = await tx.access.app(token.tenant, token.app_id)
            credential = await unless_broken(tx.credentials.get(token.tenant, token.credential_id))
            permits = [] if app is None else await tx.access.permits_of(app)
        if app is None or credential is None or credential.revision != token.credential_revision:
            raise token_ended("The access token's credential was replaced or deleted.")
        if self._clock.now() >= token.expires_at:
            raise token_ended("The access token has expired.")
        presented = PresentedCredential(credential.id, token.method, token.expires_at, token.confirmation)
        return app, presented, permits

    async def _client_of(self, text: str, resource: object) -> Caller:
        """The app as which a gateway's client acts."""
        async with self._store.read() as tx:
            resource_token = await read_token(tx, resource, text, self._clock.now())
            permits = await tx.access.permits_of(resource_token.app)
        token, family = resource_token.token, resource_token.family
        ends = min(token.expires_at, family.expires_at)
        presented = PresentedCredential(KeyId(family.id), AuthenticationMethod.RESOURCE_TOKEN, ends)
        credential = presented.of(resource_token.app)
        return Caller(resource_token.app, credential, tuple(permits), _digest(text), authorization=family)

    async def _delegate(self, text: str) -> Caller:
        """The app that acts for a subject by a delegation. Raises Failure DELEGATION_ENDED, too."""
        async with self._store.read() as tx:
            authority = await read_authority(tx, text, self._clock.now())
        delegation, ends = authority.own, authority.valid_until
        if delegation.may_act is not None:
            why = "This token is for another app to exchange (may_act), and for nothing else."
            raise Failure(ErrorCode.UNAUTHENTICATED, why)
        credential = PresentedCredential(delegation.key_id, delegation.method, ends, delegation.confirmation)
        permits = tuple(authority.links[-1].permits)
        return Caller(authority.apps[-1], credential, permits, _digest(text), delegated=authority)

    async def authenticate_cached(self, request: Request) -> tuple[Caller, bool]:
        """The caller, and whether it comes from the cache.

        A cached caller may be out of date: refuse or issue only after the app's revision was
        compared with the store. Raises as `authenticate` does.
        """
        text = _bearer_token(request)
        known, until = self._cache.get(_digest(text), _NOT_CACHED)
        if known is not None and self._clock.now() < until:
            require_confirmation(request, known.credential)
            require_resource(request, known.authorization)
            return known, True
        caller = await self.caller_of(text, request.scope.get(RESOURCE))
        require_confirmation(request, caller.credential)
        self.cache(caller)
        return caller, False

    def cache(self, caller: Caller) -> None:
        until = min(caller.credential.valid_until, self._clock.now() + CACHED_FOR)
        self._cache[caller.digest] = caller, until

    def cached_until(self, caller: Caller) -> datetime | None:
        """Until when the caller is cached; None: it isn't."""
        known, until = self._cache.get(caller.digest, _NOT_CACHED)
        return until if known is caller else None

    def evict(self, caller: Caller) -> None:
        self._cache.pop(caller.digest, None)

    def _is_right(self, key: AppKey, secret: str) -> bool:
        return hmac.compare_digest(key.secret_hash, key_mac(self._store.ring, key, secret))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def _key_and_app(tx: Transaction, key_id: KeyId) -> tuple[AppKey, App] | None:
    """The key and its app, or None. A key that was changed by hand is unknown, with an alarm."""
    try:
        return await tx.access.key(key_id)
    except Failure as failure:
        if failure.context.get("row") != key_id:
            raise
        report_broken_authority(failure)
        return None


class ResourceToken(NamedTuple):
    """An access token that counts, and what it stands for."""

    token: AccessToken
    family: TokenFamily
    app: App


async def read_token(tx: Transaction, request_resource: object, text: str, now: datetime) -> ResourceToken:
    """What an access token stands for at this resource. Raises Failure UNAUTHENTICATED, and those of
    `standing_app`."""
    presented = parse_text(text)
    if presented is None:
        raise Failure(ErrorCode.UNAUTHENTICATED, _UNKNOWN_TEXT)
    token = await unless_broken(tx.oauth_tokens.find(AccessTokenId(presented.id)))
    if token is None or not is_right(tx.sealer.ring, token, presented.secret):
        raise Failure(ErrorCode.UNAUTHENTICATED, _UNKNOWN_TEXT)
    if token.resource != request_resource:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is for another resource.")
    if now >= token.expires_at:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token has expired: refresh it.")
    family = await tx.token_families.get(token.tenant, token.family_id)
    if family is None or family.ended_at is not None or now >= family.expires_at:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token's authorization has ended.")
    return ResourceToken(token, family, await standing_app(tx, family, now))


async def read_authority(tx: Transaction, text: str, now: datetime) -> DelegatedAuthority:
    """The authority behind a token. Raises Failure UNAUTHENTICATED, DELEGATION_ENDED, APP_DISABLED,
    AGENT_ENDED, TENANT_DISABLED. A row that was changed by hand is unknown, with an alarm."""
    presented = parse_delegation_token(text)
    id = DelegationId(presented.id)
    try:
        delegation = await tx.delegations.find(id)
        made = tx.sealer.ring.token_mac(
            "delegation", delegation.tenant if delegation else "", id, presented.secret
        )
        if (
            not hmac.compare_digest(delegation.secret_hash if delegation else _NO_HASH, made)
            or delegation is None
        ):
            raise Failure(ErrorCode.UNAUTHENTICATED)
        await tx.tenants.require_enabled(delegation.tenant)
        return await authority_of(tx, delegation, now)
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        report_broken_authority(failure)
        raise Failure(ErrorCode.UNAUTHENTICATED) from None


def require_confirmation(request: Request, credential: PresentedCredential) -> None:
    """Check that a bound token comes with its certificate (RFC 8705 section 3). Raises Failure."""
    if credential.confirmation is None:
        return
    certificate = client_certificate(request)
    if certificate is None or credential.confirmation != {THUMBPRINT: certificate.thumbprint}:
        raise Failure(ErrorCode.CERTIFICATE_REQUIRED)


def require_resource(request: Request, authorization: Authorization | None) -> None:
    """Check that the request is for the resource that its token is for. Raises Failure UNAUTHENTICATED."""
    if authorization is not None and request.scope.get(RESOURCE) != authorization.resource:
        raise Failure(ErrorCode.UNAUTHENTICATED, "The access token is for another resource.")


def client_certificate(request: Request) -> AppCertificate | None:
    """The certificate of the caller's TLS connection to a trusted proxy, if any."""
    return request.scope.get(CERTIFICATE)


def _bearer_token(request: Request) -> str:
    values = request.headers.getlist("authorization")
    if len(values) != 1:
        came = "more than one came" if values else "none came"
        raise Failure(ErrorCode.UNAUTHENTICATED, f"The request needs one Authorization header, and {came}.")
    scheme, _, credential = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Failure(ErrorCode.UNAUTHENTICATED, "The Authorization header doesn't begin with Bearer.")
    return credential.strip()
