"""Scope, campuses, roster, intake's and refresh's books; the empty schema of the metrics."""

from alembic import op

from theon.store.scope import protect

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CAMPUSES = """
CREATE TABLE theon.campuses (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    slug text NOT NULL UNIQUE
        CHECK (slug ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$' AND length(slug) <= 63),
    name text NOT NULL,
    timezone text NOT NULL,
    parent_id int REFERENCES theon.campuses (id),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX campuses_one_root ON theon.campuses ((parent_id IS NULL))
    WHERE parent_id IS NULL;
CREATE INDEX campuses_parent ON theon.campuses (parent_id);
"""

# The function runs as the owner, for it must see the whole tree to say what is visible.
VISIBLE_CAMPUSES = """
CREATE FUNCTION theon.visible_campus_ids() RETURNS int[]
LANGUAGE sql STABLE SECURITY DEFINER PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH RECURSIVE visible (id) AS (
        SELECT id FROM theon.campuses WHERE slug = current_setting('theon.scope', true)
        UNION  -- not UNION ALL: ends even on a tree with a circle
        SELECT c.id FROM theon.campuses AS c JOIN visible AS v ON c.parent_id = v.id
    )
    SELECT coalesce(array_agg(id), '{}') FROM visible
$$;
REVOKE ALL ON FUNCTION theon.visible_campus_ids() FROM PUBLIC;
"""

# Reading is by id as everywhere; a new campus is allowed below a visible one. The owner's
# policy is what the function above reads by, and what the first row is inserted under.
CAMPUS_POLICIES = """
ALTER TABLE theon.campuses ENABLE ROW LEVEL SECURITY;
ALTER TABLE theon.campuses FORCE ROW LEVEL SECURITY;
CREATE POLICY in_scope ON theon.campuses
    USING (id = ANY ((SELECT theon.visible_campus_ids())::int[]))
    WITH CHECK (parent_id = ANY ((SELECT theon.visible_campus_ids())::int[]));
CREATE POLICY owner_reads_the_tree ON theon.campuses TO CURRENT_USER
    USING (true) WITH CHECK (true);
INSERT INTO theon.campuses (slug, name, timezone) VALUES ('district', 'District', 'UTC');
"""

TABLES = {
    "courses": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        course_id text NOT NULL,
        short_name text,
        full_name text,
        visible boolean NOT NULL DEFAULT true,
        deleted boolean NOT NULL DEFAULT false,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (campus_id, course_id)
    """,
    "people": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        user_id text NOT NULL,
        deleted boolean NOT NULL DEFAULT false,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (campus_id, user_id)
    """,
    "intake_runs": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        format text NOT NULL,
        location text NOT NULL,
        state text NOT NULL DEFAULT 'running' CHECK (state IN
            ('running', 'completed', 'completed_with_rejects', 'failed', 'interrupted')),
        started_at timestamptz NOT NULL DEFAULT now(),
        finished_at timestamptz,
        rows_read bigint NOT NULL DEFAULT 0,
        events_new bigint NOT NULL DEFAULT 0,
        events_known bigint NOT NULL DEFAULT 0,
        rows_rejected bigint NOT NULL DEFAULT 0,
        reasons jsonb NOT NULL DEFAULT '{}',
        notes jsonb NOT NULL DEFAULT '[]',
        error text,
        UNIQUE (campus_id, id)
    """,
    "intake_rejects": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        run_id bigint NOT NULL,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        location text NOT NULL,
        line_number bigint,
        reason text NOT NULL,
        detail text,
        original text,
        FOREIGN KEY (campus_id, run_id) REFERENCES theon.intake_runs (campus_id, id)
            ON DELETE CASCADE
    """,
    "intake_cursors": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        source text NOT NULL,
        last_id bigint NOT NULL,
        site text,
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (campus_id, source)
    """,
    "derived_files": """
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        dataset text NOT NULL CHECK (dataset IN ('cells', 'days')),
        path text NOT NULL,
        row_count bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        UNIQUE (campus_id, id)
    """,
    "derived_parts": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        dataset text NOT NULL,
        period int NOT NULL,
        file_id bigint NOT NULL,
        row_count int NOT NULL,
        PRIMARY KEY (campus_id, dataset, period),
        FOREIGN KEY (campus_id, file_id) REFERENCES theon.derived_files (campus_id, id)
    """,
    "refresh_state": """
        campus_id int PRIMARY KEY REFERENCES theon.campuses (id),
        lake_version bigint NOT NULL DEFAULT -1,
        rules_hash text,
        timezone text,
        session_limit_s int,
        refreshed_at timestamptz,
        generation bigint NOT NULL DEFAULT 0
    """,
    "metric_versions": """
        campus_id int NOT NULL REFERENCES theon.campuses (id),
        metric text NOT NULL,
        definition_hash text NOT NULL,
        version int NOT NULL,
        refreshed_at timestamptz,
        PRIMARY KEY (campus_id, metric)
    """,
}

MEANINGS = """
COMMENT ON COLUMN theon.derived_parts.period IS
    'cells: epoch seconds // 3600, UTC; days: local date as days since 1970-01-01';
COMMENT ON COLUMN theon.intake_runs.location IS 'file or URL, passwords removed';
COMMENT ON COLUMN theon.refresh_state.lake_version IS 'last version of the lake seen; -1: none';
COMMENT ON TABLE theon.people IS 'ids only: neither names nor addresses';
CREATE INDEX intake_rejects_run ON theon.intake_rejects (campus_id, run_id);
CREATE INDEX derived_parts_file ON theon.derived_parts (campus_id, file_id);
"""


def upgrade() -> None:
    """Make everything; `theon.store.schema` lets the application in."""
    connection = op.get_bind()
    for statements in (CAMPUSES, VISIBLE_CAMPUSES, CAMPUS_POLICIES):
        connection.exec_driver_sql(statements)
    for name, columns in TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(MEANINGS)
    connection.exec_driver_sql("CREATE SCHEMA metrics")
