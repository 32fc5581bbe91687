"""`/oauth/device`: a person types the code that a program shows on a device without a browser (RFC 8628
section 3.3), logs in, and comes to the page that asks them as for any other program.

A code is no proof that the person began it (section 5.4): the page shows it again, and asks each time.
"""

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.pages.authorization.request import (
    Asked,
    AskedResource,
    AuthorizationRefused,
    fresh_client,
    read_device,
    read_document,
)
from evergrant_server.api.pages.authorization.session import client_page, live_subject
from evergrant_server.api.pages.authorization.upstream import require_consentable
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.login import begin_client_login
from evergrant_server.api.pages.session import AUTHORIZE_PATH, DEVICE_PATH, PagesDep, SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AuthorizationRequestId, new_id
from evergrant_server.core.oauth.requests import (
    DEVICE_GRANT,
    REQUEST_LASTS,
    SCOPES,
    AuthorizationRequest,
    DeviceAuthorization,
    SubjectSession,
    shown_user_code,
    typed_user_code,
)
from evergrant_server.store import Transaction

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_NOBODY_WAITS = (
    "No program waits with this code: it is mistyped, was used, or has expired. "
    "Have the program show another one."
)


@dataclass(frozen=True)
class _Found:
    """A device's request with what it asks for, and its person."""

    device: DeviceAuthorization
    asked: Asked
    session: SubjectSession


@router.get(DEVICE_PATH)
@client_page
async def enter_code(pages: PagesDep, user_code: str = "") -> Response:
    """The verification URI (RFC 8628 section 3.3): takes the code that a program shows, and has the person
    log in."""
    if not user_code:
        return html_response(pages.templates.enter_code())
    device = await _waiting_device(pages, user_code)
    resource = AskedResource(device.resource, device.connection_id)
    client = await fresh_client(pages, device.client_id)
    try:
        async with pages.api.store.read() as tx:
            asked = await read_device(pages, tx, resource, client)
            session = await live_subject(pages, tx, asked.rule)
        query = f"user_code={device.user_code}"
        if session is None:
            return await begin_client_login(pages, asked.rule, query, form=True)
        if client is None:
            await read_document(pages, device.client_id)
        if not asked.is_for(session.subject):
            if session.created_at + REQUEST_LASTS / 10 < pages.now:  # another login than this request's
                return await begin_client_login(pages, asked.rule, query, as_another=True, form=True)
            why = "the connection is of another person than who logged in"
            raise AuthorizationRefused("access_denied", why)
        require_consentable(asked.connection)
        return await _open(pages, _Found(device, asked, session))
    except AuthorizationRefused as refused:
        raise Failure(ErrorCode.NOT_PERMITTED, refused.sentence) from None


async def _waiting_device(pages: SubjectPages, typed: str) -> DeviceAuthorization:
    """Raises Failure CALLBACK_INVALID."""
    code, device = typed_user_code(typed), None
    if code is not None:
        async with pages.api.store.read() as tx:
            device = await tx.device_authorizations.by_user_code(code)
    if device is None or not device.is_waiting(pages.now):
        raise Failure(ErrorCode.CALLBACK_INVALID, _NOBODY_WAITS)
    return device


async def _open(pages: SubjectPages, found: _Found) -> Response:
    """To the page that asks the person."""
    device, asked, session = found.device, found.asked, found.session
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    request = AuthorizationRequest(
        tenant=asked.rule.tenant,
        id=AuthorizationRequestId(new_id("azr")),
        client_id=device.client_id,
        app_id=asked.app.id,
        subject=asked.subject_of(session.subject),
        resource=device.resource,
        connection_id=device.connection_id,
        scopes=SCOPES,
        rule=asked.rule.id,
        redirect_uri=DEVICE_GRANT,
        challenge="",  # no verifier has this hash: the code is of use with the device code alone
        device_id=device.id,
        session_id=session.id,
        browser_hash=pages.browsers.hash_cookie(browser),
        created_at=pages.now,
        expires_at=device.expires_at,
    )
    async with pages.api.store.write() as tx:
        await tx.authorization_requests.add(request)
    response = redirect_response(f"{AUTHORIZE_PATH}/{request.id}")
    pages.browsers.set_cookie(response, browser)
    return response


async def user_code_of(tx: Transaction, request: AuthorizationRequest) -> str | None:
    """The code that the device of a request shows, as people read it; None for a request of a browser."""
    if request.device_id is None:
        return None
    device = await tx.device_authorizations.get(request.tenant, request.device_id)
    return None if device is None else shown_user_code(device.user_code)
