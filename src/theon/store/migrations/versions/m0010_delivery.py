"""Gaps in what sources delivered, and what people did to dead letters."""

from alembic import op

from theon.store.scope import protect

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = {
    "delivery_gaps": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        kind text NOT NULL CHECK (kind IN ('moodle_ids', 'kafka_offsets', 'silence')),
        source text NOT NULL,
        first_id bigint,
        last_id bigint,
        missing bigint CHECK (missing > 0),
        from_at timestamptz,
        to_at timestamptz,
        noticed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'repaired', 'accepted')),
        explanation text NOT NULL,
        ended_at timestamptz,
        ended_by text,
        CHECK ((state = 'open') = (ended_at IS NULL)),
        CHECK (kind = 'silence' OR first_id IS NOT NULL),
        CHECK (first_id <= last_id),
        CHECK ((last_id IS NULL) = (missing IS NULL))
    """,
    "delivery_looks": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        kind text NOT NULL,
        position bigint NOT NULL,
        looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (campus_id, kind)
    """,
    "dead_letter_changes": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        letter_id bigint NOT NULL REFERENCES theon.dead_letters (id) ON DELETE CASCADE,
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        actor text NOT NULL,
        action text NOT NULL CHECK (action IN ('replay', 'discard')),
        outcome text NOT NULL
            CHECK (outcome IN ('accepted', 'duplicate', 'refused', 'discarded')),
        reason text,
        note text,
        mend jsonb
    """,
}

MORE = """
CREATE UNIQUE INDEX delivery_gaps_ids ON theon.delivery_gaps
    (campus_id, kind, source, first_id, last_id) NULLS NOT DISTINCT WHERE kind <> 'silence';
CREATE UNIQUE INDEX delivery_gaps_silences ON theon.delivery_gaps
    (campus_id, source, from_at) WHERE kind = 'silence';
CREATE INDEX delivery_gaps_list ON theon.delivery_gaps (campus_id, state, id);
CREATE INDEX dead_letter_changes_of ON theon.dead_letter_changes (letter_id, id);
CREATE INDEX dead_letters_newest ON theon.dead_letters (state, id);
CREATE INDEX dead_letters_ended ON theon.dead_letters (ended_at) WHERE state <> 'waiting';
CREATE INDEX delivery_counts_age ON theon.delivery_counts (hour);
COMMENT ON TABLE theon.delivery_gaps IS
    'events that should have come and did not; those of a topic belong to the district';
COMMENT ON COLUMN theon.delivery_gaps.first_id IS 'Moodle log id or Kafka offset; with last_id';
COMMENT ON COLUMN theon.delivery_gaps.from_at IS
    'the last that came before the gap; to_at: the first after it';
COMMENT ON TABLE theon.delivery_looks IS 'how far a campus was looked through for gaps of a kind';
COMMENT ON COLUMN theon.dead_letter_changes.mend IS
    'what was changed in a copy before it was replayed; the original bytes stay as they are';
"""


def upgrade() -> None:
    """Make the tables."""
    connection = op.get_bind()
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(MORE)
