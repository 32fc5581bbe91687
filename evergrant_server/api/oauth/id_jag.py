"""The grant `jwt-bearer`: an identity provider's grant (ID-JAG) buys a delegation.

draft-ietf-oauth-identity-assertion-authz-grant section 4.4. The client is an app that authenticates itself;
the tenant's delegation rule of the type `id_jag` says that this issuer may grant, to which apps, and how its
people are named. No refresh token comes of it: for the next token the client brings the next grant.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_authentication import (
    ClientTokenRequest,
    ProvenClient,
    TokenRefused,
    require_signature,
)
from evergrant_server.api.oauth.client_credentials import proven_app
from evergrant_server.api.oauth.delegation import (
    Actor,
    Beginning,
    add_delegation,
    issuer_of,
    judged,
    read_wanted,
)
from evergrant_server.core.access import App
from evergrant_server.core.agents.delegation_rules import DelegationRule, SubjectTokenKind, person_of
from evergrant_server.core.agents.delegations import Delegation, Reach
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.workloads.rules import lifetime_problem
from evergrant_server.store import Transaction
from providers.responses.workload_token import WorkloadToken, WorkloadTokenRefused, read_workload_token

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"  # section 7.2
_TYPE = "oauth-id-jag+jwt"
_LIFETIME = timedelta(hours=1)  # so long does a token outlive what the identity provider would say now
_LONGEST_GRANT_S = 3600  # of an ID-JAG, whose jti is remembered so long
_LONGEST_JTI = 255
_SECOND = timedelta(seconds=1)
# claims that narrow or bind a grant in ways that no token here can be narrowed or bound (sections 3.1 and 9)
_NOT_UNDERSTOOD = ("act", "aud_tenant", "authorization_details", "cnf", "may_act", "tenant")


class IdJagView(View):
    """RFC 6749 section 5.1. `scope` and `resource` are left out where the grant bounds none."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: int
    scope: str | None = None
    resource: tuple[str, ...] | None = None
    delegation_id: str
    session_id: str


async def issue(request: ClientTokenRequest) -> IdJagView:
    """The delegation that an ID-JAG buys. Raises TokenRefused, Failure RATE_LIMITED, PROVIDER_UNREACHABLE."""
    assertion = request.parameters.get("assertion")
    if assertion is None:
        raise TokenRefused("invalid_request", "assertion is missing.")
    client = await proven_app(request)
    token = _read(assertion, client.app)
    reach, resources = _reach(request, token.claims, client.app)
    made, text = await _granted(request, client, token, reach)
    request.api.ledger.note_use(made.tenant, made.key_id)
    scopes = made.reach.scopes
    return IdJagView(
        access_token=text,
        expires_in=(made.expires_at - made.created_at) // _SECOND,
        scope=None if scopes is None else " ".join(scopes),
        resource=resources or None,
        delegation_id=made.id,
        session_id=made.root_id,
    )


async def _granted(
    request: ClientTokenRequest, client: ProvenClient, token: WorkloadToken, reach: Reach
) -> tuple[Delegation, str]:
    actor = Actor.of(client)

    async def add(tx: Transaction, context: RequestContext) -> tuple[Delegation, str]:
        beginning = await _person(tx, request, token, client.app)
        return await add_delegation(tx, request, actor, beginning, reach, context)

    return await judged(request, actor, add, _refused)


async def _person(tx: Transaction, request: ClientTokenRequest, token: WorkloadToken, app: App) -> Beginning:
    """Whom the grant is for. Its `jti` is used up. Raises TokenRefused, KeysNeeded."""
    claims = token.claims
    if problem := _claims_problem(claims, request, app):
        raise _refused(problem, app)
    kind = SubjectTokenKind.ID_JAG
    rules = [
        rule
        for rule in await tx.delegation_rules.all(app.tenant)
        if rule.accepts(rule.issuer_id, kind, claims)
    ]
    issuer = await issuer_of(tx, app, token, {rule.issuer_id for rule in rules})
    if issuer is None:
        raise _refused("No delegation rule of the tenant lets its issuer grant access.", app)
    require_signature(
        token,
        issuer,
        request.now,
        app,
        lambda why: _refused(f"The subject token can't be accepted: {why}.", app),
    )
    for stored in (rule for rule in rules if rule.issuer_id == issuer.id and app.id in rule.actors):
        rule = await tx.delegation_rules.get(stored.tenant, stored.id)  # with its authenticator
        assert rule is not None
        return await _begun(tx, request, claims, rule, app)
    raise _refused("No delegation rule lets this app act for people of its issuer.", app)


async def _begun(
    tx: Transaction, request: ClientTokenRequest, claims: Mapping[str, Any], rule: DelegationRule, app: App
) -> Beginning:
    subject = person_of(rule, claims)
    if subject is None:
        raise _refused("It names no person that the rule accepts.", app, rule.name)
    ends = datetime.fromtimestamp(float(claims["exp"]), UTC)
    if not await tx.delegations.use_subject_token(rule.tenant, rule.issuer_id, claims["jti"], ends):
        raise _refused("It was used before: its jti counts once.", app)
    return Beginning(subject, request.now + _LIFETIME, f"id_jag:{rule.name}", rule)


def _claims_problem(claims: Mapping[str, Any], request: ClientTokenRequest, app: App) -> str | None:
    """What the grant lacks of sections 3.1 and 4.4.1 of the draft; None for a good one."""
    if claims.get("aud") not in (request.issuer, [request.issuer]):
        return "aud must be this server's issuer, and nothing else."
    if claims.get("client_id") != app.id:
        return "client_id isn't the client that authenticated."
    if problem := lifetime_problem(claims, request.now):
        return f"It can't be accepted: {problem}."
    if "iat" not in claims or claims["exp"] - claims["iat"] > _LONGEST_GRANT_S:
        return "It must say when it was issued, and end within an hour."
    jti = claims.get("jti")
    if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI:
        return "jti is missing, or can't be remembered."
    unknown = [name for name in _NOT_UNDERSTOOD if name in claims]
    return f"It has {unknown[0]}, by which no token here can be bound." if unknown else None


def _read(assertion: str, app: App) -> WorkloadToken:
    """The parsed assertion, a JWT of the type `oauth-id-jag+jwt` (RFC 8725 section 3.11)."""
    try:
        return read_workload_token(assertion, types=(_TYPE,))
    except WorkloadTokenRefused as problem:
        raise _refused(f"It can't be accepted: {problem}.", app) from None


def _reach(request: ClientTokenRequest, claims: Mapping[str, Any], app: App) -> tuple[Reach, tuple[str, ...]]:
    """What the grant names, and the resources as it names them. The request's `scope` and `resource` may ask
    for less (RFC 7521 section 4.1, RFC 8707 section 2.2)."""
    granted, asked = claims.get("scope"), request.parameters.get("scope")
    if granted is not None and not isinstance(granted, str):
        raise _refused("scope must be a text.", app)
    if granted is not None and asked is not None and not set(asked.split(" ")) <= set(granted.split(" ")):
        raise TokenRefused("invalid_scope", "A scope is beyond the grant's.", claimed=app.id)
    resources, fewer = _resources(claims, app), request.parameters.get("resource", "").split()
    if resources and not set(fewer) <= set(resources):
        raise TokenRefused("invalid_target", "A resource is beyond the grant's.", claimed=app.id)
    resources = tuple(fewer) or resources
    named = {"resource": " ".join(resources), "scope": granted if asked is None else asked}
    reach = read_wanted({name: value for name, value in named.items() if value}, request.api.settings).reach
    return (reach.__replace__(scopes=()) if granted == "" else reach), resources


def _resources(claims: Mapping[str, Any], app: App) -> tuple[str, ...]:
    """One URI or an array of them (RFC 8707 section 2)."""
    if "resource" not in claims:
        return ()
    resource = claims["resource"]
    listed: list[object] = resource if isinstance(resource, list) else [resource]
    named = tuple(uri for uri in listed if isinstance(uri, str) and uri and " " not in uri)
    if not named or len(named) != len(listed):
        raise _refused("resource must be a URI, or an array of URIs.", app)
    return named


def _refused(why: str, app: App, recorded: str | None = None) -> TokenRefused:
    """An assertion that isn't valid, for any reason (RFC 7521 section 4.1.1)."""
    return TokenRefused("invalid_grant", why, claimed=app.id, recorded=recorded and f"{why} {recorded}")
