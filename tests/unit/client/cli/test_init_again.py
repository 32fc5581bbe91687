"""`evergrant init` where something is there already: it undoes nothing that works."""

from pathlib import Path
from typing import Any

import pytest
from evergrant import App
from evergrant.api.models import Permit

from tests.unit.client.cli.conftest import FLAGS, NO_SUCH, sent
from tests.unit.client.conftest import Command
from tests.unit.client.scripted_evergrant import (
    SECRET,
    ScriptedEvergrant,
    ScriptedResponse,
    an_integration,
    connection,
    example,
    page,
    problem,
)

pytestmark = pytest.mark.usefixtures("here")

READY: dict[str, Any] = {
    "name": "github",
    "state": "ready",
    "provider": "github",
    "client_id": "c-1",
    "has_client_secret": True,
}
PERMIT: dict[str, Any] = example(Permit, name="github", effect="allow", subjects=["bob"], owner="data")


@pytest.fixture
def used(server: ScriptedEvergrant, here: Path) -> ScriptedEvergrant:
    """A server that has what init makes, and an admin's settings beside it."""
    (here / "secret").write_text(SECRET)
    there = {**READY, "binding": "oidc", "default_scopes": ["read"]}
    server.script("GET /v1/integrations/github", ScriptedResponse(200, an_integration(**there)))
    server.script(
        "POST /v1/integrations/github/rotate-secret", ScriptedResponse(200, an_integration(**READY))
    )
    app = example(App, return_to=["https://a/"], lease_limit=5)
    server.script("GET /v1/apps/first-app", ScriptedResponse(200, app))
    server.script("GET /v1/apps/first-app/permits/github", ScriptedResponse(200, PERMIT))
    return server


def test_init_undoes_nothing_that_works(command: Command, used: ScriptedEvergrant):
    assert command("init", *FLAGS, "--client-secret-file", "secret").status == 0
    rotated, app, permit, _ = (body for _, body in sent(used))
    assert rotated == {"client_secret": SECRET, "overlap_s": 0}
    assert app == {"disabled": False, "return_to": ["https://a/", "http://127.0.0.1/"], "lease_limit": 5}
    assert (permit["subjects"], permit["owner"]) == (["bob", "alice"], "data")
    assert command("init", *FLAGS).status == 0  # the stored secret
    assert used.count("POST /v1/integrations/github/rotate-secret") == 1


@pytest.mark.parametrize("another", [False, True])
def test_init_keeps_a_secret_that_connections_use(command: Command, used: ScriptedEvergrant, another: bool):
    headers = {"evergrant-changed-secret": "client_secret"} if another else {}
    row = ScriptedResponse(200, an_integration(**READY), headers)
    used.script("PUT /v1/integrations/github", row)
    used.script("GET /v1/connections", page(connection()))
    ended = command("init", *FLAGS, "--client-secret-file", "secret")
    assert ended.status == 0
    assert ("evergrant integrations rotate-secret github --client-secret-file" in ended.err) is another
    assert used.count("POST /v1/integrations/github/rotate-secret") == 0
    puts = [each for each in used.requests if each.method == "PUT" and "integrations" in each.path]
    assert [each.query for each in puts] == [{"dry_run": "true"}]


def test_a_servers_url_is_checked_before_anything_is_asked(command: Command, evergrant: ScriptedEvergrant):
    """Nobody registers a client, or types its secret, for a URL that is refused; and nothing stays."""
    url, route = "https://login.example", "/v1/integrations/server"
    row = an_integration(name="server", client_id="", state="failed", issuer=url, registration=None)
    evergrant.script(f"GET {route}", NO_SUCH, ScriptedResponse(200, row))
    evergrant.script(
        f"PUT {route}", problem(424, "ClientMisconfigured", "egress_refused", repair="Allow it.")
    )
    evergrant.script(f"DELETE {route}", ScriptedResponse(204))
    line = ("--provider", url, "--subject", "alice", "--client-id", "c-1", "--client-secret-file", "none")
    ended = command("init", *line)
    assert (ended.status, "egress_refused" in ended.err, "Allow it." in ended.err) == (1, True, True)
    assert ("redirect URI" in ended.err, evergrant.count(f"DELETE {route}")) == (False, 1)
    assert sent(evergrant)[0] == (f"PUT {route}", {"provider": "generic", "issuer": url})
    evergrant.script(f"GET {route}", ScriptedResponse(200, row))
    command("init", *line)
    assert (evergrant.count(f"PUT {route}"), evergrant.count(f"DELETE {route}")) == (2, 1), "it was there"


@pytest.mark.parametrize("registration", [None, "dynamic"])
def test_a_refused_init_says_what_it_leaves(
    command: Command, evergrant: ScriptedEvergrant, registration: str | None
):
    """Nobody knows the redirect URI of a client that the server would have registered."""
    url, route = "https://login.example", "/v1/integrations/server"
    row = an_integration(name="server", client_id="", state="failed", issuer=url, registration=registration)
    evergrant.script(f"GET {route}", NO_SUCH, ScriptedResponse(200, row))
    refused = problem(424, "ClientMisconfigured", "egress_refused")
    evergrant.script(f"PUT {route}", ScriptedResponse(201, row), refused)
    evergrant.script(f"DELETE {route}", ScriptedResponse(204))
    Path("secret").write_text(SECRET)
    line = ("--provider", url, "--subject", "alice", "--client-secret-file", "secret", "--client-id")
    ended = command("init", *line, "" if registration else "c-1")
    assert (ended.status, "egress_refused" in ended.err) == (1, True)
    assert evergrant.count(f"DELETE {route}") == (1 if registration else 0)
    assert ("evergrant integrations delete server" in ended.err) is (registration is None)
    evergrant.script(f"PUT {route}", refused)
    evergrant.script(f"GET {route}", ScriptedResponse(200, row))
    command("init", *line, "" if registration else "c-1")
    assert evergrant.count(f"DELETE {route}") == (1 if registration else 0), "it was there before"


@pytest.mark.parametrize("flags", [("--client-id", "c-2"), ("--client-id", "c-1", "--scope", "repo")])
def test_init_changes_a_client_that_no_connection_uses(
    command: Command, used: ScriptedEvergrant, flags: tuple[str, ...]
):
    line = ("init", "--provider", "github", "--subject", "alice", *flags, "--client-secret-file", "secret")
    assert command(*line).status == 0
    put = sent(used)[0][1]
    assert (put["binding"], put["client_secret"]) == ("oidc", SECRET)
    assert flags[-1] in (put["client_id"], *put.get("default_scopes", ()))
    used.script("GET /v1/connections", page(connection()))
    refused = command(*line)
    assert (refused.status, "--name" in refused.err) == (1, True)
    assert used.count("PUT /v1/integrations/github") == 1


def test_init_moves_no_integration_to_another_provider(command: Command, used: ScriptedEvergrant):
    other = ("--provider", "gitlab", "--name", "github", "--client-id", "c", "--subject", "alice")
    refused = command("init", *other, "--client-secret-file", "secret")
    assert (refused.status, sent(used)) == (1, [])
    assert "the integration github is there already, for github (Give this one another name" in refused.err


def test_init_replaces_no_key_that_another_server_may_accept(
    command: Command, server: ScriptedEvergrant, here: Path
):
    (here / "secret").write_text(SECRET)
    (here / "first-app.key").write_text("evg_of_another_server\n")
    server.script("GET /v1/connections", problem(401, "BadRequest", "unauthenticated"))
    refused = command("init", *FLAGS, "--client-secret-file", "secret")
    assert (refused.status, "rm first-app.key" in refused.err) == (1, True)
    assert (here / "first-app.key").read_text() == "evg_of_another_server\n"


@pytest.mark.parametrize("scope", ["calendar", "email"])
def test_a_scope_that_the_server_does_not_list_is_told(
    command: Command, server: ScriptedEvergrant, here: Path, scope: str
):
    url, route = "https://login.example", "/v1/integrations/server"
    ready = {"name": "server", "client_id": "c-1", "state": "ready", "issuer": url, "provider": "generic"}
    row = an_integration(**ready, supported_scopes=["openid", "email"])
    server.script(f"GET {route}", NO_SUCH, ScriptedResponse(200, row))
    server.script(f"PUT {route}", ScriptedResponse(201, row))
    server.script("GET /v1/apps/first-app/permits/server", NO_SUCH)
    server.script("PUT /v1/apps/first-app/permits/server", ScriptedResponse(201, example(Permit)))
    (here / "secret").write_text(SECRET)
    line = ("--provider", url, "--client-id", "c-1", "--subject", "alice", "--scope", scope)
    ended = command("init", *line, "--client-secret-file", "secret")
    assert (ended.status, "use others: openid email" in ended.err) == (0, scope == "calendar"), ended.err
