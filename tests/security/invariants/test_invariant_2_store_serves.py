"""Invariant 2: the workflow coordinates, the store serves."""

from typing import Any

from evergrant_server.core.access import Action
from tests.fakes.api import Api


class Untouchable:
    """Stands for Temporal: any call to it breaks the invariant."""

    def __init__(self) -> None:
        self.touched: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.touched.append(name)
        raise AssertionError(f"a fresh lease reached Temporal: {name}")


async def test_a_fresh_lease_never_touches_temporal(api: Api):
    connection, key = await api.active_for("pipeline", Action.TOKEN)
    untouchable = Untouchable()
    api.parts.link = untouchable  # type: ignore[assignment]  # it answers nothing, on purpose
    api.app.state.refresher._link = untouchable
    for min_ttl in (None, 60, 1800):
        body = {} if min_ttl is None else {"min_ttl": min_ttl}
        assert (await api.lease(key, **body)).status_code == 200
        by_id = await api.post(f"/v1/connections/{connection.id}/token", key, body)
        assert by_id.status_code == 200
    assert untouchable.touched == []


async def test_the_untouchable_link_is_noticed(api: Api):
    """The test above can fail: an expired token does reach the link."""
    _, key = await api.active_for("pipeline", Action.TOKEN)
    untouchable = Untouchable()
    api.app.state.refresher._link = untouchable  # type: ignore[assignment]  # it answers nothing, on purpose
    api.clock.advance(3601)
    assert (await api.lease(key)).status_code == 503
    assert untouchable.touched == ["ensure_fresh"]
