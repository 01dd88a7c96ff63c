"""Sign-in: accounts, their sessions, API keys, failed attempts, the first administrator's link."""

from alembic import op

from theon.store.scope import protect

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# The roles in theon/access/roles.py; a test compares the two.
ROLES = (
    "system_administrator",
    "campus_administrator",
    "teacher",
    "learner",
    "service",
)

CAMPUS = "campus_id int NOT NULL REFERENCES theon.campuses (id)"
ROLE = f"role text NOT NULL CHECK (role IN {ROLES})"

TABLES = {
    "accounts": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        name text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 254),
        {ROLE},
        password_hash text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        password_changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        signed_in_at timestamptz,
        disabled_at timestamptz,
        UNIQUE (campus_id, id)
    """,
    "sessions": f"""
        token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
        {CAMPUS},
        account_id bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        FOREIGN KEY (campus_id, account_id) REFERENCES theon.accounts (campus_id, id)
            ON DELETE CASCADE ON UPDATE CASCADE
    """,
    "api_keys": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
        prefix text NOT NULL UNIQUE,
        key_hash bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
        {ROLE},
        made_by text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        revoked_at timestamptz,
        used_at timestamptz
    """,
    "sign_in_failures": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        subject text NOT NULL,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    """,
    "welcome_links": f"""
        token_hash bytea PRIMARY KEY CHECK (length(token_hash) = 32),
        {CAMPUS},
        expires_at timestamptz NOT NULL
    """,
}

INDEXES = """
CREATE INDEX accounts_campus ON theon.accounts (campus_id);
CREATE INDEX sessions_account ON theon.sessions (account_id);
CREATE INDEX sessions_expires ON theon.sessions (expires_at);
CREATE INDEX api_keys_campus ON theon.api_keys (campus_id);
CREATE INDEX sign_in_failures_subject ON theon.sign_in_failures (subject, at);
CREATE INDEX sign_in_failures_at ON theon.sign_in_failures (at);
COMMENT ON COLUMN theon.accounts.name IS 'unique in the whole district: it is given before a
campus is known';
COMMENT ON COLUMN theon.sessions.token_hash IS 'SHA-256; the token is in the cookie alone';
COMMENT ON COLUMN theon.api_keys.key_hash IS 'SHA-256; the key was shown once';
COMMENT ON COLUMN theon.sign_in_failures.subject IS
    'name:<SHA-256 of the name>, for people type passwords there, or address:<network>';
"""


def upgrade() -> None:
    """Make the tables and their policies."""
    connection = op.get_bind()
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(INDEXES)
