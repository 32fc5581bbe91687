"""The login of the binding `oidc`: to the tenant's issuer and back, before the browser goes to the provider.

A worker exchanges the login's code (ADR 0008); the browser waits for it.
"""

from evergrant_server.access.context import integration_spec
from evergrant_server.api.pages.callback_checks import (
    load_bound_session,
    parse_query,
    read_login_callback,
    require_same_token_endpoint,
)
from evergrant_server.api.pages.callback_outcome import outcome_of, record_refusal
from evergrant_server.api.pages.names import issuer_name
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.connections.consent import Consent, hash_state, reference_of
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.connections.login import must_log_in
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import Integration, require_pinned_login
from evergrant_server.core.messages.integrations import VerifyLogin
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import build_authorization_url, new_random_value
from providers.requests.callback import Callback
from providers.requests.callback_parameters import callback_words, state_in

LOGIN_TIMEOUT_S = 30.0  # the subject waits; each request to the issuer has a shorter limit


async def issuer_host(tx: Transaction, session: ConsentSession) -> str | None:
    """The host at which the subject has to log in first; None if that isn't needed, or not possible."""
    rule = session.integration.login
    if rule is None or not must_log_in(session.consent):
        return None
    found = await tx.integrations.by_name(session.consent.tenant, rule.integration)
    return None if found is None else issuer_name(found)


async def begin_login(
    tx: Transaction, pages: SubjectPages, session: ConsentSession
) -> tuple[Consent, str, str]:
    """Store a new state, code verifier and nonce of a login. Returns its URL and its issuer's host.

    Raises Failure CLIENT_REJECTED with the repair when no subject can log in.
    """
    rule, consent = session.integration.login, session.consent
    named = None if rule is None else await tx.integrations.by_name(consent.tenant, rule.integration)
    there = require_pinned_login(rule, named)
    assert rule is not None
    spec = await integration_spec(tx, pages.api.registry, there)
    endpoints = integration_endpoints(spec, there)
    state, verifier, nonce = new_random_value(), new_random_value(), new_random_value()
    redirect_uri = pages.api.redirect_uri(there.id)
    url = build_authorization_url(
        spec.__replace__(offline_scope=None),  # no token of a login is kept
        there,
        redirect_uri=redirect_uri,
        state=state,
        verifier=verifier,
        scopes=rule.scopes,
        nonce=nonce,
    )
    consent = await tx.consents.replace(
        consent.__replace__(
            state_hash=hash_state(state),
            nonce_hash=hash_of_nonce(nonce.reveal()),
            redirect_uri=redirect_uri,
            issuer=endpoints.issuer,
            token_endpoint=endpoints.token_endpoint,
        ),
        expected=consent.revision,
        verifier=verifier,
    )
    return consent, url, issuer_name(there)


async def find_login(pages: SubjectPages, raw: bytes) -> Consent | None:
    """The consent whose login has this callback; None for a provider's callback, or for none at all."""
    try:
        state = state_in(parse_query(raw))
    except Failure:
        return None
    async with pages.api.store.read() as tx:
        consent = await tx.consents.by_state(hash_state(state))
    return consent if consent is not None and must_log_in(consent) else None


async def finish_login(
    pages: SubjectPages, integration_id: IntegrationId, consent: Consent, raw: bytes
) -> str:
    """Have a worker compare who logged in. Returns the connect link, for the browser to go on with.

    A callback of the bound browser that fails its checks ends the attempt; an issuer's error doesn't. Raises
    Failure SUBJECT_MISMATCH for another person, and those of the worker.
    """
    bound, said = False, None
    try:
        async with pages.api.store.read() as tx:
            there = await tx.integrations.find_in_any_tenant(integration_id)
            await load_bound_session(pages, tx, consent, there, login=True)
            assert there is not None  # `load_bound_session` has checked it
            bound, said = True, callback_words(parse_query(raw), unauthenticated=True)
            callback = await _read_callback(tx, pages, there, consent, raw)
            link = await tx.consents.connect_link(consent)
        if callback.code is None:
            bound, said = False, callback.said  # the attempt doesn't end
            raise _not_logged_in(callback, there)
    except Failure as failure:
        await record_refusal(pages, consent, failure, end=bound, said=said)
        raise
    waiting = await _save_code(pages, consent, callback.code)
    order = VerifyLogin(
        tenant=consent.tenant, consent_id=consent.id, revision=waiting.revision, context=pages.context
    )
    result = await pages.api.link.verify_login(order, timeout=LOGIN_TIMEOUT_S)
    if result.failure is not None:
        failure = Failure(result.failure, result.detail, retry_after=result.retry_after)
        failure.context["reference"] = reference_of(consent.id)
        raise failure
    return link.reveal()


async def _read_callback(
    tx: Transaction, pages: SubjectPages, there: Integration, consent: Consent, raw: bytes
) -> Callback:
    """Raises Failure CALLBACK_INVALID, for a missing or wrong `iss` too (RFC 9207 section 2.4)."""
    spec = await integration_spec(tx, pages.api.registry, there)
    endpoints = integration_endpoints(spec, there)
    require_same_token_endpoint(consent, endpoints.token_endpoint)
    return read_login_callback(spec, there, consent.issuer, raw)


def _not_logged_in(callback: Callback, there: Integration) -> Failure:
    code = ErrorCode.CONSENT_REQUIRED  # the login was denied, not the consent
    if not callback.denied:
        code = outcome_of(callback)[1] or ErrorCode.PROVIDER_ERROR
    why = callback.error or "access_denied"
    return Failure(code, f"You were not logged in at {issuer_name(there)}: it answered {why}.")


async def _save_code(pages: SubjectPages, consent: Consent, code: Secret) -> Consent:
    """Its state is used up. One of parallel callbacks wins."""
    used = consent.__replace__(state_hash=None)
    try:
        async with pages.api.store.write() as tx:
            return await tx.consents.replace(used, expected=consent.revision, code=code)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
        twice = Failure(ErrorCode.CALLBACK_INVALID, "This callback was already used.")
        await record_refusal(pages, consent, twice)
        raise twice from None
