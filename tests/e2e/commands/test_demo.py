"""The demo, as a newcomer runs it: every claim observed; and its person and its search alone."""

import base64
import os
import sys

import pytest

from examples.demo.claims import Claim
from examples.demo.histories import search, timeline
from examples.demo.subject import LostSubject, Subject
from tests.fakes.databases import Postgres, postgres_server
from tests.fakes.platform.compose import finished
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.temporal import running_temporal

__all__ = ["postgres_server"]  # the fixture


@pytest.mark.soak
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_every_claim_of_the_demo_is_observed(database: str, request: pytest.FixtureRequest, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    environment["EVERGRANT_KEY_FILE"] = str(tmp_path / "keys.json")
    if database == "postgresql":
        server: Postgres = request.getfixturevalue("postgres_server")
        environment["EVERGRANT_DATABASE_URL"] = await server.fresh(migrated=False)
    told = await finished([sys.executable, "-m", "examples.demo"], environment, 500)
    assert told.count("✓") == len(Claim), told


async def test_a_wrong_password_is_not_tried_again(tmp_path):
    async with running_authorization_server(tmp_path) as server, Subject(server.user, "wrong") as subject:
        with pytest.raises(LostSubject, match="the login page at"):
            await subject.consent(f"{server.issuer}/login/")


async def test_the_search_finds_a_secret_in_any_shape(tmp_path):
    secret, hidden = "s3cret-value-of-a-token", "another-secret-value"
    shapes = [secret, *(base64.b64encode(b"x" * shift + hidden.encode()).decode() for shift in range(3))]
    async with running_temporal(tmp_path) as server:
        client = await server.client()
        for number, shape in enumerate(shapes):
            await client.start_workflow(
                "NeverRuns", 1, id=f"holder-{number}", memo={"note": f"<{shape}>"}, task_queue="nobody"
            )
        names = [f"holder-{number}" for number in range(len(shapes))]
        assert (await search(client, names, [secret])).found_in == ("holder-0",)
        assert (await search(client, names, [hidden])).found_in == tuple(names[1:])
        assert (await search(client, names, ["not-there"])).found_in == ()
        assert [moment.what for moment in await timeline(client, "holder-0")] == ["begins"]
