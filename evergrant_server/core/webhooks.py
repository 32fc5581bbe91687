"""Webhooks: subscriptions, and when a delivery is tried again. Pure.

Two waits, for two kinds of failure. A delivery that fails waits by itself (`RETRY_DELAYS`), so that
one event that a receiver can't process doesn't delay the others. An endpoint that fails is paused
as a whole (`endpoint_pause`), and then gets one delivery at a time until one succeeds.
"""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from pydantic import Field

from evergrant_server.core.events import EventType
from evergrant_server.core.ids import DeliveryId, EventId, TenantRow, WebhookId
from evergrant_server.core.lifecycle.schedule import jitter
from evergrant_server.core.secret import Secret

ANY_INTEGRATION: Literal["*"] = "*"
MASK = "***"  # in place of a URL's query, which may authenticate Evergrant
IDLE_TIMEOUT = timedelta(minutes=5)  # a workflow without deliveries ends after this
_QUIET = timedelta(days=2)  # longer than any wait between two tries of a delivery
LONGEST_HISTORY = 2000  # events after which a run continues as new


class DisabledBy(StrEnum):
    ADMIN = "admin"
    GONE = "gone"  # the endpoint answered 410
    FAILING = "failing"  # no delivery succeeded for as long as the setting allows


class Webhook(TenantRow):
    """An endpoint and its subscriptions. The signing secret, and the one before it, stay in the store.

    `failures` counts failed deliveries in a row at this endpoint, of any event; `paused_until` is when
    the next one is sent, one at a time until one succeeds.
    """

    id: WebhookId
    name: str
    url: str = Field(repr=False)  # its path may authenticate Evergrant; read from the store: `masked_url`
    events: tuple[EventType, ...]
    integration: str = ANY_INTEGRATION
    disabled_by: DisabledBy | None = None
    failures: int = 0
    failing_since: datetime | None = None
    paused_until: datetime | None = None
    previous_secret_until: datetime | None = None
    secret_changed_at: datetime
    created_at: datetime
    changed_at: datetime

    @property
    def disabled(self) -> bool:
        return self.disabled_by is not None

    def subscribes_to(self, type: EventType, integration: str) -> bool:
        covers = self.integration in (ANY_INTEGRATION, integration)
        return covers and type in self.events and not self.disabled

    def enabled(self) -> "Webhook":
        """The webhook enabled again, without failures and pause: waiting deliveries are tried at once."""
        return self.succeeded().__replace__(disabled_by=None)

    def paused(self, now: datetime) -> bool:
        """No delivery is sent meanwhile."""
        return self.paused_until is not None and now < self.paused_until

    def disabled_as_gone(self) -> "Webhook":
        return self.__replace__(disabled_by=DisabledBy.GONE)

    def succeeded(self) -> "Webhook":
        return self.__replace__(failures=0, failing_since=None, paused_until=None)

    def failed(self, now: datetime, retry_after: float | None, give_up_after: timedelta) -> "Webhook":
        """One more failure in a row; disabled when they have gone on for `give_up_after`.

        After days without a delivery the count starts again.
        """
        again = self.paused_until is not None and now - self.paused_until <= _QUIET
        failures = self.failures + 1 if again else 1
        since = (self.failing_since or now) if again else now
        return self.__replace__(
            failures=failures,
            failing_since=since,
            paused_until=now + endpoint_pause(failures, retry_after, jitter(self.id, failures)),
            disabled_by=DisabledBy.FAILING if now - since >= give_up_after else self.disabled_by,
        )


def masked_url(url: str) -> tuple[str, Secret | None]:
    """The URL as it is shown, with MASK for its query, and the query; None without one."""
    base, _, query = url.partition("?")
    return (f"{base}?{MASK}", Secret(query)) if query else (url, None)


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up; it can be replayed


class DeliveryProblem(StrEnum):
    """Why a delivery failed. The receiver's reply is not kept."""

    REFUSED = "refused"  # a status outside 2xx
    REDIRECTED = "redirected"  # a redirect is not followed: its target was never checked
    GONE = "gone"  # 410: the receiver wants no further events
    TIMED_OUT = "timed_out"
    UNREACHABLE = "unreachable"
    UNREADABLE = "unreadable"  # an endless reply, or one that isn't HTTP
    EGRESS_REFUSED = "egress_refused"  # the address is not one we connect to


def delivery_problem(status: int) -> DeliveryProblem | None:
    """What an answer's status means; None: delivered."""
    if 200 <= status < 300:
        return None
    if status == 410:
        return DeliveryProblem.GONE
    return DeliveryProblem.REDIRECTED if 300 <= status < 400 else DeliveryProblem.REFUSED


class Delivery(TenantRow):
    """One event on its way to one webhook. `tries` counts since it was last (re)played."""

    id: DeliveryId
    webhook_id: WebhookId
    event_id: EventId
    event_type: EventType
    status: DeliveryStatus = DeliveryStatus.PENDING
    by_hand: bool = False  # a ping or a replay: sent before the others, and during a pause
    attempts: int = 0
    tries: int = 0
    response_status: int | None = None
    problem: str | None = None  # a Problem
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None = None

    def delivered(self, status: int, at: datetime) -> "Delivery":
        return self._tried().__replace__(
            status=DeliveryStatus.DELIVERED, response_status=status, problem=None, next_at=None, ended_at=at
        )

    def failed(self, status: int | None, problem: str, at: datetime) -> "Delivery":
        """Not delivered by this try; given up after the last one."""
        wait = retry_delay(self.tries + 1, jitter(self.id, self.attempts + 1))
        return self._tried().__replace__(
            status=DeliveryStatus.PENDING if wait is not None else DeliveryStatus.FAILED,
            response_status=status,
            problem=problem,
            next_at=None if wait is None else at + wait,
            ended_at=None if wait is not None else at,
        )

    def replayed(self, at: datetime) -> "Delivery":
        return self.__replace__(
            status=DeliveryStatus.PENDING, by_hand=True, tries=0, next_at=at, ended_at=None
        )

    def _tried(self) -> "Delivery":
        return self.__replace__(attempts=self.attempts + 1, tries=self.tries + 1, by_hand=False)


# Before the second try, the third …: about three days in all.
_RETRY_SECONDS = (5, 60, 300, 1800, 7200, 21_600, 43_200, 86_400, 86_400)
RETRY_DELAYS = tuple(timedelta(seconds=seconds) for seconds in _RETRY_SECONDS)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=5), timedelta(hours=1)
_LONGEST_WAIT_ASKED = timedelta(days=1).total_seconds()


def retry_delay(tries: int, share: float) -> timedelta | None:
    """How long after the `tries`-th try of a delivery the next one is; None: it was the last."""
    return RETRY_DELAYS[tries - 1] * (0.8 + 0.4 * share) if tries <= len(RETRY_DELAYS) else None


def endpoint_pause(failures: int, retry_after: float | None, share: float) -> timedelta:
    """How long an endpoint is paused after so many failures in a row."""
    wait = min(_FIRST_PAUSE * 2 ** min(failures - 1, 20), _LONGEST_PAUSE) * (0.8 + 0.4 * share)
    if retry_after is not None:
        wait = max(wait, timedelta(seconds=min(retry_after, _LONGEST_WAIT_ASKED)))
    return wait
