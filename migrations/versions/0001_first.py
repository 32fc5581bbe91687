"""The first schema: connections, grants, access, consents, attempts, outbox, audit, keys."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

LIVE = "state NOT IN ('consent_expired', 'denied', 'revoked')"


def upgrade() -> None:
    _keys()
    _access()
    _connections()
    _consents_and_attempts()
    _outbox()
    _audit()


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("the first schema has nothing below it")


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.String(), nullable=null)


def _number(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Integer(), nullable=null)


def _moment(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null)


def _json(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.JSON(), nullable=null)


def _sealed(name: str, *, null: bool = True) -> sa.Column[Any]:
    return sa.Column(name, sa.LargeBinary(), nullable=null)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean(), nullable=False)


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _of(table: str, owner: str, column: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", column],
        [f"{owner}.tenant", f"{owner}.id"],
        name=f"fk_{table}_{owner}",
        ondelete=ondelete,
    )


def _index(table: str, *columns: str, unique: bool = False) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns), unique=unique)


def _partial(name: str, table: str, columns: list[str], condition: str, *, unique: bool = True) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _keys() -> None:
    op.create_table(
        "key",
        _text("tenant"),
        _text("id"),
        _text("lane"),
        _text("connection_id"),
        _text("parent"),
        _sealed("sealed_key", null=False),
        _moment("created_at"),
        _moment("retired_at", null=True),
        _number("revision"),
        _key("key", "tenant", "id"),
    )
    _partial("uq_key_current", "key", ["tenant", "connection_id", "lane"], "retired_at IS NULL")


def _access() -> None:
    op.create_table(
        "integration",
        _text("tenant"),
        _text("id"),
        _text("name"),
        _text("provider"),
        _text("client_id"),
        _text("issuer", null=True),
        _json("params"),
        _text("client_auth", null=True),
        _json("default_scopes"),
        _json("scope_ceiling", null=True),
        _json("refresh"),
        _text("state"),
        _text("problem", null=True),
        _json("endpoints", null=True),
        _sealed("sealed_client_secret"),
        _moment("created_at"),
        _moment("changed_at"),
        _number("revision"),
        _key("integration", "tenant", "id"),
        sa.UniqueConstraint("tenant", "name", name="uq_integration_tenant_name"),
    )
    _index("integration", "id", unique=True)
    op.create_table(
        "app",
        _text("tenant"),
        _text("id"),
        _text("name"),
        _flag("disabled"),
        _json("return_to"),
        _moment("created_at"),
        _number("revision"),
        _key("app", "tenant", "id"),
        sa.UniqueConstraint("tenant", "name", name="uq_app_tenant_name"),
    )
    _index("app", "id", unique=True)
    op.create_table(
        "app_key",
        _text("tenant"),
        _text("id"),
        _text("app_id"),
        _text("secret_hash"),
        _moment("created_at"),
        _moment("revoked_at", null=True),
        _number("revision"),
        _key("app_key", "tenant", "id"),
        _of("app_key", "app", "app_id", "CASCADE"),
    )
    _index("app_key", "id", unique=True)
    _index("app_key", "tenant", "app_id")
    op.create_table(
        "permit",
        _text("tenant"),
        _text("id"),
        _text("app_id"),
        _text("name"),
        _text("integration"),
        _json("subjects"),
        _json("scope_ceiling", null=True),
        _json("actions"),
        _moment("created_at"),
        _number("revision"),
        _key("permit", "tenant", "id"),
        _of("permit", "app", "app_id", "CASCADE"),
        sa.UniqueConstraint("tenant", "app_id", "name", name="uq_permit_tenant_app_id_name"),
    )
    op.create_table(
        "idempotency",
        _text("tenant"),
        _text("app_id"),
        _text("key"),
        _text("request_hash"),
        _number("status"),
        _sealed("sealed_body", null=False),
        _moment("remembered_at"),
        _number("revision"),
        _key("idempotency", "tenant", "app_id", "key"),
    )
    _index("idempotency", "remembered_at")


def _connections() -> None:
    op.create_table(
        "connection",
        _text("tenant"),
        _text("id"),
        _text("integration_id"),
        _text("integration"),
        _text("provider"),
        _text("subject"),
        _text("label"),
        _text("state"),
        _number("generation"),
        _json("requested_scopes"),
        _text("reason", null=True),
        _text("revocation", null=True),
        _text("revoke_reason", null=True),
        _text("refresh_policy"),
        _moment("created_at"),
        _moment("changed_at"),
        _moment("consent_deadline"),
        _number("revision"),
        _key("connection", "tenant", "id"),
    )
    _index("connection", "id", unique=True)
    _index("connection", "tenant", "integration", "subject", "label")
    _partial("uq_connection_live", "connection", ["tenant", "integration_id", "subject", "label"], LIVE)
    op.create_table(
        "connection_grant",
        _text("tenant"),
        _text("connection_id"),
        _text("chain"),
        _number("generation"),
        _text("token_type"),
        _json("scopes"),
        _moment("obtained_at"),
        _moment("expires_at", null=True),
        _moment("refresh_expires_at", null=True),
        _flag("refreshable"),
        _json("facts"),
        _sealed("sealed_access"),
        _sealed("sealed_refresh"),
        _sealed("sealed_id_token"),
        _number("revision"),
        _key("connection_grant", "tenant", "connection_id", "chain"),
        _of("connection_grant", "connection", "connection_id"),
    )
    _index("connection_grant", "tenant", "expires_at")
    op.create_table(
        "usage",
        _text("tenant"),
        _text("connection_id"),
        _number("leased_generation"),
        _number("revision"),
        _key("usage", "tenant", "connection_id"),
        _of("usage", "connection", "connection_id"),
    )
    op.create_table(
        "history",
        _text("tenant"),
        _text("connection_id"),
        _text("workflow_id"),
        _text("run_id"),
        _moment("exported_at"),
        _flag("closed"),
        _number("last_event_id"),
        _json("events"),
        _number("revision"),
        _key("history", "tenant", "workflow_id", "run_id"),
        _of("history", "connection", "connection_id"),
    )
    _index("history", "tenant", "connection_id")


def _consents_and_attempts() -> None:
    op.create_table(
        "consent",
        _text("tenant"),
        _text("id"),
        _text("connection_id"),
        _text("integration_id"),
        _text("status"),
        _json("scopes"),
        _text("return_to", null=True),
        _text("link_hash"),
        _text("state_hash", null=True),
        _text("browser_hash", null=True),
        _text("redirect_uri", null=True),
        _text("issuer", null=True),
        _text("token_endpoint", null=True),
        _text("failure", null=True),
        _moment("created_at"),
        _moment("expires_at"),
        _text("by"),
        _text("trace_id"),
        _sealed("sealed_link"),
        _sealed("sealed_verifier"),
        _sealed("sealed_code"),
        _number("revision"),
        _key("consent", "tenant", "id"),
        _of("consent", "connection", "connection_id"),
    )
    _index("consent", "link_hash", unique=True)
    _index("consent", "state_hash", unique=True)
    _index("consent", "tenant", "connection_id")
    op.create_table(
        "attempt",
        _text("tenant"),
        _text("id"),
        _text("connection_id"),
        _text("chain"),
        _text("kind"),
        _number("from_generation"),
        _text("journal_id"),
        _moment("opened_at"),
        _moment("send_by"),
        _text("outcome", null=True),
        _moment("closed_at", null=True),
        _number("revision"),
        _key("attempt", "tenant", "id"),
        _of("attempt", "connection", "connection_id"),
    )
    _partial("uq_attempt_open", "attempt", ["tenant", "connection_id", "chain"], "outcome IS NULL")


def _outbox() -> None:
    op.create_table(
        "outbox",
        _text("tenant"),
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        _text("id"),
        _text("kind"),
        _text("target"),
        _text("name"),
        _json("payload"),
        _moment("created_at"),
        _number("attempts"),
        _moment("next_at", null=True),
        _text("last_error", null=True),
        _text("claimed_by", null=True),
        _moment("claimed_until", null=True),
        _moment("delivered_at", null=True),
        _number("revision"),
        _key("outbox", "seq"),
        sqlite_autoincrement=True,
    )
    _index("outbox", "id", unique=True)
    _partial("ix_outbox_undelivered", "outbox", ["target", "seq"], "delivered_at IS NULL", unique=False)


def _audit() -> None:
    op.create_table(
        "audit",
        _text("tenant"),
        _text("lane"),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        _moment("at"),
        _text("action"),
        _text("object"),
        _text("by"),
        _text("trace_id"),
        sa.Column("detail", sa.Text(), nullable=False),
        _text("workflow_id", null=True),
        _text("run_id", null=True),
        _number("event_id", null=True),
        _text("previous_hash"),
        _text("hash"),
        _number("revision"),
        _key("audit", "tenant", "lane", "seq"),
    )
    _index("audit", "tenant", "object", "at")
    _index("audit", "tenant", "at")
    op.create_table(
        "audit_shard",
        _text("tenant"),
        _text("lane"),
        sa.Column("count", sa.BigInteger(), nullable=False),
        _text("last_hash"),
        _number("revision"),
        _key("audit_shard", "tenant", "lane"),
    )
