"""Stores the outcome of a callback, and waits for the worker that exchanges the code."""

import logging
from contextlib import suppress
from dataclasses import replace
from typing import Any

from evergrant_server.access.transactions import signal_connection
from evergrant_server.api.connections.consents import signal_granted, signal_returned, wait_for_exchange
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.confirmation import await_confirm, must_be_confirmed
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus, reference_of
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.connection import ConsentDenied
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.provider_words import ProviderWords
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.callback import Callback

log = logging.getLogger("evergrant.api")

_CLIENT_ERRORS = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope"}
)
_ACTIONS = {
    ConsentStatus.CODE_RECEIVED: AuditAction.CONSENT_GRANTED,
    ConsentStatus.CONFIRMING: AuditAction.CONSENT_RETURNED,
    ConsentStatus.DENIED: AuditAction.CONSENT_DENIED,
    ConsentStatus.FAILED: AuditAction.CONSENT_FAILED,
}


async def connect_path(pages: SubjectPages, session: ConsentSession) -> str:
    """The path of the connect page: it shows the outcome without a code in the address bar."""
    async with pages.api.store.read() as tx:
        link = await tx.consents.connect_link(session.consent)
    return f"/connect/{link.reveal()}"


async def save_outcome(pages: SubjectPages, session: ConsentSession, callback: Callback) -> ConsentSession:
    """Write consent, outbox message and audit record. Compare-and-set: one of parallel callbacks wins.

    A bound consent waits for its confirmation: then the session has the confirm code.
    """
    status, failure = outcome_of(callback)
    consent, confirm_code = session.consent.__replace__(status=status, failure=failure), None
    if callback.tokens is not None:
        consent = consent.__replace__(kind=ConsentKind.IMPORT, granted_scopes=callback.scopes)
    if status is ConsentStatus.CODE_RECEIVED and must_be_confirmed(consent):
        consent, confirm_code = await_confirm(consent, pages.now, session.spec.code_lifetime)
    async with pages.api.store.write() as tx:
        consent = await tx.consents.replace(
            consent, expected=session.consent.revision, code=callback.code, tokens=callback.tokens
        )
        await _signal_outcome(tx, pages, session.connection, consent)
        detail = {"error": callback.error} if callback.error else {}
        detail |= {"reason": failure} if failure else {}
        action, words = _ACTIONS[consent.status], _logged_words(consent, callback.said)
        await pages.record(
            tx, action, consent.tenant, session.connection.id, consent_id=consent.id, **detail, **words
        )
    return replace(session, consent=consent, confirm_code=confirm_code)


async def _signal_outcome(
    tx: Transaction, pages: SubjectPages, connection: Connection, consent: Consent
) -> None:
    """Signal the workflow, unless the callback failed: then the subject may try again."""
    match consent.status:
        case ConsentStatus.CODE_RECEIVED:
            await signal_granted(tx, connection, consent, pages.context, pages.now)
        case ConsentStatus.CONFIRMING:
            await signal_returned(tx, connection, consent, pages.context, pages.now)
        case ConsentStatus.DENIED:
            denied = ConsentDenied(consent_id=consent.id, context=pages.context)
            await signal_connection(tx, connection, SignalName.CONSENT_DENIED, denied, pages.now)
        case _:
            pass


def outcome_of(callback: Callback) -> tuple[ConsentStatus, ErrorCode | None]:
    """The status of a consent with this callback, and how it failed."""
    if callback.denied:
        return ConsentStatus.DENIED, ErrorCode.CONSENT_DENIED
    if callback.code is not None or callback.tokens is not None:
        return ConsentStatus.CODE_RECEIVED, None
    is_client_error = callback.error in _CLIENT_ERRORS
    return ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED if is_client_error else ErrorCode.PROVIDER_ERROR


async def wait_for_grant(pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """Wait for the worker to end the consent and look up the accounts."""
    consent, connection = await wait_for_exchange(pages.api, session.consent)
    return replace(session, consent=consent, connection=connection or session.connection)


async def record_refusal(
    pages: SubjectPages,
    consent: Consent | None,
    failure: Failure,
    *,
    end: bool = False,
    words: ProviderWords | None = None,
) -> None:
    """Record the refusal of a callback whose state is that of `consent`; with `end`, also end its attempt.

    `words` are the callback's own. The failure gets the reference that the page shows.

    Without a consent the caller is unknown: the refusal is counted and logged, and leaves no audit record.
    """
    if consent is None:
        metrics.count(metrics.CALLBACKS_REFUSED, "unknown_state")
        log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "no consent has its state", code=failure.code)
        return
    metrics.count(metrics.CALLBACKS_REFUSED, failure.code)
    detail = {"code": failure.code.value, "message": failure.detail, "consent_id": consent.id}
    detail |= _logged_words(consent, words)
    failure.context["reference"] = reference_of(consent.id)
    with suppress(Failure):  # refuse also when the record can't be written
        async with pages.api.store.write() as tx:
            # a bound browser has brought the words
            object_id: str = consent.connection_id if end or words else consent.integration_id
            if end:
                ended = consent.__replace__(status=ConsentStatus.FAILED, failure=failure.code)
                await tx.consents.replace(ended, expected=consent.revision)
            await pages.record(tx, AuditAction.CALLBACK_REFUSED, consent.tenant, object_id, **detail)


def _logged_words(consent: Consent, words: ProviderWords | None) -> dict[str, Any]:
    """Log a callback's words. Returns them for the audit record."""
    if words is None:
        return {}
    by = ", which nothing authenticates" if words.unauthenticated else ""
    log_event(
        log, logging.INFO, LogEvent.PROVIDER_REFUSED, f"callback{by}, {words}", object=consent.connection_id
    )
    return words.as_detail()
