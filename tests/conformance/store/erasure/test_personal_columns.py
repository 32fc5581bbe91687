"""What is left of a person: each column of each table is filled, the person erased, and the files are read.

`STAYS` has a decision about every column whose text is still there. A new column fails until somebody has
said that it names no subject; or its table has a `connection_id` or a `subject`, and goes with these.
"""

import re
import secrets
from typing import Any, NamedTuple

from sqlalchemy import JSON, Boolean, Column, DateTime, Float, Integer, LargeBinary, Table, text
from sqlalchemy.types import TypeDecorator

from evergrant_server import audit
from evergrant_server.audit.erasing import Place, erase_naming, erase_object
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.ids import ConnectionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto import Sealed
from evergrant_server.store import Store
from evergrant_server.store.database.columns import METADATA
from evergrant_server.store.erasure.rows import NAMING
from tests.fakes.databases import NOW, files_of, values_in

ACME = Tenant("acme")
# Of each table: why its row stays while its tenant does, and its columns of text.
_CONFIGURATION = (
    "what admins and client programs have set up for all subjects; a permit that names one comes first"
)
_MACHINES = "hashes, ids and moments of apps' credentials and of tokens that were used"
_STAFF = "who administers: sessions go 30 days after their end"
_EVIDENCE = "that something was erased, held or disabled; the name of a subject goes when it is erased itself"
_SHORT = "sealed, for a day"
_INSTALLATION = "keys and processes of the installation, which is no tenant"
STAYS: dict[str, tuple[str, str]] = {
    "admin_login": (_CONFIGURATION, "groups_claim integration issuer mac roles scopes"),
    "agent_stop": (_STAFF, "after by mac reason"),
    "app": (_CONFIGURATION, "denies mac name purpose return_to sponsor sponsor_app"),
    "app_activity": (_MACHINES, "before day"),
    "app_assertion": (_MACHINES, "jti_hash"),
    "app_credential": (_CONFIGURATION, "mac method name parameters"),
    "app_key": (_MACHINES, "mac secret_hash"),
    "app_key_use": (_MACHINES, "key_id"),
    "app_token": (_MACHINES, "app_id confirmation mac method secret_hash"),
    "caller_network": (_MACHINES, "network"),
    "campaign": (_EVIDENCE, "end mac newer newer_name older remind_s"),
    "client_login": (_CONFIGURATION, "claim domains integration issuer mac"),
    "definition": (_CONFIGURATION, "decided_by document findings mac name proposed_by reason rollout state"),
    "delegation_rule": (
        _CONFIGURATION,
        "actors audience claim clients domains issuer_id mac name token_type",
    ),
    "detection_place": (_MACHINES, "shard"),
    "erasure": (_EVIDENCE, "after by hold_id kind mac reason shard state target target_hash"),
    "event_receiver": (
        _CONFIGURATION,
        "account_in audience issuer jwks_uri keys keys_problem kind mac sealed_secret",
    ),
    "idempotency": (_SHORT, "app_id key request_hash sealed_body"),
    "incident": (
        _EVIDENCE,
        "after app app_id beside by digest header integration kind mac note outcomes person reason "
        "state summary",
    ),
    "integration": (
        _CONFIGURATION,
        "after_grant_over binding client_auth client_id default_scopes destination_mac "
        "endpoints identity_provider issuer login mac name on_reconnect params pinned_hosts "
        "problem provider refresh refresh_overrides registration registration_url scope_ceiling "
        "sealed_client_certificate sealed_client_key sealed_client_secret sealed_initial_token "
        "sealed_previous_key sealed_previous_secret sealed_registration_token state",
    ),
    "key_session": (_MACHINES, "mac secret_hash"),
    "offboarding_rule": (
        _CONFIGURATION,
        "issuer mac sponsor sub_from subject_from team_labels team_owner",
    ),
    "legal_hold": (_EVIDENCE, "by end_reason ended_by kind mac reason target target_hash"),
    "oauth_client": (
        _CONFIGURATION,
        "application_type auth_method client_id client_uri jwks jwks_uri kind mac name redirect_uris scopes",
    ),
    "permit": (
        _CONFIGURATION,
        "actions connections effect integration mac methods mode name owner paths priority "
        "provider purpose reason scope_ceiling scopes sources subjects tools",
    ),
    "permit_use": (_MACHINES, "permit_id"),
    "region": ("the installation's, which is no tenant", "name taken_from"),
    "tenant_durability": (_CONFIGURATION, "audit_durability"),
    "person_session": (_STAFF, "kind mac person reason role rule secret_hash"),
    "received_event": (_MACHINES, "event_hash"),
    "tenant_move": (_EVIDENCE, "by counts log mac peer problem root sealed_access secret_hash side state"),
    "tenant_standing": (_EVIDENCE, "mac moved_to phase reason"),
    "trusted_issuer": (_CONFIGURATION, "issuer jwks_uri keys keys_problem kind mac name"),
    "used_subject_token": (_MACHINES, "jti_hash"),
    "webhook": (
        _CONFIGURATION,
        "disabled_by events integration mac name sealed_previous_secret sealed_query sealed_secret url",
    ),
    "process": (_INSTALLATION, "host role roots schema_version seals_with version"),
    "root_key": (_INSTALLATION, "mac purpose service state wrapped"),
}
_CANARY = re.compile(rb"canary:([a-z_0-9]+\.[a-z_0-9]+):")
_BY_NAME = ("connection_id", "subject")


class Filled(NamedTuple):
    """A row in every table, about one subject and one connection."""

    subject: str
    connection: ConnectionId


async def filled(store: Store) -> Filled:
    person = Filled(f"alice-{secrets.token_hex(8)}", ConnectionId(new_id("con")))
    ids: dict[str, str] = {}
    async with store.write() as tx:
        for table in METADATA.sorted_tables:
            if "tenant" in table.c and not table.name.startswith("audit"):
                await tx.connection.execute(table.insert(), _row(table, person, ids))
        about: dict[str, dict[str, Any]] = {
            person.connection: {"label": "a laptop"},
            ids["delegation"]: {"acts_for": {"subject": person.subject}},
            ids["token_family"]: {"client": "a coding agent"},
            "dlg_that_was_pruned": {"subject": person.subject},
            person.subject: {"sub": "1"},
            "per_that_was_deleted": {"subjects": [person.subject]},
            "per_of_others": {"subjects": ["bob"], "note": f"not {person.subject[:5]}"},
        }
        entries = [
            AuditEntry(
                tenant=ACME,
                at=NOW,
                action=AuditAction.LEASE_REFUSED,
                object=object,
                context=RequestContext(by="app:crm", trace_id=secrets.token_hex(16)),
                detail={**detail, "canary": "canary:audit.body:" if object != "per_of_others" else ""},
            )
            for object, detail in about.items()
        ]
        await audit.append_all(tx, entries)
    return person


def _row(table: Table, person: Filled, ids: dict[str, str]) -> dict[str, Any]:
    """A row with a text in each column that says where it is."""
    row = {column.name: _value(table, column, person) for column in table.c}
    for reference in table.foreign_key_constraints:
        for element in reference.elements:
            if element.column.name == "id":
                row[element.parent.name] = ids[element.column.table.name]
    if "id" in table.c:
        mine = table.name == "connection"
        row["id"] = ids[table.name] = person.connection if mine else f"{new_id('evt')}_{table.name}"
    row |= {name: value for name, value in zip(_BY_NAME, person[::-1], strict=True) if name in table.c}
    if table.name == "outbox":
        row |= {"target": connection_workflow_id(ACME, person.connection), "delivered_at": NOW}
    return {**row, "tenant": ACME}


def _value(table: Table, column: Column[Any], person: Filled) -> Any:
    place = f"canary:{table.name}.{column.name}:{secrets.token_hex(4)}"
    match column.type.impl if isinstance(column.type, TypeDecorator) else column.type:
        case Boolean():
            return False
        case Integer():
            return 1
        case Float():
            return 1.0
        case DateTime():
            return NOW
        case LargeBinary():
            return Sealed(place.encode())
        case JSON():
            goes = any(name in table.c for name in _BY_NAME) or (table, column.name) in NAMING
            return {"note": place, "of": {"subject": person.subject if goes else "bob"}}
        case _:
            return place


async def erased(store: Store, person: Filled) -> None:
    """The steps of a subject's erasure: audit records, the connection, other rows, the rest of the log."""
    async with store.write() as tx:
        objects = await tx.personal_rows.objects_of_connection(ACME, person.connection)
        for object in objects + await tx.personal_rows.objects_of_subject(ACME, person.subject):
            assert (await erase_object(tx, ACME, object, None))[1] is None
        assert (await tx.personal_rows.erase_connection(ACME, person.connection)).keys == 1
        await tx.personal_rows.erase_subject(ACME, person.subject)
    await log_erased(store, person.subject)
    await store.forget_old_pages()


async def log_erased(store: Store, subject: str | None) -> None:
    place: Place | None = Place()
    while place is not None:
        async with store.write() as tx:
            _, place = await erase_naming(tx, ACME, subject, place)


async def found(store: Store, url: str) -> set[str]:
    """The columns whose texts are anywhere."""
    texts = [await values_in(store), *await files_of(store, url)]
    return {match.decode() for content in texts for match in _CANARY.findall(content)}


async def test_what_is_left_of_a_person_is_what_was_decided(store: Store, database_url: str):
    person = await filled(store)
    before = await found(store, database_url)
    assert {"connection.label", "consent.return_to", "history.events", "audit.body"} <= before
    if not store.is_sqlite:  # as autovacuum does at any time
        async with store.autocommit() as connection:
            await connection.execute(text("ANALYZE"))
    await erased(store, person)
    decided = {f"{table}.{column}" for table, (_, columns) in STAYS.items() for column in columns.split()}
    assert await found(store, database_url) == decided
    texts = [await values_in(store), *await files_of(store, database_url)]
    assert not [content for content in texts if person.subject.encode() in content]
    assert (await audit.verify_log(store, ACME)).problem is None


async def test_of_a_tenant_evidence_is_left_alone(store: Store, database_url: str):
    await filled(store)
    gone = True
    while gone:
        async with store.write() as tx:
            gone = any(await tx.personal_rows.erase_of_tenant(ACME))
    await log_erased(store, None)
    await store.forget_old_pages()
    kept = {place.partition(".")[0] for place in await found(store, database_url)}
    assert kept == {"erasure", "legal_hold", "tenant_standing"}
    assert (await audit.verify_log(store, ACME)).problem is None


async def test_a_record_that_was_erased_by_hand_or_filled_again_is_found(store: Store):
    await erased(store, await filled(store))
    record, other = METADATA.tables["audit"], METADATA.tables["audit"].c.object == "per_of_others"

    async def problem_after(**values: str | None) -> str | None:
        async with store.write() as tx:
            before = (await tx.connection.execute(record.select().where(other))).mappings().one()
            await tx.connection.execute(record.update().where(other).values(revision=1, **values))
        problem = (await audit.verify_log(store, ACME)).problem
        async with store.write() as tx:
            await tx.connection.execute(record.update().where(other).values(**before))
        return problem

    async with store.read() as tx:
        first = record.select().where(record.c.tenant == ACME, record.c.seq == 0)
        good = (await tx.connection.execute(first)).mappings().one()["erased_mac"]
    empty = {"body": None}
    assert good is not None
    assert await problem_after() is None
    assert await problem_after(**empty) is not None
    assert await problem_after(**empty, erased_mac=good) is not None, "another record's authenticator"
