"""`db`: the schema's version and its upgrade, the role of gateways, the Temporal namespace."""

from pathlib import Path

from cyclopts import App

from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.cli.keys import create_wrapped_keys, renew_gateway_bundle
from evergrant_server.cli.roots import has_rows
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store.authority.gateway_role import grants, put_gateway_role
from evergrant_server.store.database import schema
from evergrant_server.temporal_link.connect import connect, prepare_namespace

_NO_ROLES = "SQLite has no roles: give gateways one of their own with PostgreSQL"
db = App(name="db")


@db.command
async def upgrade(
    *,
    namespace: bool = True,
    gateway_role: str | None = None,
    gateway_password_file: Path | None = None,
    flags: Flags | None = None,
) -> None:
    """Bring the schema up to date, and prepare the Temporal namespace.

    Args:
        namespace: Also register search attributes and set the retention of closed runs.
        gateway_role: The role of PostgreSQL as which gateways connect: give it only what a gateway reads
            and writes.
        gateway_password_file: Make that role, or give it the password in this file.
    """
    settings = settings_of(flags)
    password = gateway_password(settings, gateway_role, gateway_password_file)
    before = await schema.upgrade(settings.database_url)
    print(f"schema {before or 'none'} -> {schema.expected_version()}")
    await _prepare_roots(settings)
    if gateway_role is not None:
        await put_gateway_role(settings.database_url, gateway_role, password)
        print(f"role {gateway_role}: what a gateway reads and writes, and nothing else")
    if namespace:
        client = await connect(settings)
        await prepare_namespace(client, settings.history_retention)
        print(
            f"namespace {client.namespace}: search attributes, retention {settings.history_retention.days} d"
        )


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
def gateway_role(role: str, /, *, schema: str = "public") -> None:
    """Print the SQL that gives a role only what a gateway reads and writes.

    `db upgrade --gateway-role ROLE` runs it.

    Args:
        schema: The schema of PostgreSQL that holds the tables.
    """
    print(*(f"{statement};" for statement in grants(role, schema)), sep="\n")


def gateway_password(settings: Settings, role: str | None, file: Path | None) -> str | None:
    """The password in the file, if there is one. Raises BadSettings."""
    if role is not None and settings.uses_sqlite:
        raise BadSettings(f"--gateway-role: {_NO_ROLES}")
    if file is None:
        return None
    if role is None:
        raise BadSettings("--gateway-password-file: whose? Name the role with --gateway-role")
    try:
        password = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't ASCII"
        raise BadSettings(f"--gateway-password-file: {file} can't be read ({reason})") from None
    if not password:
        raise BadSettings(f"--gateway-password-file: {file} is empty; write the password into it")
    return password
