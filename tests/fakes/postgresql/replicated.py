"""Two PostgreSQL servers with streaming replication, for tests that fail over: killed, paused, promoted.

`async with replicated() as (first, second)`: `first` is the primary, `second` its standby, both on ports of
the loopback interface. `fsync` is off: a killed process loses nothing that the kernel has.
"""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.descendants import descendants
from tests.fakes.ports import free_port
from tests.fakes.postgresql.program import SYSTEM_USER, make_system_user, postgresql_programs

OWNER, REPLICATION = "postgres", "repl"
PRIMARY_SETTINGS = {
    "wal_keep_size": "512MB",  # without it pg_rewind may not find what it needs
    "max_slot_wal_keep_size": "2GB",
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "max_connections": "200",
}
_LOOPBACK: tuple[str, Sequence[str]] = ("127.0.0.1", ())
_STARTS = (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError)


class PostgresServer:
    """One server on a folder of its own. `host` is where it listens, `name` what the other one calls it."""

    def __init__(self, name: str, folder: Path, host: str = "127.0.0.1", within: Sequence[str] = ()) -> None:
        """`within`: words before each command of it, which enter a network namespace as the server's user."""
        self.name, self.host, self.port = name, host, free_port()
        self.data, self._log, self._within = folder / name, folder / f"{name}.log", within
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """`host:port`, as a URL of SQLAlchemy's names it."""
        return f"{self.host}:{self.port}"

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://{OWNER}@{self.address}/{database}"

    async def create(self) -> None:
        """Make an empty database cluster that trusts whoever reaches it."""
        await self.run(
            "initdb", "-D", str(self.data), "-U", OWNER, "-A", "trust", "--no-sync", "--locale=C.UTF-8"
        )
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all trust\nhost replication all all trust\n")
        self.configure(**PRIMARY_SETTINGS)

    async def copy_of(self, primary: "PostgresServer") -> None:
        """Become a standby of this running primary, through a slot of this server's name."""
        await primary.execute(f"SELECT pg_create_physical_replication_slot('{self.name}', true)")
        source = f"host={primary.host} port={primary.port} user={REPLICATION} application_name={self.name}"
        patient = f"{source} options='-c wal_sender_timeout=0'"  # a busy machine stands still
        words = ("-D", str(self.data), "-R", "-S", self.name, "-X", "stream", "-c", "fast", "--no-sync")
        await self.run("pg_basebackup", "-d", patient, *words)
        # the copy's primary_conninfo has the patience too, and with the primary's names it waits for itself
        self.configure(primary_conninfo=source, synchronous_standby_names="")

    async def rewind_to(self, primary: "PostgresServer") -> None:
        """A former primary that has ended becomes a standby of the one that was promoted meanwhile."""
        with suppress(asyncpg.DuplicateObjectError):
            await primary.execute(f"SELECT pg_create_physical_replication_slot('{self.name}', true)")
        source = f"host={primary.host} port={primary.port} user={OWNER} dbname=postgres"
        await self.run("pg_rewind", "-D", str(self.data), "--source-server", source, "-R", "--no-sync")
        source = f"host={primary.host} port={primary.port} user={REPLICATION} application_name={self.name}"
        self.configure(primary_conninfo=source, primary_slot_name=self.name, synchronous_standby_names="")

    def configure(self, **settings: str) -> None:
        """Add lines to the file whose last lines win; a running server reads them with `reload`."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    async def reload(self) -> None:
        await self.execute("SELECT pg_reload_conf()")

    async def start(self) -> None:
        """Start the server and return once it lets sessions in."""
        self._process = await asyncio.to_thread(self._started)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"PostgreSQL {self.name} ended: {self._log.read_text()[-2000:]}")
                with suppress(*_STARTS):
                    return await self.execute("SELECT 1")
                await asyncio.sleep(0.02)

    def _started(self) -> subprocess.Popen[bytes]:
        own = {"port": str(self.port), "listen_addresses": self.host, "unix_socket_directories": ""}
        words = [
            word for name, value in (own | {"fsync": "off"}).items() for word in ("-c", f"{name}={value}")
        ]
        with self._log.open("ab") as log:
            command = self._command("postgres", "-D", str(self.data), *words)
            return subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **_as_system_user(self._within))

    def kill(self) -> None:
        """SIGKILL the server and its children, as a host does that loses its power; nothing is shut down."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(PATIENCE_S)
            self._process = None

    def pause(self) -> None:
        """SIGSTOP the server and its children: its sessions stay open and silent."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def stop(self) -> None:
        """Shut the server down cleanly, ending its sessions; a clean end is what pg_rewind wants."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            await asyncio.to_thread(self._process.wait, PATIENCE_S)
            self._process = None

    async def promote(self) -> None:
        """Make this standby a primary; returns once it takes writes."""
        if not await self.value("SELECT pg_promote(true, 60)"):
            raise RuntimeError(f"PostgreSQL {self.name} wasn't promoted")

    async def connect(self, database: str = "postgres", **options: Any) -> Any:
        """A session of the owner's."""
        return await asyncpg.connect(
            host=self.host, port=self.port, user=OWNER, database=database, ssl=False, **options
        )

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements outside a transaction, as the owner."""
        connection = await self.connect(database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def value(self, query: str, *parameters: Any, database: str = "postgres") -> Any:
        connection = await self.connect(database)
        try:
            return await connection.fetchval(query, *parameters)
        finally:
            await connection.close()

    async def run(self, program: str, *words: str) -> str:
        """Run one of PostgreSQL's programs as the server's user. Raises RuntimeError with what it says."""
        command = self._command(program, *words)
        options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": "/", "timeout": PATIENCE_S}
        ended = await asyncio.to_thread(subprocess.run, command, **options, **_as_system_user(self._within))
        if ended.returncode:
            raise RuntimeError(f"{program}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def _command(self, program: str, *words: str) -> list[str]:
        return [*self._within, str(postgresql_programs() / program), *words]

    def _signal(self, number: int) -> None:
        """The postmaster first: else it would start others for those that end."""
        if self._process is None:
            return
        for pid in (self._process.pid, *descendants(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@asynccontextmanager
async def replicated(
    *, synchronous: bool = False, places: Sequence[tuple[str, Sequence[str]]] = (_LOOPBACK, _LOOPBACK)
) -> AsyncIterator[tuple[PostgresServer, PostgresServer]]:
    """A primary `a` and its standby `b`, streaming; both are gone after the block. `places`: each one's host
    and the words that enter its network.

    With `synchronous`, the primary names `b` in `synchronous_standby_names`, and a transaction waits for it
    if its own `synchronous_commit` is `on`; the server's default is `local`.
    """
    with pair_folder() as folder:
        first, second = (
            PostgresServer(name, folder, *place) for name, place in zip("ab", places, strict=True)
        )
        try:
            await begin_replication(first, second, synchronous=synchronous)
            yield first, second
        finally:
            for server in (first, second):
                server.kill()


async def begin_replication(
    primary: PostgresServer, standby: PostgresServer, *, synchronous: bool = False, default: str = "local"
) -> None:
    """Create and start both; returns once the standby streams. `default`: a transaction's
    `synchronous_commit`, where it sets none."""
    await primary.create()
    await primary.start()
    await primary.execute(f"CREATE ROLE {REPLICATION} REPLICATION LOGIN")
    await standby.copy_of(primary)
    await standby.start()
    if synchronous:
        primary.configure(synchronous_standby_names=standby.name, synchronous_commit=default)
        await primary.reload()
    await streaming(primary, "sync" if synchronous else "async")


async def streaming(primary: PostgresServer, sync_state: str = "async") -> None:
    """Return once a standby streams from this primary in this state."""
    query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = $1"
    async with asyncio.timeout(PATIENCE_S):
        while not await primary.value(query, sync_state):
            await asyncio.sleep(0.02)


async def caught_up(primary: PostgresServer, standby: PostgresServer) -> None:
    """Return once the standby shows everything that the primary has committed so far."""
    await _shown(standby, await primary.value("SELECT pg_current_wal_flush_lsn()::text"))


async def replayed(standby: PostgresServer) -> None:
    """Return once the standby shows everything that it has on its disk by now; `synchronous_commit = on`
    waits for the disk alone."""
    await _shown(standby, await standby.value("SELECT pg_last_wal_receive_lsn()::text"))


async def _shown(standby: PostgresServer, end: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await standby.value("SELECT pg_last_wal_replay_lsn() >= CAST($1::text AS pg_lsn)", end):
            await asyncio.sleep(0.02)


@contextmanager
def pair_folder() -> Iterator[Path]:
    """A folder for both servers, of the user that runs PostgreSQL where root can't."""
    with tempfile.TemporaryDirectory(prefix="evergrant-pg-pair-", ignore_cleanup_errors=True) as name:
        if os.geteuid() == 0:
            make_system_user(SYSTEM_USER)
            shutil.chown(name, SYSTEM_USER)
        yield Path(name)


def _as_system_user(within: Sequence[str]) -> dict[str, Any]:
    """What `within` changes by itself: it has to be root to enter a namespace."""
    if os.geteuid() != 0 or within:
        return {}
    entry = pwd.getpwnam(SYSTEM_USER)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
