"""Schema 2: holds, the attic, the ledger of erasures, how episodes were recalled, and indexes for retention."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Add the tables and the indexes."""
    op.create_index("changes_erased", "changes", ["subject"], sqlite_where=sa.text("kind = 'episode_erased'"))
    op.drop_index("episodes_tenant_created")
    op.create_index("episodes_tenant_created", "episodes", ["tenant_id", "created_at", "reward"])
    expiring = sa.text("expires_at IS NOT NULL")
    op.create_index("episodes_expiring", "episodes", ["tenant_id", "expires_at"], sqlite_where=expiring)
    op.create_table(
        "holds",
        _of_episode("RESTRICT"),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("holds_tenant", "holds", ["tenant_id"])
    op.create_table(
        "attic",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("forgotten_seq", sa.Integer, nullable=False),
        sa.Column("forgotten_at", sa.BigInteger, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_index("attic_tenant", "attic", ["tenant_id"])
    op.create_index("attic_forgotten", "attic", ["forgotten_at"])
    op.create_table(
        "erasures",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("tenant_hash", sa.Text, nullable=False),
        sa.Column("agent_hash", sa.Text),
        sa.Column("episodes", sa.Integer, nullable=False),
        sa.Column("agents", sa.Integer, nullable=False),
        sa.Column("changes", sa.Integer, nullable=False),
        sa.Column("done_at", sa.BigInteger),
        sa.Column("pending", sa.Text),
    )
    op.create_table(
        "recalls",
        _of_episode("CASCADE"),
        sa.Column("times", sa.Integer, nullable=False),
        sa.Column("last_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "queries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_index("queries_tenant", "queries", ["tenant_id", "id"])


def _of_episode(ondelete: str) -> sa.Column[int]:
    """The episode that a row belongs to."""
    key = sa.ForeignKey("episodes.id", ondelete=ondelete)
    return sa.Column("episode_id", sa.Integer, key, primary_key=True, autoincrement=False)
