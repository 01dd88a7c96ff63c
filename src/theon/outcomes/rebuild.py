"""Facts, derived again from all events of the lake: after a change of the rules, or to be sure."""

from collections.abc import Callable, Iterable

import pyarrow as pa
from sqlalchemy import Connection, text

from theon.events.outcomes import FACT_SCHEMA
from theon.outcomes.observer import lock
from theon.outcomes.retracting import name_retracted
from theon.store.bulk import copy_in

_COLUMNS = ", ".join(FACT_SCHEMA.names)
_IS_RETRACTED = (
    "EXISTS (SELECT 1 FROM theon.retractions AS r"
    " WHERE r.event_id = {row}.event_id AND r.campus_id = :campus)"
)
_CONTENT = [name for name in FACT_SCHEMA.names if name != "event_id"]


def replace_facts(
    conn: Connection,
    campus_id: int,
    facts: pa.RecordBatchReader,
    retracted: Iterable[str],
    in_lake: Callable[[pa.Table], pa.Table],
) -> int:
    """Make the facts of the lake's events those that the rules give now.

    Facts of events that were accepted and are not in the lake yet stay as they are. So does what is
    known of retractions; those that the lake knows and nobody else are noted.

    Args:
        conn: a transaction whose scope holds the campus; it keeps the campus's lock to its end.
        campus_id: whose.
        facts: `FACT_SCHEMA`: all that the lake's events say.
        retracted: ids of all events that the lake's events take back.
        in_lake: picks, of a table with `event_id`, the rows whose event is in the lake.

    Returns:
        How many facts were written or removed.
    """
    conn.execute(
        text(
            f"CREATE TEMP TABLE derived ON COMMIT DROP AS "
            f"SELECT {_COLUMNS} FROM theon.outcome_facts WHERE false"
        )
    )
    copy_in(conn, "derived", facts)
    conn.execute(text("CREATE INDEX ON derived (event_id)"))
    conn.execute(text("ANALYZE derived"))
    lock(conn, campus_id)
    name_retracted(conn, campus_id, retracted)
    who = {"campus": campus_id}
    others = conn.execute(
        text(
            "SELECT event_id FROM theon.outcome_facts AS f WHERE campus_id = :campus"
            " AND NOT EXISTS (SELECT 1 FROM derived AS d WHERE d.event_id = f.event_id)"
        ),
        who,
    ).scalars()
    left = pa.table({"event_id": pa.array(list(others), pa.string())})
    void = in_lake(left)["event_id"].to_pylist() if left.num_rows else []
    removed = conn.execute(
        text(
            "DELETE FROM theon.outcome_facts AS f WHERE campus_id = :campus"
            f" AND (event_id = ANY (:ids) OR {_IS_RETRACTED.format(row='f')})"
        ),
        {**who, "ids": void},
    ).rowcount
    old, new = (", ".join(f"{t}.{c}" for c in _CONTENT) for t in ("f", "excluded"))
    written = conn.execute(
        text(
            f"INSERT INTO theon.outcome_facts AS f (campus_id, {_COLUMNS})"
            f" SELECT :campus, {_COLUMNS} FROM derived AS d"
            f" WHERE NOT {_IS_RETRACTED.format(row='d')}"
            f" ON CONFLICT (campus_id, event_id) DO UPDATE"
            f" SET ({', '.join(_CONTENT)}) = ROW ({new}) WHERE ({old}) IS DISTINCT FROM ({new})"
        ),
        who,
    ).rowcount
    conn.execute(text("DROP TABLE derived"))
    return removed + written
