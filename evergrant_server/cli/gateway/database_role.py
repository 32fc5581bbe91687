"""The role of PostgreSQL as which gateways connect: its rights in SQL, and its password."""

from pathlib import Path

from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store.review.gateway_role import grants

_NO_ROLES = "SQLite has no roles: give gateways one of their own with PostgreSQL"


def gateway_role(role: str, /, *, schema: str = "public") -> None:
    """Print the SQL that gives a role what a gateway reads and writes, and nothing else.

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
