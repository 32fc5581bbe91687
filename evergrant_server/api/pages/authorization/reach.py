"""What a client may reach once its person agrees, in plain words for the page."""

from evergrant_server.access.context import integration_spec
from evergrant_server.api.pages.authorization.asked import Asked
from evergrant_server.api.pages.names import provider_display_name
from evergrant_server.api.pages.session import SubjectPages
from evergrant_server.policy import WILDCARD
from evergrant_server.store import Transaction

_MOST_NAMED = 8


async def describe_reach(
    tx: Transaction, pages: SubjectPages, asked: Asked, subject: str
) -> tuple[str, list[str], str | None]:
    """What it is about, what the client may do with it, and the provider's name if there is one."""
    connection = asked.connection
    if connection is None:
        return "your connections", _own_server(asked, subject), None
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    name = connection.provider
    if integration is not None:
        spec = await integration_spec(tx, pages.api.registry, integration)
        name = provider_display_name(spec, integration)
    may = [
        f"Use {name} as {connection.subject}: each tool and request that the app {asked.app.name} may use",
        "Go on doing so while you are away, until you or an admin ends it",
    ]
    return f"{connection.integration} at {name}", may, name


def _own_server(asked: Asked, subject: str) -> list[str]:
    names = asked.integrations_for(subject)
    if WILDCARD in names:
        what = "everything that you have connected"
    elif not names:
        what = "nothing yet: an admin has to give the app a permit"
    else:
        more = len(names) - _MOST_NAMED
        what = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [
        "See which of your accounts are connected",
        f"Call their APIs as you: {what}",
        "Ask you to connect others, and for your approval of single calls",
        "Go on doing so while you are away, until you or an admin ends it",
    ]
