"""The confirmation of a bound consent: its app says, from its own session, who came back. Pure.

The confirm code is made when a browser comes back, and that browser alone takes it to the app
(draft-ietf-oauth-security-topics-update section 2.3.2). The code of the provider isn't exchanged before.
"""

import hmac
import secrets
from datetime import datetime, timedelta
from enum import StrEnum, auto

from evergrant_server.core.connections.binding import Binding, challenge_of, hash_confirm_code
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret

CONFIRM_TIME = timedelta(seconds=120)
# Beyond the consent's own end, so that a subject who came back at the last moment can be confirmed; less
# than the minute for which the workflow waits (`LifecycleRules.consent_grace`).
_AFTER_CONSENT = timedelta(seconds=30)
_BEFORE_CODE_ENDS = timedelta(seconds=10)  # for the exchange
_CODE_BYTES = 32


class ConfirmVerdict(StrEnum):
    """What a confirmation leads to."""

    CONFIRMED = auto()
    REPEATED = auto()  # it was confirmed before
    MISMATCH = auto()
    EXPIRED = auto()


def must_be_confirmed(consent: Consent) -> bool:
    """True for a consent whose code or tokens must not be used yet."""
    return consent.binding.needs_confirm and consent.confirmed_at is None


def await_confirm(
    consent: Consent, now: datetime, code_lifetime: timedelta | None = None
) -> tuple[Consent, Secret]:
    """The consent that waits for its app, and the confirm code for the browser.

    `code_lifetime` is that of the provider's code, if the definition states it.
    """
    code = secrets.token_urlsafe(_CODE_BYTES)
    time = CONFIRM_TIME
    if code_lifetime is not None:
        time = min(time, max(code_lifetime - _BEFORE_CODE_ENDS, code_lifetime / 2))
    return consent.__replace__(
        status=ConsentStatus.CONFIRMING,
        confirm_hash=hash_confirm_code(code),
        confirm_by=min(now + time, consent.expires_at + _AFTER_CONSENT),
    ), Secret(code)


def judge_confirmation(
    consent: Consent, expected_subject: str, subject: str, verifier: Secret | None, now: datetime
) -> ConfirmVerdict:
    """Judge what the consent's app says. A failed confirmation stays failed."""
    if consent.failure == ErrorCode.SUBJECT_MISMATCH:
        return ConfirmVerdict.MISMATCH
    if consent.confirmed_at is None and not is_confirming(consent, now):
        return ConfirmVerdict.EXPIRED
    same_subject = hmac.compare_digest(subject.encode(), expected_subject.encode())
    if not same_subject or not _is_same_session(consent, verifier):
        return ConfirmVerdict.MISMATCH
    return ConfirmVerdict.CONFIRMED if consent.confirmed_at is None else ConfirmVerdict.REPEATED


def is_confirming(consent: Consent, now: datetime) -> bool:
    """True while the app may still confirm it."""
    in_time = consent.confirm_by is not None and now < consent.confirm_by
    return consent.status is ConsentStatus.CONFIRMING and in_time


def confirmed(consent: Consent, now: datetime) -> Consent:
    """The consent after its confirmation: its code may be exchanged, or its browser go to the provider."""
    first = consent.binding is Binding.APP_FIRST
    status = ConsentStatus.STARTED if first else ConsentStatus.CODE_RECEIVED
    return consent.__replace__(status=status, confirmed_at=now)


def reopened(consent: Consent) -> Consent:
    """A consent that wasn't confirmed in time, as its link was before. The hash stays, for a late confirm."""
    return consent.__replace__(status=ConsentStatus.OPEN, state_hash=None, nonce_hash=None, browser_hash=None)


def _is_same_session(consent: Consent, verifier: Secret | None) -> bool:
    """A verifier without a challenge is refused too: the link isn't the one that this session made."""
    if consent.challenge is None or verifier is None:
        return consent.challenge is None and verifier is None
    return hmac.compare_digest(challenge_of(verifier.reveal()).encode(), consent.challenge.encode())
