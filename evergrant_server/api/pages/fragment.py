"""`/oauth/callback/{integration}/fragment`: the browser's page brings what came behind the # (RFC 6749
section 4.2.2).

It comes as a body, never in a URL of ours: that is where logs and histories look.
"""

from dataclasses import replace

from fastapi import APIRouter, Request
from pydantic import BaseModel

from evergrant_server.api.pages.callback import (
    Query,
    accept_callback,
    connect_path,
    parse_integration_id,
    record_refusal,
    require_same_endpoints,
    wait_for_grant,
)
from evergrant_server.api.pages.implicit import require_flow_allowed
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, subject_pages
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from providers.requests.callback import Callback
from providers.requests.implicit import read_fragment

router = APIRouter(tags=["pages"])

_FORM = "application/x-www-form-urlencoded"


class FragmentAccepted(BaseModel):
    """Where the page goes on: a path of ours."""

    next: str


@router.post("/oauth/callback/{integration_id}/fragment")
async def accept_fragment(request: Request, integration_id: str) -> FragmentAccepted:
    """Seal the token with its consent, have the worker install it, and say where the browser goes on."""
    subjects, id = subject_pages(request), parse_integration_id(integration_id)
    try:
        require_flow_allowed(Flow.IMPLICIT, subjects.parts, ErrorCode.CALLBACK_INVALID)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Failure(ErrorCode.CALLBACK_INVALID, "A fragment is brought by its own page.")
    except Failure as failure:
        async with subjects.parts.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(id)
        await record_refusal(subjects, request, integration, None, failure)
        raise
    going = await accept_callback(subjects, request, id, await request.body(), _judge_fragment)
    return FragmentAccepted(next=await connect_path(subjects, await wait_for_grant(subjects, going)))


def _judge_fragment(
    subjects: SubjectPages, going: ConsentSession, fragment: Query
) -> tuple[Callback, ConsentSession]:
    """What the fragment says. Raises Failure CALLBACK_INVALID, ID_TOKEN_REFUSED, REPLY_UNREADABLE."""
    if going.connection.flow is not Flow.IMPLICIT:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This attempt was sent for a code, not for a token.")
    endpoints = require_same_endpoints(going)
    callback = read_fragment(
        fragment,
        expected_issuer=going.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=going.spec,
        params=going.integration.params,
        requested=going.consent.scopes,
        nonce_hash=going.consent.nonce_hash,
        now=subjects.parts.clock.now(),
    )
    return callback, replace(going, consent=going.consent.model_copy(update={"facts": callback.metadata}))
