"""The first schema: every table."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG_INTEGER_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers INTEGER keys alone


def upgrade() -> None:
    _integration()
    _definition()
    _key()
    _app()
    _app_key()
    _permit()
    _idempotency()
    _connection()
    _connection_grant()
    _consent()
    _attempt()
    _late_tokens()
    _proof_key()
    _usage()
    _history()
    _event_receiver()
    _received_event()
    _account_identifier()
    _introspection()
    _webhook()
    _event()
    _delivery()
    _outbox()
    _audit()
    _audit_shard()
    _export()
    _export_line()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("the first schema has nothing below it")


def _columns(type_: sa.types.TypeEngine[Any], names: tuple[str, ...], null: bool) -> list[sa.Column[Any]]:
    return [sa.Column(name, type_, nullable=null) for name in names]


def _text(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.String(), names, null)


def _long_text(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Text(), names, null)


def _integer(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Integer(), names, null)


def _big_integer(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.BigInteger(), names, null)


def _float(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Float(), names, null)


def _boolean(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.Boolean(), names, null)


def _time(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.DateTime(timezone=True), names, null)


def _json(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.JSON(), names, null)


def _sealed(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    return _columns(sa.LargeBinary(), names, null)


def _integration() -> None:
    op.create_table(
        "integration",
        *_text("tenant", "id", "name", "provider", "client_id"),
        *_text("issuer", null=True),
        *_json("params"),
        *_text("client_auth", null=True),
        *_json("default_scopes"),
        *_json("scope_ceiling", null=True),
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
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_integration"),
        sa.UniqueConstraint("tenant", "name", name="uq_integration_tenant_name"),
    )
    op.create_index("ix_integration_id", "integration", ["id"], unique=True)


def _definition() -> None:
    op.create_table(
        "definition",
        *_text("tenant", "id", "name"),
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
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_definition"),
        sa.UniqueConstraint("tenant", "name", "version", name="uq_definition_tenant_name_version"),
    )
    op.create_index("ix_definition_id", "definition", ["id"], unique=True)


def _key() -> None:
    op.create_table(
        "key",
        *_text("tenant", "id", "purpose", "connection_id", "wrapping_key_id"),
        *_sealed("sealed_key"),
        *_time("created_at"),
        *_time("retired_at", null=True),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_key"),
    )
    op.create_index(
        "uq_key_current",
        "key",
        ["tenant", "connection_id", "purpose"],
        unique=True,
        sqlite_where=sa.text("retired_at IS NULL"),
        postgresql_where=sa.text("retired_at IS NULL"),
    )


def _app() -> None:
    op.create_table(
        "app",
        *_text("tenant", "id", "name"),
        *_boolean("disabled"),
        *_json("return_to"),
        *_time("created_at"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_app"),
        sa.UniqueConstraint("tenant", "name", name="uq_app_tenant_name"),
    )
    op.create_index("ix_app_id", "app", ["id"], unique=True)


def _app_key() -> None:
    op.create_table(
        "app_key",
        *_text("tenant", "id", "app_id", "secret_hash"),
        *_time("created_at"),
        *_time("revoked_at", null=True),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_app_key_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_app_key"),
    )
    op.create_index("ix_app_key_id", "app_key", ["id"], unique=True)
    op.create_index("ix_app_key_tenant_app_id", "app_key", ["tenant", "app_id"])


def _permit() -> None:
    op.create_table(
        "permit",
        *_text("tenant", "id", "app_id", "name", "integration"),
        *_json("subjects"),
        *_json("scope_ceiling", null=True),
        *_json("actions"),
        *_time("created_at"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "app_id"], ["app.tenant", "app.id"], name="fk_permit_app", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_permit"),
        sa.UniqueConstraint("tenant", "app_id", "name", name="uq_permit_tenant_app_id_name"),
    )


def _idempotency() -> None:
    op.create_table(
        "idempotency",
        *_text("tenant", "app_id", "key", "request_hash"),
        *_integer("status"),
        *_sealed("sealed_body"),
        *_time("stored_at"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "app_id", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_stored_at", "idempotency", ["stored_at"])


def _connection() -> None:
    op.create_table(
        "connection",
        *_text("tenant", "id", "integration_id", "integration", "provider", "subject", "label", "state"),
        *_integer("generation"),
        *_json("requested_scopes"),
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
        *_integer("reported_generation", null=True),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_connection"),
    )
    op.create_index("ix_connection_id", "connection", ["id"], unique=True)
    op.create_index(
        "ix_connection_tenant_integration_subject_label",
        "connection",
        ["tenant", "integration", "subject", "label"],
    )
    op.create_index(
        "uq_connection_live",
        "connection",
        ["tenant", "integration_id", "subject", "label"],
        unique=True,
        sqlite_where=sa.text("state NOT IN ('consent_expired', 'denied', 'revoked')"),
        postgresql_where=sa.text("state NOT IN ('consent_expired', 'denied', 'revoked')"),
    )
    op.create_index(
        "ix_connection_source_app",
        "connection",
        ["tenant", "source_app"],
        sqlite_where=sa.text("source_app IS NOT NULL"),
        postgresql_where=sa.text("source_app IS NOT NULL"),
    )


def _connection_grant() -> None:
    op.create_table(
        "connection_grant",
        *_text("tenant", "connection_id", "slot"),
        *_integer("generation"),
        *_text("token_type"),
        *_json("scopes"),
        *_time("obtained_at"),
        *_time("expires_at", "refresh_expires_at", null=True),
        *_boolean("refreshable", "short_lived"),
        *_json("facts", "options"),
        *_sealed("sealed_access", "sealed_refresh", "sealed_id_token", null=True),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_connection_grant_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "connection_id", "slot", name="pk_connection_grant"),
    )
    op.create_index("ix_connection_grant_tenant_expires_at", "connection_grant", ["tenant", "expires_at"])


def _consent() -> None:
    op.create_table(
        "consent",
        *_text("tenant", "id", "connection_id", "integration_id", "kind", "status"),
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
        *_time("created_at", "expires_at"),
        *_text("by", "trace_id"),
        *_sealed(
            "sealed_link",
            "sealed_verifier",
            "sealed_code",
            "sealed_tokens",
            "sealed_device",
            "sealed_request",
            null=True,
        ),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"], ["connection.tenant", "connection.id"], name="fk_consent_connection"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_consent"),
    )
    op.create_index("ix_consent_link_hash", "consent", ["link_hash"], unique=True)
    op.create_index("ix_consent_state_hash", "consent", ["state_hash"], unique=True)
    op.create_index("ix_consent_tenant_connection_id", "consent", ["tenant", "connection_id"])


def _attempt() -> None:
    op.create_table(
        "attempt",
        *_text("tenant", "id", "connection_id", "slot", "kind", "credential"),
        *_integer("from_generation"),
        *_text("journal_id"),
        *_time("opened_at", "send_by"),
        *_integer("sends"),
        *_time("first_sent_at", null=True),
        *_text("outcome", null=True),
        *_time("closed_at", null=True),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"], ["connection.tenant", "connection.id"], name="fk_attempt_connection"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_attempt"),
    )
    op.create_index(
        "ix_attempt_tenant_connection_id_from_generation",
        "attempt",
        ["tenant", "connection_id", "from_generation"],
    )
    op.create_index(
        "uq_attempt_open",
        "attempt",
        ["tenant", "connection_id", "slot"],
        unique=True,
        sqlite_where=sa.text("outcome IS NULL"),
        postgresql_where=sa.text("outcome IS NULL"),
    )


def _late_tokens() -> None:
    op.create_table(
        "late_tokens",
        *_text("tenant", "attempt_id", "connection_id", "slot"),
        *_integer("from_generation"),
        *_time("requested_at", "received_at"),
        *_sealed("sealed_tokens"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_late_tokens_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "attempt_id", name="pk_late_tokens"),
    )
    op.create_index("ix_late_tokens_tenant_connection_id", "late_tokens", ["tenant", "connection_id"])


def _proof_key() -> None:
    op.create_table(
        "proof_key",
        *_text("tenant", "connection_id", "thumbprint"),
        *_sealed("sealed_key"),
        *_time("created_at"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_proof_key_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "connection_id", name="pk_proof_key"),
    )


def _usage() -> None:
    op.create_table(
        "usage",
        *_text("tenant", "connection_id"),
        *_integer("leased_generation", "revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"], ["connection.tenant", "connection.id"], name="fk_usage_connection"
        ),
        sa.PrimaryKeyConstraint("tenant", "connection_id", name="pk_usage"),
    )


def _history() -> None:
    op.create_table(
        "history",
        *_text("tenant", "connection_id", "workflow_id", "run_id"),
        *_time("exported_at"),
        *_boolean("closed"),
        *_integer("last_event_id"),
        *_json("events"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"], ["connection.tenant", "connection.id"], name="fk_history_connection"
        ),
        sa.PrimaryKeyConstraint("tenant", "workflow_id", "run_id", name="pk_history"),
    )
    op.create_index("ix_history_tenant_connection_id", "history", ["tenant", "connection_id"])


def _event_receiver() -> None:
    op.create_table(
        "event_receiver",
        *_text("tenant", "id", "integration_id", "kind"),
        *_text("issuer", "jwks_uri", null=True),
        *_json("audience"),
        *_text("account_in"),
        *_json("keys", null=True),
        *_time("keys_at", "keys_requested_at", null=True),
        *_text("keys_problem", null=True),
        *_sealed("sealed_secret", null=True),
        *_time("created_at", "changed_at"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "integration_id"],
            ["integration.tenant", "integration.id"],
            name="fk_event_receiver_integration",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_event_receiver"),
        sa.UniqueConstraint("tenant", "integration_id", name="uq_event_receiver_tenant_integration_id"),
    )
    op.create_index("ix_event_receiver_id", "event_receiver", ["id"], unique=True)


def _received_event() -> None:
    op.create_table(
        "received_event",
        *_text("tenant", "receiver_id", "event_hash"),
        *_time("received_at"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "receiver_id"],
            ["event_receiver.tenant", "event_receiver.id"],
            name="fk_received_event_event_receiver",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "receiver_id", "event_hash", name="pk_received_event"),
    )
    op.create_index("ix_received_event_received_at", "received_event", ["received_at"])


def _account_identifier() -> None:
    op.create_table(
        "account_identifier",
        *_text("tenant", "connection_id", "name", "integration_id", "identifier_hash"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_account_identifier_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "connection_id", "name", name="pk_account_identifier"),
    )
    op.create_index(
        "ix_account_identifier_tenant_integration_id_identifier_hash",
        "account_identifier",
        ["tenant", "integration_id", "identifier_hash"],
    )


def _introspection() -> None:
    op.create_table(
        "introspection",
        *_text("tenant", "connection_id"),
        *_time("next_at"),
        *_time("checked_at", null=True),
        *_text("outcome"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "connection_id"],
            ["connection.tenant", "connection.id"],
            name="fk_introspection_connection",
        ),
        sa.PrimaryKeyConstraint("tenant", "connection_id", name="pk_introspection"),
    )
    op.create_index("ix_introspection_next_at", "introspection", ["next_at"])


def _webhook() -> None:
    op.create_table(
        "webhook",
        *_text("tenant", "id", "name", "url"),
        *_json("events"),
        *_text("integration"),
        *_text("disabled_by", null=True),
        *_integer("failures"),
        *_time("failing_since", "paused_until", null=True),
        *_sealed("sealed_secret"),
        *_sealed("sealed_previous_secret", null=True),
        *_time("previous_secret_until", null=True),
        *_time("secret_changed_at", "created_at", "changed_at"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_webhook"),
        sa.UniqueConstraint("tenant", "name", name="uq_webhook_tenant_name"),
    )
    op.create_index("ix_webhook_id", "webhook", ["id"], unique=True)


def _event() -> None:
    op.create_table(
        "event",
        *_text("tenant", "id", "type"),
        *_text("connection_id", null=True),
        *_time("at"),
        *_long_text("body"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_event"),
    )
    op.create_index("ix_event_tenant_at", "event", ["tenant", "at"])


def _delivery() -> None:
    op.create_table(
        "delivery",
        *_text("tenant", "id", "webhook_id", "event_id", "event_type", "status"),
        *_boolean("by_hand"),
        *_integer("attempts", "tries"),
        *_integer("response_status", null=True),
        *_text("problem", null=True),
        *_time("next_at", null=True),
        *_time("created_at"),
        *_time("ended_at", null=True),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "event_id"], ["event.tenant", "event.id"], name="fk_delivery_event"
        ),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_delivery"),
    )
    op.create_index("ix_delivery_tenant_event_id", "delivery", ["tenant", "event_id"])
    op.create_index(
        "ix_delivery_pending",
        "delivery",
        ["tenant", "webhook_id", "by_hand", "next_at"],
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_delivery_tenant_webhook_id_created_at_id",
        "delivery",
        ["tenant", "webhook_id", "created_at", "id"],
    )


def _outbox() -> None:
    op.create_table(
        "outbox",
        *_text("tenant"),
        sa.Column("seq", _BIG_INTEGER_KEY, autoincrement=True, nullable=False),
        *_text("id", "kind", "target", "name"),
        *_json("payload"),
        *_time("created_at"),
        *_integer("attempts"),
        *_time("next_at", null=True),
        *_text("last_error", "claimed_by", null=True),
        *_time("claimed_until", "delivered_at", null=True),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("seq", name="pk_outbox"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_outbox_id", "outbox", ["id"], unique=True)
    op.create_index(
        "ix_outbox_undelivered",
        "outbox",
        ["target", "seq"],
        sqlite_where=sa.text("delivered_at IS NULL"),
        postgresql_where=sa.text("delivered_at IS NULL"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        *_text("tenant", "shard"),
        *_big_integer("seq"),
        *_time("at"),
        *_text("action", "object", "by", "trace_id"),
        *_long_text("detail"),
        *_text("workflow_id", "run_id", null=True),
        *_integer("event_id", null=True),
        *_text("previous_hash", "hash"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "shard", "seq", name="pk_audit"),
    )
    op.create_index("ix_audit_tenant_at", "audit", ["tenant", "at"])
    op.create_index("ix_audit_tenant_object_at", "audit", ["tenant", "object", "at"])


def _audit_shard() -> None:
    op.create_table(
        "audit_shard",
        *_text("tenant", "shard"),
        *_big_integer("count"),
        *_text("last_hash"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "shard", name="pk_audit_shard"),
    )


def _export() -> None:
    op.create_table(
        "export",
        *_text("tenant", "id", "status"),
        *_json("recipient", "filters"),
        *_integer("exported", "skipped", "pages"),
        *_text("after", null=True),
        *_text("by", "trace_id"),
        *_time("created_at", "expires_at"),
        *_integer("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_export"),
    )
    op.create_index("ix_export_id", "export", ["id"], unique=True)


def _export_line() -> None:
    op.create_table(
        "export_line",
        *_text("tenant", "export_id"),
        sa.Column("seq", _BIG_INTEGER_KEY, autoincrement=False, nullable=False),
        *_long_text("jwe"),
        *_integer("revision"),
        sa.ForeignKeyConstraint(
            ["tenant", "export_id"],
            ["export.tenant", "export.id"],
            name="fk_export_line_export",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant", "export_id", "seq", name="pk_export_line"),
    )
