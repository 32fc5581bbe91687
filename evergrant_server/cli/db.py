"""`db`: the schema's version and its upgrade, the roles of processes, the Temporal namespace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cyclopts import App, Parameter

from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.cli.keys import create_wrapped_keys, renew_gateway_bundle
from evergrant_server.cli.roots import has_rows
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store.authority.database_roles import WORDS, grants, put_role
from evergrant_server.store.database import schema
from evergrant_server.store.rotation.processes import read_processes, too_old
from evergrant_server.temporal_link.connect import connect, prepare_namespace

_NO_ROLES = "SQLite has no roles: give each process one of its own with PostgreSQL"
db = App(name="db")


class ProcessRole(NamedTuple):
    """A process and its role; a password to give the role, which makes it where it's missing."""

    process: Role
    name: str
    password: str | None


@Parameter(name="*")
@dataclass
class ProcessRoles:
    """The roles that an operator names, each with a file that holds its password.

    Attributes:
        worker_role: The role of PostgreSQL as which workers connect: give it only what a worker reads and
            writes.
        worker_password_file: Make that role, or give it the password in this file.
        api_role: The same for the API.
        api_password_file: Make that role, or give it the password in this file.
        gateway_role: The same for gateways.
        gateway_password_file: Make that role, or give it the password in this file.
    """

    worker_role: str | None = None
    worker_password_file: Path | None = None
    api_role: str | None = None
    api_password_file: Path | None = None
    gateway_role: str | None = None
    gateway_password_file: Path | None = None

    def read(self, settings: Settings) -> list[ProcessRole]:
        """The named roles with their passwords. Raises BadSettings before anything has changed."""
        chosen = (
            (Role.WORKER, self.worker_role, self.worker_password_file),
            (Role.API, self.api_role, self.api_password_file),
            (Role.GATEWAY, self.gateway_role, self.gateway_password_file),
        )
        roles = ((process, name, _password(settings, process, name, file)) for process, name, file in chosen)
        return [ProcessRole(process, name, password) for process, name, password in roles if name is not None]


@db.command
async def upgrade(
    *, namespace: bool = True, roles: ProcessRoles | None = None, flags: Flags | None = None
) -> None:
    """Bring the schema up to date, give each process's role its rights, and prepare the Temporal namespace.

    Processes of this release and of the one before may run meanwhile. A database that a newer release has
    upgraded stays as it is, with the rights of its roles.

    Args:
        namespace: Also register search attributes and set the retention of closed runs.
    """
    settings = settings_of(flags)
    chosen = (roles or ProcessRoles()).read(settings)
    await require_suited_processes(settings)
    before = await schema.upgrade(settings.database_url)
    if before is not None and schema.Stamp(before).is_newer:
        print(f"schema {before} is a newer release's, and works with this one: it and its roles stay")
    else:
        print(f"schema {before or 'none'} -> {schema.expected_version()}")
        await _prepare_roots(settings)
        await put_roles(settings, chosen)
        for process, name, _ in chosen:
            print(f"role {name}: what {WORDS[process]} reads and writes, and nothing else")
    if namespace:
        await _prepare_temporal(settings)


async def require_suited_processes(settings: Settings) -> None:
    """Raise Failure SCHEMA_MISMATCH while a process lives that wouldn't work with this release's schema."""
    stamp = await schema.read_stamp(settings.database_url)
    if stamp is None or stamp.suits or stamp.is_newer:
        return
    processes = await read_processes(settings.database_url, SystemClock().now())
    for process in too_old(processes, schema.OLDEST_CODE):
        why = f"the {process.role} on {process.host} ({process.version}) doesn't work with the new schema"
        repair = (
            f"Replace it by a release whose schema is {schema.OLDEST_CODE} or later first, or stop it; "
            "python -m evergrant_server doctor upgrade names what runs"
        )
        raise Failure(ErrorCode.SCHEMA_MISMATCH, f"Nothing was changed: {why}.", repair=repair)


async def _prepare_temporal(settings: Settings) -> None:
    client = await connect(settings)
    await prepare_namespace(client, settings.history_retention)
    print(f"namespace {client.namespace}: search attributes, retention {settings.history_retention.days} d")


async def _prepare_roots(settings: Settings) -> None:
    """Have the key service wrap the first root keys, and what this version derives more for gateways."""
    if settings.key_service != "file":
        if await create_wrapped_keys(settings):
            return
    elif not settings.key_path.exists() or not await has_rows(settings):
        return
    await renew_gateway_bundle(settings)


@db.command
async def current(*, flags: Flags | None = None) -> None:
    """Print the schema's version, and the newest that this release knows."""
    settings = settings_of(flags)
    version = await schema.current_version(settings.database_url)
    print(f"{version or 'none'} (newest: {schema.expected_version()})")


@db.command
def role(process: Literal["worker", "api", "gateway"], role: str, /, *, schema: str = "public") -> None:
    """Print the SQL that gives a role only what this process reads and writes.

    `db upgrade` with `--worker-role`, `--api-role` and `--gateway-role` runs it.

    Args:
        schema: The schema of PostgreSQL that holds the tables.
    """
    print(*(f"{statement};" for statement in grants(role, Role(process), schema)), sep="\n")


async def put_roles(settings: Settings, roles: Sequence[ProcessRole]) -> None:
    """Give each role what its process reads and writes, and nothing else."""
    for process, name, password in roles:
        await put_role(settings.database_url, process, name, password)


def _password(settings: Settings, process: Role, name: str | None, file: Path | None) -> str | None:
    flag = f"--{process.value}-password-file"
    if name is not None and settings.uses_sqlite:
        raise BadSettings(f"--{process.value}-role: {_NO_ROLES}")
    if file is None:
        return None
    if name is None:
        raise BadSettings(f"{flag}: whose? Name the role with --{process.value}-role")
    try:
        password = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't ASCII"
        raise BadSettings(f"{flag}: {file} can't be read ({reason})") from None
    if not password:
        raise BadSettings(f"{flag}: {file} is empty; write the password into it")
    return password
