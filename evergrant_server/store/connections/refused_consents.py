"""By what the newest consent of a connection has failed, where an admin has to act before a subject can.

A row's reason doesn't say it: a connection that waits for a consent goes on waiting, and gives out its link.
"""

from sqlalchemy import ScalarSelect, and_, case, exists, null, select

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import FAILURES
from evergrant_server.core.errors.kinds import Repairer
from evergrant_server.store.connections.tables import ConnectionRow, ConsentRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.integrations.tables import IntegrationRow

AWAITING_CONSENT = (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)

_ROW = table_of(ConnectionRow).c
_CONSENT = table_of(ConsentRow).c
_INTEGRATION = table_of(IntegrationRow).c
_ADMINS = (Repairer.INTEGRATION_ADMIN, Repairer.PERMIT_ADMIN)
_CODES = tuple(code.value for code, rule in FAILURES.items() if rule.repairer in _ADMINS)


def refused_by() -> ScalarSelect[str | None]:
    """The code, beside a row of a connection; NULL where the newest consent is open or was granted, where its
    subject repairs it, and once its integration has been changed since it was requested."""
    changed = exists().where(
        _INTEGRATION.tenant == _CONSENT.tenant,
        _INTEGRATION.id == _CONSENT.integration_id,
        _INTEGRATION.changed_at > _CONSENT.created_at,
    )
    refused = and_(_CONSENT.status == ConsentStatus.FAILED.value, _CONSENT.failure.in_(_CODES), ~changed)
    newest = select(case((refused, _CONSENT.failure), else_=null())).where(
        _CONSENT.tenant == _ROW.tenant, _CONSENT.connection_id == _ROW.id
    )
    ordered = newest.order_by(_CONSENT.created_at.desc(), _CONSENT.id.desc()).limit(1)
    return ordered.correlate(table_of(ConnectionRow)).scalar_subquery()
