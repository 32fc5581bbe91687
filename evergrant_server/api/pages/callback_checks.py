"""Checks a callback before its content is used: bound browser, signature, unchanged endpoints.

Decides which issuer is expected; `providers.requests.callback_parameters` compares it with `iss`.
"""

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qsl

from evergrant_server.api.pages.session import (
    ConsentSession,
    SubjectPages,
    require_open_consent,
)
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.login import must_log_in
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.provider_words import CALLBACK_REFUSED
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints, require_complete
from providers.oauth1 import flow
from providers.requests.callback import Callback, read_callback, read_implicit_query
from providers.requests.callback_parameters import check_callback_signature

_MAX_QUERY_BYTES = 16_384
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
    """Raise Failure CALLBACK_INVALID unless it is the one that was recorded when the browser left."""
    if token_endpoint != consent.token_endpoint:
        raise Failure(ErrorCode.CALLBACK_INVALID, "The integration's endpoints changed meanwhile.")


def parse_integration_id(integration_id: str) -> IntegrationId:
    """Raises Failure NOT_FOUND for a malformed id."""
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
