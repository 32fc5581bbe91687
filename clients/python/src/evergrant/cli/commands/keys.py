"""`evergrant keys`: the keys that seal the tenant's secrets, and rotations of them."""

import sys
import time
from typing import Literal

from cyclopts import App

from evergrant.api.models import KeyRotation
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import row_of, show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest, PlatformUnavailable
from evergrant.sync_client import Evergrant

Kind = Literal["tenant", "connection"]
Command = Literal["rotate", "rewrap", "retire"]
_COLUMNS = (
    *("purpose", "key_id", "made_at", "connection_keys"),
    *("replaced", "left", "replaced_connection_keys"),
)
_ROTATIONS = (
    *("kind", "command", "step", "done", "paused", "moved", "total"),
    *("left", "destroyed", "kept", "broken", "begun_at"),
)
_SECRETS = ("kind", "name", "key_id", "accepted_until", "last_used_at", "in_use")
_EVERY_S = 0.5
_WIDTH = 30  # of the bar

keys = App(name="keys")

verb(keys, "rotations", "key_rotations", "Show how far the newest rotation of each kind is.", _ROTATIONS)
verb(keys, "secrets", "older_secrets", "Show secrets that were replaced and are still accepted.", _SECRETS)
verb(keys, "retire-secret", "retire_secret", "Retire an older secret that nothing uses.")
verb(keys, "pause", "pause_key_rotation", "Pause the rotation of a kind at the end of its page.")
verb(keys, "resume", "resume_key_rotation", "Have a paused rotation go on.")


@keys.command
def status(*, options: Options = DEFAULTS) -> None:
    """Show the tenant's keys: their age, and what still stands under those that were replaced."""
    with options.client() as client:
        show_rows([row_of(key) for key in client.tenant_keys().keys], _COLUMNS, options.output)


@keys.command
def rotate(
    kind: Kind,
    /,
    *,
    purpose: tuple[str, ...] = (),
    connection: str | None = None,
    wait: bool = True,
    options: Options = DEFAULTS,
) -> None:
    """Make new keys, move what older ones wrap or seal to them, and destroy the older ones.

    Everything goes on meanwhile. Stopping this command doesn't stop the rotation.

    Args:
        kind: `tenant`: the tenant's own keys; `connection`: those of its connections.
        purpose: lease, refresh or intake; may be repeated. By default all.
        connection: Only the keys of this connection.
        wait: Wait for its end, with a progress bar.
    """
    _run(options, kind, "rotate", purpose, connection, wait)


@keys.command
def rewrap(
    kind: Kind = "tenant",
    /,
    *,
    purpose: tuple[str, ...] = (),
    wait: bool = True,
    options: Options = DEFAULTS,
) -> None:
    """Move what stands under older keys to the current ones, without a new key. Nothing is destroyed.

    Args:
        kind: `tenant` or `connection`.
        purpose: lease, refresh or intake; may be repeated. By default all.
        wait: Wait for its end, with a progress bar.
    """
    _run(options, kind, "rewrap", purpose, None, wait)


@keys.command
def retire(
    kind: Kind, /, *, purpose: tuple[str, ...] = (), wait: bool = True, options: Options = DEFAULTS
) -> None:
    """Destroy keys that were replaced before, once nothing stands under them.

    Args:
        kind: `tenant` or `connection`.
        purpose: lease, refresh or intake; may be repeated. By default all.
        wait: Wait for its end, with a progress bar.
    """
    _run(options, kind, "retire", purpose, None, wait)


def _run(
    options: Options,
    kind: Kind,
    command: Command,
    purposes: tuple[str, ...],
    connection: str | None,
    wait: bool,
) -> None:
    with options.client() as client:
        rotation = client.rotate_keys(
            kind, command=command, purposes=purposes or None, connection_id=connection
        )
        while wait and not rotation.done:
            time.sleep(_EVERY_S)
            rotation = _newest(client, rotation)
            _show_bar(rotation)
    if wait and sys.stderr.isatty():
        print(file=sys.stderr)
    show_one(rotation, options.output)


def _newest(client: Evergrant, rotation: KeyRotation) -> KeyRotation:
    """How far it is; as before while its workflow hasn't begun, or no worker answers."""
    try:
        rotations = client.key_rotations(connection=rotation.connection_id)
    except (BadRequest, PlatformUnavailable) as error:
        if error.code not in ("not_found", "temporal_unavailable"):
            raise
        return rotation
    same = (newest for newest in rotations if newest.rotation_id == rotation.rotation_id)
    return next(same, rotation)


def _show_bar(rotation: KeyRotation) -> None:
    """Draw the bar on a terminal, over the one before."""
    if not sys.stderr.isatty():
        return
    share = min(1.0, rotation.moved / rotation.total) if rotation.total else 0.0
    bar = "█" * round(share * _WIDTH)
    step = "paused" if rotation.paused else rotation.step or "begins"
    line = f"{step:<8}{bar:<{_WIDTH}} {rotation.moved:,} of {rotation.total:,}"
    line += f", left {rotation.left:,}, destroyed {rotation.destroyed:,}, kept {rotation.kept:,}"
    print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
