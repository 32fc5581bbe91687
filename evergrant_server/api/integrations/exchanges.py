"""What the API says of an integration's newest exchange with its provider."""

from collections.abc import Mapping

from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.models import FailedExchangeView, IntegrationView
from evergrant_server.audit.exchanges import Exchange
from evergrant_server.core.errors import FAILURES


def with_exchange(view: IntegrationView, call: ApiCall, exchanges: Mapping[str, Exchange]) -> IntegrationView:
    """With the newest exchange, if it failed after the integration's last change, which may be the repair."""
    found = exchanges.get(view.name)
    if found is None or found.failure is None or found.at < view.changed_at:
        return view
    threshold = call.api.settings.circuit_threshold
    failed = FailedExchangeView(
        failure=found.failure,
        repairer=FAILURES[found.failure].repairer,
        at=found.at,
        connection_id=found.connection,
        unanswered=found.unanswered,
        circuit_open=0 < threshold <= found.unanswered,
    )
    return view.__replace__(failed_exchange=failed)
