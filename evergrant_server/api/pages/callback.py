"""`/oauth/callback/{integration}`: the redirect URI (RFC 6749 section 4.1.2).

The query is untrusted: its state must be known, unused, unexpired, and of this integration
and this browser.
"""

from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.callback_checks import (
    CallbackJudge,
    judge_code_callback,
    load_bound_session,
    parse_integration_id,
    parse_query,
    verify_signature,
)
from evergrant_server.api.pages.callback_outcome import (
    connect_path,
    record_refusal,
    save_outcome,
    wait_for_grant,
)
from evergrant_server.api.pages.implicit import fragment_page
from evergrant_server.api.pages.session import (
    ConsentSession,
    SubjectPages,
    html_route,
    subject_pages,
)
from evergrant_server.core.connections.consent import ConsentStatus, hash_state
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import Integration
from providers.oauth1 import flow
from providers.requests.callback import ACCESS_TOKEN_PARAM
from providers.requests.callback_parameters import state_in

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.post("/oauth/callback/{integration_id}")
@html_route
async def callback_by_post(request: Request, integration_id: str) -> Response:
    """`response_mode=form_post`: redirects to GET, because browsers send no Lax cookie with this POST."""
    query = parse_query(await request.body())
    if any(name == ACCESS_TOKEN_PARAM for name, _ in query):
        # a token must not get into a URL
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback has a token where a code is expected.")
    return redirect_response(f"/oauth/callback/{parse_integration_id(integration_id)}?{urlencode(query)}")


@router.get("/oauth/callback/{integration_id}")
@html_route
async def callback_by_get(request: Request, integration_id: str) -> Response:
    """Store the code for a worker, wait for the exchange, and show its outcome."""
    pages, id, raw = (
        subject_pages(request),
        parse_integration_id(integration_id),
        request.scope["query_string"],
    )
    if not raw and (fragment := await _fragment_page(pages, request, id)) is not None:
        return fragment
    accepted = await accept_callback(pages, request, id, raw, judge_code_callback)
    session = await wait_for_grant(pages, accepted)
    ended = session.consent.status in (ConsentStatus.DONE, ConsentStatus.DENIED)
    if ended and session.connection.follow_up is not FollowUp.CHOOSING and session.consent.return_to:
        return await pages.outcome_response(request, session)
    return redirect_response(await connect_path(pages, session))


async def _fragment_page(
    pages: SubjectPages, request: Request, integration_id: IntegrationId
) -> Response | None:
    """The page that posts the fragment, which browsers don't send; None for other flows."""
    async with pages.api.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(integration_id)
    if integration is None:
        return None
    try:
        return await fragment_page(pages, integration)
    except Failure as failure:
        await record_refusal(pages, request, integration, None, failure)
        raise


async def accept_callback(
    pages: SubjectPages, request: Request, integration_id: IntegrationId, raw: bytes, judge: CallbackJudge
) -> ConsentSession:
    """Check the callback and store its code, tokens or error. Records every refusal in the audit log.

    A callback of the bound browser that fails its checks ends the attempt. One with a wrong signature
    doesn't: it is not the provider's, whose own callback may still follow.
    """
    integration: Integration | None = None
    verified: ConsentSession | None = None
    try:
        async with pages.api.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(integration_id)
            query = parse_query(raw)
            state = flow.temporary_token_in(query) or state_in(query)
            consent = await tx.consents.by_state(hash_state(state))
            session = await load_bound_session(pages, tx, request, consent, integration)
        await verify_signature(pages, session, query)
        verified = session
        callback, session = judge(pages, session, query)
    except Failure as failure:
        await record_refusal(pages, request, integration, verified, failure)
        raise
    try:
        return await save_outcome(pages, request, session, callback)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
        used = Failure(ErrorCode.CALLBACK_INVALID, "This callback was already used.")
        await record_refusal(pages, request, integration, None, used)
        raise used from None
