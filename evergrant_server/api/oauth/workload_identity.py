"""`workload_identity`: a token that the app's platform signed, or a JWT-SVID of a trust domain.

The app says its id, since its platform doesn't know it: `client_id` is required. A token may be used again
until it ends: platforms hand out the same one for minutes, and a JWT-SVID needs no `jti`
(draft-ietf-oauth-spiffe-client-auth section 3.1).
"""

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import poll_until, run_transaction
from evergrant_server.api.oauth.client_authentication import (
    UNPROVEN,
    ClientTokenRequest,
    ProvenClient,
    TokenRefused,
    invalid_client,
    registered,
)
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant, TrustedIssuerId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import fetch_issuer_keys_message
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from evergrant_server.core.workloads.rules import WorkloadRule, lifetime_problem, mismatches, token_problem
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.responses.signing_keys import UnknownKey
from providers.responses.workload_token import (
    WorkloadToken,
    WorkloadTokenRefused,
    read_workload_token,
    unverified_issuer,
)

JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

_LONGEST_WAIT_S = 3.0  # of a request, for keys that a worker is reading
_LONGEST_REASON = 500  # characters


class KeysNeeded(TokenRefused):
    """The token's key isn't among its issuer's, or none of these can be used: a worker may find it."""

    def __init__(self, issuer: TrustedIssuer, why: str, claimed: AppId) -> None:
        super().__init__("invalid_client", UNPROVEN, claimed=claimed, recorded=why)
        self.issuer = issuer


def is_of_platform(assertion: str) -> bool:
    """True for a token whose issuer is a URL. Nothing is verified yet."""
    issuer = unverified_issuer(assertion)
    return issuer is not None and "://" in issuer


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app of which a rule accepts the token in `client_assertion`. Raises TokenRefused, KeysNeeded."""
    named = request.parameters.get("client_id")
    try:
        token = read_workload_token(request.parameters["client_assertion"])
    except WorkloadTokenRefused as refused:
        raise invalid_client(f"The workload's token can't be accepted: {refused}.", named) from None
    if problem := lifetime_problem(token.claims, request.now):
        raise invalid_client(f"The workload's token can't be accepted: {problem}.", named)
    if named is None:
        raise invalid_client("client_id is missing: the workload must name its app's id.")
    found = await registered(tx, named, AuthenticationMethod.WORKLOAD_IDENTITY)
    if found is None:
        raise invalid_client(UNPROVEN, named)
    app, credentials = found
    rules = {it.id: WorkloadRule.model_validate(it.parameters) for it in credentials}
    svid = request.parameters["client_assertion_type"] == JWT_SPIFFE
    issuer = await _issuer_of(tx, app.tenant, {rule.issuer_id for rule in rules.values()}, token, svid)
    if issuer is None:
        raise _unproven(app.id, "no credential of the app names the token's issuer")
    _require_signature(token, issuer, request, app.id)
    if problem := token_problem(issuer, token.header, token.claims):
        raise _unproven(app.id, problem)
    why: list[str] = []
    for credential in credentials:
        rule = rules[credential.id]
        wrong = mismatches(rule, token.claims, request.issuer) if rule.issuer_id == issuer.id else None
        if wrong == []:
            return ProvenClient(app, credential)
        if wrong is not None:
            why.append(f"{credential.name} demands another {', '.join(wrong)}")
    raise _unproven(app.id, "; ".join(why))


def _require_signature(
    token: WorkloadToken, issuer: TrustedIssuer, request: ClientTokenRequest, app_id: AppId
) -> None:
    """Raises TokenRefused, KeysNeeded."""
    keys = issuer.usable_keys(request.now)
    if keys is None:
        raise KeysNeeded(issuer, f"the keys of {issuer.name} can't be used", app_id)
    try:
        token.verify(keys)
    except UnknownKey:
        raise KeysNeeded(issuer, f"{issuer.name} doesn't publish the token's key", app_id) from None
    except WorkloadTokenRefused as refused:
        raise _unproven(app_id, str(refused)) from None


async def read_keys(api: ApiContext, needed: KeysNeeded, context: RequestContext) -> None:
    """Have a worker read the issuer's keys, once in five minutes, and wait for it a few seconds.

    Raises Failure PROVIDER_UNREACHABLE when no keys can be used afterwards.
    """
    tenant, id = needed.issuer.tenant, needed.issuer.id

    async def request(tx: Transaction) -> None:
        current, now = await tx.trusted_issuers.get(tenant, id), api.clock.now()
        if current is not None and current.may_request_keys(now):
            asked = current.__replace__(keys_requested_at=now)
            await tx.trusted_issuers.put(asked, expected=current.revision)
            await tx.outbox.add(fetch_issuer_keys_message(current, context, now))

    if needed.issuer.may_request_keys(api.clock.now()):
        await run_transaction(api.store, request)
        api.relay.notify()

    async def read() -> TrustedIssuer | None:
        async with api.store.read() as tx:
            return await tx.trusted_issuers.get(tenant, id)

    def has_ended(issuer: TrustedIssuer | None) -> bool:
        return issuer is None or not issuer.is_being_read(api.clock.now())

    found = await poll_until(read, has_ended, _LONGEST_WAIT_S)
    if found is not None and found.usable_keys(api.clock.now()) is None:
        why = "The keys of the token's issuer can't be read now."
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why, retry_after=10.0)


async def _issuer_of(
    tx: Transaction, tenant: Tenant, ids: set[TrustedIssuerId], token: WorkloadToken, svid: bool
) -> TrustedIssuer | None:
    """The one of these issuers that the token claims to be of. One that was changed by hand is none."""
    sub = token.claims.get("sub")
    parts = sub.split("/") if isinstance(sub, str) else []
    claimed = "/".join(parts[:3]) if svid else token.claims.get("iss")  # spiffe://trust-domain/path
    for id in sorted(ids):
        try:
            issuer = await tx.trusted_issuers.get(tenant, id)
        except Failure as failure:
            if failure.code is not ErrorCode.AUTHORITY_BROKEN:
                raise
            report_broken_authority(failure)
            continue
        if issuer is not None and issuer.issuer == claimed and (issuer.kind is IssuerKind.SPIFFE) is svid:
            return issuer
    return None


def _unproven(app_id: AppId, why: str) -> TokenRefused:
    return TokenRefused("invalid_client", UNPROVEN, claimed=app_id, recorded=why[:_LONGEST_REASON])
