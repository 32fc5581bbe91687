"""Pushed authorization requests (RFC 9126): a worker pushes while the connect page waits (ADR 0016)."""

from datetime import datetime

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.polling import poll_until
from evergrant_server.core.connections.consent import Consent, PushedAuthorization
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext, pushed_authorization_workflow_id
from evergrant_server.core.messages.integrations import PushAuthorizationRequest
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from providers.definition.schema import ProviderSpec
from providers.requests.par import requires_par

_WAIT_S = 12.0
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
    return outbox_message(
        consent.tenant,
        OutboxKind.PUSH_AUTHORIZATION_REQUEST,
        pushed_authorization_workflow_id(consent.tenant, consent.id, consent.revision),
        order,
        now,
    )


async def wait_for_request_uri(
    api: ApiContext, consent: Consent, spec: ProviderSpec, endpoints: Endpoints
) -> str | None:
    """The `request_uri` of the pushed request; None if the browser may carry the request instead.

    Raises the Failure of a refused request, of any failure if the provider requires PAR, and
    CALLBACK_INVALID when a later click has replaced this attempt.
    """
    outcome = await _wait_for_push(api, consent)
    if outcome.request_uri is not None and outcome.expires_at is not None:
        if api.clock.now() < outcome.expires_at:
            return outcome.request_uri
        outcome = PushedAuthorization.failed(_push_timed_out("the provider's answer arrived too late"))
    failure = outcome.failure or _push_timed_out("no worker has pushed it yet")
    if requires_par(spec, endpoints) or failure.code not in _FALLBACK_CODES:
        raise failure
    return None


async def _wait_for_push(api: ApiContext, consent: Consent) -> PushedAuthorization:
    """The outcome of the push; unsettled after `_WAIT_S`."""

    async def look() -> PushedAuthorization:
        async with api.store.read() as tx:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is None or current.state_hash != consent.state_hash:
                raise Failure(
                    ErrorCode.CALLBACK_INVALID, "This form was sent twice; continue in the other page."
                )
            return await tx.consents.pushed_request(current)

    return await poll_until(look, lambda outcome: outcome.is_answered, _WAIT_S)


def _push_timed_out(why: str) -> Failure:
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"The request could not be prepared: {why}. Try again.")
