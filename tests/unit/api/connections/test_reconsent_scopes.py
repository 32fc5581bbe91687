"""What a subject is asked to consent to again: no less than the connection could do."""

from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode
from tests.fakes.api import TENANT, Api

BOTH = ("read_user", "api")


async def asked_again(api: Api, key: str, **more: object) -> set[str]:
    """The scopes of the link that a refused lease comes with."""
    integration = await api.integration()
    connection = await api.active(integration, scopes=BOTH, requested_scopes=BOTH)
    await api.change(connection, lambda c: c.rejected(ErrorCode.GRANT_REJECTED, api.clock.now()))
    api.clock.advance(7200)
    answer = await api.lease(key, **more)
    assert (answer.status_code, answer.json()["code"]) == (409, "consent_required")
    async with api.worker.read() as tx:
        consent = await tx.consents.open_consent(TENANT, connection.id, api.clock.now())
    assert consent is not None
    return set(consent.scopes)


async def test_a_lease_without_scopes_asks_for_what_the_connection_had(api: Api):
    """Not for the integration's default, which is less."""
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    assert await asked_again(api, key) == set(BOTH)


async def test_a_lease_that_needs_one_more_scope_takes_none_from_the_others(api: Api):
    key = await api.app_with("pipeline", Action.TOKEN, Action.CONNECT)
    assert await asked_again(api, key, scopes=["read_repository"]) == {*BOTH, "read_repository"}
