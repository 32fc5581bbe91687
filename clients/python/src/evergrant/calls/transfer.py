"""Import of existing grants, and their export, sealed. Nothing here opens a token."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from httpx2 import Response

from evergrant.calls.call import Call, object_parser, parse_body, post, without_none
from evergrant.errors import ProtocolError
from evergrant.fields import Fields

IMPORT_BATCH_SIZE = 50  # items in one request; the server takes 100
_LINES_PER_PAGE = 200

ImportItem = Mapping[str, object]


class ImportStatus(StrEnum):
    IMPORTED = "imported"
    EXISTS = "exists"
    INVALID = "invalid"
    WOULD_IMPORT = "would_import"


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """The result for one item. `index` counts the items that were given, from 0.

    `verification` is `verified` (refreshed once), `unverified` or `failed` (the provider refused
    the refresh token), None for an item that wasn't imported. `code`, `field` and `detail` say why.
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
        """Whether the item was not imported, or its grant was and the provider refuses it."""
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
    """A page of an export: compact JWEs (RFC 7516). `exported` is the number of all lines."""

    lines: tuple[str, ...]
    exported: int


_parse_export = object_parser("export", Export)


def import_calls(
    items: Iterable[ImportItem], *, dry_run: bool, verify: bool
) -> Iterator[Call[list[ImportOutcome]]]:
    """One call for each batch of items. The server ignores a grant that is already imported."""
    remaining, first = iter(items), 0
    while batch := list(islice(remaining, IMPORT_BATCH_SIZE)):
        yield _import_call(batch, first, dry_run=dry_run, verify=verify)
        first += len(batch)


def start_export(
    public_key: Mapping[str, object] | str,
    *,
    integration: str | None = None,
    provider: str | None = None,
    subject: str | None = None,
) -> Call[Export]:
    """Have every live grant sealed to a public key: an X25519 or P-256 JWK, or PEM."""
    filters = without_none(integration=integration, provider=provider, subject=subject)
    return post("/v1/connections/export", _parse_export, {"public_key": public_key, "filters": filters})


def export_lines(export_id: str, after: int = 0) -> Call[Export | SealedPage]:
    """The sealed lines behind the first `after`, or the progress while the server still seals."""
    query = {"id": export_id, "after": str(after), "limit": str(_LINES_PER_PAGE)}
    return Call("GET", "/v1/connections/export", _parse_lines, query=query)


def drop_export(export_id: str) -> Call[Export]:
    """Delete the server's copy of the lines, once yours is safe. The server does so after a day."""
    return Call("DELETE", "/v1/connections/export", _parse_export, query={"id": export_id})


def _import_call(
    items: list[ImportItem], first: int, *, dry_run: bool, verify: bool
) -> Call[list[ImportOutcome]]:
    def parse(response: Response) -> list[ImportOutcome]:
        outcomes = parse_body(response, "import").array("items")
        if len(outcomes) != len(items):
            raise ProtocolError("the import has another number of outcomes than of items")
        parsed = [Fields.of(outcome, "import outcome") for outcome in outcomes]
        return [item.build(ImportOutcome, index=first + item.integer("index")) for item in parsed]

    body = {"items": items, "dry_run": dry_run, "verify": verify}
    return Call("POST", "/v1/connections/import", parse, body=body)


def _parse_lines(response: Response) -> Export | SealedPage:
    if response.status_code != 200:
        return _parse_export(response)
    total = response.headers.get("x-evergrant-exported", "")
    lines = tuple(response.content.decode("ascii", "replace").splitlines())
    return SealedPage(lines, int(total) if total.isascii() and total.isdigit() else len(lines))
