"""Cells and the move of a tenant between two. Pure.

A cell is an installation of its own; a tenant lives in one. A move has a row on both sides: the source's says
what the target may ask for, the target's how far it has come (ADR 0139).
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from evergrant_server.core.ids import MoveId, Tenant, TenantRow
from evergrant_server.core.model import FrozenModel


class MoveSide(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class MoveState(StrEnum):
    """How far a move has come; each side has states of its own, and `done` and `undone`."""

    # the source's
    OFFERED = "offered"  # the target reads rows; the tenant lives here
    PAUSED = "paused"  # no single-use credential is spent here
    CLOSED = "closed"  # every request of the tenant is answered by 421
    LEAVING = "leaving"  # the target serves: the tenant's workflows end here
    LEFT = "left"  # nothing runs for it here any more; its rows stay until they are forgotten
    ERASING = "erasing"  # the tenant's rows are deleted here
    # the target's
    COPYING = "copying"  # while the source goes on
    PAUSING = "pausing"  # the source waits for the answers of providers
    COMPARING = "comparing"  # what has changed meanwhile is copied, until both roots are equal
    CLOSING = "closing"  # the source hands over
    ACTIVATING = "activating"  # the tenant is served here
    UNDOING = "undoing"  # its rows are deleted here, then the source goes on
    # both
    DONE = "done"
    UNDONE = "undone"


COPIES = frozenset({MoveState.COPYING, MoveState.COMPARING, MoveState.CLOSING})  # the target writes rows
UNDOABLE = frozenset({MoveState.COPYING, MoveState.PAUSING, MoveState.COMPARING, MoveState.CLOSING})
DELETES = frozenset({MoveState.ERASING, MoveState.UNDOING})  # the side has the tenant's rows deleted
STOPS_REFRESHES = frozenset({MoveState.PAUSED, MoveState.CLOSED})  # of the source
ENDED = frozenset({MoveState.DONE, MoveState.UNDONE})
WORKING = UNDOABLE | {MoveState.ACTIVATING, MoveState.UNDOING, MoveState.LEAVING, MoveState.ERASING}


class TenantMove(TenantRow):
    """One move, as a side knows it. `peer` is the other cell's public URL.

    `secret_hash`, of the source: a MAC of what the target proves itself with. `root` is the Merkle root over
    the moved rows, in hex, and `counts` how many there are of each table. `problem`: why the last try failed.
    """

    id: MoveId
    side: MoveSide
    peer: str
    state: MoveState
    secret_hash: str = ""
    by: str = "operator"
    created_at: datetime
    expires_at: datetime
    paused_at: datetime | None = None
    closed_at: datetime | None = None
    ended_at: datetime | None = None
    counts: Mapping[str, int] = {}
    root: str = ""
    log: str = ""
    problem: str = ""


class RowRange(FrozenModel):
    """Rows of one table that follow one another: how many, and their digest in hex.

    `last` is the first column of the last row's key; None: up to the end of the table.
    """

    last: str | None
    rows: int
    digest: str


class TenantKey(FrozenModel):
    """A tenant's own key in an offer; `key` is base64, and is sealed with the offer."""

    id: str
    purpose: str
    created_at: datetime
    retired_at: datetime | None = None
    key: str


class MoveOffer(FrozenModel):
    """What the source's operator hands the target's: sealed to the target's key as one JWE.

    `cell_check` is equal where both cells share their secrets. `public` and `worker_macs`: the keys that
    verify what the source has signed, base64.
    """

    move_id: MoveId
    tenant: Tenant
    source: str
    secret: str
    expires_at: datetime
    cell_check: str
    keys: tuple[TenantKey, ...]
    public: Mapping[str, str]
    worker_macs: Mapping[str, str]
    facts: Mapping[str, Any] = {}
