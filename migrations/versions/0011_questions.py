"""Questions with their answers; what was detected, what each app usually does, and whence it calls."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_INDEXES = (
    ("ix_question_subject", "question", ("tenant", "subject")),
    ("ix_question_connection", "question", ("tenant", "connection_id")),
    ("ix_question_expires_at", "question", ("expires_at",)),
    ("ix_question_answer_connection", "question_answer", ("tenant", "connection_id")),
    ("ix_detection_object", "detection", ("tenant", "object", "kind", "at")),
    ("ix_detection_at", "detection", ("tenant", "at")),
    ("ix_detection_connection", "detection", ("tenant", "connection_id")),
    ("ix_caller_network_first", "caller_network", ("first_at",)),
)
# the first words of the actions that say who may do what: those of rules and clients, too
_ACCESS_WORDS = (
    *("access", "app", "approval", "credential", "integration", "issuer", "key", "permit"),
    *("person", "role", "session"),
    *("admin_login", "client_login", "delegation_rule", "oauth_client", "tenant", "trusted_issuer"),
)


def upgrade() -> None:
    _question()
    _question_answer()
    _detection()
    _app_activity()
    _detection_place()
    _caller_network()
    for name, table, columns in _INDEXES:
        op.create_index(name, table, list(columns))
    op.drop_index("ix_audit_access", "audit")
    access = sa.text("({})".format(" OR ".join(f"action LIKE '{word}.%'" for word in _ACCESS_WORDS)))
    op.create_index(
        "ix_audit_access", "audit", ["tenant", "at"], sqlite_where=access, postgresql_where=access
    )


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _question() -> None:
    op.create_table(
        "question",
        *_text("tenant", "id", "kind", "by", "trace_id", "state", "after"),
        *_text("connection_id", "app_id", "integration", "subject", null=True),
        *_times("created_at", "expires_at"),
        *_times("since", "until", "answered_at", null=True),
        *_numbers("connections", "records", "items", "revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_question"),
    )


def _question_answer() -> None:
    op.create_table(
        "question_answer",
        *_text("tenant", "question_id", "kind"),
        *_text("connection_id", null=True),
        _big("number"),
        sa.Column("facts", sa.JSON(), nullable=False),
        *_numbers("revision"),
        sa.PrimaryKeyConstraint("tenant", "question_id", "number", name="pk_question_answer"),
        sa.ForeignKeyConstraint(
            ["tenant", "question_id"],
            ["question.tenant", "question.id"],
            name="fk_question_answer_question",
            ondelete="CASCADE",
        ),
    )


def _detection() -> None:
    op.create_table(
        "detection",
        *_text("tenant", "id", "kind", "object"),
        *_text("connection_id", "app_id", null=True),
        *_times("at"),
        sa.Column("facts", sa.JSON(), nullable=False),
        *_numbers("revision"),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_detection"),
    )


def _app_activity() -> None:
    op.create_table(
        "app_activity",
        *_text("tenant", "app_id", "day"),
        *_times("used_at", null=True),
        *_numbers("most", "refused", "unconfirmed", "revision"),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "app_id", name="pk_app_activity"),
        _of_app("app_activity"),
    )


def _detection_place() -> None:
    op.create_table(
        "detection_place",
        *_text("tenant", "shard"),
        _big("seq"),
        *_numbers("revision"),
        sa.PrimaryKeyConstraint("tenant", "shard", name="pk_detection_place"),
    )


def _caller_network() -> None:
    op.create_table(
        "caller_network",
        *_text("tenant", "app_id", "network"),
        *_times("first_at", "used_at"),
        *_numbers("revision"),
        sa.PrimaryKeyConstraint("tenant", "app_id", "network", name="pk_caller_network"),
        _of_app("caller_network"),
    )


def _of_app(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant", "app_id"], ["app.tenant", "app.id"], name=f"fk_{table}_app", ondelete="CASCADE"
    )


def _text(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _times(*names: str, null: bool = False) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _numbers(*names: str) -> "list[sa.Column[object]]":
    return [sa.Column(name, sa.Integer(), nullable=False) for name in names]


def _big(name: str) -> "sa.Column[object]":
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False)
