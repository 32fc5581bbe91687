"""What is wrong with an integration, or soon will be, from what the API shows of it."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from evergrant_server.console.next_steps import WHO
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.integrations import IntegrationState

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
    """`at` is the moment that the text is about, `who` acts."""

    tone: str
    text: str
    at: datetime | None = None
    who: str = ""


_ADMIN = WHO[Repairer.INTEGRATION_ADMIN]


def findings(it: _Integration, now: datetime) -> list[Finding]:
    """The worst first; one good finding where there is none."""
    found = sorted(_problems(it, now), key=lambda finding: finding.tone != "bad")
    return found or [Finding("good", "ready")]


def _problems(it: _Integration, now: datetime) -> Iterator[Finding]:
    if it.state is IntegrationState.FAILED:
        yield Finding("bad", it.problem or "The issuer's metadata can't be used.", who=_ADMIN)
    if it.state is IntegrationState.DISCOVERING:
        yield Finding("wait", "A worker reads the issuer's metadata.")
    if it.secret_refused_at is not None:
        yield Finding(
            "bad", "The provider refuses the new client secret, since", it.secret_refused_at, _ADMIN
        )
    elif it.previous_secret_until is not None and it.previous_secret_until > now:
        yield Finding(
            "wait", "The client secret is being rotated; the previous one ends", it.previous_secret_until
        )
    ends = {"client secret": it.client_secret_expires_at, "certificate": it.client_certificate_expires_at}
    for what, at in ends.items():
        if at is not None and at <= now:
            yield Finding("bad", f"The {what} has expired", at, _ADMIN)
        elif at is not None and at < now + _SOON:
            yield Finding("wait", f"The {what} expires", at, _ADMIN)
    if it.failed_exchange is not None:
        yield _exchange(it.failed_exchange)
    if it.binding is Binding.NONE:
        yield Finding("wait", "Consents are unbound: no session says who consents.", who=_ADMIN)


def _exchange(failed: _FailedExchange) -> Finding:
    what, who = FAILURES[failed.failure].meaning, WHO[failed.repairer]
    if failed.circuit_open:
        text = f"The circuit is open: {failed.unanswered} refreshes in a row had no answer, so workers send "
        return Finding("bad", f"{text}one probe at a time. {what} The newest was", failed.at, who)
    tone = "wait" if failed.repairer is Repairer.TIME else "bad"
    return Finding(tone, f"The last exchange failed: {what} It was", failed.at, who)
