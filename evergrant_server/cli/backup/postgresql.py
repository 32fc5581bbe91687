"""PostgreSQL's own programs: they take a backup, and serve a copy of one on a socket in a private folder."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.settings import Settings
from evergrant_server.store.database.copies import libpq_environment

_DEBIAN = Path("/usr/lib/postgresql")
_LAST_LINES = 6
_START_LIMIT_S = "600"  # a base backup's log is replayed first
_CONFIGURATION = """listen_addresses = ''
unix_socket_directories = '{socket}'
max_connections = 50
archive_mode = off
shared_preload_libraries = ''
"""


class Programs:
    """Runs PostgreSQL's programs of one version, as the system's user that may run a server."""

    def __init__(self, settings: Settings, run_as: str) -> None:
        self._folder = settings.postgres_bin
        self._user = _server_user(run_as)
        self.version = ""  # of the backup at hand: a server opens data of its own version alone

    def _path(self, name: str) -> str:
        folders = [self._folder] if self._folder else [_DEBIAN / self.version / "bin"] if self.version else []
        found = next((str(folder / name) for folder in folders if (folder / name).exists()), None)
        found = found or (shutil.which(name) if self._folder is None else None)
        versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: -float(path.parts[-3]))
        if found is None and self._folder is None and versions:
            found = str(versions[0])
        if found is None:
            raise Failure(
                ErrorCode.INVALID_REQUEST,
                f"PostgreSQL's program {name} isn't on this host. Install PostgreSQL {self.version}".rstrip()
                + " here, or name its folder with EVERGRANT_POSTGRES_BIN.",
            )
        return found

    async def run(self, name: str, *arguments: str, server: Mapping[str, str] | None = None) -> None:
        """Run a program to its end. Raises Failure INVALID_REQUEST with its last words.

        `server`: the variables by which it reaches a server; without, it works on files.
        """
        child = await asyncio.create_subprocess_exec(
            *(self._path(name), *arguments),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd="/", env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", **(server or {})},
            **({} if server is not None or self._user is None else {"user": self._user, "extra_groups": []}),
        )  # fmt: skip
        try:
            output, _ = await child.communicate()
        except asyncio.CancelledError:
            child.terminate()
            await child.wait()
            raise
        if child.returncode:
            words = " ".join(output.decode(errors="replace").split("\n")[-_LAST_LINES:]).strip()
            raise Failure(ErrorCode.INVALID_REQUEST, f"{name} failed: {words}")

    def give(self, folder: Path) -> None:
        """Let the server's user own a folder with all that is in it."""
        if self._user is not None:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self._user, -1, follow_symlinks=False)

    async def take(self, url: str, out: Path) -> None:
        """Write a base backup into a folder, or a dump into a file whose name ends in `.dump`."""
        server = libpq_environment(url)
        if out.suffix == ".dump":
            os.close(os.open(out, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # before it has a row
            await self.run("pg_dump", "--format=custom", "--no-password", f"--file={out}", server=server)
            return
        options = ("--wal-method=stream", "--checkpoint=fast", "--no-password")
        await self.run("pg_basebackup", f"--pgdata={out}", *options, server=server)

    @asynccontextmanager
    async def serving(self, backup: Path, url: str, scratch: Path) -> AsyncIterator[str]:
        """The URL of a server that serves the backup from a copy in the folder `scratch`.

        It listens on a socket alone, in a folder of its own. Raises as `run`.
        """
        target = libpq_environment(url)
        database = target["PGDATABASE"]
        user = target.get("PGUSER", "postgres") if is_base(backup) else "postgres"
        data = await self._prepare_data(backup, scratch)
        socket = Path(tempfile.mkdtemp(prefix="evergrant-"))  # a short path: a socket's has 107 bytes
        configuration = {
            "postgresql.conf": _CONFIGURATION.format(socket=socket),
            "pg_hba.conf": "local all all trust\n",
            "pg_ident.conf": "",
        }
        for name, content in configuration.items():
            (data / name).write_text(content, encoding="utf-8")
        data.chmod(0o700)
        self.give(scratch)
        self.give(socket)
        here = {"PGHOST": str(socket), "PGUSER": user}
        server = (f"--pgdata={data}", "--silent")
        log = f"--log={scratch / 'postgresql.log'}"
        try:
            await self.run("pg_ctl", "start", "--wait", f"--timeout={_START_LIMIT_S}", log, *server)
            try:
                if not is_base(backup):
                    await self.run("createdb", database, server=here)
                    await self.restore(backup, {**here, "PGDATABASE": database})
                yield f"postgresql+asyncpg://{user}@/{database}?host={socket}"
            finally:
                await self.run("pg_ctl", "stop", "--wait", "--mode=fast", *server)
        finally:
            shutil.rmtree(socket, ignore_errors=True)

    async def _prepare_data(self, backup: Path, scratch: Path) -> Path:
        """A server's data folder in `scratch`: the base backup's copy, or an empty one for a dump."""
        data = scratch / "data"
        if not is_base(backup):
            self.give(scratch)
            await self.run("initdb", f"--pgdata={data}", "--username=postgres", "--auth=trust", "--no-sync")
            return data
        self.version = (backup / "PG_VERSION").read_text(encoding="ascii").strip()
        if backup != data:
            await asyncio.to_thread(shutil.copytree, backup, data, symlinks=True)
        for name in ("postgresql.auto.conf", "standby.signal", "recovery.signal", "postmaster.pid"):
            (data / name).unlink(missing_ok=True)
        return data

    async def restore(self, dump: Path, server: Mapping[str, str]) -> None:
        """Put a dump's tables into an empty database, all of them or none."""
        options = (
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            "--no-privileges",
            "--no-password",
        )
        await self.run(
            "pg_restore", *options, f"--dbname={server['PGDATABASE']}", str(dump), server=dict(server)
        )


def is_base(backup: Path) -> bool:
    """Whether it is a base backup: a folder, as `pg_basebackup` writes it without a format."""
    return (backup / "PG_VERSION").is_file()


def _server_user(name: str) -> int | None:
    """The number of the system's user as whom a server runs; None: this process's own. PostgreSQL runs no
    server as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        why = f"PostgreSQL doesn't run as root, and this system has no user {name}."
        raise Failure(ErrorCode.INVALID_REQUEST, f"{why} Name another one with --run-as.") from None
