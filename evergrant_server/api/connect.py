"""`GET /connect/{link}` shows who asks for what; a POST goes on.

Link previews send GETs, so a GET changes nothing.
"""

import hashlib
from datetime import datetime
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.browsers import page
from evergrant_server.api.establishing import hash_of_link, require_ready
from evergrant_server.api.pushing import push_order, reference_of
from evergrant_server.api.subjects import SUBJECT, Going, Subjects, as_page, require_open, subjects_of
from evergrant_server.api.tracing import trace_of
from evergrant_server.core.access import Endpoints
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.consent import ConsentKind, ConsentStatus
from evergrant_server.core.device import DeviceCode
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.pushing import PushedRequest
from evergrant_server.core.secret import Secret
from evergrant_server.store import Tx
from providers.authorization import authorization_request, endpoints_for, new_state, new_verifier
from providers.proofs import binds
from providers.pushing import fields_to_push, pushed_url, pushes

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_TRIES = 3
_LONGEST_FORM = 4096


def hash_of_state(state: Secret) -> str:
    return hashlib.sha256(state.reveal().encode()).hexdigest()


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
    browser = subjects.browsers.of(request)
    form = await form_of(request)
    if browser is None or not subjects.browsers.is_csrf(form.get("csrf", ""), browser, link):
        raise Failure(
            Code.CALLBACK_INVALID, "The form didn't come from this page, or this browser keeps no cookies."
        )
    for attempt in range(1, _TRIES + 1):
        try:
            return page(await _started(subjects, request, link, browser))
        except Failure as failure:  # a double click: the second one wins, and the browser follows it
            if failure.code is not Code.STORE_CONFLICT or attempt == _TRIES:
                raise
    raise AssertionError("unreachable")


async def _started(subjects: Subjects, request: Request, link: str, browser: str) -> str:
    """A page that leads to the provider, once the attempt it belongs to is committed."""
    parts = subjects.parts
    state, verifier = new_state(), new_verifier()
    async with parts.store.write() as tx:
        going = await subjects.going(tx, await tx.consents.by_link(hash_of_link(link)))
        _require_mine(subjects, request, going)
        redirect_uri = parts.redirect_uri(going.integration.id)
        spec = going.spec
        url = authorization_request(
            spec,
            going.integration,
            redirect_uri=redirect_uri,
            state=state,
            verifier=verifier,
            scopes=going.consent.scopes,
            dpop_jkt=await _key_named(tx, going, parts.clock.now()),
        )
        endpoints = endpoints_for(spec, going.integration)
        pushed = None
        if pushes(spec, endpoints):
            pushed = PushedRequest(fields_to_push(url, _page_of(endpoints)))
        started = going.consent.model_copy(
            update={
                "status": ConsentStatus.STARTED,
                "state_hash": hash_of_state(state),
                "browser_hash": subjects.browsers.hash_of(browser),
                "redirect_uri": redirect_uri,
                "issuer": endpoints.issuer,
                "token_endpoint": endpoints.token_endpoint,
            }
        )
        started = await tx.consents.replace(
            started, expected=going.consent.revision, verifier=verifier, request=pushed
        )
        await _record(tx, subjects, request, going)
        if pushed is not None:
            asked = trace_of(request).asked_by(SUBJECT)
            await tx.outbox.add(push_order(started, asked, parts.clock.now()))
    if pushed is not None:
        parts.relay.nudge()
        reference = await reference_of(parts, started, spec, endpoints)
        if reference is not None:
            url = pushed_url(spec, going.integration, _page_of(endpoints), reference)
    return subjects.pages.leaving(provider=going.provider, url=url)


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
        scopes=list(going.consent.scopes),
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


async def form_of(request: Request) -> dict[str, str]:
    body = await request.body()
    if len(body) > _LONGEST_FORM:
        raise Failure(Code.BODY_TOO_LARGE)
    try:
        return dict(parse_qsl(body.decode("ascii"), max_num_fields=10))
    except ValueError:
        return {}
