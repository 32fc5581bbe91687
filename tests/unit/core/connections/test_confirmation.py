"""How long an app may take to confirm: less than the code lives, and not long after the consent's own end."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connections.confirmation import await_confirm
from evergrant_server.core.ids import Tenant
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from tests.fakes.rows import a_connection, a_consent, an_integration

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code_lives_s", "consent_left_s", "waits_s"),
    [
        (None, 3600, 120),
        (600, 3600, 120),
        (60, 3600, 50),
        (12, 3600, 6),
        (None, 10, 40),
        (None, 0, 30),
    ],
)
def test_the_time_for_a_confirmation(code_lives_s: float | None, consent_left_s: float, waits_s: float):
    connection = a_connection(an_integration(Tenant("acme"), NOW), NOW)
    consent = a_consent(connection, NOW, expires_at=NOW + timedelta(seconds=consent_left_s))
    lifetime = None if code_lives_s is None else timedelta(seconds=code_lives_s)
    waiting, code = await_confirm(consent, NOW, lifetime)
    assert waiting.confirm_by == NOW + timedelta(seconds=waits_s)
    assert waiting.confirm_by < consent.expires_at + RULES[NEWEST_RULES].consent_grace
    assert code.reveal() not in waiting.model_dump_json()
