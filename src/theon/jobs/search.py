"""Which jobs: a filter, and the words that people type for one.

`kind:import campus:north owner:115 timed out` is a filter: tokens with a known name before the
colon, and the rest as text. A name that is given twice, or values with a comma, mean either.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, text

from theon.errors import InputError
from theon.jobs.context import clean
from theon.jobs.states import State

# Name of a token to the attribute of the filter.
TOKENS = {
    "state": "states",
    "kind": "kinds",
    "category": "categories",
    "queue": "queues",
    "campus": "campuses",
    "owner": "owners",
    "error": "error_kinds",
}
SPANS = ("created", "ended")
STATES = tuple(state.value for state in State)
# What people know these states by, from elsewhere.
SYNONYMS = {"pending": "queued", "processing": "running"}


@dataclass(frozen=True)
class JobFilter:
    """Which jobs. What is empty says nothing; a job matches if it matches all that is said.

    Attributes:
        states: any of them.
        kinds: any of them: a whole name, or a room, such as `metrics`.
        categories, queues, owners: any of them.
        error_kinds: any of them; an empty one is of jobs whose error has no class.
        campuses: slugs; a campus stands for itself and all below it.
        created_from, created_before, ended_from, ended_before: moments with a time zone.
        text: in the error, the operation or the idempotency key, in large letters or small.
    """

    states: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    queues: tuple[str, ...] = ()
    campuses: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    error_kinds: tuple[str, ...] = ()
    created_from: datetime | None = None
    created_before: datetime | None = None
    ended_from: datetime | None = None
    ended_before: datetime | None = None
    text: str = ""

    def __post_init__(self) -> None:
        """Refuse what no job could match.

        Raises:
            InputError: a state does not exist, a moment has no time zone, or a word has letters
                that no text in the database can have.
        """
        for state in self.states:
            if state not in STATES:
                raise _unknown("state", state, STATES)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, datetime) and value.tzinfo is None:
                raise InputError(f"{field.name} has no time zone", where="filter")
            words = value if isinstance(value, tuple) else (value,)
            if any(isinstance(word, str) and clean(word) != word for word in words):
                raise InputError(f"{field.name} has a NUL character or half of one", where="filter")

    def as_json(self) -> dict[str, Any]:
        """What the filter says, for a record of it."""
        said = {name: value for name, value in asdict(self).items() if value}
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in said.items()
        }


def parse_search(words: str) -> JobFilter:
    """The filter that somebody typed.

    A value or text with blanks or colons stands in double quotes. Of a span, `created:2026-03-01`
    is that day, `created:2026-03-01..2026-03-31` both days and those between; either end may be
    left out, and may have a time: `ended:2026-03-01T08:00..` (UTC).

    Raises:
        InputError: a token has no known name, or its value does not fit; names what there is.
    """
    values: dict[str, list[str]] = {attribute: [] for attribute in TOKENS.values()}
    said: dict[str, Any] = {}
    free: list[str] = []
    for name, value in _tokens(words):
        if not name:
            free.append(value)
        elif name in TOKENS:
            parts = [part.strip() for part in value.split(",") if part.strip()]
            if not parts:
                raise InputError(f"{name}: has no value", where="search")
            values[TOKENS[name]] += [SYNONYMS.get(p, p) if name == "state" else p for p in parts]
        elif name in SPANS:
            said |= _span(name, value)
        else:
            raise _unknown("token", name, (*TOKENS, *SPANS))
    said |= {attribute: tuple(dict.fromkeys(given)) for attribute, given in values.items()}
    return JobFilter(**said, text=" ".join(free))


def _tokens(words: str) -> Iterator[tuple[str, str]]:
    """Pairs of name (empty for text) and value; quotes keep blanks and colons together."""
    place = 0
    while place < len(words):
        if words[place].isspace():
            place += 1
            continue
        name, value, quoted = "", "", False
        while place < len(words) and not words[place].isspace():
            letter = words[place]
            if letter == '"':
                end = words.find('"', place + 1)
                if end < 0:
                    raise InputError(
                        "a double quote is opened and not closed",
                        where=f"search, letter {place + 1}",
                    )
                value += words[place + 1 : end]
                quoted, place = True, end + 1
            elif letter == ":" and not name and not quoted and value:
                name, value, place = value.lower(), "", place + 1
            else:
                value, place = value + letter, place + 1
        yield name, value


def _span(name: str, value: str) -> dict[str, datetime | None]:
    first, dots, last = value.partition("..")
    if not dots:
        last = first
    span = {
        f"{name}_from": _moment(name, first, last=False) if first else None,
        f"{name}_before": _moment(name, last, last=True) if last else None,
    }
    if not any(span.values()):
        raise InputError(f"{name}: has no value", where="search")
    return span


def _moment(name: str, value: str, *, last: bool) -> datetime:
    try:
        if len(value) == 10:
            day = date.fromisoformat(value) + timedelta(days=int(last))
            return datetime.combine(day, time(), tzinfo=UTC)
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise InputError(
            f"{value!r} is no date",
            where=f"search, {name}:",
            next_step="Write 2026-03-01, 2026-03-01..2026-03-31, or 2026-03-01T08:00..",
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unknown(what: str, value: str, known: tuple[str, ...]) -> InputError:
    near = get_close_matches(value, known, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    quotes = " Put text with a colon in double quotes." if what == "token" else ""
    return InputError(
        f"there is no {what} {value!r}{hint}",
        where="search",
        next_step=f"There are: {', '.join(known)}.{quotes}",
    )


def campus_ids(conn: Connection, slugs: tuple[str, ...]) -> list[int]:
    """The campuses with these slugs and all below them.

    Raises:
        InputError: the scope does not see one of them.
    """
    seen = set(
        conn.execute(
            text("SELECT slug FROM theon.campuses WHERE slug = ANY (:slugs)"),
            {"slugs": list(slugs)},
        ).scalars()
    )
    for slug in slugs:
        if slug not in seen:
            raise InputError(f"there is no campus {slug!r} in this scope", where="search")
    found = conn.execute(
        text(
            "WITH RECURSIVE below AS ("
            " SELECT id FROM theon.campuses WHERE slug = ANY (:slugs)"
            " UNION SELECT c.id FROM theon.campuses AS c JOIN below AS b ON c.parent_id = b.id"
            ") SELECT id FROM below ORDER BY id"
        ),
        {"slugs": list(slugs)},
    )
    return [int(campus_id) for campus_id in found.scalars()]


def conditions(conn: Connection, chosen: JobFilter) -> tuple[list[str], dict[str, Any]]:
    """The filter as conditions on `theon.jobs AS j`, and their values.

    Raises:
        InputError: the scope does not see a campus of the filter.
    """
    found: list[str] = []
    values: dict[str, Any] = {}
    for attribute, column in (
        ("states", "j.state"), ("categories", "j.category"), ("queues", "j.queue"),
        ("owners", "j.owner"), ("error_kinds", "coalesce(j.error_kind, '')"),
    ):  # fmt: skip
        if value := getattr(chosen, attribute):
            found.append(f"{column} = ANY (:{attribute})")
            values[attribute] = list(value)
    if chosen.kinds:
        found.append("(j.kind = ANY (:kinds) OR split_part(j.kind, '.', 1) = ANY (:kinds))")
        values["kinds"] = list(chosen.kinds)
    if chosen.campuses:
        found.append("j.campus_id = ANY (:campus_ids)")
        values["campus_ids"] = campus_ids(conn, chosen.campuses)
    for span in SPANS:
        for end, sign in (("from", ">="), ("before", "<")):
            if (moment := getattr(chosen, f"{span}_{end}")) is not None:
                found.append(f"j.{span}_at {sign} :{span}_{end}")
                values[f"{span}_{end}"] = moment
    if chosen.text:
        found.append(
            "(j.error ILIKE :text OR j.operation ILIKE :text OR j.idempotency_key ILIKE :text)"
        )
        escaped = chosen.text.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
        values["text"] = f"%{escaped}%"
    return found, values
