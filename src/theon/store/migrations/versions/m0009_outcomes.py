"""Outcomes: what events say of them, and the statements of the metrics that rest on them."""

from alembic import op
from psycopg import sql

from theon.store.scope import app_role, protect, run_definition

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

FACTS = """
CREATE TABLE theon.outcome_facts (
    campus_id int NOT NULL REFERENCES theon.campuses (id),
    event_id text COLLATE "C" NOT NULL,
    kind text NOT NULL,
    user_id text NOT NULL,
    course_id text NOT NULL,
    item_id text NOT NULL,
    attempt text NOT NULL,
    state text NOT NULL,
    score double precision,
    max_score double precision,
    items text,
    occurred_at timestamptz NOT NULL,
    -- The id first: while statistics are old, an index that begins with the campus looks as good
    -- for finding a learner's facts as the one that is made for it, and is not.
    PRIMARY KEY (event_id, campus_id)
);
CREATE INDEX outcome_facts_learner ON theon.outcome_facts (campus_id, course_id, user_id);
COMMENT ON TABLE theon.outcome_facts IS
    'what an event says of one thing of a learner; what the thing is follows from all of them';
COMMENT ON COLUMN theon.outcome_facts.user_id IS 'empty where it is about no learner';
COMMENT ON COLUMN theon.outcome_facts.items IS 'ids with the character 31 between them';
CREATE TABLE theon.outcome_columns (
    metric text NOT NULL,
    version int NOT NULL,
    hash text NOT NULL,
    statement text NOT NULL,
    PRIMARY KEY (metric, version)
);
COMMENT ON TABLE theon.outcome_columns IS
    'what observers run to bring the outcome columns of a metric up to date; the owner writes it';
ALTER TABLE theon.refresh_state ADD COLUMN outcome_rules_hash text;
COMMENT ON COLUMN theon.refresh_state.outcome_rules_hash IS
    'rules by which the facts of the lake''s events were derived; null: they were not yet';
"""


def upgrade() -> None:
    """Make the tables; the statements are the application's to read and not to write."""
    connection = op.get_bind()
    connection.exec_driver_sql(FACTS)
    protect(connection, "theon.outcome_facts")
    app = {"app": sql.Identifier(app_role(connection))}
    run_definition(connection, "GRANT SELECT ON theon.outcome_columns TO {app}", **app)
