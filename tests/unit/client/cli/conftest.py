"""A server on which `evergrant init` makes all that a first lease needs."""

from pathlib import Path
from typing import Any

import pytest
from evergrant import App
from evergrant.api.models import ApiKey, Permit

from tests.unit.client.scripted_evergrant import (
    SECRET,
    ScriptedEvergrant,
    ScriptedResponse,
    an_integration,
    example,
    page,
    problem,
)

NO_SUCH = problem(404, "BadRequest", "not_found")
FLAGS = ("--provider", "github", "--client-id", "c-1", "--subject", "alice")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(evergrant: ScriptedEvergrant, here: Path) -> ScriptedEvergrant:
    """A server without anything, which accepts all that init makes."""
    key = example(ApiKey, key=SECRET)
    evergrant.script("GET /v1/integrations/github", NO_SUCH)
    evergrant.script(
        "PUT /v1/integrations/github", ScriptedResponse(201, an_integration(name="github", client_id=""))
    )
    evergrant.script("GET /v1/apps/first-app", NO_SUCH)
    evergrant.script("GET /v1/apps/first-app/permits/github", NO_SUCH)
    evergrant.script("PUT /v1/apps/first-app", ScriptedResponse(201, example(App)))
    evergrant.script("PUT /v1/apps/first-app/permits/github", ScriptedResponse(201, example(Permit)))
    evergrant.script("POST /v1/apps/first-app/keys", ScriptedResponse(201, key))
    evergrant.script("GET /v1/connections", page())
    return evergrant


def sent(server: ScriptedEvergrant) -> list[tuple[str, Any]]:
    return [(f"{it.method} {it.path}", it.body) for it in server.requests if it.method != "GET"]
