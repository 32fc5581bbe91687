"""The control request: one refresh token that can't exist, to compare a refusal's answer with (ADR 0093).

It is the same request, by the same client; `core.single_use.control_request` says when one is sent, and what
its answer proves. The made-up token is no credential, so there is no attempt and no journal entry: what comes
of it is revoked at once.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from activities.grants import GrantServices
from activities.grants.provider_revocation import revoke_all_slots
from activities.grants.token_request import RefreshTokenRequest
from activities.support.provider_context import ProviderContext, resolve_endpoints
from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server import audit
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.activities import RefreshGrant
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.control_request import (
    ControlFacts,
    ControlOutcome,
    ControlStep,
    comparable_answer,
    made_up_token,
)
from evergrant_server.core.single_use.recurring_errors import UndecidedRefusals
from evergrant_server.store import Transaction
from providers.responses.error_mapping import raise_for_failure
from providers.responses.raw_reply import RawReply
from providers.responses.reply_error import UnknownRefusal
from providers.responses.token_response import read_tokens

_TIMEOUT_S = 10.0  # the activity has half a minute after the reply to its own request


def answer_of(reply: RawReply, token: Secret | None) -> str:
    """What a refusal is compared by; `token` was sent, and may be echoed."""
    sent = () if token is None else (token.reveal(),)
    return comparable_answer(reply.status, reply.headers.get("content-type", ""), reply.body, sent)


@dataclass(frozen=True)
class ControlAnswer:
    """What the control request was answered with. `answer`: a refusal's, as refusals are compared."""

    outcome: ControlOutcome
    answer: str | None = None
    revoked: bool | None = None  # what came of it, if tokens came


async def equals_control(
    services: GrantServices, request: RefreshGrant, context: ProviderContext, refusals: UndecidedRefusals
) -> bool:
    """Whether a token that can't exist is refused in the same way as the connection's, while the client's
    other connections are refreshed. False: nothing was learnt, or it can't be tried."""
    if not is_comparable(services, context):
        return False

    async def begin(tx: Transaction) -> tuple[ControlStep, str | None]:
        """The intent is committed before anything is sent: a worker that dies has used the limit."""
        current, now = await load_connection(tx, request), services.clock.now()
        if current.state is not LifecycleState.ACTIVE or current.generation != request.generation:
            return ControlStep.NOTHING, None
        facts = await control_facts(tx, context, current, refusals)
        step = facts.step(now)
        if step is ControlStep.SEND:
            await _record_intent(tx, request, context, now)
        return step, facts.kept

    step, kept = await commit_with_retries(services.store, begin)
    if step is ControlStep.NOTHING:
        return False
    sent = await _send(services, context) if step is ControlStep.SEND else None
    equal = refusals.answer == (kept if sent is None else sent.answer)

    async def record(tx: Transaction) -> None:
        now, integration = services.clock.now(), context.integration.id
        if sent is not None:
            detail = {"outcome": sent.outcome, "answer": sent.answer, "revoked": sent.revoked}
            named = {name: value for name, value in detail.items() if value is not None}
            connection = context.connection.id
            action = AuditAction.CONTROL_ANSWERED
            await append_audit(tx, request, action, now, integration, connection=connection, **named)
        if sent is None or sent.outcome is ControlOutcome.REFUSED:
            compared = {"equal": equal, "sent": sent is not None}
            await append_audit(tx, request, AuditAction.CONTROL_COMPARED, now, **compared)

    await commit_with_retries(services.store, record)
    return equal


async def is_evidence_to_be_had(
    services: GrantServices, context: ProviderContext, refusals: UndecidedRefusals
) -> bool:
    """Whether one more refusal like the last ones could be compared with a control's answer now."""
    if not is_comparable(services, context):
        return False
    async with services.store.read() as tx:
        facts = await control_facts(tx, context, context.connection, refusals)
    return facts.step(services.clock.now()) is not ControlStep.NOTHING


def is_comparable(services: GrantServices, context: ProviderContext) -> bool:
    """Whether the connection's refreshes are such that a made-up token's answer tells something: of a refresh
    token, by one client with one secret, at an endpoint that all its connections share."""
    allowed = services.control_requests and context.spec.control_request
    refreshes = context.spec.refresh_supported and not context.spends_nothing
    one_client = context.other_client is None and not context.provisional
    return allowed and refreshes and one_client and _endpoint_is_shared(context)


def _endpoint_is_shared(context: ProviderContext) -> bool:
    try:
        shared = resolve_endpoints(context.spec, context.integration, {})
    except Failure:  # it lacks what each connection's grant names
        return False
    return _refresh_url(shared) == _refresh_url(context.endpoints)


def _refresh_url(endpoints: Endpoints) -> str:
    return endpoints.refresh_endpoint or endpoints.token_endpoint


async def control_facts(
    tx: Transaction, context: ProviderContext, current: Connection, refusals: UndecidedRefusals
) -> ControlFacts:
    """The facts of the decision, from attempts and the audit log."""
    tenant, integration = current.tenant, context.integration
    since = refusals.answered_before or refusals.since
    others = await tx.attempts.refreshes_of_others(current, since)
    compared = await audit.newest_record(tx, tenant, current.id, AuditAction.CONTROL_COMPARED)
    asked = await audit.newest_record(tx, tenant, integration.id, AuditAction.CONTROL_REQUESTED)
    answered = await audit.newest_record(tx, tenant, integration.id, AuditAction.CONTROL_ANSWERED)
    at_host = await audit.newest_record(tx, INSTALLATION, _host(context), AuditAction.CONTROL_REQUESTED)
    return ControlFacts(
        refusals,
        worked_at=None if others is None else others[1],
        unequal_at=None if compared is None or compared.detail["equal"] else compared.at,
        kept=None if answered is None else answered.detail.get("answer"),
        kept_at=None if answered is None else answered.at,
        makes_tokens_of_anything=answered is not None
        and answered.detail["outcome"] == ControlOutcome.GRANTED,
        requested_at=None if asked is None else asked.at,
        host_requested_at=None if at_host is None else at_host.at,
        client_changed_at=integration.changed_at,
    )


def _host(context: ProviderContext) -> str:
    return urlsplit(_refresh_url(context.endpoints)).netloc


async def _record_intent(
    tx: Transaction, request: RefreshGrant, context: ProviderContext, now: datetime
) -> None:
    """One record for the integration's limit, one for the host's, which all tenants share."""
    action, host = AuditAction.CONTROL_REQUESTED, _host(context)
    named = {"connection": context.connection.id, "host": host}
    await append_audit(tx, request, action, now, context.integration.id, **named)
    await audit.append(
        tx, AuditEntry(tenant=INSTALLATION, at=now, action=action, object=host, context=request.context)
    )


async def _send(services: GrantServices, context: ProviderContext) -> ControlAnswer:
    """Refresh with a made-up token. What comes of it is revoked."""
    held = context.tokens.refresh_token()
    if held is None:
        return ControlAnswer(ControlOutcome.UNANSWERED)
    token = Secret(made_up_token(held.reveal()))
    spend = RefreshTokenRequest(context, context.integration.refresh, token)
    with suppress(Failure, TimeoutError):
        async with asyncio.timeout(_TIMEOUT_S):
            reply = await services.sender.send(context, spend.build())
            return await _read(services, context, reply, token)
    return ControlAnswer(ControlOutcome.UNANSWERED)


async def _read(
    services: GrantServices, context: ProviderContext, reply: RawReply, token: Secret
) -> ControlAnswer:
    """What the reply says; only a refusal that doesn't say whose turn it is can equal the connection's."""
    now = services.clock.now()
    try:
        raise_for_failure(context.spec, reply, (200,), now, "refresh")
    except UnknownRefusal:
        return ControlAnswer(ControlOutcome.REFUSED, answer_of(reply, token))
    except Failure:
        known = 400 <= reply.status < 500
        return ControlAnswer(ControlOutcome.REFUSED if known else ControlOutcome.UNANSWERED)
    revoked = False
    with suppress(Failure, TimeoutError):
        tokens = read_tokens(context.spec, reply, requested_scopes=(), refreshing=True, now=now)
        async with asyncio.timeout(_TIMEOUT_S):
            outcome = await revoke_all_slots(services.sender, context, tokens)
            revoked = outcome is RevocationOutcome.CONFIRMED
    return ControlAnswer(ControlOutcome.GRANTED, revoked=revoked)
