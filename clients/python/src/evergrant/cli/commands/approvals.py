"""`evergrant approvals`: commands that a second admin must approve, and agents' calls."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from evergrant.api.models import CallApproval
from evergrant.cli.arguments import header_of
from evergrant.cli.options import DEFAULTS, Options
from evergrant.cli.tables import Row, row_of, show_one, show_rows
from evergrant.cli.verbs import verb

approvals = App(name="approvals")


_APPROVALS = ("id", "by", "command", "body", "resolves_to", "expires_at", "approved_by")


_CALLS = ("id", "state", "agent", "name", "integration", "subject", "reason", "decide_by")
_Header = Annotated[tuple[str, ...], Parameter(name=["--header", "-H"])]

verb(
    approvals,
    "ls list",
    "approvals",
    "List the commands that wait for an approval: their requests, and what the names in them resolve to.",
    _APPROVALS,
)
verb(
    approvals,
    "give",
    "approve",
    "Approve another app's or person's command, for what it resolves to. They may send it again, once.",
)


@approvals.command
def ask(
    connection_id: str,
    method: str,
    url: str,
    /,
    *,
    reason: str,
    header: _Header = (),
    body_file: Path | None = None,
    hours: float | None = None,
    wait: bool = False,
    options: Options = DEFAULTS,
) -> None:
    """Ask a person to approve one call to a provider's API.

    Args:
        method: Such as POST.
        reason: Why; the person who decides reads it.
        header: NAME: VALUE, once for each header of the request, such as Content-Type.
        body_file: The request's body, as text.
        hours: Hours until the request ends undecided; by default 72.
        wait: Return once it is decided, or has ended.
    """
    within = None if hours is None else timedelta(hours=hours)
    with options.client() as client:
        asked = client.ask_for_call(
            connection_id,
            reason=reason,
            method=method,
            url=url,
            headers=[header_of(line) for line in header],
            body=_text(body_file),
            decide_within=within,
        )
        if wait and asked.is_waiting:
            asked = client.wait_for_approval(asked.id, within or timedelta(hours=72))
    show_one(_row(asked), options.output)


@approvals.command
def use(
    connection_id: str,
    method: str,
    url: str,
    /,
    *,
    header: _Header = (),
    body_file: Path | None = None,
    options: Options = DEFAULTS,
) -> None:
    """Use up the approval of exactly this call, right before making it.

    Args:
        method: As it was asked for.
        header: NAME: VALUE, once for each header, as it was asked for.
        body_file: The request's body, as it was asked for.
    """
    with options.client() as client:
        headers, body = [header_of(line) for line in header], _text(body_file)
        used = client.use_call_approval(connection_id, method=method, url=url, headers=headers, body=body)
    show_one(_row(used), options.output)


@approvals.command
def calls(*, state: str | None = None, options: Options = DEFAULTS) -> None:
    """List the calls that agents have asked for: all of them for an admin, else this app's own.

    Args:
        state: waiting, approved, denied, expired, used or stopped.
    """
    with options.client() as client:
        show_rows((_row(approval) for approval in client.call_approvals(state=state)), _CALLS, options.output)


@approvals.command
def show(approval_id: str, /, *, options: Options = DEFAULTS) -> None:
    """Show one call of an agent: exactly what it asks for."""
    with options.client() as client:
        show_one(_row(client.call_approval(approval_id)), options.output)


@approvals.command
def approve(approval_id: str, /, *, note: str | None = None, options: Options = DEFAULTS) -> None:
    """Approve an agent's call: it may be made once, within a day.

    Args:
        note: A word for the agent.
    """
    with options.client() as client:
        show_one(_row(client.approve_call(approval_id, note=note)), options.output)


@approvals.command
def deny(approval_id: str, /, *, note: str | None = None, options: Options = DEFAULTS) -> None:
    """Deny an agent's call. It can't ask for the same call again before the deadline.

    Args:
        note: A word for the agent.
    """
    with options.client() as client:
        show_one(_row(client.deny_call(approval_id, note=note)), options.output)


def _text(file: Path | None) -> str | None:
    return None if file is None else file.read_text(encoding="utf-8")


def _row(approval: CallApproval) -> Row:
    """Its members, those of the call beside them."""
    row = {name: value for name, value in row_of(approval).items() if value is not None and name != "call"}
    for name, value in (row_of(approval.call) if approval.call else {}).items():
        if value is not None:
            row[f"call.{name}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return row
