"""The filter of the page of jobs: as words, as links, with counts and suggestions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from theon.jobs.kinds import Kinds
from theon.jobs.search import SPANS, STATES, TOKENS, JobFilter, campus_ids
from theon.web.jobs_base import url

CATEGORIES = ("reward", "system", "analytics", "import", "report")
CAMPUSES_SUGGESTED = 300

_COUNTS = """
SELECT state, sum(delta)::bigint FROM theon.job_counts AS j WHERE {where} GROUP BY state"""


@dataclass(frozen=True)
class Link:
    """A link to a part of the jobs; `count` is how many there are, None where nobody counts."""

    name: str
    path: str
    here: bool
    count: int | None = None
    key: str = ""


# -- a filter as words ---------------------------------------------------------------------


def words_of(chosen: JobFilter) -> str:
    """What somebody would type for the filter: `parse_search` of it is the filter again.

    A value with a comma or a double quote cannot be typed; such a filter comes from no search.
    """
    words = [
        f"{name}:{','.join(map(_quoted, values))}"
        for name, attribute in TOKENS.items()
        if (values := getattr(chosen, attribute))
    ]
    for name in SPANS:
        start, end = getattr(chosen, f"{name}_from"), getattr(chosen, f"{name}_before")
        if start or end:
            words.append(f"{name}:{_iso(start)}..{_iso(end)}")
    return " ".join([*words, *([_text(chosen.text)] if chosen.text else [])])


def _quoted(value: str) -> str:
    plain = value and ":" not in value and not any(letter.isspace() for letter in value)
    return value if plain else f'"{value}"'


def _iso(at: datetime | None) -> str:
    return at.isoformat() if at else ""


def _text(words: str) -> str:
    """Free text; in quotes where it would not come back the same, letter for letter."""
    plain = ":" not in words and " ".join(words.split()) == words
    return words if plain else f'"{words}"'


def can_be_typed(value: str) -> bool:
    """Whether a search can name this value."""
    return bool(value.strip()) and value == value.strip() and not set(value) & set('",')


def jobs_url(chosen: JobFilter, **more: object) -> str:
    """The page of the jobs of a filter."""
    return url("/jobs", q=words_of(chosen), **more)


# -- links ---------------------------------------------------------------------------------


def chips(chosen: JobFilter, kinds: Kinds) -> list[Link]:
    """All, running, and each category."""
    free = replace(chosen, states=(), categories=())
    running = replace(chosen, states=("running",))
    found = [
        Link("All", jobs_url(free), chosen == free),
        Link("Running", jobs_url(running), chosen.states == ("running",)),
    ]
    for category in dict.fromkeys((*CATEGORIES, *(k.category for k in kinds.values()))):
        path = jobs_url(replace(chosen, categories=(category,)))
        found.append(Link(category.capitalize(), path, chosen.categories == (category,)))
    return found


def state_links(chosen: JobFilter, counts: Mapping[str, int]) -> list[Link]:
    """All states and each one, with how many jobs are in it."""
    total = sum(counts.values())
    links = [Link("All states", jobs_url(replace(chosen, states=())), not chosen.states, total)]
    for state in STATES:
        path = jobs_url(replace(chosen, states=(state,)))
        here = chosen.states == (state,)
        links.append(Link(state.capitalize(), path, here, counts.get(state, 0), state))
    return links


# -- counts and suggestions ----------------------------------------------------------------


def state_counts(conn: Connection, kinds: Kinds, chosen: JobFilter) -> dict[str, int]:
    """How many jobs are in each state, by the counters: of kinds, queues and campuses chosen.

    Counters know no owners, errors, times or texts; `is_counted` says whether that matters.

    Raises:
        InputError: the scope does not see a campus of the filter.
    """
    where, values = ["true"], dict[str, Any]()
    if chosen.kinds:
        where.append("(j.kind = ANY (:kinds) OR split_part(j.kind, '.', 1) = ANY (:kinds))")
        values["kinds"] = list(chosen.kinds)
    if chosen.categories:
        where.append("j.kind = ANY (:of_category)")
        values["of_category"] = [k.name for k in kinds.values() if k.category in chosen.categories]
    if chosen.queues:
        where.append("j.queue = ANY (:queues)")
        values["queues"] = list(chosen.queues)
    if chosen.campuses:
        where.append("j.campus_id = ANY (:campus_ids)")
        values["campus_ids"] = campus_ids(conn, chosen.campuses)
    rows = conn.execute(text(_COUNTS.format(where=" AND ".join(where))), values)
    return {state: max(0, int(jobs)) for state, jobs in rows}


def is_counted(chosen: JobFilter) -> bool:
    """Whether the counters know all that the filter says, beside the state."""
    known = JobFilter(
        states=chosen.states, kinds=chosen.kinds, categories=chosen.categories,
        queues=chosen.queues, campuses=chosen.campuses,
    )  # fmt: skip
    return known == chosen


def campuses_in_scope(conn: Connection) -> list[tuple[str, str]]:
    """Slug and name of the campuses that the scope sees."""
    rows = conn.execute(text("SELECT slug, name FROM theon.campuses ORDER BY slug"))
    return [(slug, name) for slug, name in rows]


def suggestions(kinds: Kinds, campuses: Iterable[str]) -> list[str]:
    """Words that a search may have, of names that there are."""
    rooms = {name.partition(".")[0] for name in kinds}
    return [
        *(f"state:{state}" for state in STATES),
        *(f"kind:{name}" for name in sorted({*kinds, *rooms})),
        *(f"category:{name}" for name in CATEGORIES),
        *(f"queue:{name}" for name in sorted({kind.queue for kind in kinds.values()})),
        *(f"campus:{slug}" for slug in list(campuses)[:CAMPUSES_SUGGESTED]),
        "owner:", "error:", "created:", "ended:",
    ]  # fmt: skip
