"""An admin turns on that tokens are bound (RFC 9449) while connections hold bearer tokens.

Their refresh tokens work once. A server that doesn't bind answers with the next one, and that
answer must not be thrown away.
"""

from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok


async def test_a_bearer_grant_outlives_a_server_that_binds_nothing(
    place: Installation, idp: ScriptedProvider
):
    connection = await place.connect(idp)
    async with place.store.write() as tx:
        before = await tx.integrations.get(TENANT, connection.integration_id)
        assert before is not None
        bound = before.model_copy(update={"dpop": True})
        await tx.integrations.put(bound, None, expected=before.revision)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert "dpop" in idp.calls[-1].headers  # it was asked for
    assert (await place.grant(connection))[1].token_type == "Bearer"
    idp.script(ok(token_type="DPoP"))
    assert (await place.ensure_fresh(connection, 2)).generation == 3
    assert (await place.grant(connection))[1].token_type == "DPoP"
    assert idp.refreshes == 2
