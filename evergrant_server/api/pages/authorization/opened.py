"""A request whose page is open: of one browser and one session, and judged anew each time."""

from dataclasses import dataclass

from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.authorization.answers import ANSWERED, consent_to, require_still_taken
from evergrant_server.api.pages.authorization.asked import Asked, read_again
from evergrant_server.api.pages.authorization.session import live_subject
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AuthorizationRequestId, is_id
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.oauth.requests import AuthorizationRequest, RequestStatus, SubjectSession


@dataclass(frozen=True)
class OpenedRequest:
    """With its client, what it asks for now, and its person."""

    request: AuthorizationRequest
    client: GatewayClient
    asked: Asked
    session: SubjectSession


async def find_request(pages: SubjectPages, request_id: str) -> AuthorizationRequest:
    """The undecided request of this browser. Raises Failure CALLBACK_INVALID."""
    found = None
    if is_id(request_id, "azr"):
        async with pages.api.store.read() as tx:
            found = await tx.authorization_requests.find_in_any_tenant(AuthorizationRequestId(request_id))
    if found is None or not pages.is_bound_to(found.browser_hash):
        raise Failure(ErrorCode.CALLBACK_INVALID, "This page belongs to another browser, or has expired.")
    if found.status in (RequestStatus.DONE, RequestStatus.DENIED):
        raise Failure(ErrorCode.CALLBACK_INVALID, ANSWERED)
    if found.expires_at <= pages.now:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This page has expired: begin again in the program.")
    return found


async def open_request(pages: SubjectPages, found: AuthorizationRequest) -> OpenedRequest:
    """The request, of its session, judged anew. Raises Failure CALLBACK_INVALID; CLIENT_UNKNOWN, CLIENTS_OFF,
    NOT_PERMITTED and TENANT_DISABLED for what was taken away."""
    async with pages.api.store.read() as tx:
        client = await require_still_taken(pages, tx, found)
        asked = await read_again(pages, tx, found, client)
        session = await live_subject(pages, tx, asked.rule)
    if session is None or session.id != found.session_id:
        raise Failure(ErrorCode.CALLBACK_INVALID, "You have logged in anew: begin again in the program.")
    return OpenedRequest(found, client, asked, session)


async def remember(pages: SubjectPages, opened: OpenedRequest) -> None:
    consent = consent_to(opened.request, pages)
    await run_transaction(pages.api.store, lambda tx: tx.client_consents.put(consent))
