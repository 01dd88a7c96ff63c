"""Row-level security: whose rows a transaction sees, and that nothing steps around it."""

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from theon.errors import InputError
from theon.roster.campuses import add_campus
from theon.store.engine import Store
from theon.store.scope import Scope, protect

SCHEMAS = "('theon', 'metrics')"
CAMPUSES = "theon.campuses"

TREE = {"north": "district", "south": "district", "oak": "north", "elm": "north"}

# One row of each table for the campus :c; a table that is missing here fails the tests below.
ROWS = {
    "theon.courses": "(campus_id, course_id) VALUES (:c, 'k')",
    "theon.people": "(campus_id, user_id) VALUES (:c, 'u')",
    "theon.intake_runs": "(campus_id, format, location) VALUES (:c, 'f', 'l')",
    "theon.intake_rejects": "(campus_id, run_id, location, reason)"
    " SELECT :c, id, 'l', 'r' FROM theon.intake_runs WHERE campus_id = :c",
    "theon.intake_cursors": "(campus_id, source, last_id) VALUES (:c, 's', 1)",
    "theon.derived_files": "(campus_id, dataset, path, row_count) VALUES (:c, 'days', 'p', 1)",
    "theon.derived_parts": "(campus_id, dataset, period, file_id, row_count)"
    " SELECT :c, 'days', 1, id, 1 FROM theon.derived_files WHERE campus_id = :c",
    "theon.refresh_state": "(campus_id) VALUES (:c)",
    "theon.metric_versions": "(campus_id, metric, definition_hash, version)"
    " VALUES (:c, 'm', 'h', 1)",
    "theon.jobs": "(campus_id, kind, queue, category, arguments, state, priority, rank_at,"
    " ready_at, max_attempts, max_lost, timeout_s, memory_mb)"
    " VALUES (:c, 'k', 'q', 'system', '{}', 'queued', 0, now(), now(), 3, 3, 60, 64)",
    "theon.job_dependencies": "(campus_id, job_id, needs_id, needs_campus_id)"
    " SELECT :c, id, id, :c FROM theon.jobs WHERE campus_id = :c",
    "theon.job_history": "(campus_id, job_id, after, at, token, attempt, reason)"
    " SELECT :c, id, 'queued', now(), 0, 0, '' FROM theon.jobs WHERE campus_id = :c",
    "theon.job_attempts": "(campus_id, job_id, token, attempt, kind, started_at, ended_at,"
    " waited_s, outcome) SELECT :c, id, 1, 1, 'k', now(), now(), 0, 'completed'"
    " FROM theon.jobs WHERE campus_id = :c",
    "theon.job_counts": "(campus_id, queue, kind, state, delta)"
    " VALUES (:c, 'q', 'k', 'completed', 1)",
    "theon.job_audit": "(campus_id, actor, action, subject) VALUES (:c, 'a', 'cancel', 'job 1')",
    "theon.job_schedules": "(name, campus_id, kind, arguments, cron, timezone, catch_up,"
    " may_overlap, priority, seen_until)"
    " VALUES ('s', :c, 'k', '{}', '0 0 * * *', 'UTC', 'latest', false, 0, now())",
    "theon.job_schedule_runs": "(campus_id, schedule, fire_at, outcome)"
    " SELECT :c, name, now(), 'missed' FROM theon.job_schedules WHERE campus_id = :c",
    "theon.job_pauses": "(campus_id, subject, value, paused_by) VALUES (:c, 'queue', 'q', 'p')",
    "theon.job_workers": "(id, campus_id, host, pid, delivery, queues, state, slots)"
    " VALUES ('worker ' || :c, :c, 'h', 1, 'local', '{q}', 'running', 1)",
    "theon.accounts": "(campus_id, name, role, password_hash)"
    " VALUES (:c, 'n' || :c, 'teacher', 'h')",
    "theon.sessions": "(token_hash, campus_id, account_id, expires_at)"
    " SELECT sha256((id || ' ' || :c)::bytea), :c, id, now() FROM theon.accounts"
    " WHERE campus_id = :c",
    "theon.api_keys": "(campus_id, name, prefix, key_hash, role, made_by, expires_at)"
    " VALUES (:c, 'n', 'p' || :c, sha256((:c || '')::bytea), 'service', 'm', now())",
    "theon.sign_in_failures": "(campus_id, subject) VALUES (:c, 's')",
    "theon.welcome_links": "(token_hash, campus_id, expires_at)"
    " VALUES (sha256((:c || '')::bytea), :c, now())",
    "theon.outcome_facts": "(campus_id, event_id, kind, user_id, course_id, item_id, attempt,"
    " state, occurred_at) VALUES (:c, 'e', 'attempt', 'u', 'k', 'i', '1', 'started', now())",
    "theon.kafka_offsets": "(campus_id, group_id, topic, partition, next_offset)"
    " VALUES (:c, 'g', 't', :c, 0)",
    "theon.kafka_consumers": "(id, campus_id, group_id, host, pid, state, partitions, messages,"
    " started_at) VALUES ('consumer ' || :c, :c, 'g', 'h', 1, 'listening', '{}', 0, now())",
    "theon.outbox": "(campus_id, type, data) VALUES (:c, 'AnalyticsUpdated', '{}')",
    "theon.event_ids": "(campus_id, id_hash, content_hash, batch)"
    " VALUES (:c, gen_random_uuid(), gen_random_uuid(), 1)",
    "theon.event_journal": "(id, campus_id, source, events, first_at, last_at, rows)"
    " VALUES (:c, :c, 's', 1, now(), now(), 'r')",
    "theon.landings": "(campus_id) VALUES (:c)",
    "theon.delivery_counts": "(campus_id, source, hour, last_at)"
    " VALUES (:c, 's', date_trunc('hour', now()), now())",
    "theon.delivery_reasons": "(campus_id, source, hour, reason, events)"
    " SELECT :c, source, hour, 'r', 1 FROM theon.delivery_counts WHERE campus_id = :c",
    "theon.dead_letters": "(campus_id, source, format, stage, reason, original)"
    " VALUES (:c, 's', 'native', 'g', 'r', 'o')",
    "theon.dead_letter_changes": "(campus_id, letter_id, actor, action, outcome)"
    " SELECT :c, id, 'a', 'discard', 'discarded' FROM theon.dead_letters WHERE campus_id = :c",
    "theon.delivery_gaps": "(campus_id, kind, source, explanation)"
    " VALUES (:c, 'silence', 's', 'e')",
    "theon.delivery_looks": "(campus_id, kind, position) VALUES (:c, 'moodle_ids', 1)",
    "theon.retractions": "(campus_id, event_id) VALUES (:c, 'e')",
    "theon.lrs_statements": "(campus_id, id, stored, fingerprint, voiding, size_bytes, statement)"
    " VALUES (:c, gen_random_uuid(), now(), sha256('s'), false, 1, '{}')",
    "theon.lrs_keys": "(campus_id, key, stored, own)"
    " SELECT :c, id, stored, true FROM theon.lrs_statements WHERE campus_id = :c",
    "theon.lrs_attachments": "(campus_id, sha2, content_type, content) VALUES (:c, 's', 't', 'c')",
    "theon.lrs_activities": "(campus_id, id_hash, id, definition)"
    " VALUES (:c, gen_random_uuid(), 'i', '{}')",
    "theon.lrs_names": "(campus_id, agent, name_hash, name)"
    " VALUES (:c, gen_random_uuid(), gen_random_uuid(), 'n')",
    "theon.lrs_documents": "(campus_id, place, registration, id_hash, id, content_type, content,"
    " etag, updated_at) VALUES (:c, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'i',"
    " 't', 'c', 'e', now())",
    "metrics.made_later": "(campus_id, value) VALUES (:c, 1)",
}


@pytest.fixture
def tree(store: Store) -> dict[str, int]:
    """district > north > (oak, elm), district > south; slug -> id; a row each in every table."""
    ids = {"district": 1}
    for slug, parent in TREE.items():
        ids[slug] = add_campus(store, slug, "UTC", parent=parent).id
    with store.owner_transaction() as conn:
        conn.exec_driver_sql(
            "CREATE TABLE metrics.made_later (campus_id int NOT NULL, value int NOT NULL)"
        )
        protect(conn, "metrics.made_later")
    with store.transaction(Scope.district()) as conn:
        for table, row in ROWS.items():
            for campus_id in ids.values():
                conn.execute(text(f"INSERT INTO {table} {row}"), {"c": campus_id})
    return ids


def campus_tables(conn: Connection) -> list[str]:
    found = conn.execute(
        text(
            "SELECT table_schema || '.' || table_name FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name)"
            f" WHERE table_schema IN {SCHEMAS} AND column_name = 'campus_id'"
            " AND table_type = 'BASE TABLE'"  # a view reads with the rights of who asks
        )
    )
    return sorted(found.scalars())


def visible(conn: Connection, table: str) -> set[int]:
    column = "id" if table == CAMPUSES else "campus_id"
    return set(conn.execute(text(f"SELECT {column} FROM {table}")).scalars())


def test_every_table_of_a_campus_is_protected(store: Store, tree: dict[str, int]) -> None:
    """Each table with a campus column, and the campuses, has forced security and a policy."""
    with store.owner_transaction() as conn:
        tables = campus_tables(conn)
        assert tables == sorted(ROWS)
        for table in (*tables, CAMPUSES):
            forced, policies = conn.execute(
                text(
                    "SELECT relrowsecurity AND relforcerowsecurity,"
                    " (SELECT count(*) FROM pg_policy WHERE polrelid = c.oid)"
                    " FROM pg_class AS c WHERE oid = to_regclass(:table)"
                ),
                {"table": table},
            ).one()
            assert forced, table
            assert policies >= 1, table


def test_no_table_goes_without_a_campus(store: Store, tree: dict[str, int]) -> None:
    """A table without a campus column would escape the policies.

    Only the schema's version may, and the statements of observers, which are of no campus.
    """
    with store.owner_transaction() as conn:
        others = conn.execute(
            text(
                "SELECT schemaname || '.' || tablename FROM pg_tables"
                f" WHERE schemaname IN {SCHEMAS}"
            )
        ).scalars()
        tables = {*campus_tables(conn), CAMPUSES, "theon.schema_version", "theon.outcome_columns"}
        assert set(others) == tables
    with store.transaction(Scope.district()) as conn, pytest.raises(ProgrammingError):
        conn.execute(text("SELECT * FROM theon.schema_version"))


def test_the_application_has_no_way_around(store: Store, tree: dict[str, int]) -> None:
    """Its role is no superuser, bypasses nothing, owns nothing and can become nobody else."""
    with store.transaction(Scope("oak")) as conn:
        role = conn.execute(
            text(
                "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles"
                " WHERE rolname = session_user AND session_user = current_user"
            )
        ).one()
        assert not any(role)
        owned = "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = current_user"
        assert conn.execute(text(owned)).scalar_one() == 0
        conn.exec_driver_sql("RESET ROLE")
        assert visible(conn, "theon.courses") == {tree["oak"]}
    for forbidden in (
        "SET ROLE theon_owner",
        "SET SESSION AUTHORIZATION theon_owner",
        "ALTER TABLE theon.courses NO FORCE ROW LEVEL SECURITY",
        "DROP POLICY in_scope ON theon.courses",
        "TRUNCATE theon.courses",  # is not subject to policies
        "COPY theon.courses FROM STDIN",  # would not be either
        "CREATE TABLE metrics.own (campus_id int)",
        "CREATE TABLE public.own (campus_id int)",
        "UPDATE theon.campuses SET parent_id = NULL",
    ):
        with store.transaction(Scope("oak")) as conn, pytest.raises(DBAPIError) as caught:
            conn.exec_driver_sql(forbidden)
        assert isinstance(caught.value.orig, psycopg.Error)
        # insufficient_privilege, or feature_not_supported for COPY under row-level security
        assert caught.value.orig.sqlstate in {"42501", "0A000"}, f"{forbidden}: {caught.value}"


def test_switching_row_security_off_is_an_error_not_a_way(
    store: Store, tree: dict[str, int]
) -> None:
    """`row_security = off` makes a query fail rather than show more."""
    with store.transaction(Scope("oak")) as conn:
        conn.exec_driver_sql("SET LOCAL row_security = off")
        with pytest.raises(ProgrammingError, match="row-level security"):
            conn.execute(text("SELECT * FROM theon.courses"))


@pytest.mark.parametrize("scope", ["", "nowhere", "OAK", "oak' OR true --"])
def test_an_unknown_scope_sees_nothing(store: Store, tree: dict[str, int], scope: str) -> None:
    """No row of any table is visible, and none can be written."""
    with store.transaction(Scope(scope)) as conn:
        for table in (*ROWS, CAMPUSES):
            assert visible(conn, table) == set(), table
            if table != CAMPUSES:
                assert conn.execute(text(f"DELETE FROM {table}")).rowcount == 0
    with store.transaction(Scope(scope)) as conn, pytest.raises(ProgrammingError):
        conn.execute(text("INSERT INTO theon.people (campus_id, user_id) VALUES (1, 'x')"))


def test_without_a_scope_nothing_is_seen(store: Store, tree: dict[str, int]) -> None:
    """The application's login alone shows no row of any table."""
    with store._app.begin() as conn:
        assert conn.execute(text("SELECT current_setting('theon.scope', true)")).scalar() in (
            None,
            "",
        )
        for table in (*ROWS, CAMPUSES):
            assert visible(conn, table) == set(), table


def test_the_owner_sees_no_campus_rows(store: Store, tree: dict[str, int]) -> None:
    """The owner defines tables; it is subject to the policies of the tables it owns."""
    with store.owner_transaction() as conn:
        assert not any(visible(conn, table) for table in ROWS)


@pytest.mark.parametrize(
    ("scope", "sees"),
    [
        ("district", {"district", "north", "south", "oak", "elm"}),
        ("north", {"north", "oak", "elm"}),
        ("south", {"south"}),
        ("oak", {"oak"}),
    ],
)
def test_a_scope_sees_itself_and_all_below(
    store: Store, tree: dict[str, int], scope: str, sees: set[str]
) -> None:
    """In every table: the campus and what is below it, and nothing else."""
    with store.transaction(Scope(scope)) as conn:
        for table in (*ROWS, CAMPUSES):
            assert visible(conn, table) == {tree[slug] for slug in sees}, table


@pytest.mark.parametrize("table", sorted(ROWS))
def test_no_row_is_written_for_another_campus(
    store: Store, tree: dict[str, int], table: str
) -> None:
    """Neither by insert nor by moving a row of one's own; and others' rows stay untouched."""
    # `true`, for the other campus's file and run are not seen to take an id from
    row = ROWS[table].replace("WHERE campus_id = :c", "WHERE true")
    with store.transaction(Scope("oak")) as conn, pytest.raises(ProgrammingError, match="policy"):
        conn.execute(text(f"INSERT INTO {table} {row}"), {"c": tree["elm"]})
    with store.transaction(Scope("oak")) as conn, pytest.raises(ProgrammingError, match="policy"):
        conn.execute(text(f"UPDATE {table} SET campus_id = :c"), {"c": tree["elm"]})
    with store.transaction(Scope("oak")) as conn:
        gone = conn.execute(text(f"DELETE FROM {table} WHERE campus_id = :c"), {"c": tree["elm"]})
        assert gone.rowcount == 0


def test_a_campus_is_added_below_a_visible_one_only(store: Store, tree: dict[str, int]) -> None:
    """A scope may grow its own part of the tree, and no other."""
    add = text(
        "INSERT INTO theon.campuses (slug, name, timezone, parent_id) VALUES (:s, :s, 'UTC', :p)"
    )
    with store.transaction(Scope("north")) as conn:
        conn.execute(add, {"s": "ash", "p": tree["north"]})
    with store.transaction(Scope("north")) as conn, pytest.raises(ProgrammingError, match="policy"):
        conn.execute(add, {"s": "fir", "p": tree["south"]})


def test_a_scope_ends_with_its_transaction(store: Store, tree: dict[str, int]) -> None:
    """Connections are used again; the scope of one use never reaches the next."""
    for _ in range(20):
        with store.transaction(Scope.district()) as conn:
            assert visible(conn, "theon.people")
        with store._app.begin() as conn:
            assert not visible(conn, "theon.people")


def test_nothing_outlives_its_transaction_on_a_connection(
    store: Store, tree: dict[str, int]
) -> None:
    """Neither a temporary table nor a setting of the session reaches the next scope."""
    with store.transaction(Scope.district()) as conn:
        conn.exec_driver_sql("CREATE TEMPORARY TABLE kept AS SELECT * FROM theon.people")
        conn.exec_driver_sql("SET SESSION theon.scope = 'district'")
    for _ in range(20):
        with store._app.begin() as conn:
            assert conn.execute(text("SELECT to_regclass('kept')")).scalar_one() is None
            assert not visible(conn, "theon.people")


def test_protect_may_be_repeated(store: Store, tree: dict[str, int]) -> None:
    """Applying it twice changes nothing; a table named without its schema is refused."""
    with store.owner_transaction() as conn:
        protect(conn, "metrics.made_later")
        with pytest.raises(InputError, match="schema"):
            protect(conn, "made_later")
    with store.transaction(Scope("oak")) as conn:
        assert visible(conn, "metrics.made_later") == {tree["oak"]}


def test_an_index_serves_the_policy(store: Store, tree: dict[str, int]) -> None:
    """The visible campuses are worked out once per statement, not once per row."""
    with store.transaction(Scope("oak")) as conn:
        conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
        plan = "\n".join(conn.execute(text("EXPLAIN SELECT * FROM theon.people")).scalars())
    assert "InitPlan" in plan
    assert "Index Cond: (campus_id = ANY" in plan
