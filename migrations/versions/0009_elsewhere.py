"""Receivers of security events, what connections are known by, and when they were introspected."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _receivers()
    _received()
    _marks()
    _introspection()


def downgrade() -> None:
    """A store is never taken down: going back means restoring a backup."""
    raise RuntimeError("events that were received could be played again")


def _moment(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, sa.String(), nullable=nullable)


def _revision() -> sa.Column:
    return sa.Column("revision", sa.Integer(), nullable=False)


def _of_connection(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", "connection_id"],
        ["connection.tenant", "connection.id"],
        name=f"fk_{table}_connection",
    )


def _receivers() -> None:
    op.create_table(
        "event_receiver",
        _text("tenant"),
        _text("id"),
        _text("integration_id"),
        _text("kind"),
        _text("issuer", nullable=True),
        _text("jwks_uri", nullable=True),
        sa.Column("audience", sa.JSON(), nullable=False),
        _text("account_in"),
        sa.Column("keys", sa.JSON(), nullable=True),
        _moment("keys_at", nullable=True),
        _moment("keys_asked_at", nullable=True),
        _text("keys_problem", nullable=True),
        sa.Column("sealed_secret", sa.LargeBinary(), nullable=True),
        _moment("created_at"),
        _moment("changed_at"),
        _revision(),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_event_receiver"),
        sa.UniqueConstraint("tenant", "integration_id", name="uq_event_receiver_tenant_integration_id"),
        sa.ForeignKeyConstraint(
            ["tenant", "integration_id"],
            ["integration.tenant", "integration.id"],
            name="fk_event_receiver_integration",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_event_receiver_id", "event_receiver", ["id"], unique=True)


def _received() -> None:
    op.create_table(
        "received_event",
        _text("tenant"),
        _text("receiver_id"),
        _text("event_hash"),
        _moment("received_at"),
        _revision(),
        sa.PrimaryKeyConstraint("tenant", "receiver_id", "event_hash", name="pk_received_event"),
        sa.ForeignKeyConstraint(
            ["tenant", "receiver_id"],
            ["event_receiver.tenant", "event_receiver.id"],
            name="fk_received_event_event_receiver",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_received_event_received_at", "received_event", ["received_at"])


def _marks() -> None:
    op.create_table(
        "account_identifier",
        _text("tenant"),
        _text("connection_id"),
        _text("name"),
        _text("integration_id"),
        _text("mark"),
        _revision(),
        sa.PrimaryKeyConstraint("tenant", "connection_id", "name", name="pk_account_identifier"),
        _of_connection("account_identifier"),
    )
    op.create_index(
        "ix_account_identifier_tenant_integration_id_mark",
        "account_identifier",
        ["tenant", "integration_id", "mark"],
    )


def _introspection() -> None:
    op.create_table(
        "introspection",
        _text("tenant"),
        _text("connection_id"),
        _moment("next_at"),
        _moment("checked_at", nullable=True),
        _text("outcome"),
        _revision(),
        sa.PrimaryKeyConstraint("tenant", "connection_id", name="pk_introspection"),
        _of_connection("introspection"),
    )
    op.create_index("ix_introspection_next_at", "introspection", ["next_at"])
