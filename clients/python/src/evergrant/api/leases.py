"""Leases, DPoP proofs (RFC 9449) and request signatures (OAuth 1.0a)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

from httpx2 import Response

from evergrant.api.call import (
    Call,
    http_date,
    list_or_none,
    object_parser,
    parse_body,
    parse_problem,
    path_of,
    seconds_or_none,
    without_none,
)
from evergrant.api.fields import Fields
from evergrant.lease import Lease, Proof, Signature
from evergrant.models import ConsentRequired

_CONSENTS = ("consent_required", "scope_not_granted")
FormFields = Mapping[str, str] | Sequence[tuple[str, str]]


class LeaseOptions(TypedDict, total=False):
    """Optional arguments of a lease: the connection's label, the least validity, narrower scopes.

    `exact`: the token may do no more than `scopes`, where the provider issues such tokens. `challenge` (of
    `new_verifier`) is for the link of `ConsentRequired`, if that is the answer.
    `www_authenticate` is the header with which the provider's API has refused a token for lack of a scope.
    """

    label: str
    min_ttl: timedelta | None
    scopes: tuple[str, ...] | None
    exact: bool
    challenge: str | None
    www_authenticate: str | None


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """The arguments of a lease. The token is to be valid for at least `min_ttl`."""

    integration: str
    subject: str
    label: str = "default"
    min_ttl: timedelta | None = None
    scopes: tuple[str, ...] | None = None
    challenge: str | None = None
    exact: bool = False
    www_authenticate: str | None = None


@dataclass(frozen=True, slots=True)
class LeaseResponse:
    """The answer to a lease call, and the server's clock when it answered."""

    result: Lease | ConsentRequired
    server_time: datetime | None


def lease_call(request: LeaseRequest) -> Call[LeaseResponse]:
    body = without_none(
        integration=request.integration,
        subject=request.subject,
        label=request.label,
        min_ttl=seconds_or_none(request.min_ttl),
        scopes=list_or_none(request.scopes),
        exact=request.exact or None,
        challenge=request.challenge,
        www_authenticate=request.www_authenticate,
    )
    return Call("POST", "/v1/lease", _parse_lease, body=body)


def proof(_: object, connection_id: str, method: str, url: str, *, nonce: str | None = None) -> Call[Proof]:
    """A `DPoP` header for one request with a token that is bound to a key (RFC 9449 section 7).

    Needed where a lease's `token_type` is `DPoP`; `nonce` is the resource's `DPoP-Nonce`, if it sent
    one. The proof's `generation` must be the lease's: otherwise lease again. `auth` does all of this.
    """
    body = without_none(htm=method.upper(), htu=url.partition("#")[0], nonce=nonce)
    path = path_of("connections", connection_id, "proof")
    return Call("POST", path, object_parser(Proof), body=body)


def sign(
    _: object, connection_id: str, method: str, url: str, form: FormFields | None = None
) -> Call[Signature]:
    """Sign one request (OAuth 1.0a). `url` includes its query; `form` is the body, where it is a form.

    Needs a permit with the action `token`, as a lease does.
    """
    pairs = list(form.items()) if isinstance(form, Mapping) else list(form or ())
    body = {"method": method.upper(), "url": url, "form": [list(pair) for pair in pairs]}
    return Call("POST", path_of("connections", connection_id, "signatures"), _parse_signature, body=body)


def _parse_lease(response: Response) -> LeaseResponse:
    """200 is a lease. 409 with a connect link is a result too, not an error."""
    answered_at = http_date(response.headers.get("date", ""))
    if response.status_code == 409 and (needed := _consent_required(response)):
        return LeaseResponse(needed, answered_at)
    body = parse_body(response, "lease")
    leased = Lease(
        body.text("access_token"),
        token_type=body.text("token_type"),
        expires_at=body.time_or_none("expires_at"),
        scopes=body.read("scopes", tuple[str, ...]),
        generation=body.read("generation", int),
        connection_id=body.text("connection_id"),
        grant_over=body.members.get("grant_over") is True,
        audit=str(body.members.get("audit", "")),
    )
    return LeaseResponse(leased, answered_at)


def _consent_required(response: Response) -> ConsentRequired | None:
    problem = parse_problem(response)
    if problem is None or problem.get("code") not in _CONSENTS or "connect_url" not in problem:
        return None
    missing = tuple(str(problem.get("scopes", "")).split())
    return Fields(problem, "problem document").build(ConsentRequired, missing_scopes=missing)


def _parse_signature(response: Response) -> Signature:
    body = parse_body(response, "signature")
    headers = Fields.of(body.members.get("headers"), "signature's headers")
    return body.build(Signature, headers={name: headers.text(name) for name in headers.members})
