"""An authorization request of an OAuth client (RFC 6749 section 4.1.1, RFC 7636, RFC 8707): its parameters,
its client, and what it asks for.

Until the redirect URI is proven to be the client's own, nothing is sent anywhere (RFC 6749 section 4.1.2.1,
RFC 9700 section 4.11). What is asked for is judged by the tenant's rule, the app's permits and the person.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evergrant_server.api.pages.login import clients_issuer
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.core.access import Action, App, Effect, Permit
from evergrant_server.core.connections.binding import is_challenge
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.login import is_same_subject
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant, is_id
from evergrant_server.core.messages.integrations import ReadClientDocument
from evergrant_server.core.messages.jobs import READ_CLIENT_DOCUMENT
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.client_metadata import is_document_url
from evergrant_server.core.oauth.clients import REGISTRATION_LASTS, ClientKind, GatewayClient
from evergrant_server.core.oauth.redirects import is_own_redirect
from evergrant_server.core.oauth.requests import AuthorizationRequest
from evergrant_server.core.text import is_storable_text
from evergrant_server.crypto.client_registrations import registration_in
from evergrant_server.policy import PermitQuestion, Target, decide
from evergrant_server.policy.networks import names_subject
from evergrant_server.store import Transaction

_LONGEST_QUERY = 8000
_MOST_PARAMETERS = 50
_READ_TIMEOUT_S = 30.0  # the person waits; the request to the document's host has a shorter limit
_ENDED = "the connection has ended: its app has to begin a new one"


class AuthorizationRefused(Exception):
    """An error that goes back to the client (RFC 6749 section 4.1.2.1)."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description

    @property
    def sentence(self) -> str:
        """The description for a page."""
        return f"{self.description[0].upper()}{self.description[1:]}."


@dataclass(frozen=True)
class AuthorizeQuery:
    """The query as it came, and its parameters. Those without a value count as absent (section 3.1)."""

    raw: str
    values: Mapping[str, str]
    repeated: frozenset[str]

    def once(self, name: str) -> str | None:
        """The value of a parameter. Raises AuthorizationRefused if it stands in the request twice."""
        if name in self.repeated:
            raise AuthorizationRefused("invalid_request", f"{name} stands in the request twice")
        return self.values.get(name)


@dataclass(frozen=True)
class AskedResource:
    """A gateway's resource: one connection's, or Evergrant's own for all of a person's."""

    url: str
    connection_id: ConnectionId | None


def read_query(raw: bytes) -> AuthorizeQuery:
    """The parsed query. Raises Failure CLIENT_UNKNOWN for one that names no client that could be answered."""
    text = raw.decode("ascii", "replace")
    try:
        if len(text) > _LONGEST_QUERY or not text.isascii():
            raise ValueError
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "This page's address is not whole, or too long.") from None
    if not all(is_storable_text(value) for _, value in pairs):
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "This page's address has characters that no text has.")
    counts = Counter(name for name, _ in pairs)
    values = {name: value for name, value in pairs if value}
    query = AuthorizeQuery(text, values, frozenset(name for name, count in counts.items() if count > 1))
    for name in ("client_id", "redirect_uri"):
        if name in query.repeated or name not in values:
            why = f"The program that sent your browser names no {name}, or two."
            raise Failure(ErrorCode.CLIENT_UNKNOWN, why)
    return query


def _require_code_flow(query: AuthorizeQuery) -> str:
    """The S256 challenge. Raises AuthorizationRefused for another flow, and without PKCE."""
    if (response_type := query.once("response_type")) != "code":
        error = "invalid_request" if response_type is None else "unsupported_response_type"
        raise AuthorizationRefused(error, "response_type must be code")
    if query.once("response_mode") not in (None, "query"):
        raise AuthorizationRefused("invalid_request", "response_mode must be query")
    if query.once("request") or query.once("request_uri"):
        raise AuthorizationRefused("request_not_supported", "request objects are not supported")
    challenge = query.once("code_challenge")
    if challenge is None or query.once("code_challenge_method") != "S256":
        raise AuthorizationRefused("invalid_request", "PKCE with code_challenge_method S256 is required")
    if not is_challenge(challenge):
        raise AuthorizationRefused("invalid_request", "code_challenge is no SHA-256 hash in base64url")
    return challenge


def _require_resource(query: AuthorizeQuery, gateway_url: str) -> AskedResource:
    """The resource that the token is for. Raises AuthorizationRefused (RFC 8707 section 2)."""
    if "resource" in query.repeated:
        raise AuthorizationRefused("invalid_target", "a token is for one resource: ask for each by itself")
    return read_resource(query.values.get("resource"), gateway_url)


def read_resource(url: str | None, gateway_url: str) -> AskedResource:
    """The resource of this URL. Raises AuthorizationRefused for one that isn't the gateway's."""
    whole = f"{gateway_url}/mcp"
    if url == whole:
        return AskedResource(whole, None)
    id = (url or "").removeprefix(f"{whole}/")
    if url is None or url == id or not is_id(id, "con"):
        raise AuthorizationRefused(
            "invalid_target", f"resource must be {whole} or {whole}/ and a connection id"
        )
    return AskedResource(url, ConnectionId(id))


def answer_url(redirect_uri: str, issuer: str, state: str | None, **answer: str) -> str:
    """The client's redirect URI with an answer, its own query kept; with `iss` (RFC 9207) in each."""
    parts = urlsplit(redirect_uri)
    back = {**answer, **({} if state is None else {"state": state}), "iss": issuer}
    query = "&".join(part for part in (parts.query, urlencode(back)) if part)
    return urlunsplit(parts._replace(query=query))


# --- the client ---------------------------------------------------------------------------------


async def known_client(pages: SubjectPages, query: AuthorizeQuery) -> GatewayClient | None:
    """The client, if its redirect URI is its own; None for a metadata document that has to be read first.

    Raises Failure CLIENT_UNKNOWN.
    """
    client = await fresh_client(pages, query.values["client_id"])
    return None if client is None else _with_own_redirect(client, query)


async def fresh_client(pages: SubjectPages, client_id: str) -> GatewayClient | None:
    """The client; None for a metadata document that has to be read first. Raises Failure CLIENT_UNKNOWN."""
    async with pages.api.store.read() as tx:
        client = await find_client(pages, tx, client_id)
    if client is not None and client.disabled:
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "An admin has turned this program off.")
    if is_document_url(client_id):
        return client if client is not None and client.is_fresh(pages.now) else None
    if client is None:
        why = "This program isn't registered here, or was long unused: add the server to it again."
        raise Failure(ErrorCode.CLIENT_UNKNOWN, why)
    return client


async def find_client(pages: SubjectPages, tx: Transaction, client_id: str) -> GatewayClient | None:
    """The client that presents this id: its row, or for a day the registration that the id carries."""
    carried = registration_in(pages.api.ring, Tenant(pages.api.settings.tenant), client_id)
    row = await tx.oauth_clients.by_client_id(client_id if carried is None else carried.client_id)
    if row is not None or carried is None:
        return row
    return carried if pages.now < carried.created_at + REGISTRATION_LASTS else None


async def read_client(pages: SubjectPages, query: AuthorizeQuery) -> GatewayClient:
    """The client of a metadata document, with this redirect URI. Raises Failure CLIENT_UNKNOWN."""
    return _with_own_redirect(await read_document(pages, query.values["client_id"]), query)


async def read_document(pages: SubjectPages, client_id: str) -> GatewayClient:
    """The client of a metadata document, which a worker reads (ADR 0008). Raises Failure CLIENT_UNKNOWN."""
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
    return client


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


# --- what is asked for --------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A request whose parameters are good, in its tenant."""

    challenge: str
    resource: AskedResource
    rule: ClientLogin
    app: App
    permits: tuple[Permit, ...]
    connection: Connection | None

    def is_for(self, subject: str) -> bool:
        """Whether the connection is this person's."""
        return self.connection is None or is_same_subject(self.rule.login, subject, self.connection.subject)

    def subject_of(self, subject: str) -> str:
        """The person's name as the connection spells it."""
        return subject if self.connection is None else self.connection.subject

    def integrations_for(self, subject: str) -> list[str]:
        """The integrations that the app's permits let it call for this person; `*` for all."""
        return sorted(
            {
                permit.integration
                for permit in self.permits
                if permit.effect is Effect.ALLOW and Action.PROXY in permit.actions
                if names_subject(permit.subjects, subject)
            }
        )


async def read_asked(
    pages: SubjectPages, tx: Transaction, query: AuthorizeQuery, client: GatewayClient | None
) -> Asked:
    """What the query asks for; `client` None stands for a metadata document that isn't read yet.

    Raises AuthorizationRefused.
    """
    challenge = _require_code_flow(query)
    resource = _require_resource(query, pages.api.settings.gateway_public_url)
    return await _judged(pages, tx, challenge, resource, client)


async def read_device(
    pages: SubjectPages, tx: Transaction, resource: AskedResource, client: GatewayClient | None
) -> Asked:
    """What a client asks for on a device; `client` as in `read_asked`. Raises AuthorizationRefused."""
    asked = await _judged(pages, tx, "", resource, client)
    if not asked.rule.device:
        why = "logins by a code are turned off: an admin turns them on with evergrant clients login --device"
        raise AuthorizationRefused("unauthorized_client", why)
    return asked


async def read_again(
    pages: SubjectPages, tx: Transaction, request: AuthorizationRequest, client: GatewayClient
) -> Asked:
    """What a request that was stored asks for now. Raises Failure NOT_PERMITTED for what was taken away."""
    resource = AskedResource(request.resource, request.connection_id)
    try:
        return await _judged(pages, tx, request.challenge, resource, client)
    except AuthorizationRefused as refused:
        raise Failure(ErrorCode.NOT_PERMITTED, refused.sentence) from None


async def _judged(
    pages: SubjectPages,
    tx: Transaction,
    challenge: str,
    resource: AskedResource,
    client: GatewayClient | None,
) -> Asked:
    tenant, connection = await _place(pages, tx, resource, client)
    kind = ClientKind.DOCUMENT if client is None else client.kind
    if kind is ClientKind.ADMIN and client is not None and client.tenant != tenant:
        raise AuthorizationRefused("invalid_target", "the resource is of another tenant than the client")
    rule = await _rule_for(tx, tenant, kind)
    app = await tx.access.app(tenant, rule.app_id)
    if app is None or app.disabled or app.is_over(pages.now):
        raise AuthorizationRefused("access_denied", "the app as which clients act is disabled, or has ended")
    permits = tuple(await tx.access.permits_of(app))
    if connection is not None:
        question = PermitQuestion(Target.of(connection), Action.PROXY, pages.now)
        anywhere = tuple(_from_anywhere(permit) for permit in permits)
        if not decide(anywhere, question).allowed:
            why = f"the app {app.name} has no permit with proxy for this connection: an admin gives it one"
            raise AuthorizationRefused("access_denied", why)
    return Asked(challenge, resource, rule, app, permits, connection)


async def _place(
    pages: SubjectPages, tx: Transaction, resource: AskedResource, client: GatewayClient | None
) -> tuple[Tenant, Connection | None]:
    """The tenant of a resource, and its connection."""
    if resource.connection_id is None:
        of_admin = client is not None and client.kind is ClientKind.ADMIN
        return client.tenant if of_admin and client else Tenant(pages.api.settings.tenant), None
    connection = await tx.connections.find_in_any_tenant(resource.connection_id)
    if connection is None:
        raise AuthorizationRefused("invalid_target", "there is no such connection")
    if connection.has_ended or connection.held_by is not None:
        raise AuthorizationRefused("invalid_target", _ENDED)
    return connection.tenant, connection


async def _rule_for(tx: Transaction, tenant: Tenant, kind: ClientKind) -> ClientLogin:
    try:
        rule, _ = await clients_issuer(tx, tenant)
    except Failure as failure:
        if failure.code is ErrorCode.CLIENTS_OFF:
            why = "no app is designated for OAuth clients: an admin does it with evergrant clients login"
            raise AuthorizationRefused("unauthorized_client", why) from None
        if failure.code is ErrorCode.TENANT_DISABLED:
            raise AuthorizationRefused("access_denied", "the tenant is disabled") from None
        raise
    if not rule.takes(kind):
        how = "register themselves" if kind is ClientKind.REGISTERED else "are a metadata document"
        why = f"clients that {how} are turned off: an admin registers one with evergrant clients put"
        raise AuthorizationRefused("unauthorized_client", why)
    return rule


def _from_anywhere(permit: Permit) -> Permit:
    """The permit without its bound on source addresses: the gateway looks at where each call comes from."""
    return permit.__replace__(sources=None) if permit.effect is Effect.ALLOW else permit
