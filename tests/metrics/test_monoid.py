"""The merge that weeks and months rest on is a monoid: pieces may be cut and joined anyhow."""

from typing import Any

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from theon.events.activity import load_rules
from theon.metrics import kernel

LIMIT_S = 1800
RULES = load_rules()
seconds = st.lists(
    st.one_of(
        st.integers(0, 20_000),
        st.builds(lambda k, d: k * 900 + d, st.integers(0, 20), st.sampled_from([0, 1, 899])),
    ),
    max_size=25,
)


def _events(engine: duckdb.DuckDBPyConnection, at: list[int]) -> str:
    engine.execute("CREATE OR REPLACE TEMP TABLE seconds_ (s BIGINT)").fetchall()
    if at:
        values = ", ".join(f"({s})" for s in at)
        engine.execute(f"INSERT INTO seconds_ VALUES {values}").fetchall()
    return (
        "SELECT make_timestamptz(s * 1000000) AS occurred_at, '5' AS user_id, '6' AS course_id, "
        "'\\core\\event\\course_viewed' AS event_name, 'core' AS component, 'viewed' AS action, "
        "'web' AS origin, false AS anonymous, NULL::VARCHAR AS real_user_id FROM seconds_"
    )


def _cells(engine: duckdb.DuckDBPyConnection, at: list[int]) -> list[tuple[Any, ...]]:
    query = kernel.cells_sql(_events(engine, at), RULES)
    return sorted(
        engine.sql(
            f"SELECT slot, total_actions, pages_viewed, first_s, last_s FROM ({query})"
        ).fetchall()
    )


def merge(*parts: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Join cells of the same slot: counts add, the first is the least, the last the greatest."""
    merged: dict[int, tuple[Any, ...]] = {}
    for slot, actions, pages, first, last in (cell for part in parts for cell in part):
        if slot in merged:
            _, a, p, f, z = merged[slot]
            merged[slot] = (slot, a + actions, p + pages, min(f, first), max(z, last))
        else:
            merged[slot] = (slot, actions, pages, first, last)
    return sorted(merged.values())


@settings(max_examples=40, deadline=None)
@given(a=seconds, b=seconds, c=seconds)
def test_cells_of_pieces_merge_to_the_cells_of_the_whole(
    a: list[int], b: list[int], c: list[int]
) -> None:
    """Associative, commutative, with the empty piece as unit, and a homomorphism of events."""
    with duckdb.connect() as engine:
        x, y, z = (_cells(engine, part) for part in (a, b, c))
        whole = _cells(engine, a + b + c)
    assert merge(merge(x, y), z) == merge(x, merge(y, z)) == whole
    assert merge(x, y) == merge(y, x)
    assert merge(x, []) == x


@settings(max_examples=40, deadline=None)
@given(at=seconds, limit_s=st.sampled_from([900, 1799, 1800, 5400]))
def test_time_of_cells_is_the_time_of_one_pass(at: list[int], limit_s: int) -> None:
    """Slots no longer than the limit lose no gap: both statements give the same days."""
    with duckdb.connect() as engine:
        engine.execute(
            "CREATE TEMP TABLE slot_days AS SELECT range::INTEGER AS slot, "
            "(range * 900 // 86400)::INTEGER AS day FROM range(0, 40)"
        ).fetchall()
        events = _events(engine, at)
        cells = kernel.cells_sql(events, RULES)
        ours = engine.sql(f"SELECT * FROM ({kernel.days_sql(cells, RULES, limit_s)}) ORDER BY ALL")
        plain = engine.sql(
            f"SELECT * FROM ({kernel.one_pass_days_sql(events, RULES, limit_s)}) ORDER BY ALL"
        )
        assert ours.columns == plain.columns
        assert ours.fetchall() == plain.fetchall()
