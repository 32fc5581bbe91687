"""Pages that a subject or a person meets on the way, rendered from their templates."""

import json
from datetime import timedelta

from starlette.responses import Response

from evergrant_server.api.pages.browser import html_response
from evergrant_server.console.advice import WayOut
from evergrant_server.console.logos import Parties, Party
from evergrant_server.console.pages import OwnAccount, OwnApproval, OwnDecision, OwnProgram, OwnUse, Pages
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OAuthClientId
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.people.logins import CommandStart
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import PersonSession, SessionKind
from evergrant_server.core.secret import Secret
from tests.e2e.pages.filled import ACCOUNTS, NOON
from tests.fakes.api import TENANT
from tests.fakes.rows import a_connection, a_consent, an_integration

SCOPES = ("repo", "read:user", "offline_access")
LONG_SCOPES = ("https://www.googleapis.com/auth/calendar.readonly", "crm.objects.contacts.read" * 4)


def rendered_pages() -> list[tuple[str, Response]]:
    """The pages that a subject or a person meets on the way, by name."""
    pages = Pages()
    who = Parties(Party("crm-sync"), Party("code"), Party("GitHub"))
    long = Parties(Party("quarterly-report-builder"), Party("erp"), Party("login.sub.acme.example:8443"))
    integration = an_integration(TENANT, NOON)
    connection = a_connection(integration, NOON)
    consent = a_consent(connection, NOON, scopes=SCOPES)
    bare = a_consent(connection, NOON, scopes=())
    code = DeviceCode(
        device_code=Secret("d"),
        user_code="WDJB-MJHT",
        verification_uri="https://github.com/login/device",
        expires_at=NOON + timedelta(minutes=15),
    )
    subject, csrf = "ann@acme.example", "0" * 64
    person = PersonSession.model_construct(
        tenant=TENANT,
        kind=SessionKind.BROWSER,
        person=Person(issuer="https://login.acme.example", sub="ann", name=subject),
        role=PersonRole.TENANT_ADMIN,
        expires_at=NOON + timedelta(hours=12),
    )
    command = CommandStart(port=40001, state="s" * 16, challenge="c" * 43)
    login = {"host": "login.acme.example", "tenant": TENANT, "csrf": csrf}
    back = "https://crm.acme.example/connected"
    expired, rejected = Failure(ErrorCode.CONSENT_EXPIRED), Failure(ErrorCode.CLIENT_REJECTED)
    used = Failure(ErrorCode.CALLBACK_INVALID, "This login was used, or has expired: log in again.")
    rejected.context["reference"] = "K7QD-2M9X"
    html = {
        "consent": pages.connect(parties=who, subject=subject, consent=consent, csrf=csrf),
        "consent-long": pages.connect(
            parties=long, subject=subject, consent=bare, csrf=csrf, login="login.acme.example"
        ),
        "leaving": pages.redirecting(parties=who, to="GitHub", url="/livez").replace("0;url", "600;url"),
        "device": pages.device(parties=who, consent=consent, device=code).replace(
            'content="5"', 'content="600"'
        ),
        "confirm-code": pages.confirm(parties=who, subject=subject, code=Secret("k" * 43)),
        "install": pages.install(provider="Slack", start_url=back),
        "choose": pages.choose(parties=who, options=ACCOUNTS, link="x", csrf=csrf),
        "choose-none": pages.choose(parties=who, options=(), link="x", csrf=csrf),
        "pending": pages.pending(parties=who).replace('content="2"', 'content="600"'),
        "connected": pages.connected(parties=who, subject=subject, account="ann-of-acme", scopes=SCOPES),
        "connected-long": pages.connected(
            parties=long, subject=subject * 4, account=None, scopes=LONG_SCOPES
        ),
        "declined": pages.declined(parties=who, reference="K7QD-2M9X"),
        "expired": pages.failed(expired, WayOut(who, over=True, back=back)),
        "for-admins": pages.failed(rejected, WayOut(who)),
        "login": pages.login(**login, step_up=False, command=None),
        "login-command": pages.login(**login, step_up=True, command=command),
        **_authorizations(pages, subject, csrf),
        **_own(pages, subject, csrf),
        "session": pages.session(session=person, step_up="/login", csrf=csrf),
        "logged-out": pages.logged_out(),
        "not-logged-in": pages.not_logged_in(used),
        "not-authorized": pages.not_authorized(Failure(ErrorCode.CLIENT_UNKNOWN)),
    }
    return [(name, html_response(text)) for name, text in html.items()]


def _own(pages: Pages, subject: str, csrf: str) -> dict[str, str]:
    """A person's own pages."""
    asks = {"query": "tenant=acme", "now": NOON, "csrf": csrf}
    used = OwnUse(NOON - timedelta(minutes=5), "crm-sync", "got access", "api-1/7")
    called = OwnUse(
        NOON - timedelta(hours=3), "assistant", "called GET api.github.com /user/repos", "api-1/3"
    )
    row = a_connection(an_integration(TENANT, NOON, name="code"), NOON - timedelta(days=40))
    accounts = [
        OwnAccount(
            row.__replace__(state=state, label=label),
            Party(name),
            account,
            used if state is LifecycleState.ACTIVE else None,
        )
        for state, name, account, label in (
            (LifecycleState.ACTIVE, "GitHub", subject, "default"),
            (LifecycleState.ACTIVE, "GitHub", "ann-private", "account-2"),
            (LifecycleState.NEEDS_REAUTH, "Salesforce", None, "default"),
            (LifecycleState.REVOKING, "tickets.acme.example", "ann" * 30, "default"),
        )
    ]
    programs = [
        OwnProgram("fam_1", "Coder", "all of your connections", NOON - timedelta(days=2), NOON, None),
        OwnProgram("dlg_1", "assistant", "what its permits allow", NOON - timedelta(hours=1), None, None),
    ]
    call = OwnApproval(
        *("cap_1", "invoice-helper asks to call crm as ann@acme.example: POST /crm/v3/objects/notes"),
        *("Ann asked to have the payment noted.", NOON + timedelta(days=2), True),
    )
    access = OwnApproval(
        "req_1", "report asks for access", "Reconcile the invoices.", NOON + timedelta(days=6)
    )
    body = json.dumps({"properties": {"hs_note_body": "Invoice 2026-114 was paid." * 4}}, indent=2)
    exact = {"method": "POST", "url": "https://api.hubapi.com/crm/v3/objects/notes", "body": body}
    decision = OwnDecision(call, exact, may_approve=True, may_deny=True)
    me = {"person": subject, "said": None, "decides_elsewhere": False, **asks}
    nothing = {**me, "accounts": [], "programs": [], "approvals": None, "decides_elsewhere": True}
    return {
        "me": pages.me(accounts=accounts, programs=programs, approvals=[call, access], **me),
        "me-none": pages.me(**nothing),
        "me-approval": pages.my_approval(decision=decision, step_up=None, **asks),
        "me-approval-login": pages.my_approval(decision=decision, step_up="/login", **asks),
        "me-connection": pages.my_connection(account=accounts[0], uses=[used, called], **asks),
    }


def _authorizations(pages: Pages, subject: str, csrf: str) -> dict[str, str]:
    """The page that asks whether a client may act: of each kind of client."""
    facts = {"tenant": TENANT, "created_at": NOON, "redirect_uris": ()}
    coder = GatewayClient(
        **facts, id=OAuthClientId("cli_1"), client_id="cli_1", kind=ClientKind.REGISTERED, name="Coder"
    )
    url, long = "https://agent.acme-coding-agents.example/clients/desktop.json", "Long" * 19
    known = coder.model_copy(update={"client_id": url, "kind": ClientKind.DOCUMENT, "name": long})
    admins = coder.model_copy(update={"kind": ClientKind.ADMIN, "name": ""})
    asks = {"person": subject, "csrf": csrf}
    own = ["See which of your accounts are connected", "Call their APIs as you: crm, code and 3 more"]
    rights = [
        "Use tickets.acme.example as ann@acme.example: each tool and request that the app agents may use"
    ]
    here = {
        "target": "your connections",
        "rights": own,
        "leads_to": "a program on this computer",
        "then": None,
    }
    there = {"target": "tickets at tickets.acme.example", "rights": rights, "leads_to": "agent.acme.example"}
    return {
        "authorize-device": pages.authorize(
            client=coder, **{**here, "leads_to": None}, **asks, user_code="WDJB-MJHT"
        ),
        "enter-code": pages.enter_code(),
        "device-decided": pages.device_decided(allowed=True),
        "authorize": pages.authorize(client=coder, **here, **asks),
        "authorize-long": pages.authorize(client=known, **there, then="tickets.acme.example", **asks),
        "authorize-admins": pages.authorize(client=admins, **here, **asks),
    }
