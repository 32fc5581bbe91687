"""A stolen gateway signs nobody's authority: attacks with its key file and write access to the rows."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update
from sqlmodel import col

from evergrant_server import audit
from evergrant_server.access.credentials import new_key
from evergrant_server.audit.appending import TreeEnd, main_shard
from evergrant_server.core.access import Action, App, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AppId, PermitId, new_id
from evergrant_server.crypto import KeyPurpose, KeyRing, Role, Signer
from evergrant_server.crypto.bundle import GATEWAY_SECRETS
from evergrant_server.store.access import AppKeyRow, AppRow
from evergrant_server.store.audit_tables import AuditRow, AuditTreeRow
from evergrant_server.store.authority.authenticators import connection_parts, row_mac
from evergrant_server.store.authority.covered_fields import COVERED, GATEWAY_MAY_WRITE
from evergrant_server.store.authority.scan import ALL
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.rows import column_values
from evergrant_server.store.permits import PermitRow
from tests.fakes.api import TENANT, Api
from tests.fakes.failures import fails


@pytest.fixture
def stolen(api: Api, tmp_path: Path) -> KeyRing:
    """The key ring that a gateway's host has."""
    file = tmp_path / "stolen.json"
    KeyRing.open(api.parts.settings.key_path, Role.OPERATOR).export(file, Role.GATEWAY)
    return KeyRing.open(file, Role.GATEWAY)


def signed_by(ring: KeyRing, model: Any) -> dict[str, Any]:
    """The row with the best authenticator that this ring makes, whatever the code of a gateway would sign."""
    content = model.model_dump(mode="json", include=COVERED[type(model)], exclude_defaults=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return column_values(model, mac=ring.sign(type(model).__name__, text))


def test_its_key_file_has_no_secret_that_others_follow_from(api: Api, tmp_path: Path):
    file = tmp_path / "gateway.json"
    KeyRing.open(api.parts.settings.key_path, Role.OPERATOR).export(file, Role.GATEWAY)
    held = json.loads(file.read_text())
    assert set(held) == {"format", "version", "export", "purposes", "subject", "derived", "public"}
    assert set(held["purposes"]) == {"lease"}
    assert set(held["derived"]) == GATEWAY_SECRETS
    for role in (Role.API, Role.WORKER, Role.OPERATOR):
        with fails(ErrorCode.KEY_UNAVAILABLE):
            KeyRing.open(file, role)
    ring = KeyRing.open(file, Role.GATEWAY)
    for purpose in ("sign authority", "audit head", "key sessions", "request proof api"):
        with fails(ErrorCode.KEY_UNAVAILABLE, purpose):
            ring.derive(purpose)


def test_no_row_but_four_kinds_counts_with_its_signature(stolen: KeyRing):
    assert {it.__name__ for it in GATEWAY_MAY_WRITE} == {
        "CallApproval",
        "Connection",
        "Consent",
        "WebhookEvent",
    }
    for model in {*ALL.values()} - GATEWAY_MAY_WRITE.keys():
        with fails(ErrorCode.KEY_UNAVAILABLE, model.__name__):
            row_mac(stolen, model.model_construct())


async def test_an_app_with_a_permit_and_a_key_of_its_own_making_gets_nothing(api: Api, stolen: KeyRing):
    await api.active_for("sync", Action.TOKEN)
    now = api.clock.now()
    app = App(tenant=TENANT, id=AppId(new_id("app")), name="planted", created_at=now)
    permit = Permit(
        tenant=TENANT,
        id=PermitId(new_id("per")),
        app_id=app.id,
        name="all",
        integration="*",
        actions=(Action.ADMIN, Action.TOKEN, Action.EXPORT),
        created_at=now,
    )
    key, text = new_key(stolen, app, now, api.parts.settings.api_key_lifetime)
    async with api.worker.write() as tx:
        for table, model in ((AppRow, app), (AppKeyRow, key), (PermitRow, permit)):
            await tx.connection.execute(insert(table).values(signed_by(stolen, model)))
    for answer in (await api.lease(text), await api.get("/v1/apps", text)):
        assert answer.status_code in (401, 500), answer.text
        assert answer.json()["code"] in ("authority_broken", "unauthenticated")


async def test_another_subjects_connection_is_not_renamed_with_its_key(api: Api, stolen: KeyRing):
    victim, _ = await api.active_for("sync", Action.TOKEN)
    mine = await api.app_with("mine", Action.TOKEN, Action.CONNECT, subjects=("attacker",))
    renamed: Connection = victim.model_copy(update={"subject": "attacker"})
    mac = stolen.sign(*connection_parts(vars(renamed), renamed.target.model_dump(mode="json")))
    for more in ({}, {"generation": 0}):
        async with api.worker.write() as tx:
            values = {"subject": "attacker", "mac": mac, **more}
            await tx.connection.execute(update(ConnectionRow).values(values))
        answer = await api.lease(mine, subject="attacker")
        assert "access_token" not in answer.json()
        assert answer.json()["code"] in ("authority_broken", "consent_required", "seal_broken")


async def test_it_writes_no_end_of_a_tree_but_its_own(api: Api, stolen: KeyRing):
    await api.active_for("sync", Action.TOKEN, Action.ADMIN)
    boss = await api.app_with("boss", Action.ADMIN)
    assert (await api.call("PUT", "/v1/apps/sync", boss, json={})).status_code == 200
    assert (await audit.verify_log(api.worker, TENANT)).ok
    main = main_shard(Role.API)
    with fails(ErrorCode.KEY_UNAVAILABLE, "audit head"):
        TreeEnd.first(stolen, TENANT, main)
    forged = stolen.keyed_hash("audit head gateway", "tree", TENANT, main, 0, "")
    async with api.worker.write() as tx:
        await tx.connection.execute(delete(AuditRow).where(col(AuditRow.tenant) == TENANT))
        ours = update(AuditTreeRow).where(col(AuditTreeRow.tenant) == TENANT)
        await tx.connection.execute(ours.values(size=0, peaks=b"", mac=forged))
    assert not (await audit.verify_log(api.worker, TENANT)).ok


def _altered(signature: str) -> str:
    signer, _, text = signature.partition(".")
    return f"{signer}.{'B' if text[0] == 'A' else 'A'}{text[1:]}"


def test_each_role_verifies_what_the_others_sign(api: Api, stolen: KeyRing, tmp_path: Path):
    full = api.parts.settings.key_path
    file = tmp_path / "api.json"
    KeyRing.open(full, Role.OPERATOR).export(file, Role.API)
    rings = {role: KeyRing.open(full, role) for role in Role} | {Role.API: KeyRing.open(file, Role.API)}
    for signing in (*rings.values(), stolen):
        signature = signing.sign("kind", "content", 7)
        expected = Signer.GATEWAY if signing.role is Role.GATEWAY else Signer.AUTHORITY
        for verifying in (*rings.values(), stolen):
            assert verifying.signer(signature, "kind", "content", 7) is expected
            assert verifying.signer(signature, "kind", "content", 7) is expected  # as remembered
            assert verifying.signer(signature, "kind", "content", 8) is None
            assert verifying.signer(_altered(signature), "kind", "content", 7) is None
        for nothing in (None, "", "authority", "authority.", "nobody.AAAA", "gateway.é", "a" * 64):
            assert signing.signer(nothing, "kind", "content", 7) is None


def test_a_workers_host_holds_every_key(api: Api):
    """What its row of the threat model says: its theft is that of everything."""
    ring = KeyRing.open(api.parts.settings.key_path, Role.WORKER)
    assert all(ring.holds(purpose) for purpose in KeyPurpose)
    assert ring.is_worker_mac(ring.worker_mac("pinned hosts"), "pinned hosts")
    assert ring.signer(ring.sign("app"), "app") is Signer.AUTHORITY
