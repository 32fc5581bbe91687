"""Two client secrets for a while: which is kept, for how long, and what a roll-back leaves."""

from datetime import timedelta

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from tests.conformance.store.samples import an_integration
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

UNTIL = NOW + timedelta(hours=1)


async def an_integration_with(store: Store, secret: str | None) -> Integration:
    made = an_integration()
    async with store.write() as tx:
        return await tx.integrations.put(made, Secret(secret) if secret else None, expected=None)


async def rotated(store: Store, i: Integration, secret: str) -> Integration:
    async with store.write() as tx:
        return await tx.integrations.rotate_secret(i, Secret(secret), until=UNTIL, expected=i.revision)


async def secrets(store: Store, i: Integration) -> tuple[str | None, str | None]:
    async with store.read() as tx:
        found = (await tx.integrations.client_secret(i), await tx.integrations.previous_secret(i))
    return tuple(it and it.reveal() for it in found)  # pyright: ignore[reportReturnType]  # two of them


async def test_a_rotation_keeps_the_secret_before_it_until_the_overlap_ends(store: Store):
    after = await rotated(store, await an_integration_with(store, "one"), "two")
    assert await secrets(store, after) == ("two", "one")
    assert after.previous_secret_is_usable(UNTIL - timedelta(seconds=1))
    assert not after.previous_secret_is_usable(UNTIL)
    async with store.write() as tx:
        assert await tx.integrations.delete_expired_previous_secrets(UNTIL - timedelta(seconds=1)) == 0
        assert await tx.integrations.delete_expired_previous_secrets(UNTIL) == 1
        assert await tx.integrations.delete_expired_previous_secrets(UNTIL) == 0
    assert await secrets(store, after) == ("two", None)


async def test_a_second_rotation_forgets_the_oldest(store: Store):
    first = await rotated(store, await an_integration_with(store, "one"), "two")
    assert await secrets(store, await rotated(store, first, "three")) == ("three", "two")


async def test_a_refused_secret_is_the_one_that_a_rotation_forgets(store: Store):
    first = await rotated(store, await an_integration_with(store, "one"), "mistyped")
    async with store.write() as tx:
        refused = await tx.integrations.replace(
            first.model_copy(update={"secret_refused_at": NOW}), expected=first.revision
        )
        assert await tx.integrations.delete_expired_previous_secrets(UNTIL) == 0  # no other secret works
    assert refused.previous_secret_is_usable(UNTIL)
    after = await rotated(store, refused, "two")
    assert after.secret_refused_at is None
    assert await secrets(store, after) == ("two", "one")


async def test_rolling_back_leaves_one_secret_and_can_be_done_once(store: Store):
    after = await rotated(store, await an_integration_with(store, "one"), "two")
    async with store.write() as tx:
        back = await tx.integrations.restore_previous_secret(after, expected=after.revision)
    assert await secrets(store, back) == ("one", None)
    assert back.previous_secret_until is None
    with fails(ErrorCode.INVALID_REQUEST):
        async with store.write() as tx:
            await tx.integrations.restore_previous_secret(back, expected=back.revision)


async def test_a_secret_that_is_put_has_no_overlap(store: Store):
    after = await rotated(store, await an_integration_with(store, "one"), "two")
    async with store.write() as tx:
        put = await tx.integrations.put(after, Secret("three"), expected=after.revision)
    assert await secrets(store, put) == ("three", None)
    assert not put.previous_secret_is_usable(NOW)
