"""`GET /v1/connections/{id}`: a connection, its next action, and its workflow's description on request."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Query

from evergrant_server.api.connections.models import ConnectionView, LiveView
from evergrant_server.api.connections.view import connection_view, device_view
from evergrant_server.api.http.call import Call
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.integrations.definitions import integration_spec
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import Failure
from evergrant_server.store import Transaction
from providers.definition.templates import api_base_url_of

_DESCRIBE_TIMEOUT_S = 1.0  # how long a read waits for the workflow's description
_LIVE_TIMEOUT_S = 2.0  # the same with `live=true`

router = APIRouter(tags=["connections"])


@router.get("/v1/connections/{connection_id}")
async def get_connection(
    connection_id: str,
    call: Call,
    live: Annotated[bool, Query(description="Also query the workflow, for at most two seconds")] = False,
) -> ConnectionView:
    """State, generation, expiry and next action. Never a secret.

    With `live=true` also the workflow's own description, and the members that differ from the store.
    """
    api = call.api
    async with api.store.read() as tx:
        connection = await call.visible_connection(tx, connection_id)
        view = await connection_view(tx, connection)
        view = view.model_copy(update={"api_base_url": await _api_base_url(tx, api, connection, view)})
        # a reader of the code could have another account approve it
        if call.allows(Action.CONNECT, connection.integration, connection.subject):
            view = view.model_copy(update={"device": await device_view(tx, connection)})
    action = _awaited_action(connection)
    described = None
    if live or action is None:
        timeout = _LIVE_TIMEOUT_S if live else _DESCRIBE_TIMEOUT_S
        with suppress(Failure):  # then the view has what the store knows
            described = await api.link.describe(connection.tenant, connection.id, timeout=timeout)
    if described is not None:
        action = action or {"next_action": described.next_step, "next_at": described.next_at}
        if live:
            shown = LiveView.of_workflow(described)
            action |= {"live": shown, "differs": shown.differences_from(view)}
    return view.model_copy(update=action or {})


async def _api_base_url(
    tx: Transaction, api: ApiContext, connection: Connection, view: ConnectionView
) -> str | None:
    """The base URL of the provider's API, if the definition has one."""
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    if integration is None:
        return None
    try:
        spec = await integration_spec(tx, api.registry, integration)
    except Failure:  # its definition was deleted
        return None
    return api_base_url_of(spec, integration.params, view.metadata)


def _awaited_action(connection: Connection) -> dict[str, object] | None:
    """The action of the subject or app that the workflow waits for; None when it waits for neither."""
    match connection.state:
        case LifecycleState.PENDING_CONSENT:
            if connection.flow.is_client_grant:
                return None
            return {"next_action": "consent", "next_at": connection.consent_deadline}
        case LifecycleState.NEEDS_REAUTH:
            return {"next_action": "reauthorize"}
        case LifecycleState.ACTIVE if connection.follow_up is FollowUp.CHOOSING:
            return {"next_action": "choose"}
        case LifecycleState.ACTIVE | LifecycleState.REVOKING:
            return None
        case _:
            return {}
