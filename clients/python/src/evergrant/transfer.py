"""Moving grants in and out: what is sent, what came of it, and the two clients' methods for it.

Items and sealed lines pass through; nothing here looks into a token.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import TypeVar
from uuid import uuid4

from evergrant.calls import Call
from evergrant.errors import ProtocolError
from evergrant.fields import Fields
from evergrant.patience import RetryBudget
from evergrant.replies import Response, error_from

IMPORT_BATCH_SIZE = 50  # items in one request; the server takes 100
_LOOK = timedelta(seconds=1)
_LINES = 200
Answer = TypeVar("Answer")

ImportItem = Mapping[str, object]


class ImportStatus(StrEnum):
    IMPORTED = "imported"
    EXISTS = "exists"
    INVALID = "invalid"
    WOULD_IMPORT = "would_import"


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """What became of one item. `index` counts the items that were given, from 0.

    `verification` is `verified` (refreshed once), `unverified` or `failed` (the provider refused
    the refresh token), None for what wasn't imported. `code`, `field` and `detail` say why.
    """

    index: int
    status: ImportStatus
    connection_id: str | None
    verification: str | None
    code: str | None
    field: str | None
    detail: str | None

    @property
    def failed(self) -> bool:
        """It isn't in, or it is in and the provider doesn't accept it."""
        return self.status is ImportStatus.INVALID or self.verification == "failed"


@dataclass(frozen=True, slots=True)
class Export:
    """How far an export is. `key` is the thumbprint (RFC 7638) of the key it is sealed to."""

    id: str
    status: str
    exported: int
    skipped: int
    key: str


@dataclass(frozen=True, slots=True)
class SealedPage:
    """A page of an export: compact JWEs (RFC 7516). `exported` is the number of all of them."""

    lines: tuple[str, ...]
    exported: int


def import_call(
    items: list[ImportItem], *, first: int, dry_run: bool, verify: bool
) -> Call[list[ImportOutcome]]:
    """Safe to send again: what is in already stays as it is."""
    body = {"items": items, "dry_run": dry_run, "verify": verify}
    return Call(
        "POST", "/v1/connections/import", lambda reply: _outcomes(reply, first, len(items)), body=body
    )


def export_call(
    public_key: Mapping[str, object] | str,
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
) -> Call[Export]:
    filters = {"integration": integration, "provider": provider, "subject": subject}
    body = {"public_key": public_key, "filters": {n: v for n, v in filters.items() if v is not None}}
    key = str(uuid4())
    return Call("POST", "/v1/connections/export", _export, body=body, idempotency_key=key)


def lines_call(export_id: str, after: int) -> Call[Export | SealedPage]:
    query = {"id": export_id, "after": str(after), "limit": str(_LINES)}
    return Call("GET", "/v1/connections/export", _lines, query=query)


def drop_call(export_id: str) -> Call[Export]:
    return Call("DELETE", "/v1/connections/export", _export, query={"id": export_id})


class Transfers(ABC):
    """What `Evergrant` does beside leasing: existing grants in, sealed grants out."""

    @abstractmethod
    def _do(self, call: Call[Answer]) -> Answer:
        """Send and wait; the client knows how."""

    def import_connections(
        self, items: Iterable[ImportItem], *, dry_run: bool = False, verify: bool = True
    ) -> Iterator[ImportOutcome]:
        """Import grants that exist, in requests of 50, and yield what became of each, in order.

        An item has the members that `docs/guide/moving-in.md` lists. With `verify` each is
        refreshed once by the server: stop whatever else refreshes it first. Sending an item again
        changes nothing, so an import that was cut short is simply run again.
        """
        for first, batch in batches(items):
            yield from self._do(import_call(batch, first=first, dry_run=dry_run, verify=verify))

    def start_export(
        self,
        public_key: Mapping[str, object] | str,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
    ) -> Export:
        """Have every live grant sealed to a public key: an X25519 or P-256 JWK, or PEM."""
        return self._do(export_call(public_key, integration=integration, provider=provider, subject=subject))

    def export_lines(self, export_id: str, after: int = 0) -> Export | SealedPage:
        """The sealed lines behind the first `after`; how far it is, while the server still seals."""
        return self._do(lines_call(export_id, after))

    def drop_export(self, export_id: str) -> Export:
        """Delete the server's copy of the lines, once yours is safe. It does so by itself after a day."""
        return self._do(drop_call(export_id))


class AsyncTransfers(ABC):
    """The same for `AsyncEvergrant`."""

    @abstractmethod
    async def _do(self, call: Call[Answer]) -> Answer:
        """Send and wait; the client knows how."""

    async def import_connections(
        self, items: Iterable[ImportItem], *, dry_run: bool = False, verify: bool = True
    ) -> AsyncIterator[ImportOutcome]:
        """Import grants that exist, in requests of 50, and yield what became of each, in order.

        An item has the members that `docs/guide/moving-in.md` lists. With `verify` each is
        refreshed once by the server: stop whatever else refreshes it first. Sending an item again
        changes nothing, so an import that was cut short is simply run again.
        """
        for first, batch in batches(items):
            call = import_call(batch, first=first, dry_run=dry_run, verify=verify)
            for outcome in await self._do(call):
                yield outcome

    async def start_export(
        self,
        public_key: Mapping[str, object] | str,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
    ) -> Export:
        """Have every live grant sealed to a public key: an X25519 or P-256 JWK, or PEM."""
        return await self._do(
            export_call(public_key, integration=integration, provider=provider, subject=subject)
        )

    async def export_lines(self, export_id: str, after: int = 0) -> Export | SealedPage:
        """The sealed lines behind the first `after`; how far it is, while the server still seals."""
        return await self._do(lines_call(export_id, after))

    async def drop_export(self, export_id: str) -> Export:
        """Delete the server's copy of the lines, once yours is safe. It does so by itself after a day."""
        return await self._do(drop_call(export_id))


def batches(items: Iterable[ImportItem]) -> Iterator[tuple[int, list[ImportItem]]]:
    """The items in requests' worth, each with the number of its first."""
    stream, first = iter(items), 0
    while batch := list(islice(stream, IMPORT_BATCH_SIZE)):
        yield first, batch
        first += len(batch)


def poll_delays(limit: timedelta) -> Iterator[float]:
    """Seconds to pause before each further look at an export. Raises TimeoutError after `limit`."""
    patience = RetryBudget(limit)
    while True:
        yield patience.poll_delay_s(_LOOK)


def _outcomes(reply: Response, first: int, count: int) -> list[ImportOutcome]:
    fields = _body(reply, "import")
    items = [Fields.of(it, "import outcome") for it in fields.array("items")]
    if len(items) != count:
        raise ProtocolError("the import has another number of outcomes than of items")
    return [
        ImportOutcome(
            index=first + it.integer("index"),
            status=ImportStatus(it.text("status")),
            connection_id=it.text_or_none("connection_id"),
            verification=it.text_or_none("verification"),
            code=it.text_or_none("code"),
            field=it.text_or_none("field"),
            detail=it.text_or_none("detail"),
        )
        for it in items
    ]


def _export(reply: Response) -> Export:
    return _export_of(_body(reply, "export"))


def _export_of(fields: Fields) -> Export:
    return Export(
        id=fields.text("id"),
        status=fields.text("status"),
        exported=fields.integer("exported"),
        skipped=fields.integer("skipped"),
        key=fields.text("key"),
    )


def _lines(reply: Response) -> Export | SealedPage:
    if reply.status != 200:
        return _export(reply)
    total = reply.headers.get("x-evergrant-exported", "")
    lines = tuple(reply.body.decode("ascii", "replace").splitlines())
    return SealedPage(lines, int(total) if total.isascii() and total.isdigit() else len(lines))


def _body(reply: Response, what: str) -> Fields:
    if not 200 <= reply.status < 300:
        raise error_from(reply)
    return Fields.of_json(reply.body, what)
