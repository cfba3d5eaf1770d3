"""Schema 1, of the first release: episodes with vectors and sources, the registry, the log."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table("meta", sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.Text, primary_key=True),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("retention", sa.Text),
    )
    op.create_table(
        "episodes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("reward", sa.Double, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_index("episodes_tenant_created", "episodes", ["tenant_id", "created_at"])
    op.create_table(
        "vectors",
        _of_episode(),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "episode_sources",
        _of_episode(),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("episode_sources_source", "episode_sources", ["source"])
    op.create_table(
        "agents",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("spawned_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("pushed", sa.Integer, nullable=False),
        sa.Column("pulled", sa.Integer, nullable=False),
    )
    op.create_index("agents_tenant_agent", "agents", ["tenant_id", "agent_id"])
    op.create_index("agents_alive", "agents", ["expires_at"], sqlite_where=sa.text("status = 'alive'"))
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    )
    op.create_index("changes_tenant", "changes", ["tenant_id", "seq"])
    op.create_index(
        "changes_stored",
        "changes",
        ["tenant_id", "subject"],
        unique=True,
        sqlite_where=sa.text("kind = 'episode_stored'"),
    )


def _of_episode() -> sa.Column[int]:
    """The episode that a row belongs to, and goes with."""
    key = sa.ForeignKey("episodes.id", ondelete="CASCADE")
    return sa.Column("episode_id", sa.Integer, key, primary_key=True, autoincrement=False)
