"""Reads a workload's token, a signed JWT, and checks its signature (RFC 7515, RFC 7519). Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError

from providers.responses.raw_reply import UnreadableBody, parse_body
from providers.responses.signing_keys import ALGORITHMS, UnusableKey, verified_payload

LONGEST_TOKEN = 16_384  # characters
_TYPES = {"jwt", "jose", "at+jwt"}  # RFC 7519 section 5.1, JWT-SVID section 2.3, RFC 9068 section 2.1


class WorkloadTokenRefused(Exception):
    """The token can't be a workload's; the message says why and quotes nothing of it."""


@dataclass(frozen=True)
class WorkloadToken:
    """A token as it came: nothing of it is true before `verify`."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    text: bytes = field(repr=False)

    def verify(self, keys: Sequence[Mapping[str, Any]]) -> None:
        """Check the signature. Raises UnknownKey when its key isn't among `keys`, WorkloadTokenRefused."""
        try:
            verified_payload(self.text, self.header, keys)
        except (JoseError, UnusableKey, ValueError):
            raise WorkloadTokenRefused("the signature is invalid") from None


def unverified_issuer(text: str) -> str | None:
    """The `iss` of what may be a token; None when there is none."""
    try:
        issuer = _parts(text)[1].get("iss")
    except WorkloadTokenRefused:
        return None
    return issuer if isinstance(issuer, str) else None


def _parts(text: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, claims, and the whole. Raises WorkloadTokenRefused."""
    if len(text) > LONGEST_TOKEN:
        raise WorkloadTokenRefused("it is too long")
    try:
        encoded = text.encode("ascii")
        token = jws.extract_compact(encoded)
        return dict(token.headers()), parse_body(token.payload, "json"), encoded
    except (JoseError, UnreadableBody, ValueError, RecursionError):
        raise WorkloadTokenRefused("it is no signed JWT in compact form") from None


def read_workload_token(text: str, types: Collection[str] = _TYPES) -> WorkloadToken:
    """The header and claims of a token of one of these types. Raises WorkloadTokenRefused."""
    header, claims, encoded = _parts(text)
    if header.get("alg") not in ALGORITHMS:
        raise WorkloadTokenRefused("alg must be an asymmetric signature")
    if "crit" in header or "b64" in header:
        raise WorkloadTokenRefused("its header has unknown critical members")
    typ = header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in types:
        raise WorkloadTokenRefused("typ is another kind of token's")
    if not isinstance(header.get("kid"), str):
        raise WorkloadTokenRefused("kid is missing")
    return WorkloadToken(header, claims, encoded)
