"""Kafka: offsets in the transaction of what they brought, consumers, and the outbox."""

from alembic import op

from theon.store.scope import protect

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# What belongs to the whole installation belongs to the district: who sees less sees none of it.
CAMPUS = "campus_id int NOT NULL REFERENCES theon.campuses (id)"

TABLES = {
    "kafka_offsets": f"""
        {CAMPUS},
        group_id text NOT NULL,
        topic text NOT NULL,
        partition int NOT NULL,
        topic_id text,
        generation int NOT NULL DEFAULT 0,
        next_offset bigint NOT NULL CHECK (next_offset >= 0),
        messages bigint NOT NULL DEFAULT 0,
        last_event_at timestamptz,
        moved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (group_id, topic, partition)
    """,
    "kafka_consumers": f"""
        id text PRIMARY KEY,
        {CAMPUS},
        group_id text NOT NULL,
        host text NOT NULL,
        pid int NOT NULL,
        state text NOT NULL,
        partitions text[] NOT NULL,
        messages bigint NOT NULL,
        error text,
        started_at timestamptz NOT NULL,
        heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp()
    """,
    "outbox": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        event_id uuid NOT NULL DEFAULT gen_random_uuid(),
        type text NOT NULL,
        data jsonb NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    """,
}

MORE = """
ALTER TABLE theon.kafka_offsets SET (fillfactor = 50);
ALTER TABLE theon.kafka_consumers SET (fillfactor = 50);
COMMENT ON COLUMN theon.kafka_offsets.topic_id IS 'by the broker: another one is another topic';
COMMENT ON COLUMN theon.kafka_offsets.generation IS
    'how often the topic was made anew: its offsets began again then';
COMMENT ON COLUMN theon.kafka_offsets.last_event_at IS 'time of the last message, by its producer';
COMMENT ON TABLE theon.outbox IS 'what was not yet published on Kafka';
"""


def upgrade() -> None:
    """Make the tables."""
    connection = op.get_bind()
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(MORE)
