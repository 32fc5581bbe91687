"""Waves and reminders of a campaign, by the clock."""

from datetime import UTC, datetime, timedelta

from evergrant_server.core.connections.campaigns import Campaign
from evergrant_server.core.ids import IncidentId, IntegrationId, Tenant

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
CAMPAIGN = Campaign(
    tenant=Tenant("acme"),
    id=IncidentId("inc_1"),
    older=IntegrationId("int_1"),
    newer=IntegrationId("int_2"),
    newer_name="crm-2026",
    wave_size=100,
    every_s=60.0,
    remind_s=(120.0, 300.0),
    wave_at=NOON,
)


def test_a_wave_begins_at_its_time_and_the_next_one_a_while_later():
    assert CAMPAIGN.at(NOON - MINUTE) == CAMPAIGN
    first = CAMPAIGN.at(NOON)
    assert (first.wave, first.to_ask, first.wave_at) == (1, 100, NOON + MINUTE)


def test_no_wave_begins_before_all_of_the_one_before_were_asked():
    late = NOON + timedelta(hours=1)
    under_way = CAMPAIGN.at(NOON).__replace__(to_ask=3)
    assert under_way.at(late) == under_way
    second = under_way.__replace__(to_ask=0).at(late)
    assert (second.wave, second.wave_at) == (2, late + MINUTE), "a pause makes no crowd"


def test_reminders_that_were_missed_are_one():
    dues = [CAMPAIGN.reminders_due(NOON, NOON + minutes * MINUTE) for minutes in (1, 2, 4, 5, 60)]
    assert dues == [0, 1, 1, 2, 2]
