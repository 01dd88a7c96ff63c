"""Present states: what a thing is now, worked out from all facts about it.

A state is a SELECT over `facts` in a file of `states/`, in SQL that PostgreSQL and DuckDB both
read. Nothing is kept that has to be kept in step: a state depends on the set of facts and on
nothing else. Of facts about one thing the later counts; at the same instant the one with the
longer id (so that number 100 comes after 99), then the one whose id is greater.
"""

import re
from functools import cache
from importlib import resources

_THING = "campus_id, kind, user_id, course_id, item_id, attempt"


@cache
def state_queries() -> dict[str, str]:
    """Name of each state to its SELECT over `facts`."""
    folder = resources.files("theon.outcomes").joinpath("states")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return {f.name[:-4]: f.read_text("utf-8").strip() for f in files}


def facts_sql(source: str) -> str:
    """SQL of the facts that hold, numbered by `place` within their thing.

    Args:
        source: SQL of facts with `campus_id` and `local_at`, the campus's own time.
    """
    return (
        f"SELECT * FROM (SELECT *, coalesce(max(CASE WHEN state = 'removed' THEN place END) OVER "
        f"(PARTITION BY {_THING}), 0) AS removed_ FROM (SELECT *, row_number() OVER (PARTITION BY "
        f"{_THING} ORDER BY occurred_at, length(event_id), event_id) AS place "
        f"FROM ({source}) AS all_) AS numbered) AS marked WHERE place > removed_"
    )


def states_sql(source: str, query: str) -> str:
    """A list of common table expressions: `facts`, and by its name each state that is asked for.

    Args:
        source: as for `facts_sql`.
        query: what reads the states.
    """
    asked = set(re.findall(r"\w+", query))
    states = [f"{name} AS ({sql}\n)" for name, sql in state_queries().items() if name in asked]
    return ", ".join([f"facts AS ({facts_sql(source)})", *states])
