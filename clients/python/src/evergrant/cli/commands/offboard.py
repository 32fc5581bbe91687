"""`evergrant offboard`: a person leaves: what is theirs is stopped at once, and revoked after a grace."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Literal

from cyclopts import App

from evergrant.cli.arguments import argument_error
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest

Attribute = Literal["user_name", "external_id", "email"]
_OFFBOARDINGS = ("id", "subject", "state", "ended", "selected", "held_until", "reason")
_PLANNED = ("connection_id", "integration", "subject", "label", "state", "matched_by", "fate", "to")
_CONNECTIONS = ("connection_id", "integration", "matched_by", "step", "outcome", "state", "last_leased_at")

offboard = App(name="offboard")

verb(offboard, "ls list", "offboardings", "List who leaves, or has left.", _OFFBOARDINGS)
verb(offboard, "show get", "offboarding", "Show how far the offboarding of a person is.")
verb(offboard, "undo", "undo_offboarding", "Put the connections of a person back, within the grace.")
verb(offboard, "rule", "offboarding_rule", "Show how people are matched to subjects.")
verb(offboard, "rm-rule", "delete_offboarding_rule", "Match nobody who leaves to a subject by itself.")


@offboard.command
def start(
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


@offboard.command
def connections(offboarding_id: str, /, *, options: Options = DEFAULTS) -> None:
    """List the connections of a person who leaves, and what became of each."""
    with options.client() as client:
        show_rows(client.offboarding(offboarding_id).connections, _CONNECTIONS, options.output)


@offboard.command
def report(offboarding_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS) -> None:
    """Print the signed report of an offboarding that is done. `evergrant incident verify` checks it.

    Args:
        out: A new file for it.
    """
    with options.client() as client:
        content = client.incident_report(offboarding_id)
    if not isinstance(content, bytes):
        why = f"{content.ended} of {content.selected} connections have ended"
        raise BadRequest(f"It isn't done: {why}.", code="not_done", repair="Ask again later.")
    if out is None:
        sys.stdout.buffer.write(content)
        return
    with out.open("xb") as file:
        file.write(content)


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
