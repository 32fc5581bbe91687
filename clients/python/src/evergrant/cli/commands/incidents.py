"""`evergrant incident`: a breach drill, or what follows a leak of keys; its report, and the check of one.

`evergrant offboard`: a person leaves: what is theirs is stopped at once, and revoked after a grace.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cyclopts import App

from evergrant.cli.arguments import argument_error, require_audit_extra
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import show_one, show_rows
from evergrant.cli.verbs import verb
from evergrant.errors import BadRequest

Kind = Literal["breach", "leak"]
_INCIDENTS = ("id", "kind", "integration", "app", "state", "paused", "ended", "selected", "reason")
_CONNECTIONS = ("connection_id", "integration", "step", "outcome", "state", "reconnected", "last_leased_at")
_INTEGRATIONS = ("integration", "provider", "connections", "revokes", "replaces", "secret")
_STEPS = ("by", "connections", "text", "command")
Attribute = Literal["user_name", "external_id", "email"]
_OFFBOARDINGS = ("id", "subject", "state", "ended", "selected", "held_until", "reason")
_PLANNED = ("connection_id", "integration", "subject", "label", "state", "matched_by", "fate", "to")
_OF_LEAVER = ("connection_id", "integration", "matched_by", "step", "outcome", "state", "last_leased_at")

incident = App(name="incident")

verb(incident, "ls list", "incidents", "List the incidents of the tenant.", _INCIDENTS)
verb(incident, "show get", "incident", "Show how far an incident is, and what a person has to do.")
verb(incident, "pause", "pause_incident", "Have an incident rest at the end of its page.")
verb(incident, "resume", "resume_incident", "Have a paused incident go on.")


@incident.command
def plan(
    kind: Kind,
    /,
    *,
    integration: str | None = None,
    app: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Show what an incident would be about, and what would follow. Changes nothing.

    Args:
        kind: `breach`: tokens may have leaked; `leak`: keys of Evergrant may have.
        integration: Only its connections.
        app: Of a breach: only what this app has leased.
        since: Of a breach: only what was leased since then, in UTC.
        until: Of a breach: only what was leased before then, in UTC.
    """
    with options.client() as client:
        planned = client.incident_plan(
            kind, integration=integration, app=app, since=_in_utc(since), until=_in_utc(until)
        )
    if options.output != "table":
        show_one(planned, options.output)
        return
    most = "" if planned.exact else "at most "
    print(f"{most}{planned.connections:,} connections; to confirm: --confirm {planned.confirm}")
    show_rows(planned.integrations, _INTEGRATIONS, options.output)
    show_rows(planned.steps, _STEPS, options.output)


@incident.command
def start(
    kind: Kind,
    /,
    *,
    reason: str,
    confirm: str,
    integration: str | None = None,
    app: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    wait: float | None = None,
    roots_replaced: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Stop, revoke and shred connections for good, or replace what leaked keys protect.

    Args:
        kind: `breach`: tokens may have leaked; `leak`: keys of Evergrant may have.
        reason: For the audit log and the report: name a ticket, and no person.
        confirm: The name of what it is about, as `evergrant incident plan` prints it.
        integration: Only its connections.
        app: Of a breach: only what this app has leased. The app is disabled.
        since: Of a breach: only what was leased since then, in UTC.
        until: Of a breach: only what was leased before then, in UTC.
        wait: Seconds after which it is reported how far the connections are.
        roots_replaced: After a leak: the roots are new, by `keys rotate` and `keys rewrap` on the host.
    """
    with options.client() as client:
        begun = client.open_incident(
            kind,
            confirm=confirm,
            reason=reason,
            integration=integration,
            app=app,
            since=_in_utc(since),
            until=_in_utc(until),
            wait=None if wait is None else timedelta(seconds=wait),
            roots_replaced=roots_replaced,
        )
    show_one(begun, options.output)


@incident.command
def connections(incident_id: str, /, *, outcome: str | None = None, options: Options = DEFAULTS) -> None:
    """List the connections of an incident.

    Args:
        outcome: Only these: confirmed, nothing_held, not_supported, unknown, renewed, reconnect, gone.
    """
    with options.client() as client:
        listed = client.incident_connections(incident_id, outcome=outcome)
        show_rows(listed, _CONNECTIONS, options.output)


@incident.command
def report(incident_id: str, /, *, out: Path | None = None, options: Options = DEFAULTS) -> None:
    """Print the signed report of an incident that is done, as JSON Lines.

    Args:
        out: A new file for it.
    """
    with options.client() as client:
        content = client.incident_report(incident_id)
    if not isinstance(content, bytes):
        why = f"{content.ended} of {content.selected} connections have ended"
        raise BadRequest(f"It isn't done: {why}.", code="not_done", repair="Ask again later.")
    if out is None:
        sys.stdout.buffer.write(content)
        return
    with out.open("xb") as file:
        file.write(content)
    print(f"evergrant: {out} has {content.count(bytes([10]))} lines", file=sys.stderr)


@incident.command
def verify(file: Path, /, *, key: str | None = None, options: Options = DEFAULTS) -> None:
    """Check a report without Evergrant: every line, and the signature. Ends with 1 for one that is changed.

    Args:
        file: As `evergrant incident report` has written it.
        key: The public key of the audit log that you have kept (`evergrant audit key`).
    """
    require_audit_extra()
    from evergrant.incident_report import ReportError, verify_report

    with file.open("rb") as lines:
        try:
            checked = verify_report(lines, key)
        except ReportError as error:
            raise BadRequest(f"{file}: {error}", code="report_refused", repair="Fetch it again.") from None
    if not checked.compared:
        hint = "it is as this key has signed it; give --key to compare it with the one that you have kept"
        print(f"evergrant: {hint}", file=sys.stderr)
    show_one(checked, options.output)


def _in_utc(at: datetime | None) -> datetime | None:
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


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
