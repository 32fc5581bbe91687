"""What a worker does while the connect page waits (ADR 0016): it pushes the authorization request
(RFC 9126), or requests temporary credentials (OAuth 1.0a, RFC 5849 section 2)."""

from datetime import datetime

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import poll_until
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.connections.consent import Consent, PushedAuthorization, reference_of
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import PushAuthorizationRequest, RequestTemporaryCredentials
from evergrant_server.core.messages.names import pushed_authorization_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.store import Transaction
from providers.oauth1.flow import oauth1_authorization_url, oauth1_endpoints
from providers.requests.par import requires_par

PREPARE_TIMEOUT_S = 30.0  # the subject waits; the request to the provider has a shorter limit
_PUSH_WAIT_S = 12.0
_FALLBACK_CODES = (  # not about the request: the browser can carry it unless pushing is required
    ErrorCode.PROVIDER_UNREACHABLE,
    ErrorCode.PROVIDER_ERROR,
    ErrorCode.PROVIDER_RATE_LIMITED,
    ErrorCode.REPLY_UNREADABLE,
)


def push_message(consent: Consent, context: RequestContext, now: datetime) -> OutboxMessage:
    """Have a worker push the consent's authorization request."""
    order = PushAuthorizationRequest(
        tenant=consent.tenant,
        connection_id=consent.connection_id,
        consent_id=consent.id,
        revision=consent.revision,
        context=context,
    )
    target = pushed_authorization_workflow_id(consent.tenant, consent.id, consent.revision)
    return outbox_message(consent.tenant, OutboxKind.PUSH_AUTHORIZATION_REQUEST, target, order, now)


async def wait_for_request_uri(api: ApiContext, session: ConsentSession, endpoints: Endpoints) -> str | None:
    """The `request_uri` of the pushed request; None if the browser may carry the request instead.

    Raises the Failure of a refused request, of any failure if the provider requires PAR, and
    CALLBACK_INVALID when a later click has replaced this attempt.
    """
    outcome = await _wait_for_push(api, session.consent)
    if outcome.request_uri is not None and outcome.expires_at is not None:
        if api.clock.now() < outcome.expires_at:
            return outcome.request_uri
        outcome = PushedAuthorization.failed(_push_timed_out("the provider's answer arrived too late"))
    failure = outcome.failure or _push_timed_out("no worker has pushed it yet")
    if requires_par(session.spec, endpoints) or failure.code not in _FALLBACK_CODES:
        ours = failure.detail if failure.code is ErrorCode.PROVIDER_UNREACHABLE else ""
        raise Failure(failure.code, ours, reference=reference_of(session.consent.id))
    return None


async def _wait_for_push(api: ApiContext, consent: Consent) -> PushedAuthorization:
    """The outcome of the push; unsettled after `_PUSH_WAIT_S`."""

    async def look() -> PushedAuthorization:
        async with api.store.read() as tx:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is None or current.state_hash != consent.state_hash:
                why = "This form was sent twice; continue in the other page."
                raise Failure(ErrorCode.CALLBACK_INVALID, why)
            return await tx.consents.pushed_request(current)

    return await poll_until(look, lambda outcome: outcome.is_answered, _PUSH_WAIT_S)


def _push_timed_out(why: str) -> Failure:
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"The request could not be prepared: {why}. Try again.")


async def save_oauth1_attempt(tx: Transaction, session: ConsentSession) -> Consent:
    """Store the attempt. Its state is the temporary token, which a worker will request."""
    consent, there = session.consent, oauth1_endpoints(session.spec, session.integration)
    return await tx.consents.replace(
        consent.__replace__(issuer=None, token_endpoint=there.token, state_hash=None),
        expected=consent.revision,
    )


async def oauth1_redirect_url(pages: SubjectPages, session: ConsentSession) -> str:
    """The provider's authorization URL. Raises the Failure of the request for temporary credentials."""
    api, consent = pages.api, session.consent
    order = RequestTemporaryCredentials(
        tenant=consent.tenant, consent_id=consent.id, revision=consent.revision, context=pages.context
    )
    prepared = await api.link.prepare_consent(order, timeout=PREPARE_TIMEOUT_S)
    if prepared.failure is not None:
        raise Failure(prepared.failure, prepared.detail, retry_after=prepared.retry_after)
    async with api.store.read() as tx:
        newest = await tx.consents.get(consent.tenant, consent.id)
        if newest is None or newest.revision != consent.revision + 1:
            raise Failure(ErrorCode.STORE_CONFLICT, "The consent was started again.")
        temporary = TokenPair.from_secret(await tx.consents.verifier(newest))
    return oauth1_authorization_url(session.spec, session.integration, temporary, newest.scopes)
