"""`POST /v1/connections/{id}/confirm`: the app says from its own session who came back with the confirm code.

Nothing is exchanged before. The code alone is worth nothing to another app, and another subject or verifier
ends the consent.
"""

import logging

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.connections.commands import require_live
from evergrant_server.api.connections.consents import connect_url, signal_granted, wait_for_exchange
from evergrant_server.api.connections.models import ConfirmBody, ConnectionView
from evergrant_server.api.connections.routes import get_connection
from evergrant_server.api.http.call import ApiCall, Call, CommandResponse
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import hash_confirm_code
from evergrant_server.core.connections.confirmation import ConfirmVerdict, confirmed, judge_confirmation
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["connections"])


@router.post("/v1/connections/{connection_id}/confirm", response_model=ConnectionView)
async def confirm_consent(connection_id: str, body: ConfirmBody, call: Call) -> Response:
    """Confirm who consented; waits for the code's exchange, and answers like a GET.

    With the binding `app_first` the answer has a `connect_url`: send the browser there.
    """
    consent, verdict = await decide_confirmation(call, connection_id, body)
    await _raise_refusal(call, consent, verdict)
    consent, _ = await wait_for_exchange(call.api, consent)
    if consent.status is ConsentStatus.FAILED:
        code = ErrorCode(consent.failure or ErrorCode.INTERNAL)
        failure = Failure(code, connection_id=connection_id, consent="failed")  # to confirm again is no use
        if failure.code is ErrorCode.ACCOUNT_MISMATCH:  # its page tells the subject who came
            failure.context["connect_url"] = await _link(call, consent)
        raise failure
    view = await get_connection(connection_id, call)
    if consent.status is ConsentStatus.STARTED:  # the browser goes to the provider now
        url = await _link(call, consent)
        view = view.__replace__(connect_url=url, connect_expires_at=consent.expires_at)
    return CommandResponse.of(view)


async def decide_confirmation(
    call: ApiCall, connection_id: str, body: ConfirmBody
) -> tuple[Consent, ConfirmVerdict]:
    """Write what the app's word leads to, in one transaction. Raises Failure NOT_FOUND."""

    async def decide(tx: Transaction) -> tuple[Consent, Consent, ConfirmVerdict]:
        connection = await call.visible_connection(tx, connection_id, Action.CONNECT)
        consent = await _require_own_consent(tx, call, connection, body)
        require_live(connection)
        verdict = judge_confirmation(consent, connection.subject, body.subject, body.verifier, call.now)
        return consent, await _carry_out(tx, call, connection, consent, verdict, body), verdict

    before, after, verdict = await call.write(decide)
    if after.revision != before.revision:
        metrics.count_confirmation(_OUTCOMES[verdict], call.context.by)
        if verdict is ConfirmVerdict.MISMATCH:
            _alarm(call, after.connection_id)
    return after, verdict


async def _require_own_consent(
    tx: Transaction, call: ApiCall, connection: Connection, body: ConfirmBody
) -> Consent:
    """The consent of the code, if this app requested it for this connection. Raises Failure NOT_FOUND."""
    code_hash = hash_confirm_code(body.code.reveal())
    consent = require_found(await tx.consents.by_confirm_code(call.tenant, code_hash))
    if consent.connection_id != connection.id or consent.app_id != call.caller.app.id:
        raise Failure(ErrorCode.NOT_FOUND)
    return consent


async def _carry_out(
    tx: Transaction,
    call: ApiCall,
    connection: Connection,
    consent: Consent,
    verdict: ConfirmVerdict,
    body: ConfirmBody,
) -> Consent:
    """Write what the verdict leads to, once: a repetition changes nothing."""
    detail = {"consent_id": consent.id, "binding": consent.binding}
    match verdict:
        case ConfirmVerdict.CONFIRMED:
            consent = await tx.consents.replace(confirmed(consent, call.now), expected=consent.revision)
            if consent.status is ConsentStatus.CODE_RECEIVED:
                await signal_granted(tx, connection, consent, call.context, call.now)
            verified = body.verifier is not None
            await call.record(tx, AuditAction.CONSENT_CONFIRMED, connection.id, verifier=verified, **detail)
        case ConfirmVerdict.MISMATCH if consent.status is ConsentStatus.CONFIRMING:
            consent = await tx.consents.replace(
                consent.__replace__(status=ConsentStatus.FAILED, failure=ErrorCode.SUBJECT_MISMATCH),
                expected=consent.revision,
            )
            await tx.consents.erase_secrets(consent)
            claimed = {"claimed_subject": body.subject, "same_subject": body.subject == connection.subject}
            await call.record(tx, AuditAction.SUBJECT_MISMATCH, connection.id, **detail, **claimed)
        case ConfirmVerdict.EXPIRED if consent.status is ConsentStatus.CONFIRMING:
            consent = await tx.consents.reopen(consent)
            await call.record(tx, AuditAction.CONSENT_UNCONFIRMED, connection.id, **detail)
        case _:
            pass
    return consent


_OUTCOMES = {
    ConfirmVerdict.CONFIRMED: "confirmed",
    ConfirmVerdict.MISMATCH: ErrorCode.SUBJECT_MISMATCH,
    ConfirmVerdict.EXPIRED: ErrorCode.CONFIRM_EXPIRED,
}


def _alarm(call: ApiCall, connection_id: ConnectionId) -> None:
    what = f"{call.context.by} named another subject or session; the consent is ended"
    code = ErrorCode.SUBJECT_MISMATCH
    log_event(log, logging.WARNING, LogEvent.SUBJECT_MISMATCH, what, code=code, object=connection_id)


async def _raise_refusal(call: ApiCall, consent: Consent, verdict: ConfirmVerdict) -> None:
    """Raise Failure SUBJECT_MISMATCH, which doesn't name the right subject, or CONFIRM_EXPIRED."""
    if verdict is ConfirmVerdict.MISMATCH:
        raise Failure(ErrorCode.SUBJECT_MISMATCH, connection_id=consent.connection_id)
    if verdict is ConfirmVerdict.EXPIRED:
        url = await _link(call, consent)
        raise Failure(ErrorCode.CONFIRM_EXPIRED, connection_id=consent.connection_id, connect_url=url)


async def _link(call: ApiCall, consent: Consent) -> str:
    async with call.api.store.read() as tx:
        return connect_url(call.api, (await tx.consents.connect_link(consent)).reveal())
