"""`GET /connect/{link}` shows who asks for what; a POST goes on.

Link previews send GETs, so a GET changes nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api import leaving_oauth1
from evergrant_server.api.browsers import page
from evergrant_server.api.establishing import require_ready
from evergrant_server.api.forms import form_of
from evergrant_server.api.implicit import require_allowed
from evergrant_server.api.parts import Parts
from evergrant_server.api.pushing import push_order, reference_of
from evergrant_server.api.subjects import SUBJECT, Going, Subjects, as_page, require_open, subjects_of
from evergrant_server.api.tracing import trace_of
from evergrant_server.core.access import Endpoints
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.consent import Consent, ConsentKind, ConsentStatus, hash_of_link, hash_of_state
from evergrant_server.core.device import DeviceCode
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from evergrant_server.core.id_token import hash_of_nonce
from evergrant_server.core.messages import Asked
from evergrant_server.core.pushing import PushedRequest
from evergrant_server.store import Tx
from providers.authorization import (
    asks_for_id_token,
    authorization_request,
    endpoints_for,
    new_nonce,
    new_state,
    new_verifier,
)
from providers.proofs import binds
from providers.pushing import fields_to_push, pushed_url, pushes

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_TRIES = 3
_MOST_REVISIONS = 100  # a click makes one to three


@router.get("/connect/{link}")
@as_page
async def show(request: Request, link: str) -> Response:
    """Who asks for what. Nothing is bound or started by looking."""
    subjects = subjects_of(request)
    async with subjects.parts.store.read() as tx:
        going = await subjects.going(tx, await tx.consents.by_link(hash_of_link(link)))
        device = await tx.consents.device(going.consent)
    if going.consent.kind is ConsentKind.DEVICE:
        return await _device(request, subjects, going, device)
    if _is_over(subjects, request, going):
        return await subjects.shown(request, going)
    _require_mine(subjects, request, going)
    browser = subjects.browsers.of(request) or subjects.browsers.new()
    html = subjects.pages.connect(
        provider=going.provider,
        integration=going.integration.name,
        subject=going.connection.subject,
        consent=going.consent,
        csrf=subjects.browsers.csrf(browser, link),
    )
    response = page(html)
    subjects.browsers.keep(response, browser)
    return response


async def _device(request: Request, subjects: Subjects, going: Going, device: DeviceCode | None) -> Response:
    """The code to type in elsewhere. Nothing is bound to this browser: there is nothing to take over."""
    if going.consent.status is not ConsentStatus.CODE_RECEIVED or device is None:
        return await subjects.shown(request, going)
    if device.expires_at <= subjects.parts.clock.now():
        raise Failure(Code.CONSENT_EXPIRED, "This code has expired.")
    return page(subjects.pages.device(provider=going.provider, consent=going.consent, device=device))


@router.post("/connect/{link}")
@as_page
async def go_on(request: Request, link: str) -> Response:
    """Bind this browser, make a fresh state and verifier, and send it to the provider."""
    subjects = subjects_of(request)
    browser = (await form_of(request, subjects.browsers, link)).browser
    for attempt in range(1, _TRIES + 1):
        try:
            return page(await _started(subjects, request, link, browser))
        except Failure as failure:  # a double click: the second one wins, and the browser follows it
            if failure.code is not Code.STORE_CONFLICT or attempt == _TRIES:
                raise
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Begun:
    """An attempt that is committed, and where its browser goes unless a worker gets a reference first."""

    consent: Consent
    url: str
    endpoints: Endpoints
    pushed: bool


async def _started(subjects: Subjects, request: Request, link: str, browser: str) -> str:
    """A page that leads to the provider, once the attempt it belongs to is committed."""
    parts, asked = subjects.parts, trace_of(request).asked_by(SUBJECT)
    async with parts.store.write() as tx:
        going = await subjects.going(tx, await tx.consents.by_link(hash_of_link(link)))
        _require_mine(subjects, request, going)
        if going.consent.revision > _MOST_REVISIONS:  # each click may have a worker ask the provider
            raise Failure(Code.CONSENT_EXPIRED, "This link was used too often.")
        require_allowed(going.connection.flow, parts)
        bound = {
            "status": ConsentStatus.STARTED,
            "browser_hash": subjects.browsers.hash_of(browser),
            "redirect_uri": parts.redirect_uri(going.integration.id),
        }
        going = replace(going, consent=going.consent.model_copy(update=bound))
        if going.connection.flow is Flow.OAUTH1:
            begun = await leaving_oauth1.begun(tx, going)
        else:
            begun = await _begun(tx, going, asked, parts.clock.now())
        await _record(tx, subjects, request, going)
    if isinstance(begun, Consent):
        url = await leaving_oauth1.url_of(subjects, going, begun, asked)
    else:
        url = await _url_of(parts, going, begun)
    return subjects.pages.leaving(provider=going.provider, url=url)


async def _begun(tx: Tx, going: Going, asked: Asked, now: datetime) -> _Begun:
    """A fresh state, verifier and nonce; a worker is told where the request is to be pushed."""
    state, spec, consent = new_state(), going.spec, going.consent
    assert consent.redirect_uri is not None
    verifier = None if going.connection.flow is Flow.IMPLICIT else new_verifier()
    asks = asks_for_id_token(spec, going.integration, consent.scopes)
    nonce = new_nonce() if asks else None
    url = authorization_request(
        spec,
        going.integration,
        redirect_uri=consent.redirect_uri,
        state=state,
        verifier=verifier,
        scopes=consent.scopes,
        chain_scopes=consent.chain_scopes,
        target=going.connection.target,
        nonce=nonce,
        dpop_jkt=await _key_named(tx, going, now) if verifier is not None else None,
    )
    endpoints = endpoints_for(spec, going.integration)
    pushed = None
    if pushes(spec, endpoints):
        pushed = PushedRequest(fields_to_push(url, _page_of(endpoints)))
    sent = {
        "state_hash": hash_of_state(state),
        "nonce_hash": None if nonce is None else hash_of_nonce(nonce.reveal()),
        "issuer": endpoints.issuer,
        "token_endpoint": endpoints.token_endpoint,
    }
    started = await tx.consents.replace(
        consent.model_copy(update=sent), expected=consent.revision, verifier=verifier, request=pushed
    )
    if pushed is not None:
        await tx.outbox.add(push_order(started, asked, now))
    return _Begun(started, url, endpoints, pushed is not None)


async def _url_of(parts: Parts, going: Going, begun: _Begun) -> str:
    """With the reference that a worker got, where the request was pushed."""
    if not begun.pushed:
        return begun.url
    parts.relay.nudge()
    reference = await reference_of(parts, begun.consent, going.spec, begun.endpoints)
    if reference is None:
        return begun.url
    return pushed_url(going.spec, going.integration, _page_of(begun.endpoints), reference)


async def _key_named(tx: Tx, going: Going, now: datetime) -> str | None:
    """The key that code and tokens are to be bound to: a stolen code is then of no use to anybody else."""
    connection = going.connection
    grant = await tx.grants.get(connection.tenant, connection.id)
    if not binds(going.spec, going.integration, grant):
        return None
    return (await tx.proof_keys.ensure(connection.tenant, connection.id, now)).thumbprint


def _page_of(endpoints: Endpoints) -> str:
    assert endpoints.authorization_endpoint is not None  # or there had been nothing to ask
    return endpoints.authorization_endpoint


async def _record(tx: Tx, subjects: Subjects, request: Request, going: Going) -> None:
    await subjects.record(
        tx,
        request,
        AuditAction.CONSENT_STARTED,
        going.consent.tenant,
        going.connection.id,
        consent_id=going.consent.id,
        scopes=list(going.consent.asks_for),
        asked_by=going.consent.by,
    )


def _is_over(subjects: Subjects, request: Request, going: Going) -> bool:
    """True when the browser that went through it looks at the link again."""
    ended = going.consent.status not in (ConsentStatus.OPEN, ConsentStatus.STARTED)
    return ended and subjects.browsers.is_bound(request, going.consent.browser_hash)


def _require_mine(subjects: Subjects, request: Request, going: Going) -> None:
    """The subject who starts is the one who finishes: a begun link works in its browser alone."""
    require_open(going, subjects.parts.clock.now())
    require_ready(going.integration)
    if going.consent.status is ConsentStatus.STARTED and not subjects.browsers.is_bound(
        request, going.consent.browser_hash
    ):
        raise Failure(
            Code.CALLBACK_INVALID,
            "This link was opened in another browser. Finish there, or ask for a new link.",
        )
