"""Columns of a chart: their heights are their values, and none leaves its place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theon.jobs.search import parse_search
from theon.web.jobs_charts import HEIGHT, WIDTH, columns
from theon.web.jobs_dead_letters import search_words
from theon.web.jobs_health import percent


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=40))
def test_columns_stay_in_their_chart_and_stand_on_each_other(pairs: list[tuple[int, int]]) -> None:
    chart = columns(pairs)
    assert len(chart.columns) == len(pairs)
    for column in chart.columns:
        assert 0 <= column.x <= column.x + column.width <= WIDTH + 0.01
        assert -0.02 <= column.upper_y <= column.lower_y <= HEIGHT
        assert column.lower_y + column.lower == pytest.approx(HEIGHT, abs=0.02)
        assert column.upper_y + column.upper == pytest.approx(column.lower_y, abs=0.02)


def test_the_highest_column_fills_the_chart() -> None:
    chart = columns([(1, 0), (6, 2), (0, 0)])
    assert (chart.top, chart.columns[1].upper_y, chart.columns[2].lower) == (8, 0.0, 0.0)
    assert (chart.columns[0].lower, chart.columns[1].upper) == (15.0, 30.0)


def test_a_share_below_all_is_not_called_all() -> None:
    assert [percent(share) for share in (0.0, 0.964, 0.9999, 1.0)] == [
        "0%", "96.4%", ">99.9%", "100%",
    ]  # fmt: skip


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES, NAMES)
def test_words_of_a_group_find_that_group_or_are_not_offered(kind: str, error: str) -> None:
    words = search_words(kind, error)
    if words:
        found = parse_search(words)
        assert (found.states, found.text) == (("failed",), "")
        assert (found.kinds, found.error_kinds) == ((kind,), (error,))
