"""A permit of an app above the caller that insists on exact scopes: it is met by a narrower token."""

from tests.fakes.api import Api
from tests.security.delegation.delegating import Delegating
from tests.unit.api.leases.test_narrower_leases import EXACT_PERMIT, narrows, wide


async def test_a_permit_above_that_insists_is_met_as_the_callers_own_is(
    api: Api, some: Delegating, admin: str
):
    await wide(api)
    narrows(api)
    await api.call("DELETE", "/v1/apps/front/permits/only", admin)
    await some.put("/v1/apps/front/permits/exact", EXACT_PERMIT)
    child = await some.handed(await some.token(), "back")
    leased = await api.lease(child, scopes=["read"])
    assert (leased.status_code, leased.json().get("scopes")) == (200, ["read"]), leased.text
