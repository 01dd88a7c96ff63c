"""The job ledger: jobs, their history and attempts, workers, schedules, pauses, counters."""

from alembic import op
from psycopg import sql

from theon.store.scope import app_role, protect, run_definition

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATES = "('scheduled', 'queued', 'dispatched', 'running', 'completed', 'failed', 'cancelled')"

# The table in theon/jobs/states.py; a test compares the two.
TRANSITIONS = (
    ("scheduled", "queued"),
    ("scheduled", "cancelled"),
    ("scheduled", "failed"),
    ("queued", "dispatched"),
    ("queued", "cancelled"),
    ("dispatched", "running"),
    ("dispatched", "queued"),
    ("dispatched", "failed"),
    ("dispatched", "cancelled"),
    ("running", "completed"),
    ("running", "scheduled"),
    ("running", "queued"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "scheduled"),
    ("failed", "cancelled"),
    ("cancelled", "scheduled"),
)

CAMPUS = "campus_id int NOT NULL REFERENCES theon.campuses (id)"
JOB = "FOREIGN KEY (campus_id, job_id) REFERENCES theon.jobs (campus_id, id) ON DELETE CASCADE"

CAMPUS_TABLES = {
    "jobs": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        kind text NOT NULL,
        queue text NOT NULL,
        category text NOT NULL,
        owner text NOT NULL DEFAULT '',
        arguments jsonb NOT NULL,
        size double precision,
        state text NOT NULL CHECK (state IN {STATES}),
        reason text NOT NULL DEFAULT '',
        priority smallint NOT NULL,
        rank_at timestamptz NOT NULL,
        ready_at timestamptz NOT NULL,
        deadline_at timestamptz,
        idempotency_key text,
        waits_for int NOT NULL DEFAULT 0,
        token bigint NOT NULL DEFAULT 0,
        attempts int NOT NULL DEFAULT 0,
        max_attempts int NOT NULL CHECK (max_attempts >= 1),
        lost int NOT NULL DEFAULT 0,
        max_lost int NOT NULL CHECK (max_lost >= 1),
        timeout_s double precision NOT NULL,
        memory_mb int NOT NULL,
        worker text,
        lease_until timestamptz,
        cancel_asked boolean NOT NULL DEFAULT false,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        started_at timestamptz,
        ended_at timestamptz,
        done double precision,
        total double precision,
        operation text,
        checkpoint jsonb,
        result jsonb,
        error text,
        error_kind text,
        stack text,
        peak_memory_mb double precision,
        cpu_s double precision,
        UNIQUE (campus_id, id)
    """,
    "job_dependencies": f"""
        {CAMPUS},
        job_id bigint NOT NULL,
        needs_id bigint NOT NULL,
        needs_campus_id int NOT NULL,
        PRIMARY KEY (job_id, needs_id),
        {JOB},
        FOREIGN KEY (needs_campus_id, needs_id) REFERENCES theon.jobs (campus_id, id)
            ON DELETE CASCADE
    """,
    "job_history": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        job_id bigint NOT NULL,
        before text,
        after text NOT NULL,
        at timestamptz NOT NULL,
        token bigint NOT NULL,
        attempt int NOT NULL,
        worker text,
        reason text NOT NULL,
        {JOB}
    """,
    "job_attempts": f"""
        {CAMPUS},
        job_id bigint NOT NULL,
        token bigint NOT NULL,
        attempt int NOT NULL,
        kind text NOT NULL,
        size double precision,
        worker text,
        started_at timestamptz NOT NULL,
        ended_at timestamptz NOT NULL,
        waited_s double precision NOT NULL,
        outcome text NOT NULL,
        error text,
        error_kind text,
        stack text,
        peak_memory_mb double precision,
        cpu_s double precision,
        PRIMARY KEY (job_id, token),
        {JOB}
    """,
    "job_counts": f"""
        {CAMPUS},
        queue text NOT NULL,
        kind text NOT NULL,
        state text NOT NULL,
        delta bigint NOT NULL
    """,
    "job_audit": f"""
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        {CAMPUS},
        at timestamptz NOT NULL DEFAULT clock_timestamp(),
        actor text NOT NULL,
        action text NOT NULL,
        subject text NOT NULL,
        detail jsonb NOT NULL DEFAULT '{{}}'
    """,
    "job_schedules": f"""
        name text NOT NULL,
        {CAMPUS},
        kind text NOT NULL,
        arguments jsonb NOT NULL,
        cron text NOT NULL,
        timezone text NOT NULL,
        catch_up text NOT NULL CHECK (catch_up IN ('latest', 'all', 'none')),
        may_overlap boolean NOT NULL,
        priority smallint NOT NULL,
        summary text NOT NULL DEFAULT '',
        paused_by text,
        paused_at timestamptz,
        seen_until timestamptz NOT NULL,
        PRIMARY KEY (name, campus_id)
    """,
    "job_schedule_runs": f"""
        {CAMPUS},
        schedule text NOT NULL,
        fire_at timestamptz NOT NULL,
        outcome text NOT NULL CHECK (outcome IN ('enqueued', 'missed', 'overlapped', 'by hand')),
        fire_times int NOT NULL DEFAULT 1 CHECK (fire_times >= 1),
        job_id bigint,
        decided_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        PRIMARY KEY (schedule, campus_id, fire_at),
        FOREIGN KEY (schedule, campus_id) REFERENCES theon.job_schedules (name, campus_id)
            ON DELETE CASCADE
    """,
    "job_pauses": f"""
        {CAMPUS},
        subject text NOT NULL CHECK (subject IN ('queue', 'kind', 'campus')),
        value text NOT NULL,
        reason text NOT NULL DEFAULT '',
        paused_by text NOT NULL,
        paused_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        until timestamptz,
        PRIMARY KEY (campus_id, subject, value)
    """,
    "job_workers": f"""
        id text PRIMARY KEY,
        {CAMPUS},
        host text NOT NULL,
        pid int NOT NULL,
        delivery text NOT NULL,
        queues text[] NOT NULL,
        state text NOT NULL CHECK (state IN ('running', 'draining', 'stopped', 'lost')),
        slots int NOT NULL,
        busy int NOT NULL DEFAULT 0,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        cpu_percent double precision,
        memory_mb double precision,
        memory_free_mb double precision,
        running bigint[] NOT NULL DEFAULT '{{}}'
    """,
}

INDEXES = """
CREATE UNIQUE INDEX jobs_idempotent ON theon.jobs (campus_id, kind, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
-- The dispatcher takes the first jobs of each partition (queue, campus, owner).
CREATE INDEX jobs_queued ON theon.jobs (queue, campus_id, owner, rank_at, id)
    WHERE state = 'queued';
CREATE INDEX jobs_scheduled ON theon.jobs (ready_at) WHERE state = 'scheduled' AND waits_for = 0;
CREATE INDEX jobs_leased ON theon.jobs (lease_until) WHERE state IN ('dispatched', 'running');
-- The list of jobs, newest first, of one state; of everything or of one campus the keys serve.
CREATE INDEX jobs_by_state ON theon.jobs (state, id);
CREATE INDEX job_dependencies_needs ON theon.job_dependencies (needs_id);
CREATE INDEX job_history_job ON theon.job_history (job_id);
CREATE INDEX job_attempts_kind ON theon.job_attempts (kind, ended_at);
CREATE INDEX job_attempts_ended ON theon.job_attempts (ended_at);
CREATE INDEX job_audit_at ON theon.job_audit (at);
COMMENT ON COLUMN theon.jobs.rank_at IS
    'when it would have become ready at priority 0: a class of priority is worth a wait';
COMMENT ON COLUMN theon.jobs.waits_for IS 'jobs that it needs and that are not completed';
COMMENT ON COLUMN theon.jobs.size IS 'how large the work is, in the unit of its kind';
COMMENT ON COLUMN theon.job_schedules.seen_until IS
    'fire times up to here are decided; moves with a decision only';
COMMENT ON COLUMN theon.job_schedule_runs.fire_times IS
    'for how many missed fire times the row stands: this one and those before it';
"""

# One statement-level trigger keeps history and counters and refuses what is no transition, so
# that no statement, from whatever place, can forget one of them.
TRIGGERS = """
CREATE FUNCTION theon.jobs_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO theon.job_history
        (campus_id, job_id, before, after, at, token, attempt, worker, reason)
    SELECT campus_id, id, NULL, state, created_at, token, attempts, NULL, reason FROM added;
    INSERT INTO theon.job_counts (campus_id, queue, kind, state, delta)
    SELECT campus_id, queue, kind, state, count(*) FROM added GROUP BY 1, 2, 3, 4;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_inserted AFTER INSERT ON theon.jobs REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION theon.jobs_inserted();

CREATE FUNCTION theon.refuse_transition(job_id bigint, before text, after text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'job % cannot go from % to %', job_id, before, after
        USING ERRCODE = 'check_violation';
END $$;

-- One pass: what only renews, tells progress or moves in the queue changes no state and leaves
-- nothing. The plan is kept from the first call, which may have had one row: a nested loop then
-- compares every row of a later batch with every other.
CREATE FUNCTION theon.jobs_updated() RETURNS trigger LANGUAGE plpgsql SET enable_nestloop = off
AS $$
BEGIN
    WITH changed AS MATERIALIZED (
        SELECT n.campus_id, n.id, o.state AS before,
            CASE WHEN o.state || '>' || n.state = ANY ('{{transitions}}') THEN n.state
                ELSE theon.refuse_transition(n.id, o.state, n.state) END AS after,
            n.changed_at, n.token, n.attempts, coalesce(n.worker, o.worker) AS worker, n.reason,
            n.queue, n.kind
        FROM old_rows o JOIN new_rows n USING (id) WHERE o.state <> n.state
    ), kept AS (
        INSERT INTO theon.job_history
            (campus_id, job_id, before, after, at, token, attempt, worker, reason)
        SELECT campus_id, id, before, after, changed_at, token, attempts, worker, reason
        FROM changed
    ), moves AS (
        SELECT campus_id, queue, kind, before, after, count(*) AS jobs
        FROM changed GROUP BY 1, 2, 3, 4, 5
    )
    INSERT INTO theon.job_counts (campus_id, queue, kind, state, delta)
    SELECT campus_id, queue, kind, before, -jobs FROM moves
    UNION ALL SELECT campus_id, queue, kind, after, jobs FROM moves;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_updated AFTER UPDATE ON theon.jobs
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION theon.jobs_updated();

CREATE FUNCTION theon.jobs_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO theon.job_counts (campus_id, queue, kind, state, delta)
    SELECT campus_id, queue, kind, state, -count(*) FROM removed GROUP BY 1, 2, 3, 4;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_deleted AFTER DELETE ON theon.jobs REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION theon.jobs_deleted();
"""


def upgrade() -> None:
    """Make the tables, their policies and the triggers that keep them true."""
    connection = op.get_bind()
    for name, columns in CAMPUS_TABLES.items():
        connection.exec_driver_sql(f"CREATE TABLE theon.{name} ({columns})")
        protect(connection, f"theon.{name}")
    connection.exec_driver_sql(INDEXES)
    # A batch of jobs takes its ids first, for its jobs name each other.
    run_definition(
        connection,
        "GRANT USAGE ON SEQUENCE theon.jobs_id_seq TO {app}",
        app=sql.Identifier(app_role(connection)),
    )
    transitions = ",".join(f"{before}>{after}" for before, after in TRANSITIONS)
    connection.exec_driver_sql(TRIGGERS.replace("{transitions}", transitions).replace("%", "%%"))
