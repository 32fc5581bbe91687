"""One token exchange: who acts, for whom, and how far (RFC 8693).

`subject_token` is a person's token of an issuer that the tenant trusts, or a delegation of Evergrant's as the
parent. Nothing is read twice: the exchange is judged in the transaction that adds its row.
"""

from datetime import timedelta

from evergrant_server.access.authentication import read_authority, require_confirmation
from evergrant_server.access.callers import PresentedCredential
from evergrant_server.access.credentials import DELEGATION_TOKEN
from evergrant_server.api.http.models import View
from evergrant_server.api.oauth.client_authentication import ClientTokenRequest, TokenRefused
from evergrant_server.api.oauth.exchange.actors import acting_app
from evergrant_server.api.oauth.exchange.issuing import Actor, Beginning, add_delegation
from evergrant_server.api.oauth.exchange.judging import judged
from evergrant_server.api.oauth.exchange.subject_tokens import KINDS, person_behind, refused
from evergrant_server.api.oauth.exchange.wanted import ACCESS_TOKEN, Wanted, read_wanted
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import AppId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
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
    """Raises TokenRefused, Failure RATE_LIMITED, PROVIDER_UNREACHABLE."""
    kind, token = (request.parameters.get(name) for name in ("subject_token_type", "subject_token"))
    if token is None or kind not in KINDS:
        why = f"subject_token and subject_token_type are needed, the latter one of: {', '.join(KINDS)}."
        raise TokenRefused("invalid_request", why)
    wanted = read_wanted(request.parameters, request.api.settings)
    actor = await acting_app(request)
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
            beginning = await person_behind(tx, request, actor.app)
        may_act = await _may_act(tx, wanted, actor)
        now = request.now
        return await add_delegation(
            *(tx, request.api.ring, actor, beginning, wanted.reach, context, now),
            ends=now + wanted.lifetime,
            may_act=may_act,
        )

    return await judged(request, actor, add, refused)


async def _parent(tx: Transaction, request: ClientTokenRequest, actor: Actor) -> Beginning:
    """The delegation whose token is the subject's. Only its own app may delegate further, or the one that it
    names (`may_act`, RFC 8693 section 4.4). Raises TokenRefused."""
    app = actor.app
    if request.parameters["subject_token_type"] != ACCESS_TOKEN:
        raise refused(f"A delegation is a token of the type {ACCESS_TOKEN}.", app)
    try:
        authority = await read_authority(tx, request.parameters["subject_token"], request.now)
        own = authority.own
        bound = PresentedCredential(own.key_id, own.method, own.expires_at, own.confirmation)
        require_confirmation(request.http, bound)
    except Failure as failure:
        raise refused(f"The subject token can't be accepted: {failure.detail}", app) from None
    if own.tenant != app.tenant:
        raise refused("The subject token can't be accepted: it is unknown.", app)
    if app.id != (own.may_act or own.app_id):
        raise refused("The delegation is another app's: it may be exchanged by that one alone.", app)
    return Beginning(own.subject, own.expires_at, f"delegation:{own.id}", parent=authority)


async def _may_act(tx: Transaction, wanted: Wanted, actor: Actor) -> AppId | None:
    if wanted.may_act is None:
        return None
    named = await tx.access.app_by_name(actor.app.tenant, wanted.may_act)
    if named is None or named.id == actor.app.id:
        raise TokenRefused("invalid_request", "may_act must name another app.", claimed=actor.app.id)
    return named.id
