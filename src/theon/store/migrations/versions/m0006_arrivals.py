"""Events that arrive one by one: their ids, the journal before the lake, what was delivered."""

from alembic import op
from psycopg import sql

from theon.store.scope import app_role, protect, run_definition

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# No foreign key for `event_ids`: its check took a third of the time of registering ids. The door is
# the only writer, it takes the id from the campus's own row, and no campus is ever deleted.
TABLES = {
    "event_ids": """
        campus_id int NOT NULL,
        id_hash uuid NOT NULL,
        content_hash uuid NOT NULL,
        batch bigint NOT NULL,
        accepted_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (campus_id, id_hash)
    """,
    "event_journal": """
        id bigint PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        source text NOT NULL,
        events int NOT NULL,
        first_at timestamptz NOT NULL,
        last_at timestamptz NOT NULL,
        rows bytea NOT NULL,
        accepted_at timestamptz NOT NULL DEFAULT clock_timestamp()
    """,
    "landings": """
        campus_id int PRIMARY KEY REFERENCES theon.campuses (id),
        turn bigint NOT NULL DEFAULT 0,
        landed_at timestamptz
    """,
    "delivery_counts": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        source text NOT NULL,
        hour timestamptz NOT NULL,
        received bigint NOT NULL DEFAULT 0,
        accepted bigint NOT NULL DEFAULT 0,
        duplicate bigint NOT NULL DEFAULT 0,
        rejected bigint NOT NULL DEFAULT 0,
        dead_lettered bigint NOT NULL DEFAULT 0,
        last_at timestamptz NOT NULL,
        PRIMARY KEY (campus_id, source, hour)
    """,
    "delivery_reasons": """
        campus_id int NOT NULL,
        source text NOT NULL,
        hour timestamptz NOT NULL,
        reason text NOT NULL,
        events bigint NOT NULL,
        PRIMARY KEY (campus_id, source, hour, reason),
        FOREIGN KEY (campus_id, source, hour)
            REFERENCES theon.delivery_counts (campus_id, source, hour) ON DELETE CASCADE
    """,
    "dead_letters": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        source text NOT NULL,
        format text NOT NULL,
        stage text NOT NULL,
        reason text NOT NULL,
        detail text,
        place text,
        original bytea NOT NULL,
        received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'replayed', 'discarded')),
        ended_at timestamptz,
        ended_by text
    """,
}

MORE = """
CREATE SEQUENCE theon.event_batches;
CREATE INDEX event_ids_age ON theon.event_ids USING brin (accepted_at);
CREATE INDEX event_journal_turn ON theon.event_journal (campus_id, id);
CREATE INDEX dead_letters_list ON theon.dead_letters (campus_id, state, id);
CREATE INDEX delivery_counts_hour ON theon.delivery_counts (campus_id, hour);
ALTER TABLE theon.delivery_counts SET (fillfactor = 50);
COMMENT ON TABLE theon.event_ids IS
    'ids accepted in the last days, and what they stood for, as hashes (MD5)';
COMMENT ON COLUMN theon.event_journal.rows IS 'Arrow IPC stream, zstd; not in the lake yet';
COMMENT ON COLUMN theon.landings.turn IS 'number of the last landing that is in the lake';
COMMENT ON COLUMN theon.delivery_counts.hour IS 'UTC hour in which the events were received';
COMMENT ON COLUMN theon.dead_letters.place IS 'where it stood: an index, topic and offset, a line';
"""


def upgrade() -> None:
    """Make the tables; the batches' numbers are the application's to take."""
    connection = op.get_bind()
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(MORE)
    grant = "GRANT USAGE ON SEQUENCE theon.event_batches TO {app}"
    run_definition(connection, grant, app=sql.Identifier(app_role(connection)))
