"""Integrations, apps, keys and permits, and the auditors' view of them."""

from datetime import timedelta

from sqlalchemy import update

from evergrant_server.core.access import Action, App, AppCredential
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant, new_id
from evergrant_server.core.integrations import Endpoints, Integration, RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.store import Store
from evergrant_server.store.access import AppKeyUseRow
from evergrant_server.store.access_review import review_app, review_connection, review_permits
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal
from evergrant_server.store.permits import PermitRow
from tests.conformance.store.samples import (
    ACME,
    a_connection,
    a_key,
    a_permit,
    added,
    an_app,
    an_app_of,
    an_integration,
    built,
)
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def test_an_integration_comes_back_equal_and_keeps_its_secret(store: Store):
    made = an_integration(
        refresh=RefreshRules(rotation=Rotation.GRACE, grace_s=30),
        endpoints=Endpoints(authorization_endpoint="https://a/auth", token_endpoint="https://a/token"),
        params={"shop": "one"},
        scope_ceiling=(),
    )
    async with store.write() as tx:
        await tx.integrations.put(made, Secret("s-1"), expected=None)
    async with store.read() as tx:
        assert await tx.integrations.get(ACME, made.id) == made
        assert await tx.integrations.by_name(ACME, "github") == made
        assert await tx.integrations.find_in_any_tenant(made.id) == made
        assert await tx.integrations.get(Tenant("other"), made.id) is None
        assert await tx.integrations.client_secret(made) == Secret("s-1")


async def test_an_integrations_name_is_taken_once_per_tenant(store: Store):
    async with store.write() as tx:
        await tx.integrations.put(an_integration(), None, expected=None)
        await tx.integrations.put(an_integration(tenant="other"), None, expected=None)
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.integrations.put(an_integration(), None, expected=None)
    async with store.read() as tx:
        assert [it.name for it in await tx.integrations.page(ACME, None, 10)] == ["github"]
        assert await tx.integrations.page(ACME, "github", 10) == []


async def the_app(store: Store, app: App) -> App:
    async with store.read() as tx:
        found = await tx.access.app(ACME, app.id)
    assert found is not None
    return found


async def test_any_change_of_keys_or_permits_moves_the_apps_revision(store: Store):
    app = await an_app_of(store)
    key, permit = a_key(app), a_permit(app)
    revisions = [(await the_app(store, app)).revision]
    for change in (
        lambda tx: tx.access.add_key(key),
        lambda tx: tx.access.put_permit(permit, expected=None),
        lambda tx: tx.access.put_permit(permit.model_copy(update={"subjects": ("a",)}), expected=1),
        lambda tx: tx.access.revoke_key(ACME, key.id, NOW),
        lambda tx: tx.access.delete_permit(permit.model_copy(update={"revision": 2})),
    ):
        async with store.write() as tx:
            await change(tx)
        revisions.append((await the_app(store, app)).revision)
    assert revisions == [1, 2, 3, 4, 5, 6]


async def test_a_key_is_found_by_its_id_alone_and_stays_known_when_revoked(store: Store):
    app = await an_app_of(store)
    key = a_key(app)
    async with store.write() as tx:
        await tx.access.add_key(key)
        revoked = await tx.access.revoke_key(ACME, key.id, NOW)
        assert await tx.access.revoke_key(ACME, key.id, NOW) == revoked
    async with store.read() as tx:
        found = await tx.access.key(key.id)
        assert found == (revoked, await tx.access.app(ACME, app.id))
        assert await tx.access.keys(ACME, app.id) == [revoked]
        assert await tx.access.key("key_none") is None  # type: ignore[arg-type]  # not an id of ours
    with fails(ErrorCode.NOT_FOUND):
        async with store.write() as tx:
            await tx.access.revoke_key(Tenant("other"), key.id, NOW)


async def test_an_app_has_two_live_keys_at_most(store: Store):
    app = await an_app_of(store)
    first, second = a_key(app), a_key(app)
    ended = a_key(app, expires_at=NOW), a_key(app, expires_at=None)  # expired; of an earlier version
    async with store.write() as tx:
        for key in (*ended, first, second):
            await tx.access.add_key(key)
        assert {key.id for key in await tx.access.live_keys(ACME, app.id, NOW)} == {first.id, second.id}
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.access.add_key(a_key(app))
        await tx.access.revoke_key(ACME, first.id, NOW)
        await tx.access.add_key(a_key(app))


async def test_keys_and_permits_need_their_app_and_go_with_it(store: Store):
    app = an_app()
    for orphan in (
        lambda tx: tx.access.add_key(a_key(app)),
        lambda tx: tx.access.put_permit(a_permit(app), expected=None),
        lambda tx: tx.access.delete_permit(a_permit(app)),
        lambda tx: tx.access.delete_app(ACME, app.id),
    ):
        with fails(ErrorCode.NOT_FOUND):
            async with store.write() as tx:
                await orphan(tx)
    async with store.write() as tx:
        await tx.access.put_app(app, expected=None)
        await tx.access.add_key(a_key(app))
        await tx.access.put_permit(a_permit(app), expected=None)
        await tx.access.delete_app(ACME, app.id)
    async with store.read() as tx:
        assert await tx.access.keys(ACME, app.id) == []
        assert await tx.access.permits(ACME, app.id) == []


async def test_apps_and_permits_are_named_once_and_come_back_equal(store: Store):
    app = await an_app_of(store, return_to=("https://app.example/done",))
    permit = a_permit(app, scope_ceiling=("repo",), actions=(Action.TOKEN, Action.CONNECT))
    async with store.write() as tx:
        await tx.access.put_permit(permit, expected=None)
        for twice in (
            lambda: tx.access.put_app(an_app(), expected=None),
            lambda: tx.access.put_permit(a_permit(app), expected=None),
        ):
            with fails(ErrorCode.ALREADY_EXISTS):
                await twice()
    async with store.read() as tx:
        assert await tx.access.permit(ACME, app.id, "read") == permit
        assert await tx.access.permits(ACME, app.id) == [permit]
        named = await tx.access.app_by_name(ACME, "billing")
        assert named is not None
        assert named.return_to == app.return_to
        assert [it.id for it in await tx.access.apps(ACME, None, 5)] == [app.id]
    disabled = named.model_copy(update={"disabled": True})
    async with store.write() as tx:
        after = await tx.access.put_app(disabled, expected=named.revision)
        with fails(ErrorCode.STORE_CONFLICT):
            await tx.access.put_app(named, expected=named.revision)
    assert await the_app(store, app) == after


# --- two client secrets for a while -------------------------------------------------------------

UNTIL = NOW + timedelta(hours=1)


async def an_integration_with(store: Store, secret: str) -> Integration:
    async with store.write() as tx:
        return await tx.integrations.put(an_integration(), Secret(secret), expected=None)


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


async def test_a_secret_that_is_put_has_no_overlap(store: Store):
    after = await rotated(store, await an_integration_with(store, "one"), "two")
    async with store.write() as tx:
        put = await tx.integrations.put(after, Secret("three"), expected=after.revision)
    assert await secrets(store, put) == ("three", None)
    assert not put.previous_secret_is_usable(NOW)


OTHER = Tenant("other")


async def test_permits_are_reviewed_in_pages_with_what_they_reach(store: Store):
    connections = [
        a_connection(subject="user-1"),
        a_connection(subject="user-2"),
        a_connection(subject="user-3", state=LifecycleState.REVOKED),
        a_connection(subject="user-1", integration="crm", integration_id="int_2"),
        a_connection(subject="user-1", tenant=OTHER),
    ]
    for connection in connections:
        await added(store, connection)
    late, early = await an_app_of(store, name="b"), await an_app_of(store, name="a-1", disabled=True)
    foreign = await an_app_of(store, name="a", tenant=OTHER)
    permits = [
        a_permit(early, name="z", integration="*", subjects=("*",), scope_ceiling=()),
        a_permit(late, name="few", integration="*", subjects=("user-1", "user-3", "no")),
        a_permit(late, name="all", integration="github"),
        a_permit(foreign, name="all", integration="*"),
    ]
    keys = [a_key(late), a_key(late, revoked_at=NOW)]
    async with store.write() as tx:
        for permit in permits:
            await tx.access.put_permit(permit, expected=None)
        for minutes, key in enumerate(keys):
            await tx.access.add_key(key)
            used = {"tenant": ACME, "key_id": key.id, "used_at": NOW + timedelta(minutes=minutes)}
            await tx.connection.execute(table_of(AppKeyUseRow).insert(), {**used, "revision": 1})
    async with store.read() as tx:
        found = await review_permits(tx, ACME, None, 10)
        rest = await review_permits(tx, ACME, ("a-1", "z"), 1)
    assert [(it.app, it.permit["name"], it.live_connections) for it in found] == [
        ("a-1", "z", 3), ("b", "all", 2), ("b", "few", 2),
    ]  # fmt: skip
    assert rest == found[1:2]
    assert [(it.app_disabled, it.permit["scope_ceiling"]) for it in found[:2]] == [(True, []), (False, None)]
    assert [it.app_last_used_at for it in found] == [None, *(NOW + timedelta(minutes=1),) * 2]
    assert {it.authentic for it in found} == {True}


async def test_broken_rows_are_shown_and_named(store: Store):
    app = await an_app_of(store, name="a")
    good, bad, key = a_permit(app, name="good"), a_permit(app, name="bad"), a_key(app)
    connection = await added(store, a_connection())
    async with store.write() as tx:
        await tx.access.put_permit(good, expected=None)
        await tx.access.put_permit(bad, expected=None)
        await tx.access.add_key(key)
        for table, id, values in (
            (PermitRow, bad.id, {"actions": ["export"]}),
            (ConnectionRow, connection.id, {"subject": "root"}),
        ):
            mine = columns_equal(table, tenant=ACME, id=id)
            await tx.connection.execute(update(table).where(mine).values(values))
    async with store.read() as tx:
        reviewed = await review_app(tx, ACME, "a", NOW)
        found = await review_connection(tx, ACME, connection.id)
        permits = await review_permits(tx, ACME, None, 10)
        assert await review_app(tx, OTHER, "a", NOW) is None
        assert await review_connection(tx, OTHER, connection.id) is None
        assert await review_connection(tx, ACME, ConnectionId("con_0")) is None
    assert reviewed is not None
    assert found is not None
    assert found[1] is not None
    assert ([it.name for it in reviewed.permits], len(reviewed.keys)) == (["good"], 1)
    (broken,) = reviewed.broken
    assert {(it.code, it.context["row"]) for it in (broken, found[1])} == {
        (ErrorCode.AUTHORITY_BROKEN, bad.id), (ErrorCode.AUTHORITY_BROKEN, connection.id),
    }  # fmt: skip
    assert found[0].subject == "root"
    assert [(it.permit["name"], it.permit["actions"], it.authentic) for it in permits] == [
        ("bad", ["export"], False), ("good", ["token"], True),
    ]  # fmt: skip


async def test_trusted_issuers_whose_keys_are_due_come_first_overdue_and_credentials_are_found_by_theirs(
    store: Store,
):
    app = an_app()
    issuers = {
        name: built(
            TrustedIssuer, {}, id=new_id("iss"), name=name, kind="oidc", issuer=f"https://{name}.example"
        )
        for name in ("later", "sooner", "future")
    }
    due = {"later": -60, "sooner": -120, "future": 60}
    async with store.write() as tx:
        await tx.access.put_app(app, expected=None)
        for name, issuer in issuers.items():
            next_at = {"keys_next_at": NOW + timedelta(seconds=due[name])}
            await tx.trusted_issuers.put(issuer.model_copy(update=next_at), expected=None)
            rule = {
                "method": "workload_identity",
                "parameters": {"issuer_id": issuer.id, "claims": {"a": "b"}},
            }
            credential = built(AppCredential, rule, id=new_id("crd"), app_id=app.id, name=name)
            await tx.credentials.put(credential, expected=None)
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.trusted_issuers.put(
                issuers["later"].model_copy(update={"id": new_id("iss")}), expected=None
            )
    async with store.read() as tx:
        assert [it.name for it in await tx.trusted_issuers.with_due_keys(NOW)] == ["sooner", "later"]
        found = await tx.credentials.of_issuer(ACME, issuers["sooner"].id)
        assert [it.name for it in found] == ["sooner"]
        assert await tx.credentials.of_issuer(Tenant("other"), issuers["sooner"].id) == []
