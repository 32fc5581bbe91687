"""`/oauth/callback/{integration}/fragment`: takes the fragment of the implicit flow (RFC 6749 section 4.2.2).

The page posts it as a body: URLs end up in logs and browser histories.
"""

from dataclasses import replace

from fastapi import APIRouter, Request
from pydantic import BaseModel

from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.pages.callback import accept_callback
from evergrant_server.api.pages.callback_checks import Query, parse_integration_id, require_same_endpoints
from evergrant_server.api.pages.callback_outcome import connect_path, record_refusal, wait_for_grant
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, subject_pages
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.callback import Callback, read_fragment

router = APIRouter(tags=["pages"])

_FORM = "application/x-www-form-urlencoded"


class FragmentAccepted(BaseModel):
    """The path that the page loads next."""

    next: str


@router.post("/oauth/callback/{integration_id}/fragment")
async def accept_fragment(request: Request, integration_id: str) -> FragmentAccepted:
    """Store the token with its consent, wait for a worker to install it, and return the next path."""
    pages, id = subject_pages(request), parse_integration_id(integration_id)
    try:
        require_flow_allowed(Flow.IMPLICIT, pages.api, ErrorCode.CALLBACK_INVALID)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Failure(ErrorCode.CALLBACK_INVALID, "Only the callback page may send a fragment.")
    except Failure as failure:
        async with pages.api.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(id)
        await record_refusal(pages, request, integration, None, failure)
        raise
    session = await accept_callback(pages, request, id, await request.body(), _judge_fragment)
    return FragmentAccepted(next=await connect_path(pages, await wait_for_grant(pages, session)))


def _judge_fragment(
    pages: SubjectPages, session: ConsentSession, fragment: Query
) -> tuple[Callback, ConsentSession]:
    """The parsed fragment. Raises Failure CALLBACK_INVALID, ID_TOKEN_REFUSED, REPLY_UNREADABLE."""
    if session.connection.flow is not Flow.IMPLICIT:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This attempt requested a code, not a token.")
    endpoints = require_same_endpoints(session)
    callback = read_fragment(
        fragment,
        expected_issuer=session.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=session.spec,
        params=session.integration.params,
        requested=session.consent.scopes,
        nonce_hash=session.consent.nonce_hash,
        now=pages.api.clock.now(),
    )
    return callback, replace(session, consent=session.consent.model_copy(update={"facts": callback.metadata}))
