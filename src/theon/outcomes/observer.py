"""The observer: outcomes are known in the transaction that accepts the event.

What the events say is kept as facts, each once. The columns of metrics that rest on outcomes are
computed again from all facts of the learners and courses that have news, in the same transaction.
One transaction after the other writes outcomes of a campus; each sees the facts of those before,
so none overwrites what another found.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, TextClause, text

from theon.events.outcomes import FACT_SCHEMA, load_rules
from theon.events.retractions import named_ids, no_retracted
from theon.events.schema import EVENT_SCHEMA, PARTITION_COLUMNS
from theon.lake.engine import Given, open_scratch, open_single
from theon.outcomes.columns import write_columns
from theon.outcomes.facts import TOGETHER_ROWS, derive_facts
from theon.outcomes.retracting import locate_retracted, name_retracted, withdraw_facts
from theon.store.bulk import copy_in

# More are worth a plan of their own and a temporary table.
FEW_EVENTS = 1_000
STRUCTURE = "structure"

_OWN = threading.local()
_TOLD = pa.schema([f for f in EVENT_SCHEMA if f.name not in PARTITION_COLUMNS])
_COLUMNS = FACT_SCHEMA.names
_TYPES = {pa.string(): "text", pa.float64(): "float8"}
_ARRAYS = ", ".join(
    f"CAST(:{f.name} AS {_TYPES.get(f.type, 'timestamptz')}[])" for f in FACT_SCHEMA
)


def _insert(source: str) -> TextClause:
    return text(
        f"WITH added AS (INSERT INTO theon.outcome_facts (campus_id, {', '.join(_COLUMNS)})"
        f" SELECT :campus, {', '.join(f's.{name}' for name in _COLUMNS)} FROM {source}"
        " WHERE NOT EXISTS (SELECT 1 FROM theon.retractions AS r"
        " WHERE r.event_id = s.event_id AND r.campus_id = :campus)"
        " ON CONFLICT DO NOTHING RETURNING kind, user_id, course_id)"
        " SELECT kind, user_id, course_id, count(*) AS facts FROM added GROUP BY 1, 2, 3"
    )


_INSERT_FEW = _insert(f"unnest({_ARRAYS}) AS s ({', '.join(_COLUMNS)})")
_INSERT_MANY = _insert("new_facts AS s")
# Once for each connection: to make and drop one each time fills the catalog with dead rows.
_MAKE_ROOM = text(
    f"CREATE TEMP TABLE IF NOT EXISTS new_facts ON COMMIT DELETE ROWS AS"
    f" SELECT {', '.join(_COLUMNS)} FROM theon.outcome_facts WHERE false"
)
_CLEAR = text("DELETE FROM new_facts")
_Facts = list[tuple[object, ...]] | pa.Table
_LEARNERS = text(
    "SELECT DISTINCT user_id, course_id FROM theon.outcome_facts WHERE campus_id = :campus"
    " AND course_id = ANY (:courses) AND user_id <> ''"
)


@dataclass(frozen=True)
class Observed:
    """What events changed.

    Attributes:
        facts: facts that were not known before.
        learners: learners in courses with news; each course of a learner counts.
        rows: rows of metrics that were written or removed.
        kinds: the new facts by kind and course; the course is empty where they are of none.
        retracted: `RETRACTED_SCHEMA`: events whose retractions are to be made now.
    """

    facts: int = 0
    learners: int = 0
    rows: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter, compare=False)
    retracted: pa.Table = field(default_factory=no_retracted, compare=False)


def observe(
    conn: Connection,
    campus_id: int,
    timezone: str,
    events: pa.Table,
    *,
    retracted: pa.Table | None = None,
) -> Observed:
    """Keep what events say about outcomes, and bring what rests on it up to date.

    Safe to call again with the same events, in any order and any batches. A retracted event says
    nothing, whether it comes before or after its retraction.

    Args:
        conn: a transaction whose scope holds the campus; READ COMMITTED. Until it ends, other
            transactions wait that observe outcomes of this campus.
        campus_id: whose events.
        timezone: the campus's, an IANA name; weeks are cut there.
        events: columns of `EVENT_SCHEMA`; `campus` is not needed.
        retracted: `RETRACTED_SCHEMA`: events that are taken back, if any are; those that `events`
            only name are found there.
    """
    named = named_ids(events)
    facts = _derive(outcome_events(events))
    if not len(facts) and not named and not retracted:
        return Observed()
    lock(conn, campus_id)
    news: set[tuple[str, str, str]] = set()
    retractions = no_retracted()
    if named or retracted:
        name_retracted(conn, campus_id, named)
        if retracted:
            retractions = locate_retracted(conn, campus_id, retracted)
            named += [row["event_id"] for row in retracted.to_pylist()]
        news = withdraw_facts(conn, campus_id, named)
    added = _add(conn, campus_id, facts)
    news.update(added)
    kinds: Counter[tuple[str, str]] = Counter()
    for (kind, _, course), count in added.items():
        kinds[kind, course] += count
    learners = {(user, course) for _, user, course in news if user and course}
    courses = sorted({course for kind, _, course in news if kind == STRUCTURE})
    if courses:
        found = conn.execute(_LEARNERS, {"campus": campus_id, "courses": courses}).all()
        learners.update((row.user_id, row.course_id) for row in found)
    rows = write_columns(conn, campus_id, timezone, sorted(learners)) if learners else 0
    return Observed(kinds.total(), len(learners), rows, kinds, retractions)


def _add(conn: Connection, campus_id: int, facts: _Facts) -> Counter[tuple[str, str, str]]:
    """Keep facts; how many were new of each kind, person and course."""
    given: dict[str, object] = {"campus": campus_id}
    if isinstance(facts, pa.Table):
        conn.execute(_MAKE_ROOM)
        copy_in(conn, "new_facts", facts)
        found = conn.execute(_INSERT_MANY, given).all()
        conn.execute(_CLEAR)
    elif facts:
        columns = zip(*facts, strict=True)
        given |= {name: list(column) for name, column in zip(_COLUMNS, columns, strict=True)}
        found = conn.execute(_INSERT_FEW, given).all()
    else:
        return Counter()
    return Counter({(row.kind, row.user_id, row.course_id): row.facts for row in found})


def _derive(told: pa.Table) -> _Facts:
    """What events say: of a handful as rows, of thousands as a table, planned for them."""
    if told.num_rows <= FEW_EVENTS:
        return facts_of(told) if told.num_rows else []
    with open_scratch() as engine:
        parts = derive_facts(engine, told.to_reader(TOGETHER_ROWS), load_rules())
        return pa.concat_tables(parts)


def lock(conn: Connection, campus_id: int) -> None:
    """Wait until no other transaction writes outcomes of the campus, and keep others waiting."""
    conn.execute(
        text("SELECT pg_advisory_xact_lock(hashtext('theon.outcomes'), :campus)"),
        {"campus": campus_id},
    )


def outcome_events(events: pa.Table) -> pa.Table:
    """The events that a rule is for. Few are, so this is quick."""
    names = pa.array(load_rules().event_names, events["event_name"].type)
    return events.filter(pc.is_in(events["event_name"], names))


def facts_of(told: pa.Table) -> list[tuple[object, ...]]:
    """The facts in some `outcome_events`: rows of `FACT_SCHEMA`."""
    numbers = load_rules().rules_of(told["event_name"].unique().to_pylist())
    engine, given, planned = _engine()
    rows: list[tuple[object, ...]] = []
    with given.holding(told):
        for number in numbers:
            if number not in planned:
                query = load_rules().facts_sql("told_", [number])
                columns = ", ".join(_COLUMNS)
                engine.execute(
                    f"PREPARE rule_{number} AS SELECT {columns} FROM ({query})"
                ).fetchall()
                planned.add(number)
            rows += engine.execute(f"EXECUTE rule_{number}").fetchall()
    return rows


def _engine() -> tuple[duckdb.DuckDBPyConnection, Given, set[int]]:
    """This thread's engine, what its statements read, and the rules it has one for.

    To make any of it takes longer than most batches. For a handful of rows, planning is nearly all
    there is to do.
    """
    if not hasattr(_OWN, "engine"):
        engine = open_single()
        engine.execute("PRAGMA disable_optimizer")
        _OWN.engine, _OWN.planned = engine, set()
        _OWN.told = Given(engine, "told_", _TOLD)
    return _OWN.engine, _OWN.told, _OWN.planned
