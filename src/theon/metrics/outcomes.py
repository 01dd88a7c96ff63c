"""Outcome columns of a whole campus: after a change of a definition, a rule or the time zone.

Day by day they are the observers' (`theon.outcomes`); here they are computed from all facts, and
the facts, if need be, from all events of the lake.
"""

from collections.abc import Iterator
from functools import partial

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from theon.events.outcomes import FACT_SCHEMA, OutcomeRules, short_id_sql
from theon.events.retractions import named_ids_sql
from theon.lake.engine import open_engine, sql_list, sql_text
from theon.lake.table import LakeFile
from theon.metrics.catalog import Metric
from theon.outcomes.columns import rewrite_columns
from theon.outcomes.facts import TOGETHER_ROWS, derive_facts
from theon.outcomes.observer import lock
from theon.outcomes.rebuild import replace_facts
from theon.roster.campuses import Campus
from theon.settings import Settings
from theon.store.engine import Store
from theon.store.scope import Scope


def rewrite_outcomes(
    store: Store,
    settings: Settings,
    campus: Campus,
    files: list[LakeFile],
    metrics: list[Metric],
    rules: OutcomeRules | None,
) -> dict[str, int]:
    """Compute the outcome columns of some metrics again, in one transaction of its own.

    Args:
        store: where facts and metrics are.
        settings: of the engine that reads the lake.
        campus: whose.
        files: the lake's, of this campus.
        metrics: which metrics; those without outcome columns are passed over.
        rules: derive the facts of the lake's events again by these; None: the facts are right.

    Returns:
        Metric to rows written or removed.
    """
    with open_engine(settings) as engine, store.transaction(Scope(campus.slug)) as conn:
        if rules is None:
            lock(conn, campus.id)
        else:
            retracted = _retracted(engine, files)
            facts = (
                batch for part in lake_facts(engine, files, rules) for batch in part.to_batches()
            )
            replace_facts(
                conn,
                campus.id,
                pa.RecordBatchReader.from_batches(FACT_SCHEMA, facts),
                retracted,
                partial(_in_lake, engine, files),
            )
        return {
            m.name: rewrite_columns(conn, campus.id, campus.timezone, m.name, m.version)
            for m in metrics
            if m.family("outcome")
        }


def lake_facts(
    engine: duckdb.DuckDBPyConnection, files: list[LakeFile], rules: OutcomeRules
) -> Iterator[pa.Table]:
    """The facts that the events of these files give, part by part; columns as in `FACT_SCHEMA`.

    Events that others of them take back give none.

    Args:
        engine: read with connections of its own; what it does in between is the caller's affair.
        files: the lake's, of one campus.
        rules: that say which events give which facts.
    """
    if not files:
        return
    reading, working = engine.cursor(), engine.cursor()
    names = ", ".join(map(sql_text, rules.event_names))
    told = reading.sql(f"SELECT * FROM {_events(files)} WHERE event_name IN ({names})")
    retracted = pa.array(_retracted(working, files), pa.string())
    for part in derive_facts(working, told.to_arrow_reader(TOGETHER_ROWS), rules):
        yield part.filter(pc.invert(pc.is_in(part["event_id"], retracted)))


def _retracted_sql(files: list[LakeFile]) -> str:
    """SQL of `event_id`: what the events of these files take back, in the form that facts have."""
    named = named_ids_sql(_events(files))
    return f"SELECT {short_id_sql('event_id')} AS event_id FROM ({named})"


def _retracted(engine: duckdb.DuckDBPyConnection, files: list[LakeFile]) -> list[str]:
    return [i for (i,) in engine.sql(_retracted_sql(files)).fetchall()] if files else []


def _events(files: list[LakeFile]) -> str:
    return f"read_parquet({sql_list([f.path for f in files])}, hive_partitioning = false)"


def _in_lake(engine: duckdb.DuckDBPyConnection, files: list[LakeFile], facts: pa.Table) -> pa.Table:
    """Those of `facts` whose event is in one of the files."""
    if not files:
        return facts.slice(0, 0)
    engine.register("facts_", facts)
    found: pa.Table = engine.sql(
        f"SELECT event_id FROM facts_ SEMI JOIN (SELECT {short_id_sql('event_id')} AS event_id "
        f"FROM {_events(files)}) USING (event_id)"
    ).to_arrow_table()
    engine.unregister("facts_")
    return found
