"""Consents that wait for their app's confirmation: what isn't confirmed in time is undone. Pure.

`confirming` is no state of the connection: meanwhile an old grant is served as before.
"""

from datetime import datetime, timedelta

from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.command import Moment, Transition
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent, PendingConfirmation

_MOST = 50  # at a time; the link of a forgotten one is reopened by the connect page
_PAUSE = timedelta(seconds=1)


def on_consent_returned(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A browser came back: the confirmation is awaited until then."""
    if event.consent_id is None or event.until is None or event.consent_id in connection.recent_consents:
        return Transition(connection)
    return Transition(_with(connection, event.consent_id, event.until))


def on_consent_lapsed(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """Undone, or decided before; with `until`, the store says that its time isn't over yet."""
    if event.consent_id is None:
        return Transition(connection)
    until = None if event.until is None else max(event.until, at.now + _PAUSE)
    return Transition(_with(connection, event.consent_id, until))


def without_confirmation(connection: ConnectionState, consent: ConsentId) -> ConnectionState:
    return _with(connection, consent, None)


def next_to_lapse(connection: ConnectionState) -> PendingConfirmation | None:
    """The one whose time is over first."""
    return min(connection.confirming, key=lambda confirmation: confirmation.until, default=None)


def _with(connection: ConnectionState, consent: ConsentId, until: datetime | None) -> ConnectionState:
    others = [confirmation for confirmation in connection.confirming if confirmation.consent_id != consent]
    new = [] if until is None else [PendingConfirmation(consent_id=consent, until=until)]
    return connection.__replace__(confirming=tuple([*others, *new][-_MOST:]))
