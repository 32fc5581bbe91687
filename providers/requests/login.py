"""Logins at an OpenID Connect issuer: the id token checked (OpenID Connect Core 1.0 section 3.1.3.7), and
what some issuers tell at the UserInfo endpoint only (section 5.3)."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NoReturn

import httpx2
from joserfc import jws
from joserfc.errors import JoseError

from evergrant_server.core.clock import clocks_apart
from evergrant_server.core.connections.id_token import checked_claims, require_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.secret import Secret
from evergrant_server.egress import Egress, why_unreachable
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.raw_reply import UnreadableBody, parse_body
from providers.responses.signing_keys import ALGORITHMS, UnusableKey, verified_payload

_CLOCK_TOLERANCE = timedelta(seconds=60)  # between the issuer's clock and ours


def verified_claims(
    id_token: Secret,
    keys: Sequence[Mapping[str, Any]],
    *,
    issuer: str,
    client_id: str,
    nonce_hash: str,
    now: datetime,
) -> dict[str, Any]:
    """The claims of an id token that the issuer signed for this client and this login. Pure.

    Raises Failure ID_TOKEN_REFUSED; UnknownKey when its key isn't among `keys`.
    """
    _verify_signature(id_token, keys)
    claims = checked_claims(id_token, issuer=issuer, client_id=client_id)
    if claims.get("iss") != issuer:  # without the tolerance of `checked_claims`
        _refuse("is of another issuer")
    require_nonce(id_token, nonce_hash)
    expires, issued = _seconds(claims, "exp"), _seconds(claims, "iat")
    clock, tolerance = now.timestamp(), _CLOCK_TOLERANCE.total_seconds()
    if expires is None or issued is None:
        _refuse("names no time")
    if expires <= clock - tolerance:
        _refuse(f"has expired: its exp is {clocks_apart(expires, now)}")
    if issued > clock + tolerance:
        _refuse(f"was issued in the future: its iat is {clocks_apart(issued, now)}")
    return claims


def _verify_signature(id_token: Secret, keys: Sequence[Mapping[str, Any]]) -> None:
    text = id_token.reveal().encode()
    try:
        header = jws.extract_compact(text).headers()
        if header.get("alg") not in ALGORITHMS:
            _refuse("isn't signed with an asymmetric key")
        if "b64" in header:  # RFC 7797: its claims are encoded otherwise than they are read
            _refuse("has an unknown critical header")
        verified_payload(text, header, keys)
    except (JoseError, UnusableKey, ValueError, RecursionError):
        _refuse("has no valid signature")


def _seconds(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _refuse(why: str) -> NoReturn:
    raise Failure(ErrorCode.ID_TOKEN_REFUSED, f"The id token of the login {why}.")


async def fetch_claims(
    egress: Egress, endpoint: str, access_token: Secret, sub: str, names: Iterable[str]
) -> dict[str, Any]:
    """The claims of these names of the person who logged in (section 5.3.2).

    Raises Failure PROVIDER_UNREACHABLE, EGRESS_REFUSED, REPLY_UNREADABLE; ID_TOKEN_REFUSED for the claims of
    another person.
    """
    headers = STANDARD_HEADERS | {"Authorization": f"Bearer {access_token.reveal()}"}
    try:
        async with egress.client(headers=headers) as http:
            reply = await http.get(endpoint)
    except httpx2.TransportError as error:
        why = f"the issuer's userinfo_endpoint could not be read: {why_unreachable(error)}"
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, why) from None
    try:
        claims = parse_body(reply.content, "json") if reply.status_code == 200 else None
    except UnreadableBody:
        claims = None
    if claims is None:
        why = f"The issuer's userinfo_endpoint answered {reply.status_code} without claims."
        raise Failure(ErrorCode.REPLY_UNREADABLE, why)
    if claims.get("sub") != sub:  # a token substitution attack otherwise (section 5.3.4)
        raise Failure(
            ErrorCode.ID_TOKEN_REFUSED,
            "The issuer's userinfo_endpoint answered for another person.",
        )
    return {name: claims[name] for name in names if name in claims}
