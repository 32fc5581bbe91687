"""How a connection reads in the Temporal UI: search attributes and current details."""

from temporalio.common import SearchAttributeKey

from evergrant_server.core.errors import FAILURES
from evergrant_server.core.lifecycle.timers import Timer
from evergrant_server.core.messages.connection import ConnectionStart, ConnectionState
from evergrant_server.core.messages.names import SearchAttribute

STATE_ATTRIBUTE = SearchAttributeKey.for_keyword(SearchAttribute.STATE)


def connection_details(start: ConnectionStart, connection: ConnectionState, timer: Timer | None) -> str:
    """Markdown: the state, what comes next, and who has to act."""
    expires_at = connection.expires_at.isoformat() if connection.expires_at else "no expiry"
    lines = [
        f"**{connection.state}** at `{start.integration}` ({start.provider}), "
        f"generation {connection.generation}",
        "",
        f"- access token expires: {expires_at}" if connection.generation else "- no grant yet",
        f"- next: {timer.summary} at {timer.at.isoformat()}"
        if timer
        else "- next: nothing, until a caller asks",
    ]
    if connection.reason is not None:
        rule = FAILURES[connection.reason]
        lines.append(f"- `{connection.reason}`: {rule.meaning} To repair ({rule.repairer}): {rule.repair}")
    if connection.failures:
        lines.append(f"- failures in a row: {connection.failures}")
    if connection.revocation_failure is not None and connection.revocation_failing_since is not None:
        since = connection.revocation_failing_since.isoformat()
        lines.append(f"- revocation fails since {since}, last with `{connection.revocation_failure}`")
    if connection.revocation is not None:
        lines.append(f"- revocation: {connection.revocation}")
    return "\n".join(lines)
