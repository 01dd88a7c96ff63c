"""Workers may be asked to drain: their heartbeat brings the question back to them."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the question to the workers' rows."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE theon.job_workers ADD COLUMN drain_asked boolean NOT NULL DEFAULT false"
    )
