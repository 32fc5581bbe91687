"""`/oauth/callback/{integration}/fragment`: the browser's page brings what came behind the # (RFC 6749
section 4.2.2).

It comes as a body, never in a URL of ours: that is where logs and histories look.
"""

from dataclasses import replace

from fastapi import APIRouter, Request
from pydantic import BaseModel

from evergrant_server.api.callback import (
    Query,
    endpoints_now,
    known,
    page_of,
    received,
    refuse,
    settled,
)
from evergrant_server.api.implicit import require_allowed
from evergrant_server.api.subjects import Going, Subjects, subjects_of
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.flow import Flow
from providers.callback import Callback
from providers.implicit import judge_fragment

router = APIRouter(tags=["pages"])

_FORM = "application/x-www-form-urlencoded"


class Next(BaseModel):
    """Where the page goes on: a path of ours."""

    next: str


@router.post("/oauth/callback/{integration_id}/fragment")
async def brought(request: Request, integration_id: str) -> Next:
    """Seal the token with its consent, have the worker install it, and say where the browser goes on."""
    subjects, id = subjects_of(request), known(integration_id)
    try:
        require_allowed(Flow.IMPLICIT, subjects.parts, Code.CALLBACK_INVALID)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Failure(Code.CALLBACK_INVALID, "A fragment is brought by its own page.")
    except Failure as failure:
        async with subjects.parts.store.read() as tx:
            integration = await tx.integrations.find(id)
        await refuse(subjects, request, integration, None, failure)
        raise
    going = await received(subjects, request, id, await request.body(), _judged)
    return Next(next=await page_of(subjects, await settled(subjects, going)))


def _judged(subjects: Subjects, going: Going, fragment: Query) -> tuple[Callback, Going]:
    """What the fragment says. Raises Failure CALLBACK_INVALID, ID_TOKEN_REFUSED, REPLY_UNREADABLE."""
    if going.connection.flow is not Flow.IMPLICIT:
        raise Failure(Code.CALLBACK_INVALID, "This attempt was sent for a code, not for a token.")
    endpoints = endpoints_now(going)
    callback = judge_fragment(
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
