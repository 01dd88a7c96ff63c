"""The learning record store: statements, how they are found, their files, and documents."""

from alembic import op

from theon.store.scope import protect

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

CAMPUS = "campus_id int NOT NULL REFERENCES theon.campuses (id)"

TABLES = {
    "lrs_statements": f"""
        {CAMPUS},
        id uuid NOT NULL,
        stored timestamptz NOT NULL,
        happened_at timestamptz,
        fingerprint bytea NOT NULL CHECK (length(fingerprint) = 32),
        refers_to uuid,
        voiding boolean NOT NULL,
        size_bytes int NOT NULL,
        statement text NOT NULL,
        PRIMARY KEY (campus_id, id),
        UNIQUE (campus_id, stored)
    """,
    "lrs_keys": f"""
        {CAMPUS},
        key uuid NOT NULL,
        stored timestamptz NOT NULL,
        own boolean NOT NULL,
        PRIMARY KEY (campus_id, key, stored),
        FOREIGN KEY (campus_id, stored) REFERENCES theon.lrs_statements (campus_id, stored)
            ON DELETE CASCADE
    """,
    "lrs_attachments": f"""
        {CAMPUS},
        sha2 text NOT NULL CHECK (length(sha2) <= 128),
        content_type text NOT NULL,
        content bytea NOT NULL,
        PRIMARY KEY (campus_id, sha2)
    """,
    "lrs_activities": f"""
        {CAMPUS},
        id_hash uuid NOT NULL,
        id text NOT NULL,
        definition text NOT NULL,
        PRIMARY KEY (campus_id, id_hash)
    """,
    "lrs_names": f"""
        {CAMPUS},
        agent uuid NOT NULL,
        name_hash uuid NOT NULL,
        name text NOT NULL,
        PRIMARY KEY (campus_id, agent, name_hash)
    """,
    "lrs_documents": f"""
        {CAMPUS},
        place uuid NOT NULL,
        registration uuid NOT NULL,
        id_hash uuid NOT NULL,
        id text NOT NULL,
        content_type text NOT NULL,
        content bytea NOT NULL,
        etag text NOT NULL,
        updated_at timestamptz NOT NULL,
        PRIMARY KEY (campus_id, place, registration, id_hash)
    """,
}

MORE = """
CREATE INDEX lrs_statements_refers ON theon.lrs_statements (campus_id, refers_to)
    WHERE refers_to IS NOT NULL;
CREATE INDEX lrs_keys_statement ON theon.lrs_keys (campus_id, stored);
ALTER TABLE theon.lrs_attachments ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON COLUMN theon.lrs_statements.stored IS
    'by the microsecond: of two statements of a campus the one committed later has the later one';
COMMENT ON COLUMN theon.lrs_statements.fingerprint IS
    'SHA-256 of what it says; a statement with its id and another one is refused';
COMMENT ON COLUMN theon.lrs_statements.refers_to IS 'the statement that its object names';
COMMENT ON TABLE theon.lrs_keys IS
    'hashes of the verb, activities, agents and registration of a statement, and of those that
it refers to';
COMMENT ON COLUMN theon.lrs_keys.own IS 'false where it comes from a statement referred to';
COMMENT ON COLUMN theon.lrs_documents.place IS
    'hash of the kind of document, the activity and the agent';
COMMENT ON COLUMN theon.lrs_documents.registration IS 'all zeros where there is none';
"""


def upgrade() -> None:
    """Make the tables and their policies."""
    connection = op.get_bind()
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(MORE)
