"""The subject's login at the tenant's issuer: its code exchanged, and compared with the subject (ADR 0034).

No token of it is kept. A lost reply costs another login, so the protocol for single-use credentials isn't
needed.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from temporalio import activity

from activities.consents.issuer_login import TOO_LATE, IssuerLogin, LoginCode
from activities.support.provider_context import ProviderContextLoader
from activities.support.transactions import commit_with_retries, log_words
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.login import (
    ENDS_CONSENT,
    LoginClaim,
    LoginRule,
    claimed_subject,
    judge_login,
    logged_in,
    must_log_in,
)
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import require_pinned_login
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import LoginResult, VerifyLogin
from evergrant_server.core.provider_words import words_in
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.requests.sender import Sender

log = logging.getLogger("evergrant.activities")

_SUPERSEDED = "This login was begun again, or its consent has ended."


@dataclass(frozen=True)
class _Login:
    """A login whose browser has come back."""

    consent: Consent
    subject: str
    rule: LoginRule
    code: LoginCode


@dataclass(frozen=True)
class _Verdict:
    """What a login leads to: the browser goes on, or the failure. `why` it was another person's login."""

    login: _Login | None = None
    failure: Failure | None = None
    why: str | None = None
    claimed: str | None = None

    @property
    def action(self) -> AuditAction:
        if self.failure is None:
            return AuditAction.CONSENT_CONFIRMED
        return AuditAction.CONSENT_FAILED if self.why is None else AuditAction.SUBJECT_MISMATCH

    def after(self, consent: Consent, now: datetime) -> Consent:
        """Only an id token that is refused, and another person, end the consent."""
        if self.failure is None:
            return logged_in(consent, now)
        if self.failure.code not in ENDS_CONSENT:
            return consent
        return consent.__replace__(status=ConsentStatus.FAILED, failure=self.failure.code)

    def detail(self, consent: Consent) -> dict[str, Any]:
        """For the audit log."""
        detail: dict[str, Any] = {"consent_id": consent.id, "binding": consent.binding}
        if self.login is not None:
            detail["login"] = self.login.rule.integration
        if self.why is not None:
            return detail | {"claimed_subject": self.claimed, "why": self.why}
        if self.failure is not None:
            detail |= {"reason": self.failure.code, **words_in(self.failure)}
        return detail


class LoginActivities:
    """The API waits for the workflow of its one activity."""

    def __init__(
        self, store: Store, contexts: ProviderContextLoader, sender: Sender, egress: Egress, clock: Clock
    ) -> None:
        self._store = store
        self._contexts = contexts
        self._clock = clock
        self._issuers = IssuerLogin(sender, egress, clock)

    @activity.defn(name=jobs.VERIFY_LOGIN.name)
    async def verify_login(self, request: VerifyLogin) -> LoginResult:
        """Let the consent's browser go on, end the consent, or say why the subject has to try again."""
        login: _Login | None = None
        try:
            async with self._store.read() as tx:
                login = await self._load(tx, request)
            verdict = self._judge(login, await self._claims(login))
        except Failure as failure:
            report_broken_authority(failure)
            verdict = _Verdict(login, failure)
        try:
            consent = await self._write(request, verdict)
        except Failure as failure:
            return _failed(failure)
        _report(consent, verdict)
        return LoginResult() if verdict.failure is None else _failed(verdict.failure)

    def _judge(self, login: _Login, claims: dict[str, Any]) -> _Verdict:
        why = judge_login(login.rule, claims, login.subject)
        if why is None:
            return _Verdict(login)
        mismatch = Failure(ErrorCode.SUBJECT_MISMATCH)  # doesn't name the right subject
        return _Verdict(login, mismatch, why, claimed_subject(login.rule, claims))

    async def _load(self, tx: Transaction, request: VerifyLogin) -> _Login:
        """Raises Failure CALLBACK_INVALID after a later click, CLIENT_REJECTED, AUTHORITY_BROKEN."""
        consent = await _waiting_login(tx, request)
        connection = await tx.connections.get_authentic(consent.tenant, consent.connection_id)
        integration = await tx.integrations.get(consent.tenant, consent.integration_id)
        if connection is None or integration is None:
            raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
        rule = integration.login
        named = None if rule is None else await tx.integrations.by_name(consent.tenant, rule.integration)
        login_integration = require_pinned_login(rule, named)
        assert rule is not None
        issuer = await self._contexts.access(tx, login_integration)
        if {(access.endpoints.issuer, access.endpoints.token_endpoint) for access in issuer} != {
            (consent.issuer, consent.token_endpoint)
        }:
            raise Failure(ErrorCode.CALLBACK_INVALID, "The issuer's endpoints changed meanwhile.")
        code, verifier = await tx.consents.code(consent), await tx.consents.verifier(consent)
        assert consent.redirect_uri is not None
        nonce = consent.nonce_hash or ""
        back = LoginCode(issuer, code, verifier, consent.redirect_uri, nonce)
        return _Login(consent, connection.subject, rule, back)

    async def _claims(self, login: _Login) -> dict[str, Any]:
        """Who logged in. Raises the Failure of the issuer's reply, ID_TOKEN_REFUSED."""
        by_email = login.rule.claim is LoginClaim.EMAIL
        return await self._issuers.claims(login.code, ("email", "email_verified") if by_email else ())

    async def _write(self, request: VerifyLogin, verdict: _Verdict) -> Consent:
        async def write(tx: Transaction) -> Consent:
            consent, now = await _waiting_login(tx, request), self._clock.now()
            after = await tx.consents.replace(verdict.after(consent, now), expected=consent.revision)
            await tx.consents.erase_secrets(after)
            entry = AuditEntry(
                tenant=consent.tenant,
                at=now,
                action=verdict.action,
                object=consent.connection_id,
                context=request.context,
                detail=verdict.detail(consent),
            )
            await audit.append(tx, entry)
            return after

        return await commit_with_retries(self._store, write)


def _failed(failure: Failure) -> LoginResult:
    """For the subject's page."""
    if failure.code is ErrorCode.GRANT_REJECTED:  # of the login's code, not of a connection's grant
        return LoginResult(failure=ErrorCode.CALLBACK_INVALID, detail=TOO_LATE)
    return LoginResult(failure=failure.code, detail=failure.detail, retry_after=failure.retry_after)


def _report(consent: Consent, verdict: _Verdict) -> None:
    """Count a login that was compared with the subject, and raise the alarm for another person's."""
    if verdict.failure is None:
        metrics.count_confirmation("confirmed", consent.by)
    elif verdict.why is None:
        log_words(verdict.failure, consent.connection_id)
    else:
        code, detail = verdict.failure.code, f"another person logged in ({verdict.why}); the consent is ended"
        metrics.count_confirmation(code, consent.by)
        log_event(
            log, logging.WARNING, LogEvent.SUBJECT_MISMATCH, detail, code=code, object=consent.connection_id
        )


async def _waiting_login(tx: Transaction, request: VerifyLogin) -> Consent:
    """The consent, unless the subject has clicked again. Raises Failure CALLBACK_INVALID."""
    consent = await tx.consents.get(request.tenant, request.consent_id)
    if consent is None or not consent.is_current_start(request.revision) or not must_log_in(consent):
        raise Failure(ErrorCode.CALLBACK_INVALID, _SUPERSEDED)
    return consent
