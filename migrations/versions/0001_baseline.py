"""The schema of 0.1.0: every table, and the functions of PostgreSQL that changes of them call."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG_INTEGER_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers INTEGER keys alone

# the actions of audit records that say who may do what
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
)
_ACCESS = "({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS))

# the actions that end something, or begin it anew
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

# On PostgreSQL a change of these rows waits for the leases that are being committed. The lease ledger holds
# shared advisory locks until its commit (`audit.lease_writer_postgresql`); a change takes the exclusive one
# here, in every process. New lock requests queue behind a waiting exclusive one, which row locks don't do:
# leases without a pause can't keep a change waiting.
_EXCLUDES_LEASES = ("app", "connection", "tenant_standing", "delegation", "delegation_rule")
_FUNCTION = """
CREATE FUNCTION exclude_leases() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(OLD.id, 0));
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$
"""
# One tenant's leases in one statement: looked at once more, chained, counted. False: something isn't as it
# was, or is being changed; nothing is written then. Each statement of a VOLATILE function sees, in READ
# COMMITTED, what has committed before it begins: the rows are read after the locks.
_RECORD_LEASES = """
CREATE FUNCTION record_leases(
    of_tenant varchar, of_shard varchar,
    old_count bigint, old_hash varchar, old_mac varchar, new_mac varchar,
    locks varchar[], connections varchar[], revisions integer[], generations integer[],
    apps varchar[], app_revisions integer[],
    moments timestamptz[], actions varchar[], objects varchar[], callers varchar[], traces varchar[],
    details text[], hashes varchar[]
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
    UPDATE audit_shard e
    SET count = old_count + cardinality(hashes), last_hash = hashes[cardinality(hashes)], mac = new_mac,
        revision = e.revision + 1
    WHERE e.tenant = of_tenant AND e.shard = of_shard
    AND e.count = old_count AND e.last_hash = old_hash AND e.mac = old_mac;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO audit
        (tenant, shard, seq, at, action, object, by, trace_id, detail, previous_hash, hash, revision)
    SELECT of_tenant, of_shard, old_count + r.n, r.moment, r.action, r.object, r.caller, r.trace, r.detail,
        coalesce(hashes[r.n - 1], old_hash), r.hash, 1
    FROM unnest(moments, actions, objects, callers, traces, details, hashes)
    WITH ORDINALITY AS r(moment, action, object, caller, trace, detail, hash, n);
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
_TRIGGER = """
CREATE TRIGGER exclude_leases BEFORE UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION exclude_leases()
"""


def upgrade() -> None:
    _tenant_standing()
    _key()
    _definition()
    _integration()
    _app()
    _app_key_use()
    _lease_use()
    _app_credential()
    _app_key()
    _permit_use()
    _permit()
    _app_assertion()
    _app_token()
    _key_session()
    _trusted_issuer()
    _connection()
    _account_identifier()
    _replaced_grant()
    _attempt()
    _connection_grant()
    _consent()
    _history()
    _late_tokens()
    _proof_key()
    _usage()
    _call_approval()
    _delegation_rule()
    _used_subject_token()
    _delegation()
    _agent_stop()
    _access_request()
    _approval()
    _admin_login()
    _person_login()
    _person_session()
    _authorization_request()
    _client_consent()
    _subject_session()
    _client_login()
    _oauth_client()
    _authorization_code()
    _token_family()
    _access_token()
    _refresh_token()
    _event_receiver()
    _introspection()
    _received_event()
    _event()
    _webhook()
    _delivery()
    _outbox()
    _audit()
    _audit_shard()
    _idempotency()
    _export()
    _export_line()
    _exclude_leases()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("the first schema has nothing below it")


def _exclude_leases() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # on SQLite one transaction writes at a time
    op.execute(_FUNCTION)
    op.execute(_RECORD_LEASES)
    for table in _EXCLUDES_LEASES:
        op.execute(_TRIGGER.format(table=table))


def _table(
    name: str, *parts: sa.schema.SchemaItem, key: tuple[str, ...] = ("tenant", "id"), **options: Any
) -> None:
    """A table with these parts between its tenant and its revision."""
    primary = sa.PrimaryKeyConstraint(*key, name=f"pk_{name}")
    op.create_table(name, *_text("tenant"), *parts, *_integer("revision"), primary, **options)


def _index(
    table: str, *columns: str, unique: bool = False, name: str | None = None, where: str | None = None
) -> None:
    """An index; with `where`, over the rows for which the condition holds."""
    name = name or f"ix_{table}_{'_'.join(columns)}"
    condition = None if where is None else sa.text(where)
    op.create_index(
        name, table, list(columns), unique=unique, sqlite_where=condition, postgresql_where=condition
    )


def _parent(table: str, parent: str, column: str, *, cascade: bool = True) -> sa.ForeignKeyConstraint:
    """The parent's row of the same tenant; with `cascade`, deleting it deletes this one."""
    return sa.ForeignKeyConstraint(
        *(["tenant", column], [f"{parent}.tenant", f"{parent}.id"]),
        name=f"fk_{table}_{parent}",
        ondelete="CASCADE" if cascade else None,
    )


def _unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=f"uq_{table}_{'_'.join(columns)}")


def _columns(
    type_: sa.types.TypeEngine[Any], names: tuple[str, ...], null: bool, default: Any = None
) -> list[sa.Column[Any]]:
    return [sa.Column(name, type_, nullable=null, server_default=default) for name in names]


def _text(*names: str, null: bool = False, default: str | None = None) -> list[sa.Column[Any]]:
    return _columns(sa.String(), names, null, default)


def _long_text(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Text(), names, null)


def _integer(*names: str, null: bool = False, default: str | None = None) -> list[sa.Column[Any]]:
    return _columns(sa.Integer(), names, null, default)


def _big_integer(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.BigInteger(), names, null)


def _float(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Float(), names, null)


def _boolean(*names: str, null: bool = False, default: Any = None) -> list[sa.Column[Any]]:
    return _columns(sa.Boolean(), names, null, default)


def _time(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.DateTime(timezone=True), names, null)


def _json(*names: str, null: bool = False, default: str | None = None) -> list[sa.Column[Any]]:
    return _columns(sa.JSON(), names, null, default)


def _sealed(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.LargeBinary(), names, null)


def _tenant_standing() -> None:
    _table(
        "tenant_standing",
        *_text("id"),
        *_boolean("disabled"),
        *_text("reason"),
        *_time("changed_at", null=True),
        *_text("mac", null=True),
    )


def _key() -> None:
    _table(
        "key",
        *_text("id", "purpose", "connection_id", "wrapping_key_id"),
        *_sealed("sealed_key"),
        *_time("created_at"),
        *_time("retired_at", null=True),
    )
    _index(
        "key",
        "tenant",
        "connection_id",
        "purpose",
        unique=True,
        name="uq_key_current",
        where="retired_at IS NULL",
    )


def _definition() -> None:
    _table(
        "definition",
        *_text("id", "name"),
        *_integer("version"),
        *_json("document"),
        *_text("state"),
        *_float("share"),
        *_json("rollout", "findings"),
        *_integer("succeeded", "failed"),
        *_text("proposed_by"),
        *_text("decided_by", null=True),
        *_boolean("approved", null=True),
        *_text("reason", null=True),
        *_time("created_at", "changed_at"),
        *_text("mac", null=True),
        _unique("definition", "tenant", "name", "version"),
    )
    _index("definition", "id", unique=True)


def _integration() -> None:
    _table(
        "integration",
        *_text("id", "name", "provider", "client_id"),
        *_text("issuer", null=True),
        *_json("params"),
        *_text("client_auth", null=True),
        *_json("default_scopes"),
        *_json("scope_ceiling", null=True),
        *_text("binding", default="app"),
        *_json("login", null=True),
        *_text("on_reconnect", default="same"),
        *_text("identity_provider", null=True),
        *_json("refresh"),
        *_json("refresh_overrides", null=True),
        *_text("state"),
        *_text("problem", null=True),
        *_json("endpoints", null=True),
        *_sealed("sealed_client_secret", "sealed_previous_secret", null=True),
        *_time("previous_secret_until", "secret_refused_at", null=True),
        *_boolean("dpop", null=True),
        *_text("registration", null=True),
        *_time("registration_sent_at", null=True),
        *_text("registration_url", null=True),
        *_time("client_secret_expires_at", "client_certificate_expires_at", "metadata_read_at", null=True),
        *_sealed(
            "sealed_initial_token",
            "sealed_registration_token",
            "sealed_client_key",
            "sealed_client_certificate",
            null=True,
        ),
        *_time("created_at", "changed_at"),
        *_text("mac", "pinned_hosts", "destination_mac", null=True),
        _unique("integration", "tenant", "name"),
    )
    _index("integration", "id", unique=True)


def _app() -> None:
    _table(
        "app",
        *_text("id", "name"),
        *_boolean("disabled"),
        *_json("return_to"),
        *_integer("lease_limit", null=True),
        *_time("created_at"),
        *_text("mac", "sponsor", "sponsor_app", null=True),
        *_text("purpose", default=""),
        *_time("ends_at", null=True),
        *_json("denies", null=True),
        _unique("app", "tenant", "name"),
    )
    _index("app", "id", unique=True)


def _app_key_use() -> None:
    _table("app_key_use", *_text("key_id"), *_time("used_at"), key=("tenant", "key_id"))


def _lease_use() -> None:
    _table(
        "lease_use",
        *_text("app_id", "connection_id"),
        *_time("used_at"),
        key=("tenant", "app_id", "connection_id"),
    )


def _app_credential() -> None:
    _table(
        "app_credential",
        *_text("id", "app_id", "name", "method"),
        *_json("parameters"),
        *_time("created_at"),
        *_text("mac", null=True),
        _parent("app_credential", "app", "app_id"),
        _unique("app_credential", "tenant", "app_id", "name"),
    )


def _app_key() -> None:
    _table(
        "app_key",
        *_text("id", "app_id", "secret_hash"),
        *_time("created_at"),
        *_time("expires_at", "revoked_at", null=True),
        *_text("mac", null=True),
        _parent("app_key", "app", "app_id"),
    )
    _index("app_key", "id", unique=True)
    _index("app_key", "tenant", "app_id")


def _permit_use() -> None:
    _table("permit_use", *_text("permit_id"), *_time("used_at"), key=("tenant", "permit_id"))


def _permit() -> None:
    _table(
        "permit",
        *_text("id", "app_id", "name", "integration"),
        *_json("subjects"),
        *_json("scope_ceiling", null=True),
        *_json("actions"),
        *_time("created_at"),
        *_text("mac", null=True),
        *_text("effect", default="allow"),
        *_text("mode", default="enforce"),
        *_text("provider", default="*"),
        *_json("connections", "sources", "scopes", null=True),
        *_boolean("exact_scopes", default=sa.false()),
        *_time("expires_at", null=True),
        *_text("purpose", "owner", "reason", default=""),
        *_json("methods", "paths", null=True),
        *_boolean("call_approval", default=sa.false()),
        *_json("tools", null=True),
        _parent("permit", "app", "app_id"),
        _unique("permit", "tenant", "app_id", "name"),
    )


def _app_assertion() -> None:
    _table(
        "app_assertion",
        *_text("app_id", "jti_hash"),
        *_time("expires_at"),
        _parent("app_assertion", "app", "app_id"),
        key=("tenant", "app_id", "jti_hash"),
    )
    _index("app_assertion", "expires_at")


def _app_token() -> None:
    _table(
        "app_token",
        *_text("id", "app_id", "credential_id"),
        *_integer("credential_revision"),
        *_text("method"),
        *_json("confirmation", null=True),
        *_text("secret_hash"),
        *_time("created_at", "expires_at"),
        *_text("mac", null=True),
        _parent("app_token", "app_credential", "credential_id"),
    )
    _index("app_token", "expires_at")
    _index("app_token", "id", unique=True)
    _index("app_token", "tenant", "credential_id")


def _key_session() -> None:
    _table(
        "key_session",
        *_text("id", "key_id", "secret_hash"),
        *_time("created_at", "expires_at"),
        *_text("mac", null=True),
        _parent("key_session", "app_key", "key_id"),
    )
    _index("key_session", "expires_at")
    _index("key_session", "id", unique=True)
    _index("key_session", "tenant", "key_id")


def _trusted_issuer() -> None:
    _table(
        "trusted_issuer",
        *_text("id", "name", "kind", "issuer"),
        *_text("jwks_uri", null=True),
        *_json("keys", null=True),
        *_time("keys_at", "keys_tried_at", "keys_next_at", "keys_requested_at", null=True),
        *_text("keys_problem", null=True),
        *_time("created_at", "changed_at"),
        *_text("mac", null=True),
        _unique("trusted_issuer", "tenant", "name"),
        _unique("trusted_issuer", "tenant", "issuer"),
    )
    _index("trusted_issuer", "keys_next_at")


def _connection() -> None:
    _table(
        "connection",
        *_text("id", "integration_id", "integration", "provider", "subject", "label", "state"),
        *_integer("generation"),
        *_json("requested_scopes"),
        *_boolean("default_scopes", default=sa.false()),
        *_text("reason", "revocation", "revoke_reason", null=True),
        *_text("refresh_policy", "flow"),
        *_json("target"),
        *_text("source", "source_app", null=True),
        *_time("created_at", "changed_at", "consent_deadline"),
        *_integer("failures"),
        *_text("last_failure", null=True),
        *_time("last_failed_at", "failing_since", null=True),
        *_text("follow_up", "choice", null=True),
        *_json("slot_scopes"),
        *_text("consented_with", null=True),
        *_json("expected_account", null=True),
        *_integer("reported_generation", null=True),
        *_text("mac", "account_mac", null=True),
    )
    _index(
        "connection",
        "tenant",
        "integration_id",
        "last_failed_at",
        name="ix_connection_failing",
        where="state = 'active' AND failures > 0",
    )
    _index("connection", "id", unique=True)
    _index(
        "connection",
        "tenant",
        "integration_id",
        "changed_at",
        name="ix_connection_refused",
        where="state = 'needs_reauth' AND reason = 'refresh_refused'",
    )
    _index("connection", "changed_at", "id", name="ix_connection_revoking", where="state = 'revoking'")
    _index(
        "connection", "tenant", "source_app", name="ix_connection_source_app", where="source_app IS NOT NULL"
    )
    _index("connection", "tenant", "integration", "subject", "label")
    _index(
        "connection",
        "tenant",
        "integration_id",
        "subject",
        "label",
        unique=True,
        name="uq_connection_live",
        where="state NOT IN ('consent_expired', 'denied', 'revoked')",
    )


def _account_identifier() -> None:
    _table(
        "account_identifier",
        *_text("connection_id", "name", "integration_id", "identifier_hash"),
        _parent("account_identifier", "connection", "connection_id", cascade=False),
        key=("tenant", "connection_id", "name"),
    )
    _index("account_identifier", "tenant", "integration_id", "identifier_hash")


def _replaced_grant() -> None:
    _table(
        "replaced_grant",
        *_text("id", "connection_id", "integration_id"),
        *_integer("generation", null=True),
        *_text("account_hash", null=True),
        *_boolean("pending"),
        *_time("replaced_at"),
        *_sealed("sealed_tokens"),
        _parent("replaced_grant", "connection", "connection_id", cascade=False),
    )
    _index("replaced_grant", "tenant", "connection_id", name="ix_replaced_grant_pending", where="pending")
    _index("replaced_grant", "tenant", "connection_id")


def _attempt() -> None:
    _table(
        "attempt",
        *_text("id", "connection_id"),
        *_text("integration_id", null=True),
        *_text("slot", "kind", "credential"),
        *_integer("from_generation"),
        *_text("journal_id"),
        *_time("opened_at", "send_by"),
        *_integer("sends"),
        *_time("first_sent_at", null=True),
        *_text("outcome", null=True),
        *_time("closed_at", null=True),
        _parent("attempt", "connection", "connection_id", cascade=False),
    )
    _index("attempt", "closed_at", name="ix_attempt_closed", where="closed_at IS NOT NULL")
    _index(
        "attempt",
        "tenant",
        "integration_id",
        "closed_at",
        name="ix_attempt_refreshed",
        where="kind = 'refresh' AND outcome = 'installed'",
    )
    _index("attempt", "tenant", "connection_id", "from_generation")
    _index(
        "attempt",
        "tenant",
        "connection_id",
        "slot",
        unique=True,
        name="uq_attempt_open",
        where="outcome IS NULL",
    )


def _connection_grant() -> None:
    _table(
        "connection_grant",
        *_text("connection_id", "slot"),
        *_integer("generation"),
        *_text("token_type"),
        *_json("scopes"),
        *_time("obtained_at"),
        *_time("expires_at", "refresh_expires_at", null=True),
        *_boolean("refreshable", "short_lived"),
        *_json("facts", "options"),
        *_integer("access_generation", null=True),
        *_sealed("sealed_access", "sealed_refresh", "sealed_id_token", null=True),
        *_text("pinned_hosts", "destination_mac", "mac", null=True),
        _parent("connection_grant", "connection", "connection_id", cascade=False),
        key=("tenant", "connection_id", "slot"),
    )
    _index("connection_grant", "tenant", "expires_at")


def _consent() -> None:
    _table(
        "consent",
        *_text("id", "connection_id", "integration_id", "kind", "status"),
        *_json("scopes", "slot_scopes"),
        *_text("return_to", null=True),
        *_text("link_hash"),
        *_text(
            "state_hash",
            "nonce_hash",
            "browser_hash",
            "redirect_uri",
            "issuer",
            "token_endpoint",
            "failure",
            null=True,
        ),
        *_json("facts"),
        *_json("granted_scopes", null=True),
        *_text("binding", default="none"),
        *_text("app_id", null=True),
        *_boolean("replaces_any", default=sa.false()),
        *_text("challenge", "confirm_hash", null=True),
        *_time("confirm_by", "confirmed_at", null=True),
        *_time("created_at", "expires_at"),
        *_text("by", "trace_id"),
        *_sealed(
            "sealed_link",
            "sealed_verifier",
            "sealed_code",
            "sealed_tokens",
            "sealed_device",
            "sealed_request",
            "sealed_account",
            null=True,
        ),
        *_text("mac", null=True),
        _parent("consent", "connection", "connection_id", cascade=False),
    )
    _index("consent", "confirm_hash", unique=True)
    _index("consent", "link_hash", unique=True)
    _index("consent", "state_hash", unique=True)
    _index("consent", "tenant", "connection_id")


def _history() -> None:
    _table(
        "history",
        *_text("connection_id", "workflow_id", "run_id"),
        *_time("exported_at"),
        *_boolean("closed"),
        *_integer("last_event_id"),
        *_json("events"),
        _parent("history", "connection", "connection_id", cascade=False),
        key=("tenant", "workflow_id", "run_id"),
    )
    _index("history", "tenant", "connection_id")


def _late_tokens() -> None:
    _table(
        "late_tokens",
        *_text("attempt_id", "connection_id", "slot"),
        *_integer("from_generation"),
        *_time("requested_at", "received_at"),
        *_sealed("sealed_tokens"),
        _parent("late_tokens", "connection", "connection_id", cascade=False),
        key=("tenant", "attempt_id"),
    )
    _index("late_tokens", "tenant", "connection_id")


def _proof_key() -> None:
    _table(
        "proof_key",
        *_text("connection_id", "thumbprint"),
        *_sealed("sealed_key"),
        *_time("created_at"),
        _parent("proof_key", "connection", "connection_id", cascade=False),
        key=("tenant", "connection_id"),
    )


def _usage() -> None:
    _table(
        "usage",
        *_text("connection_id"),
        *_integer("leased_generation"),
        _parent("usage", "connection", "connection_id", cascade=False),
        key=("tenant", "connection_id"),
    )


def _call_approval() -> None:
    _table(
        "call_approval",
        *_text("id", "app_id", "connection_id", "call_hash"),
        *_integer("round"),
        *_text("name", "reason", "requested_by"),
        *_time("created_at", "decide_by"),
        *_text("state"),
        *_integer("reminders"),
        *_time("escalated_at", null=True),
        *_text("decided_by", null=True),
        *_time("decided_at", null=True),
        *_text("note", null=True),
        *_time("use_by", "used_at", "next_at", null=True),
        *_sealed("sealed_call", null=True),
        *_text("mac", null=True),
        _parent("call_approval", "app", "app_id"),
        _unique("call_approval", "tenant", "call_hash", "round"),
    )
    _index("call_approval", "next_at", name="ix_call_approval_next", where="next_at IS NOT NULL")
    _index("call_approval", "tenant", "app_id", "state")


def _delegation_rule() -> None:
    _table(
        "delegation_rule",
        *_text("id", "name", "issuer_id", "token_type", "audience", "claim"),
        *_json("domains"),
        *_boolean("may_act"),
        *_json("actors", "clients"),
        *_time("created_at", "changed_at"),
        *_text("mac", null=True),
        _unique("delegation_rule", "tenant", "name"),
    )
    _index("delegation_rule", "id", unique=True)
    _index("delegation_rule", "tenant", "issuer_id")


def _used_subject_token() -> None:
    _table("used_subject_token", *_text("jti_hash"), *_time("expires_at"), key=("tenant", "jti_hash"))
    _index("used_subject_token", "expires_at")


def _delegation() -> None:
    _table(
        "delegation",
        *_text("id", "root_id", "place"),
        *_json("path"),
        *_text("app_id", "key_id", "method"),
        *_integer("credential_revision", null=True),
        *_json("confirmation", null=True),
        *_text("subject"),
        *_json("reach"),
        *_text("may_act", null=True),
        *_text("proof"),
        *_text("rule_id", null=True),
        *_integer("rule_revision", null=True),
        *_text("secret_hash"),
        *_time("created_at", "expires_at"),
        *_time("stopped_at", null=True),
        *_text("stopped_by", "stop_reason", "mac", null=True),
        _parent("delegation", "app", "app_id"),
    )
    _index("delegation", "expires_at")
    _index("delegation", "id", unique=True)
    _index("delegation", "tenant", "app_id")
    _index("delegation", "tenant", "root_id")


def _agent_stop() -> None:
    _table(
        "agent_stop",
        *_text("id", "app_id", "reason", "by"),
        *_boolean("revoke_connections"),
        *_time("created_at"),
        *_integer("approvals_closed", "connections_revoked", "connections_kept"),
        *_integer("delegations_ended", default="0"),
        *_text("after"),
        *_time("finished_at", null=True),
        *_text("mac", null=True),
        _parent("agent_stop", "app", "app_id"),
    )
    _index("agent_stop", "tenant", "app_id", "created_at")
    _index("agent_stop", "created_at", name="ix_agent_stop_unfinished", where="finished_at IS NULL")


def _access_request() -> None:
    _table(
        "access_request",
        *_text("id", "app_id", "kind", "permit_name"),
        *_json("permit"),
        *_float("lifetime_s", null=True),
        *_text("reason", "requested_by"),
        *_time("created_at", "decide_by"),
        *_text("state"),
        *_integer("reminders"),
        *_text("decided_by", null=True),
        *_time("decided_at", null=True),
        *_text("note", null=True),
        *_time("ends_at", "next_at", null=True),
        *_text("mac", null=True),
        _parent("access_request", "app", "app_id"),
    )
    _index("access_request", "next_at", name="ix_access_request_next", where="next_at IS NOT NULL")
    _index("access_request", "tenant", "app_id", "state")


def _approval() -> None:
    _table(
        "approval",
        *_text("id", "app_id", "by", "command"),
        *_json("body", null=True),
        *_json("resolves_to", default="{}"),
        *_time("created_at", "expires_at"),
        *_text("approved_by", null=True),
        *_time("used_at", null=True),
        *_text("mac", null=True),
    )


def _admin_login() -> None:
    _table(
        "admin_login",
        *_text("id", "integration", "issuer", "groups_claim"),
        *_json("roles", "scopes"),
        *_time("changed_at"),
        *_text("mac", null=True),
        _unique("admin_login", "tenant"),
    )


def _person_login() -> None:
    _table(
        "person_login",
        *_text("id", "status", "rule", "integration_id"),
        *_text("state_hash", null=True),
        *_text("nonce_hash", "browser_hash", "redirect_uri", "issuer", "token_endpoint"),
        *_boolean("step_up"),
        *_json("command", null=True),
        *_text("code_hash", null=True),
        *_json("person", null=True),
        *_text("role", null=True),
        *_time("authenticated_at", null=True),
        *_time("created_at", "expires_at"),
        *_sealed("sealed_verifier", "sealed_code", null=True),
        *_text("mac", "authorize", "subject", null=True),
    )
    _index("person_login", "code_hash", unique=True)
    _index("person_login", "expires_at")
    _index("person_login", "state_hash", unique=True)


def _person_session() -> None:
    _table(
        "person_session",
        *_text("id", "kind", "secret_hash"),
        *_text("rule", null=True),
        *_json("person"),
        *_text("role"),
        *_text("reason", null=True),
        *_time("authenticated_at", null=True),
        *_time("created_at", "last_used_at", "expires_at"),
        *_time("ended_at", null=True),
        *_text("mac", null=True),
    )
    _index("person_session", "expires_at")
    _index("person_session", "secret_hash", unique=True)


def _authorization_request() -> None:
    _table(
        "authorization_request",
        *_text("id", "status", "client_id", "app_id", "subject", "resource"),
        *_text("connection_id", null=True),
        *_json("scopes"),
        *_text("rule", null=True),
        *_text("redirect_uri", "challenge"),
        *_text("state", null=True),
        *_text("session_id", "browser_hash"),
        *_text("consent_id", null=True),
        *_time("created_at", "expires_at"),
        *_text("mac", null=True),
    )
    _index("authorization_request", "expires_at")
    _index("authorization_request", "id", unique=True)


def _client_consent() -> None:
    _table(
        "client_consent",
        *_text("id", "client_id", "subject", "resource", "redirect_uri", "rule"),
        *_time("created_at", "used_at"),
        *_text("mac", null=True),
    )
    _index("client_consent", "tenant", "subject")
    _index("client_consent", "used_at")


def _subject_session() -> None:
    _table(
        "subject_session",
        *_text("id", "secret_hash", "rule", "subject"),
        *_json("person"),
        *_time("created_at", "expires_at"),
        *_time("ended_at", null=True),
        *_text("mac", null=True),
    )
    _index("subject_session", "expires_at")
    _index("subject_session", "secret_hash", unique=True)


def _client_login() -> None:
    _table(
        "client_login",
        *_text("id", "app_id", "integration", "issuer", "claim"),
        *_json("domains"),
        *_boolean("registration", "documents"),
        *_time("changed_at"),
        *_text("mac", null=True),
        _parent("client_login", "app", "app_id"),
        _unique("client_login", "tenant"),
    )


def _oauth_client() -> None:
    _table(
        "oauth_client",
        *_text("id", "client_id", "kind", "name"),
        *_json("redirect_uris"),
        *_text("application_type", "auth_method"),
        *_json("jwks", null=True),
        *_text("jwks_uri", null=True),
        *_json("scopes", null=True),
        *_text("client_uri", null=True),
        *_boolean("disabled"),
        *_time("created_at"),
        *_time("fresh_until", "used_at", null=True),
        *_text("mac", null=True),
    )
    _index("oauth_client", "client_id", unique=True)
    _index("oauth_client", "used_at")


def _authorization_code() -> None:
    _table(
        "authorization_code",
        *_text("id", "client_id", "app_id", "subject", "resource"),
        *_text("connection_id", null=True),
        *_json("scopes"),
        *_text("rule", null=True),
        *_text("code_hash", "redirect_uri", "challenge"),
        *_time("created_at", "expires_at"),
        *_time("used_at", null=True),
        *_text("family_id", "mac", null=True),
        _parent("authorization_code", "app", "app_id"),
    )
    _index("authorization_code", "code_hash", unique=True)
    _index("authorization_code", "expires_at")
    _index("authorization_code", "tenant", "app_id")


def _token_family() -> None:
    _table(
        "token_family",
        *_text("id", "client_id", "app_id", "subject", "resource"),
        *_text("connection_id", null=True),
        *_json("scopes"),
        *_text("rule", null=True),
        *_boolean("bound"),
        *_time("created_at", "used_at", "expires_at"),
        *_time("ended_at", null=True),
        *_text("end", null=True),
        *_integer("replays"),
        *_text("mac", null=True),
        _parent("token_family", "app", "app_id"),
    )
    _index("token_family", "expires_at")
    _index("token_family", "tenant", "app_id")
    _index("token_family", "tenant", "client_id")
    _index("token_family", "tenant", "subject")


def _access_token() -> None:
    _table(
        "access_token",
        *_text("id", "family_id", "secret_hash", "resource"),
        *_json("scopes"),
        *_time("created_at", "expires_at"),
        *_text("mac", null=True),
        _parent("access_token", "token_family", "family_id"),
    )
    _index("access_token", "expires_at")
    _index("access_token", "id", unique=True)
    _index("access_token", "tenant", "family_id")


def _refresh_token() -> None:
    _table(
        "refresh_token",
        *_text("id", "family_id", "secret_hash"),
        *_time("created_at"),
        *_time("rotated_at", null=True),
        *_text("successor_id", null=True),
        *_integer("replays"),
        *_integer("late_replays", default="0"),
        *_sealed("sealed_successor", null=True),
        *_text("mac", null=True),
        _parent("refresh_token", "token_family", "family_id"),
    )
    _index("refresh_token", "id", unique=True)
    _index("refresh_token", "tenant", "family_id")


def _event_receiver() -> None:
    _table(
        "event_receiver",
        *_text("id", "integration_id", "kind"),
        *_text("issuer", "jwks_uri", null=True),
        *_json("audience"),
        *_text("account_in"),
        *_json("keys", null=True),
        *_time("keys_at", "keys_requested_at", null=True),
        *_text("keys_problem", null=True),
        *_sealed("sealed_secret", null=True),
        *_time("created_at", "changed_at"),
        *_text("mac", null=True),
        _parent("event_receiver", "integration", "integration_id"),
        _unique("event_receiver", "tenant", "integration_id"),
    )
    _index("event_receiver", "id", unique=True)


def _introspection() -> None:
    _table(
        "introspection",
        *_text("connection_id"),
        *_time("next_at"),
        *_time("checked_at", null=True),
        *_text("outcome"),
        _parent("introspection", "connection", "connection_id", cascade=False),
        key=("tenant", "connection_id"),
    )
    _index("introspection", "next_at")


def _received_event() -> None:
    _table(
        "received_event",
        *_text("receiver_id", "event_hash"),
        *_time("received_at"),
        _parent("received_event", "event_receiver", "receiver_id"),
        key=("tenant", "receiver_id", "event_hash"),
    )
    _index("received_event", "received_at")


def _event() -> None:
    _table(
        "event",
        *_text("id", "type"),
        *_text("connection_id", null=True),
        *_time("at"),
        *_long_text("body"),
        *_text("mac", null=True),
    )
    _index("event", "tenant", "at")


def _webhook() -> None:
    _table(
        "webhook",
        *_text("id", "name", "url"),
        *_sealed("sealed_query", null=True),
        *_json("events"),
        *_text("integration"),
        *_text("disabled_by", null=True),
        *_integer("failures"),
        *_time("failing_since", "paused_until", null=True),
        *_sealed("sealed_secret"),
        *_sealed("sealed_previous_secret", null=True),
        *_time("previous_secret_until", null=True),
        *_time("secret_changed_at", "created_at", "changed_at"),
        *_text("mac", null=True),
        _unique("webhook", "tenant", "name"),
    )
    _index("webhook", "id", unique=True)


def _delivery() -> None:
    _table(
        "delivery",
        *_text("id", "webhook_id", "event_id", "event_type", "status"),
        *_boolean("by_hand"),
        *_integer("attempts", "tries"),
        *_integer("response_status", null=True),
        *_text("problem", null=True),
        *_time("next_at", null=True),
        *_time("created_at"),
        *_time("ended_at", null=True),
        _parent("delivery", "event", "event_id", cascade=False),
    )
    _index(
        "delivery",
        "tenant",
        "webhook_id",
        "by_hand",
        "next_at",
        name="ix_delivery_pending",
        where="status = 'pending'",
    )
    _index("delivery", "tenant", "event_id")
    _index("delivery", "tenant", "webhook_id", "created_at", "id")


def _outbox() -> None:
    _table(
        "outbox",
        sa.Column("seq", _BIG_INTEGER_KEY, autoincrement=True, nullable=False),
        *_text("id", "kind", "target", "name"),
        *_json("payload"),
        *_time("created_at"),
        *_integer("attempts"),
        *_time("next_at", null=True),
        *_text("last_error", "claimed_by", null=True),
        *_time("claimed_until", "delivered_at", null=True),
        *_text("mac", null=True),
        key=("seq",),
        sqlite_autoincrement=True,
    )
    _index("outbox", "id", unique=True)
    _index("outbox", "delivered_at", name="ix_outbox_delivered", where="delivered_at IS NOT NULL")
    _index("outbox", "id", name="ix_outbox_refused", where="last_error = 'authority_broken'")
    _index("outbox", "target", "seq", name="ix_outbox_undelivered", where="delivered_at IS NULL")


def _audit() -> None:
    _table(
        "audit",
        *_text("shard"),
        *_big_integer("seq"),
        *_time("at"),
        *_text("action", "object", "by", "trace_id"),
        *_long_text("detail"),
        *_text("workflow_id", "run_id", null=True),
        *_integer("event_id", null=True),
        *_text("previous_hash", "hash"),
        key=("tenant", "shard", "seq"),
    )
    _index("audit", "tenant", "at", name="ix_audit_access", where=_ACCESS)
    _index("audit", "tenant", "object", name="ix_audit_end", where=_ENDS)
    _index("audit", "tenant", "at")
    _index("audit", "tenant", "object", "at")


def _audit_shard() -> None:
    _table(
        "audit_shard",
        *_text("shard"),
        *_big_integer("count"),
        *_text("last_hash"),
        *_text("mac", null=True),
        key=("tenant", "shard"),
    )


def _idempotency() -> None:
    _table(
        "idempotency",
        *_text("app_id", "key", "request_hash"),
        *_integer("status"),
        *_sealed("sealed_body"),
        *_time("stored_at"),
        key=("tenant", "app_id", "key"),
    )
    _index("idempotency", "stored_at")


def _export() -> None:
    _table(
        "export",
        *_text("id", "status"),
        *_json("recipient", "filters"),
        *_integer("exported", "skipped", "pages"),
        *_text("after", null=True),
        *_text("by", "trace_id"),
        *_time("created_at", "expires_at"),
        *_text("mac", null=True),
    )
    _index("export", "id", unique=True)


def _export_line() -> None:
    _table(
        "export_line",
        *_text("export_id"),
        sa.Column("seq", _BIG_INTEGER_KEY, autoincrement=False, nullable=False),
        *_long_text("jwe"),
        _parent("export_line", "export", "export_id"),
        key=("tenant", "export_id", "seq"),
    )
