"""Pushed authorization requests (RFC 9126): a worker pushes, the connect page waits (ADR 0016)."""

from datetime import datetime

from evergrant_server.api.parts import Parts
from evergrant_server.api.watching import watched
from evergrant_server.core.access import Endpoints
from evergrant_server.core.consent import Consent
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.message import Asked
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, written
from evergrant_server.core.pushing import PushedRequest, PushRequest, push_workflow_id
from providers.pushing import must_push
from providers.spec import ProviderSpec

_WAIT_S = 12.0
_SAYS_NOTHING = (  # about the request: where pushing is a choice, the browser carries it instead
    Code.PROVIDER_UNREACHABLE,
    Code.PROVIDER_ERROR,
    Code.PROVIDER_RATE_LIMITED,
    Code.REPLY_UNREADABLE,
)


def push_order(consent: Consent, asked: Asked, now: datetime) -> OutboxMessage:
    """Have a worker push what this consent holds."""
    order = PushRequest(
        tenant=consent.tenant,
        connection_id=consent.connection_id,
        consent_id=consent.id,
        revision=consent.revision,
        asked=asked,
    )
    return written(consent.tenant, OutboxKind.PUSH_REQUEST, push_workflow_id(order), order, now)


async def reference_of(
    parts: Parts, consent: Consent, spec: ProviderSpec, endpoints: Endpoints
) -> str | None:
    """The `request_uri` that a worker got; None where the browser may carry the request itself.

    Raises the Failure of a refusal; any failure where the provider takes pushed requests alone; and
    CALLBACK_INVALID when a later click has taken this one's place.
    """
    outcome = await _settled(parts, consent)
    if outcome.request_uri is not None and outcome.expires_at is not None:
        if parts.clock.now() < outcome.expires_at:
            return outcome.request_uri
        outcome = PushedRequest(failure=_late("its answer came too late to be used"))
    failure = outcome.failure or _late("no worker has pushed it yet")
    if must_push(spec, endpoints) or failure.code not in _SAYS_NOTHING:
        raise failure
    return None


async def _settled(parts: Parts, consent: Consent) -> PushedRequest:
    """What came of it; unsettled after a while."""

    async def look() -> PushedRequest:
        async with parts.store.read() as tx:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is None or current.state_hash != consent.state_hash:
                raise Failure(Code.CALLBACK_INVALID, "This page was sent twice; the other one goes on.")
            return await tx.consents.request(current)

    return await watched(look, lambda outcome: outcome.settled, _WAIT_S)


def _late(why: str) -> Failure:
    return Failure(Code.PROVIDER_UNREACHABLE, f"The request could not be prepared: {why}. Try again.")
