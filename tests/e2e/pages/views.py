"""Every page and every view of the console, in a browser at a filled tenant.

    async with running_site(folder) as site: page = await site.log_in(); await site.show(page, view)

Pages of a consent are rendered from their templates at `/shown/NAME`: the flows that lead to each have tests
of their own. The site's host is `HOST`, so that no view has an address of this machine.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page
from starlette.responses import Response

from evergrant_server.api.pages.browser import html_response
from evergrant_server.console.advice import WayOut
from evergrant_server.console.logos import Parties, Party
from evergrant_server.console.pages import OwnAccount, OwnProgram, OwnUse, Pages
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import OAuthClientId
from evergrant_server.core.oauth.clients import ClientKind, GatewayClient
from evergrant_server.core.people.logins import CommandStart
from evergrant_server.core.people.roles import Person, PersonRole
from evergrant_server.core.people.sessions import PersonSession, SessionKind
from evergrant_server.core.secret import Secret
from tests.e2e.flows.test_implicit import running_browser
from tests.e2e.pages.filled import ACCOUNTS, NOON, Filled, fill
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.certificates import loopback_tls
from tests.fakes.http_server import listening, talk_to
from tests.fakes.patience import PATIENCE_S
from tests.fakes.rows import a_connection, a_consent, an_integration

HOST = "evergrant.example"
SCOPES = ("repo", "read:user", "offline_access")
LONG_SCOPES = ("https://www.googleapis.com/auth/calendar.readonly", "crm.objects.contacts.read" * 4)


@dataclass(frozen=True)
class View:
    """A page: its name, its path, what is typed there by labels, and the buttons that are pressed there.
    `{…}` are ids of `Filled`."""

    name: str
    path: str
    presses: tuple[str, ...] = ()
    typed: tuple[tuple[str, str], ...] = ()


def _console(name: str, path: str, *presses: str, **typed: str) -> View:
    return View(f"console-{name}", f"/console/{path}", presses, tuple(typed.items()))


CONSOLE = (
    View("console-overview", "/console"),
    _console("connections", "connections"),
    _console("connections-none", "connections?search=zoe"),
    _console("connections-failing", "connections?state=active&failing=yes"),
    _console("story", "connections/{told}"),
    _console("choosing", "connections/{choosing}"),
    _console("failing", "connections/{failing}"),
    _console("pending", "connections/{pending}"),
    _console("choose", "connections/{choosing}/choose"),
    _console("refresh", "connections/{told}/refresh"),
    _console("revoke", "connections/{told}/revoke"),
    _console("erase", "connections/{told}/erase"),
    _console("absent", "connections/con_0000000000000000000000"),
    _console("connect", "connect?integration=crm"),
    _console("connect-review", "connect?integration=crm&subject=kim@acme.example"),
    _console("connect-link", "connect?integration=crm&subject=kim@acme.example", "Make the link"),
    _console("integrations", "integrations"),
    _console("integration", "integrations/crm"),
    _console("integration-failed", "integrations/erp"),
    _console("integration-failures", "integrations/code"),
    _console("integration-start", "new/integration"),
    _console("integration-new", "new/integration?provider=zendesk"),
    _console("integration-issuer", "new/integration?provider=generic&issuer=https://login.acme.example"),
    _console("integration-edit", "integrations/crm/edit"),
    _console("integration-rotate", "integrations/files/rotate-secret"),
    _console("integration-try", "integrations/crm/try"),
    _console("integration-delete", "integrations/crm/delete"),
    _console("webhooks", "webhooks"),
    _console("webhook", "webhooks/crm-events"),
    _console("webhook-new", "new/webhook"),
    _console("webhook-edit", "webhooks/crm-events/edit"),
    _console("webhook-secret", "webhooks/crm-events/rotate-secret", "Make a new secret"),
    _console("webhook-delete", "webhooks/crm-events/delete"),
    _console("definitions", "definitions"),
    _console("definition", "definitions/acme-crm"),
    _console("definition-version", "definitions/acme-crm/changes?version=2"),
    _console("definition-new", "new/definition?provider=github"),
    _console("imports", "imports"),
    _console("import", "imports/{rehearsed}"),
    _console("import-refused", "imports/{rehearsed}", "Import 2 grants"),
    _console("import-ordered", "imports/{ordered}"),
    _console("providers", "providers"),
    _console("providers-none", "providers?q=no-such-provider"),
    _console("provider", "providers/github"),
    _console("apps", "apps"),
    _console("app", "apps/crm-sync"),
    _console("app-disabled", "apps/an-importer-that-was-replaced"),
    _console("app-new", "new/app"),
    _console("app-new-refused", "new/app", "Make the app", Name="CRM sync"),
    _console("app-edit", "apps/crm-sync/edit"),
    _console("app-disable", "apps/crm-sync/disable"),
    _console("app-delete", "apps/crm-sync/delete"),
    _console("credential-methods", "apps/crm-sync/new/credential"),
    _console("credential-new", "apps/crm-sync/new/credential?method=workload_identity"),
    _console("credential-certificate", "apps/crm-sync/new/credential?method=tls_client_auth"),
    _console("credential-remove", "apps/crm-sync/credentials/signer/remove"),
    _console("permit-new", "apps/crm-sync/new/permit"),
    _console("permit-new-refused", "apps/crm-sync/new/permit", "Show what it reaches", Name="Calls"),
    _console("permit-edit", "apps/invoice-helper/permits/notes"),
    _console("permit-preview", "apps/invoice-helper/permits/notes", "Show what it reaches"),
    _console(
        *("permit-preview-lost", "apps/crm-sync/permits/use", "Show what it reaches"),
        **{"Of an allow: no more than these scopes optional": "crm.objects.deals.read"},
    ),
    _console("permit-remove", "apps/crm-sync/permits/use/remove"),
    _console("key", "apps/report/keys"),
    _console("key-made", "apps/report/keys", "Make the key"),
    _console("key-revoke", "apps/crm-sync/keys/{key_id}/revoke"),
    _console("requests", "requests"),
    _console("requests-all", "requests?state="),
    _console("request", "requests/{request}"),
    _console("request-removal", "requests/{removal}"),
    _console("integration-circuit", "integrations/tickets"),
    _console("approvals", "approvals"),
    _console("rules", "rules"),
    _console("rule-new", "new/rule"),
    _console("rule-edit", "rules/portal"),
    _console("rule-delete", "rules/portal/delete"),
    _console("issuer-new", "new/issuer"),
    _console("issuer-delete", "issuers/staff/delete"),
    _console("clients", "clients"),
    _console("client", "clients/{client}"),
    _console("client-new", "new/client"),
    _console("client-edit", "clients/{client}/edit"),
    _console("client-delete", "clients/{client}/delete"),
    _console("client-login", "client-login"),
    _console("authorizations", "authorizations"),
    _console("authorization-end", "authorizations/{family}/end"),
    _console("people", "people"),
    _console("people-login", "people-login"),
    _console("people-login-delete", "people-login/delete"),
    _console("session-end", "people/{session}/end"),
    _console("agents", "agents"),
    _console("keys", "keys"),
    _console("bulk-orders", "bulk"),
    _console("bulk-order", "bulk/{bulk}"),
    _console("bulk-plan", "bulk/plan?action=refresh&whole=yes&integration=crm"),
    _console("bulk-plan-revoke", "bulk/plan?action=revoke&whole=yes&state=needs_reauth"),
    _console("bulk-plan-label", "bulk/plan?action=label&connection={told}&connection={failing}"),
    _console("bulk-plan-reconnect", "bulk/plan?action=reconnect&whole=yes&state=needs_reauth"),
    _console("campaigns", "campaigns"),
    _console("campaign", "campaigns/{campaign}"),
    _console("campaign-plan", "campaigns/plan?integration=crm&successor=crm-2026&reason=OPS-9&wave_size=2"),
    _console("incidents", "incidents"),
    _console("incident-plan", "incidents/plan?kind=breach&integration=crm"),
    _console("incident-plan-leak", "incidents/plan?kind=leak"),
    _console("incident", "incidents/{incident}"),
    _console("leavers", "leavers"),
    _console("leaver", "leavers/{leaver}"),
    _console("leaver-plan", "leavers/plan?subject=kim@acme.example&reason=HR-7"),
    _console("leaver-plan-nothing", "leavers/plan?subject=nobody&reason=HR-7"),
    _console("agent-call", "call-approvals/{call}"),
    _console("agent-stop", "agents/invoice-helper/stop"),
    _console("reach", "apps/invoice-helper/reach"),
    _console("reach-nothing", "apps/an-importer-that-was-replaced/reach"),
    _console("streams", "streams"),
    _console("audit", "audit"),
    _console("audit-filtered", "audit?action=permit.put&by=app:console"),
    _console("audit-none", "audit?by=app:nobody"),
    _console("audit-record", "audit/{record}"),
    _console("questions", "questions"),
    _console("answer-uses", "questions/{uses}"),
    _console("answer-subject", "questions/{about}"),
    _console("unused", "unused"),
    _console("changes", "changes"),
    _console("detections", "detections"),
    _console("evidence", "evidence?framework=soc2"),
    _console("access", "access"),
    _console("access-allowed", "access?app=crm-sync&connection={told}"),
    _console(
        "access-call", "access?app=invoice-helper&connection={told}&action=proxy&method=POST&path=/crm/v3"
    ),
    _console("access-refused", "access?app=report&connection={told}"),
)
_STRANGERS = (
    View("home", "/"),
    View("reference", "/docs"),
    View("unknown-path", "/no/such/page"),
    View("unknown-link", "/connect/" + "x" * 43),
    View("console-login", "/console/login"),
    View("console-login-refused", "/console/login", ("Log in",)),
)


@dataclass
class Site:
    """A browser's way to a filled tenant."""

    api: Api
    browser: Browser
    filled: Filled
    problems: list[str]
    url: str = f"https://{HOST}"

    async def page(self, **context: Any) -> Page:
        """One of a new browser. What it complains of is in `problems`."""
        page = await self.browser.new_page(ignore_https_errors=True, **context)
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda it: self.problems.append(it.text) if "Policy" in it.text else None)
        return page

    async def log_in(self, page: Page) -> None:
        await page.goto(f"{self.url}/console/login")
        await page.get_by_label("API key").fill(self.filled.key)
        await page.get_by_role("button", name="Log in", exact=True).click()
        await page.get_by_role("heading", name="Overview").wait_for()

    async def revoke_keys(self, name: str) -> None:
        """An app has two live keys at most."""
        app, now = await self.api.app_named(name), self.api.clock.now()
        async with self.api.worker.write() as tx:
            for key in await tx.access.live_keys(TENANT, app.id, now):
                await tx.access.revoke_key(TENANT, key.id, now)

    async def show(self, page: Page, view: View) -> None:
        await page.goto(self.url + view.path.format_map(vars(self.filled)))
        for label, text in view.typed:
            await page.get_by_label(label, exact=True).fill(text)
        for name in view.presses:
            if name == "Make the key":
                await self.revoke_keys("report")
            if name == "Log in":
                await page.get_by_label("API key").fill("evg_key_mistyped")
            async with page.expect_navigation():
                await page.get_by_role("button", name=name, exact=True).click()


@asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """The API over a filled tenant, and a browser that finds it as `HOST`."""
    rendered = dict(_rendered())

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        asked = scope["path"].removeprefix("/shown/")
        await (rendered.get(asked) or api.app)(scope, receive, send)

    ui = "https://temporal.acme.example"
    async with running_api(folder, public_url=f"https://{HOST}", temporal_ui_url=ui) as api:
        filled = await fill(api)
        async with (
            listening(talk_to(app), tls=loopback_tls(folder).server) as port,
            running_browser(f"--host-resolver-rules=MAP {HOST}:443 127.0.0.1:{port}") as browser,
        ):
            yield Site(api, browser, filled, [])


def views() -> tuple[View, ...]:
    """All of them; those of the console need `Site.log_in`."""
    return (*_STRANGERS, *(View(f"page-{name}", f"/shown/{name}") for name, _ in _rendered()), *CONSOLE)


def _rendered() -> list[tuple[str, Response]]:
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
    states = (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH, LifecycleState.REVOKING)
    accounts = [
        OwnAccount(
            a_connection(an_integration(TENANT, NOON), NOON - timedelta(days=40)).__replace__(state=state),
            Party(name),
            account,
            used if state is LifecycleState.ACTIVE else None,
        )
        for state, name, account in zip(
            states, ("GitHub", "Salesforce", "tickets.acme.example"), (subject, None, "ann" * 30), strict=True
        )
    ]
    programs = [
        OwnProgram("fam_1", "Coder", "all of your connections", NOON - timedelta(days=2), NOON, None),
        OwnProgram("dlg_1", "assistant", "what its permits allow", NOON - timedelta(hours=1), None, None),
    ]
    me = {"person": subject, "said": None, **asks}
    return {
        "me": pages.me(accounts=accounts, programs=programs, **me),
        "me-none": pages.me(accounts=[], programs=[], **me),
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
