"""A table of one's own, as CSV with a header."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from evergrant.errors import BadRequest
from evergrant.grant_sources.items import Item, Names, RefusedRow, Row, expiry, item_of, scopes

# a member, and the columns that may hold it; --column names another
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "integration": ("integration", "provider"),
    "subject": ("subject", "user_id"),
    "label": ("label", "account"),
    "access_token": ("access_token",),
    "refresh_token": ("refresh_token",),
    "expires_at": ("expires_at",),
    "scopes": ("scopes", "scope"),
    "token_type": ("token_type",),
}


class Table:
    mapping: ClassVar[Mapping[str, str]] = {
        "integration": "integration or provider",
        "subject": "subject or user_id",
        "scopes": "scopes or scope, with blanks or commas; empty: the integration's",
        "expiry": "expires_at, ISO 8601 (UTC without an offset) or since 1970; empty: unknown",
    }

    def __init__(self, names: Names, columns: Mapping[str, str], header: Sequence[str]) -> None:
        """`columns` says which column holds a member. Raises BadRequest for a header that lacks one."""
        if unknown := set(columns) - set(COLUMNS):
            raise _bad(f"--column {min(unknown)}: the members are {', '.join(COLUMNS)}")
        self._names = names
        self._columns = {name: _column(columns.get(name), usual, header) for name, usual in COLUMNS.items()}
        if names.subject is not None and names.subject not in header:
            raise _bad(f"--subject {names.subject}: the header has no such column")
        needed = {"access_token", "subject", "integration"}
        needed -= {"subject"} if names.subject else set[str]()
        needed -= {"integration"} if names.every else set[str]()
        for name in sorted(needed):
            if self._columns[name] is None:
                wanted = " or ".join(COLUMNS[name])
                raise _bad(f"the first line has no column {wanted}: name yours with --column {name}=…")

    def items(self, row: Row) -> Sequence[Item]:
        cell = {name: None if column is None else row.get(column) for name, column in self._columns.items()}
        if not cell["access_token"]:
            why = "it has no access token: a refresh token alone is not enough"
            raise RefusedRow("no_access_token", why)
        return [
            item_of(
                integration=self._names.integration(cell["integration"]),
                subject=self._names.subject_of(row, self._columns["subject"] or ""),
                label=cell["label"],
                access_token=cell["access_token"],
                refresh_token=cell["refresh_token"],
                token_type=cell["token_type"],
                scopes=scopes(cell["scopes"]),
                **expiry(cell["expires_at"]),
            )
        ]


def _column(chosen: str | None, usual: Sequence[str], header: Sequence[str]) -> str | None:
    if chosen is not None and chosen not in header:
        raise _bad(f"the header has no column {chosen}")
    return chosen or next((name for name in usual if name in header), None)


def _bad(detail: str) -> BadRequest:
    return BadRequest(detail, code="invalid_request", repair="Compare with docs/guide/moving-in.md.")
