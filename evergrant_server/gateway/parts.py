"""The parts that the gateway's routes share, and what is noted of a request that failed."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from evergrant_server.access.context import ApiContext
from evergrant_server.access.decision import LeaseIssuer
from evergrant_server.access.limits import OPEN_REQUESTS, RateLimited
from evergrant_server.access.recording import RefusalLog
from evergrant_server.access.refreshes import RefreshWaiter
from evergrant_server.core.access import App
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId
from evergrant_server.egress import StreamingTransport
from evergrant_server.gateway.proxy.outcomes import OutcomeLog
from evergrant_server.gateway.proxy.provider_api import ProviderApis
from evergrant_server.gateway.quota_queue import CallLimits
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import set_problem_code

log = logging.getLogger("evergrant.gateway")
_MOST_REFUSED = 10_000
ERROR_HEADER = "Evergrant-Error"  # a provider's answers have none


@dataclass
class GatewayParts:
    """The lease decision as the API makes it, and the way out. `stop` ends what runs."""

    api: ApiContext
    transport: StreamingTransport
    outcomes: OutcomeLog
    refresher: RefreshWaiter = field(init=False)
    refusals: RefusalLog = field(init=False)
    issuer: LeaseIssuer = field(init=False)
    apis: ProviderApis = field(init=False)
    limits: CallLimits = field(init=False)
    # the generation of a dead grant whose token the connection's API has refused
    _refused: Bounded[ConnectionId, int] = field(init=False, default_factory=lambda: Bounded(_MOST_REFUSED))
    _open: Counter[AppId] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        api = self.api
        self.apis = ProviderApis(api)
        self.limits = CallLimits(api.settings)
        self.refresher = RefreshWaiter(api.lease_rows, api.link, api.settings.lease_wait)
        self.refusals = RefusalLog(api.store)
        self.issuer = LeaseIssuer(api, self.refresher, self.refusals)

    @contextmanager
    def open_call(self, app: App) -> Iterator[None]:
        """Count a call as open until the block ends. Raises RateLimited."""
        most = self.api.settings.gateway_calls_per_app
        if self._open[app.id] >= most:
            raise RateLimited(OPEN_REQUESTS, f"The app has {most} calls open already.", 1.0)
        self._open[app.id] += 1
        try:
            yield
        finally:
            self._open[app.id] -= 1
            if not self._open[app.id]:
                del self._open[app.id]

    def note_refused(self, row: LeaseRow) -> Failure:
        """The failure of calls with the token of this dead grant, which its API refuses: remembered, since no
        gateway can write it down."""
        self._refused[row.connection_id] = row.generation
        return Failure(ErrorCode.CONSENT_REQUIRED, connection_id=row.connection_id)

    def require_accepted(self, row: LeaseRow) -> None:
        """Raise Failure CONSENT_REQUIRED for a token that its API has refused, and no refresh replaces."""
        if row.grant_over and self._refused.get(row.connection_id) == row.generation:
            raise self.note_refused(row)

    async def stop(self) -> None:
        await self.refresher.stop()
        await self.refusals.stop()
        await self.outcomes.stop()
        await self.transport.aclose()


def note_refusal(failure: Failure) -> None:
    """Put it into the span and, where an operator has to act, into the log."""
    set_problem_code(failure.code)
    report_broken_authority(failure)
    if failure.rule.status >= 500:
        log_event(log, logging.WARNING, LogEvent.REQUEST_FAILED, failure.detail, code=failure.code)


def unexpected(request_id: str) -> Failure:
    """For an exception that is no Failure, while it is handled: it goes to the log."""
    log.exception("%s: request %s", LogEvent.UNEXPECTED.value, request_id)
    return Failure(ErrorCode.INTERNAL, request_id=request_id)
