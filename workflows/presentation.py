"""How a connection reads in the Temporal UI: search attributes and current details."""

from temporalio.common import SearchAttributeKey

from evergrant_server.core.errors import FAILURES
from evergrant_server.core.lifecycle.transition import Timer
from evergrant_server.core.messages.connection import ConnectionStart, ConnectionState
from evergrant_server.core.messages.search_attributes import STATE

STATE_ATTRIBUTE = SearchAttributeKey.for_keyword(STATE)


def details(start: ConnectionStart, life: ConnectionState, due: Timer | None) -> str:
    """Markdown for the UI's current details: what is, what comes next, who has to act."""
    lines = [
        f"**{life.state}** at `{start.integration}` ({start.provider}), generation {life.generation}",
        "",
        f"- access token expires: {life.expires_at.isoformat() if life.expires_at else 'no expiry'}"
        if life.generation
        else "- no grant yet",
        f"- next: {due.summary} at {due.at.isoformat()}" if due else "- next: nothing, until somebody asks",
    ]
    if life.reason is not None:
        rule = FAILURES[life.reason]
        lines.append(f"- `{life.reason}`: {rule.meaning} To repair ({rule.repairer}): {rule.repair}")
    if life.failures:
        lines.append(f"- failures in a row: {life.failures}")
    if life.failed is not None and life.failing_since is not None:
        lines.append(f"- revoking fails since {life.failing_since.isoformat()}, last with `{life.failed}`")
    if life.revocation is not None:
        lines.append(f"- revocation: {life.revocation}")
    return "\n".join(lines)
