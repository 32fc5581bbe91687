"""The PostgreSQL servers of one URL: finds the primary, notices a promotion, refuses what was replaced.

A promotion begins a new timeline, whose number is one higher (PostgreSQL, 25.3.6). A server that takes
writes on an older timeline than the newest that this process has seen was replaced by another, and gets no
session. Once a process learns of a newer timeline, its sessions at older ones are cut, whatever they are
doing: what waits for an answer of a server that hangs fails at once, and the next session is the new
primary's.

A process that was started after the promotion and reaches nothing but the old primary can't know
(docs/adr/0135).
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, NamedTuple, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]  # it has none
from sqlalchemy import URL

from evergrant_server.store.database.errors import DRIVER_ERRORS, NoPrimary, reason_of

_HOST_TIMEOUTS_S = (0.7, 2.0)  # of one server; those that were silent are asked again, for longer
_LOOK_S = 2.0  # until a server that is watched counts as away
_PAUSE_S = 0.5  # between two looks
_DEFAULT_PORT = 5432
_CHOSEN_HERE = ("host", "port", "timeout", "target_session_attrs")
_STANDBY = "it is a standby"
_REPLACED = "it was replaced: another server has a newer timeline"
# of what a server says about itself; anything else (a wrong password) is no reason to ask another server
_NEXT_SERVER = ("08", "57P", "53300", "25006")
# the log file's name begins with the timeline in hexadecimal; pg_control has an older one until a checkpoint
_TIMELINE = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END"


_open = cast(Any, asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]  # without stubs


class ServerState(StrEnum):
    """What a server was when it was last asked."""

    PRIMARY = "primary"
    STANDBY = "standby"
    REPLACED = "replaced"  # takes writes, on an older timeline than another: nobody may use it
    AWAY = "away"


class DatabaseHost(NamedTuple):
    """Where one of the servers listens."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"{self.name}:{self.port}"


class _NotUsable(Exception):
    """The server answers, and takes no writes of ours."""


class DatabaseServers:
    """Opens sessions at the primary among several servers. Belongs to one event loop.

    Without `hosts` there is one server, or none: nothing is opened or watched here.
    """

    def __init__(self, hosts: Sequence[DatabaseHost]) -> None:
        self.states: dict[DatabaseHost, ServerState] = {}
        self.hosts = tuple(hosts)
        self._on_failover: list[Callable[[], None]] = []
        self._primary: DatabaseHost | None = None  # where the last session was opened
        self._timeline = 0  # the newest that was seen
        self._sessions: dict[Any, int] = {}  # open ones, and the timeline of each
        self._options: dict[str, Any] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._looked = {host: asyncio.Event() for host in hosts}

    async def connect(self, **options: Any) -> Any:
        """A session of asyncpg's at the primary, the last good server first.

        `options` are those of `asyncpg.connect`; address and time are chosen here. Raises NoPrimary, which
        says what became of each server, or the driver's error for what another server wouldn't repair.
        """
        self._options = {name: value for name, value in options.items() if name not in _CHOSEN_HERE}
        await self._begin()
        refused: dict[DatabaseHost, str] = {}
        waiting = sorted(self.hosts, key=lambda host: host != self._primary)
        for timeout_s in _HOST_TIMEOUTS_S:
            silent: list[DatabaseHost] = []
            for host in waiting:
                try:
                    return await self._connected(host, timeout_s)
                except asyncpg.PostgresError as error:
                    if not str(getattr(error, "sqlstate", "")).startswith(_NEXT_SERVER):
                        raise
                    refused[host] = reason_of(error)
                except _NotUsable as error:
                    refused[host] = str(error)
                except (*DRIVER_ERRORS, OSError, TimeoutError) as error:
                    refused[host] = reason_of(error)
                    if isinstance(error, TimeoutError):
                        silent.append(host)
            waiting = silent
        raise NoPrimary("; ".join(f"{host}: {refused[host]}" for host in self.hosts))

    def on_failover(self, call: Callable[[], None]) -> None:
        """Have this called once another server has taken over, and the sessions of before are cut: what is
        remembered may be of changes that it lacks, whose revisions others will get."""
        self._on_failover.append(call)

    def named_states(self) -> dict[str, str]:
        """The states by HOST:PORT."""
        return {str(host): state.value for host, state in self.states.items()}

    async def close(self) -> None:
        """End the watch. The sessions are their pools' to close."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)

    async def _begin(self) -> None:
        """Before the first session each server was looked at, if it answers soon: the newest timeline counts,
        not the first place in the URL."""
        if not self._watchers:
            self._watchers = [
                asyncio.create_task(self._watch(host), name=f"watch:{host}") for host in self.hosts
            ]
        if not all(looked.is_set() for looked in self._looked.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(_HOST_TIMEOUTS_S[0]):
                    await asyncio.gather(*(looked.wait() for looked in self._looked.values()))

    async def _connected(self, host: DatabaseHost, timeout_s: float) -> Any:
        async with asyncio.timeout(timeout_s):
            session = await _open(
                host=host.name,
                port=host.port,
                target_session_attrs="read-write",
                timeout=timeout_s,
                **self._options,
            )
            try:
                timeline = await _timeline_of(session)
            except BaseException:
                session.terminate()
                raise
        self._note(host, timeline)
        if timeline is None or timeline < self._timeline:
            session.terminate()
            raise _NotUsable(_STANDBY if timeline is None else _REPLACED)
        self._primary = host
        self._sessions[session] = timeline
        session.add_termination_listener(self._forget)
        return session

    def _forget(self, session: Any) -> None:
        self._sessions.pop(session, None)

    async def _watch(self, host: DatabaseHost) -> None:
        """Ask the server again and again what it is, through a session that is kept."""
        session: Any = None
        try:
            while True:
                session = await self._look(host, session)
                self._looked[host].set()
                await asyncio.sleep(_PAUSE_S)
        finally:
            if session is not None:
                session.terminate()

    async def _look(self, host: DatabaseHost, session: Any) -> Any:
        """The session for the next look; None: there is none."""
        try:
            async with asyncio.timeout(_LOOK_S):
                if session is None:
                    session = await _open(host=host.name, port=host.port, **self._options)
                timeline = await _timeline_of(session)
        except (*DRIVER_ERRORS, OSError, TimeoutError):
            if session is not None:
                session.terminate()
            self.states[host] = ServerState.AWAY
            return None
        self._note(host, timeline)
        return session

    def _note(self, host: DatabaseHost, timeline: int | None) -> None:
        """Note what a server says of itself; the first news of a promotion cuts the sessions of before."""
        if timeline is None:
            self.states[host] = ServerState.STANDBY
        elif timeline < self._timeline:
            self.states[host] = ServerState.REPLACED
        else:
            self.states[host] = ServerState.PRIMARY
            if timeline > self._timeline:
                self._fail_over(host, timeline)

    def _fail_over(self, host: DatabaseHost, timeline: int) -> None:
        self._primary, self._timeline = host, timeline
        for other, state in self.states.items():
            if other != host and state is ServerState.PRIMARY:
                self.states[other] = ServerState.REPLACED
        for session, of in list(self._sessions.items()):
            if of < timeline:
                session.terminate()
        for call in self._on_failover:
            call()


async def _timeline_of(session: Any) -> int | None:
    """The timeline on which the server takes writes; None for a standby."""
    timeline: str | None = await session.fetchval(_TIMELINE)
    return None if timeline is None else int(timeline, 16)


def hosts_of(url: URL) -> tuple[DatabaseHost, ...]:
    """The servers of a URL: `?host=a:5432&host=b:5432`, or `?host=a,b&port=5432,5433`. Empty unless several.

    Raises ValueError for a port that is none.
    """
    names = _values(url, "host")
    if len(names) < 2:
        return ()
    ports = _values(url, "port")
    hosts: list[DatabaseHost] = []
    for place, text in enumerate(names):
        name, _, port = text.partition(":")
        port = port or (ports[place] if len(ports) == len(names) else "".join(ports[:1]))
        if not name or (port and not port.isdecimal()):
            raise ValueError(f"{text!r} is not HOST:PORT")
        hosts.append(DatabaseHost(name, int(port or url.port or _DEFAULT_PORT)))
    return tuple(hosts)


def url_of(url: URL, host: DatabaseHost) -> URL:
    """The URL with one server alone."""
    query = {name: value for name, value in url.query.items() if name not in _CHOSEN_HERE}
    return url.set(host=host.name, port=host.port, query=query)


def _values(url: URL, name: str) -> list[str]:
    value = url.query.get(name, ())
    return value.split(",") if isinstance(value, str) else [*value]
