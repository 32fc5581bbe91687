"""The login of a person at the tenant's issuer: its code exchanged, and the role of one who administers; or
which subject it is, of one who uses an OAuth client.

The workflow's result is a failure code, never who logged in.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity

from activities.consents.issuer_login import TOO_LATE, IssuerLogin, LoginCode
from activities.support.provider_context import ProviderContextLoader
from activities.support.transactions import commit_with_retries, log_words
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.login import LoginClaim, is_subject_name, named_subject
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import LoginResult, VerifyPerson
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.logins import LoginStatus, PersonLogin
from evergrant_server.core.people.roles import AdminLogin, Person, PersonRole, person_id, person_of
from evergrant_server.core.people.sessions import STEP_UP_LASTS
from evergrant_server.core.provider_words import words_in
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.requests.sender import Sender

_SUPERSEDED = "This login has ended: log in again."
_TOLERANCE = timedelta(seconds=60)  # between the issuer's clock and ours


@dataclass(frozen=True)
class _PersonVerdict:
    """Who logged in, and what the login leads to."""

    person: Person | None = None
    role: PersonRole | None = None
    authenticated_at: datetime | None = None
    subject: str | None = None
    failure: Failure | None = None


class PersonLoginActivities:
    """The API waits for the workflow of its one activity."""

    def __init__(
        self, store: Store, contexts: ProviderContextLoader, sender: Sender, egress: Egress, clock: Clock
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._clock = clock
        self._issuers = IssuerLogin(sender, egress, clock)

    @activity.defn(name=jobs.VERIFY_PERSON.name)
    async def verify_person(self, request: VerifyPerson) -> LoginResult:
        """Write who logged in, and the role, for the API to make a session of; or why there is none."""
        try:
            async with self._store.read() as tx:
                login = await _waiting_login(tx, request)
                rule, code = await self._load(tx, login)
            claims = await self._issuers.claims(code, _wanted(rule))
            verdict = _verdict(login, rule, claims, self._clock.now())
        except Failure as failure:
            report_broken_authority(failure)
            log_words(failure, request.login_id)
            verdict = _PersonVerdict(failure=failure)
        try:
            await self._write(request, verdict)
        except Failure as failure:
            return _failed(failure)
        return LoginResult() if verdict.failure is None else _failed(verdict.failure)

    async def _load(self, tx: Transaction, login: PersonLogin) -> tuple[AdminLogin | ClientLogin, LoginCode]:
        """Raises Failure CALLBACK_INVALID after a change of where people log in, CLIENT_REJECTED,
        AUTHORITY_BROKEN."""
        rules = tx.admin_logins if login.authorize is None else tx.client_logins
        rule = await rules.of_tenant(login.tenant)
        if rule is None or rule.id != login.rule:
            raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
        integration = rule.issuer_integration(await tx.integrations.by_name(login.tenant, rule.integration))
        issuer = await self._contexts.access(tx, integration)
        if {(access.endpoints.issuer, access.endpoints.token_endpoint) for access in issuer} != {
            (login.issuer, login.token_endpoint)
        }:
            raise Failure(ErrorCode.CALLBACK_INVALID, "The issuer's endpoints changed meanwhile.")
        code, verifier = await tx.person_logins.secrets(login)
        return rule, LoginCode(issuer, code, verifier, login.redirect_uri, login.nonce_hash)

    async def _write(self, request: VerifyPerson, verdict: _PersonVerdict) -> None:
        async def write(tx: Transaction) -> None:
            login = await _waiting_login(tx, request)
            good = verdict.failure is None
            await tx.person_logins.verified(
                login.__replace__(
                    status=LoginStatus.VERIFIED if good else LoginStatus.FAILED,
                    person=verdict.person if good else None,
                    role=verdict.role,
                    authenticated_at=verdict.authenticated_at,
                    subject=verdict.subject,
                ),
                expected=login.revision,
            )
            if not good:
                administers = login.authorize is None
                action = AuditAction.PERSON_REFUSED if administers else AuditAction.SUBJECT_REFUSED
                await self._record_refusal(tx, request, verdict, action)

        await commit_with_retries(self._store, write)

    async def _record_refusal(
        self, tx: Transaction, request: VerifyPerson, verdict: _PersonVerdict, action: AuditAction
    ) -> None:
        """The audit record, with the person who was refused, where the issuer has named one."""
        assert verdict.failure is not None
        detail: dict[str, Any] = {"reason": verdict.failure.code, **words_in(verdict.failure)}
        subject: str = request.login_id
        if verdict.person is not None:
            subject = person_id(request.tenant, verdict.person)
            detail |= verdict.person.model_dump()
        entry = AuditEntry(
            tenant=request.tenant,
            at=self._clock.now(),
            action=action,
            object=subject,
            context=request.context,
            detail=detail,
        )
        await audit.append(tx, entry)


def _wanted(rule: AdminLogin | ClientLogin) -> tuple[str, ...]:
    """The claims that decide, the first of which the id token may lack."""
    if isinstance(rule, AdminLogin):
        return (rule.groups_claim,)
    return ("email", "email_verified") if rule.claim is LoginClaim.EMAIL else ()


def _verdict(
    login: PersonLogin, rule: AdminLogin | ClientLogin, claims: dict[str, Any], now: datetime
) -> _PersonVerdict:
    if isinstance(rule, AdminLogin):
        return _judge(login, rule, claims, now)
    person = person_of(login.issuer, claims)
    subject, why = named_subject(rule.login, claims)
    if person is None or (subject is not None and not is_subject_name(subject)):
        subject, why = None, "the issuer names a person that can't be stored"
    if subject is None:
        failure = Failure(ErrorCode.NOT_PERMITTED, f"You are logged in, but {why}.")
        return _PersonVerdict(person, failure=failure)
    return _PersonVerdict(person, subject=subject)


def _judge(login: PersonLogin, rule: AdminLogin, claims: dict[str, Any], now: datetime) -> _PersonVerdict:
    person, role = person_of(login.issuer, claims), rule.role_of(claims)
    if person is None:
        why = "The id token of the login names a person that can't be stored."
        return _PersonVerdict(failure=Failure(ErrorCode.ID_TOKEN_REFUSED, why))
    seen_at = _moment(claims.get("auth_time"))
    if seen_at is not None and seen_at > now + _TOLERANCE:
        seen_at = None
    failure = None
    if role is None:
        why = "You are logged in, but none of your groups at the issuer has a role here."
        failure = Failure(ErrorCode.NOT_PERMITTED, why)
    elif login.step_up and (seen_at is None or now >= seen_at + STEP_UP_LASTS):
        # required where `max_age` was sent (section 3.1.2.1), and compared by the client (3.1.3.7, item 13)
        why = "The issuer doesn't say that you have logged in just now."
        failure = Failure(ErrorCode.ID_TOKEN_REFUSED, why)
    return _PersonVerdict(person, role if failure is None else None, seen_at, failure=failure)


def _moment(value: object) -> datetime | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _failed(failure: Failure) -> LoginResult:
    """For the person's page."""
    if failure.code is ErrorCode.GRANT_REJECTED:  # of the login's code
        return LoginResult(failure=ErrorCode.CALLBACK_INVALID, detail=TOO_LATE)
    return LoginResult(failure=failure.code, detail=failure.detail, retry_after=failure.retry_after)


async def _waiting_login(tx: Transaction, request: VerifyPerson) -> PersonLogin:
    """The login, unless it has ended. Raises Failure CALLBACK_INVALID."""
    login = await tx.person_logins.get(request.tenant, request.login_id)
    if login is None or login.revision != request.revision or login.status is not LoginStatus.CODE_RECEIVED:
        raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
    return login
