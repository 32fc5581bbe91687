"""Commands on a connection: reauthorize, choose an account, confirm who consented, revoke."""

import logging
from datetime import datetime

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server import audit
from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import record, signal_connection
from evergrant_server.api.connections.consents import (
    ConnectionWithLink,
    connect_url,
    consenting_connection,
    request_client_grant,
    request_consent,
    signal_granted,
    wait_for_exchange,
)
from evergrant_server.api.connections.flows import require_same_expectation
from evergrant_server.api.connections.links import (
    offer_link,
    require_consent_allowed,
    require_maker,
    scopes_to_ask_for,
)
from evergrant_server.api.connections.models import (
    ChooseBody,
    ConfirmBody,
    ConnectionView,
    ReauthorizeBody,
    RevokeBody,
)
from evergrant_server.api.connections.routes import get_connection
from evergrant_server.api.connections.scopes import ScopeCheck, take_over_exchange
from evergrant_server.api.connections.view import add_device_code, connection_view
from evergrant_server.api.http.call import ApiCall, Call, Command, CommandResponse
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.binding import hash_confirm_code
from evergrant_server.core.connections.confirmation import ConfirmVerdict, confirmed, judge_confirmation
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import AccountChosen, Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["connections"])

REVOKE_ATTEMPTS = 100  # a revocation must succeed on a busy row


@router.post("/v1/connections/{connection_id}/choose", response_model=ConnectionView)
async def choose_account(connection_id: str, body: ChooseBody, call: Command) -> Response:
    """Choose one of the connection's `choices`. A later choice replaces it."""

    async def choose(tx: Transaction) -> CommandResponse:
        connection = await call.visible_connection(tx, connection_id, Action.CONNECT)
        await require_maker(tx, call, connection)
        after = await save_account_choice(tx, connection, body.choice, call.context, call.now)
        return CommandResponse.of(await connection_view(tx, after))

    return await call.run(body, choose)


async def save_account_choice(
    tx: Transaction, connection: Connection, choice: str, context: RequestContext, now: datetime
) -> Connection:
    """Write the choice with its outbox message and audit record.

    Raises Failure INVALID_REQUEST for an unknown choice, and the reason of an ended connection.
    """
    require_live(connection)
    grant = await tx.grants.get_authentic(connection)
    options = grant.options if grant else ()
    option = next((option for option in options if option.id == choice), None)
    if grant is None or option is None:
        raise invalid_request("choice", "This is not one of the connection's choices.")
    saved = await tx.connections.replace(connection.account_chosen(option, now), expected=connection.revision)
    metadata = grant.metadata | option.metadata
    await tx.grants.update_facts(saved, grant.__replace__(metadata=metadata))
    detail = {"choice": option.id, "of": len(options)}
    await record(tx, saved.tenant, AuditAction.ACCOUNT_CHOSEN, saved.id, context, now, **detail)
    message = AccountChosen(choice=option.id, context=context)
    await signal_connection(tx, saved, SignalName.ACCOUNT_CHOSEN, message, now)
    return saved


@router.post("/v1/connections/{connection_id}/reauthorize", response_model=ConnectionView)
async def reauthorize_connection(
    connection_id: str, call: Command, body: ReauthorizeBody | None = None
) -> Response:
    """A new connect link. The current grant stays until the subject has consented again."""

    async def reauthorize(tx: Transaction) -> CommandResponse:
        connection = await call.visible_connection(tx, connection_id, Action.CONNECT)
        connection = await take_over_exchange(tx, call, connection)
        renewed = await _request_new_consent(tx, call, connection, body or ReauthorizeBody())
        return CommandResponse.of(await connection_view(tx, connection, renewed))

    return await add_device_code(call, await call.run(body, reauthorize))


async def _request_new_consent(
    tx: Transaction, call: ApiCall, named: Connection, wanted: ReauthorizeBody
) -> ConnectionWithLink:
    require_live(named)
    require_same_expectation(tx, named, wanted.account)
    integration = require_found(await tx.integrations.of_next_consent(named))
    require_ready(integration)
    connection = await consenting_connection(tx, named)
    await require_consent_allowed(tx, call, connection)
    if connection is not named and (wanted.scopes, wanted.slot_scopes) != (None, None):
        why = "Its scopes are slot_scopes of the connection that it shares a consent with."
        raise invalid_request("scopes", why)
    spec = await integration_spec(tx, call.api.registry, integration)
    check = ScopeCheck(call, integration, spec, connection.subject, connection.id)
    scopes = check.permitted(scopes_to_ask_for(connection, wanted.scopes, check.defaults, for_lease=False))
    if connection.flow.is_static or (connection.flow is Flow.TOKEN_EXCHANGE and connection.source is None):
        raise invalid_request("flow", "Revoke it, and create one with the new credential.")
    slots = await check.permitted_slots(tx, connection, wanted.slot_scopes)
    url = None
    if connection.flow.is_client_grant:
        consent = await request_client_grant(tx, call, connection, scopes)
    else:
        offered = await offer_link(tx, call, connection, scopes, slots, check.defaults)
        named = offered if connection is named else named
        consent, url = await request_consent(tx, call, integration, offered, scopes, slots, wanted)
    detail = {"consent_id": consent.id, "scopes": list(scopes)}
    await call.record(tx, AuditAction.REAUTHORIZATION_REQUESTED, connection.id, **detail)
    return ConnectionWithLink(named, False, consent if url else None, url)


def require_live(connection: Connection) -> None:
    """Raise the reason of an ended or ending connection, and of one whose subject leaves."""
    if connection.state.is_final or connection.state is LifecycleState.REVOKING:
        raise Failure(connection.reason or ErrorCode.CONNECTION_REVOKED, connection_id=connection.id)
    if connection.held_by is not None:
        raise Failure(ErrorCode.CONNECTION_HELD, connection_id=connection.id)


@router.post("/v1/connections/{connection_id}/revoke", status_code=202, response_model=ConnectionView)
async def revoke_connection(connection_id: str, call: Command, body: RevokeBody | None = None) -> Response:
    """Revoke for good. After this response no lease is issued; workers retry until the provider confirms."""
    return await _revoke(connection_id, call, body, (body or RevokeBody()).reason)


@router.delete("/v1/connections/{connection_id}", status_code=202, response_model=ConnectionView)
async def delete_connection(connection_id: str, call: Call) -> Response:
    """The same as revoke: no connection is deleted without a revocation at the provider."""
    return await _revoke(connection_id, call, None, "deleted")


async def _revoke(connection_id: str, call: ApiCall, sent: RevokeBody | None, reason: str) -> Response:
    async def revoke(tx: Transaction) -> CommandResponse:
        """Write state, outbox message and audit record. From its commit on no lease is issued."""
        connection = await call.visible_connection(
            tx, connection_id, Action.CONNECT, Action.ADMIN, revoking=True
        )
        if not (connection.state.is_final or connection.state is LifecycleState.REVOKING):
            entry = call.entry(AuditAction.REVOCATION_REQUESTED, connection.id, reason=reason)
            connection = await request_revocation(tx, connection, reason, entry)
        return CommandResponse.of(await connection_view(tx, connection), 202)

    return await call.run(sent, revoke, tries=REVOKE_ATTEMPTS)


async def request_revocation(
    tx: Transaction, connection: Connection, reason: str, entry: AuditEntry
) -> Connection:
    """Write state, message and audit record of a live connection's end. From the commit on no lease is
    issued."""
    requested = connection.revocation_requested(reason, entry.at)
    connection = await tx.connections.replace(requested, expected=connection.revision)
    message = Revoke(reason=reason, context=entry.context)
    await signal_connection(tx, connection, SignalName.REVOKE, message, entry.at)
    await audit.append(tx, entry)
    return connection


@router.post("/v1/connections/{connection_id}/confirm", response_model=ConnectionView)
async def confirm_consent(connection_id: str, body: ConfirmBody, call: Call) -> Response:
    """Confirm who consented; waits for the code's exchange, and answers like a GET.

    With the binding `app_first` the answer has a `connect_url`: send the browser there.
    """
    consent, verdict = await decide_confirmation(call, connection_id, body)
    await _raise_refusal(call, consent, verdict)
    consent, _ = await wait_for_exchange(call.api, consent, call.patience_s)
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
    text = f"{call.context.by} named another subject or session; the consent is ended"
    code = ErrorCode.SUBJECT_MISMATCH
    log_event(log, logging.WARNING, LogEvent.SUBJECT_MISMATCH, text, code=code, object=connection_id)


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
