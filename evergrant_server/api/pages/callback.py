"""`/oauth/callback/{integration}`: where a provider sends the subject's browser back.

Whoever sent the browser wrote the query, so nothing in it is trusted: the state must be
one of ours, unused, unexpired, of this integration and of this browser.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.implicit import fragment_page
from evergrant_server.api.pages.session import (
    SUBJECT_ACTOR,
    ConsentSession,
    SubjectPages,
    html_route,
    require_open_consent,
    subject_pages,
)
from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.account import FollowUp
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus, hash_state
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.messages.connection import ConsentDenied, ConsentGranted
from evergrant_server.core.messages.names import SignalName
from evergrant_server.store import Transaction
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event
from providers.definition.templates import integration_endpoints, require_complete
from providers.oauth1 import flow
from providers.requests.callback import Callback, read_callback
from providers.requests.callback_metadata import check_callback_signature
from providers.requests.callback_parameters import state_in
from providers.requests.implicit import ACCESS_TOKEN_PARAM, read_implicit_query

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

WAIT_S = 15.0
_POLL_S = 0.1
_MAX_QUERY_BYTES = 16_384
_MAX_FIELDS = 60
_CLIENT_ERRORS = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope"}
)

Query = list[tuple[str, str]]
CallbackJudge = Callable[[SubjectPages, ConsentSession, Query], tuple[Callback, ConsentSession]]


@router.post("/oauth/callback/{integration_id}")
@html_route
async def callback_by_post(request: Request, integration_id: str) -> Response:
    """`response_mode=form_post`: a browser sends no Lax cookie with it, so it comes again as a GET."""
    query = _parse_query(await request.body())
    if any(name == ACCESS_TOKEN_PARAM for name, _ in query):
        raise Failure(
            ErrorCode.CALLBACK_INVALID, "A token came where a code is expected."
        )  # in no URL of ours
    return redirect_response(f"/oauth/callback/{parse_integration_id(integration_id)}?{urlencode(query)}")


@router.get("/oauth/callback/{integration_id}")
@html_route
async def callback(request: Request, integration_id: str) -> Response:
    """Take the code, hand it to the worker by way of the store, and show what came of it."""
    subjects, raw = subject_pages(request), request.scope["query_string"]
    if (
        not raw
        and (empty := await _fragment_page(subjects, request, parse_integration_id(integration_id)))
        is not None
    ):
        return empty
    going = await wait_for_grant(
        subjects,
        await accept_callback(
            subjects, request, parse_integration_id(integration_id), raw, _judge_code_callback
        ),
    )
    ended = going.consent.status in (ConsentStatus.DONE, ConsentStatus.DENIED)
    if ended and going.connection.follow_up is not FollowUp.CHOOSING and going.consent.return_to:
        return await subjects.outcome_response(request, going)
    return redirect_response(await connect_path(subjects, going))


async def _fragment_page(
    subjects: SubjectPages, request: Request, integration_id: IntegrationId
) -> Response | None:
    """A fragment stays in the browser: its page brings it here."""
    async with subjects.parts.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(integration_id)
    if integration is None:
        return None
    try:
        return await fragment_page(subjects, integration)
    except Failure as failure:
        await record_refusal(subjects, request, integration, None, failure)
        raise


async def connect_path(subjects: SubjectPages, going: ConsentSession) -> str:
    """The link's own page says how it stands: no code in the address bar, and safe to load again."""
    async with subjects.parts.store.read() as tx:
        link = await tx.consents.connect_link(going.consent)
    return f"/connect/{link.reveal()}"


async def accept_callback(
    subjects: SubjectPages, request: Request, integration_id: IntegrationId, raw: bytes, judge: CallbackJudge
) -> ConsentSession:
    """Judge the callback and write what it brought. Every refusal is in the audit log."""
    parts, consent, integration = subjects.parts, None, None
    try:
        async with parts.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(integration_id)
            query = _parse_query(raw)
            said = flow.temporary_token_in(query) or state_in(query)
            consent = await tx.consents.by_state(hash_state(said))
            going = await _load_bound_session(subjects, tx, request, consent, integration)
    except Failure as failure:
        await record_refusal(subjects, request, integration, None, failure)
        raise
    try:
        await _verify_signature(subjects, going, query)
    except Failure as failure:  # whoever signs it wrongly isn't the provider: its own may still come
        await record_refusal(subjects, request, integration, None, failure)
        raise
    try:
        callback, going = judge(subjects, going, query)
    except Failure as failure:
        await record_refusal(subjects, request, integration, going, failure)
        raise
    try:
        return await _save_outcome(subjects, request, going, callback)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
        used = Failure(ErrorCode.CALLBACK_INVALID, "This callback was used already.")
        await record_refusal(subjects, request, integration, None, used)
        raise used from None


async def _load_bound_session(
    subjects: SubjectPages,
    tx: Transaction,
    request: Request,
    consent: Consent | None,
    integration: Integration | None,
) -> ConsentSession:
    """The consent this state belongs to. One answer for whatever is wrong: it says nothing to a guesser."""
    unknown = Failure(ErrorCode.CALLBACK_INVALID, "The state is not known in this browser.")
    if consent is None or integration is None:
        raise unknown
    same = consent.integration_id == integration.id and consent.tenant == integration.tenant
    expected = subjects.parts.redirect_uri(integration.id)
    if not same or consent.redirect_uri != expected:
        raise unknown
    if not subjects.browsers.is_bound(request, consent.browser_hash):
        raise unknown
    if consent.status is not ConsentStatus.STARTED:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This callback was used already.")
    going = await subjects.load_session(tx, consent)
    require_open_consent(going, subjects.parts.clock.now())
    return going


async def _verify_signature(subjects: SubjectPages, going: ConsentSession, query: Query) -> None:
    """Before anything in a signed callback is believed. In a rotation's overlap either secret signs."""
    if going.spec.callback_verify is None:
        return
    integration = going.integration
    async with subjects.parts.store.read() as tx:
        secrets = [await tx.integrations.client_secret(integration)]
        if integration.previous_secret_is_usable(subjects.parts.clock.now()):
            secrets.append(await tx.integrations.previous_secret(integration))
    check_callback_signature(going.spec, query, [secret for secret in secrets if secret is not None])


def _judge_code_callback(
    subjects: SubjectPages, going: ConsentSession, query: Query
) -> tuple[Callback, ConsentSession]:
    """What the callback says, and the consent with all that it brought beside the code."""
    spec = going.spec
    if going.connection.flow is Flow.OAUTH1:
        return _judge_oauth1_callback(going, query), going
    endpoints = require_same_endpoints(going)
    if going.connection.flow is Flow.IMPLICIT:
        issuer, required = going.consent.issuer, endpoints.iss_in_callback
        return read_implicit_query(query, expected_issuer=issuer, iss_required=required, spec=spec), going
    callback = read_callback(
        query,
        expected_issuer=going.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=spec,
        params=going.integration.params,
        requested=going.consent.scopes,
    )
    if callback.code is None:
        return callback, going
    return callback, replace(
        going, consent=going.consent.model_copy(update=_consent_changes(going, callback))
    )


def require_same_endpoints(going: ConsentSession) -> Endpoints:
    """Those of the attempt. Raises Failure CALLBACK_INVALID when they are others by now: code and
    verifier go to the endpoint recorded for this attempt, or nowhere."""
    endpoints = integration_endpoints(going.spec, going.integration)
    if endpoints.token_endpoint != going.consent.token_endpoint:
        raise _endpoints_changed()
    return endpoints


def _consent_changes(going: ConsentSession, callback: Callback) -> dict[str, object]:
    """What the code is bound to from here on: the endpoint it goes to, when the callback names a part
    of it, and the facts that came with it."""
    endpoints = integration_endpoints(going.spec, going.integration, callback.metadata)
    try:
        token_endpoint = require_complete(going.spec, endpoints.token_endpoint)
    except Failure as failure:
        raise Failure(ErrorCode.CALLBACK_INVALID, f"The callback was refused: {failure.detail}.") from None
    return {
        "token_endpoint": token_endpoint,
        "facts": callback.metadata,
        "granted_scopes": callback.scopes,
    }


def _judge_oauth1_callback(going: ConsentSession, query: Query) -> Callback:
    if flow.oauth1_endpoints(going.spec, going.integration).token != going.consent.token_endpoint:
        raise _endpoints_changed()
    return flow.read_oauth1_callback(query)


def _endpoints_changed() -> Failure:
    return Failure(ErrorCode.CALLBACK_INVALID, "The integration's endpoints changed meanwhile.")


async def _save_outcome(
    subjects: SubjectPages, request: Request, going: ConsentSession, callback: Callback
) -> ConsentSession:
    """Consent, outbox and audit in one transaction. Of parallel callbacks one wins (compare-and-set)."""
    status, failure = _outcome(callback)
    asked = trace_of(request).request_context(SUBJECT_ACTOR)
    now = subjects.parts.clock.now()
    after = going.consent.model_copy(update={"status": status, "failure": failure})
    if callback.tokens is not None:
        after = after.model_copy(update={"kind": ConsentKind.IMPORT, "granted_scopes": callback.scopes})
    async with subjects.parts.store.write() as tx:
        after = await tx.consents.replace(
            after, expected=going.consent.revision, code=callback.code, tokens=callback.tokens
        )
        if status is ConsentStatus.CODE_RECEIVED:
            granted = ConsentGranted(consent_id=after.id, context=asked)
            await tx.outbox.add(
                connection_signal_message(going.connection, SignalName.CONSENT_GRANTED, granted, now)
            )
        elif status is ConsentStatus.DENIED:
            denied = ConsentDenied(consent_id=after.id, context=asked)
            await tx.outbox.add(
                connection_signal_message(going.connection, SignalName.CONSENT_DENIED, denied, now)
            )
        await subjects.record(
            tx,
            request,
            _ACTIONS[status],
            after.tenant,
            going.connection.id,
            consent_id=after.id,
            **({"error": callback.error} if callback.error else {}),
        )
    return replace(going, consent=after)


_ACTIONS = {
    ConsentStatus.CODE_RECEIVED: AuditAction.CONSENT_GRANTED,
    ConsentStatus.DENIED: AuditAction.CONSENT_DENIED,
    ConsentStatus.FAILED: AuditAction.CONSENT_FAILED,
}


def _outcome(callback: Callback) -> tuple[ConsentStatus, ErrorCode | None]:
    if callback.denied:
        return ConsentStatus.DENIED, ErrorCode.CONSENT_DENIED
    if callback.code is not None or callback.tokens is not None:
        return ConsentStatus.CODE_RECEIVED, None
    ours = callback.error in _CLIENT_ERRORS
    return ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED if ours else ErrorCode.PROVIDER_ERROR


async def wait_for_grant(subjects: SubjectPages, going: ConsentSession) -> ConsentSession:
    """Wait for the worker, for a while: it writes DONE or FAILED, and which accounts there are."""
    subjects.parts.relay.notify()
    consent, connection = going.consent, going.connection
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while (
                consent.status is ConsentStatus.CODE_RECEIVED or connection.follow_up is FollowUp.LOOKING_UP
            ):
                await asyncio.sleep(_POLL_S)
                async with subjects.parts.store.read() as tx:
                    consent = await tx.consents.get(consent.tenant, consent.id) or consent
                    connection = await tx.connections.get(consent.tenant, connection.id) or connection
    return replace(going, consent=consent, connection=connection)


async def record_refusal(
    subjects: SubjectPages,
    request: Request,
    integration: Integration | None,
    going: ConsentSession | None,
    failure: Failure,
) -> None:
    """Record it. With `going`, the callback came from the right browser and was bad: its attempt ends."""
    if integration is None:
        log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "no integration", code=failure.code)
        return
    detail = {"code": failure.code.value, "why": failure.detail}
    with suppress(Failure):  # the refusal stands, whatever the log can say about it
        async with subjects.parts.store.write() as tx:
            what = integration.id
            if going is not None:
                what = going.connection.id
                ended = {"status": ConsentStatus.FAILED, "failure": failure.code}
                await tx.consents.replace(
                    going.consent.model_copy(update=ended), expected=going.consent.revision
                )
            await subjects.record(
                tx, request, AuditAction.CALLBACK_REFUSED, integration.tenant, what, **detail
            )


def parse_integration_id(integration_id: str) -> IntegrationId:
    """Raises Failure NOT_FOUND for what is no id of ours."""
    if not is_id(integration_id, "int"):
        raise Failure(ErrorCode.NOT_FOUND, "This address is not known.")
    return IntegrationId(integration_id)


def _parse_query(raw: bytes) -> Query:
    """The parameters in order, doubled ones included. Raises Failure CALLBACK_INVALID."""
    if len(raw) > _MAX_QUERY_BYTES:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback is too long.")
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback can't be read.") from None
