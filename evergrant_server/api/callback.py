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

from evergrant_server.api.browsers import redirect
from evergrant_server.api.implicit import fragment_page
from evergrant_server.api.outgoing import signal
from evergrant_server.api.subjects import SUBJECT, Going, Subjects, as_page, require_open, subjects_of
from evergrant_server.api.tracing import trace_of
from evergrant_server.core.access import Endpoints, Integration
from evergrant_server.core.account import FollowUp
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.consent import Consent, ConsentKind, ConsentStatus, hash_of_state
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import IntegrationId, is_id
from evergrant_server.core.messages import (
    SIGNAL_CONSENT_DENIED,
    SIGNAL_CONSENT_GRANTED,
    ConsentDenied,
    ConsentGranted,
)
from evergrant_server.store import Tx
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event
from providers import oauth1
from providers.authorization import endpoints_for
from providers.callback import Callback, judge_callback, state_of
from providers.callback_facts import check_signature
from providers.implicit import TOKEN, judge_query
from providers.resolve import complete

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

WAIT_S = 15.0
_LOOK_S = 0.1
_LONGEST_QUERY = 16_384
_MOST_FIELDS = 60
_OURS_TO_REPAIR = frozenset(
    {"invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope"}
)

Query = list[tuple[str, str]]
Judge = Callable[[Subjects, Going, Query], tuple[Callback, Going]]


@router.post("/oauth/callback/{integration_id}")
@as_page
async def posted(request: Request, integration_id: str) -> Response:
    """`response_mode=form_post`: a browser sends no Lax cookie with it, so it comes again as a GET."""
    query = _parsed(await request.body())
    if any(name == TOKEN for name, _ in query):
        raise Failure(Code.CALLBACK_INVALID, "A token came where a code is expected.")  # in no URL of ours
    return redirect(f"/oauth/callback/{known(integration_id)}?{urlencode(query)}")


@router.get("/oauth/callback/{integration_id}")
@as_page
async def came_back(request: Request, integration_id: str) -> Response:
    """Take the code, hand it to the worker by way of the store, and show what came of it."""
    subjects, raw = subjects_of(request), request.scope["query_string"]
    if not raw and (empty := await _without_query(subjects, request, known(integration_id))) is not None:
        return empty
    going = await settled(subjects, await received(subjects, request, known(integration_id), raw, _judged))
    ended = going.consent.status in (ConsentStatus.DONE, ConsentStatus.DENIED)
    if ended and going.connection.follow_up is not FollowUp.CHOOSING and going.consent.return_to:
        return await subjects.shown(request, going)
    return redirect(await page_of(subjects, going))


async def _without_query(
    subjects: Subjects, request: Request, integration_id: IntegrationId
) -> Response | None:
    """A fragment stays in the browser: its page brings it here."""
    async with subjects.parts.store.read() as tx:
        integration = await tx.integrations.find(integration_id)
    if integration is None:
        return None
    try:
        return await fragment_page(subjects, integration)
    except Failure as failure:
        await refuse(subjects, request, integration, None, failure)
        raise


async def page_of(subjects: Subjects, going: Going) -> str:
    """The link's own page says how it stands: no code in the address bar, and safe to load again."""
    async with subjects.parts.store.read() as tx:
        link = await tx.consents.link(going.consent)
    return f"/connect/{link.reveal()}"


async def received(
    subjects: Subjects, request: Request, integration_id: IntegrationId, raw: bytes, judge: Judge
) -> Going:
    """Judge the callback and write what it brought. Every refusal is in the audit log."""
    parts, consent, integration = subjects.parts, None, None
    try:
        async with parts.store.read() as tx:
            integration = await tx.integrations.find(integration_id)
            query = _parsed(raw)
            said = oauth1.token_of(query) or state_of(query)
            consent = await tx.consents.by_state(hash_of_state(said))
            going = await _mine(subjects, tx, request, consent, integration)
    except Failure as failure:
        await refuse(subjects, request, integration, None, failure)
        raise
    try:
        await _verify(subjects, going, query)
    except Failure as failure:  # whoever signs it wrongly isn't the provider: its own may still come
        await refuse(subjects, request, integration, None, failure)
        raise
    try:
        callback, going = judge(subjects, going, query)
    except Failure as failure:
        await refuse(subjects, request, integration, going, failure)
        raise
    try:
        return await _written(subjects, request, going, callback)
    except Failure as failure:
        if failure.code is not Code.STORE_CONFLICT:
            raise
        used = Failure(Code.CALLBACK_INVALID, "This callback was used already.")
        await refuse(subjects, request, integration, None, used)
        raise used from None


async def _mine(
    subjects: Subjects,
    tx: Tx,
    request: Request,
    consent: Consent | None,
    integration: Integration | None,
) -> Going:
    """The consent this state belongs to. One answer for whatever is wrong: it says nothing to a guesser."""
    unknown = Failure(Code.CALLBACK_INVALID, "The state is not known in this browser.")
    if consent is None or integration is None:
        raise unknown
    same = consent.integration_id == integration.id and consent.tenant == integration.tenant
    expected = subjects.parts.redirect_uri(integration.id)
    if not same or consent.redirect_uri != expected:
        raise unknown
    if not subjects.browsers.is_bound(request, consent.browser_hash):
        raise unknown
    if consent.status is not ConsentStatus.STARTED:
        raise Failure(Code.CALLBACK_INVALID, "This callback was used already.")
    going = await subjects.going(tx, consent)
    require_open(going, subjects.parts.clock.now())
    return going


async def _verify(subjects: Subjects, going: Going, query: Query) -> None:
    """Before anything in a signed callback is believed. In a rotation's overlap either secret signs."""
    if going.spec.callback_verify is None:
        return
    integration = going.integration
    async with subjects.parts.store.read() as tx:
        secrets = [await tx.integrations.client_secret(integration)]
        if integration.previous_secret_counts(subjects.parts.clock.now()):
            secrets.append(await tx.integrations.previous_secret(integration))
    check_signature(going.spec, query, [secret for secret in secrets if secret is not None])


def _judged(subjects: Subjects, going: Going, query: Query) -> tuple[Callback, Going]:
    """What the callback says, and the consent with all that it brought beside the code."""
    spec = going.spec
    if going.connection.flow is Flow.OAUTH1:
        return _judged_oauth1(going, query), going
    endpoints = endpoints_now(going)
    if going.connection.flow is Flow.IMPLICIT:
        issuer, required = going.consent.issuer, endpoints.iss_in_callback
        return judge_query(query, expected_issuer=issuer, iss_required=required, spec=spec), going
    callback = judge_callback(
        query,
        expected_issuer=going.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=spec,
        params=going.integration.params,
        requested=going.consent.scopes,
    )
    if callback.code is None:
        return callback, going
    return callback, replace(going, consent=going.consent.model_copy(update=_brought(going, callback)))


def endpoints_now(going: Going) -> Endpoints:
    """Those of the attempt. Raises Failure CALLBACK_INVALID when they are others by now: code and
    verifier go to the endpoint recorded for this attempt, or nowhere."""
    endpoints = endpoints_for(going.spec, going.integration)
    if endpoints.token_endpoint != going.consent.token_endpoint:
        raise _moved()
    return endpoints


def _brought(going: Going, callback: Callback) -> dict[str, object]:
    """What the code is bound to from here on: the endpoint it goes to, when the callback names a part
    of it, and the facts that came with it."""
    endpoints = endpoints_for(going.spec, going.integration, callback.metadata)
    try:
        token_endpoint = complete(going.spec, endpoints.token_endpoint)
    except Failure as failure:
        raise Failure(Code.CALLBACK_INVALID, f"The callback was refused: {failure.detail}.") from None
    return {
        "token_endpoint": token_endpoint,
        "facts": callback.metadata,
        "granted_scopes": callback.scopes,
    }


def _judged_oauth1(going: Going, query: Query) -> Callback:
    if oauth1.endpoints_of(going.spec, going.integration).token != going.consent.token_endpoint:
        raise _moved()
    return oauth1.judge_callback(query)


def _moved() -> Failure:
    return Failure(Code.CALLBACK_INVALID, "The integration's endpoints changed meanwhile.")


async def _written(subjects: Subjects, request: Request, going: Going, callback: Callback) -> Going:
    """Consent, outbox and audit in one transaction. Of parallel callbacks one wins (compare-and-set)."""
    status, failure = _outcome(callback)
    asked = trace_of(request).asked_by(SUBJECT)
    now = subjects.parts.clock.now()
    after = going.consent.model_copy(update={"status": status, "failure": failure})
    if callback.tokens is not None:
        after = after.model_copy(update={"kind": ConsentKind.IMPORT, "granted_scopes": callback.scopes})
    async with subjects.parts.store.write() as tx:
        after = await tx.consents.replace(
            after, expected=going.consent.revision, code=callback.code, tokens=callback.tokens
        )
        if status is ConsentStatus.CODE_RECEIVED:
            granted = ConsentGranted(attempt_id=after.id, asked=asked)
            await tx.outbox.add(signal(going.connection, SIGNAL_CONSENT_GRANTED, granted, now))
        elif status is ConsentStatus.DENIED:
            denied = ConsentDenied(attempt_id=after.id, asked=asked)
            await tx.outbox.add(signal(going.connection, SIGNAL_CONSENT_DENIED, denied, now))
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


def _outcome(callback: Callback) -> tuple[ConsentStatus, Code | None]:
    if callback.denied:
        return ConsentStatus.DENIED, Code.CONSENT_DENIED
    if callback.code is not None or callback.tokens is not None:
        return ConsentStatus.CODE_RECEIVED, None
    ours = callback.error in _OURS_TO_REPAIR
    return ConsentStatus.FAILED, Code.CLIENT_REJECTED if ours else Code.PROVIDER_ERROR


async def settled(subjects: Subjects, going: Going) -> Going:
    """Wait for the worker, for a while: it writes DONE or FAILED, and which accounts there are."""
    subjects.parts.relay.nudge()
    consent, connection = going.consent, going.connection
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while consent.status is ConsentStatus.CODE_RECEIVED or connection.follow_up is FollowUp.LOOKING:
                await asyncio.sleep(_LOOK_S)
                async with subjects.parts.store.read() as tx:
                    consent = await tx.consents.get(consent.tenant, consent.id) or consent
                    connection = await tx.connections.get(consent.tenant, connection.id) or connection
    return replace(going, consent=consent, connection=connection)


async def refuse(
    subjects: Subjects,
    request: Request,
    integration: Integration | None,
    going: Going | None,
    failure: Failure,
) -> None:
    """Record it. With `going`, the callback came from the right browser and was bad: its attempt ends."""
    if integration is None:
        say(log, logging.INFO, Event.CALLBACK_REFUSED, "no integration", code=failure.code)
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


def known(integration_id: str) -> IntegrationId:
    """Raises Failure NOT_FOUND for what is no id of ours."""
    if not is_id(integration_id, "int"):
        raise Failure(Code.NOT_FOUND, "This address is not known.")
    return IntegrationId(integration_id)


def _parsed(raw: bytes) -> Query:
    """The parameters in order, doubled ones included. Raises Failure CALLBACK_INVALID."""
    if len(raw) > _LONGEST_QUERY:
        raise Failure(Code.CALLBACK_INVALID, "The callback is too long.")
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Failure(Code.CALLBACK_INVALID, "The callback can't be read.") from None
