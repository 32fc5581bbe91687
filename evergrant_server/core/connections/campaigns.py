"""A campaign: an integration has another OAuth client, and subjects consent to it, wave by wave. Pure.

It is carried out as an incident is (`core.connections.incidents`); what it adds is here: its waves,
reminders, and what becomes of the connections whose subjects haven't consented at its end.
"""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.ids import IncidentId, IntegrationId, TenantRow

MONTH = timedelta(days=30)  # whose leases say how much a connection is used
MOST_REMINDERS = 5


class CampaignEnd(StrEnum):
    """What becomes of a connection whose subject hasn't consented to the new client at the end."""

    KEEP = "keep"  # it goes on with the client of before
    STOP = "stop"  # it needs its subject's consent from then on


class Campaign(TenantRow):
    """What a campaign does, and how far its waves are; `id` is the one of its incident.

    `newer` is the integration whose client subjects consent to: it has the name of `older` from the
    beginning, and was `newer_name` before. `wave` waves have begun; of the last one `to_ask` connections are
    left, and the next one begins at `wave_at`. `asked` and `reminded` count connections and reminders.
    """

    id: IncidentId
    older: IntegrationId
    newer: IntegrationId
    newer_name: str
    wave_size: int
    every_s: float
    remind_s: tuple[float, ...] = ()
    end: CampaignEnd = CampaignEnd.KEEP
    wave: int = 0
    to_ask: int = 0
    wave_at: datetime
    asked: int = 0
    reminded: int = 0

    def at(self, now: datetime) -> "Campaign":
        """With the next wave, if its time has come and all of the one before were asked."""
        if self.to_ask or now < self.wave_at:
            return self
        following = now + timedelta(seconds=self.every_s)
        return self.__replace__(wave=self.wave + 1, to_ask=self.wave_size, wave_at=following)

    def reminders_due(self, asked_at: datetime, now: datetime) -> int:
        """How many reminders are due by now to who was asked then."""
        return sum(asked_at + timedelta(seconds=seconds) <= now for seconds in self.remind_s)
