"""What a page tells the subject of a failure: what happened, and the next step, which works. Pure.

The failure table addresses apps and admins.
"""

from dataclasses import dataclass

from evergrant_server.console.logos import Parties
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.errors.kinds import Repairer, RetryAdvice
from evergrant_server.core.provider_words import CALLBACK_REFUSED


@dataclass(frozen=True)
class WayOut:
    """The consent that failed: who asked, whether its link is over, and whether it began in this browser.

    `back` is the app's own page, if the app listed one, with the failure's code in its query.
    """

    parties: Parties | None = None
    over: bool = False
    here: bool = False
    back: str | None = None

    @property
    def app(self) -> str:
        return "the app that sent you" if self.parties is None else self.parties.app.name

    @property
    def provider(self) -> str:
        return "the provider" if self.parties is None else self.parties.provider.name


_ADMINS = (Repairer.INTEGRATION_ADMIN, Repairer.PERMIT_ADMIN, Repairer.OPERATOR)
_WHY = {
    ErrorCode.CONSENT_EXPIRED: "This link has expired.",
    ErrorCode.CONSENT_DENIED: "Access was declined, which has ended this link.",
    ErrorCode.CONNECTION_REVOKED: "The connection of this link has ended.",
    ErrorCode.SUBJECT_MISMATCH: "Another person came back than the one for whom this link was made. Nothing "
    "was stored.",
    ErrorCode.MADE_BY_ANOTHER_APP: "Another app has connected this since {app} made the link.",
    ErrorCode.ID_TOKEN_REFUSED: "The login that came back is not the one that this link began.",
    ErrorCode.INTERNAL: "Evergrant has met an error of its own. What came from the provider, if anything "
    "did, is kept sealed.",
    ErrorCode.TENANT_DISABLED: "Connecting is switched off here for now. What was connected before is kept.",
    ErrorCode.CONFIRM_REQUIRED: "You have given access, and {app} has not confirmed that it was you.",
}


def is_for_admins(failure: Failure) -> bool:
    """True for what the subject can't repair; the failure's own words are for an admin then."""
    return failure.rule.repairer in _ADMINS and failure.code is not ErrorCode.RATE_LIMITED


def words_for_admins(failure: Failure) -> str | None:
    """What the page shows apart from its text, with the repair; None where its text says it."""
    if not is_for_admins(failure) and not failure.detail.startswith(CALLBACK_REFUSED):
        return None
    repair = f" {failure.repair}" if is_for_admins(failure) else ""
    reference = failure.context.get("reference")
    look = f"evergrant connections ls --reference {reference} -o yaml"
    answer = f" What the provider said: {look}" if reference else ""
    end = "" if failure.problem.endswith(".") or not repair else "."
    return f"{failure.problem}{end}{repair}{answer}"


def what_happened(failure: Failure, way: WayOut) -> str:
    """In the subject's words, where the failure has none of its own for the subject."""
    if is_for_admins(failure) and failure.code not in _WHY:
        if failure.rule.repairer is Repairer.OPERATOR:
            return "Something that this page needs doesn't answer."
        return f"The access of {way.app} to {way.provider} is not set up as it should be."
    if failure.detail.startswith(CALLBACK_REFUSED):
        return f"What came back from {way.provider} could not be accepted. Nothing was stored."
    if failure.detail == failure.rule.meaning:
        return _WHY.get(failure.code, failure.detail).format(app=way.app)
    return failure.detail


def next_step(failure: Failure, way: WayOut) -> str:
    """What the subject does next."""
    app = way.app
    later = failure.rule.retry is RetryAdvice.BACKOFF or failure.retry_after is not None
    if later and not way.over:
        unless = f" If that doesn't help, tell the admin of {app}." if is_for_admins(failure) else ""
        return f"Open the link again in a few minutes.{unless}"
    if is_for_admins(failure):
        return f"You can't repair that: tell the admin of {app}. Connect again in {app} afterwards."
    match failure.code:
        case ErrorCode.CONFIRM_REQUIRED:
            return f"Finish in {app}. If it doesn't go on there within two minutes, open this link again."
        case ErrorCode.ACCOUNT_MISMATCH:
            return f"Connect again in {app}, and choose the account that was meant."
        case ErrorCode.SUBJECT_MISMATCH:
            return f"If you meant to connect, do so in {app}, logged in as yourself: it gives you a new link."
        case ErrorCode.MADE_BY_ANOTHER_APP:
            return "You have nothing to do. To give it another account, connect again in that other app."
        case ErrorCode.CHOICE_REQUIRED:
            return "Open this link in the browser in which you gave access."
        case ErrorCode.CONSENT_REQUIRED | ErrorCode.CALLBACK_INVALID if way.here and not way.over:
            return "Open the link again, in this browser."
        case ErrorCode.NOT_FOUND:
            return f"Check that you opened the whole address, or connect again in {app}."
        case ErrorCode.BODY_TOO_LARGE | ErrorCode.INVALID_REQUEST:
            return failure.rule.repair
        case _:
            when = " in a few minutes" if later else ""
            return f"Connect again in {app}{when}: it gives you a new link."
