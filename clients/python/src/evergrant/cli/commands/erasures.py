"""`evergrant subjects`, `erasures` and `holds`: erase for good, and forbid that."""

import sys
import time
from datetime import UTC, datetime, timedelta

from cyclopts import App

from evergrant.api.models import Erasure
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.retries import Deadline
from evergrant.sync_client import Evergrant

_WAIT = timedelta(seconds=20)  # for a worker; it goes on without this command
_EVERY_S = 0.5
_ERASURES = ("id", "kind", "target", "state", "connections", "waiting", "reason", "finished_at")
_HOLDS = ("id", "kind", "target", "active", "until", "reason", "by")

subjects = App(name="subjects")
erasures = App(name="erasures")
holds = App(name="holds")

verb(erasures, "get", "erasure", "Show how far an erasure has come.")
verb(holds, "ls list", "holds", "List the legal holds of the tenant, ended ones too.", _HOLDS)


@subjects.command(name="erase")
def erase_subject(subject: str, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """Erase a subject for good: its connections, its sessions, and what audit records say of it.

    Args:
        reason: For the audit log, which keeps it: name a ticket, and no person.
    """
    with options.client() as client:
        show_one(until_erased(client, client.create_erasure(subject=subject, reason=reason)), options.output)


@erasures.command(name=("ls", "list"))
def list_erasures(*, subject: str | None = None, options: Options = DEFAULTS) -> None:
    """List the erasures of the tenant.

    Args:
        subject: Those of this subject, also once its name is erased.
    """
    with options.client() as client:
        show_rows(client.erasures(subject=subject), _ERASURES, options.output)


@holds.command(name="put")
def put_hold(
    *,
    reason: str,
    connection: str | None = None,
    subject: str | None = None,
    tenant: bool = False,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Forbid that a connection, a subject or the whole tenant is erased or pruned.

    Args:
        reason: Why, such as the number of a case.
        connection: The id of a connection.
        subject: A subject, with all its connections.
        tenant: Everything of the tenant.
        until: When it ends by itself, such as 2027-01-31T00:00:00, in UTC; without it when it is ended.
    """
    if until is not None and until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    with options.client() as client:
        hold = client.create_hold(
            connection_id=connection, subject=subject, tenant=tenant, reason=reason, until=until
        )
    show_one(hold, options.output)


@holds.command(name="end")
def end_hold(hold_id: str, /, *, reason: str, options: Options = DEFAULTS) -> None:
    """End a legal hold."""
    with options.client() as client:
        show_one(client.end_hold(hold_id, reason=reason), options.output)


def until_erased(client: Evergrant, erasure: Erasure) -> Erasure:
    """The erasure once it has ended, or as it is after a while: providers may take longer."""
    print(f"evergrant: {erasure.id} is ordered; it can't be undone", file=sys.stderr)
    deadline = Deadline(_WAIT)
    while erasure.finished_at is None and deadline.seconds_left() > 0:
        time.sleep(_EVERY_S)
        erasure = client.erasure(erasure.id)
    return erasure
