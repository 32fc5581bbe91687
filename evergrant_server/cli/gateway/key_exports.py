"""Key files for processes that must not hold all keys."""

from pathlib import Path

from evergrant_server.cli.app import Flags, settings_of
from evergrant_server.crypto.keyring import KeyRing, Role


def export_api(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for API processes: without the refresh keys."""
    KeyRing.open(settings_of(flags).key_path, Role.OPERATOR).export(out, Role.API)
    print(f"wrote {out}: it can open access tokens, but no refresh tokens")


def export_gateway(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for gateways: it opens access tokens alone."""
    KeyRing.open(settings_of(flags).key_path, Role.OPERATOR).export(out, Role.GATEWAY)
    print(f"wrote {out}: it can open access tokens, but no refresh tokens and no client secrets")
