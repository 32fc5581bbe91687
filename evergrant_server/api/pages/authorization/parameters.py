"""The parameters of an authorization request (RFC 6749 section 4.1.1, RFC 7636, RFC 8707). Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from evergrant_server.core.connections.binding import is_challenge
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, is_id
from evergrant_server.core.text import is_storable_text

LONGEST_QUERY = 8000
_MOST_PARAMETERS = 50


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
    """Raises Failure CLIENT_UNKNOWN for a query that names no client: no client can be answered."""
    text = raw.decode("ascii", "replace")
    try:
        if len(text) > LONGEST_QUERY or not text.isascii():
            raise ValueError
        given = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS)
    except ValueError:
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "This page's address is not whole, or too long.") from None
    if not all(is_storable_text(value) for _, value in given):
        raise Failure(ErrorCode.CLIENT_UNKNOWN, "This page's address has characters that no text has.")
    counts = Counter(name for name, _ in given)
    values = {name: value for name, value in given if value}
    query = AuthorizeQuery(text, values, frozenset(name for name, count in counts.items() if count > 1))
    for name in ("client_id", "redirect_uri"):
        if name in query.repeated or name not in values:
            why = f"The program that sent your browser names no {name}, or two."
            raise Failure(ErrorCode.CLIENT_UNKNOWN, why)
    return query


def require_code_flow(query: AuthorizeQuery) -> str:
    """The S256 challenge. Raises AuthorizationRefused for another flow, and without PKCE."""
    if (said := query.once("response_type")) != "code":
        error = "invalid_request" if said is None else "unsupported_response_type"
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


def require_resource(query: AuthorizeQuery, gateway_url: str) -> AskedResource:
    """The resource that the token is for. Raises AuthorizationRefused (RFC 8707 section 2)."""
    own = f"{gateway_url}/mcp"
    if "resource" in query.repeated:
        raise AuthorizationRefused("invalid_target", "a token is for one resource: ask for each by itself")
    url = query.values.get("resource")
    if url == own:
        return AskedResource(own, None)
    id = (url or "").removeprefix(f"{own}/")
    if url is None or url == id or not is_id(id, "con"):
        raise AuthorizationRefused("invalid_target", f"resource must be {own} or {own}/ and a connection id")
    return AskedResource(url, ConnectionId(id))


def answer_url(redirect_uri: str, issuer: str, state: str | None, **answer: str) -> str:
    """The client's redirect URI with an answer, its own query kept; with `iss` (RFC 9207) in each."""
    parts = urlsplit(redirect_uri)
    back = {**answer, **({} if state is None else {"state": state}), "iss": issuer}
    query = "&".join(it for it in (parts.query, urlencode(back)) if it)
    return urlunsplit(parts._replace(query=query))
