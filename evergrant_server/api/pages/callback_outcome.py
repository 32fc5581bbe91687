"""The outcome of a callback: its checks, before its content is used, and what is stored of it.

Decides which issuer is expected; `providers.requests.callback_parameters` compares it with `iss`. A worker
exchanges the code, for which the browser waits.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl

from evergrant_server import audit
from evergrant_server.access.transactions import signal_connection
from evergrant_server.api.connections.consents import signal_granted, signal_returned, wait_for_exchange
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, require_open_consent
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.confirmation import await_confirm, must_be_confirmed
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus, reference_of
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.login import must_log_in
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.messages.connection import ConsentDenied
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.provider_words import CALLBACK_REFUSED, ProviderWords
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.definition.templates import integration_endpoints, require_complete
from providers.oauth1 import flow
from providers.requests.callback import ACCESS_DENIED, Callback, read_callback, read_implicit_query
from providers.requests.callback_parameters import check_callback_signature

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
_MAX_QUERY_BYTES = 16_384
_FASTEST_PERSON = timedelta(seconds=2)  # to load the provider's page, and to decline there
_MAX_FIELDS = 60

Query = list[tuple[str, str]]
CallbackJudge = Callable[[SubjectPages, ConsentSession, Query], tuple[Callback, ConsentSession]]


class CallbackUsed(Failure):
    """This browser's callback came before, and is refused; the connect page shows what it led to."""

    def __init__(self, session: ConsentSession) -> None:
        super().__init__(ErrorCode.CALLBACK_INVALID, "This callback was already used.")
        self.session = session


async def load_bound_session(
    pages: SubjectPages,
    tx: Transaction,
    consent: Consent | None,
    integration: Integration | None,
    *,
    login: bool = False,
) -> ConsentSession:
    """The consent of this state. Raises the same Failure CALLBACK_INVALID for every mismatch.

    With `login` the state is that of its subject's login, at the integration that its redirect URI names.
    """
    unknown = Failure(ErrorCode.CALLBACK_INVALID, "The state is not known in this browser.")
    if consent is None or integration is None:
        raise unknown
    same = (login or consent.integration_id == integration.id) and consent.tenant == integration.tenant
    expected = pages.api.redirect_uri(integration.id)
    if not same or consent.redirect_uri != expected or must_log_in(consent) is not login:
        raise unknown
    if not pages.is_bound(consent):
        raise unknown
    session = await pages.load_session(tx, consent)
    if consent.status is not ConsentStatus.STARTED:
        raise CallbackUsed(session)
    require_open_consent(session, pages.now)
    return session


async def verify_signature(pages: SubjectPages, session: ConsentSession, query: Query) -> None:
    """Verify the signature of a signed callback, in a rotation's overlap with either secret."""
    if session.spec.callback_verify is None:
        return
    integration = session.integration
    async with pages.api.store.read() as tx:
        secrets = [await tx.integrations.client_secret(integration)]
        if integration.previous_secret_is_usable(pages.now):
            secrets.append(await tx.integrations.previous_secret(integration))
    check_callback_signature(session.spec, query, [secret for secret in secrets if secret is not None])


def judge_code_callback(
    pages: SubjectPages, session: ConsentSession, query: Query
) -> tuple[Callback, ConsentSession]:
    """The parsed callback, and the consent with the facts that came with the code."""
    spec = session.spec
    if session.connection.flow is Flow.OAUTH1:
        require_same_token_endpoint(session.consent, flow.oauth1_endpoints(spec, session.integration).token)
        return flow.read_oauth1_callback(query), session
    endpoints = require_same_endpoints(session)
    if session.connection.flow is Flow.IMPLICIT:
        issuer, required = session.consent.issuer, endpoints.iss_in_callback
        return read_implicit_query(query, expected_issuer=issuer, iss_required=required, spec=spec), session
    callback = read_callback(
        query,
        expected_issuer=session.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=spec,
        params=session.integration.params,
        requested=session.consent.scopes,
    )
    if callback.code is None:
        return callback, session
    # the token endpoint with the callback's facts filled in
    endpoints = integration_endpoints(spec, session.integration, callback.metadata)
    try:
        token_endpoint = require_complete(spec, endpoints.token_endpoint)
    except Failure as failure:
        raise Failure(ErrorCode.CALLBACK_INVALID, f"{CALLBACK_REFUSED}{failure.detail}.") from None
    consent = session.consent.__replace__(
        token_endpoint=token_endpoint, facts=callback.metadata, granted_scopes=callback.scopes
    )
    return callback, replace(session, consent=consent)


def require_same_endpoints(session: ConsentSession) -> Endpoints:
    """The integration's endpoints. Raises Failure CALLBACK_INVALID if they changed during the attempt.

    Code and verifier are sent only to the token endpoint recorded for the attempt.
    """
    endpoints = integration_endpoints(session.spec, session.integration)
    require_same_token_endpoint(session.consent, endpoints.token_endpoint)
    return endpoints


def require_same_token_endpoint(consent: Consent, token_endpoint: str) -> None:
    """Raise Failure CALLBACK_INVALID unless the consent has recorded this endpoint when its browser left."""
    if token_endpoint != consent.token_endpoint:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The integration's endpoints changed meanwhile.")


def parse_integration_id(integration_id: str) -> IntegrationId:
    """The integration of a callback's path. Raises Failure NOT_FOUND for a malformed id."""
    if not is_id(integration_id, "int"):
        raise Failure(ErrorCode.NOT_FOUND, "This address is unknown.")
    return IntegrationId(integration_id)


def parse_query(raw: bytes) -> Query:
    """The parameters in order, with duplicates. Raises Failure CALLBACK_INVALID."""
    if len(raw) > _MAX_QUERY_BYTES:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback is too long.")
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback can't be parsed.") from None


# --- what is stored -----------------------------------------------------------------------------


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
    if callback.error == ACCESS_DENIED and await _came_at_once(pages, session.consent):
        status, failure = ConsentStatus.FAILED, ErrorCode.CLIENT_REJECTED
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


async def _came_at_once(pages: SubjectPages, consent: Consent) -> bool:
    """Whether the browser came back before a person could have declined: the provider has shown no page.

    It refuses the client then, or a scope that the client may not have, and calls that `access_denied`.
    """
    async with pages.api.store.read() as tx:
        started = await audit.newest_record(
            tx, consent.tenant, consent.connection_id, AuditAction.CONSENT_STARTED
        )
    left = started is not None and started.detail.get("consent_id") == consent.id
    return left and started is not None and pages.now - started.at < _FASTEST_PERSON


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
