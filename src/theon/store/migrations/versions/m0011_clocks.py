"""Clocks: how far a source's events lie before their arrival, and clocks that seem to be off."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

CLOCKS = """
ALTER TABLE theon.delivery_counts
    ADD COLUMN timed bigint NOT NULL DEFAULT 0,
    ADD COLUMN ahead bigint NOT NULL DEFAULT 0,
    ADD COLUMN least_lag_s double precision,
    ADD CHECK (ahead <= timed),
    ADD CHECK ((timed = 0) = (least_lag_s IS NULL));
COMMENT ON COLUMN theon.delivery_counts.timed IS
    'new events that came as they were sent, so that their times tell of the source''s clock';
COMMENT ON COLUMN theon.delivery_counts.ahead IS 'those of them that were from the future';
COMMENT ON COLUMN theon.delivery_counts.least_lag_s IS
    'arrival minus time of the event, the least of these; negative: from the future';

ALTER TABLE theon.delivery_gaps
    ADD COLUMN off_s bigint,
    DROP CONSTRAINT delivery_gaps_kind_check,
    DROP CONSTRAINT delivery_gaps_check1,
    ADD CHECK (kind IN ('moodle_ids', 'kafka_offsets', 'silence', 'clock')),
    ADD CHECK (kind IN ('silence', 'clock') OR first_id IS NOT NULL),
    ADD CHECK ((kind = 'clock') = (off_s IS NOT NULL));
DROP INDEX theon.delivery_gaps_ids;
CREATE UNIQUE INDEX delivery_gaps_ids ON theon.delivery_gaps
    (campus_id, kind, source, first_id, last_id) NULLS NOT DISTINCT WHERE first_id IS NOT NULL;
CREATE UNIQUE INDEX delivery_gaps_clocks ON theon.delivery_gaps
    (campus_id, source) WHERE kind = 'clock' AND to_at IS NULL;
COMMENT ON TABLE theon.delivery_gaps IS
    'events that should have come and did not, and clocks of sources that seem to be off; what is'
    ' of a topic belongs to the district';
COMMENT ON COLUMN theon.delivery_gaps.off_s IS
    'of a clock: by how much it seems to be off; negative: behind. to_at: when it was right again';
"""


def upgrade() -> None:
    """Add the columns."""
    op.get_bind().exec_driver_sql(CLOCKS)
