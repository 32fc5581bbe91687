"""After a random run: what the provider, the store, the audit and the logs say about it."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.single_use.attempt import Attempt
from tests.faults.harness.database import CROSSED, FinalState
from tests.faults.harness.provider import Use
from tests.faults.harness.random_run.plan import Injection
from tests.faults.harness.random_run.processes import Installation
from tests.faults.harness.random_run.readers import ReaderRecord
from tests.faults.harness.random_run.real_server import Counted, RealServer
from tests.security.secrets.canaries import hits

_LAST = 16
_OF_ATTEMPTS = """
    SELECT a.opened_at AS at, 'our clock' AS clock, format(
        'attempt from %s, sends %s, %s, closed %s',
        from_generation, sends, coalesce(outcome, 'open'), closed_at
    ) AS what FROM attempt a WHERE connection_id = $1
"""
_OF_AUDIT = """
    SELECT at, 'our clock' AS clock, action || ' ' || coalesce(body, 'erased') AS what FROM audit
    WHERE object = $1 AND action <> 'lease.issued'
"""
_OF_CHANGES = "SELECT at, 'true' AS clock, change AS what FROM witness_change WHERE row_id = $1"
_SETTLES_S = 60.0  # a refresh that is under way
_STORIES = 6  # told in full
_SECRETS = 40  # of each kind are looked for
_HARMLESS = ("revocation", "clock jumps an hour ahead", "clock jumps an hour back")  # to a call under way
_ENDED = (LifecycleState.REVOKING, LifecycleState.REVOKED)


@dataclass
class Aftermath:
    refreshes: int = 0
    states: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    uses: int = 0
    killed_families: int = 0
    evidence: list[str] = field(default_factory=list)  # about the first that ended badly
    changes: int = 0  # of a connection's state or generation, each with its record
    real: Counted = field(default_factory=Counted)
    real_states: Counter[str] = field(default_factory=Counter)


async def judged(
    here: Installation,
    connections: Sequence[Connection],
    consented: Sequence[str],
    reader: httpx2.AsyncClient,
    seen: ReaderRecord,
    injected: list[Injection],
    settling_s: float,
) -> Aftermath:
    """Wait until nothing is open any more, then look at everything."""
    after = Aftermath(refreshes=here.idp.refreshes, uses=len(here.idp.uses))
    ends = await _settled(here, [*(it.id for it in connections), *consented], reader, settling_s)
    for number in range(len(connections)):
        ends[number] = await _as_it_is(here, ends[number])
        _judge(ends[number], here.idp.usable(ends[number].refresh_token), after, after.states)
    named = [it for it in ends if any(it.connection.id in bad for bad in (*after.lost, *seen.violations))]
    for end in named[:_STORIES]:
        after.evidence += [f"{end.connection.id}:", *await _story(here, end)]
    await judge_real(here.real, ends[len(connections) :], after)
    pairs = here.idp.in_flight_together()
    if pairs:
        after.violations.append(f"{pairs} uses of one refresh token in flight together on one host")
    after.lost += [f"{it}: installed beside a use that was refused" for it in await _taken_for_good(here)]
    await audited(here, seen, after)
    judge_calls(after, injected)
    searched(here, await here.real.secrets(), after)
    after.killed_families = sum(not family.alive for family in here.idp.families)
    return after


def judge_calls(after: Aftermath, injected: Sequence[Injection]) -> None:
    """A refresh is one call, and what is beyond that has a reason. An answer that went wrong costs its own
    call, or the one that is refused after it. A worker that is hurt may have many under way; those whose
    answer was lost end as `outcome_unknown`, with a use that was refused, and one that tried a late answer.
    """
    faulty = sum(it.kind not in _HARMLESS for it in injected)
    if after.uses > after.refreshes + 2 * faulty + 2 * len(after.unknown):
        after.violations.append(
            f"{after.uses} calls for {after.refreshes} refreshes: beyond the retry budget"
        )


async def _taken_for_good(here: Installation) -> list[str]:
    """On one host an answer waits for another use of its token, and is a late one when that is refused."""
    crossed = await here.ground.rows(f"SELECT DISTINCT connection_id {CROSSED}")
    return [str(it["connection_id"]) for it in crossed]


async def judge_real(real: RealServer, ends: list[FinalState], after: Aftermath) -> None:
    """By the server's own counts, and by asking it with what the store holds: nothing comes after."""
    after.real = await real.counted()
    for end in ends:
        _judge(end, await real.honours(end.refresh_token), after, after.real_states)
    active = after.real_states[LifecycleState.ACTIVE]
    if after.real.live < active:
        after.violations.append(f"{active} active connections, the real server has {after.real.live} grants")


async def _settled(
    here: Installation, connections: Sequence[str], reader: httpx2.AsyncClient, limit_s: float
) -> list[FinalState]:
    """Wait until no attempt is open. Each connection is leased, since an idle one may keep its attempt."""
    until = time.monotonic() + limit_s
    while True:
        ends = [await _end(here, connection) for connection in connections]
        waiting = [it for it in ends if it.open_attempt and it.connection.state is LifecycleState.ACTIVE]
        if not waiting or time.monotonic() > until:
            return ends
        for end in waiting:
            with contextlib.suppress(httpx2.HTTPError):
                await reader.post(f"/v1/connections/{end.connection.id}/token", json={})
        await asyncio.sleep(2)


async def _as_it_is(here: Installation, end: FinalState) -> FinalState:
    """Refreshes go on: what the store held a moment ago may be spent, and its successor be there by now."""
    until = time.monotonic() + _SETTLES_S
    while not here.idp.usable(end.refresh_token):
        now = await _end(here, end.connection.id)
        same = now.connection.revision == end.connection.revision and now.open_attempt is None
        if same or time.monotonic() > until:
            return now
        end = now
        await asyncio.sleep(0.2)
    return end


async def _end(here: Installation, connection: str) -> FinalState:
    """The restart dropped these sessions as well: ask again."""
    for _ in range(20):
        try:
            return await here.ground.end(ConnectionId(connection), None)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_UNAVAILABLE:
                raise
    raise TimeoutError("the database doesn't come back")


def _judge(end: FinalState, usable: bool, after: Aftermath, states: Counter[str]) -> None:
    row = end.connection
    states[row.state] += 1
    after.violations += [f"{row.id}: {wrong}" for wrong in end.wrongs]
    if row.state is LifecycleState.NEEDS_REAUTH and row.reason is ErrorCode.OUTCOME_UNKNOWN:
        after.unknown.append(row.id)
        if usable:
            after.lost.append(f"{row.id}: given up, and the provider still honours its token")
    elif row.state is LifecycleState.NEEDS_REAUTH:
        after.lost.append(f"{row.id}: needs_reauth because of {row.reason}")
    elif row.state is LifecycleState.ACTIVE and end.open_attempt:
        after.violations.append(f"{row.id}: still open: {_told(end.open_attempt)}")
    elif row.state is LifecycleState.ACTIVE and not usable:
        after.lost.append(f"{row.id}: the store calls it active, the provider has killed it")
    elif row.state not in (LifecycleState.ACTIVE, *_ENDED):
        after.lost.append(f"{row.id}: {row.state}")


def _told(attempt: Attempt) -> str:
    began = attempt.opened_at.time().isoformat("seconds")
    return f"attempt {attempt.sends} at generation {attempt.from_generation}, begun {began} by our clock"


async def audited(here: Installation, seen: ReaderRecord, after: Aftermath) -> None:
    """A record for each lease that left, for each generation that came, and with each change of state."""
    leases = await here.ground.count("SELECT count(*) FROM audit WHERE action = 'lease.issued'")
    if leases < seen.leases:
        after.violations.append(f"{seen.leases} leases left, {leases} are in the audit log")
    generations = await here.ground.count("SELECT sum(generation - 1) FROM connection")
    refreshed = await here.ground.count("SELECT count(*) FROM audit WHERE action = 'grant.refreshed'")
    if refreshed != generations:
        after.violations.append(f"{generations} generations came, {refreshed} are in the audit log")
    after.violations += await here.ground.changes_without_a_record()
    after.changes = await here.ground.count("SELECT count(*) FROM witness_change")


def searched(here: Installation, theirs: list[str], after: Aftermath) -> None:
    """No secret in any log, nor in Temporal's database."""
    tokens = [token for family in here.idp.families for token in family.access_tokens]
    spent = [token for family in here.idp.families for token in family.used]
    secrets = {
        "access token": tokens[-_SECRETS:],
        "refresh token": spent[-_SECRETS:],
        "client secret": [here.idp.client_secret],
        "secret of the real server": theirs[-_SECRETS:],
    }
    files = [*here.platform.logs.glob("*.log"), *(here.folder / "temporal").glob("temporal.db*")]
    for path in files:
        found = hits(secrets, [path.read_bytes()])
        after.violations += [f"{path.name} holds a secret: {it}" for it in found]


async def _story(here: Installation, end: FinalState) -> list[str]:
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
    uses = [_use(it) for it in here.idp.uses if it.credential in own][-_LAST:]
    current = "the newest" if end.refresh_token == family.refresh_token else "one that was used"
    return [f"family {'alive' if family.alive else 'killed'}; the store holds {current}", *uses]


def _use(use: Use) -> str:
    came = datetime.fromtimestamp(time.time() - time.monotonic() + use.came, UTC)
    return f"{_time(came)} (true) {use}"


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]
