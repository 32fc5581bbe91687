"""Clients, codes, families of tokens and their tokens, on both databases."""

from datetime import timedelta
from typing import Any

from sqlalchemy import update

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AccessTokenId, AppId, RefreshTokenId, TokenFamilyId, new_id
from evergrant_server.core.oauth.authorizations import (
    AccessToken,
    AuthorizationCode,
    FamilyEnd,
    RefreshToken,
    TokenFamily,
)
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from evergrant_server.store.authority.scan import broken_connections
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import find_one
from evergrant_server.store.oauth.tables import AuthorizationCodeRow, RefreshTokenRow, TokenFamilyRow
from tests.conformance.store.samples import ACME, an_app_of, built
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

DAY = timedelta(days=1)
RESOURCE = "https://gateway.example/mcp"


def a_client(**changes: Any) -> GatewayClient:
    id = new_id("cli")
    values = {"id": id, "client_id": id, "kind": "registered", "name": "Agent"}
    return built(GatewayClient, changes, **values, redirect_uris=("http://127.0.0.1/cb",))


def authorized(app_id: AppId) -> dict[str, Any]:
    return {"client_id": "cli_1", "app_id": app_id, "subject": "alice", "resource": RESOURCE}


def a_code(app_id: AppId, **changes: Any) -> AuthorizationCode:
    values = {"id": new_id("cod"), "code_hash": AuthorizationCode.hash_of("code"), "challenge": "c"}
    ends = {"redirect_uri": "http://127.0.0.1/cb", "expires_at": NOW + timedelta(minutes=1)}
    return built(AuthorizationCode, changes, **authorized(app_id), **values, **ends)


def a_family(app_id: AppId, **changes: Any) -> TokenFamily:
    moments = {"used_at": NOW, "expires_at": NOW + 30 * DAY}
    values = {"id": new_id("fam"), "scopes": ("mcp",), "bound": False}
    return built(TokenFamily, changes, **authorized(app_id), **values, **moments)


def a_refresh_token(family: TokenFamily) -> RefreshToken:
    values = {"tenant": ACME, "family_id": family.id, "secret_hash": "a" * 64, "created_at": NOW}
    return RefreshToken(id=RefreshTokenId(new_id("rtk")), **values)


async def by_hand(store: Store, table: type[Row], **values: Any) -> None:
    async with store.write() as tx:
        await tx.connection.execute(update(table).values(values))


async def test_a_client_is_found_by_what_it_presents_and_deleted_when_unused(store: Store):
    mine, other = a_client(), a_client(kind="admin")
    async with store.write() as tx:
        for client in (mine, other):
            await tx.oauth_clients.add(client)
        with fails(ErrorCode.ALREADY_EXISTS):
            await tx.oauth_clients.add(a_client(client_id=mine.client_id))
        assert await tx.oauth_clients.by_client_id(mine.client_id) == mine
        await tx.oauth_clients.used(mine, NOW + DAY)
        assert await tx.oauth_clients.prune_unused(NOW, NOW + DAY) == 0
        assert await tx.oauth_clients.prune_unused(NOW, NOW + 2 * DAY) == 1
        assert await tx.oauth_clients.page(ACME, None, 5) == [other]


async def test_a_document_that_an_admin_turned_off_is_not_forgotten(store: Store):
    """Its id is public: without the row the next request would read it anew, turned on."""
    off = a_client(kind="document", client_id="https://agent.example/client.json", disabled=True)
    async with store.write() as tx:
        await tx.oauth_clients.add(off)
        assert await tx.oauth_clients.evict_unused(0) == 0
        assert await tx.oauth_clients.prune_unused(NOW + DAY, NOW + DAY) == 0
        await tx.oauth_clients.used(off, NOW)
        assert await tx.oauth_clients.prune_unused(NOW + DAY, NOW + DAY) == 0
        assert await tx.oauth_clients.by_client_id(off.client_id) is not None


async def test_clients_that_were_never_used_give_way_to_new_ones_the_oldest_first(store: Store):
    made = [a_client(kind="document", created_at=NOW + it * DAY) for it in range(5)]
    async with store.write() as tx:
        for client in (*made, a_client(kind="admin", created_at=NOW - DAY)):
            assert await tx.oauth_clients.add_once(client)
        assert not await tx.oauth_clients.add_once(made[0])
        await tx.oauth_clients.used(made[0], NOW)
        assert await tx.oauth_clients.evict_unused(2, limit=1) == 1
        assert await tx.oauth_clients.evict_unused(2) == 1
        left = [it.id for it in made if await tx.oauth_clients.by_client_id(it.client_id)]
        assert left == [made[0].id, made[3].id, made[4].id]
        assert len(await tx.oauth_clients.page(ACME, None, 9)) == 4


async def test_a_code_of_another_hand_is_none(store: Store):
    app = await an_app_of(store)
    code = a_code(app.id)
    async with store.write() as tx:
        await tx.authorization_codes.add(code)
        assert await tx.authorization_codes.by_hash(code.code_hash) == code
        used = code.model_copy(update={"used_at": NOW, "family_id": TokenFamilyId(new_id("fam"))})
        await tx.authorization_codes.replace(used, expected=1)
        with fails(ErrorCode.STORE_CONFLICT):
            await tx.authorization_codes.replace(used, expected=1)
    await by_hand(store, AuthorizationCodeRow, used_at=None)
    async with store.write() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN):
            await tx.authorization_codes.by_hash(code.code_hash)
        assert await tx.authorization_codes.prune(code.expires_at) == 0
        assert await tx.authorization_codes.prune(code.expires_at + DAY) == 1


async def test_a_used_refresh_token_keeps_its_successors_text_sealed(store: Store):
    app = await an_app_of(store)
    family = a_family(app.id)
    first, second = a_refresh_token(family), a_refresh_token(family)
    async with store.write() as tx:
        await tx.token_families.add(family)
        await tx.refresh_tokens.add(first)
        with fails(ErrorCode.NOT_FOUND):
            await tx.refresh_tokens.successor(first)
        used = await tx.refresh_tokens.rotated(first, second, Secret("the next one"))
        assert await tx.refresh_tokens.find(first.id) == used
        again = used.model_copy(update={"replays": 1})
        replayed = await tx.refresh_tokens.replace(again, expected=used.revision)
        assert (await tx.refresh_tokens.successor(replayed)).reveal() == "the next one"
        row = await find_one(tx.connection, RefreshTokenRow, tenant=ACME, id=first.id)
        assert row is not None
        assert b"next" not in bytes(row["sealed_successor"])
    await by_hand(store, RefreshTokenRow, replays=0)
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN):
            await tx.refresh_tokens.find(first.id)


async def test_families_are_counted_ended_and_forgotten_with_their_tokens(store: Store):
    app = await an_app_of(store)
    one, other = a_family(app.id), a_family(app.id, subject="bob")
    token = AccessToken(
        **{"tenant": ACME, "id": AccessTokenId(new_id("atk")), "family_id": one.id, "secret_hash": "b" * 64},
        **{"resource": RESOURCE, "scopes": ("mcp",), "created_at": NOW, "expires_at": NOW + DAY},
    )
    async with store.write() as tx:
        for family in (one, other):
            await tx.token_families.add(family)
        await tx.oauth_tokens.add(token)
        assert await tx.oauth_tokens.find(token.id) == token
        assert await tx.oauth_tokens.count_valid(ACME, one.id, NOW) == 1
        assert await tx.token_families.page(ACME, None, 5, subject="alice") == [one]
        ended = one.model_copy(update={"ended_at": NOW, "end": FamilyEnd.REVOKED})
        await tx.token_families.replace(ended, expected=1)
        assert await tx.token_families.live(ACME, 5, app_id=app.id) == [other]
        assert await tx.oauth_tokens.prune(NOW + DAY) == 0
        assert await tx.token_families.prune(NOW + DAY) == 1
        assert await tx.oauth_tokens.find(token.id) is None


async def test_a_family_that_was_revived_by_hand_is_broken(store: Store):
    app = await an_app_of(store)
    family = a_family(app.id, ended_at=NOW, end="ended")
    async with store.write() as tx:
        await tx.token_families.add(family)
    await by_hand(store, TokenFamilyRow, ended_at=None, end=None)
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN):
            await tx.token_families.get(ACME, family.id)
        assert await tx.token_families.to_end(ACME, family.id) is not None
    assert [it.row async for it in broken_connections(store)] == [family.id]
