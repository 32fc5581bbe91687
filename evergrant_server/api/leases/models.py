"""Request and response bodies of leases, proofs and refreshes."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from evergrant_server.access.refusals import ConnectionNames, LeaseRequest
from evergrant_server.api.http.models import (
    MAX_INTEGER,
    Body,
    Challenge,
    Label,
    Scopes,
    Slug,
    Subject,
    View,
    request_url,
)
from evergrant_server.core.ids import ConnectionId
from providers.requests.dpop import htu_of, is_nonce
from providers.responses.challenges import challenged_scopes


def _nonce(value: str) -> str:
    if not is_nonce(value):
        raise ValueError("is not a nonce (RFC 9449 section 8.1)")
    return value


MinTtl = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]


class RefreshBody(Body):
    """Refresh unless the grant is newer than `generation` (default: the current one).

    The reason `unauthorized` reports that the provider's API answered 401 to the token of that
    generation. `seen_generation` is another name for `generation`.
    """

    generation: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    seen_generation: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    reason: Literal["unauthorized"] | None = None

    @property
    def seen_by_caller(self) -> int | None:
        return self.generation if self.generation is not None else self.seen_generation


class TokenBody(Body):
    """`min_ttl` is seconds. Every scope of `scopes` must be granted. `exact`: the token may do no more than
    these; where the connection's own can, the provider is asked for a narrower one.

    `www_authenticate` is the header of a 403 with which the provider's API has refused a token: the scopes
    that it demands (`insufficient_scope`, RFC 6750 section 3.1) are added to `scopes`.
    """

    min_ttl: MinTtl | None = None
    scopes: Scopes | None = None
    exact: bool = False
    www_authenticate: Annotated[str, Field(max_length=8192)] | None = None

    @model_validator(mode="after")
    def _check_exact(self) -> Self:
        if self.exact and not self.scopes:
            raise ValueError("exact needs scopes")
        return self

    def with_challenged_scopes(self) -> Self:
        """The body whose `scopes` include what the header demands."""
        if self.www_authenticate is None:
            return self
        scopes = dict.fromkeys((*(self.scopes or ()), *challenged_scopes(self.www_authenticate)))
        return type(self).model_validate(
            self.__replace__(scopes=tuple(scopes) or None, www_authenticate=None).model_dump()
        )

    def lease_request(self, connection_id: ConnectionId | None) -> LeaseRequest:
        """The lease that is requested."""
        min_ttl = None if self.min_ttl is None else timedelta(seconds=self.min_ttl)
        return LeaseRequest(connection_id, scopes=self.scopes, exact=self.exact, min_ttl=min_ttl)


class LeaseBody(TokenBody):
    """`challenge` is that of the connect link, should the subject have to consent."""

    integration: Slug
    subject: Subject
    label: Label = "default"
    challenge: Challenge | None = None

    def lease_request_by_names(self) -> LeaseRequest:
        """The lease of the connection with these names."""
        names = ConnectionNames(self.integration, self.subject, self.label)
        return replace(self.lease_request(None), names=names, challenge=self.challenge)


class ProofBody(Body):
    """The request to prove (RFC 9449 section 4.2): method, URL, and the server's nonce if it gave one."""

    htm: Annotated[str, Field(pattern="^[A-Z]{1,20}$")]
    htu: Annotated[str, Field(max_length=8000), AfterValidator(request_url)]
    nonce: Annotated[str, AfterValidator(_nonce)] | None = None

    @property
    def proved_url(self) -> str:
        """The URL without query and fragment, as a proof has it."""
        return htu_of(self.htu)


class LeaseView(View):
    """The only response that contains an access token. `audit` is the place of its audit record,
    `<shard>/<number>`.

    `grant_over`: its grant has ended, and the provider may refuse the token before its date. Report a 401
    (`POST /v1/connections/{id}/refresh`), which ends the token.
    """

    access_token: str
    token_type: str
    expires_at: datetime | None
    scopes: tuple[str, ...]
    generation: int
    connection_id: str
    grant_over: bool
    audit: str


class ProofView(View):
    """The value of a `DPoP` header for one request with the token of `generation`. `audit` is the place of
    its audit record."""

    proof: str
    token_type: str
    htu: str
    generation: int
    expires_at: datetime | None
    connection_id: str
    grant_over: bool
    audit: str
