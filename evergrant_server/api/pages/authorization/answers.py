"""Answers to OAuth clients: a code, or an error; and the stored request whose page is open until then.

A code is written with its audit record. An open request is of one browser and one session, and judged anew
each time.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import Response

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.pages.authorization.request import (
    Asked,
    AuthorizationRefused,
    AuthorizeQuery,
    answer_url,
    find_client,
    read_again,
)
from evergrant_server.api.pages.authorization.session import live_subject
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import (
    AuthorizationCodeId,
    AuthorizationRequestId,
    ClientConsentId,
    derived_id,
    is_id,
    new_id,
)
from evergrant_server.core.oauth.authorizations import AuthorizationCode
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient, known_id
from evergrant_server.core.oauth.redirects import where_it_leads, without_port
from evergrant_server.core.oauth.requests import (
    CODE_LASTS,
    AuthorizationRequest,
    ClientConsent,
    DeviceAuthorization,
    DeviceStatus,
    RequestStatus,
    SubjectSession,
)
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.requests.authorization_url import new_random_value

ANSWERED = "This page was answered already. Go on in the program that sent you."
_NOT_ALLOWED = re.compile(r"[^\x20-\x21\x23-\x5b\x5d-\x7e]")  # RFC 6749 section 4.1.2.1


def error_response(pages: SubjectPages, query: AuthorizeQuery, refused: AuthorizationRefused) -> Response:
    """The client's error, at a redirect URI that was proven to be its own."""
    metrics.count(metrics.AUTHORIZATIONS, refused.error)
    state = None if "state" in query.repeated else query.values.get("state")
    return redirect_response(_error_url(pages, query.values["redirect_uri"], state, refused))


async def deny(
    pages: SubjectPages, request: AuthorizationRequest, refused: AuthorizationRefused, *, form: bool = False
) -> Response:
    """End a request without a code. `form`: it answers a form."""

    async def write(tx: Transaction) -> None:
        ended = request.__replace__(status=RequestStatus.DENIED)
        await tx.authorization_requests.replace(ended, expected=request.revision)
        await _tell_device(tx, request, DeviceStatus.DENIED)
        detail = _detail(request) | {"error": refused.error}
        await pages.record(tx, AuditAction.AUTHORIZATION_DENIED, request.tenant, request.id, **detail)

    await _decide_once(pages, write)
    metrics.count(metrics.AUTHORIZATIONS, refused.error)
    if request.device_id is not None:
        return html_response(pages.templates.device_decided(allowed=False))
    return _leave(pages, _error_url(pages, request.redirect_uri, request.state, refused), form)


async def give_code(pages: SubjectPages, request: AuthorizationRequest, *, form: bool = False) -> Response:
    """End a request with a code, which works once, for a minute (RFC 6749 section 4.1.2)."""
    text = new_random_value()

    async def write(tx: Transaction) -> None:
        done = request.__replace__(status=RequestStatus.DONE)
        await tx.authorization_requests.replace(done, expected=request.revision)
        device = await _tell_device(tx, request, DeviceStatus.ALLOWED)
        await add_code(tx, pages, request, text, device)

    await _decide_once(pages, write)
    metrics.count(metrics.AUTHORIZATIONS, "code")
    if request.device_id is not None:
        return html_response(pages.templates.device_decided(allowed=True))
    return code_response(pages, request, text, form=form)


def code_response(
    pages: SubjectPages, request: AuthorizationRequest, text: Secret, *, form: bool = False
) -> Response:
    issuer = pages.api.settings.public_url
    url = answer_url(request.redirect_uri, issuer, request.state, code=text.reveal())
    return _leave(pages, url, form)


async def _tell_device(
    tx: Transaction, request: AuthorizationRequest, status: DeviceStatus
) -> DeviceAuthorization | None:
    """Note the decision for the device that waits for it; None for a request that came by a browser.

    Raises Failure CALLBACK_INVALID for a code that was decided on by another page.
    """
    if request.device_id is None:
        return None
    device = await tx.device_authorizations.get(request.tenant, request.device_id)
    if device is None or device.status is not DeviceStatus.WAITING:
        raise Failure(ErrorCode.CALLBACK_INVALID, ANSWERED)
    decided = device.__replace__(status=status)
    return await tx.device_authorizations.replace(decided, expected=device.revision)


async def add_code(
    tx: Transaction,
    pages: SubjectPages,
    request: AuthorizationRequest,
    text: Secret,
    device: DeviceAuthorization | None = None,
) -> None:
    """Write the code, the client's use and the audit record; at the first use of one that registered itself,
    its row. Raises Failure CLIENT_UNKNOWN, CLIENTS_OFF for what was turned off meanwhile.

    The code of a device is its device code, and counts as long: the client has it already.
    """
    now, client = pages.now, await _require_still_taken(pages, tx, request)
    if client.kind is ClientKind.REGISTERED and client.used_at is None:
        await _add_registered(tx, pages, client)
    code = AuthorizationCode(
        tenant=request.tenant,
        client_id=client.client_id,
        app_id=request.app_id,
        subject=request.subject,
        resource=request.resource,
        connection_id=request.connection_id,
        scopes=request.scopes,
        rule=request.rule,
        id=AuthorizationCodeId(new_id("cod")),
        code_hash=AuthorizationCode.hash_of(text.reveal()) if device is None else device.device_hash,
        redirect_uri=request.redirect_uri,
        challenge=request.challenge,
        created_at=now,
        expires_at=now + CODE_LASTS if device is None else max(device.expires_at, now + CODE_LASTS),
    )
    await tx.authorization_codes.add(code)
    await tx.oauth_clients.used(client, now)
    action, detail = AuditAction.AUTHORIZATION_GIVEN, _detail(request) | {"name": client.name}
    await record(tx, request.tenant, action, code.id, pages.context, now, **detail)


async def _add_registered(tx: Transaction, pages: SubjectPages, client: GatewayClient) -> None:
    """Keep what a client has registered, now that a person lets it in; created now, so that no token of a row
    that was deleted counts again."""
    if await tx.oauth_clients.add_once(client.__replace__(created_at=pages.now)):
        detail = {"name": client.name, "kind": client.kind, "redirect_uris": list(client.redirect_uris)}
        await pages.record(tx, AuditAction.OAUTH_CLIENT_PUT, client.tenant, client.id, **detail)


async def _require_still_taken(
    pages: SubjectPages, tx: Transaction, request: AuthorizationRequest
) -> GatewayClient:
    """The request's client, if the tenant's rule still takes it. Raises Failure TENANT_DISABLED, CLIENTS_OFF,
    CLIENT_UNKNOWN."""
    await tx.tenants.require_enabled(request.tenant)
    rule = await tx.client_logins.of_tenant(request.tenant)
    client = await find_client(pages, tx, request.client_id)
    if client is None or client.disabled:
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "An admin has turned this program off.")
    if rule is None or rule.id != request.rule or not rule.takes(client.kind):
        raise Failure(ErrorCode.CLIENTS_OFF, "An admin has changed the rule for such programs: begin again.")
    return client


def consent_to(request: AuthorizationRequest, pages: SubjectPages) -> ClientConsent:
    """The consent of a request's person, to be remembered."""
    where, client_id = without_port(request.redirect_uri), known_id(request.client_id)
    parts = (request.tenant, client_id, request.subject, request.resource, where)
    return ClientConsent(
        tenant=request.tenant,
        id=ClientConsentId(derived_id("ccn", *parts)),
        client_id=client_id,
        subject=request.subject,
        resource=request.resource,
        redirect_uri=where,
        rule=request.rule or "",
        created_at=pages.now,
        used_at=pages.now,
    )


def _detail(request: AuthorizationRequest) -> dict[str, object]:
    return {
        "client_id": known_id(request.client_id),
        "app": request.app_id,
        "subject": request.subject,
        "resource": request.resource,
        **_leads_to(request),
    }


def _leads_to(request: AuthorizationRequest) -> dict[str, object]:
    if request.device_id is not None:
        return {"device": request.device_id}
    return {"leads_to": where_it_leads(request.redirect_uri)}


async def _decide_once(pages: SubjectPages, write: Callable[[Transaction], Awaitable[None]]) -> None:
    try:
        await run_transaction(pages.api.store, write, tries=1)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
        raise Failure(ErrorCode.CALLBACK_INVALID, ANSWERED) from None


def _error_url(
    pages: SubjectPages, redirect_uri: str, state: str | None, refused: AuthorizationRefused
) -> str:
    error = {"error": refused.error, "error_description": _NOT_ALLOWED.sub("?", refused.description)}
    return answer_url(redirect_uri, pages.api.settings.public_url, state, **error)


def _leave(pages: SubjectPages, url: str, form: bool) -> Response:
    """Lead the browser on; after a form by a page, whose policy for forms would apply to every hop of a
    redirect."""
    if not form:
        return redirect_response(url)
    return html_response(pages.templates.redirecting(parties=None, to=where_it_leads(url), url=url))


@dataclass(frozen=True)
class OpenedRequest:
    """A request with its client, what it asks for now, and its person's session."""

    request: AuthorizationRequest
    client: GatewayClient
    asked: Asked
    session: SubjectSession


async def find_request(pages: SubjectPages, request_id: str) -> AuthorizationRequest:
    """The undecided request of this browser. Raises Failure CALLBACK_INVALID."""
    request = None
    if is_id(request_id, "azr"):
        async with pages.api.store.read() as tx:
            request = await tx.authorization_requests.find_in_any_tenant(AuthorizationRequestId(request_id))
    if request is None or not pages.is_bound_to(request.browser_hash):
        raise Failure(ErrorCode.CALLBACK_INVALID, "This page belongs to another browser, or has expired.")
    if request.status in (RequestStatus.DONE, RequestStatus.DENIED):
        raise Failure(ErrorCode.CALLBACK_INVALID, ANSWERED)
    if request.expires_at <= pages.now:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This page has expired: begin again in the program.")
    return request


async def open_request(pages: SubjectPages, request: AuthorizationRequest) -> OpenedRequest:
    """The request, of its session, judged anew. Raises Failure CALLBACK_INVALID; CLIENT_UNKNOWN, CLIENTS_OFF,
    NOT_PERMITTED and TENANT_DISABLED for what was taken away."""
    async with pages.api.store.read() as tx:
        client = await _require_still_taken(pages, tx, request)
        asked = await read_again(pages, tx, request, client)
        session = await live_subject(pages, tx, asked.rule)
    if session is None or session.id != request.session_id:
        raise Failure(ErrorCode.CALLBACK_INVALID, "You have logged in anew: begin again in the program.")
    return OpenedRequest(request, client, asked, session)


async def remember(pages: SubjectPages, opened: OpenedRequest) -> None:
    consent = consent_to(opened.request, pages)
    await run_transaction(pages.api.store, lambda tx: tx.client_consents.put(consent))
