"""Columns of metrics that rest on outcomes, written by whoever brings new facts.

A metric leaves its statement here (`register_columns`); an observer runs all that are there and
knows no metric. So a process that was started with an older definition writes by the newer one.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from theon.outcomes.states import states_sql

CHANNEL = "theon_metrics"  # hears the slug of a campus whose published rows changed

# The learners a statement looks at: those it was given, or all there are.
_TOUCHED = """touched AS MATERIALIZED (
    SELECT t.user_id, t.course_id
    FROM unnest(CAST(:users AS text[]), CAST(:courses AS text[])) AS t (user_id, course_id)
    UNION
    SELECT f.user_id, f.course_id FROM theon.outcome_facts AS f
    WHERE CAST(:everybody AS boolean) AND f.campus_id = :campus AND f.user_id <> ''
    UNION
    SELECT x.user_id, x.course_id FROM {table} AS x
    WHERE CAST(:everybody AS boolean) AND x.campus_id = :campus
)"""
# Their facts, and those of their courses; OFFSET 0 keeps the planner from leaving the index.
_SOURCE = (
    "SELECT f.*, timezone(:timezone, f.occurred_at) AS local_at"
    " FROM (SELECT user_id, course_id FROM touched UNION SELECT '', course_id FROM touched) AS t"
    " CROSS JOIN LATERAL (SELECT * FROM theon.outcome_facts AS f WHERE f.campus_id = :campus"
    " AND f.course_id = t.course_id AND f.user_id = t.user_id OFFSET 0) AS f"
)
# The planner cannot know how many rows a state has, takes them for few, and would compare each with
# each; of a table that has just begun to grow it would read all, learner by learner. So a nested
# loop is where it is written (LATERAL), and a table is read by its index.
_PLAN = text(
    "SELECT set_config('enable_nestloop', 'off', true), set_config('enable_seqscan', 'off', true),"
    " set_config('jit', 'off', true)"
)
_PLAN_AS_USUAL = text(
    "SELECT set_config('enable_nestloop', 'on', true), set_config('enable_seqscan', 'on', true)"
)


@dataclass(frozen=True)
class OutcomeColumns:
    """What a metric has of outcomes.

    Attributes:
        metric: its name.
        version: of its definition.
        table: where the columns are, `schema.name`; `campus_id` and the keys are its primary key.
        keys: user_id, course_id and the beginning of a period.
        columns: the columns themselves.
        query: SELECT of keys and columns over the states (`outcomes/states`).
        hash: changes with the query or the columns.
    """

    metric: str
    version: int
    table: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    query: str
    hash: str

    @property
    def statement(self) -> str:
        """SQL that puts the rows of `touched` learners right; answers how many rows changed."""
        names = ", ".join([*self.keys, *self.columns])
        same = " AND ".join(f"x.{k} = n.{k}" for k in self.keys)
        keys = ", ".join(self.keys)
        before, now = (", ".join(f"{t}.{c}" for c in self.columns) for t in "xn")
        update = ", ".join(f"{c} = excluded.{c}" for c in self.columns)
        return (
            f"WITH {_TOUCHED.format(table=self.table)}, {states_sql(_SOURCE, self.query)}, "
            f"fresh AS MATERIALIZED (SELECT {names} FROM ({self.query}\n) AS q), "
            f"old AS MATERIALIZED (SELECT x.* FROM touched AS t CROSS JOIN LATERAL (SELECT ctid "
            f"AS at_, {names} FROM {self.table} AS x WHERE x.campus_id = :campus "
            f"AND x.user_id = t.user_id AND x.course_id = t.course_id OFFSET 0) AS x), "
            f"gone AS (DELETE FROM {self.table} WHERE ctid = ANY (ARRAY(SELECT at_ FROM old "
            f"WHERE ({keys}) NOT IN (SELECT {keys} FROM fresh))) RETURNING 1), "
            f"written AS (INSERT INTO {self.table} (campus_id, {names}) "
            f"SELECT :campus, n.* FROM fresh AS n LEFT JOIN old AS x ON {same} "
            f"WHERE x.at_ IS NULL OR ({before}) IS DISTINCT FROM ({now}) "
            f"ON CONFLICT (campus_id, {keys}) DO UPDATE SET {update} RETURNING 1) "
            f"SELECT (SELECT count(*) FROM gone) + (SELECT count(*) FROM written)"
        )


def register_columns(conn: Connection, columns: OutcomeColumns) -> None:
    """Have observers write these columns from now on; in a transaction of the owner.

    Those of facts that are there already are for `rewrite_columns`.
    """
    conn.execute(
        text(
            "INSERT INTO theon.outcome_columns (metric, version, hash, statement)"
            " VALUES (:metric, :version, :hash, :statement) ON CONFLICT (metric, version)"
            " DO UPDATE SET hash = excluded.hash, statement = excluded.statement"
        ),
        {
            "metric": columns.metric,
            "version": columns.version,
            "hash": columns.hash,
            "statement": columns.statement,
        },
    )


def forget_columns(conn: Connection, metric: str, version: int) -> None:
    """Have observers write these columns no more; in a transaction of the owner."""
    conn.execute(
        text("DELETE FROM theon.outcome_columns WHERE metric = :metric AND version = :version"),
        {"metric": metric, "version": version},
    )


def registered_columns(conn: Connection) -> dict[tuple[str, int], str]:
    """(metric, version) of the columns that observers write, to the hash they were left with."""
    found = conn.execute(text("SELECT metric, version, hash FROM theon.outcome_columns"))
    return {(row.metric, row.version): row.hash for row in found}


def write_columns(
    conn: Connection, campus_id: int, timezone: str, learners: list[tuple[str, str]]
) -> int:
    """Compute the columns of some learners again, in all metrics.

    Args:
        conn: a transaction that holds the campus's lock (`observer.lock`).
        campus_id: whose.
        timezone: the campus's.
        learners: pairs of user id and course id.

    Returns:
        Rows written or removed.
    """
    statements = conn.execute(
        text("SELECT statement FROM theon.outcome_columns ORDER BY metric, version")
    ).scalars()
    given = {
        "campus": campus_id,
        "timezone": timezone,
        "users": [user for user, _ in learners],
        "courses": [course for _, course in learners],
        "everybody": False,
    }
    conn.execute(_PLAN)
    rows = sum(int(conn.execute(text(s), given).scalar_one()) for s in list(statements))
    conn.execute(_PLAN_AS_USUAL)
    if rows:
        conn.execute(
            text("SELECT pg_notify(:channel, slug) FROM theon.campuses WHERE id = :campus"),
            {"channel": CHANNEL, "campus": campus_id},
        )
    return rows


def rewrite_columns(
    conn: Connection, campus_id: int, timezone: str, metric: str, version: int
) -> int:
    """Compute the columns of one metric again for the whole campus; see `write_columns`."""
    statement = conn.execute(
        text(
            "SELECT statement FROM theon.outcome_columns"
            " WHERE metric = :metric AND version = :version"
        ),
        {"metric": metric, "version": version},
    ).scalar_one()
    given = {
        "campus": campus_id,
        "timezone": timezone,
        "users": [],
        "courses": [],
        "everybody": True,
    }
    conn.execute(_PLAN)
    rows = int(conn.execute(text(str(statement)), given).scalar_one())
    conn.execute(_PLAN_AS_USUAL)
    return rows


def present_rows(
    conn: Connection, campus_id: int, timezone: str, query: str, learner: tuple[str, str]
) -> list[dict[str, object]]:
    """The rows that a query over the states gives for a learner in a course; writes nothing.

    Args:
        conn: a transaction whose scope holds the campus.
        campus_id: whose.
        timezone: the campus's.
        query: of a metric's outcome columns.
        learner: user id and course id.
    """
    touched = (
        "touched AS (SELECT CAST(:user AS text) AS user_id, CAST(:course AS text) AS course_id)"
    )
    found = conn.execute(
        text(f"WITH {touched}, {states_sql(_SOURCE, query)} SELECT * FROM ({query}\n) AS q"),
        {
            "campus": campus_id,
            "timezone": timezone,
            "user": learner[0],
            "course": learner[1],
        },
    )
    return [dict(row) for row in found.mappings()]
