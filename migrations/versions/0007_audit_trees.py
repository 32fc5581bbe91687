"""Audit records get bodies, stored as they are hashed, and Merkle trees take the place of hash chains.

Records of before keep their hashes: their body is the canonical JSON that rule 1 has hashed. The chains end
here; the first tree of each tenant records how.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_PAGE = 2_000  # records that are rewritten at a time
_KEY = ("tenant", "shard", "seq")
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
)
_ACCESS = "({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS))
_ENDS = (
    "action IN ("
    "'app.deleted', 'app.put', 'app.agent_stopped', 'app.denies_changed', "
    "'approval.requested', 'approval.used', 'call_approval.denied', 'call_approval.expired', "
    "'call_approval.used', 'credential.deleted', 'delegation.stopped', 'key.revoked', "
    "'permit.deleted', 'resource_token.revoked', 'connection.revocation_requested', "
    "'connection.revoked', 'session.ended', 'tenant.disabled', 'tenant.enabled', "
    "'token_family.ended', 'token_family.replayed', 'admin_login.deleted', "
    "'client_login.deleted', 'delegation_rule.deleted', 'trusted_issuer.deleted'"
    ")"
)
_BIRTHS = "action IN ('audit.shard_begun', 'audit.shard_lost')"
_LEASES = "('lease.issued', 'lease.dpop_proof_issued', 'proxy.called')"
_INDEXES = (
    ("ix_audit_access", ("tenant", "at"), _ACCESS),
    ("ix_audit_birth", ("tenant", "object"), _BIRTHS),
    ("ix_audit_end", ("tenant", "object"), _ENDS),
    ("ix_audit_tenant_at", ("tenant", "at"), None),
    ("ix_audit_object", ("tenant", "object", "at"), f"action NOT IN {_LEASES}"),
)
_MOMENT = sa.DateTime(timezone=True)
_BEFORE = sa.table(
    "audit_chained",
    *(sa.column(name) for name in ("tenant", "shard", "seq", "action", "object", "by", "trace_id", "detail")),
    *(sa.column(name) for name in ("workflow_id", "run_id", "event_id", "previous_hash", "hash")),
    sa.column("at", _MOMENT),
    *(sa.column(name) for name in ("erased_mac", "revision")),
)
_AUDIT = sa.table(
    "audit",
    *(sa.column(name) for name in ("tenant", "shard", "seq", "action", "object", "body", "leaf")),
    sa.column("at", _MOMENT),
    *(sa.column(name) for name in ("erased_mac", "revision")),
)
_FILED = (
    "INSERT INTO audit_filed (tenant, revision, object, at, shard, seq)"
    f" SELECT tenant, 1, object, at, shard, seq FROM audit WHERE action IN {_LEASES}"
    " ORDER BY tenant, object, at, shard, seq"
)
# One tenant's leases in one statement: looked at once more, appended, counted. False: something isn't as it
# was, or is being changed; nothing is written then. Each statement of a VOLATILE function sees, in READ
# COMMITTED, what has committed before it begins: the rows are read after the locks.
_DROPPED = """
DROP FUNCTION record_leases(
    varchar, varchar, bigint, varchar, varchar, varchar, varchar[], varchar[], integer[], integer[],
    varchar[], integer[], timestamptz[], varchar[], varchar[], varchar[], varchar[], text[], varchar[]
)
"""
_RECORD_LEASES = """
CREATE FUNCTION record_leases(
    of_tenant varchar, of_shard varchar,
    old_size bigint, old_peaks bytea, old_mac varchar, new_peaks bytea, new_mac varchar,
    locks varchar[], connections varchar[], revisions integer[], generations integer[],
    apps varchar[], app_revisions integer[],
    moments timestamptz[], actions varchar[], objects varchar[], bodies text[], leaves bytea
) RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    unchanged integer;
BEGIN
    SELECT count(*) INTO unchanged FROM unnest(locks) AS named(id)
    WHERE pg_try_advisory_xact_lock_shared(hashtextextended(named.id, 0));
    IF unchanged < cardinality(locks) THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO unchanged
    FROM unnest(connections, revisions, generations) AS named(id, revision, generation)
    JOIN connection c ON c.tenant = of_tenant AND c.id = named.id AND c.revision = named.revision
    AND c.generation = named.generation AND c.state IN ('active', 'needs_reauth');
    IF unchanged < cardinality(connections) THEN
        RETURN false;
    END IF;
    SELECT count(*) INTO unchanged FROM unnest(apps, app_revisions) AS named(id, revision)
    JOIN app a ON a.tenant = of_tenant AND a.id = named.id AND a.revision = named.revision AND NOT a.disabled
    JOIN tenant_standing s ON s.tenant = of_tenant AND s.id = of_tenant AND NOT s.disabled;
    IF unchanged < cardinality(apps) THEN
        RETURN false;
    END IF;
    UPDATE audit_tree e
    SET size = old_size + cardinality(bodies), peaks = new_peaks, mac = new_mac, revision = e.revision + 1
    WHERE e.tenant = of_tenant AND e.shard = of_shard
    AND e.size = old_size AND e.peaks = old_peaks AND e.mac = old_mac;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO audit (tenant, shard, seq, at, action, object, body, leaf, revision)
    SELECT of_tenant, of_shard, old_size + r.n - 1, r.moment, r.action, r.object, r.body,
        substring(leaves FROM (32 * (r.n - 1) + 1)::integer FOR 32), 1
    FROM unnest(moments, actions, objects, bodies)
    WITH ORDINALITY AS r(moment, action, object, body, n);
    INSERT INTO usage AS u (tenant, connection_id, leased_generation, revision)
    SELECT of_tenant, named.id, named.generation, 1
    FROM unnest(connections, generations) AS named(id, generation)
    WHERE NOT EXISTS (
        SELECT FROM usage known WHERE known.tenant = of_tenant AND known.connection_id = named.id
        AND known.leased_generation >= named.generation
    )
    ON CONFLICT (tenant, connection_id) DO UPDATE
    SET leased_generation = excluded.leased_generation, revision = u.revision + 1
    WHERE u.leased_generation < excluded.leased_generation;
    RETURN true;
END
$$
"""


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.rename_table("audit", "audit_chained")
    if is_postgresql:
        op.execute("ALTER TABLE audit_chained RENAME CONSTRAINT pk_audit TO pk_audit_chained")
        op.execute(_DROPPED)
    _make_tables()
    for rows in _pages(op.get_bind()):
        op.get_bind().execute(sa.insert(_AUDIT), [_rewritten(row) for row in rows])
    op.drop_table("audit_chained")
    op.execute(_FILED)
    for name, columns, where in _INDEXES:
        condition = None if where is None else sa.text(where)
        op.create_index(name, "audit", list(columns), sqlite_where=condition, postgresql_where=condition)
    if is_postgresql:
        op.execute(_RECORD_LEASES)


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _make_tables() -> None:
    op.create_table(
        "audit",
        *_of_shard(),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("erased_mac", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("tenant", "shard", "seq", name="pk_audit"),
    )
    op.create_table(
        "audit_tree",
        *_of_shard(),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("peaks", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.String(), nullable=True),
        sa.Column("filed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "shard", name="pk_audit_tree"),
    )
    unfiled = sa.text("filed < size")
    op.create_index(
        "ix_audit_tree_unfiled",
        "audit_tree",
        ["tenant", "shard"],
        sqlite_where=unfiled,
        postgresql_where=unfiled,
    )
    op.create_table(
        "audit_filed",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("shard", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "object", "at", "shard", "seq", name="pk_audit_filed"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit_node",
        *_of_shard(),
        sa.Column("level", sa.Integer(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "shard", "level", "number", name="pk_audit_node"),
    )


def _of_shard() -> "list[sa.Column[Any]]":
    return [
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("shard", sa.String(), nullable=False),
    ]


def _pages(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    """The records of before in the order of their key."""
    key = sa.tuple_(*(_BEFORE.c[name] for name in _KEY))
    query = sa.select(_BEFORE).order_by(*(_BEFORE.c[name] for name in _KEY)).limit(_PAGE)
    types = [sa.String(), sa.String(), sa.BigInteger()]
    page = query
    while rows := [row._asdict() for row in connection.execute(page)]:
        yield rows
        last = [rows[-1][name] for name in _KEY]
        page = query.where(key > sa.tuple_(*last, types=types))


def _rewritten(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of now. What was edited by hand stays so: the hash still isn't that of the body."""
    is_erased = row["erased_mac"] is not None
    is_erased &= (row["by"], row["trace_id"], row["detail"]) == ("erased", "", "{}")
    try:
        leaf = bytes.fromhex(row["hash"])
    except ValueError:
        leaf = b""
    kept = {name: row[name] for name in (*_KEY, "at", "action", "object", "erased_mac", "revision")}
    return {**kept, "body": None if is_erased else _body(row), "leaf": leaf}


def _body(row: Mapping[str, Any]) -> str:
    """What rule 1 has hashed: JSON in ASCII, its names sorted. `detail` is stored so."""
    moment = row["at"] if row["at"].tzinfo else row["at"].replace(tzinfo=UTC)
    members = {
        "action": quoted(row["action"]),
        "at": quoted(moment.astimezone(UTC).isoformat(timespec="microseconds")),
        "by": quoted(row["by"]),
        "detail": row["detail"],
        "event_id": _or_null(row["event_id"], str),
        "format": "1",
        "object": quoted(row["object"]),
        "previous_hash": quoted(row["previous_hash"]),
        "run_id": _or_null(row["run_id"], quoted),
        "seq": str(row["seq"]),
        "shard": quoted(row["shard"]),
        "tenant": quoted(row["tenant"]),
        "trace_id": quoted(row["trace_id"]),
        "workflow_id": _or_null(row["workflow_id"], quoted),
    }
    return "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"


def _or_null(value: Any, written: Any) -> str:
    return "null" if value is None else written(value)
