"""An original that is sent again is found among the dead letters."""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.get_bind().exec_driver_sql(
        "CREATE INDEX dead_letters_originals ON theon.dead_letters"
        " (campus_id, source, md5(original))"
    )
