"""The grant `urn:ietf:params:oauth:grant-type:token-exchange`: an app acts for a person (RFC 8693).

`subject_token` is a person's token of an issuer that the tenant trusts, or a delegation of Evergrant's as the
parent. That an issuer is trusted is no consent: a delegation rule says which kind of token, for which
audience, and who may act. Nothing is read twice: the exchange is judged in the transaction that adds its row.
How a use of a delegation is judged isn't here (`access.callers`, policy).
"""

from datetime import UTC, datetime, timedelta

from evergrant_server.access.authentication import read_authority, require_confirmation
from evergrant_server.access.callers import Caller, PresentedCredential
from evergrant_server.access.credentials import DELEGATION_TOKEN
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_authentication import (
    ClientTokenRequest,
    TokenRefused,
    require_signature,
)
from evergrant_server.api.oauth.client_credentials import proven_app
from evergrant_server.api.oauth.delegation import (
    ACCESS_TOKEN,
    Actor,
    Beginning,
    Wanted,
    add_delegation,
    issuer_of,
    judged,
    read_wanted,
)
from evergrant_server.core.access import App, AuthenticationMethod
from evergrant_server.core.agents.delegation_rules import (
    DelegationRule,
    SubjectTokenKind,
    actor_problem,
    person_of,
)
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import AppId, CredentialId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.workloads.rules import lifetime_problem
from evergrant_server.store import Transaction
from providers.responses.workload_token import WorkloadToken, WorkloadTokenRefused, read_workload_token

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
_KINDS = {_ID_TOKEN: SubjectTokenKind.ID_TOKEN, ACCESS_TOKEN: SubjectTokenKind.ACCESS_TOKEN}
_LONGEST_JTI = 255
_SECOND = timedelta(seconds=1)


class ExchangeView(View):
    """RFC 8693 section 2.2.1. `scope` is left out where the delegation bounds none; `delegation_id` is what
    `GET /v1/delegations/{id}` knows it by, `session_id` the root of its tree."""

    access_token: str
    issued_token_type: str = ACCESS_TOKEN
    token_type: str = "Bearer"
    expires_in: int
    scope: str | None = None
    delegation_id: str
    session_id: str


async def issue(request: ClientTokenRequest) -> ExchangeView:
    """The delegation that the exchange begins. Raises TokenRefused, Failure RATE_LIMITED,
    PROVIDER_UNREACHABLE."""
    kind, token = (request.parameters.get(name) for name in ("subject_token_type", "subject_token"))
    if token is None or kind not in _KINDS:
        why = f"subject_token and subject_token_type are needed, the latter one of: {', '.join(_KINDS)}."
        raise TokenRefused("invalid_request", why)
    wanted = read_wanted(request.parameters, request.api.settings)
    actor = await _acting_app(request)
    made, text = await _exchanged(request, actor, wanted)
    request.api.ledger.note_use(made.tenant, made.key_id)
    scopes = made.reach.scopes
    return ExchangeView(
        access_token=text,
        expires_in=(made.expires_at - made.created_at) // _SECOND,
        scope=None if scopes is None else " ".join(scopes),
        delegation_id=made.id,
        session_id=made.root_id,
    )


async def _exchanged(request: ClientTokenRequest, actor: Actor, wanted: Wanted) -> tuple[Delegation, str]:
    async def add(tx: Transaction, context: RequestContext) -> tuple[Delegation, str]:
        if request.parameters["subject_token"].startswith(DELEGATION_TOKEN):
            beginning = await _parent(tx, request, actor)
        else:
            beginning = await _person_behind(tx, request, actor.app)
        may_act = await _may_act(tx, wanted, actor)
        ends = request.now + wanted.lifetime
        return await add_delegation(
            tx, request, actor, beginning, wanted.reach, context, ends=ends, may_act=may_act
        )

    return await judged(request, actor, add, _refused)


async def _parent(tx: Transaction, request: ClientTokenRequest, actor: Actor) -> Beginning:
    """The delegation whose token is the subject's. Only its own app may delegate further, or the one that it
    names (`may_act`, RFC 8693 section 4.4). Raises TokenRefused."""
    app = actor.app
    if request.parameters["subject_token_type"] != ACCESS_TOKEN:
        raise _refused(f"A delegation is a token of the type {ACCESS_TOKEN}.", app)
    try:
        authority = await read_authority(tx, request.parameters["subject_token"], request.now)
        parent = authority.own
        bound = PresentedCredential(parent.key_id, parent.method, parent.expires_at, parent.confirmation)
        require_confirmation(request.http, bound)
    except Failure as failure:
        raise _refused(f"The subject token can't be accepted: {failure.detail}", app) from None
    if parent.tenant != app.tenant:
        raise _refused("The subject token can't be accepted: it is unknown.", app)
    if app.id != (parent.may_act or parent.app_id):
        raise _refused("The delegation is another app's: it may be exchanged by that one alone.", app)
    return Beginning(parent.subject, parent.expires_at, f"delegation:{parent.id}", parent=authority)


async def _may_act(tx: Transaction, wanted: Wanted, actor: Actor) -> AppId | None:
    if wanted.may_act is None:
        return None
    named = await tx.access.app_by_name(actor.app.tenant, wanted.may_act)
    if named is None or named.id == actor.app.id:
        raise TokenRefused("invalid_request", "may_act must name another app.", claimed=actor.app.id)
    return named.id


async def _acting_app(request: ClientTokenRequest) -> Actor:
    """The authenticated client, or the app whose API key or token is the `actor_token`.

    With both proofs they must be of one app. Raises TokenRefused, Failure RATE_LIMITED.
    """
    token, kind = (request.parameters.get(name) for name in ("actor_token", "actor_token_type"))
    if (token is None) != (kind is None):
        raise TokenRefused("invalid_request", "actor_token and actor_token_type go together.")
    if token is None or "client_assertion" in request.parameters:
        client = await proven_app(request)
        if token is not None and (await _caller_of(request, token, kind)).app.id != client.app.id:
            raise TokenRefused("invalid_request", "actor_token is of another app.", claimed=client.app.id)
        return Actor.of(client)
    caller = await _caller_of(request, token, kind)
    await request.api.limits.count_token(request.http.scope, caller.app)
    return await _actor_of(request, caller)


async def _caller_of(request: ClientTokenRequest, token: str, kind: str | None) -> Caller:
    if kind != ACCESS_TOKEN:
        raise TokenRefused("invalid_request", f"actor_token_type must be {ACCESS_TOKEN}.")
    try:
        caller = await request.api.authenticator.caller_of(token)
        require_confirmation(request.http, caller.credential)
    except Failure as failure:
        raise TokenRefused("invalid_request", f"actor_token: {failure.detail}") from None
    if caller.delegated is not None:
        why = "actor_token must be the app's own API key or token: a delegation proves no actor."
        raise TokenRefused("invalid_request", why, claimed=caller.app.id)
    return caller


async def _actor_of(request: ClientTokenRequest, caller: Caller) -> Actor:
    """The actor of an actor token. If that is bound to a certificate, the delegation ends with it too."""
    presented, revision = caller.credential, None
    confirmation = None if presented.confirmation is None else dict(presented.confirmation)
    if presented.method is not AuthenticationMethod.API_KEY:
        async with request.api.store.read() as tx:
            credential = await tx.credentials.get(caller.tenant, CredentialId(presented.id))
        if credential is None:
            raise TokenRefused("invalid_request", "actor_token: its credential was deleted.")
        revision = credential.revision
    ends = None if confirmation is None else presented.valid_until
    return Actor(caller.app, presented.id, presented.method, revision, confirmation, ends)


# --- a person's token: which rule of the tenant accepts it for this app, and whose it is ---------


async def _person_behind(tx: Transaction, request: ClientTokenRequest, app: App) -> Beginning:
    """The person of `subject_token`, whom this app may act for. A token with a `jti` counts once.

    Raises TokenRefused, KeysNeeded.
    """
    kind = _KINDS[request.parameters["subject_token_type"]]
    token = _read(request.parameters["subject_token"], kind, app)
    if problem := lifetime_problem(token.claims, request.now):
        raise _refused(_unacceptable(problem), app)
    rules = [
        rule
        for rule in await tx.delegation_rules.all(app.tenant)
        if rule.accepts(rule.issuer_id, kind, token.claims)
    ]
    issuer = await issuer_of(tx, app, token, {rule.issuer_id for rule in rules})
    if issuer is None:
        raise _refused("No delegation rule of the tenant is about such a token.", app)
    require_signature(token, issuer, request.now, app, lambda why: _refused(_unacceptable(why), app))
    wrong: list[str] = []
    for stored in (rule for rule in rules if rule.issuer_id == issuer.id):
        rule = await tx.delegation_rules.get(stored.tenant, stored.id)  # with its authenticator
        assert rule is not None
        problem = actor_problem(rule, token.claims, app.id, issuer=issuer.issuer, ours=request.issuer)
        if problem is None:
            return await _begun(tx, token, rule, app)
        wrong.append(f"{rule.name}: {problem}")
    raise _refused("No delegation rule lets this app act for the person.", app, "; ".join(wrong))


async def _begun(tx: Transaction, token: WorkloadToken, rule: DelegationRule, app: App) -> Beginning:
    subject, jti = person_of(rule, token.claims), token.claims.get("jti")
    if subject is None:
        raise _refused("The subject token names no person that the rule accepts.", app, rule.name)
    ends = datetime.fromtimestamp(float(token.claims["exp"]), UTC)
    if jti is not None:
        if not isinstance(jti, str) or not 0 < len(jti) <= _LONGEST_JTI:
            raise _refused("The subject token's jti can't be remembered.", app)
        if not await tx.delegations.use_subject_token(rule.tenant, rule.issuer_id, jti, ends):
            raise _refused("The subject token was exchanged before: its jti counts once.", app)
    return Beginning(subject, ends, f"rule:{rule.name}", rule)


def _read(text: str, kind: SubjectTokenKind, app: App) -> WorkloadToken:
    try:
        token = read_workload_token(text)
    except WorkloadTokenRefused as problem:
        raise _refused(_unacceptable(problem), app) from None
    typ = str(token.header.get("typ", "")).lower()
    if kind is SubjectTokenKind.ID_TOKEN and typ.endswith("at+jwt"):  # RFC 9068 section 2.1
        raise _refused("The subject token is an access token, not an id token.", app)
    if "events" in token.claims:  # OpenID Connect Back-Channel Logout 1.0 section 2.4
        raise _refused("The subject token is a logout token.", app)
    return token


def _unacceptable(problem: object) -> str:
    return f"The subject token can't be accepted: {problem}."


def _refused(why: str, app: App, recorded: str | None = None) -> TokenRefused:
    """A subject token that isn't valid, for any reason (RFC 8693 section 2.2.2)."""
    return TokenRefused("invalid_request", why, claimed=app.id, recorded=recorded and f"{why} {recorded}")
