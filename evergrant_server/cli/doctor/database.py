"""Checks of the database: connection, schema, rows, outbox, client certificates, clock."""

import shlex
import time
from datetime import timedelta

from evergrant_server import audit
from evergrant_server.cli.doctor import COMMAND, CheckFailed, compare_clocks, unreachable
from evergrant_server.cli.doctor.keys import ROLE, open_store, reading, role_of
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import Role
from evergrant_server.regions.status import region_status
from evergrant_server.settings import Settings
from evergrant_server.store import Transaction
from evergrant_server.store.authority.database_roles import WORDS, rights_of_user, tables_not_written
from evergrant_server.store.authority.scan import broken_configuration
from evergrant_server.store.connections.connections import PendingRevocation
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import (
    MOST_CONNECTIONS,
    MOST_OF_BARRIERS,
    seats,
    servers_of,
    sqlite_path,
)
from evergrant_server.store.database.hosts import ServerState
from evergrant_server.store.database.server_reports import server_reports
from evergrant_server.store.rotation.processes import that_go_on
from evergrant_server.store.store import database_time
from evergrant_server.wiring.platform import region_of

CERTIFICATE_WARNING = timedelta(days=30)
API_KEY_WARNING = timedelta(days=14)
REVOCATION_AGE_LIMIT = timedelta(minutes=10)  # a provider that answers confirms within seconds
_MOST_NAMED = 5
BYTES_BEHIND_LIMIT = 64 << 20  # a standby that streams is far nearer
OUTBOX_AGE_LIMIT = timedelta(minutes=1)  # no relay is delivering a message that waits longer


async def reachable(settings: Settings) -> str:
    began = time.monotonic()
    try:
        version = await schema.current_version(settings.database_url)
    except Failure as failure:
        raise unreachable(failure) from None
    if version is None and (file := sqlite_path(settings.database_url)) is not None:
        raise CheckFailed(
            f"there is no database at {file}",
            "Restore it from its backup and start again; or for a new one, without the connections, apps and "
            f"keys of before: {COMMAND} db upgrade",
        )
    kind = "SQLite" if settings.uses_sqlite else "PostgreSQL"
    return f"{kind} answers in {(time.monotonic() - began) * 1000:.0f} ms"


async def migrations(settings: Settings) -> str:
    try:
        stamp, newest = await schema.read_stamp(settings.database_url), schema.expected_version()
    except Failure as failure:
        raise unreachable(failure) from None
    if stamp is None:
        raise CheckFailed(f"schema none, this code needs {newest}", f"{COMMAND} db upgrade")
    if not stamp.is_newer:
        if stamp.suits:
            return f"schema {stamp.version}, the newest"
        raise CheckFailed(f"schema {stamp.version}, this code needs {newest}", f"{COMMAND} db upgrade")
    if stamp.suits:
        return f"schema {stamp.version} is a newer release's, and works with this one's code ({newest})"
    raise CheckFailed(
        f"schema {stamp.version} is from a newer server than this one ({newest})",
        "Run the release that wrote it or a newer one; never downgrade a database",
    )


async def authority(settings: Settings) -> str:
    """Find rows that say who may do what, and aren't Evergrant's. Connections: `authority verify`."""
    async with open_store(settings) as store:
        is_gateway = store.ring.role is Role.GATEWAY
        heads = [] if is_gateway else await audit.broken_heads(store)
        broken = [*await broken_configuration(store), *heads]
    if broken:
        named = " ".join(row.failure.detail for row in broken[:_MOST_NAMED])
        rest = " And more." if len(broken) > _MOST_NAMED else ""
        raise CheckFailed(f"{named}{rest}", f"{COMMAND} authority verify")
    heads_too = "; a gateway can't verify messages and audit heads"
    if not is_gateway:
        heads_too = ", and so are messages and audit heads"
    return f"apps, keys, permits, integrations, definitions and exports are Evergrant's{heads_too}"


async def role_of_database(settings: Settings) -> str:
    """Each process connects as a role of PostgreSQL that writes nothing but what its code writes. Where the
    container isn't named (`--role`), the tables' owner will do for all but a gateway."""
    if settings.uses_sqlite:
        return "SQLite has no roles: each process may write every row"
    process = role_of(settings)
    try:
        if process is Role.OPERATOR:
            return await _of_a_writer(settings)
        role, rights = await rights_of_user(settings.database_url, process)
        if rights.are_right:
            return f"{role} reads every row, and writes what {WORDS[process]} writes alone"
        if process is not Role.GATEWAY and ROLE.get() is None:
            return await _of_a_writer(settings)
    except Failure as failure:
        raise unreachable(failure) from None
    put = f"As the owner of the tables: {COMMAND} db upgrade --{process.value}-role "
    if rights.by_nature:
        put += f"ROLE    # another role, as which EVERGRANT_DATABASE_URL of {WORDS[process]} connects"
    else:
        put += shlex.quote(role)
    raise CheckFailed(f"{role}, as which {WORDS[process]} connects, {rights}", put)


async def _of_a_writer(settings: Settings) -> str:
    role, tables = await tables_not_written(settings.database_url)
    if not tables:
        return f"{role} reads and writes every table"
    named = ", ".join(tables[:_MOST_NAMED]) + (" and more" if len(tables) > _MOST_NAMED else "")
    raise CheckFailed(
        f"the role {role} may not read and write {named}: it is another process's, or not the tables' owner",
        "EVERGRANT_DATABASE_URL=<as the owner of the tables, or a worker's role>    # for commands",
    )


async def servers(settings: Settings) -> str:
    """Of several PostgreSQL servers one is the primary, and another can take over at once."""
    reports = await server_reports(settings.database_url)
    if not reports:
        return "one: EVERGRANT_DATABASE_URL names no standby"
    primaries = [report for report in reports if report.state is ServerState.PRIMARY]
    if not primaries:
        said = "; ".join(f"{report.host}: {report.why or report.state}" for report in reports)
        raise CheckFailed(f"none takes writes ({said})", "SELECT pg_promote()    # at a standby")
    primary = primaries[0]
    for report in reports:
        behind = primary.position - report.position
        if report.state is ServerState.REPLACED:
            raise CheckFailed(
                f"{report.host} takes writes, and {primary.host} has replaced it",
                f"Stop PostgreSQL on {report.host}, and make it a standby with pg_rewind",
            )
        if report.state is ServerState.AWAY:
            raise CheckFailed(
                f"{report.host} gives no session ({report.why}): the primary's failure would be an outage",
                f"Start PostgreSQL on {report.host}, or leave it out of EVERGRANT_DATABASE_URL",
            )
        if report.state is ServerState.STANDBY and behind > BYTES_BEHIND_LIMIT:
            raise CheckFailed(
                f"{report.host} is {behind >> 20} MiB behind {primary.host}",
                f"SELECT * FROM pg_stat_wal_receiver    # at {report.host}: does it stream?",
            )
    standbys = ", ".join(
        f"{report.host} ({max(primary.position - report.position, 0)} bytes behind)"
        for report in reports
        if report is not primary
    )
    waits = (
        "commits wait for a standby" if primary.waits else "commits wait for none: a fail-over loses the last"
    )
    return f"{primary.host} is the primary, and can be replaced by {standbys}; {waits}"


async def connections(settings: Settings) -> str:
    """PostgreSQL lets in what the pools of all live processes may open."""
    if settings.uses_sqlite:
        return "SQLite opens its file"
    async with reading(settings) as tx:
        room, processes = await seats(tx.connection), that_go_on(await tx.processes.all())
    _, several = servers_of(settings.database_url)
    each = MOST_CONNECTIONS + (MOST_OF_BARRIERS if settings.region else 0)
    needed = (each + bool(several)) * len(processes)  # each process watches each of several servers
    detail = f"{len(processes)} processes open up to {needed} connections, and PostgreSQL lets {room} in"
    if needed <= room:
        return detail
    raise CheckFailed(
        detail,
        f"As an administrator: ALTER SYSTEM SET max_connections = {needed + 20}, and restart PostgreSQL "
        "(or raise the CONNECTION LIMIT of the role or the database)",
    )


async def region(settings: Settings) -> str:
    """Another region can take over, and would lose nothing now."""
    async with open_store(settings) as store:
        here = region_of(settings, store)
        if here is None:
            return "there is one region"
        now = await region_status(store, here)
    if now.problems:
        raise CheckFailed(now.problems[0].problem, now.problems[0].repair)
    if now.is_standby:
        return f"this database is a standby, and {now.serves} serves"
    return f"{now.region} serves, and {now.waits_for} has everything that was committed"


async def outbox(settings: Settings) -> str:
    async with reading(settings) as tx:
        now = SystemClock().now()
        depth, oldest = await tx.outbox.depth(now), await tx.outbox.oldest_undelivered_at()
    if oldest is None:
        return "nothing waits"
    age = now - oldest
    if age > OUTBOX_AGE_LIMIT:
        raise CheckFailed(
            f"{depth} messages wait, the oldest for {age.total_seconds():.0f} s: no relay delivers them",
            f"{COMMAND} worker    # and see the checks of Temporal",
        )
    return f"{depth} waiting, the oldest for {max(age.total_seconds(), 0):.0f} s"


async def revocations(settings: Settings) -> str:
    """Find grants whose provider hasn't confirmed the revocation for too long: tokens may be valid."""
    before, most = SystemClock().now() - REVOCATION_AGE_LIMIT, _MOST_NAMED + 1
    async with reading(settings) as tx:
        revoking = await tx.connections.revoking_since_before(before, most)
        replaced = await tx.replaced_grants.pending_since_before(before, most)
        old = [("", grant) for grant in revoking] + [("a replaced grant of ", grant) for grant in replaced]
        named = [
            f"{kind}{grant.id} (tenant {grant.tenant}, integration {grant.integration})"
            f" since {grant.since:%Y-%m-%d %H:%M} UTC, last failure {await _last_failure(tx, grant)}"
            for kind, grant in old[:_MOST_NAMED]
        ]
    minutes = REVOCATION_AGE_LIMIT.total_seconds() / 60
    if not old:
        return (
            f"no connection is revoking, and no replaced grant pending, for longer than {minutes:.0f} minutes"
        )
    rest = "; and more" if len(old) > _MOST_NAMED else ""
    raise CheckFailed(
        f"revoking for longer than {minutes:.0f} minutes: {'; '.join(named)}{rest}",
        f"Repair what the failure names (docs/errors.md); where there is none: {COMMAND} reconcile",
    )


async def _last_failure(tx: Transaction, revocation: PendingRevocation) -> str:
    record = await audit.newest_record(tx, revocation.tenant, revocation.id, AuditAction.REVOCATION_FAILED)
    tried = record is not None and record.at >= revocation.since
    return str(record.detail.get("reason")) if record is not None and tried else "none recorded"


async def certificates(settings: Settings) -> str:
    """Find client certificates that expire soon, before a provider refuses them."""
    now = SystemClock().now()
    async with reading(settings) as tx:
        ending = await tx.integrations.with_certificates_expiring_before(now + CERTIFICATE_WARNING)
    if not ending:
        return f"none expires within {CERTIFICATE_WARNING.days} days"
    first = ending[0]
    ends = first.client_certificate_expires_at
    when = "has expired" if ends is None or ends <= now else f"expires on {ends:%Y-%m-%d}"
    raise CheckFailed(
        f"{len(ending)} expire soon; that of the integration {first.name} (tenant {first.tenant}) {when}",
        f"PUT /v1/integrations/{first.name} with a new client_certificate",
    )


async def api_keys(settings: Settings) -> str:
    """Find apps that have no accepted API key, or soon won't have one."""
    now = SystemClock().now()
    async with reading(settings) as tx:
        ends = await tx.access.key_ends()
    ending = [app_end for app_end in ends if app_end[2] is None or app_end[2] < now + API_KEY_WARNING]
    if not ending:
        return f"each of {len(ends)} apps has one that lasts for {API_KEY_WARNING.days} days"
    tenant, name, end = ending[0]
    why = "is of an earlier version" if end is None else f"ends at {end:%Y-%m-%d %H:%M} UTC"
    raise CheckFailed(
        f"{len(ending)} apps have none for the next {API_KEY_WARNING.days} days;"
        f" that of {name} (tenant {tenant}) {why}",
        f"POST /v1/apps/{name}/keys, and revoke the old key; for the app admin:"
        f" {COMMAND} keys bootstrap --again",
    )


async def clock(settings: Settings) -> str:
    async with open_store(settings) as store:
        await database_time(store)  # the first query also opens the connection
        before = SystemClock().now()
        theirs = await database_time(store)
    if theirs is None:
        return "SQLite uses this host's clock"
    return compare_clocks(theirs, before, SystemClock().now(), "the database's")
