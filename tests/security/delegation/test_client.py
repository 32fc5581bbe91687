"""The Python client against the API itself: an agent hands a narrower token to a part of itself."""

from datetime import timedelta

import pytest
from evergrant import AsyncEvergrant, BadRequest, Denied, Lease

from tests.fakes.api import PUBLIC_URL, Api
from tests.fakes.http_server import served
from tests.security.delegation.delegating import Delegating


async def test_an_agent_hands_a_narrower_token_to_a_part_of_itself(api: Api, some: Delegating):
    await api.active(await api.integration())
    await api.active(await api.integration("hr"))
    async with served(api.app) as url, AsyncEvergrant(url, some.keys["front"], issuer=PUBLIC_URL) as agent:
        mine = await agent.delegate(some.id_token())
        five = timedelta(minutes=5)
        less = await agent.delegate(mine.token, integrations=["crm"], scopes=["read_user"], lifetime=five)
        assert (less.expires_in, less.scope, less.session_id) == (300, "read_user", mine.delegation_id)
        assert mine.token not in repr(mine)
        async with AsyncEvergrant(url, less.token) as part:
            lease = await part.lease("crm", "user-1")
            assert isinstance(lease, Lease)
            with pytest.raises(BadRequest, match="hr"):
                await part.lease("hr", "user-1")
        with pytest.raises(BadRequest) as refused:
            await agent.delegate(less.token, integrations=["hr"])
        assert (refused.value.code, refused.value.status) == ("invalid_target", 400)
        (found, _) = [it async for it in agent.delegations(session=mine.delegation_id)]
        assert found.subject == "user-1"
        stop = await agent.stop_delegation(mine.delegation_id, reason="done")
        assert stop.delegations_ended == 2
        async with AsyncEvergrant(url, less.token) as part:
            with pytest.raises(Denied) as ended:
                await part.lease("crm", "user-1")
        assert ended.value.code == "delegation_ended"
