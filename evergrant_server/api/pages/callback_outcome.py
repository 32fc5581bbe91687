"""Stores the outcome of a callback, and waits for the worker that exchanges the code."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from fastapi import Request

from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.pages.session import (
    SUBJECT_ACTOR,
    ConsentSession,
    SubjectPages,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import SignalName
from evergrant_server.core.messages.connection import ConsentDenied, ConsentGranted
from evergrant_server.store import Transaction
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.callback import Callback

log = logging.getLogger("evergrant.api")

WAIT_S = 15.0
_POLL_S = 0.1
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


async def save_outcome(
    pages: SubjectPages, request: Request, session: ConsentSession, callback: Callback
) -> ConsentSession:
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
        await _signal_workflow(tx, pages, request, session.connection, consent)
        detail = {"error": callback.error} if callback.error else {}
        action, connection_id = _ACTIONS[status], session.connection.id
        await pages.record(
            tx, request, action, consent.tenant, connection_id, consent_id=consent.id, **detail
        )
    return replace(session, consent=consent)


async def _signal_workflow(
    tx: Transaction, pages: SubjectPages, request: Request, connection: Connection, consent: Consent
) -> None:
    """Signal `consent_granted` or `consent_denied`; nothing for a failed attempt."""
    context, now = trace_of(request).request_context(SUBJECT_ACTOR), pages.api.clock.now()
    if consent.status is ConsentStatus.CODE_RECEIVED:
        granted = ConsentGranted(consent_id=consent.id, context=context)
        await tx.outbox.add(connection_signal_message(connection, SignalName.CONSENT_GRANTED, granted, now))
    elif consent.status is ConsentStatus.DENIED:
        denied = ConsentDenied(consent_id=consent.id, context=context)
        await tx.outbox.add(connection_signal_message(connection, SignalName.CONSENT_DENIED, denied, now))


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
    consent, connection = session.consent, session.connection
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while (
                consent.status is ConsentStatus.CODE_RECEIVED or connection.follow_up is FollowUp.LOOKING_UP
            ):
                await asyncio.sleep(_POLL_S)
                async with pages.api.store.read() as tx:
                    consent = await tx.consents.get(consent.tenant, consent.id) or consent
                    connection = await tx.connections.get(consent.tenant, connection.id) or connection
    return replace(session, consent=consent, connection=connection)


async def record_refusal(
    pages: SubjectPages,
    request: Request,
    integration: Integration | None,
    session: ConsentSession | None,
    failure: Failure,
) -> None:
    """Record a refused callback. With `session`, a callback from the bound browser, also end the attempt."""
    if integration is None:
        log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "no integration", code=failure.code)
        return
    detail = {"code": failure.code.value, "message": failure.detail}
    with suppress(Failure):  # refuse also when the record can't be written
        async with pages.api.store.write() as tx:
            object_id: str = integration.id
            if session is not None:
                object_id = session.connection.id
                ended = {"status": ConsentStatus.FAILED, "failure": failure.code}
                await tx.consents.replace(
                    session.consent.model_copy(update=ended), expected=session.consent.revision
                )
            await pages.record(
                tx, request, AuditAction.CALLBACK_REFUSED, integration.tenant, object_id, **detail
            )
