"""What is known of a connection that ended badly: what the provider saw of it, and what the store says."""

import time
from datetime import UTC, datetime

from tests.faults.harness.database import FinalState
from tests.faults.harness.provider import Use
from tests.faults.harness.random_run.processes import Installation

_LAST = 16
_OF_ATTEMPTS = """
    SELECT a.opened_at AS at, 'our clock' AS clock, format(
        'attempt from %s, sends %s, %s, closed %s',
        from_generation, sends, coalesce(outcome, 'open'), closed_at
    ) AS what FROM attempt a WHERE connection_id = $1
"""
_OF_AUDIT = """
    SELECT at, 'our clock' AS clock, action || ' ' || detail AS what FROM audit
    WHERE object = $1 AND action <> 'lease.issued'
"""
_OF_CHANGES = "SELECT at, 'true' AS clock, change AS what FROM witness_change WHERE row_id = $1"


async def story(here: Installation, end: FinalState) -> list[str]:
    """The last of each kind, in the order of their own clocks: ours was moved."""
    lines = [f"  {it}" for it in _seen_by_provider(here, end)]
    for query in (_OF_CHANGES, _OF_ATTEMPTS, _OF_AUDIT):
        rows = await here.ground.rows(query, end.connection.id)
        told = sorted((it["at"], it["clock"], it["what"]) for it in rows)[-_LAST:]
        lines += [f"  {_time(at)} ({clock}) {what}" for at, clock, what in told]
    return lines


def _seen_by_provider(here: Installation, end: FinalState) -> list[str]:
    family = here.idp.family_of(end.refresh_token)
    if family is None:
        return ["the provider knows nothing of its refresh token"]
    own = {*family.used, family.refresh_token}
    uses = [_told(it) for it in here.idp.uses if it.credential in own][-_LAST:]
    current = "the newest" if end.refresh_token == family.refresh_token else "one that was used"
    return [f"family {'alive' if family.alive else 'killed'}; the store holds {current}", *uses]


def _told(use: Use) -> str:
    came = datetime.fromtimestamp(time.time() - time.monotonic() + use.came, UTC)
    return f"{_time(came)} (true) {use}"


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]
