"""`evergrant subjects`, `erasures` and `holds`: erase for good, and forbid that.

`evergrant offboard`: a person leaves: what is theirs is stopped at once, and revoked after a grace.
"""

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cyclopts import App

from evergrant.api.models import Erasure
from evergrant.cli.arguments import argument_error
from evergrant.cli.commands.incidents import report
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


Attribute = Literal["user_name", "external_id", "email"]
_OFFBOARDINGS = ("id", "subject", "state", "ended", "selected", "held_until", "reason")
_PLANNED = ("connection_id", "integration", "subject", "label", "state", "matched_by", "fate", "to")
_OF_LEAVER = (
    "connection_id",
    "subject",
    "integration",
    "matched_by",
    "step",
    "outcome",
    "state",
    "last_leased_at",
)

offboard = App(name="offboard")

verb(offboard, "ls list", "offboardings", "List who leaves, or has left.", _OFFBOARDINGS)
verb(offboard, "show get", "offboarding", "Show how far the offboarding of a person is.")
verb(offboard, "undo", "undo_offboarding", "Put the connections of a person back, within the grace.")
verb(offboard, "rule", "offboarding_rule", "Show how people are matched to subjects.")
verb(offboard, "rm-rule", "delete_offboarding_rule", "Match nobody who leaves to a subject by itself.")


@offboard.command(name="start")
def start_offboarding(
    *,
    reason: str,
    subject: str | None = None,
    user: str | None = None,
    issuer: str | None = None,
    sub: str | None = None,
    grace: float | None = None,
    sponsor: str | None = None,
    hand_over: tuple[str, ...] = (),
    dry_run: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Stop all connections of a person who leaves; once the grace is over, revoke them at the providers.

    Args:
        reason: For the audit log and the report: name a ticket, and no person.
        subject: The person, as apps name them.
        user: The person in the tenant's directory: their id, or their userName.
        issuer: The issuer at which the person logs in, beside --sub.
        sub: The person's sub at the issuer.
        grace: Seconds in which the connections can be put back; by default the tenant's.
        sponsor: The app that answers for the person's agents from then on. Without one they are stopped.
        hand_over: A connection of the team, and whose it becomes: CONNECTION_ID=SUBJECT. May be repeated.
        dry_run: Change nothing, and show what would become of each connection.
    """
    owners = dict(_owner(text) for text in hand_over)
    with options.client() as client:
        call = client.plan_offboarding if dry_run else client.begin_offboarding
        result = call(
            reason,
            subject=subject,
            user=user,
            issuer=issuer,
            sub=sub,
            grace=None if grace is None else timedelta(seconds=grace),
            sponsor=sponsor,
            hand_over=owners or None,
        )
    planned = getattr(result, "connections", None)
    if planned is None or options.output != "table":
        show_one(result, options.output)
        return
    show_rows(planned, _PLANNED, options.output)


@offboard.command(name="connections")
def connections_of_leaver(offboarding_id: str, /, *, options: Options = DEFAULTS) -> None:
    """List the connections of a person who leaves, and what became of each."""
    with options.client() as client:
        show_rows(client.offboarding(offboarding_id).connections, _OF_LEAVER, options.output)


@offboard.command(name="report")
def offboarding_report(
    offboarding_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS
) -> None:
    """Print the signed report of an offboarding that is done. `evergrant incident verify` checks it.

    Args:
        out: A new file for it.
    """
    report(offboarding_id, out=out, options=options)


@offboard.command
def put_rule(
    *,
    subject_from: Attribute | None = None,
    sub_from: Attribute | None = None,
    issuer: str | None = None,
    grace: float | None = None,
    sponsor: str | None = None,
    team_label: tuple[str, ...] = (),
    team_owner: str | None = None,
    dry_run: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Say how people who leave are matched to subjects, and what becomes of what is theirs.

    Args:
        subject_from: The attribute of the directory that apps use as subject.
        sub_from: The attribute that is the person's sub at the issuer.
        issuer: The tenant's own issuer.
        grace: Seconds in which connections can be put back; by default EVERGRANT_OFFBOARDING_GRACE.
        sponsor: The app that answers for agents of people who have left.
        team_label: Connections with this label are the team's. May be repeated.
        team_owner: The subject to whom these are handed over.
        dry_run: Record what SCIM and security events would begin, and begin nothing.
    """
    with options.client() as client:
        rule = client.put_offboarding_rule(
            subject_from=subject_from,
            sub_from=sub_from,
            issuer=issuer,
            grace=None if grace is None else timedelta(seconds=grace),
            sponsor=sponsor,
            team_labels=team_label or None,
            team_owner=team_owner,
            dry_run=dry_run,
        )
        show_one(rule, options.output)


def _owner(text: str) -> tuple[str, str]:
    connection, _, subject = text.partition("=")
    if not connection or not subject:
        raise argument_error("--hand-over is CONNECTION_ID=SUBJECT")
    return connection, subject
