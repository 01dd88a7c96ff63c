"""Which events are retracted, and when they happened."""

from alembic import op

from theon.store.scope import protect

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

RETRACTIONS = """
CREATE TABLE theon.retractions (
    campus_id int NOT NULL REFERENCES theon.campuses (id),
    event_id text COLLATE "C" NOT NULL,
    occurred_at timestamptz,
    sought boolean NOT NULL DEFAULT false,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- As of `outcome_facts`.
    PRIMARY KEY (event_id, campus_id)
);
CREATE INDEX retractions_open ON theon.retractions (campus_id, event_id) WHERE occurred_at IS NULL;
COMMENT ON TABLE theon.retractions IS 'events that were taken back, also such as have not come yet';
COMMENT ON COLUMN theon.retractions.event_id IS 'in the form that outcome_facts has it';
COMMENT ON COLUMN theon.retractions.occurred_at IS
    'of the event; null: not found yet, so there is no retraction of it in the lake';
COMMENT ON COLUMN theon.retractions.sought IS
    'the lake was looked through; the event can only be among those that come from now on';
"""


def upgrade() -> None:
    """Make the table."""
    connection = op.get_bind()
    connection.exec_driver_sql(RETRACTIONS)
    protect(connection, "theon.retractions")
