"""An admin's calls for the issuers of workload tokens that a tenant trusts."""

from dataclasses import dataclass
from datetime import datetime

from evergrant.calls.call import (
    Call,
    Page,
    object_parser,
    page_parser,
    path_of,
    require_success,
    without_none,
)


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """A trusted issuer. `keys` counts the keys of the last good reading; `keys_problem`: of a failed one."""

    id: str
    name: str
    kind: str
    issuer: str
    jwks_uri: str | None
    keys: int
    keys_at: datetime | None
    keys_problem: str | None
    created_at: datetime
    changed_at: datetime


_ISSUER = object_parser("trusted issuer", TrustedIssuer)


def trusted_issuers() -> Call[Page[TrustedIssuer]]:
    """Every trusted issuer of the tenant."""
    return Call("GET", "/v1/issuers", page_parser("trusted issuer", TrustedIssuer))


def trusted_issuer(name: str) -> Call[TrustedIssuer]:
    return Call("GET", path_of("issuers", name), _ISSUER)


def put_trusted_issuer(
    name: str, kind: str, issuer: str, *, jwks_uri: str | None = None
) -> Call[TrustedIssuer]:
    """Trust an issuer, or change where its keys are; `jwks_uri` None: where its metadata says.

    `kind` and `issuer` of a name never change.
    """
    body = without_none(kind=kind, issuer=issuer, jwks_uri=jwks_uri)
    return Call("PUT", path_of("issuers", name), _ISSUER, body=body)


def delete_trusted_issuer(name: str) -> Call[None]:
    """Trust it no more: the credentials that name it, and their access tokens, end too."""
    return Call("DELETE", path_of("issuers", name), require_success)
