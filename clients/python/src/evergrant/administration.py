"""An admin's calls: OAuth clients at providers, and a tenant's own definitions of providers."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

from evergrant.calls import Call
from evergrant.fields import Fields
from evergrant.replies import Page, Response, parse_body, parse_page, require_success

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Integration:
    """Our OAuth client at a provider. `redirect_uri` is what to register there; no secret comes back.

    `members` has all that the server says, newer servers' members too.
    """

    id: str
    name: str
    provider: str
    client_id: str
    state: str
    problem: str | None
    redirect_uri: str
    previous_secret_until: datetime | None
    secret_refused_at: datetime | None
    members: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check by machine says of a definition: `ok`, `warning` or `problem`."""

    check: str
    level: str
    detail: str


@dataclass(frozen=True, slots=True)
class ProviderVersion:
    """A version of a definition that this tenant brought, and how far it is.

    `good` and `bad` count the refreshes of its stage: those that worked, and those that only did
    as before. `share` of the connections are served by it.
    """

    name: str
    version: int
    state: str
    share: float
    findings: tuple[Finding, ...]
    good: int
    bad: int
    proposed_by: str
    decided_by: str | None
    reason: str | None


def integrations_call() -> Call[Page[Integration]]:
    return Call("GET", "/v1/integrations", _integrations)


def integration_call(name: str) -> Call[Integration]:
    return Call("GET", _integration_at(name), _integration_of)


def put_call(name: str, members: Mapping[str, object]) -> Call[Integration]:
    """Safe to send again: it says what should be."""
    return Call("PUT", _integration_at(name), _integration_of, body=members)


def delete_call(name: str) -> Call[None]:
    return Call("DELETE", _integration_at(name), require_success)


def rotate_call(name: str, client_secret: str | None, overlap: timedelta | None) -> Call[Integration]:
    body: dict[str, object] = (
        {"roll_back": True} if client_secret is None else {"client_secret": client_secret}
    )
    if overlap is not None:
        body["overlap_s"] = overlap.total_seconds()
    path = f"{_integration_at(name)}/rotate-secret"
    return Call("POST", path, _integration_of, body=body, idempotency_key=str(uuid4()))


def propose_call(
    definition: Mapping[str, object], rollout: Mapping[str, object] | None
) -> Call[ProviderVersion]:
    body = {"definition": definition} | ({"rollout": rollout} if rollout else {})
    return Call("POST", "/v1/providers", _version_of, body=body, idempotency_key=str(uuid4()))


def versions_call(name: str) -> Call[Page[ProviderVersion]]:
    return Call("GET", f"{_provider_at(name)}/versions", _versions)


def decide_call(
    name: str, what: str, version: int, reason: str | None, **more: object
) -> Call[ProviderVersion]:
    """`what` is approve, reject or roll-back; the server takes the first decision alone."""
    body = {"version": version, **more} | ({"reason": reason} if reason is not None else {})
    return Call("POST", f"{_provider_at(name)}/{what}", _version_of, body=body)


class Administration(ABC):
    """What `Evergrant` does for an admin; needs an app with the action `admin`."""

    @abstractmethod
    def _do(self, call: Call[Answer]) -> Answer: ...

    @abstractmethod
    def _items(self, call: Call[Page[Answer]]) -> Iterator[Answer]: ...

    def integrations(self) -> Iterator[Integration]:
        """Those that this app administers."""
        return self._items(integrations_call())

    def integration(self, name: str) -> Integration:
        return self._do(integration_call(name))

    def put_integration(self, name: str, **members: object) -> Integration:
        """Create or change one; members as the HTTP reference names them, `client_secret` among them."""
        return self._do(put_call(name, members))

    def delete_integration(self, name: str) -> None:
        """Delete it with its secret. Refused while connections are live."""
        return self._do(delete_call(name))

    def rotate_client_secret(
        self, name: str, client_secret: str, *, overlap: timedelta | None = None
    ) -> Integration:
        """Put a new secret first; for `overlap` (None: a day) the one before it is tried as well."""
        return self._do(rotate_call(name, client_secret, overlap))

    def roll_client_secret_back(self, name: str) -> Integration:
        """The secret before the rotation is the only one again."""
        return self._do(rotate_call(name, None, None))

    def propose_provider(
        self, definition: Mapping[str, object], *, rollout: Mapping[str, object] | None = None
    ) -> ProviderVersion:
        """Propose a definition, in the form of the catalogue's files; a worker checks it."""
        return self._do(propose_call(definition, rollout))

    def provider_versions(self, name: str) -> Iterator[ProviderVersion]:
        """The versions this tenant brought, the newest first."""
        return self._items(versions_call(name))

    def approve_provider(
        self, name: str, version: int, *, reason: str | None = None, accept_hosts: bool = False
    ) -> ProviderVersion:
        """`accept_hosts`: you have seen the finding that secrets would go to new hosts."""
        return self._do(decide_call(name, "approve", version, reason, accept_hosts=accept_hosts))

    def reject_provider(self, name: str, version: int, reason: str) -> ProviderVersion:
        return self._do(decide_call(name, "reject", version, reason))

    def roll_provider_back(self, name: str, version: int, reason: str) -> ProviderVersion:
        """Have the version before a staged one answer again."""
        return self._do(decide_call(name, "roll-back", version, reason))


class AsyncAdministration(ABC):
    """The same for `AsyncEvergrant`."""

    @abstractmethod
    async def _do(self, call: Call[Answer]) -> Answer: ...

    @abstractmethod
    def _items(self, call: Call[Page[Answer]]) -> AsyncIterator[Answer]: ...

    def integrations(self) -> AsyncIterator[Integration]:
        """Those that this app administers."""
        return self._items(integrations_call())

    async def integration(self, name: str) -> Integration:
        return await self._do(integration_call(name))

    async def put_integration(self, name: str, **members: object) -> Integration:
        """Create or change one; members as the HTTP reference names them, `client_secret` among them."""
        return await self._do(put_call(name, members))

    async def delete_integration(self, name: str) -> None:
        """Delete it with its secret. Refused while connections are live."""
        return await self._do(delete_call(name))

    async def rotate_client_secret(
        self, name: str, client_secret: str, *, overlap: timedelta | None = None
    ) -> Integration:
        """Put a new secret first; for `overlap` (None: a day) the one before it is tried as well."""
        return await self._do(rotate_call(name, client_secret, overlap))

    async def roll_client_secret_back(self, name: str) -> Integration:
        """The secret before the rotation is the only one again."""
        return await self._do(rotate_call(name, None, None))

    async def propose_provider(
        self, definition: Mapping[str, object], *, rollout: Mapping[str, object] | None = None
    ) -> ProviderVersion:
        """Propose a definition, in the form of the catalogue's files; a worker checks it."""
        return await self._do(propose_call(definition, rollout))

    def provider_versions(self, name: str) -> AsyncIterator[ProviderVersion]:
        """The versions this tenant brought, the newest first."""
        return self._items(versions_call(name))

    async def approve_provider(
        self, name: str, version: int, *, reason: str | None = None, accept_hosts: bool = False
    ) -> ProviderVersion:
        """`accept_hosts`: you have seen the finding that secrets would go to new hosts."""
        return await self._do(decide_call(name, "approve", version, reason, accept_hosts=accept_hosts))

    async def reject_provider(self, name: str, version: int, reason: str) -> ProviderVersion:
        return await self._do(decide_call(name, "reject", version, reason))

    async def roll_provider_back(self, name: str, version: int, reason: str) -> ProviderVersion:
        """Have the version before a staged one answer again."""
        return await self._do(decide_call(name, "roll-back", version, reason))


def _integration_at(name: str) -> str:
    return f"/v1/integrations/{quote(name, safe='')}"


def _provider_at(name: str) -> str:
    return f"/v1/providers/{quote(name, safe='')}"


def _integration_of(reply: Response) -> Integration:
    return _integration(parse_body(reply, "integration"))


def _integrations(reply: Response) -> Page[Integration]:
    return parse_page(reply, "integration", _integration)


def _integration(item: Fields) -> Integration:
    return Integration(
        id=item.text("id"),
        name=item.text("name"),
        provider=item.text("provider"),
        client_id=item.text("client_id"),
        state=item.text("state"),
        problem=item.text_or_none("problem"),
        redirect_uri=item.text("redirect_uri"),
        previous_secret_until=item.time_or_none("previous_secret_until"),
        secret_refused_at=item.time_or_none("secret_refused_at"),
        members=item.members,
    )


def _version_of(reply: Response) -> ProviderVersion:
    return _version(parse_body(reply, "provider version"))


def _versions(reply: Response) -> Page[ProviderVersion]:
    return parse_page(reply, "provider version", _version)


def _version(item: Fields) -> ProviderVersion:
    return ProviderVersion(
        name=item.text("name"),
        version=item.integer("version"),
        state=item.text("state"),
        share=item.number("share"),
        findings=tuple(_finding(Fields.of(it, "finding")) for it in item.array("findings")),
        good=item.integer("good"),
        bad=item.integer("bad"),
        proposed_by=item.text("proposed_by"),
        decided_by=item.text_or_none("decided_by"),
        reason=item.text_or_none("reason"),
    )


def _finding(item: Fields) -> Finding:
    return Finding(check=item.text("check"), level=item.text("level"), detail=item.text("detail"))
