"""What a provider reports about a grant, who receives its events, and how it names an account. Pure.

Reports come by introspection, a security event or a provider's own hook. A certain end stops the
connection at once; a suspicion leads to a refresh, since the token endpoint knows. A receiver
belongs to one integration, and an event touches that integration's connections only. No secret is
here: the signing secret stays in the store. Verifying signatures is `providers.events`'.
"""

import base64
import hashlib
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from evergrant_server.core.connections.account import EMAIL, PIN, SUB
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.connections.id_token import claims_of
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import IntegrationId, ReceiverId, TenantRow
from evergrant_server.core.messages.base import Message
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text

_REPORT_DELAY = timedelta(minutes=10)  # between an end at the provider and its report


class ReportSource(StrEnum):
    INTROSPECTION = "introspection"  # RFC 7662
    SECURITY_EVENT = "security_event"  # a signed token of RISC or CAEP (RFC 8417)
    HOOK = "hook"  # a provider's own uninstall or deauthorization call
    CAMPAIGN = "campaign"  # no provider: the subject hasn't consented to another client in time


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


def judge_introspection(
    refresh_active: bool | None, access_active: bool | None, *, refresh_answers: bool
) -> IntrospectionFinding:
    """What the provider's answers mean (RFC 7662); None: not introspected.

    A server that can't introspect refresh tokens answers `active: false` for each of them (section
    2.2), so that answer counts only with `refresh_answers`: it has said `active: true` of one before.
    """
    if refresh_active:
        return IntrospectionFinding.REFRESH_TOKEN_ACTIVE
    if refresh_active is False and refresh_answers:
        return IntrospectionFinding.REFRESH_TOKEN_INACTIVE
    if access_active:
        return IntrospectionFinding.ACCESS_TOKEN_ACTIVE
    if access_active is False:
        return IntrospectionFinding.ACCESS_TOKEN_INACTIVE
    return IntrospectionFinding.NOTHING_LEARNT


ACCOUNT_IS_SUBJECT = "subject"
ACCOUNT_IS_SUB = "sub"


class ReceiverKind(StrEnum):
    """How an event is signed, and what its words mean."""

    SET = "set"  # security event tokens, pushed (RFC 8417, RFC 8935): RISC, CAEP
    SLACK = "slack"
    GITHUB = "github"
    ZOOM = "zoom"
    META = "meta"


class AccountIdentifier(NamedTuple):
    """By what a provider may name an account or a token. Stored as a keyed hash."""

    name: str
    value: str


class Receiver(TenantRow):
    """Whose events are accepted. `account_in` says where a connection has the account's id: the id
    token's `sub`, the connection's `subject`, or the name of a fact of its grant."""

    id: ReceiverId
    integration_id: IntegrationId
    kind: ReceiverKind
    issuer: str | None = None
    jwks_uri: str | None = None
    audience: tuple[str, ...] = ()  # empty: the integration's client id
    account_in: str = ACCOUNT_IS_SUB
    keys: tuple[dict[str, Any], ...] | None = None  # public keys, as they were fetched
    keys_at: datetime | None = None
    keys_requested_at: datetime | None = None
    keys_problem: str | None = None
    created_at: datetime
    changed_at: datetime


TOKEN_PREFIX, TOKEN_HASH = "refresh_token_prefix", "refresh_token_sha512_sha512"
_PREFIX = 16  # characters, as Google counts them
_LONGEST = 256


def fact_name(path: str) -> str:
    """The identifier's name for a fact at this path."""
    return f"fact:{path}"


def account_identifiers_of(tokens: TokenSet, grant: Grant) -> dict[str, AccountIdentifier]:
    """Identifiers by name. A reply without an id token or refresh token has none of those."""
    identifiers = {fact_name(path): str(value) for path, value in grant.metadata.items() if _is_id(value)}
    if tokens.id_token is not None:
        identifiers |= _of_id_token(tokens.id_token)
    if tokens.refresh_token is not None:
        identifiers |= _of_refresh_token(tokens.refresh_token)
    known = ((name, value) for name, value in identifiers.items() if 0 < len(value) <= _LONGEST)
    usable = {name: AccountIdentifier(name, value) for name, value in known if is_storable_text(value)}
    return usable if tokens.account is None else usable | {PIN: AccountIdentifier(PIN, tokens.account.id)}


def unreplaced_names(tokens: TokenSet, origin: Origin) -> frozenset[str]:
    """Names whose older identifiers stay: a refresh's reply may lack the token that they come from."""
    if origin is Origin.NEW:
        return frozenset()
    of_id = () if tokens.id_token is not None else (SUB, EMAIL)
    of_refresh = () if tokens.refresh_token is not None else (TOKEN_PREFIX, TOKEN_HASH)
    return frozenset((PIN, *of_id, *of_refresh))


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _of_id_token(id_token: Secret) -> dict[str, str]:
    claims = claims_of(id_token)
    sub, email, verified = claims.get(SUB), claims.get(EMAIL), claims.get("email_verified")
    identifiers = {SUB: sub} if isinstance(sub, str) else {}
    if isinstance(email, str) and verified is True:
        identifiers[EMAIL] = email.casefold()
    return identifiers


def _of_refresh_token(token: Secret) -> dict[str, str]:
    """As providers name a token without revealing it; a prefix would reveal a short one."""
    raw = token.reveal()
    twice = hashlib.sha512(hashlib.sha512(raw.encode()).digest()).digest()
    identifiers = {TOKEN_HASH: base64.b64encode(twice).decode()}
    if len(raw) > 2 * _PREFIX:
        identifiers[TOKEN_PREFIX] = raw[:_PREFIX]
    return identifiers
