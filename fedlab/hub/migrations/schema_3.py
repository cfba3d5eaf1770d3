"""Schema 3: the index of sources lies in stretches of the log."""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Make the index anew."""
    op.drop_index("episode_sources_source")
    op.create_index("episode_sources_stretch", "episode_sources", [sa.text("episode_id >> 13"), "source"])
