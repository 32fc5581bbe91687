"""The port that a key service fills: five purposes, a context, a description, and failures by what ends them.

A backend wraps 32 bytes with the key of a purpose. It gives the context to its service as well where the
service takes one; that a wrapped value opens in its row alone doesn't depend on it (`bound`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.envelope import encode_parts

PURPOSE = "{purpose}"  # in the URL of a key service: each purpose has a key of its own
CALL_LIMIT_S = 2.0  # of one call
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
RETRY_AFTER_S = 5.0  # what a caller is told while the service is away


class ServicePurpose(StrEnum):
    """Which key of the service wraps a value. The principals that may use it are those of its roles."""

    LEASE = "lease"  # root keys of access tokens
    REFRESH = "refresh"  # root keys of refresh tokens
    INTAKE = "intake"  # root keys of client secrets, codes and connect links
    AUTHORITY = "authority"  # what API, workers and operators sign with
    GATEWAY = "gateway"  # what a gateway derives and verifies with: it can't sign for others


@dataclass(frozen=True, slots=True)
class Context:
    """The row that a wrapped value is in. Ids alone: some services write it into their own logs."""

    row: str

    def fields(self, purpose: ServicePurpose) -> dict[str, str]:
        """For services that take names and values, as AWS' EncryptionContext."""
        return {"evergrant-purpose": purpose.value, "evergrant-row": self.row}

    def encoded(self, purpose: ServicePurpose) -> bytes:
        """For services that take bytes as additional authenticated data."""
        return encode_parts("evergrant-key-service", purpose.value, self.row)


class FailureReason(StrEnum):
    """Why a key service gave no key, sorted by what ends it."""

    AWAY = "away"  # time: it doesn't answer, or not yet
    DENIED = "denied"  # its admin: this principal may not use the key
    GONE = "gone"  # its admin: the key doesn't exist, is disabled or waits for its deletion
    BROKEN = "broken"  # a backup: the wrapped value isn't one of this key, row and purpose


_CODES = {
    FailureReason.AWAY: ErrorCode.KEY_UNAVAILABLE,
    FailureReason.DENIED: ErrorCode.KEY_DENIED,
    FailureReason.GONE: ErrorCode.KEY_GONE,
    FailureReason.BROKEN: ErrorCode.SEAL_BROKEN,
}


class KeyServiceFailure(Failure):
    """A key service gave no key. The detail names its key, and no secret; only AWAY is worth another try.

    A backend raises it with what went wrong in its own words (`why`); its caller knows the row.
    """

    def __init__(
        self,
        reason: FailureReason,
        key: str,
        why: str,
        *,
        row: str | None = None,
        principal: str | None = None,
    ) -> None:
        self.reason, self.key, self.why, self.row, self.principal = reason, key, why, row, principal
        names = {"key": key, "row": row, "principal": principal}
        of_row = "" if row is None else f"root_key {row}: "
        by = "" if principal is None else f" (as {principal})"
        super().__init__(
            _CODES[reason],
            f"{of_row}the key service's key {key}{by} {why}.",
            retry_after=RETRY_AFTER_S if reason is FailureReason.AWAY else None,
            **{name: value for name, value in names.items() if value is not None},
        )

    def of(self, row: str) -> "KeyServiceFailure":
        """The same failure with the row for which the key was needed."""
        return KeyServiceFailure(self.reason, self.key, self.why, row=row, principal=self.principal)


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """What a key service says of the key of one purpose. None: it doesn't say."""

    key: str
    version: str | None = None
    is_enabled: bool = True
    in_hardware: bool | None = None
    principal: str | None = None  # as whom this process calls


class KeyService(Protocol):
    """A service that wraps keys. Every method but `key_name` may raise KeyServiceFailure, and nothing else.

    Belongs to one event loop. A call that blocks runs in `blocking.Threads`.
    """

    def key_name(self, purpose: ServicePurpose) -> str:
        """The key's name as rows and messages have it: the scheme and the service's own name of the key,
        without credentials, hosts and versions, so that a service that moves is still the same."""
        ...

    async def wrap(self, purpose: ServicePurpose, key: bytes, context: Context) -> bytes:
        """Wrap a key of 32 bytes."""
        ...

    async def unwrap(self, purpose: ServicePurpose, wrapped: bytes, context: Context) -> bytes:
        """The key that was wrapped for this purpose and context."""
        ...

    async def describe(self, purpose: ServicePurpose) -> KeyDescription:
        """What the service says of the key: a call that only reads."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ServiceUrl:
    """The setting's URL in parts: `<scheme>:<key>?<option>=<value>&…`, with `{purpose}` in the key."""

    scheme: str
    key: str
    options: dict[str, str]
    limit_s: float = CALL_LIMIT_S  # of one call

    @classmethod
    def parse(cls, text: str) -> "ServiceUrl":
        """Raises ValueError that says what would be right."""
        scheme, _, rest = text.partition(":")
        key, _, query = rest.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else ())
        if scheme != "file" and PURPOSE not in key:
            raise ValueError(
                f"the key's name must have {PURPOSE} in it, so that each purpose has a key and principals of "
                f"its own: {scheme}:…evergrant-{PURPOSE}"
            )
        return cls(scheme, key, options)

    def checked(self, *names: str) -> dict[str, str]:
        """The options, if there are none but these. Raises ValueError."""
        unknown = sorted(self.options.keys() - set(names))
        if unknown:
            known = f"knows {', '.join(names)}" if names else "takes none"
            raise ValueError(f"{self.scheme} has no option {unknown[0]}: it {known}")
        return self.options

    def of(self, purpose: ServicePurpose) -> str:
        """The key's name for one purpose."""
        return self.key.replace(PURPOSE, purpose.value)


def require_tls(address: str) -> None:
    """Raise ValueError for a service that would be called in plain text over a network."""
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise ValueError("the service's address must begin with https:// (http:// is for this host alone)")


Opener = Callable[[ServiceUrl], KeyService]  # `open_service` of each backend's module
