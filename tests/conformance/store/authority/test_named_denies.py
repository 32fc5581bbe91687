"""An app names its permits that deny: one that another hand deletes is missed."""

import pytest
from sqlalchemy import delete

from evergrant_server.core.access import Effect, Permit
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from evergrant_server.store import Store
from evergrant_server.store.access import AppRow
from evergrant_server.store.access_review import review_app, review_permits
from evergrant_server.store.authority.scan import accept, broken_configuration
from evergrant_server.store.database.rows import columns_equal, find_one
from evergrant_server.store.permits import PermitRow
from tests.conformance.store.samples import ACME, built
from tests.conformance.store.test_authority import APP, PERMIT, broken, by_hand, filled
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

DENY = built(
    Permit,
    {"app_id": APP.id},
    id="per_1111111111111111111111",
    name="never",
    integration="*",
    actions=("export",),
    effect="deny",
    created_at=NOW,
)


async def denied(store: Store) -> None:
    await filled(store)
    async with store.write() as tx:
        await tx.access.put_permit(DENY, expected=None)


async def lose(store: Store) -> None:
    async with store.write() as tx:
        await tx.connection.execute(delete(PermitRow).where(columns_equal(PermitRow, id=DENY.id)))


async def test_a_deny_that_was_deleted_by_hand_is_missed_until_the_app_is_accepted(store: Store):
    await denied(store)
    assert await broken(store) == set()
    await lose(store)
    async with store.read() as tx:
        app = await tx.access.app(ACME, APP.id)
        assert app is not None
        with fails(ErrorCode.AUTHORITY_BROKEN, APP.id):
            await tx.access.permits_of(app)
        reviewed = await review_app(tx, ACME, APP.name, NOW)
        assert reviewed is not None
        assert [it.context["row"] for it in reviewed.broken] == [APP.id]
        assert [it.authentic for it in await review_permits(tx, ACME, None, 10)] == [False]
    (named,) = await broken_configuration(store)
    assert (named.row, DENY.id in named.failure.detail) == (APP.id, True)
    async with store.write() as tx:
        other = PERMIT.model_copy(update={"id": new_id("per"), "name": "later", "effect": Effect.DENY})
        await tx.access.put_permit(other, expected=None)
    assert await broken(store) == {APP.id}, "a new deny doesn't stand for the old one"
    assert await accept(store, {APP.id}) == [APP.id]
    assert await broken(store) == set()
    async with store.read() as tx:
        app = await tx.access.app(ACME, APP.id)
        assert app is not None
        assert app.denies == (other.id,)
        assert len(await tx.access.permits_of(app)) == 2


@pytest.mark.parametrize("denies", [[], None], ids=["none", "of before"])
async def test_an_app_that_no_longer_names_its_denies_was_changed_by_hand(
    store: Store, denies: list[str] | None
):
    await denied(store)
    await lose(store)
    await by_hand(store, AppRow, APP.id, denies=denies)
    assert await broken(store) == {APP.id}
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN, APP.id):
            await tx.access.app(ACME, APP.id)


async def test_a_deny_that_became_an_allow_again_by_an_old_row_is_missed(store: Store):
    """The row is authentic: it is the permit as it was before."""
    await filled(store)
    async with store.read() as tx:
        before = await find_one(tx.connection, PermitRow, tenant=ACME, id=PERMIT.id)
    assert before is not None
    async with store.write() as tx:
        deny = PERMIT.model_copy(update={"effect": Effect.DENY, "scope_ceiling": None})
        await tx.access.put_permit(deny, expected=1)
    assert await broken(store) == set()
    await by_hand(store, PermitRow, **before)
    assert await broken(store) == {APP.id}


async def test_an_app_names_what_denies_it_now(store: Store):
    async def named() -> tuple[str, ...] | None:
        async with store.read() as tx:
            app = await tx.access.app(ACME, APP.id)
            return None if app is None else app.denies

    await filled(store)
    assert await named() == ()
    async with store.write() as tx:
        await tx.access.put_permit(DENY, expected=None)
    assert await named() == (DENY.id,)
    async with store.write() as tx:
        app = await tx.access.app(ACME, APP.id)
        assert app is not None
        await tx.access.put_app(app.model_copy(update={"denies": None}), expected=app.revision)
    assert await named() == (DENY.id,), "a put of the app forgets none"
    async with store.write() as tx:
        await tx.access.put_permit(DENY.model_copy(update={"effect": Effect.ALLOW}), expected=1)
    assert await named() == ()
    async with store.write() as tx:
        await tx.access.delete_permit(await tx.access.put_permit(DENY, expected=2))
    assert await named() == ()
    assert await broken(store) == set()


async def test_apps_of_an_earlier_version_name_their_denies_at_the_upgrade(store: Store):
    await denied(store)
    async with store.write() as tx:
        app = await tx.access.app(ACME, APP.id)
        assert app is not None
        await tx.access.replace(app.model_copy(update={"denies": None}), expected=app.revision)
    assert await broken(store) == set()
    await accept(store)
    await lose(store)
    assert await broken(store) == {APP.id}
