"""People who administer: where they log in, their logins and sessions. Approvals may be a person's."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _approvals()
    _admin_login()
    _person_login()
    _person_session()


def downgrade() -> None:
    """Refuse: going back means restoring a backup."""
    raise RuntimeError("restore a backup of the earlier schema")


def _approvals() -> None:
    """`app_id` may be a person's id: no foreign key."""
    with op.batch_alter_table("approval") as table:
        table.drop_constraint("fk_approval_app", type_="foreignkey")


def _text(*names: str, null: bool = False) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(), nullable=null) for name in names]


def _moments(*names: str, null: bool = False) -> list[sa.Column[object]]:
    return [sa.Column(name, sa.DateTime(timezone=True), nullable=null) for name in names]


def _json(*names: str, null: bool = False) -> list[sa.Column[object]]:
    return [sa.Column(name, sa.JSON(), nullable=null) for name in names]


def _admin_login() -> None:
    op.create_table(
        "admin_login",
        *_text("tenant", "id", "integration", "issuer", "groups_claim"),
        *_json("roles", "scopes"),
        *_moments("changed_at"),
        *_text("mac", null=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_admin_login"),
        sa.UniqueConstraint("tenant", name="uq_admin_login_tenant"),
    )


def _person_login() -> None:
    op.create_table(
        "person_login",
        *_text("tenant", "id", "status", "rule", "integration_id"),
        *_text("state_hash", "code_hash", "role", "mac", null=True),
        *_text("nonce_hash", "browser_hash", "redirect_uri", "issuer", "token_endpoint"),
        sa.Column("step_up", sa.Boolean(), nullable=False),
        *_json("command", "person", null=True),
        *_moments("authenticated_at", null=True),
        *_moments("created_at", "expires_at"),
        sa.Column("sealed_verifier", sa.LargeBinary(), nullable=True),
        sa.Column("sealed_code", sa.LargeBinary(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_person_login"),
    )
    op.create_index("ix_person_login_state_hash", "person_login", ["state_hash"], unique=True)
    op.create_index("ix_person_login_code_hash", "person_login", ["code_hash"], unique=True)
    op.create_index("ix_person_login_expires_at", "person_login", ["expires_at"])


def _person_session() -> None:
    op.create_table(
        "person_session",
        *_text("tenant", "id", "kind", "secret_hash", "role"),
        *_text("rule", "reason", "mac", null=True),
        *_json("person"),
        *_moments("authenticated_at", "ended_at", null=True),
        *_moments("created_at", "last_used_at", "expires_at"),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_person_session"),
    )
    op.create_index("ix_person_session_secret_hash", "person_session", ["secret_hash"], unique=True)
    op.create_index("ix_person_session_expires_at", "person_session", ["expires_at"])
