"""Every page and every view of the console, as `site.Site` shows them.

Pages of a consent are rendered from their templates at `/shown/NAME`: the flows that lead to each have tests
of their own.
"""

from dataclasses import dataclass

from tests.e2e.pages.rendered import rendered_pages


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
    _console("agent-new", "new/agent"),
    _console("agent-edit", "agents/invoice-helper/edit"),
    _console("keys", "keys"),
    _console("bulk-orders", "bulk"),
    _console("bulk-order", "bulk/{bulk}"),
    _console("bulk-plan", "bulk/plan?action=refresh&whole=yes&integration=crm"),
    _console("bulk-plan-revoke", "bulk/plan?action=revoke&whole=yes&state=needs_reauth"),
    _console("bulk-plan-label", "bulk/plan?action=label&connection={told}&connection={failing}"),
    _console("bulk-plan-reconnect", "bulk/plan?action=reconnect&whole=yes&state=needs_reauth"),
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
    _console("stream-new", "new/stream"),
    _console("stream-edit", "streams/siem/edit"),
    _console("stream-secret", "streams/siem/rotate-secret", "Make a new secret"),
    _console("stream-delete", "streams/siem/delete"),
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


def views() -> tuple[View, ...]:
    """All of them; those of the console need `Site.log_in`."""
    return (*_STRANGERS, *(View(f"page-{name}", f"/shown/{name}") for name, _ in rendered_pages()), *CONSOLE)
