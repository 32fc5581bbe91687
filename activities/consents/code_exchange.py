"""Code exchange: spend an authorization code for the first tokens (RFC 6749 section 4.1.3)."""

from dataclasses import replace
from datetime import datetime

from temporalio import activity

from activities.consents.first_grant import FirstGrantActivities, FirstGrantSpend, may_be_sent_later
from activities.consents.import_export import is_import_pending
from activities.grants.account_check import keep_refused_tokens, with_checked_account
from activities.grants.client_secrets import is_client_refused
from activities.grants.spend import may_be_definition_fault
from activities.grants.token_request import CODE_RULES, CodeExchangeRequest, read_first_tokens
from activities.single_use.attempt import SingleUseAttempt
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit, close_attempt, end_consent, end_unless_done
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ConsentCall, ExchangeCode, GrantResult
from evergrant_server.core.provider_words import words_in
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.definition.templates import params_from_metadata
from providers.responses.raw_reply import RawReply


class CodeExchangeSpend(FirstGrantSpend):
    """A failure ends the consent, and the subject opens a new link; three kinds of failures don't.

    A refused secret while there is another one, what may be a staged definition's fault, and a
    code that wasn't sent in time: that code is still good.
    """

    kind = AttemptKind.CODE_EXCHANGE

    async def request(self) -> CodeExchangeRequest:
        consent, context = self.consent, self.context
        async with self.services.store.read() as tx:
            code = await tx.consents.code(consent)
            verifier = await tx.consents.verifier(consent)
        token_endpoint = _token_endpoint(consent, self.loaded or context.endpoints, context.endpoints)
        if consent.redirect_uri is None or token_endpoint is None:
            raise Failure(ErrorCode.CALLBACK_INVALID, "the consent was never started")
        access = replace(
            context,
            endpoints=context.endpoints.__replace__(token_endpoint=token_endpoint),
            params=context.integration.params | params_from_metadata(context.spec, consent.facts),
        )
        now = self.services.clock.now()
        return CodeExchangeRequest(access, CODE_RULES, code, verifier, consent.redirect_uri, now)

    def count(self, ended: GrantResult | Failure | None, seconds: float) -> None:
        if isinstance(ended, GrantResult):
            metrics.count(metrics.CODE_EXCHANGES, ended.failure or "granted", self.context.spec.name)

    def read(self, context: ProviderContext, reply: RawReply, came_at: datetime) -> TokenSet:
        """Raises as `read_first_tokens` and `with_checked_account`."""
        tokens = read_first_tokens(context, reply, self.consent.scopes, came_at)
        return with_checked_account(context, tokens, self.consent, self.consent.facts)

    async def fail(
        self, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        result = await super().fail(attempt, failure, outcome)
        if _was_not_sent(failure, outcome):
            raise failure
        return result

    async def record_failure(
        self, tx: Transaction, attempt: SingleUseAttempt, failure: Failure, outcome: AttemptOutcome | None
    ) -> GrantResult:
        # a success that can't be read may hold tokens: a second use would revoke them (RFC 6749 4.1.2)
        success = outcome in (None, AttemptOutcome.UNREAD) and failure.code is ErrorCode.REPLY_UNREADABLE
        try_again = may_be_definition_fault(failure, provisional=self.provisional) and not success
        unsuccessful = GrantResult(attempt_id=attempt.row.id, failure=failure.code)
        if try_again and outcome is None:
            return unsuccessful  # the attempt stays open
        now = self.services.clock.now()
        await close_attempt(tx, attempt.row, outcome or AttemptOutcome.GIVEN_UP, now)
        if try_again or _was_not_sent(failure, outcome):
            return unsuccessful
        if is_client_refused(failure) and self.context.other_client is not None:
            return unsuccessful.__replace__(client_refused=True)
        code = failure.code
        if code is ErrorCode.GRANT_REJECTED and attempt.row.sends > 1:
            code = ErrorCode.OUTCOME_UNKNOWN  # an earlier send spent it, and its reply is lost
        await keep_refused_tokens(tx, self.call, self.context, attempt.row, failure, now)
        await end_unless_done(tx, self.consent, ConsentStatus.FAILED, code)
        detail = {"reason": code, "consent": self.consent.id, **words_in(failure)}
        await append_audit(tx, self.call, AuditAction.CONSENT_FAILED, now, **detail)
        return GrantResult(attempt_id=attempt.row.id, failure=code, consent_over=True)


class CodeExchangeActivities(FirstGrantActivities):
    """Exchanges the codes of consents, and installs imports, which are consents with their tokens."""

    spend_type = CodeExchangeSpend

    @activity.defn(name=jobs.EXCHANGE_CODE.name)
    async def exchange_code(self, request: ExchangeCode) -> GrantResult:
        """Spend the code of a consent, once."""
        return await self._get_first_grant(request)

    async def _result_of_failure(self, request: ConsentCall, failure: Failure) -> GrantResult:
        """The tokens of an import can be installed once the platform is available: Temporal tries again."""
        platform = failure.kind is FailureKind.PLATFORM_UNAVAILABLE
        if platform and await is_import_pending(self._services.store, request):
            raise failure
        return await super()._result_of_failure(request, failure)

    async def _record_failed_activity(self, tx: Transaction, request: ConsentCall, failure: Failure) -> bool:
        """End a consent whose code can't be spent: the subject opens a new link.

        The tokens of an import stay until its deadline, unless their seal is broken.
        """
        consent = await tx.consents.get(request.tenant, request.consent_id)
        if consent is None or consent.status is not ConsentStatus.CODE_RECEIVED:
            return False
        imported = consent.kind is ConsentKind.IMPORT and not consent.came_from_browser
        if not imported or failure.code is ErrorCode.SEAL_BROKEN:
            await end_consent(tx, consent, ConsentStatus.FAILED, failure.code)
            detail = {"reason": failure.code, "consent": consent.id}
            now = self._services.clock.now()
            await append_audit(tx, request, AuditAction.CONSENT_FAILED, now, **detail)
        return False  # as far as the workflow knows: it may offer a new link


def _token_endpoint(consent: Consent, loaded: Endpoints, current: Endpoints) -> str | None:
    """The endpoint that was recorded when the browser left (RFC 9700 section 4.4).

    When a staged definition named it and failed, the definition before it names another endpoint
    of the same server: the server whose authorization endpoint gave the code.
    """
    replaced = consent.token_endpoint == loaded.token_endpoint
    same_server = loaded.authorization_endpoint == current.authorization_endpoint
    return current.token_endpoint if replaced and same_server else consent.token_endpoint


def _was_not_sent(failure: Failure, outcome: AttemptOutcome | None) -> bool:
    return outcome is AttemptOutcome.NOT_SENT and may_be_sent_later(failure)
