"""Which events say something about an outcome: `outcome_rules.toml` compiled to SQL.

The rules are data; this module turns those that a batch needs into one SELECT for DuckDB. What
comes out is a fact: what an event says of one thing (an attempt, a submission, a completion …)
of one learner. What the thing is now follows from its facts, elsewhere.
"""

import hashlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

import pyarrow as pa

from theon.errors import InputError
from theon.events.retractions import NAMING
from theon.events.schema import EVENT_SCHEMA

_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("event_id", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),  # 'attempt', 'submission', 'completion' …
    pa.field("user_id", pa.string(), nullable=False),  # '' where it is about no learner
    pa.field("course_id", pa.string(), nullable=False),  # '' where it is about no course
    pa.field("item_id", pa.string(), nullable=False),  # quiz, assignment, activity …; '' if none
    pa.field("attempt", pa.string(), nullable=False),  # '' where the source counts none
    pa.field("state", pa.string(), nullable=False),
    pa.field("score", pa.float64()),  # points
    pa.field("max_score", pa.float64()),
    pa.field("items", pa.string()),  # ids, with the character 31 between them
    pa.field("occurred_at", pa.timestamp("us", tz="UTC"), nullable=False),
]
FACT_SCHEMA = pa.schema(_FIELDS)

WHERE = "outcome_rules.toml"
# PostgreSQL has an end to what an index holds: longer ids go by their beginning and their MD5.
LONGEST_ID = 200
SHORT_HEAD = 60  # characters
_NEEDED = ("user", "course", "item")
_PARTS = {"user": "user_id", "course": "course_id", "item": "item_id", "attempt": "attempt"}
_KEYS = {
    "event_name", "kind", "state", "user", "course", "item", "item_prefix", "attempt",
    "score", "max_score", "items", "needs",
}  # fmt: skip
_LIMITS = {
    "user_id": "user_id NOT IN ('', '0', '1') AND NOT starts_with(user_id, '-')",
    "course_id": "course_id NOT IN ('', '0', '1') AND NOT starts_with(course_id, '-')",
    "item_id": "item_id <> ''",
    "attempt": "attempt <> ''",
    "score": "score IS NOT NULL",
}


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def short_id_sql(expression: str) -> str:
    """SQL: an id as facts hold it, without NUL and of bounded length."""
    clean = f"replace({expression}, chr(0), '')"
    return (
        f"CASE WHEN octet_length(encode({clean})) > {LONGEST_ID} "
        f"THEN left({clean}, {SHORT_HEAD}) || '…' || md5({clean}) ELSE {clean} END"
    )


def short_id(value: str) -> str:
    """What `short_id_sql` makes of an id."""
    clean = value.replace("\0", "")
    if len(clean.encode()) <= LONGEST_ID:
        return clean
    return f"{clean[:SHORT_HEAD]}…{hashlib.md5(clean.encode(), usedforsecurity=False).hexdigest()}"


def _believed(number: str) -> str:
    """SQL: whether a number may be points: percent of two such, and their sums, fit a double."""
    return f"({number} = 0 OR abs({number}) BETWEEN 1e-12 AND 1e12)"


_CLEAN = [
    *(f"{short_id_sql(c)} AS {c}" for c in ("event_id", *_PARTS.values())),
    "kind",
    f"left(replace(state, chr(0), ''), {LONGEST_ID}) AS state",
    *(f"CASE WHEN {_believed(c)} THEN {c} END AS {c}" for c in ("score", "max_score")),
    "replace(items, chr(0), '') AS items",
    "occurred_at",
]


@dataclass(frozen=True)
class _Rule:
    """One rule: the events it is for, and SQL of the columns of the fact."""

    event_names: tuple[str, ...]
    columns: dict[str, str]
    condition: str

    def sql(self, events: str) -> str:
        """A SELECT of the parts of `FACT_SCHEMA`, as they stand in `events`."""
        listed = ", ".join(_quoted(name) for name in self.event_names)
        columns = ", ".join(f"{sql} AS {name}" for name, sql in self.columns.items())
        return (
            f"SELECT * FROM (SELECT {columns} FROM {events} WHERE event_name IN ({listed})) "
            f"WHERE {self.condition}"
        )


@dataclass(frozen=True)
class OutcomeRules:
    """The compiled rules.

    Attributes:
        rules: one for every entry of the file.
        event_names: all events that a rule is for.
        hash: changes when a rule changes; facts derived under another hash are derived again.
    """

    rules: tuple[_Rule, ...]
    event_names: tuple[str, ...]
    hash: str

    def facts_sql(self, events: str, rules: Iterable[int] | None = None) -> str:
        """SQL of the facts in `events`, a relation with the columns of `EVENT_SCHEMA`.

        Args:
            events: a table's name, or SQL in parentheses.
            rules: places in `rules` of those that are to be looked at (all: none given).
        """
        wanted = range(len(self.rules)) if rules is None else rules
        parts = " UNION ALL ".join(self.rules[number].sql(events) for number in wanted)
        # What is the same for all is done once, outside: a rule's own part stays quick to plan.
        return f"SELECT {', '.join(_CLEAN)} FROM ({parts})"

    def rules_of(self, event_names: Iterable[str | None]) -> list[int]:
        """Places in `rules` of those for these events, in order."""
        found = {self._by_name.get(name or "") for name in event_names}
        return sorted(number for number in found if number is not None)

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {name: n for n, rule in enumerate(self.rules) for name in rule.event_names}


def parse_rules(text: str) -> OutcomeRules:
    """Compile rules from the text of a rules file.

    Raises:
        InputError: a part of a rule is unknown or missing, or two rules are for one event.
    """
    rules = tuple(_rule(entry) for entry in tomllib.loads(text)["rule"])
    names = [name for rule in rules for name in rule.event_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two rules are for {', '.join(twice)}", where=WHERE)
    # What takes events back is read where facts are derived, so a change of it derives them again.
    digest = hashlib.sha256(repr((rules, NAMING, _CLEAN)).encode()).hexdigest()[:16]
    return OutcomeRules(rules, tuple(sorted(names)), digest)


@cache
def load_rules() -> OutcomeRules:
    """The rules Theon ships with."""
    return parse_rules(resources.files("theon.events").joinpath(WHERE).read_text("utf-8"))


def _rule(entry: dict[str, Any]) -> _Rule:
    unknown = set(entry) - _KEYS
    if unknown or not {"event_name", "kind", "state"} <= set(entry):
        raise InputError(
            f"a rule has {', '.join(sorted(unknown))}" if unknown else "a rule lacks a part",
            where=WHERE,
            next_step=f"A rule has event_name, kind, state, and may have {', '.join(_KEYS)}.",
        )
    sources = {"user": ["user_id"], "course": ["course_id"], **entry}
    columns = {"event_id": "event_id", "kind": _quoted(entry["kind"])}
    for part, column in _PARTS.items():
        value = _first(sources.get(part, []))
        if part == "item" and "item_prefix" in entry:
            value = f"{_quoted(entry['item_prefix'])} || {value}"
        columns[column] = f"coalesce({value}, '')"
    columns["state"] = _state(entry["state"])
    for column in ("score", "max_score"):
        columns[column] = _number(entry.get(column, []))
    columns["items"] = _list(entry["items"]) if "items" in entry else "NULL::VARCHAR"
    columns["occurred_at"] = "occurred_at"
    needs = [_PARTS.get(part, part) for part in entry.get("needs", _NEEDED)]
    condition = " AND ".join([*(_LIMITS[part] for part in needs), "state IS NOT NULL"])
    return _Rule(tuple(entry["event_name"]), columns, condition)


def _first(sources: list[str]) -> str:
    """SQL of the first of `sources` that is there, as text."""
    if not sources:
        return "NULL::VARCHAR"
    return "coalesce(" + ", ".join(f"nullif({_source(s)}, '')" for s in sources) + ")"


def _source(source: str) -> str:
    if source in EVENT_SCHEMA.names:
        return f"{source}::VARCHAR"
    if not source.startswith("$.") or not source[2:].replace(".", "").replace("_", "").isalnum():
        raise InputError(
            f"{source!r} is neither a column of an event nor a key of `other` ($.key)",
            where=WHERE,
            next_step=f"Columns: {', '.join(EVENT_SCHEMA.names)}.",
        )
    php = rf'"{source[2:]}";(?:[idb]:|s:\d+:")([^;"]*)'
    return (
        f"CASE WHEN json_valid(other) THEN json_extract_string(other, {_quoted(source)}) "
        f"WHEN starts_with(other, 'a:') THEN regexp_extract(other, {_quoted(php)}, 1) END"
    )


def _state(state: str | dict[str, Any]) -> str:
    if isinstance(state, str):
        return _quoted(state)
    value = _first(state["from"])
    if "values" not in state:
        return value
    cases = " ".join(
        f"WHEN {value} = {_quoted(found)} THEN {_quoted(meant)}"
        for found, meant in state["values"].items()
    )
    return f"CASE {cases} WHEN {value} IS NOT NULL THEN {_quoted(state['otherwise'])} END"


def _number(sources: list[str]) -> str:
    if not sources:
        return "NULL::DOUBLE"
    return f"try_cast({_first(sources)} AS DOUBLE)"


def _list(source: str) -> str:
    """SQL: a JSON list in `other` as text, its members divided by the character 31."""
    members = f"json_extract_string(other, {_quoted(source + '[*]')})"
    return (
        f"CASE WHEN json_valid(other) AND json_type(other, {_quoted(source)}) = 'ARRAY' "
        f"THEN array_to_string({members}, chr(31)) END"
    )
