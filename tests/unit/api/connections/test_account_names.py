"""The account's name in lists: the one of the consent that brought the grant, and not for every app."""

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.connections.account import ConsentAccount
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus
from tests.fakes.api import Api
from tests.fakes.rows import a_consent


async def consented(api: Api, connection: Connection, app: str, came: str, minutes: int = 0) -> None:
    """A consent of this app that brought the connection's grant, `minutes` later than now."""
    api.clock.advance(60 * minutes)
    about = {"status": ConsentStatus.DONE, "app_id": (await api.app_named(app)).id}
    async with api.worker.write() as tx:
        consent = a_consent(connection, api.clock.now(), **about)
        await tx.consents.add(consent, None, account=ConsentAccount(came=came))


async def name_for(api: Api, key: str, query: str = "?accounts=true") -> str | None:
    answer = await api.get(f"/v1/connections{query}", key)
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["items"]
    return row["account"]


async def test_the_name_is_for_who_leases_the_account_or_has_made_the_connection(api: Api):
    connection = await api.active(await api.integration())
    maker = await api.app_with("shop", Action.CONNECT)
    others = {
        action: await api.app_with(f"app-{action.value}", action)
        for action in (Action.TOKEN, Action.CONNECT, Action.PROXY, Action.ADMIN, Action.AUDIT)
    }
    await consented(api, connection, "shop", "ann@example.org")
    assert await name_for(api, maker) == "ann@example.org"
    assert await name_for(api, maker, "") is None, "only where it is asked for"
    named = {action: await name_for(api, key) for action, key in others.items()}
    assert named == {**dict.fromkeys(others), Action.TOKEN: "ann@example.org"}


async def test_a_consent_that_was_only_begun_hides_no_name_and_a_newer_grant_has_its_own(api: Api):
    connection = await api.active(await api.integration())
    key = await api.app_with("shop", Action.TOKEN)
    assert await name_for(api, key) is None
    await consented(api, connection, "shop", "ann@example.org")
    async with api.worker.write() as tx:
        await tx.consents.add(a_consent(connection, api.clock.now(), status=ConsentStatus.OPEN), None)
    assert await name_for(api, key) == "ann@example.org"
    await consented(api, connection, "shop", "ann@example.com", minutes=1)
    assert await name_for(api, key) == "ann@example.com"


@pytest.mark.parametrize("came", ["ann@example.org", ""])
async def test_a_chosen_account_is_named_too(api: Api, came: str):
    connection = await api.active(await api.integration(), choice="org-7")
    key = await api.app_with("shop", Action.TOKEN)
    await consented(api, connection, "shop", came)
    assert await name_for(api, key) == ", ".join(filter(None, (came, "org-7")))
