"""How an app proves its identity at the token endpoint: what each method takes and returns.

Each method is one function, listed in `client_credentials.METHODS`.

A method is an `Authenticate`: `await authenticate(tx, request) -> ProvenClient`.

- `tx` is a read transaction: nothing but the store may be awaited in it.
- It raises TokenRefused with `invalid_client` and a text that names the rule which refused. First the rules
  that need no row are judged. What is left has one text, UNPROVEN, for an unknown app, an app without a
  fitting credential and a wrong proof alike: a stranger doesn't learn which apps exist. `claimed` is the app
  that the request names, for the audit record of the refusal.
- `registered` finds the app and its credentials of one method. Rows that were changed by hand are left out.

The endpoint does the rest: a disabled app, `once`, the token with its MAC, its audit record and the metrics.

To add a method: a member of `core.access.AuthenticationMethod`; its parameters in
`api.apps.credential_parameters`; its function; an entry in METHODS.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import poll_until, run_transaction
from evergrant_server.core.access import App, AppCredential, AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, is_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import fetch_issuer_keys_message
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.responses.signing_keys import UnknownKey
from providers.responses.workload_token import WorkloadToken, WorkloadTokenRefused

JWT_BEARER = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"  # RFC 7523 section 2.2
_LONGEST_WAIT_S = 3.0  # of a request, for keys that a worker is reading
UNPROVEN = "No registered credential of this client is proven by the request."


class TokenRefused(Exception):
    """An error of RFC 6749 section 5.2, with a description that quotes nothing of the request.

    `recorded` is for the audit log alone: which rule of which credential refused.
    """

    def __init__(
        self, error: str, description: str, *, claimed: str | None = None, recorded: str | None = None
    ) -> None:
        super().__init__(error)
        self.error = error
        self.description = description
        self.recorded = (recorded or description)[:500]
        self.claimed = AppId(claimed) if claimed is not None and is_id(claimed, "app") else None


def invalid_client(
    description: str, claimed: str | None = None, *, recorded: str | None = None
) -> TokenRefused:
    return TokenRefused("invalid_client", description, claimed=claimed, recorded=recorded)


@dataclass(frozen=True)
class ClientTokenRequest:
    """A token request: each parameter stands in it once and isn't empty (RFC 6749 section 3.2)."""

    api: ApiContext
    http: Request
    parameters: Mapping[str, str]
    now: datetime

    @property
    def issuer(self) -> str:
        """The `aud` of every assertion."""
        return self.api.settings.public_url


@dataclass(frozen=True)
class ProvenClient:
    """An app whose identity is proven, and what its token is limited by.

    `expires_at` is the end of what proved it, where the token must end with that. `confirmation` becomes the
    token's `cnf`. `once` is an assertion's `jti`, with its end, when it counts once.
    """

    app: App
    credential: AppCredential
    expires_at: datetime | None = None
    confirmation: dict[str, str] | None = None
    once: tuple[str, datetime] | None = None


Authenticate = Callable[[Transaction, ClientTokenRequest], Awaitable[ProvenClient]]


async def registered(
    tx: Transaction, app_id: str, *methods: AuthenticationMethod
) -> tuple[App, list[AppCredential]] | None:
    """The app with this id in whichever tenant and its credentials of `methods`; None for an unknown app.

    A credential that was changed by hand is left out, with an alarm. Raises Failure AUTHORITY_BROKEN for an
    app that was.
    """
    app = await tx.credentials.app(AppId(app_id))
    if app is None:
        return None
    good, broken = await tx.credentials.authentic_of_app(app.tenant, app.id)
    for failure in broken:
        report_broken_authority(failure)
    return app, [credential for credential in good if credential.method in methods]


# --- keys of trusted issuers --------------------------------------------------------------------


class KeysNeeded(TokenRefused):
    """The issuer publishes no key of the token, or none that can be used: a worker reads its newest ones."""

    def __init__(self, issuer: TrustedIssuer, why: str, claimed: AppId) -> None:
        super().__init__("invalid_client", UNPROVEN, claimed=claimed, recorded=why)
        self.issuer = issuer


def require_signature(
    token: WorkloadToken,
    issuer: TrustedIssuer,
    now: datetime,
    app: App,
    refused: Callable[[str], TokenRefused],
) -> None:
    """Verify a token for this app by its issuer's keys. Raises KeysNeeded, and what `refused` makes."""
    keys = issuer.usable_keys(now)
    if keys is None:
        raise KeysNeeded(issuer, f"the keys of {issuer.name} can't be used", app.id)
    try:
        token.verify(keys)
    except UnknownKey:
        raise KeysNeeded(issuer, f"{issuer.name} doesn't publish the token's key", app.id) from None
    except WorkloadTokenRefused as problem:
        raise refused(str(problem)) from None


async def read_keys(api: ApiContext, needed: KeysNeeded, context: RequestContext) -> None:
    """Have a worker read the issuer's keys, once in five minutes, and wait for it a few seconds.

    Raises Failure PROVIDER_UNREACHABLE when no keys can be used afterwards.
    """
    tenant, id = needed.issuer.tenant, needed.issuer.id

    async def request(tx: Transaction) -> None:
        current, now = await tx.trusted_issuers.get(tenant, id), api.clock.now()
        if current is not None and current.may_request_keys(now):
            requested = current.__replace__(keys_requested_at=now)
            await tx.trusted_issuers.put(requested, expected=current.revision)
            await tx.outbox.add(fetch_issuer_keys_message(current, context, now))

    if needed.issuer.may_request_keys(api.clock.now()):
        await run_transaction(api.store, request)
        api.relay.notify()

    async def read() -> TrustedIssuer | None:
        async with api.store.read() as tx:
            return await tx.trusted_issuers.get(tenant, id)

    def has_ended(issuer: TrustedIssuer | None) -> bool:
        return issuer is None or not issuer.is_being_read(api.clock.now())

    issuer = await poll_until(read, has_ended, _LONGEST_WAIT_S)
    if issuer is not None and issuer.usable_keys(api.clock.now()) is None:
        why = "The keys of the token's issuer can't be read now."
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why, retry_after=10.0)
