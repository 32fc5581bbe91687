"""What each of several PostgreSQL servers is, asked once: for `doctor`."""

import asyncio
from typing import Any, NamedTuple, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
from sqlalchemy import URL

from evergrant_server.store.database.engine import servers_of
from evergrant_server.store.database.errors import DRIVER_ERRORS, reason_of
from evergrant_server.store.database.hosts import DatabaseHost, ServerState, url_of

_ANSWER_S = 2.0
_OF_SQLALCHEMY = "prepared_statement_cache_size"
_STATE = (
    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,"
    " (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END"
    " - '0/0'::pg_lsn)::bigint,"
    " current_setting('synchronous_standby_names') <> ''"
    " AND current_setting('synchronous_commit') NOT IN ('off', 'local')"
)
_open = cast(Any, asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  # without stubs


class ServerReport(NamedTuple):
    """One server. `position` is the byte of the log that it has written, or shows as a standby; `waits`:
    its commits wait for a standby. `why` it gave no answer; empty: it gave one."""

    host: DatabaseHost
    state: ServerState
    position: int = 0
    waits: bool = False
    why: str = ""


async def server_reports(url: str) -> list[ServerReport]:
    """Ask every server of a URL that names several; empty for one server. Raises Failure STORE_UNAVAILABLE
    for a URL that can't be used."""
    parsed, hosts = servers_of(url)
    answers = await asyncio.gather(*(_ask(parsed, host) for host in hosts))
    newest = max((timeline for timeline, _ in answers), default=0)
    return [
        report._replace(state=ServerState.REPLACED) if 0 < timeline < newest else report
        for timeline, report in answers
    ]


async def _ask(url: URL, host: DatabaseHost) -> tuple[int, ServerReport]:
    """The timeline of a primary, 0 for others; and what it says."""
    _, options = url.get_dialect()().create_connect_args(url_of(url, host))
    options.pop(_OF_SQLALCHEMY, None)
    try:
        async with asyncio.timeout(_ANSWER_S):
            session = await _open(**options)
            try:
                timeline, position, waits = await session.fetchrow(_STATE)
            finally:
                session.terminate()
    except (*DRIVER_ERRORS, OSError, TimeoutError) as error:
        return 0, ServerReport(host, ServerState.AWAY, why=reason_of(error))
    if timeline is None:
        return 0, ServerReport(host, ServerState.STANDBY, position or 0)
    return int(timeline, 16), ServerReport(host, ServerState.PRIMARY, position, waits)
