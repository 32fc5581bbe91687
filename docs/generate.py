"""Writes the reference pages that are made from code, so that they can't drift from it.

    python docs/generate.py

A test renders them again and compares. The prose pages around them are written by hand.
"""

import json
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path

from pydantic_core import PydanticUndefined

from docs import events_page, provider_pages, telemetry_page
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import FAILURES, FailureKind, Repairer, RetryAdvice
from evergrant_server.settings import Settings
from providers.definition.schema import ProviderSpec

DOCS = Path(__file__).parent
NOTE = "<!-- Made by `make docs` from the code. Change the code, not this page. -->\n"

REPAIRER = {
    Repairer.SUBJECT: "the subject: the person or team whose account it is",
    Repairer.INTEGRATION_ADMIN: "the admin of the integration",
    Repairer.TIME: "time; nobody has to act",
    Repairer.PERMIT_ADMIN: "the admin of the app's permits",
    Repairer.OPERATOR: "the operator of this Evergrant",
    Repairer.CALLER: "whoever wrote the request",
}
RETRY = {
    RetryAdvice.NEVER: "The same request fails again until somebody acts.",
    RetryAdvice.AFTER_REPAIR: "Evergrant looks again slowly by itself: an admin may have acted.",
    RetryAdvice.BACKOFF: "Try again later; waits grow, and `Retry-After` is honoured.",
}
WHEN = {
    AuditAction.LEASE_ISSUED: "an access token was handed to an app",
    AuditAction.ACCOUNT_CHOICE_REQUESTED: "the grant reaches several accounts, and somebody has to choose one",
    AuditAction.ACCOUNT_CHOSEN: "the account is known: the only one, the one asked for, or a chosen one",
    AuditAction.DPOP_PROOF_ISSUED: "an app got a proof for one request with a token that is bound to a key",
    AuditAction.LEASE_REFUSED: "an app asked and was refused",
    AuditAction.CONNECTION_CREATED: "a connection was opened",
    AuditAction.CONNECTION_IMPORTED: "a grant came in with its tokens, from a system outside",
    AuditAction.CONNECTION_EXPORTED: "a connection's tokens were sealed to the key of an export",
    AuditAction.EXPORT_REQUESTED: "an admin asked for an export; names the key's thumbprint",
    AuditAction.CONNECTIONS_EXPORTED: "the sealed lines of an export were handed out, all of them",
    AuditAction.EXPORT_DELETED: "the sealed lines of an export were deleted",
    AuditAction.CONSENT_STARTED: "the subject went on from the connect page to the provider",
    AuditAction.CONSENT_GRANTED: "the provider sent the subject back with a code",
    AuditAction.CONSENT_DENIED: "the subject, or the provider for them, said no",
    AuditAction.CONSENT_EXPIRED: "nobody finished the consent before its deadline",
    AuditAction.CONSENT_FAILED: "there was a code, but no grant came of it",
    AuditAction.CALLBACK_REFUSED: "a callback didn't belong to an open consent in that browser",
    AuditAction.GRANT_INSTALLED: "the first grant of a consent was stored",
    AuditAction.GRANT_REFRESHED: "a refresh replaced the grant",
    AuditAction.REFRESH_FAILED: "a refresh was tried and failed",
    AuditAction.NEEDS_REAUTH: "the grant is lost; the subject has to consent again",
    AuditAction.CONNECTION_FAILING: "refreshes keep failing; whoever can repair it should look",
    AuditAction.CONNECTION_RECOVERED: "it works again after it had been failing, or had needed a consent",
    AuditAction.CONNECTION_EXPIRING: "the refresh token, or a grant that can't be refreshed, ends soon",
    AuditAction.SECURITY_EVENT: "a provider's security event or hook came in, signed, and was handled",
    AuditAction.RECEIVER_PUT: "the receiver of an integration's security events was created or changed",
    AuditAction.RECEIVER_DELETED: "the receiver of an integration's security events was deleted",
    AuditAction.PROVIDER_REPORT_RECEIVED: "the provider told something that does not end the grant: it is older, "
    "or only a refresh can tell",
    AuditAction.REVOKED_AT_PROVIDER: "the provider said that the subject, or it, ended the grant over there",
    AuditAction.SENT_TWICE: "a worker was stopped past its deadline, and a credential left two of them",
    AuditAction.LATE_TOKENS_RECEIVED: "an answer that had been given up came: it is looked at before it is used, "
    "or revoked when its connection has ended",
    AuditAction.REAUTHORIZATION_REQUESTED: "somebody asked for a new consent",
    AuditAction.TOKEN_REPORTED: "an app said that the provider's API refuses the token of a generation",
    AuditAction.SOURCE_APP_CHANGED: "another app asked for the exchange; it is made in that one's name now",
    AuditAction.REVOCATION_REQUESTED: "somebody asked for revocation; no lease leaves from here on",
    AuditAction.REVOCATION_FAILED: "the provider didn't confirm; it is tried again",
    AuditAction.REVOKED: "the provider confirmed, or is declared to have no revocation endpoint",
    AuditAction.HISTORY_EXPORTED: "a run of the connection's workflow was copied into the store",
    AuditAction.INTEGRATION_PUT: "an integration was created or changed",
    AuditAction.CLIENT_REGISTERED: "the issuer registered us as a client, and made the client id",
    AuditAction.METADATA_CHANGED: "an issuer's metadata was read again, and its endpoints replaced",
    AuditAction.METADATA_REFUSED: "an issuer's metadata would weaken what is pinned, which stays",
    AuditAction.SECRET_ROTATED: "a new client secret came first; the one before it is kept for an overlap",
    AuditAction.SECRET_ROLLED_BACK: "the client secret before the rotation is the only one again",
    AuditAction.SECRET_REFUSED: "the provider refused the new client secret and took the one before it",
    AuditAction.SECRET_ACCEPTED: "the provider took the new client secret, which it had refused before",
    AuditAction.INTEGRATION_DELETED: "an integration was deleted",
    AuditAction.INTEGRATION_DISCOVERED: "an issuer's metadata was read, or could not be",
    AuditAction.DEFINITION_PROPOSED: "a version of a provider's definition was proposed",
    AuditAction.DEFINITION_CHECKED: "a worker checked it; names what it found wrong",
    AuditAction.DEFINITION_APPROVED: "an admin approved it",
    AuditAction.DEFINITION_REJECTED: "an admin rejected it, or nobody decided in time",
    AuditAction.DEFINITION_STAGED: "it serves a share of the connections from here on",
    AuditAction.DEFINITION_ACTIVATED: "it serves every connection of its provider",
    AuditAction.DEFINITION_ROLLED_BACK: "the version before serves again: it failed, or an admin said so",
    AuditAction.APP_PUT: "an app was created or changed",
    AuditAction.APP_DELETED: "an app was deleted",
    AuditAction.KEY_CREATED: "an API key was made",
    AuditAction.KEY_REVOKED: "an API key was revoked",
    AuditAction.PERMIT_PUT: "a permit was created or changed",
    AuditAction.PERMIT_DELETED: "a permit was deleted",
    AuditAction.WEBHOOK_PUT: "a webhook was created or changed",
    AuditAction.WEBHOOK_DELETED: "a webhook was deleted, with its log and what waited",
    AuditAction.WEBHOOK_SECRET_ROTATED: "a webhook got a new signing secret; says the overlap in seconds",
    AuditAction.WEBHOOK_DISABLED: "a webhook's endpoint answered 410, or failed for too long; says which",
    AuditAction.WEBHOOK_TESTED: "somebody had a ping sent to a webhook",
    AuditAction.DELIVERY_REPLAYED: "somebody had a delivery sent again",
}


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def errors() -> str:
    lines = [
        NOTE,
        "# Errors",
        "",
        "Every failure has a stable code and is sorted by who repairs it. On the wire it is an RFC 9457",
        "problem document (`application/problem+json`) whose `code` is one of these; the same table decides",
        "what workflows try again. `detail` says what happened this time, and never holds a secret.",
    ]
    for kind in FailureKind:
        rules = [(code, rule) for code, rule in FAILURES.items() if rule.kind is kind]
        for repairer in dict.fromkeys(rule.repairer for _, rule in rules):
            lines += ["", f"## {kind.value}", "", f"Repaired by {REPAIRER[repairer]}."]
        for retry in dict.fromkeys(rule.retry for _, rule in rules):
            lines.append(RETRY[retry])
        rows = [(f"`{code.value}`", str(rule.status), rule.meaning, rule.repair) for code, rule in rules]
        lines += ["", *table(("code", "HTTP", "meaning", "what to do"), rows)]
    return "\n".join(lines) + "\n"


def settings() -> str:
    rows = [
        (f"`EVERGRANT_{name.upper()}`", default_of(field.default), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        [
            NOTE,
            "# Settings",
            "",
            "A command's flag wins over the environment, the environment over the file `evergrant.env` in",
            "the working directory, the file over the default. Durations are seconds or ISO 8601 (`PT10M`);",
            "lists are separated by commas. A setting that can't be used stops the start with one line that",
            "names it.",
            "",
            *table(("setting", "default", "what it does"), rows),
            "",
        ]
    )


def default_of(value: object) -> str:
    """How a default reads in the table."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, timedelta):
        return f"{value.days} days" if value.days else f"{value.seconds} s"
    if value is None or value in ("", ()):
        return "empty"
    return f"`{value}`"


def audit_actions() -> str:
    rows = [(f"`{action.value}`", WHEN[action]) for action in AuditAction]
    return "\n".join(
        [
            NOTE,
            "# Audit actions",
            "",
            "Every record names the tenant, when, the action, the object's id, who asked (`app:…`,",
            "`subject`, `operator`, `schedule`) and the trace id; what a workflow decided also names its run",
            "and event. Records are chained by hash within one lane, with gapless numbers, which",
            "`python -m evergrant_server audit verify` checks.",
            "",
            *table(("action", "recorded when"), rows),
            "",
        ]
    )


def provider_schema() -> str:
    """For editors: `# yaml-language-server: $schema=…` at the top of a definition."""
    schema = ProviderSpec.model_json_schema()
    schema["title"] = "A provider of Evergrant's catalogue"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "reference/settings.md": settings,
    "reference/audit.md": audit_actions,
    "reference/events.md": lambda: events_page.page(NOTE, table),
    "reference/event.schema.json": events_page.schema,
    "telemetry.md": lambda: telemetry_page.page(NOTE, table),
    "reference/provider.schema.json": provider_schema,
    **{name: partial(provider_pages.render_page, name, NOTE) for name in provider_pages.page_names()},
}


def main() -> None:
    for name, render in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(render(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
