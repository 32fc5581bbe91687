"""What a connection needs next and who acts, in words, from its state and the failure table."""

from datetime import datetime
from typing import NamedTuple, Protocol

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer

_TONES = {
    LifecycleState.PENDING_CONSENT: "wait",
    LifecycleState.ACTIVE: "good",
    LifecycleState.NEEDS_REAUTH: "bad",
    LifecycleState.REVOKING: "wait",
    LifecycleState.REVOKED: "ended",
    LifecycleState.CONSENT_EXPIRED: "ended",
    LifecycleState.DENIED: "ended",
}
_STATES = {
    LifecycleState.PENDING_CONSENT: "waits for consent",
    LifecycleState.ACTIVE: "active",
    LifecycleState.NEEDS_REAUTH: "needs a new consent",
    LifecycleState.REVOKING: "is being revoked",
    LifecycleState.REVOKED: "revoked",
    LifecycleState.CONSENT_EXPIRED: "consent expired",
    LifecycleState.DENIED: "denied",
}
WHO = {
    Repairer.SUBJECT: "the subject",
    Repairer.INTEGRATION_ADMIN: "the integration's admin",
    Repairer.TIME: "a worker",
    Repairer.PERMIT_ADMIN: "the permits' admin",
    Repairer.OPERATOR: "the operator",
    Repairer.CALLER: "the app",
}
_REPAIRS = {  # where the table's words are for a program
    ErrorCode.CHOICE_REQUIRED: "Choose one of the accounts: on the connect page, or here.",
}


class Shown(Protocol):
    """What the words depend on: members of the API's view of a connection."""

    state: LifecycleState
    flow: Flow
    reason: ErrorCode | None
    repairer: Repairer | None
    last_failure: ErrorCode | None
    expires_at: datetime | None


class NextStep(NamedTuple):
    """`tone` is that of the mark beside the state."""

    text: str
    who: str
    tone: str


def state_words(state: LifecycleState) -> str:
    return _STATES[state]


def step_of(shown: Shown) -> NextStep:
    """What has to happen, and who does it."""
    tone = _TONES[shown.state]
    if shown.state.is_final:
        return NextStep("None: it has ended.", "", tone)
    failure = shown.reason or shown.last_failure
    if failure is not None and shown.state is not LifecycleState.REVOKING:
        repairer = shown.repairer or FAILURES[failure].repairer
        text = _REPAIRS.get(failure, FAILURES[failure].repair)
        if repairer is Repairer.TIME:
            text = "None: a worker tries again by itself."
        elif repairer is Repairer.SUBJECT and shown.state is LifecycleState.NEEDS_REAUTH:
            text = "Consent again, by a new connect link."
        return NextStep(text, WHO[repairer], "bad" if tone == "bad" else "wait")
    match shown.state:
        case LifecycleState.PENDING_CONSENT if shown.flow.is_client_grant or shown.flow.is_static:
            return NextStep("A worker gets the first token.", "a worker", tone)
        case LifecycleState.PENDING_CONSENT:
            return NextStep("Open the connect link and consent.", "the subject", tone)
        case LifecycleState.REVOKING:
            return NextStep("The provider confirms the revocation.", "a worker", tone)
        case LifecycleState.NEEDS_REAUTH:
            return NextStep("Consent again.", "the subject", tone)
        case _:
            return NextStep("None: it is refreshed when it is due.", "", tone)
