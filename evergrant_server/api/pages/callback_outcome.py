"""Stores the outcome of a callback, and waits for the worker that exchanges the code."""

import logging
from contextlib import suppress
from dataclasses import replace

from evergrant_server.api.connections.consents import signal_granted
from evergrant_server.api.http.transactions import poll_until, signal_connection
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import ConsentDenied
from evergrant_server.core.messages.names import SignalName
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.callback import Callback

log = logging.getLogger("evergrant.api")

WAIT_S = 15.0
_CLIENT_ERRORS = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope"}
)
_ACTIONS = {
    ConsentStatus.CODE_RECEIVED: AuditAction.CONSENT_GRANTED,
    ConsentStatus.DENIED: AuditAction.CONSENT_DENIED,
    ConsentStatus.FAILED: AuditAction.CONSENT_FAILED,
}


async def connect_path(pages: SubjectPages, session: ConsentSession) -> str:
    """The path of the connect page: it shows the outcome without a code in the address bar."""
    async with pages.api.store.read() as tx:
        link = await tx.consents.connect_link(session.consent)
    return f"/connect/{link.reveal()}"


async def save_outcome(pages: SubjectPages, session: ConsentSession, callback: Callback) -> ConsentSession:
    """Write consent, outbox message and audit record. Compare-and-set: one of parallel callbacks wins."""
    status, failure = _outcome(callback)
    changes: dict[str, object] = {"status": status, "failure": failure}
    if callback.tokens is not None:
        changes |= {"kind": ConsentKind.IMPORT, "granted_scopes": callback.scopes}
    async with pages.api.store.write() as tx:
        consent = await tx.consents.replace(
            session.consent.model_copy(update=changes),
            expected=session.consent.revision,
            code=callback.code,
            tokens=callback.tokens,
        )
        connection, now = session.connection, pages.now
        if status is ConsentStatus.CODE_RECEIVED:
            await signal_granted(tx, connection, consent, pages.context, now)
        elif status is ConsentStatus.DENIED:
            denied = ConsentDenied(consent_id=consent.id, context=pages.context)
            await signal_connection(tx, connection, SignalName.CONSENT_DENIED, denied, now)
        detail = {"error": callback.error} if callback.error else {}
        action = _ACTIONS[status]
        await pages.record(tx, action, consent.tenant, connection.id, consent_id=consent.id, **detail)
    return replace(session, consent=consent)


def _outcome(callback: Callback) -> tuple[ConsentStatus, ErrorCode | None]:
    if callback.denied:
        return ConsentStatus.DENIED, ErrorCode.CONSENT_DENIED
    if callback.code is not None or callback.tokens is not None:
        return ConsentStatus.CODE_RECEIVED, None
    is_client_error = callback.error in _CLIENT_ERRORS
    return ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED if is_client_error else ErrorCode.PROVIDER_ERROR


async def wait_for_grant(pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """Wait up to WAIT_S for the worker to end the consent and look up the accounts."""
    pages.api.relay.notify()

    async def look() -> ConsentSession:
        async with pages.api.store.read() as tx:
            consent = await tx.consents.get(session.consent.tenant, session.consent.id)
            connection = await tx.connections.get(session.connection.tenant, session.connection.id)
        return replace(
            session, consent=consent or session.consent, connection=connection or session.connection
        )

    def has_ended(seen: ConsentSession) -> bool:
        exchanging = seen.consent.status is ConsentStatus.CODE_RECEIVED
        return not exchanging and seen.connection.follow_up is not FollowUp.LOOKING_UP

    return session if has_ended(session) else await poll_until(look, has_ended, WAIT_S)


async def record_refusal(
    pages: SubjectPages, consent: Consent | None, failure: Failure, *, end: bool = False
) -> None:
    """Record the refusal of a callback whose state is that of `consent`; with `end`, also end its attempt.

    Without a consent the caller is unknown: the refusal is counted and logged, and leaves no audit record.
    """
    if consent is None:
        metrics.count(metrics.CALLBACKS_REFUSED, "unknown_state")
        log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "no consent has its state", code=failure.code)
        return
    metrics.count(metrics.CALLBACKS_REFUSED, failure.code)
    detail = {"code": failure.code.value, "message": failure.detail}
    with suppress(Failure):  # refuse also when the record can't be written
        async with pages.api.store.write() as tx:
            object_id: str = consent.integration_id
            if end:
                object_id = consent.connection_id
                ended = {"status": ConsentStatus.FAILED, "failure": failure.code}
                await tx.consents.replace(consent.model_copy(update=ended), expected=consent.revision)
            await pages.record(tx, AuditAction.CALLBACK_REFUSED, consent.tenant, object_id, **detail)
