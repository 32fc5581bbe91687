"""Client assertions (RFC 7521, RFC 7523): `private_key_jwt` and `workload_identity`.

The first is signed with a key that is registered with the app. The second is a token that the app's platform
signed, or a JWT-SVID of a trust domain: the app says its id, since its platform doesn't know it, so
`client_id` is required. Such a token may be used again until it ends: platforms hand out the same one for
minutes, and a JWT-SVID needs no `jti` (draft-ietf-oauth-spiffe-client-auth section 3.1).
"""

from evergrant_server.api.oauth.client_authentication import (
    UNPROVEN,
    ClientTokenRequest,
    ProvenClient,
    TokenRefused,
    invalid_client,
    registered,
    require_signature,
)
from evergrant_server.core.access import AuthenticationMethod
from evergrant_server.core.ids import AppId, Tenant, TrustedIssuerId
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from evergrant_server.core.workloads.rules import WorkloadRule, lifetime_problem, mismatches, token_problem
from evergrant_server.crypto.client_assertions import AssertionRefused, is_signed_by, read_assertion
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import unless_broken
from providers.responses.workload_token import (
    WorkloadToken,
    WorkloadTokenRefused,
    read_workload_token,
    unverified_issuer,
)

JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
_LONGEST_REASON = 500  # characters


async def authenticate(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app whose assertion has its own id as `iss`, or whose platform's has the platform's URL."""
    if _is_of_platform(request.parameters["client_assertion"]):
        return await workload_identity(tx, request)
    return await _private_key_jwt(tx, request)


def _is_of_platform(assertion: str) -> bool:
    """True for a token whose issuer is a URL. Nothing is verified yet."""
    issuer = unverified_issuer(assertion)
    return issuer is not None and "://" in issuer


async def _private_key_jwt(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
    """The app of which a registered key has signed `client_assertion` (RFC 7523 section 2.2)."""
    named = request.parameters.get("client_id")
    try:
        assertion = read_assertion(request.parameters["client_assertion"], request.issuer, request.now)
    except AssertionRefused as refused:
        raise invalid_client(str(refused), named) from None
    if named not in (None, assertion.client_id):
        raise invalid_client("client_id isn't the assertion's sub.", assertion.client_id)
    row = await registered(tx, assertion.client_id, AuthenticationMethod.PRIVATE_KEY_JWT)
    app, credentials = row or (None, [])
    for credential in credentials:
        if app is not None and is_signed_by(assertion, credential.parameters["jwks"]["keys"]):
            return ProvenClient(app, credential, once=(assertion.jti, assertion.expires_at))
    raise invalid_client(UNPROVEN, assertion.client_id)


async def workload_identity(tx: Transaction, request: ClientTokenRequest) -> ProvenClient:
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
    row = await registered(tx, named, AuthenticationMethod.WORKLOAD_IDENTITY)
    if row is None:
        raise invalid_client(UNPROVEN, named)
    app, credentials = row
    rules = {credential.id: WorkloadRule.model_validate(credential.parameters) for credential in credentials}
    svid = request.parameters["client_assertion_type"] == JWT_SPIFFE
    issuer = await _issuer_of(tx, app.tenant, {rule.issuer_id for rule in rules.values()}, token, svid)
    if issuer is None:
        raise _unproven(app.id, "no credential of the app names the token's issuer")
    require_signature(token, issuer, request.now, app, lambda why: _unproven(app.id, why))
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


async def _issuer_of(
    tx: Transaction, tenant: Tenant, ids: set[TrustedIssuerId], token: WorkloadToken, svid: bool
) -> TrustedIssuer | None:
    """The one of these issuers that the token claims to be of. One that was changed by hand is none."""
    sub = token.claims.get("sub")
    parts = sub.split("/") if isinstance(sub, str) else []
    claimed = "/".join(parts[:3]) if svid else token.claims.get("iss")  # spiffe://trust-domain/path
    for id in sorted(ids):
        issuer = await unless_broken(tx.trusted_issuers.get(tenant, id))
        if issuer is not None and issuer.issuer == claimed and (issuer.kind is IssuerKind.SPIFFE) is svid:
            return issuer
    return None


def _unproven(app_id: AppId, why: str) -> TokenRefused:
    return TokenRefused("invalid_client", UNPROVEN, claimed=app_id, recorded=why[:_LONGEST_REASON])
