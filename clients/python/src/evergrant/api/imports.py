"""Import of existing grants: batches of items, and the outcome of each. Nothing here opens a token."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from httpx2 import Response

from evergrant.api.call import Call, parse_body
from evergrant.api.fields import Fields
from evergrant.errors import ProtocolError

IMPORT_BATCH_SIZE = 50  # items in one request; the server takes 100

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


def import_calls(
    items: Iterable[ImportItem], *, dry_run: bool, verify: bool
) -> Iterator[Call[list[ImportOutcome]]]:
    """One call for each batch of items. The server ignores a grant that is already imported."""
    remaining, first = iter(items), 0
    while batch := list(islice(remaining, IMPORT_BATCH_SIZE)):
        yield _import_call(batch, first, dry_run=dry_run, verify=verify)
        first += len(batch)


def _import_call(
    items: list[ImportItem], first: int, *, dry_run: bool, verify: bool
) -> Call[list[ImportOutcome]]:
    def parse(response: Response) -> list[ImportOutcome]:
        outcomes = parse_body(response, "import").array("items")
        if len(outcomes) != len(items):
            raise ProtocolError("the import has another number of outcomes than of items")
        parsed = [Fields.of(outcome, "import outcome") for outcome in outcomes]
        return [item.build(ImportOutcome, index=first + item.read("index", int)) for item in parsed]

    body = {"items": items, "dry_run": dry_run, "verify": verify}
    return Call("POST", "/v1/connections/import", parse, body=body)
