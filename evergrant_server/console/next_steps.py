"""What a connection or an integration needs next and who acts, in words, from what the API shows of it."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.token_state import TokenState
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.errors.kinds import Repairer
from evergrant_server.core.integrations import IntegrationState
from evergrant_server.core.provider_words import repair_after

_STATES = {  # in words, and the tone of its mark
    LifecycleState.PENDING_CONSENT: ("waits for consent", "wait"),
    LifecycleState.ACTIVE: ("active", "good"),
    LifecycleState.NEEDS_REAUTH: ("needs a new consent", "bad"),
    LifecycleState.REVOKING: ("is being revoked", "wait"),
    LifecycleState.REVOKED: ("revoked", "ended"),
    LifecycleState.CONSENT_EXPIRED: ("consent expired", "ended"),
    LifecycleState.DENIED: ("denied", "ended"),
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
    ErrorCode.CONNECTION_HELD: "Was it a mistake: under Leavers it is put back, before the grace is over.",
}


_APPROVED = "Once another admin has approved it there, open the form again and send it."
_HERE = {  # a repair in the console, where the table names commands
    ErrorCode.STEP_UP_REQUIRED: "Log in again: it leads back to the form. Send it within five minutes.",
    ErrorCode.APPROVAL_REQUIRED: f"It stands under Approvals, with what it resolves to. {_APPROVED}",
    ErrorCode.APPROVAL_OUTDATED: f"It stands under Approvals anew, with what it resolves to now. {_APPROVED}",
}


def repair_of(failure: Failure) -> str:
    """What a visitor of the console does after a failure."""
    return _HERE.get(failure.code, failure.repair)


class _FailedConsent(Protocol):
    code: ErrorCode
    repairer: Repairer


class _ProviderSaid(Protocol):
    error: str | None


class Shown(Protocol):
    """What the words depend on: members of the API's view of a connection."""

    state: LifecycleState
    flow: Flow
    reason: ErrorCode | None
    repairer: Repairer | None
    last_failure: ErrorCode | None
    expires_at: datetime | None
    token_state: TokenState

    @property
    def failed_consent(self) -> _FailedConsent | None: ...
    @property
    def provider_said(self) -> _ProviderSaid | None: ...


class NextStep(NamedTuple):
    """What a connection needs next. `tone` is that of the mark beside its state."""

    text: str
    actor: str
    tone: str


def state_words(state: LifecycleState) -> str:
    return _STATES[state][0]


def cause_of(shown: Shown) -> ErrorCode | None:
    """Why somebody has to act: for an admin's repair it may be how the newest consent has failed."""
    failed = shown.failed_consent
    if failed is not None and failed.repairer is not Repairer.SUBJECT and failed.repairer is shown.repairer:
        return failed.code
    return shown.reason or shown.last_failure


def step_of(shown: Shown) -> NextStep:
    """What has to happen, and who does it."""
    _, tone = _STATES[shown.state]
    if shown.state.is_final:
        return NextStep("None: it has ended.", "", tone)
    failure = cause_of(shown)
    if failure is not None and shown.state is not LifecycleState.REVOKING:
        error = None if shown.provider_said is None else shown.provider_said.error
        return step_after(failure, shown.repairer or FAILURES[failure].repairer, shown.state, error)
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
            return _step_of_active(shown.token_state, tone)


# of an active connection whose access token has expired: what follows when, beside its state
TOKEN_NOTES = {
    TokenState.IDLE: "not asked for since",
    TokenState.DUE: "a refresh is under way",
    TokenState.LATE: "a refresh is overdue",
    TokenState.FAILING: "refreshes fail",
    TokenState.OVER: "nothing refreshes it",
}
_DOCTOR = "If it stays so, doctor on the host says why: python -m evergrant_server doctor"


def _step_of_active(token: TokenState, tone: str) -> NextStep:
    """Of a connection that is active, and whose refreshes don't fail."""
    match token:
        case TokenState.IDLE:
            text = "None: no app has asked for a token since it expired. The next that asks gets a new one."
            return NextStep(text, "", tone)
        case TokenState.DUE:
            return NextStep("A worker refreshes its token, which has just expired.", "a worker", tone)
        case TokenState.LATE:
            return NextStep(f"A worker should have refreshed its token. {_DOCTOR}.", "the operator", "wait")
        case TokenState.OVER:
            text = "Consent again: its token has expired, and nothing refreshes it."
            return NextStep(text, "the subject", "bad")
        case _:
            return NextStep("None: it is refreshed when it is due.", "", tone)


class ShownCause(Protocol):
    """What the words of a cause depend on: members of the API's view of an integration's health."""

    state: LifecycleState
    code: ErrorCode
    repairer: Repairer
    is_sole: bool

    @property
    def provider_said(self) -> Sequence[_ProviderSaid]: ...


def turn_of(cause: ShownCause) -> NextStep:
    """What has to happen for the connections that fail for one cause, and who does it."""
    error = cause.provider_said[0].error if cause.provider_said else None  # the most frequent
    step = step_after(cause.code, cause.repairer, cause.state, error)
    if not cause.is_sole:
        return step
    alone = "It can't be decided yet whose fault this is: it is the only connection here. "
    text = f"{alone}If the account was disconnected at the provider, consent again."
    return step._replace(text=text, actor="not known yet")


def step_after(
    failure: ErrorCode, repairer: Repairer, state: LifecycleState, error: str | None = None
) -> NextStep:
    """What repairs a failure that the provider called `error`."""
    _, tone = _STATES[state]
    text = _REPAIRS.get(failure) or repair_after(failure, error)
    if repairer is Repairer.TIME:
        text = "None: a worker tries again by itself."
    elif repairer is Repairer.SUBJECT and state is LifecycleState.NEEDS_REAUTH:
        text = "Consent again, by a new connect link."
    return NextStep(text, WHO[repairer], "bad" if tone == "bad" else "wait")


_SOON = timedelta(days=30)


class _FailedExchange(Protocol):
    failure: ErrorCode
    repairer: Repairer
    at: datetime
    unanswered: int
    circuit_open: bool


class _Integration(Protocol):
    state: IntegrationState
    problem: str | None
    binding: Binding
    secret_refused_at: datetime | None
    previous_secret_until: datetime | None
    client_secret_expires_at: datetime | None
    client_certificate_expires_at: datetime | None

    @property
    def failed_exchange(self) -> _FailedExchange | None: ...


class Finding(NamedTuple):
    """What is wrong with an integration. `at` is the moment that the text is about; `actor` is who acts."""

    tone: str
    text: str
    at: datetime | None = None
    actor: str = ""


_ADMIN = WHO[Repairer.INTEGRATION_ADMIN]


def findings(integration: _Integration, now: datetime) -> list[Finding]:
    """What is wrong with the integration, the worst first; one good finding where nothing is."""
    problems = sorted(_problems(integration, now), key=lambda finding: finding.tone != "bad")
    return problems or [Finding("good", "ready")]


def _problems(integration: _Integration, now: datetime) -> Iterator[Finding]:
    if integration.state is IntegrationState.FAILED:
        yield Finding("bad", integration.problem or "The issuer's metadata can't be used.", actor=_ADMIN)
    if integration.state is IntegrationState.DISCOVERING:
        yield Finding("wait", "A worker reads the issuer's metadata.")
    if integration.secret_refused_at is not None:
        yield Finding(
            "bad", "The provider refuses the new client secret, since", integration.secret_refused_at, _ADMIN
        )
    elif integration.previous_secret_until is not None and integration.previous_secret_until > now:
        yield Finding(
            "wait",
            "The client secret is being rotated; the previous one ends",
            integration.previous_secret_until,
        )
    ends = {
        "client secret": integration.client_secret_expires_at,
        "certificate": integration.client_certificate_expires_at,
    }
    for credential, at in ends.items():
        if at is not None and at <= now:
            yield Finding("bad", f"The {credential} has expired", at, _ADMIN)
        elif at is not None and at < now + _SOON:
            yield Finding("wait", f"The {credential} expires", at, _ADMIN)
    if integration.failed_exchange is not None:
        yield _exchange(integration.failed_exchange)
    if integration.binding is Binding.NONE:
        yield Finding("wait", "Consents are unbound: no session says who consents.", actor=_ADMIN)


def _exchange(failed: _FailedExchange) -> Finding:
    meaning, actor = FAILURES[failed.failure].meaning, WHO[failed.repairer]
    if failed.circuit_open:
        text = f"The circuit is open: {failed.unanswered} refreshes in a row had no answer, so workers send "
        return Finding("bad", f"{text}one probe at a time. {meaning} The newest was", failed.at, actor)
    tone = "wait" if failed.repairer is Repairer.TIME else "bad"
    return Finding(tone, f"The last exchange failed: {meaning} It was", failed.at, actor)
