"""What a lease brings: an access token, a proof or a signature. Each leaves its secret out of `repr`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn, SupportsIndex, final


class LeaseLeak(TypeError):
    """A lease can't be pickled, copied or serialised."""


@final
class Lease:
    """An access token with its real expiry.

    `expires_at` has a time zone, and is None for a token that never expires. `generation` numbers
    the grant the token is from; `grant_over` says that it has ended, and that the provider may refuse the
    token before its date. `audit` is the place of the lease in the audit log, `<shard>/<number>`.

    Not a dataclass, and without a `__dict__`: `dataclasses.asdict`, `vars`, json, pydantic and Temporal's
    converters would otherwise write the token out.
    """

    __slots__ = (
        *("access_token", "audit", "connection_id", "expires_at", "generation", "grant_over", "scopes"),
        "token_type",
    )

    access_token: str
    token_type: str
    expires_at: datetime | None
    scopes: tuple[str, ...]
    generation: int
    connection_id: str
    grant_over: bool
    audit: str

    def __init__(
        self,
        access_token: str,
        *,
        token_type: str,
        expires_at: datetime | None,
        scopes: tuple[str, ...],
        generation: int,
        connection_id: str,
        grant_over: bool = False,
        audit: str = "",
    ) -> None:
        write = object.__setattr__
        write(self, "access_token", access_token)
        write(self, "token_type", token_type)
        write(self, "expires_at", expires_at)
        write(self, "scopes", scopes)
        write(self, "generation", generation)
        write(self, "connection_id", connection_id)
        write(self, "grant_over", grant_over)
        write(self, "audit", audit)

    def __repr__(self) -> str:
        until = self.expires_at.isoformat() if self.expires_at else "never"
        return (
            f"Lease(access_token=***, connection_id={self.connection_id!r}, "
            f"generation={self.generation}, expires_at={until})"
        )

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a lease can't be changed; lease a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a lease can't be changed; lease a new one")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise LeaseLeak("a lease is never pickled or copied: lease where the token is used")

    def __getstate__(self) -> NoReturn:
        raise LeaseLeak("a lease is never pickled or copied: lease where the token is used")


@dataclass(frozen=True, slots=True)
class Proof:
    """The `DPoP` header of one request (RFC 9449) with the access token of `generation`.

    Valid once, for the URL `htu` and the method it was made for. `audit` is the place of its audit record.
    """

    proof: str = field(repr=False)
    htu: str
    generation: int
    expires_at: datetime | None
    connection_id: str
    audit: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    """The headers that sign one request (OAuth 1.0a). Send them soon; `repr` leaves them out."""

    headers: Mapping[str, str] = field(repr=False)
    generation: int
    connection_id: str
    audit: str = ""  # the place of its audit record
