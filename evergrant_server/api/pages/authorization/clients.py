"""Which client a request is of, and whether its redirect URI is its own. Until that is proven nothing is sent
anywhere (RFC 6749 section 4.1.2.1, RFC 9700 section 4.11)."""

from evergrant_server.api.pages.authorization.parameters import AuthorizeQuery
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.integrations import ReadClientDocument
from evergrant_server.core.messages.jobs import READ_CLIENT_DOCUMENT
from evergrant_server.core.oauth.client_metadata import is_document_url
from evergrant_server.core.oauth.clients import REGISTRATION_LASTS, ClientKind, GatewayClient
from evergrant_server.core.oauth.redirects import is_own_redirect
from evergrant_server.crypto.client_registrations import registration_in
from evergrant_server.store import Transaction

_READ_TIMEOUT_S = 30.0  # the person waits; the request to the document's host has a shorter limit


async def known_client(pages: SubjectPages, query: AuthorizeQuery) -> GatewayClient | None:
    """The client, if its redirect URI is its own; None for a metadata document that has to be read first.

    Raises Failure CLIENT_UNKNOWN.
    """
    client_id = query.values["client_id"]
    async with pages.api.store.read() as tx:
        client = await find_client(pages, tx, client_id)
    if client is not None and client.disabled:
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "An admin has turned this program off.")
    if is_document_url(client_id):
        if client is None or not client.is_fresh(pages.now):
            return None
    elif client is None:
        why = "This program isn't registered here, or was long unused: add the server to it again."
        raise Failure(ErrorCode.CLIENT_UNKNOWN, why)
    return _with_own_redirect(client, query)


async def find_client(pages: SubjectPages, tx: Transaction, client_id: str) -> GatewayClient | None:
    """The client that presents this id: its row, or for a day the registration that the id carries."""
    carried = registration_in(pages.api.ring, Tenant(pages.api.settings.tenant), client_id)
    row = await tx.oauth_clients.by_client_id(client_id if carried is None else carried.client_id)
    if row is not None or carried is None:
        return row
    return carried if pages.now < carried.created_at + REGISTRATION_LASTS else None


async def read_client(pages: SubjectPages, query: AuthorizeQuery) -> GatewayClient:
    """The client of a metadata document, which a worker reads (ADR 0008). Raises Failure CLIENT_UNKNOWN."""
    client_id = query.values["client_id"]
    tenant = Tenant(pages.api.settings.tenant)
    order = ReadClientDocument(tenant=tenant, client_id=client_id, context=pages.context)
    result = await pages.api.link.run_job(READ_CLIENT_DOCUMENT, order, timeout=_READ_TIMEOUT_S)
    if result.failure is not None:
        code = result.failure
        if code is ErrorCode.EGRESS_REFUSED:  # for the person it is one more reason
            code = ErrorCode.CLIENT_UNKNOWN
        raise Failure(code, result.detail)
    async with pages.api.store.read() as tx:
        client = await tx.oauth_clients.by_client_id(client_id)
    if client is None:
        raise Failure(ErrorCode.CLIENT_UNKNOWN)
    return _with_own_redirect(client, query)


def proves_itself(client: GatewayClient, redirect_uri: str) -> bool:
    """Whether no other program can use this client's id and redirect URI: such a client is asked about once.

    The id of a metadata document is public, as is one that an admin gives to all installations of a program,
    and any program of a computer can listen on loopback or take a scheme (RFC 8252 section 8.6): only a key
    or an https redirect proves it. An id that was given out to one registration is known to that client
    alone.
    """
    return client.kind is ClientKind.REGISTERED or client.is_bound or redirect_uri.startswith("https://")


def leads_to_strangers(client: GatewayClient, query: AuthorizeQuery) -> bool:
    """Whether a redirect without a click would make this server an open redirector: to an https URI that the
    client has registered by itself (RFC 9700 section 4.11.2)."""
    return client.kind is not ClientKind.ADMIN and query.values["redirect_uri"].startswith("https://")


def _with_own_redirect(client: GatewayClient, query: AuthorizeQuery) -> GatewayClient:
    if not is_own_redirect(client.redirect_uris, query.values["redirect_uri"]):
        why = "The program that sent your browser names an address to return to that isn't its own."
        raise Failure(ErrorCode.CLIENT_UNKNOWN, why)
    return client
