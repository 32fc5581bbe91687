"""Tokens of people: which rule of the tenant accepts one for this app, and whose it is.

Keys are those of the tenant's trusted issuers. That one is trusted is no consent: a rule says which kind of
token, for which audience, and who may act.
"""

from collections.abc import Callable
from datetime import UTC, datetime

from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.exchange.issuing import Beginning
from evergrant_server.api.oauth.exchange.wanted import ACCESS_TOKEN
from evergrant_server.api.oauth.workload_identity import KeysNeeded
from evergrant_server.core.access import App
from evergrant_server.core.agents.delegation_rules import (
    DelegationRule,
    SubjectTokenKind,
    actor_problem,
    person_of,
)
from evergrant_server.core.ids import TrustedIssuerId
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.core.workloads.rules import lifetime_problem
from evergrant_server.store import Transaction
from providers.responses.signing_keys import UnknownKey
from providers.responses.workload_token import WorkloadToken, WorkloadTokenRefused, read_workload_token

ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
KINDS = {ID_TOKEN: SubjectTokenKind.ID_TOKEN, ACCESS_TOKEN: SubjectTokenKind.ACCESS_TOKEN}
_LONGEST_JTI = 255


async def person_behind(tx: Transaction, request: ClientTokenRequest, app: App) -> Beginning:
    """The person of `subject_token`, whom this app may act for. A token with a `jti` counts once.

    Raises TokenRefused, KeysNeeded.
    """
    kind = KINDS[request.parameters["subject_token_type"]]
    token = _read(request.parameters["subject_token"], kind, app)
    if problem := lifetime_problem(token.claims, request.now):
        raise refused(f"The subject token can't be accepted: {problem}.", app)
    rules = [
        it for it in await tx.delegation_rules.all(app.tenant) if it.accepts(it.issuer_id, kind, token.claims)
    ]
    issuer = await issuer_of(tx, app, token, {it.issuer_id for it in rules})
    if issuer is None:
        raise refused("No delegation rule of the tenant is about such a token.", app)
    require_signature(token, issuer, request, app, refused)
    wrong: list[str] = []
    for stored in (it for it in rules if it.issuer_id == issuer.id):
        rule = await tx.delegation_rules.get(stored.tenant, stored.id)  # with its authenticator
        assert rule is not None
        problem = actor_problem(rule, token.claims, app.id, issuer=issuer.issuer, ours=request.issuer)
        if problem is None:
            return await _begun(tx, request, token, rule, app)
        wrong.append(f"{rule.name}: {problem}")
    raise refused("No delegation rule lets this app act for the person.", app, "; ".join(wrong))


async def _begun(
    tx: Transaction, request: ClientTokenRequest, token: WorkloadToken, rule: DelegationRule, app: App
) -> Beginning:
    subject, jti = person_of(rule, token.claims), token.claims.get("jti")
    if subject is None:
        raise refused("The subject token names no person that the rule accepts.", app, rule.name)
    ends = datetime.fromtimestamp(float(token.claims["exp"]), UTC)
    if jti is not None:
        if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI:
            raise refused("The subject token's jti can't be remembered.", app)
        if not await tx.delegations.use_subject_token(rule.tenant, rule.issuer_id, jti, ends):
            raise refused("The subject token was exchanged before: its jti counts once.", app)
    return Beginning(subject, ends, f"rule:{rule.name}", rule)


def _read(text: str, kind: SubjectTokenKind, app: App) -> WorkloadToken:
    try:
        token = read_workload_token(text)
    except WorkloadTokenRefused as problem:
        raise refused(f"The subject token can't be accepted: {problem}.", app) from None
    typ = str(token.header.get("typ", "")).lower()
    if kind is SubjectTokenKind.ID_TOKEN and typ.endswith("at+jwt"):  # RFC 9068 section 2.1
        raise refused("The subject token is an access token, not an id token.", app)
    if "events" in token.claims:  # OpenID Connect Back-Channel Logout 1.0 section 2.4
        raise refused("The subject token is a logout token.", app)
    return token


async def issuer_of(
    tx: Transaction, app: App, token: WorkloadToken, ids: set[TrustedIssuerId]
) -> TrustedIssuer | None:
    for id in sorted(ids):
        issuer = await tx.trusted_issuers.get(app.tenant, id)
        if issuer is not None and issuer.issuer == token.claims.get("iss"):
            return issuer
    return None


def require_signature(
    token: WorkloadToken,
    issuer: TrustedIssuer,
    request: ClientTokenRequest,
    app: App,
    refused: Callable[[str, App], TokenRefused],
) -> None:
    """Raises KeysNeeded, and TokenRefused as `refused` makes it."""
    keys = issuer.usable_keys(request.now)
    if keys is None:
        raise KeysNeeded(issuer, f"the keys of {issuer.name} can't be used", app.id)
    try:
        token.verify(keys)
    except UnknownKey:
        raise KeysNeeded(issuer, f"{issuer.name} doesn't publish the token's key", app.id) from None
    except WorkloadTokenRefused as problem:
        raise refused(f"The subject token can't be accepted: {problem}.", app) from None


def refused(why: str, app: App, recorded: str | None = None) -> TokenRefused:
    """A subject token that isn't valid, for any reason (RFC 8693 section 2.2.2)."""
    return TokenRefused("invalid_request", why, claimed=app.id, recorded=recorded and f"{why} {recorded}")
