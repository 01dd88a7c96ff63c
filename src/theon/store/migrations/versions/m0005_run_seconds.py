"""How long an attempt ran in its process, apart from what it waited for one."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of attempts that ended before it is not known."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE theon.job_attempts ADD COLUMN run_s double precision;"
        "COMMENT ON COLUMN theon.job_attempts.run_s IS 'seconds in its process; a short attempt"
        " may have begun before a process was free for it. Null where it was ended from outside'"
    )
