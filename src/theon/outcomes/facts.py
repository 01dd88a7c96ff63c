"""Facts of many events, in bounded memory however much they say."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from theon.events.outcomes import FACT_SCHEMA, OutcomeRules

TOGETHER_ROWS = 2_048  # as many as DuckDB looks at together
TOGETHER_BYTES = 1 << 20  # of their `other`
PART_BYTES = 16 << 20


def derive_facts(
    engine: duckdb.DuckDBPyConnection, told: pa.RecordBatchReader, rules: OutcomeRules
) -> Iterator[pa.Table]:
    """The facts that events give, part by part; columns as in `FACT_SCHEMA`.

    Args:
        engine: no other connection may use it meanwhile.
        told: events of which the rules speak, in batches of `TOGETHER_ROWS` at most; columns of
            `EVENT_SCHEMA`, `campus` is not needed.
        rules: that say which events give which facts.
    """
    columns = ", ".join(FACT_SCHEMA.names)
    for part in _parts(told):
        engine.register("told_", part)
        wanted = rules.rules_of(pc.unique(part["event_name"]).to_pylist())
        facts = engine.sql(f"SELECT {columns} FROM ({rules.facts_sql('told_', wanted)})")
        yield facts.to_arrow_table().cast(FACT_SCHEMA)


def _parts(events: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """The events in tables of about `PART_BYTES`, and these in pieces of `TOGETHER_BYTES`.

    The engine looks at the rows of a piece together. It holds what it makes of their JSON, for each
    of the keys that it looks for, several times as large as the text, and cannot spill it.
    """
    pieces: list[pa.RecordBatch] = []
    size = 0
    for batch in events:
        other: Any = batch["other"]  # its stubs do not know that it is text
        ends = np.cumsum(pc.fill_null(pc.binary_length(other), 0).to_numpy())
        cuts = [0, *(np.flatnonzero(np.diff(ends // TOGETHER_BYTES)) + 1), batch.num_rows]
        pieces += [batch.slice(start, end - start) for start, end in pairwise(cuts)]
        size += batch.nbytes
        if size >= PART_BYTES:
            yield pa.Table.from_batches(pieces)
            pieces, size = [], 0
    if pieces:
        yield pa.Table.from_batches(pieces)
