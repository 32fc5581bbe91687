"""The table of roles is what a running API answers, and the rules that it keeps."""

from docs.generate import DOCS, PAGES
from tests.security.isolation.roles import ROLES

PAGE = (DOCS / "security/roles.md").read_text(encoding="utf-8")
DECODES, ASKS = "POST /temporal/decode", "POST /v1/questions"
PLANS = "POST /v1/offboardings/plan"
OWN_IMPORTS = "GET /v1/imports"  # who can't import has none
ROWS = {
    cells[0].strip("`"): dict(zip(ROLES, cells[1:], strict=True))
    for line in PAGE.splitlines()
    if (cells := line.strip("| ").split(" | "))[0].startswith("`")
}


def allowed(role: str) -> set[str]:
    """The routes that answered the role with success, or about the state of what it named."""
    return {route for route, cells in ROWS.items() if cells[role][:3] not in ("401", "403", "404")}


def test_the_page_is_current():
    assert PAGES["security/roles.md"]() == PAGE, "run: make docs"


def test_without_a_credential_or_with_that_of_a_disabled_app_or_tenant_there_is_nothing():
    assert len(ROWS) > 50
    assert {cells["no credential"] for cells in ROWS.values()} == {"401"}
    assert {cells["disabled app"] for cells in ROWS.values()} == {"403 app disabled"}
    assert {cells["disabled tenant"] for cells in ROWS.values()} == {"403 tenant disabled"}


def test_without_a_permit_there_are_the_catalogue_and_empty_lists():
    lists = {"GET /v1/connections", "GET /v1/integrations", "GET /v1/access-requests"}
    lists |= {"GET /v1/call-approvals", "GET /v1/delegations"}
    lists |= {"GET /v1/overview", "GET /v1/connections/totals"}  # of nothing
    assert allowed("no permit") == lists | {"GET /v1/providers", "GET /v1/providers/{provider}"}


def test_tokens_leave_for_token_alone_and_refresh_tokens_for_export_alone():
    leases = {"POST /v1/lease"} | {
        f"POST /v1/connections/{{connection_id}}/{what}" for what in ("token", "proof", "signatures")
    }
    exports = {route for route in ROWS if route.endswith("/v1/connections/export")}
    assert len(exports) == 3
    for role in ROLES:
        assert allowed(role) & leases == (leases if role == "token" else set())
        assert allowed(role) & exports == (exports if role == "export" else set())


def test_an_auditor_changes_nothing_and_reads_what_an_admin_reads():
    assert {route for route in allowed("audit") if not route.startswith("GET ")} == {DECODES, ASKS, PLANS}
    reads = {route for route in allowed("admin") if route.startswith("GET ")}
    assert allowed("audit") == reads - {OWN_IMPORTS} | {DECODES, ASKS, PLANS}


def test_stories_alone_reads_connections_and_their_stories_and_nothing_else():
    connection = {f"GET /v1/connections/{{connection_id}}{part}" for part in ("", "/history", "/audit")}
    assert allowed("stories") == allowed("no permit") | connection | {DECODES}
    of_apps = {"POST /v1/call-approvals", "POST /v1/call-approvals/use"}  # to people they answer 400
    assert allowed("person: story_reader") - of_apps == allowed("stories")


def test_who_reads_what_temporal_has_reads_it_there_too():
    readers = {role for role in ROLES if DECODES in allowed(role)}
    histories = {role for role in ROLES if "GET /v1/connections/{connection_id}/history" in allowed(role)}
    assert readers == histories - {"connect"}
