"""Which app made a connection: it alone, or an admin, has its account chosen or its subject consent again.

Apps with `connect` share a connection: each of them may lease it, and revoke it. Whose account it is stays
with the app whose consent brought the first grant (ADR 0072).
"""

from collections.abc import Iterable

from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.policy import Target
from evergrant_server.store import Transaction


async def require_maker(tx: Transaction, call: ApiCall, connection: Connection) -> bool:
    """Check that the caller made the connection or is its admin; returns whether it is an admin.

    Raises Failure MADE_BY_ANOTHER_APP, which says whose turn it is.
    """
    if call.allows(Action.ADMIN, Target.of(connection)):
        return True
    maker = await tx.consents.maker_of(connection)
    if maker is not None and maker == call.caller.app.id:
        return False
    app = None if maker is None else await tx.access.app(connection.tenant, maker)
    about = {"connection_id": connection.id, "state": connection.state.value}
    if app is None or app.disabled:
        why = "An admin, or an app that is gone, made this connection."
        repair = "Have an admin reauthorize the connection, or use another label."
        raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, why, repair=repair, **about)
    why = f"The app {app.name} made this connection, and an app has only its own authorized again."
    repair = (
        f"Connect the subject in {app.name}, have an admin reauthorize the connection, or use another label."
    )
    raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, why, repair=repair, **about)


async def require_consent_allowed(
    tx: Transaction, call: ApiCall, connection: Connection, slots: Iterable[str] = ()
) -> bool:
    """Check that a consent that the caller requests replaces no grant of another app's; returns whether the
    caller is an admin. Raises Failure MADE_BY_ANOTHER_APP.

    A connection without a grant has no account yet: each app that may connect it has a link of its own, and
    the first that is finished counts. `slots` are further token slots, whose connections the consent fills.
    """
    for slot in slots:
        label = connection.label_of_slot(slot)
        names = connection.tenant, connection.integration, connection.subject, label
        filled = await tx.connections.by_names(*names)
        if filled is None or filled.state.is_final or not filled.generation:
            continue
        if filled.consented_with != connection.id:
            await require_maker(tx, call, filled)
    if connection.generation:
        return await require_maker(tx, call, connection)
    return call.allows(Action.ADMIN, Target.of(connection))
