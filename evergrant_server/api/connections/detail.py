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
from evergrant_server.core.messages.connection import ConnectionDescription
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
    if live:
        return await _with_live_state(api, connection, view)
    return view.model_copy(update=await _next_action(api, connection))


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


async def _with_live_state(api: ApiContext, connection: Connection, view: ConnectionView) -> ConnectionView:
    """`live` stays null when Temporal or its workers don't answer, or no run of the workflow is open."""
    description = await _describe(api, connection, _LIVE_TIMEOUT_S)
    if description is None:
        return view.model_copy(update=_awaited_action(connection) or {})
    live = LiveView.of_workflow(description)
    action = _awaited_action(connection) or _workflow_action(description)
    return view.model_copy(update={**action, "live": live, "differs": live.differences_from(view)})


async def _next_action(api: ApiContext, connection: Connection) -> dict[str, object]:
    """The next action: of subject or app by the state, else of the workflow by query."""
    awaited = _awaited_action(connection)
    if awaited is not None:
        return awaited
    description = await _describe(api, connection, _DESCRIBE_TIMEOUT_S)
    return {} if description is None else _workflow_action(description)


async def _describe(api: ApiContext, connection: Connection, timeout: float) -> ConnectionDescription | None:
    with suppress(Failure):
        return await api.link.describe(connection.tenant, connection.id, timeout=timeout)
    return None


def _workflow_action(description: ConnectionDescription) -> dict[str, object]:
    return {"next_action": description.next_step, "next_at": description.next_at}


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
