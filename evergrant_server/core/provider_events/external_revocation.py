"""A provider's report that it ended a grant, or may have: what follows from it. Pure.

Reports come by introspection, a security event or a provider's own hook. A certain end stops the
connection at once; a suspicion leads to a refresh, since the token endpoint knows.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Message

_REPORT_DELAY = timedelta(minutes=10)  # between an end at the provider and its report


class ReportSource(StrEnum):
    INTROSPECTION = "introspection"  # RFC 7662
    SECURITY_EVENT = "security_event"  # a signed token of RISC or CAEP (RFC 8417)
    HOOK = "hook"  # a provider's own uninstall or deauthorization call


class Certainty(StrEnum):
    """What the report says of the grant."""

    ENDED = "ended"  # the grant, or its account, is gone
    SUSPECTED = "suspected"  # sessions or an access token ended: the refresh token may be valid


class ProviderReport(Message):
    source: ReportSource
    kind: str  # the event's type, as the provider names it
    certainty: Certainty
    at: datetime | None = None  # when it happened at the provider, if that was said
    at_is_issue_time: bool = False  # `at` is when the report was issued; the event came before
    generation: int | None = None  # the grant it is about, if that is known


class ReportDecision(StrEnum):
    """What follows from a report."""

    ENDED = "ended"  # the subject must consent again
    REFRESH_REQUESTED = "refresh_requested"  # the workflow refreshes, and so finds out
    OUTDATED = "outdated"  # it is about a grant that was replaced since
    NOTHING_HELD = "nothing_held"  # no grant is held that could have ended, or the end is known
    UNTESTABLE = "untestable"  # suspected, and there is no refresh token to find out with


def judge_report(connection: Connection, grant: Grant | None, report: ProviderReport) -> ReportDecision:
    """A grant that was obtained after the reported event is never touched.

    `obtained_at` is when its tokens were requested: what ended before that did not end them.
    """
    known = connection.reason is ErrorCode.GRANT_REVOKED_ELSEWHERE
    if grant is None or known or connection.state not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH):
        return ReportDecision.NOTHING_HELD
    if report.at is not None and report.at < grant.obtained_at:
        return ReportDecision.OUTDATED
    if report.generation is not None and report.generation < grant.generation:
        return ReportDecision.OUTDATED
    if report.certainty is Certainty.ENDED and not _may_be_outdated(grant, report):
        return ReportDecision.ENDED
    if connection.state is not LifecycleState.ACTIVE:
        return ReportDecision.NOTHING_HELD
    return ReportDecision.REFRESH_REQUESTED if grant.refreshable else ReportDecision.UNTESTABLE


def _may_be_outdated(grant: Grant, report: ProviderReport) -> bool:
    """Issued just after the grant was obtained, without the event's own time."""
    recent = report.at is not None and report.at - grant.obtained_at < _REPORT_DELAY
    return report.at_is_issue_time and recent and grant.refreshable


@dataclass(frozen=True)
class IntrospectionAnswers:
    """Answers of introspection (RFC 7662).

    A server that can't introspect refresh tokens answers `active: false` for each of them (section
    2.2), so that answer counts only if the server has said `active: true` of one before.

    The provider's answers; None: not introspected. `refresh_answers`: it can introspect refresh tokens.
    """

    refresh_active: bool | None
    access_active: bool | None
    refresh_answers: bool


class IntrospectionFinding(StrEnum):
    REFRESH_TOKEN_ACTIVE = "refresh_token_active"
    ACCESS_TOKEN_ACTIVE = "access_token_active"
    REFRESH_TOKEN_INACTIVE = "refresh_token_inactive"
    ACCESS_TOKEN_INACTIVE = "access_token_inactive"
    NOTHING_LEARNT = "nothing_learnt"

    @property
    def certainty(self) -> Certainty | None:
        """How surely the grant has ended; None: the finding is no sign of it."""
        if self is IntrospectionFinding.REFRESH_TOKEN_INACTIVE:
            return Certainty.ENDED
        # an access token alone proves no end
        return Certainty.SUSPECTED if self is IntrospectionFinding.ACCESS_TOKEN_INACTIVE else None


def judge_introspection(seen: IntrospectionAnswers) -> IntrospectionFinding:
    if seen.refresh_active:
        return IntrospectionFinding.REFRESH_TOKEN_ACTIVE
    if seen.refresh_active is False and seen.refresh_answers:
        return IntrospectionFinding.REFRESH_TOKEN_INACTIVE
    if seen.access_active:
        return IntrospectionFinding.ACCESS_TOKEN_ACTIVE
    if seen.access_active is False:
        return IntrospectionFinding.ACCESS_TOKEN_INACTIVE
    return IntrospectionFinding.NOTHING_LEARNT
